package sim

import (
	"time"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/scheduler"
)

// conn is one session stream between a scheduler's and a worker's life.
type conn struct {
	w      *World
	k      *keeper
	p      *workerProc
	number uint64
	term   uint64
	open   bool
	talked bool
	down   *pipe[scheduler.Down]
	up     *pipe[scheduler.Up]
}

func newConn(w *World, k *keeper, p *workerProc, number uint64) *conn {
	c := &conn{w: w, k: k, p: p, number: number, term: k.s.disk.term, open: true}
	c.down = &pipe[scheduler.Down]{c: c, cut: func() bool { return p.h.cutDown }, take: p.receive}
	c.up = &pipe[scheduler.Up]{c: c, cut: func() bool { return p.h.cutUp }, take: c.hear}
	p.attach(c)
	return c
}

// hear hands a frame of the worker to the scheduler.
func (c *conn) hear(u scheduler.Up) {
	s := c.k.s
	if !c.talked {
		c.talked = true
		s.deliver(scheduler.Event{Up: &scheduler.UpEvent{Worker: c.k.worker.ID, Link: c.number, Opened: true}})
	}
	s.deliver(scheduler.Event{Up: &scheduler.UpEvent{Worker: c.k.worker.ID, Link: c.number, Up: u}})
}

// close ends the stream. What is on its way is lost, or comes when nobody
// expects it any more: after a newer stream, right when one begins, after a
// restart of the worker. Only a reboot of its host is sure to lose it.
func (c *conn) close() {
	if !c.open {
		return
	}
	c.open = false
	var unsent []job.StartOrder
	for i, frame := range c.down.queue {
		if i >= c.down.given {
			unsent = append(unsent, frame.Starts...)
		} else if h := c.p.h; c.w.chance(2) {
			boot := h.boot
			late := func() {
				if h.worker != nil && h.boot == boot {
					c.w.log("%s: a late frame of session %d", h.name, c.number)
					h.worker.take(frame, c.term)
				}
			}
			if c.w.chance(2) {
				h.late = append(h.late, late)
			} else {
				c.w.after(c.w.between(0, 10*time.Second), late)
			}
		}
	}
	if c.p.session == c {
		c.p.session = nil
	}
	k := c.k
	if k.conn == c {
		k.conn = nil
	}
	if !k.s.up || k.s.life != k.life {
		return
	}
	if len(unsent) > 0 && !k.gone { // links.use
		k.s.notSent(k.worker.ID, unsent)
	}
	if c.talked {
		k.s.deliver(scheduler.Event{Up: &scheduler.UpEvent{Worker: k.worker.ID, Link: c.number, Closed: true}})
	}
	if !k.gone {
		k.again()
	}
}

// keepalive is how long a stream lives without an answer.
const keepalive = 6 * time.Second

// pipe carries frames in order. While the network is cut they wait, until the
// stream is given up. Those that were not given to the network by then never arrive.
type pipe[T any] struct {
	c     *conn
	queue []T
	given int // how many of queue, from the front, the network has
	last  time.Duration
	since time.Duration // of the cut, 0 without one
	cut   func() bool
	take  func(T)
}

func (p *pipe[T]) send(frame T) {
	if !p.c.open {
		return
	}
	p.queue = append(p.queue, frame)
	blocked := p.cut() && p.c.w.chance(3) // the buffers of a network that is cut may be full
	give := func() {
		if !blocked {
			p.given = min(p.given+1, len(p.queue))
		}
	}
	late := p.c.w.chance(2) // its sender is slow
	if !late {
		give()
	}
	p.c.w.soon(func() {
		if late {
			give()
		}
		p.last = max(p.last, p.c.w.now)
		p.c.w.at(p.last, p.pump)
	})
}

