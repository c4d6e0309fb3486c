package runner

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// FuzzJournal: a journal with anything behind its records is read up to there, and
// what is whole is what was written.
func FuzzJournal(f *testing.F) {
	written := &runnerv1.SessionResponse{
		Started: []*runnerv1.Started{{Id: "a", Pid: 7}, {Id: "b", Pid: withdrawn}}, Exited: []*runnerv1.Exited{{Id: "a", Pid: 7}},
	}
	rec, err := frameRecord(written)
	if err != nil {
		f.Fatal(err)
	}
	for _, tail := range [][]byte{nil, rec, rec[:len(rec)/2], bytes.Repeat([]byte{0xff}, 9), make([]byte, 8), make([]byte, 64)} {
		f.Add(tail)
	}
	f.Fuzz(func(t *testing.T, tail []byte) {
		path := filepath.Join(t.TempDir(), JournalName)
		if err := os.WriteFile(path, append(bytes.Clone(rec), tail...), 0o600); err != nil {
			t.Fatal(err)
		}
		records, whole, _, err := readJournal(path)
		if len(records) == 0 || !proto.Equal(records[0], written) || whole < int64(len(rec)) || whole > int64(len(rec)+len(tail)) {
			t.Fatalf("%d records, %d bytes, %v", len(records), whole, err)
		}
		if _, err := ReadJournal(filepath.Dir(path)); err != nil {
			return
		}
		if err := Withdraw(filepath.Dir(path), []string{"a"}); err != nil {
			t.Fatal(err)
		}
		if j, err := ReadJournal(filepath.Dir(path)); err != nil || j.Started["a"] != nil {
			t.Errorf("a start that was withdrawn is read: %v, %v", j.Started, err)
		}
	})
}
