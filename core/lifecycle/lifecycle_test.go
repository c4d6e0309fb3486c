package lifecycle_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/droverhq/drover/core/lifecycle"
)

// record notes the order in which parts stop.
type record struct {
	mu    sync.Mutex // guards names
	names []string
}

func (r *record) part(name string) lifecycle.Runner {
	return lifecycle.Func(func(ctx context.Context) error {
		<-ctx.Done()
		r.mu.Lock()
		defer r.mu.Unlock()
		r.names = append(r.names, name)
		return nil
	})
}

func TestStagesStopFromLastToFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var r record
		var g lifecycle.Group
		g.Stage(map[string]lifecycle.Runner{"store": r.part("store")})
		g.Stage(map[string]lifecycle.Runner{"loop": r.part("loop")})
		g.Stage(map[string]lifecycle.Runner{"server": r.part("server")})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- g.Run(ctx) }()
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Fatalf("stop in good order: %v", err)
		}
		if want := []string{"server", "loop", "store"}; !slices.Equal(r.names, want) {
			t.Errorf("stopped %v, want %v", r.names, want)
		}
	})
}

func TestFailingPartStopsTheOthersAndIsNamed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var r record
		var g lifecycle.Group
		g.Stage(map[string]lifecycle.Runner{"store": r.part("store")})
		g.Stage(map[string]lifecycle.Runner{"server": lifecycle.Func(func(context.Context) error {
			return errors.New("address in use")
		})})
		err := g.Run(t.Context())
		if err == nil || !strings.Contains(err.Error(), "server: address in use") {
			t.Errorf("error %v does not name the part and the cause", err)
		}
		if !slices.Equal(r.names, []string{"store"}) {
			t.Errorf("stopped %v, want the store", r.names)
		}
	})
}

func TestPartThatEndsByItselfIsAnError(t *testing.T) {
	t.Parallel()
	var g lifecycle.Group
	g.Stage(map[string]lifecycle.Runner{"loop": lifecycle.Func(func(context.Context) error { return nil })})
	if err := g.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "loop: ended by itself") {
		t.Errorf("got %v", err)
	}
}
