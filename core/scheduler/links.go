package scheduler

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
)

// Connector opens links to workers; core/rpc implements it over the Session
// stream.
type Connector interface {
	Connect(ctx context.Context, w registry.Worker, term uint64, h job.History) (Link, error)
}

// Link carries frames to and from one worker. Send and Recv are called by one
// goroutine each; Close makes both return.
type Link interface {
	// Send sends all of it, in as many frames as it takes, but the starts that no
	// frame has room for: it returns them.
	Send(Down) (tooLarge []job.Key, err error)
	Recv() (Up, error)
	Close() error
}

// links keeps one link to every worker that should have one.
type links struct {
	connector Connector
	term      uint64
	history   history
	log       *slog.Logger
	deliver   func(context.Context, Event)
	input     func(context.Context, job.ID) (job.Input, error)

	mu          sync.Mutex // guards the fields below
	byID        map[job.WorkerID]*connection
	revocations []byte // the list that every worker is to have
	number      uint64
	closed      bool
	wait        sync.WaitGroup
}

// connection is the keeper of one worker's link.
type connection struct {
	worker registry.Worker
	cancel context.CancelFunc
	out    *outbox
}

func newLinks(c Connector, term uint64, h history, log *slog.Logger, deliver func(context.Context, Event), input func(context.Context, job.ID) (job.Input, error)) *links {
	return &links{connector: c, term: term, history: h, log: log, deliver: deliver, input: input, byID: map[job.WorkerID]*connection{}}
}

// dial makes sure that a link to the worker's present process is kept.
func (l *links) dial(w registry.Worker) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	if c := l.byID[w.ID]; c != nil {
		if c.worker.Address == w.Address && c.worker.InstanceID == w.InstanceID {
			return
		}
		c.cancel()
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &connection{worker: w, cancel: cancel, out: &outbox{}}
	l.byID[w.ID] = c
	l.wait.Go(func() { l.keep(ctx, c) })
}

func (l *links) hang(id job.WorkerID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := l.byID[id]; c != nil {
		c.cancel()
		delete(l.byID, id)
	}
}

// send queues a frame, or returns false: what is queued while the link is down is
// dropped with it. The reconciliation after the next hello orders it again, but for
// starts that can be made elsewhere.
func (l *links) send(id job.WorkerID, d Down) bool {
	l.mu.Lock()
	c := l.byID[id]
	l.mu.Unlock()
	return c != nil && c.out.add(d)
}

// revoke passes a list on to the workers of now and of later. One that they were all
// told is not told again.
func (l *links) revoke(list []byte) {
	l.mu.Lock()
	if bytes.Equal(list, l.revocations) {
		l.mu.Unlock()
		return
	}
	l.revocations = list
	all := slices.Collect(maps.Values(l.byID))
	l.mu.Unlock()
	for _, c := range all {
		c.out.add(Down{Revocations: list})
	}
}

func (l *links) revoked() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.revocations
}

func (l *links) closeAll() {
	l.mu.Lock()
	l.closed = true
	for _, c := range l.byID {
		c.cancel()
	}
	l.mu.Unlock()
	l.wait.Wait()
}

// Backoff of a link that breaks.
const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = 2 * time.Second
	// A link that breaks so often in a row, each time so soon after it was opened, does
	// not break by chance: what is sent on it breaks it.
	badBreaks = 3
	soonAfter = 10 * time.Second
)