// pump delivers the oldest frame.
func (p *pipe[T]) pump() {
	w := p.c.w
	switch {
	case !p.c.open || len(p.queue) == 0:
		return
	case p.cut():
		if p.since == 0 {
			p.since = w.now
		}
		if w.now-p.since > keepalive {
			w.log("session %d is given up", p.c.number)
			p.c.close()
			return
		}
		w.after(200*time.Millisecond, p.pump)
		return
	}
	p.since = 0
	frame := p.queue[0]
	p.queue, p.given = p.queue[1:], max(0, p.given-1)
	p.take(frame)
}

// call is a request of a worker to the scheduler; done hears nothing when it is
// lost on either way.
func (w *World) call(p *workerProc, ev scheduler.Event, done func(scheduler.Result, bool)) {
	answered := false
	finish := func(r scheduler.Result, ok bool) {
		if !answered && p.h.worker == p {
			answered = true
			done(r, ok)
		}
	}
	w.after(time.Second+w.between(0, time.Second), func() { finish(scheduler.Result{}, false) })
	w.soon(func() {
		if p.h.cutUp || !w.sched.up {
			return
		}
		w.sched.ask(ev, func(r scheduler.Result) {
			w.soon(func() {
				if !p.h.cutDown {
					finish(r, true)
				}
			})
		})
	})
}

// client is somebody who wants a job and does not give up.
type client struct {
	w    *World
	n    int
	job  Job
	id   job.ID // zero: not accepted yet
	done bool
}

func (w *World) newClient(n int) {
	c := &client{w: w, n: n, job: w.plan.Jobs[n]}
	w.at(c.job.At, c.submit)
	if c.job.Twice {
		w.at(c.job.At+w.between(0, 3*time.Second), c.submit)
	}
	if c.job.StopAt > 0 {
		w.at(c.job.StopAt, c.stop)
	}
}

func (c *client) name() string { return "r" + string(rune('A'+c.n)) }

// submit asks, and asks again with the same request id until it hears something.
func (c *client) submit() {
	w := c.w
	again := func() {
		if c.id == (job.ID{}) && !c.done {
			c.submit()
		}
	}
	w.after(2*time.Second, again)
	if !w.sched.serves() {
		return
	}
	ev := scheduler.Event{Submit: &scheduler.Submit{
		ID: w.newID(), Caller: scheduler.Caller{Name: "client", Role: "admin"}, RequestID: c.name(), Time: w.sched.instant(),
		Spec: job.Spec{
			Command: "job", Args: []string{c.name()}, Retry: c.job.Retry, Timeout: c.job.Timeout, Grace: c.job.Grace,
			Linger: 2 * time.Second, DetachChildren: c.job.Detach,
		},
	}}
	if c.job.Leased {
		ev.Submit.Spec.OnPartition = job.StopItself
	}
	w.soon(func() {
		if !w.sched.serves() {
			return
		}
		w.sched.ask(ev, func(r scheduler.Result) {
			if w.chance(10) {
				return // the answer is lost on its way
			}
			w.soon(func() { c.answered(r) })
		})
	})
}

func (c *client) answered(r scheduler.Result) {
	switch {
	case r.Err != nil:
		c.w.fail("the submit of %s was refused: %v", c.name(), r.Err)
	case c.id != (job.ID{}) && c.id != r.Job.ID:
		c.w.fail("P1: the request %s made two jobs, %s and %s", c.name(), c.id, r.Job.ID)
	case c.id == (job.ID{}):
		c.id = r.Job.ID
		c.w.check.accepted(c)
	}
}

// stop asks for the end of the job until it hears that this is durable.
func (c *client) stop() {
	w := c.w
	if c.done {
		return
	}
	w.after(3*time.Second, c.stop)
	if c.id == (job.ID{}) || !w.sched.serves() {
		return
	}
	w.soon(func() {
		if !w.sched.serves() {
			return
		}
		w.sched.ask(scheduler.Event{Stop: &scheduler.Stop{ID: c.id, Grace: &c.job.StopIn, Reason: job.ReasonUser}}, func(r scheduler.Result) {
			if r.Err != nil {
				w.fail("the stop of %s was refused: %v", c.name(), r.Err)
			}
			c.done = true
			w.check.stopDurable(c.id)
		})
	})
}
