package output_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/output"
)

// fullAt returns a store and what makes one step of it fail for want of room.
func fullAt(t *testing.T, c output.Config, step string) (w *world, full *atomic.Bool) {
	t.Helper()
	full = new(atomic.Bool)
	return open(t, c.WithFault(func(s string) error {
		if full.Load() && s == step {
			return syscall.ENOSPC
		}
		return nil
	})), full
}

// bytesOf returns how much a store has on its disk.
func (w *world) bytesOf(pattern string) (n int64) {
	w.t.Helper()
	names, err := filepath.Glob(filepath.Join(w.dir, "segments", pattern))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, name := range names {
		if info, err := os.Stat(name); err == nil {
			n += info.Size()
		}
	}
	return n
}

// kill ends a writer whose pipe is full.
func kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) {
		t.Fatal(err)
	}
}

// TestP8_KeepAtTheQuota_KilledWriter_IsSealedWhole: what is left in the pipe of a job
// that has ended waits for no room, for nobody would ever make it.
func TestP8_KeepAtTheQuota_KilledWriter_IsSealedWhole(t *testing.T) {
	t.Parallel()
	w := open(t, output.Config{Quota: 100 << 10}.Small())
	key, l := w.take(output.Options{Policy: job.Keep})
	cmd := w.start(l, "exec cat /dev/zero")
	until(t, "QUOTA is said", func() bool { return w.says(job.ReasonQuota) })
	if held, why := w.Left(key); !held || why != job.ReasonQuota {
		t.Errorf("left: held %v, %q", held, why)
	}
	before, _, _ := w.Sizes(key)
	kill(t, cmd)
	stdout, _ := w.finish(key)
	if got := w.read(key, output.Stdout); uint64(len(got)) != stdout.Size || stdout.Size <= before || len(stdout.SHA256) != 64 {
		t.Errorf("%d bytes are read, %d before the kill, the end says %+v", len(got), before, stdout)
	}
	if err := w.Remove(key); err != nil {
		t.Fatal(err)
	}
	until(t, "nothing is kept", func() bool { return w.bytesOf("*.seg") == 0 })
}

// TestP8_FullDisk_WhatIsGivenUp_IsDeclared: without room the rest of an ended job can
// be given up. Its end has no sum then, and a gap says why, over a restart too.
func TestP8_FullDisk_WhatIsGivenUp_IsDeclared(t *testing.T) {
	t.Parallel()
	w, full := fullAt(t, output.Config{}.Small(), "move")
	key, l := w.take(output.Options{})
	cmd := w.start(l, "echo first; exec sleep 100")
	w.await(key, output.Stdout, "first\n")
	full.Store(true)
	kill(t, cmd)
	// It did not come to more: somebody else writes it.
	if err := exec.Command("sh", "-c", "echo last > "+l.Stdout).Run(); err != nil {
		t.Fatal(err)
	}
	w.Drained(key)
	until(t, "it waits for room", func() bool {
		held, why := w.Left(key)
		return !held && why == job.ReasonDiskFull
	})
	select {
	case <-w.Drained(key):
		t.Fatal("it is called drained while bytes are in the pipe")
	default:
	}
	w.GiveUp(key)
	stdout, stderr := w.finish(key)
	if stdout.Size != 6 || stdout.SHA256 != "" || len(stderr.SHA256) != 64 {
		t.Errorf("sealed as %+v and %+v", stdout, stderr)
	}
	w.gapAtEnd(key, 6)
	w.stop()
	again := open(t, output.Config{Dir: w.dir}.Small())
	again.gapAtEnd(key, 6)
}

// gapAtEnd reads a stream up to the gap without a length that says that its end may be
// missing.
func (w *world) gapAtEnd(key job.Key, from uint64) {
	w.t.Helper()
	r, err := w.Read(key, output.Stdout, from)
	if err != nil {
		w.t.Fatal(err)
	}
	defer r.Close()
	c, err := r.Next(w.t.Context(), true)
	if err != nil || c.Gap == nil || c.Gap.Reason != output.Unread || c.Gap.To != from {
		w.t.Fatalf("at the end there is %+v, %v", c, err)
	}
	if c, err = r.Next(w.t.Context(), true); err != nil || c.End == nil || c.End.SHA256 != "" {
		w.t.Fatalf("after the gap there is %+v, %v", c, err)
	}
}