// keep connects again and again until ctx ends. What is wrong is logged when it
// begins, not at every try.
func (l *links) keep(ctx context.Context, c *connection) {
	backoff, trouble, row := minBackoff, "", breaks{}
	for ctx.Err() == nil {
		link, err := l.connector.Connect(ctx, c.worker, l.term, l.history.History)
		if err == nil {
			var talked bool
			opened := time.Now()
			if talked, err = l.use(ctx, c, link, trouble != "", row.told); talked {
				if ctx.Err() == nil {
					l.broke(ctx, c, &row, time.Since(opened), err)
				}
				backoff, trouble, err = minBackoff, "", nil // one broken link is every day's business
				if row.told {
					backoff = maxBackoff
				}
			}
		}
		if reason := errs.ReasonOf(err); err != nil && ctx.Err() == nil && trouble != "in "+reason {
			if trouble = "in " + reason; !l.doubt(ctx, c, err) {
				l.complain(c, err, reason)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(backoff/2 + rand.N(backoff)):
			backoff = min(2*backoff, maxBackoff)
		}
	}
}

// breaks counts how often in a row a link has broken soon after it was opened.
type breaks struct {
	count int
	told  bool // the worker has the condition
}

// broke takes note of a link that has broken. When that repeats itself, people are told.
func (l *links) broke(ctx context.Context, c *connection, row *breaks, lived time.Duration, err error) {
	if lived >= soonAfter {
		*row = breaks{}
		return
	}
	if row.count++; row.count < badBreaks || row.told {
		return
	}
	row.told = true
	l.log.Warn("link to a worker breaks again and again, trying on", "worker", c.worker.Name, "times", row.count, "error", err)
	message := fmt.Sprintf("the scheduler's link to it breaks again and again: %v", err)
	l.deliver(ctx, Event{Trouble: &Trouble{Worker: c.worker.ID, Message: job.Shorten(message, job.MaxMessage)}})
}

// recover ends the condition of a worker once its link has held for long enough.
func (l *links) recover(ctx context.Context, id job.WorkerID) {
	held := time.NewTimer(soonAfter)
	defer held.Stop()
	select {
	case <-held.C:
		l.deliver(ctx, Event{Trouble: &Trouble{Worker: id}})
	case <-ctx.Done():
	}
}

// doubt reports whether a worker has proved that these records are an older copy, and
// passes that on. Its word alone does not count: it must name a life that was made with
// their secret (P21).
func (l *links) doubt(ctx context.Context, c *connection, err error) bool {
	var strange *job.StrangeLifeError
	if !errors.As(err, &strange) || !strange.Last.Genuine(l.history.secret) || l.history.Holds(strange.Last) {
		return false
	}
	l.deliver(ctx, Event{Old: &OldRecords{c.worker.ID, strange.Last}})
	return true
}

func (l *links) complain(c *connection, err error, reason string) {
	if reason == job.ReasonFenced || reason == job.ReasonOldRecords { // P3
		l.log.Error("the worker was commanded by a later term, or by other records, and refuses this scheduler", "hint", hintOldRecords,
			"worker", c.worker.Name, "term", l.term, "error", err)
		return
	}
	l.log.Warn("worker cannot be reached, trying on", "worker", c.worker.Name, "address", c.worker.Address, "error", err)
}

// use carries frames until the link breaks, which the error explains, or ctx
// ends. talked tells that the worker took part: one that refuses the session
// says nothing. again tells that it could not be reached before, bad that its link
// broke again and again.
func (l *links) use(ctx context.Context, c *connection, link Link, again, bad bool) (talked bool, err error) {
	l.mu.Lock()
	l.number++
	number := l.number
	l.mu.Unlock()
	id := c.worker.ID
	both, cancel := context.WithCancelCause(ctx)
	closed := make(chan struct{})
	context.AfterFunc(both, func() {
		defer close(closed)
		_ = link.Close() // makes Recv below and Send in carry return
	})
	c.out.open(l.line(both, id, link, cancel))
	c.out.add(Down{Revocations: l.revoked()})
	waiting := newIntake()
	var wait sync.WaitGroup
	if bad {
		wait.Go(func() { l.recover(both, id) })
	}
	for {
		var up Up
		if up, err = link.Recv(); err != nil {
			break
		}
		if !talked { // its first word: it has accepted the session
			l.deliver(ctx, Event{Up: &UpEvent{Worker: id, Link: number, Opened: true}})
			if again {
				l.log.Info("worker link is back", "worker", c.worker.Name)
			}
			talked = true
		}
		weight := int64(max(up.Bytes, len(up.Reports)*reportBytes))
		if err = waiting.take(both, weight); err != nil {
			break
		}
		l.deliver(ctx, Event{Up: &UpEvent{Worker: id, Link: number, Up: up}, done: func() { waiting.give(weight) }})
	}
	if why := context.Cause(both); why != nil && ctx.Err() == nil {
		err = why // Send has failed, and that is why Recv has
	}
	cancel(nil)
	<-closed
	if unsent := c.out.shut(); len(unsent) > 0 {
		l.deliver(ctx, Event{Unsent: &Unsent{id, unsent}})
	}
	wait.Wait()
	if !talked {
		return false, err
	}
	// When ctx has ended, a newer link, or nobody, wants to know.
	l.deliver(ctx, Event{Up: &UpEvent{Worker: id, Link: number, Closed: true}})
	return true, err
}

// Bounds of the frames of one link that wait for their commit.
const (
	intakeBytes = 8 << 20 // or one frame, if that is larger
	reportBytes = 512     // that a report takes at least
)

// intake bounds what a link brings into memory: a worker that tells more waits for
// itself, and for nobody else (P21). One goroutine takes.
type intake struct {
	held  atomic.Int64
	freed chan struct{}
}

func newIntake() *intake { return &intake{freed: make(chan struct{}, 1)} }

// take waits until there is room for n bytes; give gives them back.
func (i *intake) take(ctx context.Context, n int64) error {
	for held := i.held.Load(); held > 0 && held+n > intakeBytes; held = i.held.Load() {
		select {
		case <-i.freed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	i.held.Add(n)
	return nil
}

func (i *intake) give(n int64) {
	i.held.Add(-n)
	select {
	case i.freed <- struct{}{}:
	default: // it looks anyhow
	}
}
