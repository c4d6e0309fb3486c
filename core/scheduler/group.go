package scheduler

import (
	"slices"
	"sync"

	"github.com/droverhq/drover/core/job"
)

// Bounds of the ends that one group keeps.
const (
	endsTaken = 256     // at once
	endsKept  = 1 << 20 // bytes of what they tell; the rest is read when it is taken
)

// endBytes returns what an end takes with what it tells.
func endBytes(e *End) int {
	if e.Job == nil {
		return 0
	}
	return 1<<10 + len(e.Job.Message)
}

// group is where the ends of several jobs gather until somebody takes them. It
// holds no more than the jobs that were added.
type group struct {
	mu       sync.Mutex     // guards the fields below
	waits    map[job.ID]int // live jobs, and how often each was added
	ends     []End
	kept     int // bytes of what ends tell
	finished bool
	closed   bool // nobody takes what comes

	wake chan struct{}
}

// expect notes a live job and tells whether it is new here.
func (g *group) expect(id job.ID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.waits[id]++
	return g.waits[id] == 1
}

// ended takes an end, once for each time that the job was added.
func (g *group) ended(e End) {
	g.mu.Lock()
	times := g.waits[e.ID]
	delete(g.waits, e.ID)
	if e.Job != nil && g.kept >= endsKept { // the client is slow (P21)
		e.Job, e.later = nil, true
	}
	g.kept += max(1, times) * endBytes(&e)
	for range max(1, times) { // 1 for a job that had ended before it was added
		g.ends = append(g.ends, e)
	}
	g.mu.Unlock()
	g.signal()
}

func (g *group) finish() {
	g.mu.Lock()
	g.finished = true
	g.mu.Unlock()
	g.signal()
}

func (g *group) signal() {
	select {
	case g.wake <- struct{}{}:
	default: // it is awake already
	}
}

// take returns the oldest ends; over tells that nothing will come any more.
func (g *group) take() (ends []End, over bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := min(len(g.ends), endsTaken)
	ends = slices.Clone(g.ends[:n])
	for i := range ends {
		g.kept -= endBytes(&ends[i])
	}
	clear(g.ends[:n]) // what they hold may go
	if g.ends = g.ends[n:]; len(g.ends) == 0 {
		g.ends = nil
	}
	return ends, g.finished && n == 0 && len(g.waits) == 0
}

// leaving returns the jobs that are still waited for, and forgets them.
func (g *group) leaving() []job.ID {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	ids := make([]job.ID, 0, len(g.waits))
	for id := range g.waits {
		ids = append(ids, id)
	}
	clear(g.waits)
	return ids
}
