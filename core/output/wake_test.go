package output_test

import (
	"context"
	"errors"
	"syscall"
	"testing"

	"github.com/droverhq/drover/core/output"
)

// The wake-up of a mover that had already returned was written to whatever got
// the number of its descriptor next, such as the output of a job.
func TestAStoreWritesToNoDescriptorAfterItsEnd(t *testing.T) {
	t.Parallel()
	for range 500 {
		s, err := output.Open(output.Config{Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := s.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		// These take the numbers that have just become free.
		var pipes [4][2]int
		for i := range pipes {
			if err := syscall.Pipe2(pipes[i][:], syscall.O_NONBLOCK|syscall.O_CLOEXEC); err != nil {
				t.Fatal(err)
			}
		}
		for _, p := range pipes {
			b := make([]byte, 8)
			if n, err := syscall.Read(p[0], b); !errors.Is(err, syscall.EAGAIN) {
				t.Errorf("%x was written to a pipe of somebody else, %v", b[:max(n, 0)], err)
			}
			_ = syscall.Close(p[0])
			_ = syscall.Close(p[1])
		}
	}
}
