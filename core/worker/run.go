package worker

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/journal"
)

// This file is the way from a prepared order to a running process, and from its
// exit to the final report.

// neverStartedProof is the proof of a stop that found nothing to end.
const neverStartedProof = "never-started"

// reasonShuttingDown is a plugin's word for a start that it did not take
// (job.ReasonRunnerFailed is its host's), and maxMoves how many plugins in a row may say it.
const (
	reasonShuttingDown = "SHUTTING_DOWN"
	maxMoves           = 8
)

// ticksPerSecond is USER_HZ, in which /proc/PID/stat counts; it is 100 on
// every Linux that Go runs on (proc_pid_stat(5), field 22).
const ticksPerSecond = 100

// prepared goes on with an order once all is taken, or ends it.
func (m *Machine) prepared(a *attempt, e Prepared) {
	switch {
	case a.phase == phaseLaunching && a.moving && e.Refusal == nil:
		a.moving = false
		if a.stopping() {
			a.noProcess = true
			m.finish(a)
			return
		}
		in := e.Intent
		m.record(journal.Record{Kind: journal.KindIntent, Key: a.key, Fence: a.fence, Intent: &in})
		a.report = a.next(func(r *job.Report) { r.Runner, r.RunnerVersion = in.Runner.Name, in.Runner.Version })
		m.emit(Publish{Report: a.report, Quiet: true})
		m.emit(StartProcess{Key: a.key})
		return
	case a.phase != phasePreparing:
		return
	case e.Refusal != nil:
		// Proved never started, whatever a stop asked meanwhile.
		if a.stopping() {
			m.neverStarted(a)
			return
		}
		m.refused(a, e.Refusal)
		return
	case a.stopping():
		m.neverStarted(a)
		return
	}
	in := e.Intent
	a.mark = in.Mark
	a.phase = phaseLaunching
	if a.leased {
		m.keepLease()
	}
	// P2: from here on a duplicate finds the intent and starts nothing.
	m.record(journal.Record{Kind: journal.KindIntent, Key: a.key, Fence: a.fence, Intent: &in})
	a.report = a.next(func(r *job.Report) {
		r.ScriptSHA256, r.Runner, r.RunnerVersion = in.Script.SHA256, in.Runner.Name, in.Runner.Version
	})
	m.emit(Publish{Report: a.report, Quiet: true})
	m.answer(a)
	m.emit(StartProcess{Key: a.key})
	a.spec = nil
}

// refused ends an attempt whose order cannot be carried out. A command that is
// not there is a spawn error, seen by the worker instead of the runner.
func (m *Machine) refused(a *attempt, err error) {
	reason := cmp.Or(errs.ReasonOf(err), job.ReasonRunnerFailed)
	if reason != job.ReasonSpawn {
		m.reject(a, reason, refusalText(err))
		return
	}
	m.conclude(a, false, func(r *job.Report) {
		r.State, r.Reason, r.Message, r.End = job.Failed, reason, refusalText(err), m.now.Wall
	})
}

// refusalText is the cause in one line, with the field and the hint.
func refusalText(err error) string {
	var e *errs.Error
	if !errors.As(err, &e) {
		return err.Error()
	}
	text := e.Error()
	if e.Hint != "" {
		text += " (" + e.Hint + ")"
	}
	return text
}

// neverStarted ends an attempt that was stopped before it had a process.
func (m *Machine) neverStarted(a *attempt) {
	m.conclude(a, false, func(r *job.Report) {
		r.State, r.Reason, r.Message = job.Stopped, a.stopReason, "it was stopped before its process was made"
		r.StopProof = &job.StopProof{Method: neverStartedProof}
		r.End = m.now.Wall
	})
}

