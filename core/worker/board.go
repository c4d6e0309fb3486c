package worker

import (
	"maps"
	"sync"

	"github.com/droverhq/drover/core/job"
)

// board holds the present report of every attempt, for callers and sessions.
// What is to be sent is a set of keys and not a queue: a slow scheduler costs
// no memory and misses no state.
type board struct {
	mu      sync.Mutex // guards all below
	reports map[job.Key]*posted
	newest  map[job.ID]uint32
	session uint64 // number of the newest collection
	open    bool   // it goes on
	dirty   map[job.Key]struct{}
	once    []*job.Report // refused by fence: sent once, not kept
	wake    chan struct{} // capacity 1
}

// posted is a report on the board. Reports are never changed, only replaced.
type posted struct {
	report *job.Report
	acked  bool // or not to be sent for another reason
}

func newBoard() *board {
	return &board{
		reports: make(map[job.Key]*posted), newest: make(map[job.ID]uint32),
		dirty: make(map[job.Key]struct{}), wake: make(chan struct{}, 1),
	}
}

func (b *board) publish(e Publish) {
	b.mu.Lock()
	defer b.mu.Unlock()
	key := e.Report.Key
	if p := b.reports[key]; p != nil {
		p.report, p.acked = e.Report, e.Acked || e.Volatile
	} else {
		b.reports[key] = &posted{report: e.Report, acked: e.Acked || e.Volatile}
		b.newest[key.Job] = max(b.newest[key.Job], key.Attempt)
	}
	if b.open && !e.Quiet && !e.Volatile {
		b.dirty[key] = struct{}{}
		b.ring()
	}
}

func (b *board) announce(r *job.Report) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open {
		b.once = append(b.once, r)
		b.ring()
	}
}

func (b *board) unpublish(key job.Key) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.reports, key)
	delete(b.dirty, key)
	if b.newest[key.Job] == key.Attempt {
		delete(b.newest, key.Job)
	}
}

func (b *board) ring() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// begin begins a collection and ends the one before: every live and every
// unacknowledged attempt is to be sent. It returns the collection's number.
func (b *board) begin() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.session++
	b.open = true
	b.once = nil
	clear(b.dirty)
	for key, p := range b.reports {
		if !p.acked {
			b.dirty[key] = struct{}{}
		}
	}
	b.ring()
	return b.session
}

// end ends a collection, unless a newer one has begun.
func (b *board) end(session uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.session != session {
		return
	}
	b.open = false
	b.once = nil
	clear(b.dirty)
}

// collect takes up to n reports that are to be sent, and tells whether more are.
// A collection that has ended gets nothing: the newer one must not miss it.
func (b *board) collect(session uint64, n int) (reports []job.Report, more bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.session != session || !b.open {
		return nil, false
	}
	for _, r := range b.once {
		reports = append(reports, *r)
	}
	b.once = nil
	for key := range maps.Keys(b.dirty) {
		if len(reports) >= n {
			return reports, true
		}
		delete(b.dirty, key)
		if p := b.reports[key]; p != nil {
			reports = append(reports, *p.report)
		}
	}
	return reports, false
}

// find returns the report of an attempt; attempt 0 is the newest.
func (b *board) find(key job.Key) (job.Report, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if key.Attempt == 0 {
		key.Attempt = b.newest[key.Job]
	}
	p := b.reports[key]
	if p == nil {
		return job.Report{}, false
	}
	return *p.report, true
}

// keys returns every attempt on the board.
func (b *board) keys() map[job.Key]bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := make(map[job.Key]bool, len(b.reports))
	for key := range b.reports {
		all[key] = true
	}
	return all
}
