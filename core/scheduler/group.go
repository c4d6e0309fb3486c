package scheduler

import (
	"sync"

	"github.com/droverhq/drover/core/job"
)

// group is where the ends of several jobs gather until somebody takes them. It
// holds no more than the jobs that were added.
type group struct {
	mu       sync.Mutex     // guards the fields below
	waits    map[job.ID]int // live jobs, and how often each was added
	count    int            // in waits, with repetitions
	ends     []End
	finished bool
	closed   bool // nobody takes what comes

	wake chan struct{}
}

// pending is how many jobs were added and not taken yet.
func (g *group) pending() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.ends) + g.count
}

// expect notes a live job and tells whether it is new here.
func (g *group) expect(id job.ID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.waits[id]++
	g.count++
	return g.waits[id] == 1
}

// ended takes an end, once for each time that the job was added.
func (g *group) ended(e End) {
	g.mu.Lock()
	times := g.waits[e.ID]
	delete(g.waits, e.ID)
	g.count -= times
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

// take empties the group; over tells that nothing will come any more.
func (g *group) take() (ends []End, over bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	ends, g.ends = g.ends, nil
	return ends, g.finished && len(ends) == 0 && len(g.waits) == 0
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
	g.count = 0
	return ids
}
