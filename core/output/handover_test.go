package output_test

import (
	"os"
	"sync"
	"syscall"
	"testing"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/output"
)

// TestP8FinishWaitsForTheMoverToLetGo: the output of a start that failed is
// finished without its end when the worker leaves. The pipe was closed under the
// mover then, which moved what the next pipe of that number held.
func TestP8FinishWaitsForTheMoverToLetGo(t *testing.T) {
	t.Parallel()
	var once sync.Once
	moving, goOn := make(chan struct{}), make(chan struct{})
	w := open(t, output.Config{}.WithFault(func(step string) error {
		if step == "move" {
			once.Do(func() {
				close(moving)
				<-goOn
			})
		}
		return nil
	}))
	key, l := w.take(output.Options{})
	writer, err := syscall.Open(l.Stdout, syscall.O_RDWR|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Close(writer) }()
	if _, err := syscall.Write(writer, []byte("mine")); err != nil {
		t.Fatal(err)
	}
	<-moving
	done := make(chan job.Stream, 1)
	go func() {
		stdout, _, err := w.Finish(t.Context(), key, true)
		if err != nil {
			t.Error(err)
		}
		done <- stdout
	}()
	until(t, "finishing waits for the mover, or does not", func() bool { return w.Leaving(key) || len(done) > 0 })
	foreign := pipes(t, 8)
	close(goOn)
	if got := <-done; got != sumOf([]byte("mine")) {
		t.Errorf("sealed as %v", got)
	}
	if got := w.read(key, output.Stdout); got != "mine" {
		t.Errorf("%q is read", got)
	}
	for _, r := range foreign {
		b := make([]byte, 16)
		if n, err := r.Read(b); err != nil || string(b[:n]) != "foreign" {
			t.Errorf("a pipe of somebody else holds %q, %v", b[:n], err)
		}
	}
}

// pipes makes pipes with something in them; they take the lowest free numbers.
func pipes(t *testing.T, n int) (ends []*os.File) {
	t.Helper()
	for range n {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close() })
		if _, err := w.WriteString("foreign"); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, r)
	}
	return ends
}
