package footprint

import (
	"context"
	"math"
	"runtime"
)

// How much garbage may gather before it is collected, in percent of what is in use, as
// GOGC counts it. With Go's own 100 a small daemon under load collects many times a
// second, to save memory of which there is enough; and a large one that has little to
// do holds as much garbage as data, though collecting sooner would cost it little.
const (
	usual = 100      // Go's own
	most  = 200      // of a small process
	spare = 16 << 20 // bytes that may always gather; at rest Keep gives them back
	tight = 20       // of a large process that has little to do
	large = 64 << 20 // bytes of data and stacks
	// A process has much to do when it allocates a busyAt-th of its size between two
	// looks.
	busyAt = 20
)

// garbage decides how soon to collect.
type garbage struct {
	given   int // percent, as the process was started
	set     int // percent that holds
	pressed bool
	begun   bool
	last    uint64 // allocated until the last look
}

// newGarbage takes what the process was started with; math.MaxUint64 is no
// collection at all.
func newGarbage(given uint64) garbage {
	percent := int(min(given, math.MaxInt32))
	return garbage{given: percent, set: percent}
}

// look takes, at fixed intervals, what was allocated in all and how much the process
// holds.
func (g *garbage) look(allocated, held uint64) {
	calm := g.begun && (allocated-g.last)*busyAt < held
	g.begun, g.last = true, allocated
	g.pressed = calm && held >= large
}

// next takes how much is in use and tells the percentage from now on, or that it
// stays. A change stops the process for a moment, so small ones are left out.
func (g *garbage) next(live uint64) (percent int, changed bool) {
	want := g.given
	switch {
	case g.given == math.MaxInt32: // whoever started it wants no collection
	case g.pressed:
		want = min(tight, g.given)
	case g.given == usual:
		want = share(live)
	}
	if want == g.set || want != g.given && want < g.set*5/4 && want > g.set*4/5 {
		return 0, false
	}
	g.set = want
	return want, true
}

// share is the percentage for so many bytes in use.
func share(live uint64) int {
	if live == 0 {
		return most
	}
	return int(min(max(usual, 100*spare/live), most))
}

// sentinel is garbage at once; with a pointer in it, it is not put together with
// others, which would keep it.
type sentinel struct{ _ *sentinel }

// collections returns a channel that gets a value after every collection, until ctx
// ends: a process that grows fast must not be measured too late.
func collections(ctx context.Context) <-chan struct{} {
	done := make(chan struct{}, 1)
	var arm func()
	arm = func() {
		runtime.SetFinalizer(&sentinel{}, func(*sentinel) {
			select {
			case done <- struct{}{}:
			default:
			}
			if ctx.Err() == nil {
				arm()
			}
		})
	}
	arm()
	return done
}
