package scheduler

import (
	"fmt"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
)

// up takes a frame of a worker, or the news that its link opened or closed.
func (m *Machine) up(ev *UpEvent) {
	if ev.Opened {
		m.links[ev.Worker] = &link{number: ev.Link, open: true, seen: map[job.Key]bool{}}
		m.uncommanded(ev.Worker)
		delete(m.unlisted, ev.Worker)
		return
	}
	l := m.links[ev.Worker]
	if l == nil || l.number != ev.Link {
		return
	}
	if ev.Closed {
		delete(m.links, ev.Worker)
		m.uncommanded(ev.Worker)
		return
	}
	if ev.Up.Hello != nil {
		l.hello = *ev.Up.Hello
		l.hello.BootID = job.Shorten(l.hello.BootID, job.MaxName)
		l.hello.InstanceID = job.Shorten(l.hello.InstanceID, job.MaxName)
		m.workers.SetBoot(ev.Worker, l.hello.BootID)
		m.workers.SetLapses(ev.Worker, l.hello.Lapses)
	}
	if ev.Up.Scripts != nil {
		m.workers.SetScripts(ev.Worker, *ev.Up.Scripts)
		m.changed(ev.Worker)
	}
	if ev.Up.Runners != nil {
		m.workers.SetRunners(ev.Worker, job.BoundRunners(ev.Up.Runners))
		m.changed(ev.Worker)
	}
	var acks []job.Key
	for i := range ev.Up.Reports {
		r := &ev.Up.Reports[i]
		r.Bound()
		// Only what reconcile asks for is kept: a worker may tell of any number of
		// attempts that nobody knows (P21).
		if e := m.placed[ev.Worker][r.Job]; !l.complete && e != nil && e.Attempt == r.Attempt {
			l.seen[r.Key] = true
		}
		if !m.report(ev, l, r) {
			m.unrecord(ev.Worker, l.number, r)
			continue
		}
		m.dropUnrecorded(ev.Worker, r.Key)
		if r.State.Terminal() {
			acks = append(acks, r.Key)
		}
	}
	m.forgotten(ev, l)
	if l.hello.Complete && !l.complete {
		l.complete = true
		m.commanded(ev.Worker)
		m.reached(ev.Worker)
		m.reconcile(ev.Worker, l)
		l.seen = nil
		m.sweepStrays(ev.Worker, l.number)
		m.sweepUnrecorded(ev.Worker, l.number)
	}
	if l.complete {
		m.stopStrays(ev.Worker, l.number)
	}
	if len(acks) > 0 {
		// The ack leaves after the commit of this round: the worker may then forget.
		m.effect(Effect{Send: &Send{ev.Worker, Down{Acks: acks}}})
	}
}

func (m *Machine) changed(id job.WorkerID) {
	if w, ok := m.workers.Get(id); ok {
		m.effect(Effect{Worker: &w})
		m.dirty = true
	}
}

// report applies what a worker says of an attempt. known is false for one of which
// there is no record: the worker is to keep what it knows.
func (m *Machine) report(ev *UpEvent, l *link, r *job.Report) (known bool) {
	e := m.jobs[r.Job]
	if e == nil || e.Attempt != r.Attempt || e.Worker != ev.Worker || !e.State.Live() {
		return m.settled(ev, l, r)
	}
	if r.Sequence <= e.Result.Sequence {
		return true
	}
	if !r.State.Known() {
		m.foreign(e, r.State)
		return true
	}
	m.apply(e, r)
	return true
}

