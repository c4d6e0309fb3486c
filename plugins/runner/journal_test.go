package runner

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

func exitRecord(id string, code int32) *runnerv1.SessionResponse {
	return &runnerv1.SessionResponse{Exited: []*runnerv1.Exited{{Id: id, Result: &runnerv1.Exited_ExitCode{ExitCode: code}}}}
}

// TestTornJournal cuts a journal at every byte: what was written whole before
// is read, and nothing else.
func TestTornJournal(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, JournalName)
	j, err := openJournal(path, false)
	if err != nil {
		t.Fatal(err)
	}
	var ends []int64
	for i := range 3 {
		if err := j.append(exitRecord(fmt.Sprint(i), int32(i))); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, j.size)
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(whole) + 1 {
		want := 0
		for _, e := range ends {
			if int64(n) >= e {
				want++
			}
		}
		if err := os.WriteFile(path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := ReadJournal(dir)
		if err != nil || len(got.Exited) != want {
			t.Fatalf("%d bytes of %d: %d records, want %d; %v", n, len(whole), len(got.Exited), want, err)
		}
	}
	for n := range whole {
		spoiled := append([]byte(nil), whole...)
		spoiled[n] ^= 0x40
		if err := os.WriteFile(path, spoiled, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := ReadJournal(dir)
		if err != nil {
			t.Fatalf("byte %d changed: %v", n, err)
		}
		for id, e := range got.Exited {
			if fmt.Sprint(e.GetExitCode()) != id {
				t.Fatalf("byte %d changed: %s ended with %d", n, id, e.GetExitCode())
			}
		}
	}
}

// TestP2_JournalWithoutItsRecords_IsDamaged: a plugin process writes a first record
// before it is given any job, so that what is gone is noticed.
func TestP2_JournalWithoutItsRecords_IsDamaged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, JournalName)
	j, err := openJournal(path, true)
	if err != nil {
		t.Fatal(err)
	}
	whole := func() []byte {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	begun := whole()
	if err := j.append(exitRecord("0", 0)); err != nil {
		t.Fatal(err)
	}
	ended := whole()
	if err := j.rewrite(nil); err != nil {
		t.Fatal(err)
	}
	rewritten := whole()
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	spoiled := append(append([]byte(nil), begun...), "what is this, and what is this"...)
	for name, c := range map[string]struct {
		data    []byte
		damaged bool
	}{
		"begun": {begun, false}, "an exit": {ended, false}, "rewritten": {rewritten, false}, "a torn record": {ended[:len(ended)-1], false},
		"empty": {nil, true}, "half of the first record": {begun[:5], true}, "garbage": {spoiled, true}, "zeros": {make([]byte, 40), false},
	} {
		if err := os.WriteFile(path, c.data, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := ReadJournal(dir); err != nil || got.Damaged != c.damaged || got.Keeps == c.damaged {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadJournal(dir); err != nil || !got.Damaged || len(got.Started)+len(got.Exited) != 0 {
		t.Errorf("missing: %+v, %v", got, err)
	}
}

// TestJournalIsCompacted fills the journal beyond its bound: acknowledged exits
// leave it, the others stay.
func TestJournalIsCompacted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := NewServer(&scripted{}, ServerConfig{Journal: filepath.Join(dir, JournalName)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	end := func(id string) {
		a, ok := s.enter(&runnerv1.Start{Id: id}, nil)
		if !ok {
			t.Fatalf("%s exists", id)
		}
		s.finish(a, exitRecord(id, 1).GetExited()[0])
	}
	end("kept")
	long := strings.Repeat("x", 1000)
	for i := range journalCompact/1000 + 10 {
		id := fmt.Sprint(i, long)
		end(id)
		s.ack([]string{id})
	}
	st, err := os.Stat(filepath.Join(dir, JournalName))
	if err != nil || st.Size() > journalCompact {
		t.Errorf("the journal has %d bytes, %v", st.Size(), err)
	}
	j, err := ReadJournal(dir)
	if err != nil || j.Exited["kept"].GetExitCode() != 1 {
		t.Errorf("the exit that nobody acknowledged: %v, %v", j.Exited["kept"], err)
	}
}