// launchRefused ends an attempt that no plugin took.
func (m *Machine) launchRefused(a *attempt, e LaunchRefused) {
	if a.phase != phaseLaunching {
		return
	}
	if e.Again && !a.stopping() && a.moves < maxMoves {
		a.moving = true
		a.moves++
		m.emit(Relaunch{Key: a.key})
		return
	}
	a.moving = false
	a.noProcess = true
	a.exit = &journal.Exit{SpawnError: refusalText(e.Err), Wall: m.now.Wall}
	a.lostReason = cmp.Or(errs.ReasonOf(e.Err), job.ReasonRunnerFailed)
	m.finish(a)
}

// started notes that the process exists.
func (m *Machine) started(a *attempt, e ProcessStarted) {
	if a.pid != 0 || a.phase > phaseRunning {
		return
	}
	s := e.Started
	a.pid, a.startTicks = s.PID, s.StartTicks
	a.phase = phaseRunning
	if ticked := time.Duration(s.StartTicks) * (time.Second / ticksPerSecond); ticked > 0 && ticked < m.now.Boot {
		s.Boot = ticked
	} else {
		s.Boot = m.now.Boot
	}
	m.record(journal.Record{Kind: journal.KindStarted, Key: a.key, Started: &s})
	m.emit(Underway{Key: a.key})
	if a.stopping() {
		m.report(a, func(r *job.Report) { r.PID, r.Start = s.PID, s.Wall })
		m.stopGroup(a)
		return
	}
	m.report(a, func(r *job.Report) { r.State, r.PID, r.Start = job.Running, s.PID, s.Wall })
	m.arm(a, s)
}

// arm sets the timeouts of a running attempt. They count from the start of the
// process, also after a restart of the worker (P14).
func (m *Machine) arm(a *attempt, s journal.Started) {
	if a.timeout > 0 {
		m.schedule(a, dueTimeout, s.Boot+a.timeout)
	}
	if a.idle > 0 {
		m.schedule(a, dueIdle, max(m.now.Boot, s.Boot)+a.idle)
	}
}

// exited notes how the main process ended.
func (m *Machine) exited(e ProcessExited) {
	a := m.attempts[e.Key]
	if a == nil || a.phase == phaseDone {
		// Already on disk, or forgotten: the plugin may forget it, too.
		m.emit(AckExit{Key: e.Key})
		return
	}
	if a.exit != nil || a.phase < phaseLaunching || a.moving {
		return
	}
	x := e.Exit
	if m.move(a, &x) {
		return
	}
	a.exit = &x
	m.schedule(a, dueTimeout, 0)
	m.schedule(a, dueIdle, 0)
	m.record(journal.Record{Kind: journal.KindExited, Key: a.key, Exit: &x})
	if a.pid == 0 && e.PID != 0 {
		a.pid = e.PID
		// A short job may skip RUNNING.
		a.report = a.next(func(r *job.Report) {
			r.PID = e.PID
			if s := e.Started; s != nil {
				a.startTicks, r.Start = s.StartTicks, s.Wall
			}
		})
	}
	switch {
	case a.phase == phaseFinishing:
		// It came after all; the final report will have it.
	case x.SpawnError != "":
		a.noProcess = true
		m.finish(a)
	case a.phase == phaseStopping && a.proof == nil:
		// The proof of the stop comes and ends it.
	case a.phase == phaseStopping:
		m.finish(a)
	case a.stopping():
		m.stopGroup(a)
	default:
		m.settle(a)
	}
}

// move takes a start that was refused by a plugin on its way out to the next
// one (P11), and gives up on a runner that does not stay up. Nothing was
// started, so nothing is started twice.
func (m *Machine) move(a *attempt, x *journal.Exit) bool {
	leaving := strings.HasPrefix(x.SpawnError, reasonShuttingDown)
	if a.phase != phaseLaunching || a.pid != 0 || !leaving && !strings.HasPrefix(x.SpawnError, job.ReasonRunnerFailed) {
		return false
	}
	m.emit(AckExit{Key: a.key})
	err := errs.E("start attempt", errs.Unavailable, job.ReasonRunnerFailed, errors.New(x.SpawnError))
	m.launchRefused(a, LaunchRefused{Key: a.key, Err: err, Again: leaving})
	return true
}

