package sim

import (
	"math/rand/v2"
	"time"
)

// rate is how fast a clock runs, in thousandths of the true time. No two clocks
// of a run differ by a tenth, which is what drover allows for (job.PartitionWait).
type rate int

// worst is how far a clock may be off.
const worst = 47

// rate draws the rate of the n-th machine; machine 0 is the scheduler's.
func (p *Plan) rate(n int) rate {
	r := rand.New(rand.NewPCG(p.Seed, uint64(n)+0xc10c))
	return rate(1000 - worst + r.IntN(2*worst+1))
}

// clock is what the clock shows after d of true time.
func (r rate) clock(d time.Duration) time.Duration { return d / 1000 * time.Duration(r) }

// real is the true time after which the clock shows d, or a moment more.
func (r rate) real(d time.Duration) time.Duration {
	return (d/time.Duration(r) + 1) * 1000
}
