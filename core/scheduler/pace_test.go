package scheduler

import (
	"testing"
	"time"
)

func TestHeartbeatsOfManyWorkersComeLessOften(t *testing.T) {
	t.Parallel()
	const lease, every = DefaultLease, DefaultHeartbeat
	third := lease / beatsPerLease
	for _, c := range []struct {
		name         string
		every, lease time.Duration
		workers      int
		want         time.Duration
	}{
		{"none", every, lease, 0, every},
		{"a few", every, lease, 10, every},
		{"as many as may beat that often", every, lease, 1000, every},
		{"more", every, lease, 1250, 2500 * time.Millisecond},
		{"so many that the lease sets the bound", every, lease, 10_000, third},
		{"a longer lease", every, time.Minute, 10_000, 20 * time.Second},
		{"a longer lease, not all of it needed", every, 5 * time.Minute, 10_000, 20 * time.Second},
		{"seldom by its settings", 5 * time.Second, lease, 10_000, 5 * time.Second},
		{"often by its settings", 100 * time.Millisecond, time.Second, 10_000, time.Second / 3},
	} {
		if got := pace(c.every, c.lease, c.workers); got != c.want {
			t.Errorf("%s: every %v, want %v", c.name, got, c.want)
		}
	}
}
