package worker

import (
	"bytes"
	"slices"
	"time"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/journal"
)

// phase is where an attempt is on its way.
type phase uint8

const (
	phaseWaiting   phase = iota // for a slot; nothing is taken, nothing on disk
	phasePreparing              // a goroutine checks and takes what is needed
	phaseLaunching              // the intent is on disk, the start is with the plugin
	phaseRunning                // the process exists
	phaseStopping               // a goroutine ends every process
	phaseSettling               // the main process is gone; children may finish
	phaseFinishing              // no process is left; the output is being sealed
	phaseDone                   // terminal
)

// attempt is what the machine knows of one attempt. It is kept small: a worker
// may have many thousands of them.
type attempt struct {
	key    job.Key
	fence  job.Fence
	phase  phase
	slot   bool
	acked  bool
	detach bool
	open   bool // done, but detached children live
	forget bool // and it is to be forgotten at their end

	room string // why its output waits for room; "": it does not
	seen bool   // its exit is of an earlier life of the worker

	tombstone  bool // only a stop was ever seen (P2)
	stopFirst  bool // the stop was durable before the exit was seen
	unkillable bool
	mainGone   bool // proved gone without a result
	noProcess  bool // it never came to be, or its host was rebooted
	rebooted   bool // its host was
	checkOOM   bool
	leased     bool  // it stops when the worker's lease runs out
	moving     bool  // between a plugin that shuts down and the next
	moves      uint8 // how often

	report *job.Report // the present one; never changed, only replaced
	spec   *job.Spec   // until the intent is on disk
	policy job.OutputPolicy
	limit  uint64

	timeout, idle, grace, linger time.Duration

	mark       string
	pid        int
	startTicks uint64

	stopReason string        // "": no stop
	stopBy     time.Duration // when the grace of the stop ends
	exit       *journal.Exit
	proof      *job.StopProof
	lostReason string

	asked  []Ticket // answered once the intent is on disk
	enders []Ticket // answered at the end

	due    deadlines
	heapAt int // place in Machine.due; -1 is none
}

// bind keeps of the spec what is needed after the start.
func (a *attempt) bind(s *job.Spec) {
	a.timeout, a.idle, a.grace, a.linger = s.Timeout, s.IdleTimeout, s.Grace, s.Linger
	a.detach = s.DetachChildren
	a.policy, a.limit = s.OutputPolicy, s.OutputLimit
	if a.limit == 0 {
		a.limit = job.DefaultOutputLimit
	}
	a.checkOOM = s.Limits.Memory > 0
	a.leased = s.OnPartition == job.StopItself
}

// next returns a changed copy of the report with the next sequence, within the bounds
// of a report.
func (a *attempt) next(change func(*job.Report)) *job.Report {
	r := *a.report
	r.Sequence++
	change(&r)
	r.Bound()
	return &r
}

// whom names the attempt's processes.
func (a *attempt) whom(grace time.Duration) StopRequest {
	return StopRequest{PID: a.pid, StartTicks: a.startTicks, Mark: a.mark, Grace: grace}
}

func (a *attempt) stopping() bool { return a.stopReason != "" }

// report replaces an attempt's report and publishes it.
func (m *Machine) report(a *attempt, change func(*job.Report)) {
	a.report = a.next(change)
	m.emit(Publish{Report: a.report})
}

// answer answers everybody who asked for the attempt to be taken.
func (m *Machine) answer(a *attempt) {
	for _, t := range a.asked {
		m.reply(t, a.report, nil)
	}
	a.asked = nil
}

// inOrder returns all attempts by key: maps have no order, steps must.
func (m *Machine) inOrder() []*attempt {
	all := make([]*attempt, 0, len(m.attempts))
	for _, a := range m.attempts {
		all = append(all, a)
	}
	slices.SortFunc(all, func(a, b *attempt) int {
		if c := bytes.Compare(a.key.Job[:], b.key.Job[:]); c != 0 {
			return c
		}
		return int(a.key.Attempt) - int(b.key.Attempt)
	})
	return all
}

// conclude makes an attempt terminal: the record first, then the world.
func (m *Machine) conclude(a *attempt, open bool, change func(*job.Report)) {
	launched := a.phase >= phaseLaunching
	a.phase = phaseDone
	m.live--
	m.need(a, -1)
	m.withstand(a, false)
	a.open = open
	a.report = a.next(change)
	m.unschedule(a)
	if a.slot {
		a.slot = false
		m.used--
	}
	m.record(journal.Record{
		Kind: journal.KindDone, Key: a.key, Fence: a.fence,
		Done: &journal.Done{Report: *a.report, Open: open},
	})
	if launched {
		m.emit(AckExit{Key: a.key})
	}
	m.emit(Publish{Report: a.report})
	m.answer(a)
	for _, t := range a.enders {
		m.reply(t, a.report, nil)
	}
	a.enders, a.spec, a.exit, a.proof = nil, nil, nil, nil
	if open {
		m.emit(Watch{Key: a.key, StopRequest: a.whom(0)})
		return
	}
	m.emit(Cleanup{Key: a.key})
}

// reject ends an attempt of which no process ever existed.
func (m *Machine) reject(a *attempt, reason, message string) {
	m.conclude(a, false, func(r *job.Report) {
		r.State, r.Reason, r.Message = job.Rejected, reason, message
		r.End = m.now.Wall
	})
}
