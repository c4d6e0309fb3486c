package worker

import (
	"maps"
	"sync"
	"time"

	"github.com/droverhq/drover/core/job"
)

// How long the news that an attempt runs may wait: a short job's end comes meanwhile
// and says it all, which saves the scheduler a record and a sync. With many attempts
// under way even a short job takes longer, and nobody sees a tenth of a second.
const (
	youngLeast = 10 * time.Millisecond
	youngEach  = 400 * time.Microsecond
	youngMost  = 100 * time.Millisecond
)

// youth is how long to wait with so many attempts under way.
func youth(live int) time.Duration {
	return min(max(youngLeast, time.Duration(live)*youngEach), youngMost)
}

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
	gone    []job.Key     // forgotten, to be confirmed
	wake    chan struct{} // capacity 1

	young, older map[job.Key]struct{} // began to run before the next, and the last, tick of ripe
	ripe         *time.Timer          // of the newest collection
	armed        bool                 // ripe runs
}

// posted is a report on the board. Reports are never changed, only replaced.
type posted struct {
	report *job.Report
	acked  bool // or not to be sent for another reason
	flight int  // final reports that this collection has sent and that are not acknowledged
}

func newBoard() *board {
	return &board{
		reports: make(map[job.Key]*posted), newest: make(map[job.ID]uint32),
		dirty: make(map[job.Key]struct{}), wake: make(chan struct{}, 1),
		young: make(map[job.Key]struct{}), older: make(map[job.Key]struct{}),
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
	switch {
	case !b.open || e.Quiet || e.Volatile:
	case e.Report.State == job.Running:
		b.young[key] = struct{}{}
		b.arm(youngLeast)
	default:
		b.grown(key)
		b.dirty[key] = struct{}{}
		b.ring()
	}
}

// grown takes a key from those that wait; b.mu is held.
func (b *board) grown(key job.Key) {
	delete(b.young, key)
	delete(b.older, key)
}

// arm sets the timer unless it is set; b.mu is held.
func (b *board) arm(d time.Duration) {
	if !b.armed {
		b.armed = true
		b.ripe.Reset(d)
	}
}

// ripen is for the tick of a collection's timer: what has waited for a whole turn of
// it is to be sent. The next turn is as long as so many live attempts want it.
func (b *board) ripen(session uint64, live int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.session != session {
		return
	}
	maps.Copy(b.dirty, b.older)
	clear(b.older)
	b.young, b.older = b.older, b.young
	b.armed = false
	if len(b.older) > 0 {
		b.arm(youth(live))
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

// confirm lets the session that ordered it know that attempts are forgotten.
func (b *board) confirm(keys []job.Key) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open {
		b.gone = append(b.gone, keys...)
		b.ring()
	}
}

func (b *board) unpublish(key job.Key) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.reports, key)
	delete(b.dirty, key)
	b.grown(key)
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
// unacknowledged attempt is to be sent. It returns the collection's number, and the
// timer at whose ticks to call ripen.
func (b *board) begin() (session uint64, ripe <-chan time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.session++
	b.open = true
	b.drop()
	b.ripe = time.NewTimer(youngLeast)
	b.armed = true
	for key, p := range b.reports {
		p.flight = 0
		if !p.acked {
			b.dirty[key] = struct{}{}
		}
	}
	b.ring()
	return b.session, b.ripe.C
}

// drop forgets what was to be sent; b.mu is held.
func (b *board) drop() {
	b.once, b.gone = nil, nil
	clear(b.dirty)
	clear(b.young)
	clear(b.older)
	if b.armed {
		b.ripe.Stop()
		b.armed = false
	}
}

// end ends a collection, unless a newer one has begun.
func (b *board) end(session uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.session != session {
		return
	}
	b.open = false
	b.drop()
}

// confirmed takes up to n attempts that are to be confirmed, and tells whether more are.
func (b *board) confirmed(session uint64, n int) (gone []job.Key, more bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.session != session {
		return nil, false
	}
	gone = b.gone[:min(n, len(b.gone))]
	b.gone = b.gone[len(gone):]
	return gone, len(b.gone) > 0
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
			if p.report.State.Terminal() {
				p.flight++
			}
			reports = append(reports, *p.report)
		}
	}
	return reports, false
}

// landed returns those of the acknowledged attempts whose newest report it is that was
// acknowledged: one may have been amended meanwhile.
func (b *board) landed(keys []job.Key) []job.Key {
	b.mu.Lock()
	defer b.mu.Unlock()
	var landed []job.Key
	for _, key := range keys {
		p := b.reports[key]
		if p != nil && p.flight > 0 {
			p.flight--
		}
		if _, again := b.dirty[key]; !again && (p == nil || p.flight == 0) {
			landed = append(landed, key)
		}
	}
	return landed
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
