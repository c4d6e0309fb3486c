package output_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/output"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// world is a store with a running mover.
type world struct {
	*output.Store
	t      *testing.T
	dir    string
	cancel context.CancelFunc
	done   chan error
}

func open(t *testing.T, c output.Config) *world {
	t.Helper()
	if c.Dir == "" {
		c.Dir = t.TempDir()
	}
	s, err := output.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &world{Store: s, t: t, dir: c.Dir, cancel: cancel, done: make(chan error, 1)}
	go func() { w.done <- s.Run(ctx) }()
	t.Cleanup(w.stop)
	return w
}

// stop ends the mover and the store, as a worker does before it exits.
func (w *world) stop() {
	if w.cancel == nil {
		return
	}
	w.cancel()
	w.cancel = nil
	if err := <-w.done; err != nil {
		w.t.Error(err)
	}
	if err := w.Close(); err != nil {
		w.t.Error(err)
	}
}

func newKey() job.Key { return job.Key{Job: uuid.Must(uuid.NewV7()), Attempt: 1} }

func (w *world) take(o output.Options) (job.Key, output.Lanes) {
	w.t.Helper()
	if o.UID == 0 && o.GID == 0 {
		o.UID, o.GID = -1, -1
	}
	key := newKey()
	l, err := w.Take(key, o)
	if err != nil {
		w.t.Fatal(err)
	}
	return key, l
}

// start runs a shell command on lanes, as a runner does: O_RDWR for the job.
func (w *world) start(l output.Lanes, script string) *exec.Cmd {
	w.t.Helper()
	cmd := exec.Command("/bin/sh", "-c", script)
	var ends []*os.File
	for _, p := range []string{l.Stdout, l.Stderr} {
		f, err := os.OpenFile(p, os.O_RDWR, 0)
		if err != nil {
			w.t.Fatal(err)
		}
		ends = append(ends, f)
	}
	cmd.Stdout, cmd.Stderr = ends[0], ends[1]
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	for _, f := range ends {
		f.Close()
	}
	return cmd
}

func (w *world) finish(key job.Key) (stdout, stderr job.Stream) {
	w.t.Helper()
	<-w.Drained(key)
	stdout, stderr, err := w.Finish(context.Background(), key, true)
	if err != nil {
		w.t.Fatal(err)
	}
	return stdout, stderr
}

func (w *world) run(script string) job.Key {
	w.t.Helper()
	key, l := w.take(output.Options{})
	if err := w.start(l, script).Wait(); err != nil {
		w.t.Fatal(err)
	}
	w.finish(key)
	return key
}

