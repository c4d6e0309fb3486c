package scheduler

import (
	"cmp"
	"container/heap"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
)

// Machine decides. It is pure: Step(now, event) changes its state and returns
// effects; it has no clock, no randomness and does no I/O, so a run of it can
// be replayed. One goroutine owns it.
type Machine struct {
	term     uint64
	counter  uint64
	workers  *registry.Registry
	jobs     map[job.ID]*entry                  // live ones: QUEUED to STOPPING
	placed   map[job.WorkerID]map[job.ID]*entry // of them, those that have a worker
	requests map[string]*entry                  // live jobs by their request id
	ended    map[job.ID]*job.Job                // whose records may not be committed yet
	queue    *queue
	timers   deadlines
	drains   map[job.WorkerID]time.Time // when jobs of a draining worker are stopped
	strays   map[job.WorkerID]strays
	owing    map[job.WorkerID]bool // workers that may have attempts to forget, see forget.go

	unrecorded      map[job.WorkerID]map[job.Key]*unrecorded
	unlisted        map[job.WorkerID]bool // that have more of them
	unrecordedCount int                   // of all workers
	relisted        []job.WorkerID        // whose list of them the step has changed

	mute    map[job.WorkerID]time.Time // when a worker without a session has been that for long; zero: it has
	links   map[job.WorkerID]*link
	account account
	old     string    // why nothing is started any more; "": nothing is wrong
	began   time.Time // before it, nothing is known of contacts with workers
	first   time.Time // of the first step, for wall
	now     time.Time
	out     []Effect
	// dirty is set when a worker may have become able to take a queued job.
	dirty bool
}

// entry is a live job with what only the machine knows of it.
type entry struct {
	job.Job
	key      string        // of the request id, "" without one
	class    *class        // while queued
	deadline time.Time     // of the queue, the retry, or a partition; zero without one
	delayed  bool          // a retry waits for its backoff
	strays   int           // attempts of it that were given up and still run
	resent   bool          // the order of this attempt was made a second time
	stop     job.StopOrder // while STOPPING
	bytes    int64         // of its request, input not counted
	hash     [32]byte      // of its request, until the store can tell it
}

// link is the connection to one worker.
type link struct {
	number   uint64
	open     bool
	complete bool             // the worker has told all it has
	seen     map[job.Key]bool // attempts of live jobs that it has told of, until then
	hello    Hello
	unsure   int  // attempts that it was told to forget and has not confirmed
	owed     bool // the store has more of them, after owedFrom
	owedFrom job.Key
}

// NewMachine returns the machine of one scheduler life. term must be higher
// than that of any life before (P3).
func NewMachine(term uint64, lease time.Duration) *Machine {
	return &Machine{
		term: term, workers: registry.New(lease), jobs: map[job.ID]*entry{}, placed: map[job.WorkerID]map[job.ID]*entry{}, requests: map[string]*entry{}, ended: map[job.ID]*job.Job{},
		queue: newQueue(), links: map[job.WorkerID]*link{}, drains: map[job.WorkerID]time.Time{}, mute: map[job.WorkerID]time.Time{}, strays: map[job.WorkerID]strays{},
		owing:      map[job.WorkerID]bool{},
		unrecorded: map[job.WorkerID]map[job.Key]*unrecorded{}, unlisted: map[job.WorkerID]bool{},
		account: account{budget: Budget{}.orDefault(), of: map[string]int64{}},
	}
}

// SetBudget bounds the bytes of live jobs.
func (m *Machine) SetBudget(b Budget) { m.account.budget = b.orDefault() }

// LoadWorker puts a worker of the store back. The deadline of a drain begins again: how
// much of it had passed is not known (P14).
func (m *Machine) LoadWorker(now time.Time, w registry.Worker) {
	m.workers.Load(w)
	m.drainUntil(now, w)
}

// drainUntil notes when the jobs of a draining worker are stopped.
func (m *Machine) drainUntil(now time.Time, w registry.Worker) {
	if delete(m.drains, w.ID); w.Drain && w.DrainAfter > 0 {
		m.drains[w.ID] = now.Add(w.DrainAfter)
	}
}