func (m *Machine) settle(a *attempt) {
	a.phase = phaseSettling
	m.emit(Settle{Key: a.key, StopRequest: a.whom(0), Linger: a.linger, Detach: a.detach, OOM: a.maybeOOM(), Whole: a.whole()})
}

// maybeOOM tells whether the end looks like a kill by the kernel.
func (a *attempt) maybeOOM() bool {
	return a.exit != nil && (a.exit.Signal == "SIGKILL" || a.checkOOM && a.exit.Code != 0)
}

// gone notes that the process is gone and that nobody saw how (P4).
func (m *Machine) gone(a *attempt) {
	if a.exit != nil || a.mainGone || a.phase < phaseLaunching {
		return
	}
	a.mainGone = true
	a.lostReason = job.ReasonNoProcess
	switch a.phase {
	case phaseStopping:
		if a.proof != nil {
			m.finish(a)
		}
	default:
		// The proof that LOST needs: no process of it is left.
		a.phase = phaseStopping
		m.emitStop(a, 0)
	}
}

// unknown sends a start again that died with an earlier life of the worker,
// between its intent and the plugin (P7). It is safe: a plugin starts an id once,
// also when the first frame is still on its way to it.
func (m *Machine) unknown(a *attempt) {
	if a.phase != phaseLaunching || a.exit != nil || a.mainGone {
		return
	}
	m.emit(StartProcess{Key: a.key, Void: a.stopping()})
}

// settled goes on after the linger.
func (m *Machine) settled(a *attempt, e Settled) {
	if e.Finished != nil {
		m.finished(a, *e.Finished)
		return
	}
	if a.phase == phaseSettling && e.Left {
		// P10: children get the linger, then they are killed.
		a.phase = phaseStopping
		m.emitStop(a, 0)
	}
}

// whole tells whether no byte can have been lost when a worker died: there never was a
// process, or its plugin lived until its end and held the pipes. An end that an earlier
// life of the worker has seen proves neither: what waited for room then is lost if the
// plugin died with it.
func (a *attempt) whole() bool {
	return a.noProcess && !a.rebooted || a.exit != nil && a.exit.Evidence == job.Wait && !a.seen
}

// blocked tells that the output of an attempt waits for room. It stays what it is until
// then: a final report would have too small a size and no sum (P8).
func (m *Machine) blocked(a *attempt, e Blocked) {
	if a.phase != phaseSettling && a.phase != phaseFinishing || a.room == e.Why {
		return
	}
	a.room = e.Why
	m.report(a, func(r *job.Report) {
		if !a.stopping() {
			r.Reason = e.Why
		}
		r.Message = "its processes have ended, and the last of its output waits for room on the worker (" + e.Why + ")"
	})
}

// finish seals the output.
func (m *Machine) finish(a *attempt) {
	a.phase = phaseFinishing
	m.unschedule(a)
	m.emit(Finish{Key: a.key, NoWriter: a.noProcess, Whole: a.whole(), OOM: a.maybeOOM(), GiveUp: a.stopping()})
}

// finished turns all that is known into the final report.
func (m *Machine) finished(a *attempt, e Finished) {
	if a.phase < phaseStopping {
		return
	}
	m.conclude(a, e.Open, func(r *job.Report) {
		r.PID = 0
		r.Stdout, r.Stderr = e.Stdout, e.Stderr
		r.Message = ""
		if a.stopping() || a.proof != nil && a.proof.Termed+a.proof.Killed > 0 {
			r.StopProof = a.proof
		}
		if r.StopProof == nil && a.stopping() && a.noProcess {
			r.StopProof = &job.StopProof{Method: neverStartedProof}
		}
		r.End = m.now.Wall
		if a.exit != nil && !a.exit.Wall.IsZero() {
			r.End = a.exit.Wall
		}
		m.result(a, e, r)
		if e.Err != nil {
			r.Message = joinText(r.Message, "the output is incomplete: "+e.Err.Error())
		}
	})
}

