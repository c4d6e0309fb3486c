package worker

import (
	"fmt"
	"slices"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/journal"
)

// reasonUnkillable is core/cgroup's word for processes that withstand SIGKILL.
const reasonUnkillable = "UNKILLABLE"

// stop takes an order to stop.
func (m *Machine) stop(e StopAsked) {
	o := e.Order
	term := max(o.Fence.Term, e.Session)
	if term < m.fence.Term {
		m.reply(e.Ticket, nil, errs.E("stop attempt", errs.Precondition, job.ReasonFenced,
			fmt.Errorf("order of term %d comes after one of term %d", term, m.fence.Term)))
		return
	}
	m.raise(term)
	a := m.attempts[o.Key]
	if a == nil {
		m.bury(e)
		return
	}
	if a.phase != phaseDone {
		grace := a.grace
		if o.Grace != nil {
			grace = *o.Grace
		}
		m.end(a, reasonOr(o.Reason), grace)
	}
	switch {
	case a.phase != phaseDone && e.Wait:
		a.enders = append(a.enders, e.Ticket)
	default:
		m.reply(e.Ticket, a.report, nil)
		m.emit(Publish{Report: a.report, Acked: a.acked})
	}
}

func reasonOr(reason string) string {
	if reason == "" {
		return job.ReasonUser
	}
	return reason
}

// bury leaves a tombstone for an attempt not seen yet: its late start will be
// refused (P2). To the scheduler it is stopped, with no process left.
func (m *Machine) bury(e StopAsked) {
	o := e.Order
	a := m.insert(o.Key, o.Fence)
	m.record(journal.Record{
		Kind: journal.KindStop, Key: o.Key, Fence: job.Fence{Term: o.Fence.Term},
		Stop: &journal.Stop{Reason: reasonOr(o.Reason)},
	})
	m.tombstone(a, reasonOr(o.Reason))
	m.emit(Publish{Report: a.report})
	m.reply(e.Ticket, a.report, nil)
}

func (m *Machine) tombstone(a *attempt, reason string) {
	a.tombstone = true
	a.phase = phaseDone
	m.live--
	a.stopReason = reason
	a.report = a.next(func(r *job.Report) {
		r.State, r.Reason, r.Message = job.Stopped, reason, "it was stopped before its start reached the worker"
		r.StopProof = &job.StopProof{Method: neverStartedProof}
		r.End = m.now.Wall
	})
}

// end makes a stop durable and begins it, or hastens the one that is on its way.
func (m *Machine) end(a *attempt, reason string, grace time.Duration) {
	by := m.now.Boot + grace
	if a.stopping() {
		if by < a.stopBy {
			m.hasten(a, grace)
		}
		return
	}
	if a.phase == phaseFinishing && a.room == "" {
		// No process is left and the result is known: there is nothing to stop.
		return
	}
	a.stopReason, a.stopBy = reason, by
	a.stopFirst = a.exit == nil && !a.mainGone
	m.schedule(a, dueTimeout, 0)
	m.schedule(a, dueIdle, 0)
	// P9: durable before anybody is answered or any signal is sent.
	m.record(journal.Record{Kind: journal.KindStop, Key: a.key, Stop: &journal.Stop{Reason: reason, Grace: grace}})
	m.report(a, func(r *job.Report) { r.State, r.Reason, r.Message = job.Stopping, reason, "" })
	switch a.phase {
	case phaseWaiting:
		m.waiting = slices.DeleteFunc(m.waiting, func(w *attempt) bool { return w == a })
		m.neverStarted(a)
	case phaseRunning, phaseSettling:
		m.stopGroup(a)
	case phaseFinishing:
		m.finish(a) // which gives up what waits for room
	case phasePreparing, phaseLaunching:
		// What is on its way arrives first: a process that appears after the
		// cgroup was found empty would escape.
	case phaseStopping, phaseDone:
		// Already on its way out.
	}
}

// hasten shortens the grace of a stop that is on its way.
func (m *Machine) hasten(a *attempt, grace time.Duration) {
	a.stopBy = m.now.Boot + grace
	m.record(journal.Record{Kind: journal.KindStop, Key: a.key, Stop: &journal.Stop{Reason: a.stopReason, Grace: grace}})
	if a.phase == phaseStopping && a.proof == nil {
		m.emitStop(a, grace)
	}
}

// stopGroup begins to end every process, with what is left of the grace.
func (m *Machine) stopGroup(a *attempt) {
	a.phase = phaseStopping
	m.emitStop(a, max(0, a.stopBy-m.now.Boot))
}

func (m *Machine) emitStop(a *attempt, grace time.Duration) {
	m.emit(StopGroup{Key: a.key, StopRequest: a.whom(grace)})
}

// groupStopped goes on once no process is left, or says why one is.
func (m *Machine) groupStopped(a *attempt, e GroupStopped) {
	if a.phase != phaseStopping || a.proof != nil {
		return
	}
	if e.Err != nil {
		// P9: it stays STOPPING and says why; the worker goes on trying.
		m.withstand(a, errs.ReasonOf(e.Err) == reasonUnkillable)
		m.report(a, func(r *job.Report) { r.Message = e.Err.Error() })
		m.schedule(a, dueRetry, m.now.Boot+retryStop)
		return
	}
	m.withstand(a, false)
	proof := e.Proof
	a.proof = &proof
	if a.exit != nil || a.mainGone {
		m.finish(a)
		return
	}
	// The plugin reaps it in a moment; its word is the better report.
	m.schedule(a, dueExit, m.now.Boot+exitPatience)
}

// quiet decides about an attempt that may have been silent for too long.
func (m *Machine) quiet(a *attempt, e Quiet) {
	if a.phase != phaseRunning || a.stopping() || a.idle == 0 {
		return
	}
	if e.For >= a.idle {
		m.end(a, job.ReasonIdleTimeout, a.grace)
		return
	}
	m.schedule(a, dueIdle, m.now.Boot+a.idle-e.For)
}

// passed acts on a deadline of an attempt.
func (m *Machine) passed(a *attempt, kind deadlineKind) {
	switch kind {
	case dueTimeout:
		m.end(a, job.ReasonTimeout, a.grace)
	case dueIdle:
		m.emit(ProbeIdle{Key: a.key})
	case dueRetry:
		m.emitStop(a, 0)
	case dueExit:
		// No process is left: that much is proved, its code is not (P6).
		a.lostReason = job.ReasonNoProcess
		m.finish(a)
	case dueKindsEnd:
	}
}
