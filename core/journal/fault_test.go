package journal

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

// faulty is a file of which each operation can fail.
type faulty struct {
	*os.File
	f *faults
}

// faults is what the disk refuses; nil refuses nothing.
type faults struct {
	write    func(p []byte) int // bytes taken before it fails; negative: all, and no failure
	truncate error
	sync     error
	syncs    int
}

func (x *faulty) Write(p []byte) (int, error) {
	if x.f.write != nil {
		if room := x.f.write(p); room >= 0 && room < len(p) {
			n, err := x.File.Write(p[:room])
			return n, errors.Join(err, unix.ENOSPC)
		}
	}
	return x.File.Write(p)
}

func (x *faulty) Truncate(n int64) error {
	if x.f.truncate != nil {
		return x.f.truncate
	}
	return x.File.Truncate(n)
}

func (x *faulty) Sync() error {
	x.f.syncs++
	if x.f.sync != nil {
		return x.f.sync
	}
	return x.File.Sync()
}

func openFaulty(t *testing.T) (*Journal, *faults) {
	t.Helper()
	f := &faults{}
	j, _, err := Open(Config{
		Path: filepath.Join(t.TempDir(), "journal"), Log: slog.New(slog.DiscardHandler),
		open: func(p string) (file, error) {
			o, err := openFile(p)
			if err != nil {
				return nil, err
			}
			return &faulty{File: o.(*os.File), f: f}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return j, f
}

// A partial batch that could not be cut stayed in the middle of the file, and
// the next start of the worker refused the journal.
func TestAPartialBatchThatCannotBeCutIsCutLater(t *testing.T) {
	t.Parallel()
	j, f := openFaulty(t)
	appendAll(t, j, intent(1, 1))
	f.write, f.truncate = func([]byte) int { return 20 }, unix.EIO
	if err := j.Append(intent(2, 2)); errs.ReasonOf(err) != ReasonWrite {
		t.Fatalf("a full disk gave %v", err)
	}
	f.write = nil
	if err := j.Append(intent(3, 3)); errs.ReasonOf(err) != ReasonWrite {
		t.Fatalf("a record behind half a record gave %v", err)
	}
	f.truncate = nil
	appendAll(t, j, intent(4, 4))
	j, st := reopen(t, j)
	defer j.Close()
	if len(st.Attempts) != 2 || st.Attempts[1].Key != key(4) {
		t.Fatalf("%+v", st.Attempts)
	}
}

// A term whose sync failed was taken for synced when it was recorded again.
func TestP3ATermThatWasNotSyncedIsSyncedByTheNextAppend(t *testing.T) {
	t.Parallel()
	j, f := openFaulty(t)
	fence := Record{Kind: KindFence, Fence: job.Fence{Term: 7, Counter: 1}}
	f.sync = unix.EIO
	for range 2 {
		if err := j.Append(fence); errs.ReasonOf(err) != ReasonWrite {
			t.Fatalf("a failed sync gave %v", err)
		}
	}
	f.sync = nil
	before := f.syncs
	appendAll(t, j, fence)
	if f.syncs == before {
		t.Error("the term was acknowledged without a sync")
	}
	before = f.syncs
	appendAll(t, j, fence, intent(1, 1))
	if f.syncs != before {
		t.Error("a term that is on the disk was synced again")
	}
	j, st := reopen(t, j)
	defer j.Close()
	if st.Fence.Term != 7 || len(st.Attempts) != 1 {
		t.Errorf("%+v", st)
	}
}

func TestACompactionThatFailsLeavesTheJournalWhole(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*faults){
		"at once":    func(f *faults) { f.write = func([]byte) int { return 0 } },
		"in between": func(f *faults) { f.write = func([]byte) int { return 50 } },
		"sync":       func(f *faults) { f.sync = unix.EIO },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j, f := openFaulty(t)
			appendAll(t, j, life(1)...)
			appendAll(t, j, intent(2, 2))
			size, dead := j.Size()
			spoil(f)
			if err := j.Compact(); errs.ReasonOf(err) != ReasonWrite {
				t.Fatalf("%v", err)
			}
			if _, err := os.Stat(j.path + ".new"); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("half a journal is left: %v", err)
			}
			if s, d := j.Size(); s != size || d != dead {
				t.Errorf("size %d, dead %d, want %d and %d", s, d, size, dead)
			}
			*f = faults{}
			appendAll(t, j, intent(3, 3))
			if err := j.Compact(); err != nil {
				t.Fatal(err)
			}
			j, st := reopen(t, j)
			defer j.Close()
			if len(st.Attempts) != 3 {
				t.Errorf("%d attempts, want 3", len(st.Attempts))
			}
		})
	}
}

