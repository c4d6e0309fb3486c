package worker

import (
	"cmp"
	"fmt"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/journal"
)

// Times of the machine.
const (
	exitPatience  = 10 * time.Second // from "no process left" to giving up on the exit
	retryStop     = time.Second      // between two tries to kill the unkillable
	defaultSlots  = 16
	overshootRoom = 64 // orders that may wait for a slot beyond the slots themselves
)

// Machine decides what happens to attempts. It is pure: Step is its only input,
// effects are its only output, and the same events at the same instants give
// the same effects. It is owned by one goroutine.
type Machine struct {
	boot      string // boot id of the host
	slots     int
	overshoot int

	epoch      uint64    // how many lives this worker had
	fence      job.Fence // highest seen (P3)
	life       job.Life  // of the scheduler that commanded last (P3)
	lease      lease
	floor      job.Fence // highest of a forgotten attempt: below it, "unknown" may mean "forgotten"
	attempts   map[job.Key]*attempt
	newest     map[job.ID]uint32
	waiting    []*attempt // for a slot, in the order of arrival
	used       int        // slots in use
	live       int        // attempts that are not done
	confirmed  int        // attempts that are done and acked
	unkillable int        // attempts that withstand SIGKILL
	due        dueHeap
	draining   bool
	closed     bool

	now Instant
	out []Effect
}

// MachineConfig sets up a Machine.
type MachineConfig struct {
	BootID    string // of the host as it runs now
	Slots     int    // attempts at once; 0: 16
	Overshoot int    // orders that may wait for a slot; 0: slots + 64
}

// NewMachine makes a machine without attempts; Restore fills it.
func NewMachine(c MachineConfig) *Machine {
	if c.Slots <= 0 {
		c.Slots = defaultSlots
	}
	if c.Overshoot <= 0 {
		c.Overshoot = c.Slots + overshootRoom
	}
	return &Machine{
		boot: c.BootID, slots: c.Slots, overshoot: c.Overshoot, lease: lease{over: true},
		attempts: make(map[job.Key]*attempt), newest: make(map[job.ID]uint32),
	}
}

// Step takes one event and returns what is to be done, in order. The slice is
// valid until the next Step.
func (m *Machine) Step(now Instant, ev Event) []Effect {
	m.now = now
	clear(m.out)
	m.out = m.out[:0]
	if e, ok := ev.(Renewed); ok {
		m.renewed(e) // before the clock is looked at: it may be late, but it counts
	}
	m.passLease()
	switch e := ev.(type) {
	case StartAsked:
		m.start(e)
	case StopAsked:
		m.stop(e)
	case TermSeen:
		m.term(e)
	case Acked:
		m.acked(e)
	case Forgotten:
		m.forgotten(e)
	case DrainAsked:
		m.drain(e)
	case Sync:
		m.reply(e.Ticket, nil, nil)
	case Tick, Renewed:
	default:
		m.news(ev)
	}
	m.pass()
	m.admit()
	return m.out
}

// news takes what the worker's own hands report about one attempt.
func (m *Machine) news(ev Event) {
	switch e := ev.(type) {
	case Prepared:
		m.with(e.Key, func(a *attempt) { m.prepared(a, e) })
	case LaunchRefused:
		m.with(e.Key, func(a *attempt) { m.launchRefused(a, e) })
	case ProcessStarted:
		m.with(e.Key, func(a *attempt) { m.started(a, e) })
	case ProcessExited:
		m.exited(e)
	case ProcessGone:
		m.with(e.Key, m.gone)
	case ProcessUnknown:
		m.with(e.Key, m.unknown)
	case Settled:
		m.with(e.Key, func(a *attempt) { m.settled(a, e) })
	case Finished:
		m.with(e.Key, func(a *attempt) { m.finished(a, e) })
	case Blocked:
		m.with(e.Key, func(a *attempt) { m.blocked(a, e) })
	case Emptied:
		m.emptied(e)
	case GroupStopped:
		m.with(e.Key, func(a *attempt) { m.groupStopped(a, e) })
	case Quiet:
		m.with(e.Key, func(a *attempt) { m.quiet(a, e) })
	case OutputExceeded:
		m.with(e.Key, func(a *attempt) { m.end(a, job.ReasonOutputLimit, a.grace) })
	}
}

