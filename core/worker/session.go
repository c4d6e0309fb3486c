package worker

import (
	"context"
	"fmt"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

// reportsPerFrame bounds a frame; a report is a few hundred bytes.
const reportsPerFrame = 512

// keysPerFrame bounds what a frame confirms; a key is some 50 bytes.
const keysPerFrame = 4096

// SessionHello opens a session: who commands, and which worker is meant.
type SessionHello struct {
	Term     uint64
	History  job.History // of the scheduler's records
	WorkerID job.WorkerID
}

// Down is one frame of commands.
type Down struct {
	Starts  []job.StartOrder
	Stops   []job.StopOrder
	Acks    []job.Key // final reports that are durable at the scheduler
	Forgets []job.Key
}

// Up is one frame of news.
type Up struct {
	Hello   *Hello
	Reports []job.Report
	// Forgotten are attempts of Forgets of which nothing is kept any more.
	Forgotten []job.Key
	Scripts   *job.ScriptIndex // nil: unchanged
	Runners   []job.RunnerInfo // nil: unchanged
}

// Hello introduces the worker. Complete is set on the frame that carries the
// last report of the attempts that it had when the session began.
type Hello struct {
	BootID     string
	InstanceID string
	Complete   bool
	Lapses     uint64 // how often the lease has run out
}

// session is the one open session.
type session struct{ cancel context.CancelCauseFunc }

// Session serves a scheduler until the context ends, down is closed, or up
// fails. First come all live and all unacknowledged attempts, then changes.
// Reports are states: a slow scheduler misses steps between, never the last
// one. A new session ends the one before; one of a lower term than any before
// is refused (P3).
func (w *Worker) Session(ctx context.Context, hello SessionHello, down <-chan Down, up func(Up) error) error {
	const op = "open session"
	if err := w.greet(ctx, hello); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &session{cancel: cancel}
	w.replace(s)
	defer w.end(s)
	reader := make(chan struct{})
	go func() {
		defer close(reader)
		w.receive(ctx, hello.Term, down, cancel)
	}()
	err := w.send(ctx, up)
	cancel(nil)
	<-reader
	if cause := context.Cause(ctx); errs.KindOf(cause) == errs.Precondition {
		return cause
	}
	if err != nil {
		return errs.E(op, errs.Unavailable, "", err)
	}
	return nil
}

// greet checks who speaks and whom they mean.
func (w *Worker) greet(ctx context.Context, hello SessionHello) error {
	const op = "open session"
	select {
	case <-w.ready:
	case <-w.ended:
		return errEnding(op)
	case <-ctx.Done():
		return errs.E(op, errs.Canceled, "", ctx.Err())
	}
	if id, ok := w.identity.get(); !ok || id != hello.WorkerID {
		return errs.E(op, errs.Precondition, "WRONG_WORKER", fmt.Errorf("this is worker %s, not %s", id, hello.WorkerID))
	}
	_, err := w.ask(ctx, op, func(t Ticket) Event { return TermSeen{Term: hello.Term, History: hello.History, Ticket: t} })
	return err
}

// replace ends the session before. It does not wait for it: after a partition
// its last frame may be stuck in a dead connection for minutes.
func (w *Worker) replace(s *session) {
	w.mu.Lock()
	old := w.session
	w.session = s
	w.mu.Unlock()
	if old != nil {
		old.cancel(errs.E("serve session", errs.Precondition, "SESSION_REPLACED", fmt.Errorf("a newer session took over")))
	}
}

// end forgets a session that is still the present one.
func (w *Worker) end(s *session) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.session == s {
		w.session = nil
	}
}

// receive turns frames into events. It takes the next frame only once the one
// before is on disk: that bounds what waits (P16).
func (w *Worker) receive(ctx context.Context, term uint64, down <-chan Down, cancel context.CancelCauseFunc) {
	for {
		select {
		case f, ok := <-down:
			if !ok {
				cancel(nil)
				return
			}
			f.Acks = w.board.landed(f.Acks)
			w.inbox.put(f.events(term)...)
			if _, err := w.ask(ctx, "take frame", func(t Ticket) Event { return Sync{Ticket: t} }); err != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

func (f *Down) events(term uint64) []Event {
	evs := make([]Event, 0, len(f.Starts)+len(f.Stops)+2)
	for _, o := range f.Starts {
		if checkKey("start attempt", o.Key) == nil {
			evs = append(evs, StartAsked{Order: o, Session: term})
		}
	}
	for _, o := range f.Stops {
		if checkKey("stop attempt", o.Key) == nil {
			evs = append(evs, StopAsked{Order: o, Session: term})
		}
	}
	if len(f.Acks) > 0 {
		evs = append(evs, Acked{f.Acks})
	}
	if len(f.Forgets) > 0 {
		evs = append(evs, Forgotten{f.Forgets})
	}
	return evs
}

// send sends hello, what there is, and then what changes.
func (w *Worker) send(ctx context.Context, up func(Up) error) error {
	number, ripe := w.board.begin()
	defer w.board.end(number)
	hello := &Hello{BootID: w.cfg.BootID, InstanceID: w.instance, Lapses: w.lapsed()}
	sent := uint64(0)
	for ctx.Err() == nil {
		reports, more := w.board.collect(number, reportsPerFrame)
		forgotten, unsaid := w.board.confirmed(number, keysPerFrame)
		version, indexed := w.indexVersion()
		f := Up{Reports: reports, Forgotten: forgotten}
		if hello != nil {
			f.Hello = hello
			hello.Complete = !more
		}
		if version != sent && !more {
			index := w.cfg.Scripts.Index()
			f.Scripts, f.Runners = &index, job.BoundRunners(w.cfg.Runners.Runners())
			sent = version
		}
		if f.Hello != nil || len(f.Reports)+len(f.Forgotten) > 0 || f.Scripts != nil {
			if err := up(f); err != nil {
				return fmt.Errorf("send frame: %w", err)
			}
		}
		if hello != nil {
			// The next frame is another one; the sent one is the receiver's.
			next := *hello
			hello = &next
			if f.Hello.Complete {
				hello = nil
			}
		}
		if more || unsaid {
			continue
		}
		select {
		case <-w.board.wake:
			sleep(ctx, gate(w.live(), len(f.Reports)))
		case <-ripe:
			w.board.ripen(number, w.live())
		case <-indexed:
		case <-ctx.Done():
		}
	}
	return nil
}

// live is how many attempts are under way.
func (w *Worker) live() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.counts.Live
}

// indexVersion returns how often scripts or runners have changed, and a channel
// that is closed at the next change.
func (w *Worker) indexVersion() (uint64, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.indexes + 1, w.indexed
}

// watchIndexes turns the hints of scripts and runners into versions, which any
// number of sessions in turn can compare.
func (w *Worker) watchIndexes(ctx context.Context) {
	for {
		select {
		case <-w.cfg.Scripts.Changed():
		case <-w.cfg.Runners.Changed():
		case <-ctx.Done():
			return
		}
		w.mu.Lock()
		w.indexes++
		close(w.indexed)
		w.indexed = make(chan struct{})
		w.mu.Unlock()
	}
}
