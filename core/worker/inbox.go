package worker

import (
	"sync"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/journal"
)

// inbox collects events for the loop. It has no bound of its own: sessions wait
// for each frame to be taken, callers wait for their answers, and processes
// send a few events each.
type inbox struct {
	mu     sync.Mutex // guards events
	events []Event
	wake   chan struct{} // capacity 1
}

func newInbox() *inbox { return &inbox{wake: make(chan struct{}, 1)} }

func (b *inbox) put(evs ...Event) {
	b.mu.Lock()
	b.events = append(b.events, evs...)
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// take returns all waiting events and hands spare over to be filled next.
func (b *inbox) take(spare []Event) []Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	evs := b.events
	clear(spare)
	b.events = spare[:0]
	return evs
}

// Feed carries news of processes from the plugin host to a worker. It exists
// before both, so that each can be made with it; what arrives before the worker
// runs is kept.
type Feed struct{ in *inbox }

// NewFeed makes a feed for one worker.
func NewFeed() *Feed { return &Feed{in: newInbox()} }

// Push hands over news in order. It never blocks. Ids that no worker gave are
// left out. A start whose exit is among the news goes with the exit: nobody would
// see that the process runs, and its record would be dead at once.
func (f *Feed) Push(news []ProcessEvent) {
	evs := make([]Event, 0, len(news))
	short := shortLived(news)
	for i := range news {
		n := &news[i]
		key, err := parseAttemptID(n.ID)
		if err != nil {
			continue
		}
		switch {
		case n.Started != nil && short[n.ID] != nil:
		case n.Started != nil:
			evs = append(evs, ProcessStarted{Key: key, Started: *n.Started})
		case n.Exit != nil:
			evs = append(evs, ProcessExited{Key: key, PID: n.Exit.PID, Started: short[n.ID], Exit: n.Exit.record()})
		case n.Unknown:
			evs = append(evs, ProcessUnknown{Key: key})
		case n.Gone:
			evs = append(evs, ProcessGone{Key: key})
		}
	}
	f.in.put(evs...)
}

// shortLived returns the starts of processes whose exit follows in the same news.
func shortLived(news []ProcessEvent) map[string]*journal.Started {
	var begun, short map[string]*journal.Started
	for i := range news {
		n := &news[i]
		switch {
		case n.Started != nil:
			if begun == nil {
				begun = make(map[string]*journal.Started, len(news))
			}
			begun[n.ID] = n.Started
		case n.Exit != nil && begun[n.ID] != nil && begun[n.ID].PID == n.Exit.PID:
			if short == nil {
				short = make(map[string]*journal.Started, len(news))
			}
			short[n.ID] = begun[n.ID]
		}
	}
	return short
}

// OutputExceeded tells that a stream passed its limit under policy Fail.
func (f *Feed) OutputExceeded(key job.Key) { f.in.put(OutputExceeded{Key: key}) }

// record is the exit as the journal keeps it.
func (x *ProcessExit) record() journal.Exit {
	r := journal.Exit{Code: x.Code, Evidence: x.Evidence, Wall: x.Time}
	if x.SpawnReason != "" {
		r.SpawnError = x.SpawnReason + ": " + x.SpawnError
		return r
	}
	if x.Signal != 0 {
		r.Code, r.Signal = 0, signalName(x.Signal)
	}
	return r
}

// answer is what a ticket gets.
type answer struct {
	report *job.Report
	err    error
}

// tickets remembers who waits for which answer.
type tickets struct {
	mu   sync.Mutex // guards all below
	last Ticket
	open map[Ticket]chan answer
}

func newTickets() *tickets { return &tickets{open: make(map[Ticket]chan answer)} }

func (t *tickets) take() (Ticket, <-chan answer) {
	ch := make(chan answer, 1)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last++
	t.open[t.last] = ch
	return t.last, ch
}

// answer answers a ticket once; later answers find nobody.
func (t *tickets) answer(n Ticket, a answer) {
	t.mu.Lock()
	ch := t.open[n]
	delete(t.open, n)
	t.mu.Unlock()
	if ch != nil {
		ch <- a
	}
}

// drop gives a ticket up.
func (t *tickets) drop(n Ticket) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, n)
}

// errEnding answers calls of a worker that is on its way out.
func errEnding(op string) error {
	return errs.E(op, errs.Unavailable, "WORKER_ENDING", nil).WithHint("the worker is restarting; its jobs go on")
}
