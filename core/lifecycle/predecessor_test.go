package lifecycle

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestInheritWaitsForWhatIsAboutToBeFreeOnly(t *testing.T) {
	t.Parallel()
	other := errors.New("something else")
	for _, c := range []struct {
		name  string
		freed time.Duration // after that take does not find it busy
		then  error
		want  error
		took  time.Duration // at the most
	}{
		{"free", 0, nil, nil, 0},
		{"something else", 0, other, other, 0},
		{"freed meanwhile", 300 * time.Millisecond, nil, nil, 305 * time.Millisecond},
		{"freed, then something else", 300 * time.Millisecond, other, other, 305 * time.Millisecond},
		{"somebody's", time.Hour, nil, syscall.EAGAIN, patience + lookFor},
	} {
		synctest.Test(t, func(t *testing.T) {
			begun := time.Now()
			err := Inherit(syscall.EAGAIN, func() error {
				if time.Since(begun) < c.freed {
					return fmt.Errorf("lock: %w", syscall.EAGAIN)
				}
				return c.then
			})
			if !errors.Is(err, c.want) || time.Since(begun) > c.took {
				t.Errorf("%s: %v after %v, want %v after %v at the most", c.name, err, time.Since(begun), c.want, c.took)
			}
		})
	}
}
