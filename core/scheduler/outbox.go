package scheduler

import (
	"context"
	"fmt"
	"sync"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

// How orders take turns on one link.
const (
	largeOrder = 64 << 10 // bytes; a start that has more waits until what is small is sent
	turnBytes  = 1 << 20  // of input that small starts bring into memory at once
	// maxWaiting stops, acks and forgets wait for one worker. Each has some 20 bytes, and
	// goes as fast as the worker reads: one that has so many does not read (P21).
	maxWaiting = 1 << 18
)

// outbox gathers what waits to be sent to one worker. A goroutine carries it while
// there is something: of many workers most are told nothing most of the time, and
// a goroutine that waits costs more memory than all else that is kept here.
type outbox struct {
	mu      sync.Mutex // guards the fields below
	down    Down
	large   []job.StartOrder // oldest first
	line    *line            // nil: there is no link
	carries bool             // a goroutine does
	wait    sync.WaitGroup
}

// line is a link with what it takes to use it.
type line struct {
	link   Link
	input  func(job.ID) (job.Input, error)
	refuse func(key job.Key, reason, message string) // of orders that cannot be sent
	lost   func(error)                               // called when it carries nothing any more
}

// open lets what is added from now on be sent over a link.
func (o *outbox) open(l *line) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.line = l
}

// shut drops what waits, and returns when nothing is being sent any more. It tells which
// starts were never given to the link.
func (o *outbox) shut() (unsent []job.Key) {
	o.mu.Lock()
	for _, waiting := range [][]job.StartOrder{o.down.Starts, o.large} {
		for i := range waiting {
			unsent = append(unsent, waiting[i].Key)
		}
	}
	o.line, o.down, o.large = nil, Down{}, nil
	o.mu.Unlock()
	o.wait.Wait() // nobody begins without a link
	return unsent
}

// add queues a frame, or returns false: without a link it is dropped.
func (o *outbox) add(d Down) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.line == nil || d.Empty() {
		return o.line != nil
	}
	for i := range d.Starts {
		if s := &d.Starts[i]; s.Input+s.Spec.Bytes() > largeOrder {
			o.large = append(o.large, *s)
		} else {
			o.down.Starts = append(o.down.Starts, *s)
		}
	}
	o.down.Stops = append(o.down.Stops, d.Stops...)
	o.down.Acks = append(o.down.Acks, d.Acks...)
	o.down.Forgets = append(o.down.Forgets, d.Forgets...)
	if len(d.Revocations) > 0 {
		o.down.Revocations = d.Revocations
	}
	if n := len(o.down.Stops) + len(o.down.Acks) + len(o.down.Forgets); n > maxWaiting {
		o.down, o.large = Down{}, nil // what is needed of it comes again after the next hello
		o.line.lost(errs.E("send to the worker", errs.Exhausted, "OVERLOADED",
			fmt.Errorf("more than %d stops and acknowledgements wait for the worker to read them", maxWaiting)))
		o.line = nil
		return true
	}
	if !o.carries {
		o.carries = true
		l := o.line
		o.wait.Go(func() { o.carry(l) })
	}
	return true
}

// take returns what is sent next: what is small, and one large start. When there is
// nothing, nobody carries any more.
func (o *outbox) take() Down {
	o.mu.Lock()
	defer o.mu.Unlock()
	d := o.down
	o.down = Down{}
	n, input := 0, int64(0)
	for n < len(d.Starts) && input < turnBytes {
		input += d.Starts[n].Input
		n++
	}
	if n < len(d.Starts) {
		o.down.Starts = d.Starts[n:]
		d.Starts = d.Starts[:n:n]
	}
	if len(o.large) > 0 {
		d.Starts = append(d.Starts, o.large[0])
		o.large[0] = job.StartOrder{} // its memory may go
		o.large = o.large[1:]
	}
	o.carries = !d.Empty()
	return d
}

// carry sends what gathers, until there is nothing; while one frame is sent the
// next one fills.
func (o *outbox) carry(l *line) {
	for d := o.take(); !d.Empty(); d = o.take() {
		if err := l.send(d); err != nil {
			l.lost(err)
		}
	}
}

// send sends orders with the input that they lack. Those that cannot be sent are
// refused, and keep no other back.
func (l *line) send(d Down) error {
	whole := d.Starts[:0]
	for _, s := range d.Starts {
		if s.Input > 0 {
			in, err := l.input(s.Job)
			if errs.KindOf(err) == errs.NotFound {
				l.refuse(s.Key, errs.ReasonOf(err), err.Error())
				continue
			}
			if err != nil {
				return err
			}
			s.Spec.PutInput(in)
			s.Input = 0
		}
		whole = append(whole, s)
	}
	if d.Starts = whole; d.Empty() {
		return nil
	}
	tooLarge, err := l.link.Send(d)
	for _, key := range tooLarge {
		l.refuse(key, job.ReasonTooLarge, "its order is larger than a message to a worker may be")
	}
	return err
}

// line makes the line of a link.
func (l *links) line(ctx context.Context, w job.WorkerID, link Link, lost func(error)) *line {
	return &line{
		link: link, lost: lost,
		input: func(id job.ID) (job.Input, error) { return l.input(ctx, id) },
		refuse: func(key job.Key, reason, message string) {
			l.deliver(ctx, Event{Refused: &Refusal{Worker: w, Key: key, Reason: reason, Message: message}})
		},
	}
}