func joinText(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

// result decides the terminal state. Codes and signals are reported only as
// they were observed (P6).
func (m *Machine) result(a *attempt, e Finished, r *job.Report) {
	x := a.exit
	if x != nil && x.SpawnError == "" {
		r.Evidence, r.Signal = x.Evidence, x.Signal
		if x.Signal == "" {
			code := x.Code
			r.ExitCode = &code
		}
	}
	over := a.policy == job.Fail && max(e.Stdout.Size, e.Stderr.Size) > a.limit
	switch {
	case a.stopFirst && !a.byUser():
		r.State, r.Reason = job.Failed, a.stopReason
		r.Message = m.limitText(a)
	case a.stopFirst:
		r.State, r.Reason = job.Stopped, a.stopReason
		if a.stopReason == job.ReasonPartition {
			r.Message = "its worker had no contact with the scheduler for a whole lease"
		}
	case x == nil:
		r.State, r.Reason, r.Message = job.Lost, a.lostReason, lostText(a.lostReason)
	case a.lostReason != "" && x.SpawnError != "":
		r.State, r.Reason, r.Message = job.Rejected, a.lostReason, x.SpawnError
	case x.SpawnError != "":
		r.State, r.Reason, r.Message = job.Failed, job.ReasonSpawn, x.SpawnError
	case over:
		r.State, r.Reason = job.Failed, job.ReasonOutputLimit
		r.Message = fmt.Sprintf("a stream passed the limit of %d bytes", a.limit)
	case x.Signal != "" && e.OOM:
		r.State, r.Reason, r.Message = job.Failed, job.ReasonOOM, "the kernel killed it for want of memory"
	case x.Signal != "":
		r.State, r.Reason, r.Message = job.Failed, job.ReasonSignal, "ended by "+x.Signal
	case x.Code != 0 && e.OOM:
		r.State, r.Reason = job.Failed, job.ReasonOOM
		r.Message = fmt.Sprintf("the kernel killed a process of it for want of memory; exit code %d", x.Code)
	case x.Code != 0:
		r.State, r.Reason, r.Message = job.Failed, job.ReasonExitCode, fmt.Sprintf("exit code %d", x.Code)
	default:
		r.State, r.Reason = job.Succeeded, ""
	}
}

// byUser tells a stop from outside from the worker's own limits.
func (a *attempt) byUser() bool {
	switch a.stopReason {
	case job.ReasonTimeout, job.ReasonIdleTimeout, job.ReasonOutputLimit:
		return false
	}
	return true
}

func (m *Machine) limitText(a *attempt) string {
	switch a.stopReason {
	case job.ReasonTimeout:
		return fmt.Sprintf("it ran longer than %s", a.timeout)
	case job.ReasonIdleTimeout:
		return fmt.Sprintf("it was silent for %s", a.idle)
	default:
		return fmt.Sprintf("a stream passed the limit of %d bytes", a.limit)
	}
}

func lostText(reason string) string {
	if reason == job.ReasonReboot {
		return "the host was rebooted while it ran"
	}
	return "no process of it is left and nobody saw how it ended"
}

// emptied refines the report of an attempt whose detached children are gone.
func (m *Machine) emptied(e Emptied) {
	a := m.attempts[e.Key]
	if a == nil || !a.open {
		return
	}
	a.open = false
	a.report = a.next(func(r *job.Report) { r.Stdout, r.Stderr = e.Stdout, e.Stderr })
	m.record(journal.Record{Kind: journal.KindDone, Key: a.key, Done: &journal.Done{Report: *a.report}})
	// Not acked: the scheduler should learn the checksums.
	m.confirm(a, false)
	m.emit(Publish{Report: a.report})
	m.emit(Cleanup{Key: a.key})
	if a.forget {
		m.forget(a)
	}
}
