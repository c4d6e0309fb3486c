package output_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

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