// with calls f for a live attempt; news of others is late and means nothing.
func (m *Machine) with(key job.Key, f func(*attempt)) {
	if a := m.attempts[key]; a != nil && a.phase != phaseDone {
		f(a)
	}
}

func (m *Machine) emit(e Effect) { m.out = append(m.out, e) }

// reply answers a ticket; orders of a session have none.
func (m *Machine) reply(t Ticket, r *job.Report, err error) {
	if t != 0 {
		m.emit(Reply{Ticket: t, Report: r, Err: err})
	}
}

func (m *Machine) record(r journal.Record) { m.emit(Record{r}) }

// Counts says what the machine holds.
type Counts struct {
	Running    int // slots in use
	Waiting    int // for a slot
	Live       int // attempts that are not terminal
	Unacked    int // terminal reports that the scheduler has not confirmed
	Unkillable int // attempts that withstand SIGKILL
	Draining   bool
}

// Counts counts, in no time.
func (m *Machine) Counts() Counts {
	return Counts{
		Running: m.used, Waiting: len(m.waiting), Live: m.live, Unacked: len(m.attempts) - m.live - m.confirmed,
		Unkillable: m.unkillable, Draining: m.draining,
	}
}

// start takes an order to start.
func (m *Machine) start(e StartAsked) {
	o := e.Order
	if a := m.attempts[o.Key]; a != nil {
		m.repeat(a, e)
		return
	}
	if err := m.fenced(o.Fence, e.Session); err != nil {
		m.refuseFence(e, err)
		return
	}
	if o.BootID != "" && o.BootID != m.boot {
		// Given before this host was rebooted: the scheduler settles the attempt
		// with the boot that it hears of, and has perhaps done so (P4 b).
		m.reply(e.Ticket, nil, errs.E("start attempt", errs.Precondition, job.ReasonReboot,
			fmt.Errorf("the order is for boot %s of this host, this is boot %s", o.BootID, m.boot)))
		return
	}
	err := cmp.Or(o.Refusal, m.unleased(&o))
	if err == nil {
		err = m.full(e.Session == 0)
	}
	if err != nil && e.Session == 0 {
		// The caller hears it and may come again: nothing is remembered.
		m.reply(e.Ticket, nil, err)
		return
	} else if err != nil {
		a := m.add(o)
		m.reject(a, errs.ReasonOf(err), err.Error())
		m.reply(e.Ticket, a.report, nil)
		return
	}
	a := m.add(o)
	a.asked = append(a.asked, e.Ticket)
	if m.used >= m.slots {
		m.waiting = append(m.waiting, a)
		a.phase = phaseWaiting
		a.report = a.next(func(r *job.Report) {
			r.Reason = job.ReasonNoSlot
			r.Message = fmt.Sprintf("all %d slots of the worker are in use", m.slots)
		})
		m.emit(Publish{Report: a.report, Volatile: true})
		return
	}
	m.prepare(a)
}

// full says why no further attempt may even wait.
func (m *Machine) full(strict bool) error {
	const op = "start attempt"
	switch {
	case m.closed, m.draining && strict:
		return errs.E(op, errs.Precondition, job.ReasonWorkerDrained, fmt.Errorf("the worker is draining and takes nothing new"))
	case m.used >= m.slots && len(m.waiting) >= m.overshoot:
		return errs.E(op, errs.Exhausted, job.ReasonNoSlot,
			fmt.Errorf("all %d slots are in use and %d orders wait already", m.slots, len(m.waiting)))
	}
	return nil
}

