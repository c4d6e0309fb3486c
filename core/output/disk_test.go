package output_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/output"
)

// until waits for a condition that comes by itself.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never came to pass: %s", what)
		}
	}
}

func (w *world) says(kind string) bool {
	for _, c := range w.Conditions() {
		if c.Type == kind {
			return c.Message != "" && !c.Since.IsZero()
		}
	}
	return false
}

// TestP8AFullDiskMakesJobsWaitAndLosesNothing: at each step at which the disk
// can be full the job waits, people are told, and with room it goes on.
func TestP8AFullDiskMakesJobsWaitAndLosesNothing(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		step string
		err  error
	}{
		{"segment", syscall.ENOSPC},
		{"index", syscall.ENOSPC},
		{"move", syscall.ENOSPC},
		{"move", syscall.EDQUOT},
	} {
		t.Run(fmt.Sprintf("%s/%v", c.step, c.err), func(t *testing.T) {
			t.Parallel()
			var full atomic.Bool
			w := open(t, output.Config{}.Small().WithFault(func(step string) error {
				if full.Load() && step == c.step {
					return c.err
				}
				return nil
			}))
			before := w.run("echo before")
			key, l := w.take(output.Options{})
			full.Store(true)
			// More than a pipe holds, and than one segment: the writer must wait.
			cmd := w.start(l, "head -c 200000 /dev/zero; echo err >&2")
			until(t, "DISK_FULL is said", func() bool { return w.says("DISK_FULL") })
			if n, _, _ := w.Sizes(key); n > 48<<10 {
				t.Errorf("%d bytes were moved to a full disk", n)
			}
			if got := w.read(before, output.Stdout); got != "before\n" { // readers go on
				t.Errorf("stdout %q", got)
			}
			full.Store(false)
			if err := cmd.Wait(); err != nil {
				t.Fatal(err)
			}
			w.finish(key)
			if got := w.read(key, output.Stdout); got != strings.Repeat("\x00", 200000) {
				t.Errorf("%d bytes of 200000", len(got))
			}
			if got := w.read(key, output.Stderr); got != "err\n" {
				t.Errorf("stderr %q", got)
			}
			if w.says("DISK_FULL") {
				t.Error("DISK_FULL is still said")
			}
			w.stop()
			again := open(t, output.Config{Dir: w.dir}.Small())
			if got := again.read(key, output.Stdout); len(got) != 200000 {
				t.Errorf("%d bytes after a restart", len(got))
			}
		})
	}
}

// TestFinishOnAFullDiskCanBeTriedAgain: a result without a seal is not final.
func TestFinishOnAFullDiskCanBeTriedAgain(t *testing.T) {
	t.Parallel()
	var full atomic.Bool
	w := open(t, output.Config{}.WithFault(func(step string) error {
		if full.Load() && step == "index" {
			return syscall.ENOSPC
		}
		return nil
	}))
	key, l := w.take(output.Options{})
	if err := w.start(l, "echo text").Wait(); err != nil {
		t.Fatal(err)
	}
	<-w.Drained(key)
	full.Store(true)
	if _, _, err := w.Finish(context.Background(), key, true); err == nil {
		t.Fatal("sealed on a full disk")
	}
	full.Store(false)
	w.finish(key)
	if got := w.read(key, output.Stdout); got != "text\n" {
		t.Errorf("stdout %q", got)
	}
	full.Store(true)
	if err := w.Remove(key); err == nil {
		t.Error("nobody is told that the removal is not on the disk")
	}
	if n := len(w.Keys()); n != 0 {
		t.Errorf("%d attempts", n)
	}
}

// TestP8AFileSystemThatIsFull fills a small one for real.
func TestP8AFileSystemThatIsFull(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root may mount a file system of its own")
	}
	dir := t.TempDir()
	if err := unix.Mount("drover-test", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("no file system can be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	w := open(t, output.Config{Dir: dir, Quota: 1 << 30})
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 700<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	key, l := w.take(output.Options{Policy: job.Keep})
	// Each line may be a move of its own, and the index of all has to fit, too.
	cmd := w.start(l, "i=0; while [ $i -lt 600 ]; do printf '%0999d\\n' $i; i=$((i+1)); done")
	until(t, "DISK_FULL is said", func() bool { return w.says("DISK_FULL") && w.says("DISK_LOW") })
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	w.finish(key)
	var want strings.Builder
	for i := range 600 {
		fmt.Fprintf(&want, "%0999d\n", i)
	}
	if got := w.read(key, output.Stdout); got != want.String() {
		t.Errorf("%d other bytes", len(got))
	}
}

// TestKeepWaitsAtTheQuotaAndIsNeverGivenBack, not even by another life of the
// worker, which has no request of a finished job any more.
func TestKeepWaitsAtTheQuotaAndIsNeverGivenBack(t *testing.T) {
	t.Parallel()
	c := output.Config{Dir: t.TempDir(), Quota: 100 << 10}.Small()
	w := open(t, c)
	kept, l := w.take(output.Options{Policy: job.Keep})
	if err := w.start(l, "head -c 60000 /dev/zero").Wait(); err != nil {
		t.Fatal(err)
	}
	w.finish(kept)
	w.stop()
	w = open(t, c)
	w.Settled(kept, true, false)
	waits, l := w.take(output.Options{Policy: job.Keep})
	cmd := w.start(l, "head -c 200000 /dev/zero")
	until(t, "QUOTA is said", func() bool { return w.says("QUOTA") })
	w.NudgeQuota(1 << 20)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	w.finish(waits)
	w.Settled(waits, true, false)
	w.NudgeQuota(1 << 10)
	ring := w.run("head -c 50000 /dev/zero") // lets the store look for what to give back
	for key, size := range map[job.Key]int{kept: 60000, waits: 200000} {
		if got := w.read(key, output.Stdout); len(got) != size {
			t.Errorf("%d bytes of %d are kept", len(got), size)
		}
	}
	if got := w.read(ring, output.Stdout); len(got) != 50000 {
		t.Errorf("%d bytes are kept of what the scheduler does not know to have ended", len(got))
	}
	w.Settled(ring, true, false)
	w.run("true")
	w.gap(ring, 50000, "RETENTION_QUOTA")
}

// TestABrokenDiskEndsTheMover: other errors of the disk are not
// waited for.
func TestABrokenDiskEndsTheMover(t *testing.T) {
	t.Parallel()
	s, err := output.Open(output.Config{Dir: t.TempDir()}.WithFault(func(step string) error {
		if step == "move" {
			return syscall.EIO
		}
		return nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w := &world{Store: s, t: t}
	_, l := w.take(output.Options{})
	cmd := w.start(l, "echo text")
	if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "move output") {
		t.Errorf("the mover ended with %v", err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
