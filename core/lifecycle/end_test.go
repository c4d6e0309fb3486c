package lifecycle_test

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/droverhq/drover/core/lifecycle"
)

func TestOnEnd_ReleaseWaitsForWhatHasBegun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		goOn, released := make(chan struct{}), false
		release := lifecycle.OnEnd(ctx, func() { <-goOn })
		cancel()
		go func() { release(); released = true }()
		synctest.Wait()
		if released {
			t.Error("it is released while the function runs")
		}
		close(goOn)
		synctest.Wait()
		if !released {
			t.Error("it is not released when the function has returned")
		}
	})
}

func TestOnEnd_ReleasedBefore_IsNeverCalled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		lifecycle.OnEnd(ctx, func() { t.Error("it is called") })()
		cancel()
		synctest.Wait()
	})
}