// LoadJob puts a live job of the store back (P15). Its worker is unreachable
// until it registers again.
func (m *Machine) LoadJob(now time.Time, j job.Job) {
	e := &entry{Job: j, bytes: j.Spec.Bytes()}
	m.account.add(owner(&e.Job), e.bytes+e.Input)
	if j.RequestID != "" {
		e.key = requestKey(owner(&j), j.RequestID)
		m.requests[e.key] = e
	}
	m.jobs[j.ID], m.now = e, now
	if m.began.IsZero() {
		m.began = now
	}
	switch {
	case j.State == job.Queued && j.Reason == reasonRetry:
		m.delay(e, backoff(&j)) // anew: how much of it had passed is not known (P14)
	case j.State == job.Queued:
		m.enqueue(e)
	default:
		m.workers.Occupy(j.Worker, 1)
		m.place(e)
		e.stop = job.StopOrder{Key: e.attempt(), Fence: j.Fence, Grace: j.StopGrace, Reason: j.Reason}
		m.awaitPartition(e)
	}
}

func (e *entry) attempt() job.Key { return job.Key{Job: e.ID, Attempt: e.Attempt} }

// Step takes one event. Effects are valid until the next call.
func (m *Machine) Step(now time.Time, ev *Event) []Effect {
	m.now, m.out = now, m.out[:0]
	if m.first.IsZero() {
		m.first = now
	}
	m.expire()
	switch {
	case ev.Submit != nil:
		m.submit(ev.Reply, ev.Submit)
	case ev.Submits != nil:
		m.submits(ev.Reply, ev.Submits)
	case ev.Stop != nil:
		m.stopJob(ev.Reply, ev.Stop)
	case ev.Register != nil:
		m.register(ev.Reply, ev.Register)
	case ev.Heartbeat != nil:
		m.heartbeat(ev.Reply, ev.Heartbeat)
	case ev.Deregister != nil:
		m.deregister(ev.Reply, *ev.Deregister)
	case ev.Drain != nil:
		m.drain(ev.Reply, ev.Drain)
	case ev.Remove != nil:
		m.removeWorker(ev.Reply, *ev.Remove)
	case ev.Forget != nil:
		m.forget(ev.Reply, ev.Forget, ev.Unrecorded)
	case ev.Adopt != nil:
		m.adopt(ev.Reply, ev.Adopt)
	case ev.Up != nil:
		m.up(ev.Up)
	case ev.Refused != nil:
		m.refused(ev.Refused)
	case ev.Old != nil:
		m.oldRecords(ev.Old)
	case ev.Unsent != nil:
		m.unsent(ev.Unsent)
	case ev.Trouble != nil:
		m.trouble(ev.Trouble)
	}
	m.listUnrecorded()
	if m.dirty {
		m.dirty = false
		m.placeQueued()
	}
	return m.out
}

// Committed says that the records of all steps so far are in the store.
func (m *Machine) Committed() { clear(m.ended) }

func (m *Machine) effect(e Effect) { m.out = append(m.out, e) }

func (m *Machine) reply(to uint64, r Result) {
	if to != 0 {
		r.To = to
		m.effect(Effect{Result: &r})
	}
}

// put records a job; terminal ones leave memory, and what is secret is kept no
// longer than it is needed.
func (m *Machine) put(e *entry) {
	if e.State.Terminal() {
		e.Ended = m.wall()
		m.release(e)
		m.account.add(owner(&e.Job), -e.bytes)
		_, _ = e.Spec.TakeInput() // of an earlier version
	}
	j := e.Job
	m.effect(Effect{Put: &j, Drop: j.State.Terminal()})
	if j.State.Terminal() {
		m.ended[j.ID] = &j
		delete(m.jobs, j.ID)
		delete(m.requests, e.key)
	}
}

// wall is the wall clock of the first step plus the time since: a clock that is set
// while the scheduler runs makes no job older (P14).
func (m *Machine) wall() time.Time { return m.first.Round(0).Add(m.now.Sub(m.first)) }

// release drops the input of a job that needs it no more.
func (m *Machine) release(e *entry) {
	if e.Input == 0 {
		return
	}
	m.account.add(owner(&e.Job), -e.Input)
	e.Input = 0
	m.effect(Effect{Release: &e.ID})
}