// read reads one stream whole and checks offsets and sum on the way.
func (w *world) read(key job.Key, id output.StreamID) string {
	w.t.Helper()
	r, err := w.Read(key, id, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	defer r.Close()
	got, end, err := drain(context.Background(), r)
	if err != nil {
		w.t.Fatal(err)
	}
	if sum := sha256.Sum256(got); end.SHA256 != hex.EncodeToString(sum[:]) || end.Size != uint64(len(got)) {
		w.t.Errorf("END says %d bytes %s, read %d bytes %x", end.Size, end.SHA256, len(got), sum)
	}
	return string(got)
}

var errOffset = errors.New("a chunk does not follow the one before")

func drain(ctx context.Context, r *output.Reader) ([]byte, *job.Stream, error) {
	var got []byte
	for {
		c, err := r.Next(ctx, true)
		if err != nil {
			return got, nil, err
		}
		if c.End != nil {
			return got, c.End, nil
		}
		if c.Offset != uint64(len(got)) {
			return got, nil, errOffset
		}
		got = append(got, c.Data...)
	}
}

func TestBothStreamsArriveByteExact(t *testing.T) {
	t.Parallel()
	w := open(t, output.Config{})
	key := w.run(`printf 'a\000b\377\n'; printf 'err' >&2`)
	if got := w.read(key, output.Stdout); got != "a\x00b\xff\n" {
		t.Errorf("stdout %q", got)
	}
	if got := w.read(key, output.Stderr); got != "err" {
		t.Errorf("stderr %q", got)
	}
}

// TestReopenedStreams: a file as fd 1 would be cut by the second open.
func TestReopenedStreams(t *testing.T) {
	t.Parallel()
	w := open(t, output.Config{})
	for _, c := range []struct{ script, stdout, stderr string }{
		{`echo a; echo b > /dev/stdout; echo c`, "a\nb\nc\n", ""},
		{`echo a >&2; echo b > /dev/stderr; echo c >&2`, "", "a\nb\nc\n"},
		{`echo a | tee /dev/stderr`, "a\n", "a\n"},
	} {
		key := w.run(c.script)
		if got := w.read(key, output.Stdout); got != c.stdout {
			t.Errorf("%s: stdout %q", c.script, got)
		}
		if got := w.read(key, output.Stderr); got != c.stderr {
			t.Errorf("%s: stderr %q", c.script, got)
		}
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

func TestLargeStreamsWithManyReadersOneStalled(t *testing.T) {
	t.Parallel()
	w := open(t, output.Config{})
	data := random(30 << 20)
	file := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	key, l := w.take(output.Options{})
	stalled, err := w.Read(key, output.Stdout, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer stalled.Close()
	var wait sync.WaitGroup
	for range 3 {
		wait.Go(func() {
			r, err := w.Read(key, output.Stdout, 0)
			if err != nil {
				t.Error(err)
				return
			}
			got, _, err := drain(context.Background(), r)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes of %d, %v", len(got), len(data), err)
			}
		})
	}
	if err := w.start(l, "cat "+file+" & cat "+file+" >&2; wait").Wait(); err != nil {
		t.Fatal(err)
	}
	stdout, stderr := w.finish(key)
	if stdout != stderr || stdout.Size != uint64(len(data)) {
		t.Errorf("stdout %v, stderr %v", stdout, stderr)
	}
	wait.Wait()
	if c, err := stalled.Next(context.Background(), true); err != nil || c.Offset != 0 || !bytes.Equal(c.Data, data[:len(c.Data)]) {
		t.Errorf("the stalled reader got offset %d, %v", c.Offset, err)
	}
}

func TestReadFromAnyOffset(t *testing.T) {
	t.Parallel()
	w := open(t, output.Config{})
	key := w.run(`i=0; while [ $i -lt 100 ]; do printf '%03d\n' $i; i=$((i+1)); done`)
	for from := uint64(0); from <= 400; from += 7 {
		r, err := w.Read(key, output.Stdout, from)
		if err != nil {
			t.Fatal(err)
		}
		if c, err := r.Next(t.Context(), true); err != nil || c.Offset != from || from < 400 && c.Data[0] != fmt.Sprintf("%03d\n", from/4)[from%4] {
			t.Errorf("from %d: %+v, %v", from, c, err)
		}
	}
}

func TestAHeldStreamIsNotDrainedAndItsLaneNotReused(t *testing.T) {
	t.Parallel()
	w := open(t, output.Config{})
	hold := filepath.Join(t.TempDir(), "hold")
	if err := exec.Command("mkfifo", hold).Run(); err != nil {
		t.Fatal(err)
	}
	key, l := w.take(output.Options{})
	if err := w.start(l, `echo main; setsid sh -c 'read x < `+hold+`; echo child' & `).Wait(); err != nil {
		t.Fatal(err)
	}
	r, err := w.Read(key, output.Stdout, 0)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := r.Next(t.Context(), true); err != nil || string(c.Data) != "main\n" {
		t.Fatalf("%q, %v", c.Data, err)
	}
	select {
	case <-w.Drained(key):
		t.Fatal("drained while a child holds the stream")
	default:
	}
	if _, other := w.take(output.Options{}); other == l {
		t.Fatal("the lane was given to another job")
	}
	if err := os.WriteFile(hold, []byte("x\n"), 0); err != nil {
		t.Fatal(err)
	}
	w.finish(key)
	if got := w.read(key, output.Stdout); got != "main\nchild\n" {
		t.Errorf("stdout %q", got)
	}
}

func TestLanesAreReusedWithoutLeaking(t *testing.T) {
	t.Parallel()
	w := open(t, output.Config{})
	seen := map[string]int{}
	for i := range 200 {
		key, l := w.take(output.Options{})
		seen[l.Stdout]++
		text := fmt.Sprintf("job %d", i)
		if err := w.start(l, "printf '"+text+"'").Wait(); err != nil {
			t.Fatal(err)
		}
		w.finish(key)
		if got := w.read(key, output.Stdout); got != text {
			t.Fatalf("job %d printed %q", i, got)
		}
	}
	if len(seen) != 1 {
		t.Errorf("%d lanes for jobs one after the other", len(seen))
	}
	if files, _ := filepath.Glob(filepath.Join(w.dir, "segments", "*.seg")); len(files) != 1 {
		t.Errorf("%d segments for 200 small outputs", len(files))
	}
}

func TestAFailedStartHasEmptyOutput(t *testing.T) {
	t.Parallel()
	w := open(t, output.Config{})
	for range 3 {
		key, _ := w.take(output.Options{})
		w.NoWriter(key)
		if stdout, _ := w.finish(key); stdout.Size != 0 {
			t.Errorf("stdout %v", stdout)
		}
	}
}

func TestFinishedOutputSurvivesARestart(t *testing.T) {
	t.Parallel()
	w := open(t, output.Config{})
	small := w.run(`echo small; echo err >&2`)
	big := w.run(`head -c 20000000 /dev/zero; echo end`)
	gone := w.run(`echo gone`)
	if err := w.Remove(gone); err != nil {
		t.Fatal(err)
	}
	want := w.read(big, output.Stdout)
	w.stop()
	again := open(t, output.Config{Dir: w.dir})
	if got := again.read(small, output.Stdout); got != "small\n" {
		t.Errorf("stdout %q", got)
	}
	if got := again.read(small, output.Stderr); got != "err\n" {
		t.Errorf("stderr %q", got)
	}
	if got := again.read(big, output.Stdout); got != want {
		t.Errorf("%d bytes of %d", len(got), len(want))
	}
	if _, err := again.Read(gone, output.Stdout, 0); err == nil {
		t.Error("removed output came back")
	}
	if n := len(again.Keys()); n != 2 {
		t.Errorf("%d attempts", n)
	}
}

func TestAJobGoesOnOverARestart(t *testing.T) {
	t.Parallel()
	w := open(t, output.Config{})
	key, l := w.take(output.Options{})
	hold := filepath.Join(t.TempDir(), "hold")
	if err := exec.Command("mkfifo", hold).Run(); err != nil {
		t.Fatal(err)
	}
	// The runner plugin holds read ends too, so that nothing dies with the worker.
	var plugin []*os.File
	for _, p := range []string{l.Stdout, l.Stderr} {
		f, err := os.OpenFile(p, os.O_RDONLY|0o4000, 0)
		if err != nil {
			t.Fatal(err)
		}
		plugin = append(plugin, f)
	}
	cmd := w.start(l, "echo before; read x < "+hold+"; echo after; echo err >&2")
	r, err := w.Read(key, output.Stdout, 0)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := r.Next(t.Context(), true); err != nil || string(c.Data) != "before\n" {
		t.Fatalf("%q, %v", c.Data, err)
	}
	w.stop()
	if err := os.WriteFile(hold, []byte("x\n"), 0); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	again := open(t, output.Config{Dir: w.dir})
	if err := again.Resume(key, l, output.Options{UID: -1, GID: -1}); err != nil {
		t.Fatal(err)
	}
	again.finish(key)
	for _, f := range plugin {
		f.Close()
	}
	if got := again.read(key, output.Stdout); got != "before\nafter\n" {
		t.Errorf("stdout %q", got)
	}
	if got := again.read(key, output.Stderr); got != "err\n" {
		t.Errorf("stderr %q", got)
	}
}

func TestRingGivesItsHeadBackOnlyAtTheQuota(t *testing.T) {
	t.Parallel()
	w := open(t, output.Config{Quota: 40 << 20})
	key, l := w.take(output.Options{Limit: 1 << 20})
	if err := w.start(l, "head -c 100000000 /dev/zero").Wait(); err != nil {
		t.Fatal(err)
	}
	stdout, _ := w.finish(key)
	if stdout.Size != 100000000 {
		t.Errorf("size %d", stdout.Size)
	}
	if sum := sha256.Sum256(make([]byte, 100000000)); stdout.SHA256 != hex.EncodeToString(sum[:]) {
		t.Error("the sum is not that of all bytes")
	}
	r, err := w.Read(key, output.Stdout, 0)
	if err != nil {
		t.Fatal(err)
	}
	at, gaps := uint64(0), 0
	for {
		c, err := r.Next(t.Context(), true)
		if err != nil {
			t.Fatal(err)
		}
		if c.End != nil {
			break
		}
		if c.Offset != at {
			t.Fatalf("offset %d after %d", c.Offset, at)
		}
		if c.Gap != nil {
			gaps++
			at = c.Gap.To
			continue
		}
		at += uint64(len(c.Data))
	}
	if gaps != 1 || at != stdout.Size {
		t.Errorf("%d gaps, end at %d", gaps, at)
	}
}

func TestFailPolicyTellsOnce(t *testing.T) {
	t.Parallel()
	told := make(chan output.StreamID, 10)
	w := open(t, output.Config{Exceeded: func(_ job.Key, id output.StreamID) { told <- id }})
	key, l := w.take(output.Options{Policy: job.Fail, Limit: 1000})
	if err := w.start(l, "head -c 3000000 /dev/zero >&2").Wait(); err != nil {
		t.Fatal(err)
	}
	w.finish(key)
	if id := <-told; id != output.Stderr || len(told) != 0 {
		t.Errorf("told of %d and %d more", id, len(told))
	}
}

func TestReadersWaitAndGiveUp(t *testing.T) {
	t.Parallel()
	w := open(t, output.Config{})
	key, _ := w.take(output.Options{})
	r, err := w.Read(key, output.Stdout, 5)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Next(t.Context(), false); !errors.Is(err, io.EOF) {
		t.Errorf("without follow: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := r.Next(ctx, true); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with follow: %v", err)
	}
	w.NoWriter(key)
	w.finish(key)
	if _, err := w.Read(newKey(), output.Stdout, 0); err == nil {
		t.Error("an unknown attempt was read")
	}
	if _, err := w.Read(key, 3, 0); err == nil {
		t.Error("a third stream was read")
	}
}

func TestBothStreamsInTheOrderOfWriting(t *testing.T) {
	t.Parallel()
	w := open(t, output.Config{})
	key, l := w.take(output.Options{})
	gate := filepath.Join(t.TempDir(), "gate")
	if err := exec.Command("mkfifo", gate).Run(); err != nil {
		t.Fatal(err)
	}
	// Held open for both sides: neither opening it waits, and closing it between
	// the two reads would be an end of file for the second.
	hold, err := os.OpenFile(gate, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	cmd := w.start(l, "echo 1; read x < "+gate+"; echo 2 >&2; read x < "+gate+"; echo 3")
	r, err := w.ReadBoth(key, [2]uint64{})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"1\n", "2\n", "3\n"} {
		c, err := r.Next(t.Context(), true)
		if err != nil || string(c.Data) != want {
			t.Fatalf("%d: %q, %v", i, c.Data, err)
		}
		if i < 2 {
			if _, err := hold.WriteString("x\n"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	w.finish(key)
	ends := 0
	for {
		c, err := r.Next(t.Context(), true)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil || c.End == nil {
			t.Fatalf("%+v, %v", c, err)
		}
		ends++
	}
	if ends != 2 {
		t.Errorf("%d ends", ends)
	}
}

// TestMemoryThatAReaderIsGivenIsNotTouchedAgain: who reads into memory of their
// own may keep it, and pass it on while the reader goes on.
func TestMemoryThatAReaderIsGivenIsNotTouchedAgain(t *testing.T) {
	t.Parallel()
	w := open(t, output.Config{})
	key := w.run("yes 0123456789abcde | head -c 1600000") // more than one piece
	data := bytes.Repeat([]byte("0123456789abcde\n"), 100_000)
	r, err := w.Read(key, output.Stdout, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var lent [][]byte
	r.Into(func(n int) []byte {
		lent = append(lent, make([]byte, n))
		return lent[len(lent)-1]
	})
	for err == nil {
		_, err = r.Next(t.Context(), true)
	}
	if got := bytes.Join(lent, nil); !errors.Is(err, io.EOF) || len(lent) < 2 || !bytes.Equal(got, data) {
		t.Errorf("%d pieces hold %d of %d bytes (%v)", len(lent), len(got), len(data), err)
	}
}
