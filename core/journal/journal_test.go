package journal

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

func key(n byte) job.Key {
	return job.Key{Job: uuid.UUID{0: 1, 15: n}, Attempt: 1}
}

func openAt(t *testing.T, path string) (*Journal, *State) {
	t.Helper()
	j, st, err := Open(Config{Path: path, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return j, st
}

func reopen(t *testing.T, j *Journal) (*Journal, *State) {
	t.Helper()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	return openAt(t, j.path)
}

func appendAll(t *testing.T, j *Journal, rs ...Record) {
	t.Helper()
	if err := j.Append(rs...); err != nil {
		t.Fatal(err)
	}
}

func intent(n byte, counter uint64) Record {
	return Record{Kind: KindIntent, Key: key(n), Fence: job.Fence{Term: 1, Counter: counter}, Intent: &Intent{
		BootID: "boot", Mark: "mark", Spec: job.Spec{Command: "bash", Path: "count.sh", Args: []string{"", "3"}},
		Runner: Runner{Name: "bash", SHA256: "ab"},
	}}
}

func done(n byte) Record {
	code := int32(0)
	return Record{Kind: KindDone, Key: key(n), Done: &Done{Report: job.Report{
		Key: key(n), Sequence: 4, State: job.Succeeded, ExitCode: &code, Evidence: job.Wait,
	}}}
}

// one attempt's whole life, in the order in which a worker records it.
func life(n byte) []Record {
	return []Record{
		intent(n, uint64(n)),
		{Kind: KindStarted, Key: key(n), Started: &Started{PID: 7, StartTicks: 99, Boot: time.Second}},
		{Kind: KindStop, Key: key(n), Fence: job.Fence{Term: 1, Counter: 40}, Stop: &Stop{Reason: job.ReasonUser, Grace: time.Second}},
		{Kind: KindExited, Key: key(n), Exit: &Exit{Signal: "SIGTERM", Evidence: job.Wait}},
		done(n),
		{Kind: KindAcked, Key: key(n)},
	}
}

func TestWhatWasAppendedIsThereAfterReopen(t *testing.T) {
	t.Parallel()
	j, st := openAt(t, filepath.Join(t.TempDir(), "w", "journal"))
	if len(st.Attempts) != 0 || st.Fence != (job.Fence{}) {
		t.Fatalf("a new journal holds %+v", st)
	}
	for _, r := range life(1) {
		appendAll(t, j, r)
	}
	appendAll(t, j, life(2)[:2]...)
	j, st = reopen(t, j)
	defer j.Close()

	if want := (job.Fence{Term: 1, Counter: 40}); st.Fence != want {
		t.Errorf("fence %v, want %v", st.Fence, want)
	}
	if len(st.Attempts) != 2 {
		t.Fatalf("%d attempts, want 2", len(st.Attempts))
	}
	first, second := st.Attempts[0], st.Attempts[1]
	if first.Key != key(1) || !first.Acked || first.Done == nil || first.Stop == nil || first.Exit.Signal != "SIGTERM" {
		t.Errorf("first attempt: %+v", first)
	}
	if second.Key != key(2) || second.Started.PID != 7 || second.Done != nil || second.Stop != nil {
		t.Errorf("second attempt: %+v", second)
	}
	if diff := cmp.Diff(intent(2, 2).Intent, second.Intent); diff != "" {
		t.Errorf("intent (-want +got):\n%s", diff)
	}
}

func TestP2TombstoneSurvivesReopenAndCompaction(t *testing.T) {
	t.Parallel()
	j, _ := openAt(t, filepath.Join(t.TempDir(), "journal"))
	appendAll(t, j, Record{Kind: KindStop, Key: key(9), Stop: &Stop{Reason: job.ReasonUser}})
	if err := j.Compact(); err != nil {
		t.Fatal(err)
	}
	j, st := reopen(t, j)
	defer j.Close()
	if len(st.Attempts) != 1 || st.Attempts[0].Stop == nil || st.Attempts[0].Intent != nil {
		t.Fatalf("tombstone is gone: %+v", st.Attempts)
	}
}

func TestP3ForgottenAttemptsLeaveTheirFenceBehind(t *testing.T) {
	t.Parallel()
	j, _ := openAt(t, filepath.Join(t.TempDir(), "journal"))
	appendAll(t, j, Record{Kind: KindFence, Epoch: 3})
	appendAll(t, j, life(5)...)
	appendAll(t, j, Record{Kind: KindForgotten, Key: key(5), Floor: job.Fence{Term: 1, Counter: 5}})
	if err := j.Compact(); err != nil {
		t.Fatal(err)
	}
	j, st := reopen(t, j)
	defer j.Close()
	if len(st.Attempts) != 0 {
		t.Errorf("forgotten attempt is back: %+v", st.Attempts)
	}
	if st.Epoch != 3 {
		t.Errorf("epoch %d, want 3", st.Epoch)
	}
	if st.Floor != (job.Fence{Term: 1, Counter: 5}) || st.Fence != (job.Fence{Term: 1, Counter: 40}) {
		t.Errorf("floor %v fence %v", st.Floor, st.Fence)
	}
}

func TestTornTailIsCutAtEveryByte(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "journal")
	j, _ := openAt(t, path)
	appendAll(t, j, intent(1, 1))
	whole, _ := j.Size()
	appendAll(t, j, intent(2, 2))
	end, _ := j.Size()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := range end {
		if err := os.WriteFile(path, data[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(path + ".size"); err != nil { // the batch was never whole
			t.Fatal(err)
		}
		j, st := openAt(t, path)
		want := 0
		if cut >= whole {
			want = 1
		}
		if len(st.Attempts) != want {
			t.Fatalf("cut at %d: %d attempts, want %d", cut, len(st.Attempts), want)
		}
		// The journal goes on behind the cut as if the torn batch had never been.
		appendAll(t, j, done(3))
		j, st = reopen(t, j)
		if len(st.Attempts) != want+1 {
			t.Fatalf("cut at %d: %d attempts after an append, want %d", cut, len(st.Attempts), want+1)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTornTailOfZerosIsCutWithALogLine(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	j, _ := openAt(t, path)
	appendAll(t, j, intent(1, 1))
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(make([]byte, 5000)); err != nil {
		t.Fatal(err)
	}
	f.Close()
	var said bytes.Buffer
	j, st, err := Open(Config{Path: path, Log: slog.New(slog.NewTextHandler(&said, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if len(st.Attempts) != 1 {
		t.Errorf("%d attempts, want 1", len(st.Attempts))
	}
	if !strings.Contains(said.String(), "torn") || !strings.Contains(said.String(), "cut=5000") {
		t.Errorf("log says %q", said.String())
	}
}

func TestP2DamageInTheMiddleIsRefused(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	j, _ := openAt(t, path)
	appendAll(t, j, intent(1, 1))
	appendAll(t, j, intent(2, 2))
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(magic)+frameHead+5] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err = Open(Config{Path: path, Log: slog.New(slog.DiscardHandler)})
	if errs.ReasonOf(err) != ReasonCorrupt || !strings.Contains(err.Error(), "byte 8") {
		t.Fatalf("damage gave %v", err)
	}
	// The refusal lets go of the lock, so that a restored file can be opened.
	data[len(magic)+frameHead+5] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	j, _ = openAt(t, path)
	j.Close()
}

func TestAnotherFileIsNotAJournal(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	if err := os.WriteFile(path, []byte("#!/bin/bash\necho hello\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Open(Config{Path: path}); errs.ReasonOf(err) != ReasonCorrupt {
		t.Fatalf("a script was taken for a journal: %v", err)
	}
}

func TestSecondProcessIsRefusedClearly(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	j, _ := openAt(t, path)
	_, _, err := Open(Config{Path: path})
	if errs.ReasonOf(err) != ReasonLocked || errs.KindOf(err) != errs.Precondition {
		t.Fatalf("second open gave %v", err)
	}
	if !strings.Contains(err.Error(), "another worker process (pid ") {
		t.Errorf("text does not name the holder: %v", err)
	}
	// Compaction replaces the inode; the lock must not follow the old one.
	if err := j.Compact(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Open(Config{Path: path}); errs.ReasonOf(err) != ReasonLocked {
		t.Fatalf("after compaction a second open gave %v", err)
	}
	j, _ = reopen(t, j)
	j.Close()
}

// TestAForkDoesNotKeepTheLock: until it executes its program, a child has every
// descriptor of its parent. A duplicate shares the lock in the same way.
func TestAForkDoesNotKeepTheLock(t *testing.T) {
	t.Parallel()
	j, _ := openAt(t, filepath.Join(t.TempDir(), "journal"))
	child, err := unix.Dup(int(j.lock.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(child)
	j, _ = reopen(t, j)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestCompactionKeepsTheLiveAndDropsTheDead(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	j, _, err := Open(Config{Path: path, Log: slog.New(slog.DiscardHandler), Compact: 4 << 10})
	if err != nil {
		t.Fatal(err)
	}
	appendAll(t, j, life(1)[:2]...) // lives through it all
	largest := int64(0)
	for n := range 200 {
		appendAll(t, j, life(byte(n+2))...)
		appendAll(t, j, Record{Kind: KindForgotten, Key: key(byte(n + 2)), Floor: job.Fence{Term: 1, Counter: uint64(n)}})
		size, _ := j.Size()
		largest = max(largest, size)
	}
	if largest > 16<<10 {
		t.Errorf("journal grew to %d bytes with one live attempt", largest)
	}
	j, st := reopen(t, j)
	defer j.Close()
	if len(st.Attempts) != 1 || st.Attempts[0].Started == nil || st.Attempts[0].Intent == nil {
		t.Fatalf("live attempt after compactions: %+v", st.Attempts)
	}
	if left, _ := filepath.Glob(path + ".new"); len(left) != 0 {
		t.Errorf("compaction left %v", left)
	}
}

func TestDoneAttemptsShrinkToTheirReport(t *testing.T) {
	t.Parallel()
	j, _ := openAt(t, filepath.Join(t.TempDir(), "journal"))
	appendAll(t, j, life(1)...)
	before, dead := j.Size()
	if dead == 0 {
		t.Fatal("no bytes died when the final report was written")
	}
	if err := j.Compact(); err != nil {
		t.Fatal(err)
	}
	after, dead := j.Size()
	if after >= before || dead != 0 {
		t.Errorf("%d -> %d bytes, %d dead", before, after, dead)
	}
	j, st := reopen(t, j)
	defer j.Close()
	if st.Attempts[0].Intent != nil || st.Attempts[0].Done == nil || !st.Attempts[0].Acked {
		t.Errorf("after compaction: %+v", st.Attempts[0])
	}
}

func TestOpenStreamsKeepTheIntentUntilTheyEnd(t *testing.T) {
	t.Parallel()
	j, _ := openAt(t, filepath.Join(t.TempDir(), "journal"))
	rs := life(1)
	rs[4].Done.Open = true
	appendAll(t, j, rs...)
	if err := j.Compact(); err != nil {
		t.Fatal(err)
	}
	j, st := reopen(t, j)
	defer j.Close()
	if a := st.Attempts[0]; a.Intent == nil || a.Done == nil || !a.Done.Open {
		t.Fatalf("detached attempt cannot be resumed: %+v", a)
	}
	appendAll(t, j, done(1))
	if _, dead := j.Size(); dead == 0 {
		t.Error("the end of the streams freed nothing")
	}
}

func TestConcurrentAppendsAllArrive(t *testing.T) {
	t.Parallel()
	j, _ := openAt(t, filepath.Join(t.TempDir(), "journal"))
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for n := range 20 {
				if err := j.Append(intent(byte(w*20+n), uint64(n))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	j, st := reopen(t, j)
	defer j.Close()
	if len(st.Attempts) != 160 {
		t.Errorf("%d attempts, want 160", len(st.Attempts))
	}
}

// sick is a file whose writes stop after a number of bytes.
type sick struct {
	*os.File
	left   int
	writes int
	syncs  int
}

func (s *sick) Sync() error {
	s.syncs++
	return s.File.Sync()
}

func (s *sick) Write(p []byte) (int, error) {
	s.writes++
	if len(p) <= s.left {
		s.left -= len(p)
		return s.File.Write(p)
	}
	n, err := s.File.Write(p[:s.left])
	s.left = 0
	return n, errors.Join(err, errors.New("no space left on device"))
}

func openSick(t *testing.T) (*Journal, *sick) {
	t.Helper()
	var s *sick
	j, _, err := Open(Config{Path: filepath.Join(t.TempDir(), "journal"), open: func(p string) (file, error) {
		f, err := openFile(p)
		if err != nil {
			return nil, err
		}
		s = &sick{File: f.(*os.File), left: 1 << 20}
		return s, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	return j, s
}

func TestFullDiskKeepsNothingOfTheBatchAndWorksAgain(t *testing.T) {
	t.Parallel()
	j, s := openSick(t)
	appendAll(t, j, intent(1, 1))
	for room := range 150 {
		s.left = room
		err := j.Append(intent(2, 2), intent(3, 3))
		if errs.ReasonOf(err) != ReasonWrite || errs.KindOf(err) != errs.Exhausted {
			t.Fatalf("room %d: %v", room, err)
		}
	}
	s.left = 1 << 20
	appendAll(t, j, intent(4, 4))
	j, st := reopen(t, j)
	defer j.Close()
	if len(st.Attempts) != 2 || st.Attempts[1].Key != key(4) {
		t.Fatalf("after a full disk: %+v", st.Attempts)
	}
	if st.Fence.Counter != 4 {
		t.Errorf("fence %v", st.Fence)
	}
}

func TestOneBatchIsOneWrite(t *testing.T) {
	t.Parallel()
	j, s := openSick(t)
	defer j.Close()
	before := s.writes
	appendAll(t, j, append(life(1), life(2)...)...)
	if got := s.writes - before; got != 1 {
		t.Errorf("12 records took %d writes", got)
	}
	appendAll(t, j)
	if got := s.writes - before; got != 1 {
		t.Errorf("an empty batch wrote")
	}
}

// TestWhatMustSurviveAPowerLossIsSynced: the term, or an old scheduler commands
// again; the epoch, or new reports look older than those of before.
func TestWhatMustSurviveAPowerLossIsSynced(t *testing.T) {
	t.Parallel()
	j, s := openSick(t)
	defer j.Close()
	for _, c := range []struct {
		name string
		r    Record
		want int
	}{
		{"a term", Record{Kind: KindFence, Fence: job.Fence{Term: 2}}, 1},
		{"the same term", Record{Kind: KindFence, Fence: job.Fence{Term: 2, Counter: 5}}, 0},
		{"an epoch", Record{Kind: KindFence, Fence: job.Fence{Term: 2}, Epoch: 1}, 1},
		{"the next epoch", Record{Kind: KindFence, Epoch: 2}, 1},
		{"an intent", Record{Kind: KindIntent, Key: key(1), Fence: job.Fence{Term: 2, Counter: 6}, Intent: &Intent{}}, 0},
	} {
		before := s.syncs
		appendAll(t, j, c.r)
		if got := s.syncs - before; got != c.want {
			t.Errorf("%s: %d syncs, want %d", c.name, got, c.want)
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	j, _, err := Open(Config{Path: filepath.Join(b.TempDir(), "journal")})
	if err != nil {
		b.Fatal(err)
	}
	defer j.Close()
	rs := life(1)
	b.ReportAllocs()
	for b.Loop() {
		if err := j.Append(rs...); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncodeIntent(b *testing.B) {
	r := intent(1, 1)
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = appendFrame(buf[:0], &r)
	}
}