// NextDeadline is when Tick has work; zero is never.
func (m *Machine) NextDeadline() time.Time {
	next := m.workers.NextExpiry()
	if len(m.timers) > 0 && (next.IsZero() || m.timers[0].at.Before(next)) {
		next = m.timers[0].at
	}
	for _, times := range []map[job.WorkerID]time.Time{m.drains, m.mute} {
		for _, at := range times {
			if !at.IsZero() && (next.IsZero() || at.Before(next)) {
				next = at
			}
		}
	}
	return next
}

// expire lets deadlines and leases run out.
func (m *Machine) expire() {
	for len(m.timers) > 0 && !m.now.Before(m.timers[0].at) {
		t := heap.Pop(&m.timers).(timer)
		e := m.jobs[t.job]
		switch {
		case e == nil || !e.deadline.Equal(t.at):
		case e.State == job.Queued:
			m.queueDeadline(e)
		default:
			m.partitioned(e)
		}
	}
	m.endDrains()
	m.endPatience()
	if next := m.workers.NextExpiry(); next.IsZero() || m.now.Before(next) {
		return
	}
	for _, w := range m.workers.Expire(m.now) {
		m.effect(Effect{Worker: &w})
		m.outOfReach(w.ID)
		m.dirty = true
	}
}

// endDrains stops what still runs on workers whose drain has had its time.
func (m *Machine) endDrains() {
	if len(m.drains) == 0 { // as nearly always: do not look at every worker
		return
	}
	for _, w := range m.workers.All() {
		at, ok := m.drains[w.ID]
		if !ok || m.now.Before(at) {
			continue
		}
		delete(m.drains, w.ID)
		for _, e := range m.onWorker(w.ID) {
			m.stopJob(0, &Stop{ID: e.ID, Reason: job.ReasonDrain})
		}
	}
}

// queueDeadline ends the wait of a queued job: a delayed retry becomes
// placeable, a job that waited too long is rejected.
func (m *Machine) queueDeadline(e *entry) {
	if e.delayed && e.strays > 0 {
		return // until the last has ended
	}
	if e.delayed {
		e.delayed = false
		if m.enqueue(e); e.Reason != reasonRetry { // it joins others that wait
			m.put(e)
		}
		m.dirty = true
		return
	}
	m.queue.remove(e)
	why := e.Message
	e.State, e.Reason = job.Rejected, job.ReasonQueueTimeout
	e.Message = fmt.Sprintf("it waited %v for a worker: %s", e.Spec.QueueTimeout, why)
	m.put(e)
}

func (m *Machine) setDeadline(e *entry, at time.Time) {
	e.deadline = at
	heap.Push(&m.timers, timer{at, e.ID})
}

// setReachable marks the live jobs of a worker. Wall time is for people only.
func (m *Machine) setReachable(id job.WorkerID, reachable bool) {
	for _, e := range m.onWorker(id) {
		switch {
		case reachable && !e.UnreachableSince.IsZero():
			e.UnreachableSince = time.Time{}
		case !reachable && e.UnreachableSince.IsZero():
			e.UnreachableSince = m.now.Round(0)
		default:
			continue
		}
		m.put(e)
	}
}

// reached marks the jobs of a worker that has a lease and a session. A worker
// that registers and refuses the session (P3) is not reached.
func (m *Machine) reached(id job.WorkerID) {
	w, ok := m.workers.Get(id)
	l := m.links[id]
	if ok && l != nil && l.complete && w.State.Leased() {
		m.setReachable(id, true)
	}
}

// place notes that a job has a worker, displace that it has none any more.
func (m *Machine) place(e *entry) {
	if m.placed[e.Worker] == nil {
		m.placed[e.Worker] = map[job.ID]*entry{}
	}
	m.placed[e.Worker][e.ID] = e
}

func (m *Machine) displace(e *entry) {
	if delete(m.placed[e.Worker], e.ID); len(m.placed[e.Worker]) == 0 {
		delete(m.placed, e.Worker)
	}
}

// onWorker returns the live jobs of a worker in the order of their ids.
func (m *Machine) onWorker(id job.WorkerID) []*entry {
	return slices.SortedFunc(maps.Values(m.placed[id]), func(a, b *entry) int { return slices.Compare(a.ID[:], b.ID[:]) })
}