// fenced refuses commands that are older than what the worker remembers (P3).
//
// A session of an old term cannot be opened, and one that is open ends when a
// newer term appears, so what is checked here is what it sent before it ended.
func (m *Machine) fenced(f job.Fence, session uint64) error {
	old := f.Less(m.fence)
	if session != 0 {
		old = session < m.fence.Term
	}
	if !old && (m.floor.Less(f) || m.floor == (job.Fence{})) {
		return nil
	}
	return errs.E("check fence", errs.Precondition, job.ReasonFenced,
		fmt.Errorf("order of term %d counter %d comes after one of term %d counter %d", f.Term, f.Counter, m.fence.Term, m.fence.Counter)).
		WithHint("another scheduler, or a later one, has commanded this worker")
}

// refuseFence answers without keeping a record: the fence itself will refuse
// the same order again. What an older session left over is dropped in silence:
// the scheduler of the present one may have given the same order anew.
func (m *Machine) refuseFence(e StartAsked, err error) {
	m.reply(e.Ticket, nil, err)
	if e.Session != 0 && e.Session >= m.fence.Term {
		m.emit(Announce{&job.Report{
			Key: e.Order.Key, Sequence: 1, State: job.Rejected, Reason: job.ReasonFenced, Message: job.Shorten(err.Error(), job.MaxMessage),
		}})
	}
}

// repeat answers an order for an attempt that is known: it starts nothing (P2).
func (m *Machine) repeat(a *attempt, e StartAsked) {
	if a.tombstone {
		r := *a.report
		r.State, r.Reason, r.StopProof = job.Rejected, job.ReasonTombstone, nil
		r.Message = "it was stopped before its start arrived"
		m.reply(e.Ticket, &r, nil)
		m.emit(Publish{Report: a.report, Acked: a.acked})
		return
	}
	if a.phase < phaseLaunching {
		a.asked = append(a.asked, e.Ticket)
		return
	}
	m.reply(e.Ticket, a.report, nil)
	m.emit(Publish{Report: a.report, Acked: a.acked})
}

// add makes a new attempt known. Its fence counts at once and is on disk with
// the attempt's first record.
func (m *Machine) add(o job.StartOrder) *attempt {
	spec := o.Spec
	a := m.insert(o.Key, o.Fence)
	a.bind(&spec)
	m.need(a, 1)
	a.spec = &spec
	if m.fence.Less(o.Fence) {
		m.fence = o.Fence
	}
	return a
}

func (m *Machine) insert(key job.Key, fence job.Fence) *attempt {
	a := &attempt{key: key, fence: fence, heapAt: -1}
	a.report = &job.Report{Key: key, Sequence: m.epoch<<32 + 1, State: job.Dispatched}
	m.attempts[key] = a
	m.live++
	m.newest[key.Job] = max(m.newest[key.Job], key.Attempt)
	return a
}

// admit gives free slots to those who wait.
func (m *Machine) admit() {
	for m.used < m.slots && len(m.waiting) > 0 {
		a := m.waiting[0]
		m.waiting[0] = nil
		m.waiting = m.waiting[1:]
		m.prepare(a)
	}
	if len(m.waiting) == 0 {
		m.waiting = nil
	}
}

func (m *Machine) prepare(a *attempt) {
	a.phase = phasePreparing
	a.slot = true
	m.used++
	a.report = a.next(func(r *job.Report) { r.Reason, r.Message = "", "" })
	m.emit(Publish{Report: a.report, Volatile: true})
	m.emit(Prepare{Key: a.key, Spec: a.spec})
}

// term remembers the term of a session's scheduler, or refuses an old one.
func (m *Machine) term(e TermSeen) {
	if !e.History.Holds(m.life) { // before the term: the life proves to the scheduler what a term cannot
		m.reply(e.Ticket, nil, errs.E("open session", errs.Precondition, job.ReasonOldRecords, &job.StrangeLifeError{Last: m.life, Term: e.Term}).
			WithHint("its records are an older copy, or others: put the newer ones in use"))
		return
	}
	if e.Term < m.fence.Term {
		m.reply(e.Ticket, nil, errs.E("open session", errs.Precondition, job.ReasonFenced,
			fmt.Errorf("a scheduler of term %d has commanded this worker; this one has term %d", m.fence.Term, e.Term)).
			WithHint("a scheduler restored from an old backup, or a second one, must not command workers"))
		return
	}
	if e.History.Overrules(m.life) {
		m.unconfirm()
	}
	if life := e.History.Last(); life != m.life && life != (job.Life{}) {
		if m.life = life; e.Term > m.fence.Term {
			m.fence = job.Fence{Term: e.Term}
		}
		m.record(journal.Record{Kind: journal.KindFence, Fence: m.fence, Floor: m.floor, Epoch: m.epoch, Life: m.life})
	}
	m.raise(e.Term)
	m.reply(e.Ticket, nil, nil)
}

