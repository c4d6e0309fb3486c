package footprint

import (
	"math"
	"runtime/debug"
)

// How garbage is collected. With Go's own setting a process holds as much garbage
// as it holds data before it collects; in a large one that has little to do, that
// is the larger part of its memory, and collecting sooner costs little there.
const (
	large  = 64 << 20 // bytes of data and stacks: with less there is little to win
	tight  = 20       // percent of garbage, as GOGC counts it
	busyAt = 20       // it has much to do when it allocates a 20th of its size between two looks
)

// press decides how soon to collect garbage.
type press struct {
	usual   int // percent, as the process was started
	pressed bool
	begun   bool
	last    uint64 // allocated until the last look
}

// newPress takes what the process was started with; math.MaxUint64 is no
// collection at all.
func newPress(usual uint64) press { return press{usual: int(min(usual, math.MaxInt32))} }

// next takes what was allocated in all and how much the process holds, and tells
// the percentage from now on, or that it stays.
func (p *press) next(allocated, held uint64) (percent int, changed bool) {
	calm := p.begun && (allocated-p.last)*busyAt < held
	p.begun, p.last = true, allocated
	now := calm && held >= large && p.usual > tight && p.usual < math.MaxInt32
	if now == p.pressed {
		return 0, false
	}
	p.pressed = now
	if now {
		return tight, true
	}
	return p.usual, true
}

// apply does what next says.
func (p *press) apply(allocated, held uint64) {
	if percent, changed := p.next(allocated, held); changed {
		debug.SetGCPercent(percent)
	}
}