func (m *Machine) register(to uint64, ev *Register) {
	w, err := m.workers.Register(m.now, ev.Registration, ev.Fresh)
	if err != nil {
		m.reply(to, Result{Err: err})
		return
	}
	m.effect(Effect{Worker: &w})
	m.effect(Effect{Dial: &w})
	if !w.Commanded {
		m.uncommanded(w.ID)
	}
	m.reached(w.ID)
	m.reply(to, Result{Worker: w})
	m.dirty = true
}

func (m *Machine) heartbeat(to uint64, ev *Heartbeat) {
	before, _ := m.workers.Get(ev.ID)
	w, changed, err := m.workers.Heartbeat(m.now, ev.ID, ev.Leaving, ev.Lapses, ev.Conditions)
	if err != nil {
		m.reply(to, Result{Err: err})
		return
	}
	if changed {
		m.effect(Effect{Worker: &w})
	}
	m.dirty = m.dirty || changed // its state, or the room on its disk
	if before.State == registry.Offline {
		m.reached(w.ID)
		m.effect(Effect{Dial: &w})
	}
	m.reply(to, Result{Worker: w})
}

func (m *Machine) deregister(to uint64, id job.WorkerID) {
	w, err := m.workers.Deregister(id)
	if err != nil {
		m.reply(to, Result{Err: err})
		return
	}
	m.effect(Effect{Worker: &w})
	m.effect(Effect{Hang: &id})
	m.outOfReach(id)
	m.unlink(id)
	m.dirty = true
	m.reply(to, Result{Worker: w})
}

// unlink forgets the session of a worker that has left.
func (m *Machine) unlink(id job.WorkerID) {
	delete(m.links, id)
	delete(m.mute, id)
	m.sweepStrays(id, 0)
	delete(m.unlisted, id)
	m.sweepUnrecorded(id, 0)
	m.workers.SetCommanded(id, false)
}

func (m *Machine) drain(to uint64, ev *Drain) {
	w, err := m.workers.SetDrain(ev.ID, ev.Drain, ev.Reason, ev.After)
	if err == nil {
		m.effect(Effect{Worker: &w})
		m.dirty = true
		m.drainUntil(m.now, w)
	}
	m.reply(to, Result{Worker: w, Err: err})
}

// removeWorker forgets a worker that is gone; jobs that are still unreachable
// there become LOST by the operator's word (P4 d).
func (m *Machine) removeWorker(to uint64, id job.WorkerID) {
	w, ok := m.workers.Get(id)
	if !ok {
		m.reply(to, Result{Err: errs.E("remove worker", errs.NotFound, "WORKER_UNKNOWN", fmt.Errorf("there is no worker %s", id))})
		return
	}
	if w.State.Leased() {
		m.reply(to, Result{Err: errs.E("remove worker", errs.Precondition, "WORKER_ONLINE", fmt.Errorf("%q is %s", w.Name, w.State)).
			WithHint("stop the worker first; it deregisters by itself")})
		return
	}
	for _, e := range m.onWorker(id) {
		m.finish(e, job.Lost, job.ReasonWorkerGone, "an operator removed its worker "+w.Name)
	}
	m.unlink(id)
	m.workers.Remove(id)
	delete(m.drains, id)
	delete(m.owing, id)
	m.dirty = true // jobs that wait for it learn that it is gone
	m.effect(Effect{Gone: &id})
	m.effect(Effect{Hang: &id})
	m.reply(to, Result{Worker: w})
}

// Live returns the ids of live jobs in order, for views.
func (m *Machine) Live() []job.ID {
	return slices.SortedFunc(maps.Keys(m.jobs), func(a, b job.ID) int { return slices.Compare(a[:], b[:]) })
}

// timer is one deadline; deadlines is a heap of them, ties in the order of ids
// so that a replay takes the same way.
type timer struct {
	at  time.Time
	job job.ID
}

type deadlines []timer

func (d deadlines) Len() int      { return len(d) }
func (d deadlines) Swap(i, j int) { d[i], d[j] = d[j], d[i] }
func (d deadlines) Less(i, j int) bool {
	return cmp.Or(d[i].at.Compare(d[j].at), slices.Compare(d[i].job[:], d[j].job[:])) < 0
}
func (d *deadlines) Push(x any) { *d = append(*d, x.(timer)) }
func (d *deadlines) Pop() any {
	old := *d
	last := old[len(old)-1]
	*d = old[:len(old)-1]
	return last
}