// apply takes over a newer report of the present attempt.
func (m *Machine) apply(e *entry, r *job.Report) {
	next := r.State
	switch {
	case e.State == job.Stopping && next == job.Rejected:
		next = job.Stopped // the tombstone of our own stop refused the start: nothing ran
	case e.State != job.Stopping && next == job.Stopped:
		// The worker began the stop itself and its STOPPING was missed: reports
		// are states, a slow link shows the last one only.
		e.State, e.Reason, e.Message = job.Stopping, r.Reason, ""
		m.put(e)
	}
	if !next.Live() && !e.State.CanBecome(next) {
		m.effect(Effect{Unexpected: fmt.Sprintf("job %s: %s -> %s", e.ID, e.State, next)})
		return
	}
	e.Result = *r
	if e.Attempt > e.Spec.Retry.Max {
		m.release(e) // the worker has it on disk, and there is no further attempt
	}
	if e.Reason == job.ReasonOldScheduler {
		e.Reason, e.Message = r.Reason, r.Message
	}
	switch {
	case next == e.State:
		e.Message = r.Message // what it waits for, if it does
		if next != job.Stopping {
			e.Reason = r.Reason
		}
		m.put(e)
	case e.State == job.Stopping && next.Live():
		m.put(e)
	case next == job.Dispatched: // accepted, not started yet
		m.put(e)
	case next.Terminal():
		m.finish(e, next, r.Reason, r.Message)
	default:
		e.State, e.Reason, e.Message = next, r.Reason, r.Message
		if next == job.Stopping { // the worker began it: a timeout, a limit
			e.stop = job.StopOrder{Key: e.attempt(), Fence: e.Fence, Reason: r.Reason}
		}
		m.put(e)
	}
}

// foreign keeps a job as it is whose worker, a newer one, reports a state that was
// made up after this version. The report is not acknowledged: the worker keeps it,
// and tells it again when it is asked by a scheduler that knows it (P6, P11).
func (m *Machine) foreign(e *entry, s job.State) {
	message := fmt.Sprintf("its worker %s reports state %d, which this scheduler does not know: the worker is newer than the scheduler", e.WorkerName, s)
	if e.Reason == job.ReasonOldScheduler && e.Message == message {
		return
	}
	e.Reason, e.Message = job.ReasonOldScheduler, message
	m.effect(Effect{Unexpected: fmt.Sprintf("job %s: %s", e.ID, message)})
	m.put(e)
}

// reconcile settles every live job of a worker after it has told all it has:
// the worker knows it, or never got it, or it is gone (P4, P15).
func (m *Machine) reconcile(id job.WorkerID, l *link) {
	for _, e := range m.onWorker(id) {
		known := l.seen[e.attempt()]
		switch {
		case e.State == job.Stopping:
			// Known or not: a stop of an unknown attempt leaves a tombstone.
			m.send(id, Down{Stops: []job.StopOrder{e.stop}})
		case known:
		case e.State == job.Dispatched && e.Result.Sequence == 0 && l.hello.BootID == e.BootID:
			// Never confirmed: the same order again is harmless (P2), for the worker
			// remembers what it was told. After a reboot it may not.
			if e.resent = true; m.old != "" {
				continue
			}
			m.send(id, Down{Starts: []job.StartOrder{m.order(e)}})
		default:
			m.lose(e, l)
		}
	}
}

// lose settles an attempt that its worker had and does not know any more.
func (m *Machine) lose(e *entry, l *link) {
	if l.hello.BootID != e.BootID {
		m.finish(e, job.Lost, job.ReasonReboot, "its worker's host was rebooted")
		return
	}
	m.finish(e, job.Lost, job.ReasonNoProcess, "its worker has no record and no process of it")
}

// refused ends an attempt whose order cannot be sent: it never began (P2). Whatever
// the worker has told of it meanwhile counts more.
func (m *Machine) refused(r *Refusal) {
	e := m.jobs[r.Key.Job]
	if e == nil || e.attempt() != r.Key || e.Worker != r.Worker || e.State != job.Dispatched || e.Result.Sequence > 0 {
		return
	}
	m.effect(Effect{Refused: r})
	m.finish(e, job.Rejected, r.Reason, r.Message)
}

// trouble notes that the link to a worker breaks again and again, or that it holds.
func (m *Machine) trouble(t *Trouble) {
	if m.workers.SetTrouble(t.Worker, m.now.Round(0), registry.LinkBreaks, t.Message) {
		m.changed(t.Worker)
	}
}
