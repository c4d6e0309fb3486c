package runner

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// TestFramesToAWorkerAreCut: whatever a runner says of its failures, and however many
// there are, a worker takes each frame; what is said once comes last.
func TestFramesToAWorkerAreCut(t *testing.T) {
	t.Parallel()
	f := &runnerv1.SessionResponse{Synced: true}
	long := errors.New(strings.Repeat("é", 1<<20))
	for i := range 5_000 {
		id := fmt.Sprint(i)
		f.Beginning = append(f.Beginning, id)
		f.Started = append(f.Started, &runnerv1.Started{Id: id, Pid: 7})
		f.Exited = append(f.Exited, startFailed(id, long))
	}
	beginning, started, exited := 0, 0, 0
	parts := cut(f)
	for i, part := range parts {
		if n := proto.Size(part); n > 2*frameBytes {
			t.Errorf("a frame of %d bytes", n)
		}
		if part.GetSynced() != (i == len(parts)-1) {
			t.Errorf("frame %d of %d: synced %v", i+1, len(parts), part.GetSynced())
		}
		beginning, started, exited = beginning+len(part.GetBeginning()), started+len(part.GetStarted()), exited+len(part.GetExited())
	}
	if beginning != 5_000 || started != 5_000 || exited != 5_000 || len(parts) < 2 {
		t.Errorf("%d, %d, %d in %d frames", beginning, started, exited, len(parts))
	}
	if m := f.GetExited()[0].GetError().GetMessage(); len(m) > maxMessageText || !utf8.ValidString(m) {
		t.Errorf("a message of %d bytes", len(m))
	}
	small := &runnerv1.SessionResponse{Synced: true}
	if got := cut(small); len(got) != 1 || got[0] != small {
		t.Error("a small frame is cut")
	}
}
