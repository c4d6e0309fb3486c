package pluginhost

import (
	"context"
	"os"
	"sync"
	"testing"

	"github.com/droverhq/drover/plugins/pidfd"
)

// TestAnAdopterThatEndsTouchesNoFileOfOthers: the number of a descriptor that is closed
// is soon another file's. Whatever goes on while the adopter ends, these are not written
// to and not closed.
func TestAnAdopterThatEndsTouchesNoFileOfOthers(t *testing.T) {
	t.Parallel()
	const rounds = 300
	for range rounds {
		a, err := newAdopter(func([]Event) {}, func(string) {})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wait sync.WaitGroup
		var files []*os.File
		wait.Go(func() {
			if err := a.run(ctx); err != nil {
				t.Error(err)
			}
			for range 4 { // the lowest free numbers
				f, err := os.CreateTemp(t.TempDir(), "")
				if err != nil {
					t.Error(err)
					return
				}
				files = append(files, f)
			}
		})
		wait.Go(func() {
			fd, err := pidfd.Open(os.Getpid(), 0)
			if err != nil {
				t.Error(err)
				return
			}
			a.adopt("bash", "1", os.Getpid(), 0, fd)
		})
		wait.Go(cancel)
		wait.Wait()
		for _, f := range files {
			info, err := f.Stat()
			if err != nil || info.Size() > 0 {
				t.Fatalf("%s was closed or written to: %v, %v", f.Name(), info, err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if t.Failed() {
			return
		}
	}
}