// unconfirm takes back all acknowledgements: they were of records that are lost, and the
// scheduler is to hear of these results again (P3).
func (m *Machine) unconfirm() {
	for _, a := range m.inOrder() {
		if !a.acked || a.tombstone || a.forget {
			continue
		}
		m.confirm(a, false)
		m.record(journal.Record{Kind: journal.KindDone, Key: a.key, Fence: a.fence, Done: &journal.Done{Report: *a.report, Open: a.open}})
		m.emit(Publish{Report: a.report})
	}
}

// raise remembers a higher term on disk.
func (m *Machine) raise(term uint64) {
	if term > m.fence.Term {
		m.fence = job.Fence{Term: term}
		m.record(journal.Record{Kind: journal.KindFence, Fence: m.fence, Floor: m.floor, Epoch: m.epoch})
	}
}

func (m *Machine) acked(e Acked) {
	for _, key := range e.Keys {
		a := m.attempts[key]
		if a == nil || a.phase != phaseDone || a.acked {
			continue
		}
		m.confirm(a, true)
		m.record(journal.Record{Kind: journal.KindAcked, Key: key})
		m.emit(Publish{Report: a.report, Acked: true, Quiet: true})
	}
}

// confirm notes whether the scheduler has the final report.
func (m *Machine) confirm(a *attempt, acked bool) {
	if a.acked == acked {
		return
	}
	a.acked = acked
	if acked {
		m.confirmed++
	} else {
		m.confirmed--
	}
}

// withstand notes whether an attempt has processes that SIGKILL does not end.
func (m *Machine) withstand(a *attempt, unkillable bool) {
	if a.unkillable == unkillable {
		return
	}
	a.unkillable = unkillable
	if unkillable {
		m.unkillable++
	} else {
		m.unkillable--
	}
}

func (m *Machine) forgotten(e Forgotten) {
	gone := make([]job.Key, 0, len(e.Keys))
	for _, key := range e.Keys {
		a := m.attempts[key]
		if a != nil && a.phase != phaseDone {
			continue // the scheduler stops it, and orders it again when it has ended
		}
		if a != nil {
			m.forget(a)
		}
		gone = append(gone, key)
	}
	if len(gone) > 0 {
		m.emit(Confirm{Keys: gone})
	}
}

// forget drops a terminal attempt, or, while detached children live, makes sure
// that it is dropped at their end. Its bytes go at once.
func (m *Machine) forget(a *attempt) {
	if a.open {
		if !a.forget {
			a.forget = true
			m.record(journal.Record{Kind: journal.KindDone, Key: a.key, Done: &journal.Done{Report: *a.report, Open: true, Forget: true}})
			m.emit(Discard{Key: a.key})
		}
		return
	}
	key := a.key
	if m.floor.Less(a.fence) {
		m.floor = a.fence
	}
	m.confirm(a, false)
	delete(m.attempts, key)
	if m.newest[key.Job] == key.Attempt {
		delete(m.newest, key.Job)
	}
	m.record(journal.Record{Kind: journal.KindForgotten, Key: key, Floor: m.floor})
	m.emit(Unpublish{Key: key})
	m.emit(RemoveOutput{Key: key})
}

func (m *Machine) drain(e DrainAsked) {
	m.draining = e.On
	m.closed = e.On && e.Close
	if !e.StopAll {
		return
	}
	for _, a := range m.inOrder() {
		if a.phase != phaseDone {
			m.end(a, job.ReasonDrain, a.grace)
		}
	}
}