// TestP8_RemovedWhileHeld_IsFreeAtOnce: a removed job gives its bytes back though
// somebody holds its pipes. The writer goes on undisturbed and needs no room.
func TestP8_RemovedWhileHeld_IsFreeAtOnce(t *testing.T) {
	t.Parallel()
	c := output.Config{Dir: t.TempDir(), Quota: 100 << 10}.Small()
	w := open(t, c)
	key, l := w.take(output.Options{Policy: job.Keep})
	gate := filepath.Join(t.TempDir(), "gate")
	cmd := w.start(l, "head -c 1000000 /dev/zero; until [ -e "+gate+" ]; do sleep 0.01; done")
	until(t, "QUOTA is said", func() bool { return w.says(job.ReasonQuota) })
	r, err := w.Read(key, output.Stdout, 10)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w.Discard(key)
	until(t, "the bytes are gone", func() bool { return w.bytesOf("*.seg") == 0 && !w.says(job.ReasonQuota) })
	if _, err := r.Next(t.Context(), true); errs.ReasonOf(err) != output.ReasonGone {
		t.Errorf("a reader is told %v", err)
	}
	next, lanes := w.take(output.Options{Policy: job.Keep})
	if err := w.start(lanes, "head -c 90000 /dev/zero").Wait(); err != nil {
		t.Fatal(err)
	}
	w.finish(next)
	if got := w.read(next, output.Stdout); len(got) != 90000 {
		t.Errorf("the next job has %d bytes", len(got))
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the writer was disturbed: %v", err)
	}
	w.finish(key)
	if err := w.Remove(key); err != nil {
		t.Fatal(err)
	}
	w.stop()
	if keys := open(t, c).Keys(); len(keys) != 1 || keys[0] != next {
		t.Errorf("after a restart there are %v", keys)
	}
}

// TestRemove_NotSealed_TakesThePipesWithIt: no error of the disk keeps output for ever.
func TestRemove_NotSealed_TakesThePipesWithIt(t *testing.T) {
	t.Parallel()
	w, full := fullAt(t, output.Config{}.Small(), "move")
	key, l := w.take(output.Options{})
	full.Store(true)
	if err := w.start(l, "echo text").Wait(); err != nil {
		t.Fatal(err)
	}
	until(t, "it waits for room", func() bool { return w.says(job.ReasonDiskFull) })
	if err := w.Remove(key); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(l.Stdout); !os.IsNotExist(err) || len(w.Keys()) != 0 || w.says(job.ReasonDiskFull) {
		t.Errorf("it is still there: %v, %v", err, w.Keys())
	}
}

// TestMover_FullDisk_WritesNoEntryForEachTry: waiting for room takes none.
func TestMover_FullDisk_WritesNoEntryForEachTry(t *testing.T) {
	t.Parallel()
	var tries atomic.Int32
	var full atomic.Bool
	w := open(t, output.Config{}.Small().WithFault(func(step string) error {
		if full.Load() && step == "move" {
			tries.Add(1)
			return syscall.ENOSPC
		}
		return nil
	}))
	before := w.run("echo before")
	full.Store(true)
	key, l := w.take(output.Options{})
	if err := w.start(l, "echo text").Wait(); err != nil {
		t.Fatal(err)
	}
	until(t, "it was tried", func() bool { return tries.Load() >= 2 })
	size := w.bytesOf("*.idx")
	until(t, "it was tried often", func() bool { return tries.Load() >= 5 })
	if now := w.bytesOf("*.idx"); now != size {
		t.Errorf("the index grew from %d to %d bytes", size, now)
	}
	full.Store(false)
	w.finish(key)
	w.stop()
	again := open(t, output.Config{Dir: w.dir}.Small())
	if got := again.read(key, output.Stdout) + again.read(before, output.Stdout); got != strings.Join([]string{"text", "before", ""}, "\n") {
		t.Errorf("after a restart there is %q", got)
	}
}

// TestP8_FullDisk_RestartedWorker_StillSeals: ends and removals have room that an earlier
// life of the worker has kept.
func TestP8_FullDisk_RestartedWorker_StillSeals(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root may mount a file system of its own")
	}
	dir := t.TempDir()
	if err := unix.Mount("drover-test", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("no file system can be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	c := output.Config{Dir: dir, Quota: 1 << 30}
	w := open(t, c)
	first := w.run("echo first")
	key, l := w.take(output.Options{})
	cmd := w.start(l, "echo text; exec sleep 100")
	w.await(key, output.Stdout, "text\n")
	w.stop()
	for size := 64 << 10; size > 0; size /= 2 {
		for i := 0; ; i++ {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("ballast-%d-%d", size, i)), make([]byte, size), 0o600); err != nil {
				break
			}
		}
	}
	w = open(t, c)
	if err := w.Resume(key, l, output.Options{UID: -1, GID: -1}); err != nil {
		t.Fatal(err)
	}
	kill(t, cmd)
	if stdout, _ := w.finish(key); stdout.Size != 5 || len(stdout.SHA256) != 64 {
		t.Errorf("sealed as %+v", stdout)
	}
	if err := w.Remove(first); err != nil {
		t.Errorf("not removed: %v", err)
	}
	w.stop()
	if keys := open(t, c).Keys(); len(keys) != 1 || keys[0] != key {
		t.Errorf("after a restart there are %v", keys)
	}
}
