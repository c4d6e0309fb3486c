package scheduler

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
)

// Connector opens links to workers; core/rpc implements it over the Session
// stream.
type Connector interface {
	Connect(ctx context.Context, w registry.Worker, term uint64) (Link, error)
}

// Link carries frames to and from one worker. Send and Recv are called by one
// goroutine each; Close makes both return.
type Link interface {
	Send(Down) error
	Recv() (Up, error)
	Close() error
}

// links keeps one link to every worker that should have one.
type links struct {
	connector Connector
	term      uint64
	log       *slog.Logger
	deliver   func(context.Context, Event)

	mu     sync.Mutex // guards the fields below
	byID   map[job.WorkerID]*connection
	number uint64
	closed bool
	wait   sync.WaitGroup
}

// connection is the keeper of one worker's link.
type connection struct {
	worker registry.Worker
	cancel context.CancelFunc
	out    *outbox
}

// outbox gathers what waits to be sent to one worker. A goroutine carries it while
// there is something: of many workers most are told nothing most of the time, and
// a goroutine that waits costs more memory than all else that is kept here.
type outbox struct {
	mu      sync.Mutex // guards the fields below
	down    Down
	link    Link   // nil: there is none
	lost    func() // called when it carries nothing any more
	carries bool   // somebody does
	wait    sync.WaitGroup
}

func newLinks(c Connector, term uint64, log *slog.Logger, deliver func(context.Context, Event)) *links {
	return &links{connector: c, term: term, log: log, deliver: deliver, byID: map[job.WorkerID]*connection{}}
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

// send queues a frame. What is queued while the link is down is dropped with
// it: the reconciliation after the next hello orders it again.
func (l *links) send(id job.WorkerID, d Down) {
	l.mu.Lock()
	c := l.byID[id]
	l.mu.Unlock()
	if c != nil {
		c.out.add(d)
	}
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
)

// keep connects again and again until ctx ends. What is wrong is logged when it
// begins, not at every try.
func (l *links) keep(ctx context.Context, c *connection) {
	backoff, trouble := minBackoff, ""
	for ctx.Err() == nil {
		link, err := l.connector.Connect(ctx, c.worker, l.term)
		if err == nil {
			var talked bool
			if talked, err = l.use(ctx, c, link, trouble != ""); talked {
				backoff, trouble, err = minBackoff, "", nil // broken links are every day's business
			}
		}
		if reason := errs.ReasonOf(err); err != nil && ctx.Err() == nil && trouble != "in "+reason {
			trouble = "in " + reason
			l.complain(c, err, reason)
		}
		select {
		case <-ctx.Done():
		case <-time.After(backoff/2 + rand.N(backoff)):
			backoff = min(2*backoff, maxBackoff)
		}
	}
}

func (l *links) complain(c *connection, err error, reason string) {
	if reason == job.ReasonFenced { // P3
		l.log.Error("this scheduler's records are older than what the worker has been told; it must not command it. "+
			"If they were restored from a backup and shall be in force: drover scheduler restore --term",
			"worker", c.worker.Name, "term", l.term, "error", err)
		return
	}
	l.log.Warn("worker cannot be reached, trying on", "worker", c.worker.Name, "address", c.worker.Address, "error", err)
}

// use carries frames until the link breaks, which the error explains, or ctx
// ends. talked tells that the worker took part: one that refuses the session
// says nothing.
func (l *links) use(ctx context.Context, c *connection, link Link, again bool) (talked bool, err error) {
	l.mu.Lock()
	l.number++
	number := l.number
	l.mu.Unlock()
	id := c.worker.ID
	both, cancel := context.WithCancel(ctx)
	closed := make(chan struct{})
	context.AfterFunc(both, func() {
		defer close(closed)
		_ = link.Close() // makes Recv below and Send in carry return
	})
	c.out.open(link, cancel)
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
		l.deliver(ctx, Event{Up: &UpEvent{Worker: id, Link: number, Up: up}})
	}
	cancel()
	<-closed
	c.out.shut()
	if !talked {
		return false, err
	}
	// When ctx has ended, a newer link, or nobody, wants to know.
	l.deliver(ctx, Event{Up: &UpEvent{Worker: id, Link: number, Closed: true}})
	return true, err
}

// open lets what is added from now on be sent over a link.
func (o *outbox) open(link Link, lost func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.link, o.lost = link, lost
}

// shut drops what waits, and returns when nothing is being sent any more.
func (o *outbox) shut() {
	o.mu.Lock()
	o.link, o.lost, o.down = nil, nil, Down{}
	o.mu.Unlock()
	o.wait.Wait() // nobody begins without a link
}

// add queues a frame; without a link it is dropped.
func (o *outbox) add(d Down) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.link == nil {
		return
	}
	o.down.Starts = append(o.down.Starts, d.Starts...)
	o.down.Stops = append(o.down.Stops, d.Stops...)
	o.down.Acks = append(o.down.Acks, d.Acks...)
	o.down.Forgets = append(o.down.Forgets, d.Forgets...)
	if !o.carries && !o.down.Empty() {
		o.carries = true
		link, lost := o.link, o.lost
		o.wait.Go(func() { o.carry(link, lost) })
	}
}

// take returns what waits; when there is nothing, nobody carries any more.
func (o *outbox) take() Down {
	o.mu.Lock()
	defer o.mu.Unlock()
	d := o.down
	o.down = Down{}
	o.carries = !d.Empty()
	return d
}

// carry sends what gathers, until there is nothing; while one frame is sent the
// next one fills.
func (o *outbox) carry(link Link, lost func()) {
	for d := o.take(); !d.Empty(); d = o.take() {
		if err := link.Send(d); err != nil {
			lost()
		}
	}
}
