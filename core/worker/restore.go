package worker

import (
	"cmp"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/journal"
)

// Restore takes over what a journal says, before the first Step. It returns
// what is to be done once the hands hold the attempts again (Reopen says which),
// as Step does.
func (m *Machine) Restore(now Instant, st *journal.State) []Effect {
	m.now = now
	m.out = nil
	m.fence, m.floor, m.life = st.Fence, st.Floor, st.Life
	// Sequences of this life of the worker lie above those of all before it.
	m.epoch = st.Epoch + 1
	m.restoreLease(st.Lease)
	m.record(journal.Record{Kind: journal.KindFence, Fence: m.fence, Floor: m.floor, Epoch: m.epoch})
	for i := range st.Attempts {
		m.restore(&st.Attempts[i])
	}
	m.passLease()
	if m.lease.over {
		m.stopUnleased()
	}
	out := m.out
	m.out = nil
	return out
}

func (m *Machine) restore(j *journal.Attempt) {
	a := m.insert(j.Key, j.Fence)
	switch {
	case j.Done != nil:
		m.restoreDone(a, j)
	case j.Intent == nil:
		// A stop and nothing else: the order itself never came to an intent, so
		// nothing was started and nothing may be (P2).
		reason := job.ReasonUser
		if j.Stop != nil {
			reason = cmp.Or(j.Stop.Reason, reason)
		}
		m.tombstone(a, reason)
		m.confirm(a, j.Acked)
		m.emit(Publish{Report: a.report, Acked: a.acked})
	default:
		m.restoreLive(a, j)
	}
}

func (m *Machine) restoreDone(a *attempt, j *journal.Attempt) {
	r := j.Done.Report
	a.report, a.open, a.phase = &r, j.Done.Open, phaseDone
	m.live--
	m.confirm(a, j.Acked)
	m.emit(Publish{Report: a.report, Acked: a.acked})
	m.emit(AckExit{Key: a.key})
	if a.open {
		if j.Intent != nil {
			a.mark = j.Intent.Mark
		}
		if j.Started != nil {
			a.pid, a.startTicks = j.Started.PID, j.Started.StartTicks
		}
		if a.forget = j.Done.Forget; a.forget {
			m.emit(Discard{Key: a.key})
		}
		m.emit(Watch{Key: a.key, StopRequest: a.whom(0)})
	}
}

func (m *Machine) restoreLive(a *attempt, j *journal.Attempt) {
	in := j.Intent
	a.bind(&in.Spec)
	m.need(a, 1)
	a.mark = in.Mark
	a.slot = true
	m.used++
	r := *a.report
	r.ScriptSHA256, r.Runner, r.RunnerVersion = in.Script.SHA256, in.Runner.Name, in.Runner.Version
	a.phase = phaseLaunching
	if s := j.Started; s != nil {
		a.pid, a.startTicks = s.PID, s.StartTicks
		a.phase = phaseRunning
		r.State, r.PID, r.Start = job.Running, s.PID, s.Wall
	}
	if j.Stop != nil {
		a.stopReason, a.stopBy = cmp.Or(j.Stop.Reason, job.ReasonUser), m.now.Boot+j.Stop.Grace
		a.stopFirst = j.StopFirst
		r.State, r.Reason = job.Stopping, a.stopReason
	}
	r.Bound()
	a.report = &r
	m.emit(Publish{Report: a.report})
	m.resume(a, j)
}

// resume goes on where the records end.
func (m *Machine) resume(a *attempt, j *journal.Attempt) {
	a.exit, a.seen = j.Exit, j.Exit != nil
	switch {
	case j.Intent.BootID != m.boot:
		// P4 (b): no process outlives its host's boot. An exit that was seen
		// before is still the result.
		a.noProcess, a.rebooted = true, true
		a.lostReason = ""
		if j.Exit == nil {
			a.lostReason = job.ReasonReboot
		}
		a.stopFirst = a.stopFirst && a.stopping()
		m.finish(a)
	case j.Exit != nil && j.Exit.SpawnError != "":
		a.noProcess = true
		m.finish(a)
	case j.Exit != nil && a.stopping():
		m.stopGroup(a)
	case j.Exit != nil:
		m.settle(a)
	case a.stopping() && j.Started != nil:
		m.stopGroup(a)
	case j.Started != nil:
		m.arm(a, *j.Started)
	}
	// Else: launching; the plugin's word comes (Launcher.Resume).
}

// Holding is an attempt whose pipes, group and script must be taken again.
type Holding struct {
	Key    job.Key
	Intent journal.Intent
	Held   Held
	Alive  bool // its process may exist: the plugin is to be asked
}

// Reopen lists what Restore's effects need, from the same state.
func Reopen(st *journal.State, boot string, id func(job.Key) string) []Holding {
	var all []Holding
	for _, a := range st.Attempts {
		if a.Intent == nil || a.Done != nil && !a.Done.Open {
			continue
		}
		h := Holding{Key: a.Key, Intent: *a.Intent, Alive: a.Done == nil && a.Exit == nil && a.Intent.BootID == boot}
		h.Held = Held{ID: id(a.Key), Runner: a.Intent.Runner, Lanes: Lanes{a.Intent.Stdout, a.Intent.Stderr}}
		if a.Started != nil {
			h.Held.PID, h.Held.StartTicks = a.Started.PID, a.Started.StartTicks
		}
		all = append(all, h)
	}
	return all
}
