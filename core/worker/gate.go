package worker

import (
	"context"
	"time"
)

// The gate: while many attempts come and go, waiting a moment before events or
// frames are taken makes one wake-up serve many of them. Each of many waits for
// the others anyway; a few must not wait at all, nor one among many that only run.
const (
	gateFrom  = 32 // attempts under way
	gateLast  = 2  // events or reports that came together the last time
	gateEach  = 8 * time.Microsecond
	gateWidth = time.Millisecond
)

// gate is how long to wait with so many attempts under way, of which so many had
// news the last time; 0 is not at all.
func gate(live, last int) time.Duration {
	if live < gateFrom || last < gateLast {
		return 0
	}
	return min(gateWidth, time.Duration(live)*gateEach)
}

// sleep waits, unless the context ends first.
func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