// TestP2EveryFlippedBitIsFoundOrCutsTheTail: what a damaged journal says is a
// beginning of what was written, or nothing.
func TestP2EveryFlippedBitIsFoundOrCutsTheTail(t *testing.T) {
	t.Parallel()
	records := append(life(1)[:3], intent(2, 2))
	data := []byte(magic)
	var states []*State
	starts := []int{len(data)}
	for i := range records {
		states = append(states, Replay(records[:i]))
		data = appendFrame(data, &records[i])
		starts = append(starts, len(data))
	}
	lastFrame := starts[len(records)-1]
	for bit := range len(data) * 8 {
		bad := bytes.Clone(data)
		bad[bit/8] ^= 1 << (bit % 8)
		j := &Journal{}
		st, good, err := j.replay(bad)
		switch {
		case err != nil && bit/8 >= lastFrame:
			t.Fatalf("bit %d of the tail: %v", bit, err)
		case err == nil && bit/8 < lastFrame:
			t.Fatalf("bit %d: damage in the middle is taken for a torn tail at %d", bit, good)
		case err == nil:
			if diff := cmp.Diff(states[len(records)-1], st); diff != "" || good != int64(lastFrame) {
				t.Fatalf("bit %d (-want +got):\n%s", bit, diff)
			}
		}
	}
}

// TestAFileSystemThatIsFull fills a small one for real.
func TestAFileSystemThatIsFull(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root may mount a file system of its own")
	}
	dir := t.TempDir()
	if err := unix.Mount("drover-test", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("no file system can be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 128<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	j, _ := openAt(t, filepath.Join(dir, "journal"))
	var acked uint64
	record := func(n uint64) Record {
		r := intent(1, n)
		r.Key.Attempt = uint32(n)
		r.Intent.Spec.Args = []string{strings.Repeat("x", 1000)}
		return r
	}
	for {
		err := j.Append(record(acked + 1))
		if err != nil {
			if errs.KindOf(err) != errs.Exhausted || !errors.Is(err, unix.ENOSPC) {
				t.Fatalf("a full disk gave %v", err)
			}
			break
		}
		acked++
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	appendAll(t, j, record(acked+1))
	j, st := reopen(t, j)
	defer j.Close()
	if got := uint64(len(st.Attempts)); got != acked+1 || st.Fence.Counter != acked+1 {
		t.Errorf("%d attempts, %d were acknowledged", got, acked+1)
	}
}

func TestAJournalThatCannotBeMadeIsAnError(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "journal"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(dir, "file", "journal"), filepath.Join(dir, "journal")} {
		if _, _, err := Open(Config{Path: path}); errs.ReasonOf(err) != ReasonWrite {
			t.Errorf("%s: %v", path, err)
		}
	}
	_, _, err := Open(Config{Path: filepath.Join(dir, "full"), open: func(p string) (file, error) {
		f, err := openFile(p)
		if err != nil {
			return nil, err
		}
		return &faulty{File: f.(*os.File), f: &faults{write: func([]byte) int { return 3 }}}, nil
	}})
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a disk without room for the header gave %v", err)
	}
	// What is left of the header is a torn tail for the next try.
	j, _ := openAt(t, filepath.Join(dir, "full"))
	appendAll(t, j, intent(1, 1))
	j, st := reopen(t, j)
	defer j.Close()
	if len(st.Attempts) != 1 {
		t.Errorf("%d attempts", len(st.Attempts))
	}
}
