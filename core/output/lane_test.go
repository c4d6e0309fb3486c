package output_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/output"
)

// TestP8APipeThatHangsUpBeforeItsJobIsNotAtItsEnd: read ends stay open from job
// to job, so a pipe that nobody has opened yet hangs up, too.
func TestP8APipeThatHangsUpBeforeItsJobIsNotAtItsEnd(t *testing.T) {
	t.Parallel()
	w := open(t, output.Config{})
	for _, text := range []string{"first\n", "second\n", "third\n"} {
		key, l := w.take(output.Options{})
		for _, p := range []string{l.Stdout, l.Stderr, l.Stdout} {
			f, err := os.OpenFile(p, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			w.settle()
		}
		if err := w.start(l, "printf '"+text+"'").Wait(); err != nil {
			t.Fatal(err)
		}
		w.finish(key)
		if got := w.read(key, output.Stdout); got != text {
			t.Errorf("stdout %q, want %q", got, text)
		}
	}
}

// settle returns when the mover has seen all that came before: it has moved the
// bytes of a job that began after it.
func (w *world) settle() {
	w.t.Helper()
	key, l := w.take(output.Options{})
	if err := w.start(l, "echo").Wait(); err != nil {
		w.t.Fatal(err)
	}
	w.finish(key)
}

// TestP8AReusedLaneIsHeldByWhoHoldsIt: news of the job before must not end the
// stream of one whose child still writes.
func TestP8AReusedLaneIsHeldByWhoHoldsIt(t *testing.T) {
	t.Parallel()
	w := open(t, output.Config{})
	hold := filepath.Join(t.TempDir(), "hold")
	if err := exec.Command("mkfifo", hold).Run(); err != nil {
		t.Fatal(err)
	}
	_, first := w.take(output.Options{})
	w.run("echo before")
	for range 3 {
		key, l := w.take(output.Options{})
		if l == first {
			t.Fatal("a lane was given twice")
		}
		if err := w.start(l, `setsid sh -c 'read x < `+hold+`; echo child; echo child >&2' & `).Wait(); err != nil {
			t.Fatal(err)
		}
		drained := w.Drained(key)
		w.settle()
		select {
		case <-drained:
			t.Fatal("drained while a child holds the streams")
		default:
		}
		if err := os.WriteFile(hold, []byte("x\n"), 0); err != nil {
			t.Fatal(err)
		}
		w.finish(key)
		if out, err := w.read(key, output.Stdout), w.read(key, output.Stderr); out != "child\n" || err != "child\n" {
			t.Errorf("stdout %q, stderr %q", out, err)
		}
	}
}

// TestALaneOfMuchOutputServesTheNextJob has a pipe grow, and used again.
func TestALaneOfMuchOutputServesTheNextJob(t *testing.T) {
	t.Parallel()
	w := open(t, output.Config{})
	for range 2 {
		big := w.run(`head -c 3000000 /dev/zero`)
		if got := w.read(big, output.Stdout); got != strings.Repeat("\x00", 3_000_000) {
			t.Errorf("%d bytes", len(got))
		}
		if got := w.read(w.run("echo small"), output.Stdout); got != "small\n" {
			t.Errorf("stdout %q", got)
		}
	}
}

// stranger is another user than the worker's: only root gives pipes away.
func stranger() int {
	if os.Getuid() == 0 {
		return 54321
	}
	return -1
}

// TestP19_ReaderOfAnEarlierJob_TakesNothing: a reader that a job leaves behind, or a
// way to open one later, would take lines of the next job, and nothing tells of it.
func TestP19_ReaderOfAnEarlierJob_TakesNothing(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		uid   int
		alone bool
	}{
		"of another user":                {stranger(), os.Getuid() == 0},
		"whose processes may be left":    {-1, false},
		"of another user, with children": {stranger(), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := open(t, output.Config{})
			key, l := w.take(output.Options{UID: c.uid, GID: c.uid})
			reader, path := descriptor(t, l.Stdout, syscall.O_RDONLY|syscall.O_NONBLOCK), descriptor(t, l.Stdout, unix.O_PATH)
			w.NoWriter(key)
			w.finishAs(key, c.alone)
			for range 20 {
				key, l := w.take(output.Options{UID: c.uid, GID: c.uid})
				later := descriptor(t, "/proc/self/fd/"+strconv.Itoa(path), syscall.O_RDONLY|syscall.O_NONBLOCK)
				cmd := w.start(l, "echo one; echo two")
				for _, fd := range []int{reader, later} {
					if n, err := syscall.Read(fd, make([]byte, 64)); n > 0 {
						t.Errorf("an earlier job read %d bytes, %v", n, err)
					}
				}
				if err := cmd.Wait(); err != nil {
					t.Fatal(err)
				}
				w.finishAs(key, c.alone)
				if got := w.read(key, output.Stdout); got != "one\ntwo\n" {
					t.Errorf("stdout %q", got)
				}
			}
		})
	}
}

func descriptor(t *testing.T, path string, flags int) int {
	t.Helper()
	fd, err := syscall.Open(path, flags|syscall.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	return fd
}

// finishAs is finish of an attempt that perhaps was not alone with its pipes.
func (w *world) finishAs(key job.Key, alone bool) {
	w.t.Helper()
	<-w.Drained(key)
	if _, _, err := w.Finish(context.Background(), key, alone); err != nil {
		w.t.Fatal(err)
	}
}

// TestLanes_OfTheWorkersUser_ServeOneJobAfterAnother: making pipes costs a job as
// much as all else that the worker does for it.
func TestLanes_OfTheWorkersUser_ServeOneJobAfterAnother(t *testing.T) {
	t.Parallel()
	w := open(t, output.Config{})
	key, first := w.take(output.Options{})
	w.NoWriter(key)
	w.finishAs(key, true)
	for _, uid := range []int{-1, os.Getuid()} {
		key, l := w.take(output.Options{UID: uid, GID: -1})
		if l != first {
			t.Errorf("a job of user %d got the new pipes %v, want %v", uid, l, first)
		}
		w.NoWriter(key)
		w.finishAs(key, true)
	}
	if uid := stranger(); uid >= 0 {
		key, l := w.take(output.Options{UID: uid, GID: uid})
		var st syscall.Stat_t
		if err := syscall.Stat(l.Stdout, &st); err != nil || int(st.Uid) != uid || st.Mode&0o777 != 0o600 {
			t.Errorf("owner %d, mode %o, want %d, %v", st.Uid, st.Mode, uid, err)
		}
		w.NoWriter(key)
		w.finishAs(key, true)
		if _, err := os.Stat(l.Stdout); err == nil {
			t.Errorf("%s is still there", l.Stdout)
		}
	}
}
