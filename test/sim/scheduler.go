package sim

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
	"github.com/droverhq/drover/core/scheduler"
)

// disk is what a scheduler's store holds. Scheduler.turn commits a round as one
// batch; here that is one call of commit.
type disk struct {
	term     uint64
	history  job.History
	jobs     map[job.ID]job.Job
	live     map[job.ID]bool
	workers  map[job.WorkerID]registry.Worker
	requests map[string]scheduler.Accepted
}

// schedulerNode is the scheduler: its machine, and around it what
// scheduler.Scheduler does around its own.
type schedulerNode struct {
	w      *World
	disk   disk
	up     bool
	frozen bool
	life   int
	doom   Point
	m      *scheduler.Machine
	inbox  []scheduler.Event
	busy   bool // a round is under way
	ticket uint64
	asked  map[uint64]func(scheduler.Result)
	links  map[job.WorkerID]*keeper
	number uint64
	alarm  uint64
	real   *disk         // put aside while an old copy is in use
	awake  time.Duration // since when it has been up and not frozen
	place  *placement
	// lifeless: it is of a version that knew no lives, and only its term tells its age.
	lifeless bool
	unsent   []job.StartOrder // of the Unsent events in the inbox
}

func newSchedulerNode(w *World) *schedulerNode {
	return &schedulerNode{w: w, disk: disk{
		jobs: map[job.ID]job.Job{}, live: map[job.ID]bool{},
		workers: map[job.WorkerID]registry.Worker{}, requests: map[string]scheduler.Accepted{},
	}}
}

// serves tells whether clients reach the scheduler with its true records.
func (s *schedulerNode) serves() bool { return s.up && s.real == nil }

// instant is the scheduler's monotonic clock, which runs at a rate of its own.
func (s *schedulerNode) instant() time.Time { return epoch().Add(s.rate().clock(s.w.now)) }

func (s *schedulerNode) rate() rate { return s.w.plan.rate(0) }

// start begins a life: term, then what the store knows (scheduler.New).
func (s *schedulerNode) start() {
	s.life++
	s.up, s.frozen, s.doom, s.busy, s.awake = true, false, AtOnce, false, s.w.now
	s.disk.term++
	s.disk.history.Lives = slices.Clone(s.disk.history.Lives)
	s.disk.history.Add(job.Life{Term: s.disk.term, Mark: job.Mark{byte(s.life), byte(s.life >> 8), 1}})
	s.m = scheduler.NewMachine(s.disk.term, lease)
	s.inbox, s.asked, s.links = nil, map[uint64]func(scheduler.Result){}, map[job.WorkerID]*keeper{}
	for _, id := range sortedIDs(s.disk.workers) {
		s.m.LoadWorker(s.instant(), s.disk.workers[id])
	}
	for _, id := range sortedIDs(s.disk.live) {
		j := s.disk.jobs[id]
		if j.State.Live() && j.UnreachableSince.IsZero() {
			j.UnreachableSince = s.instant()
		}
		s.m.LoadJob(s.instant(), j)
	}
	s.place, s.unsent = newPlacement(s.w), nil
	s.w.log("scheduler starts, term %d, %d live jobs", s.disk.term, len(s.disk.live))
	s.deliver(scheduler.Event{Tick: true})
}

func sortedIDs[V any](m map[uuid.UUID]V) []uuid.UUID {
	return slices.SortedFunc(maps.Keys(m), func(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) })
}

// kill is kill -9.
func (s *schedulerNode) kill() {
	if !s.up {
		return
	}
	s.w.log("scheduler is killed")
	s.up = false
	for _, id := range sortedIDs(s.links) {
		s.links[id].end()
	}
}

// rollback starts the scheduler from a copy that is two lives old (P3). Clients
// keep away: what they would be told is gone with the copy.
func (s *schedulerNode) rollback(f Fault) {
	if !s.up || s.real != nil {
		return
	}
	old := s.disk.copy()
	s.kill()
	s.start()
	s.w.after(f.For, func() {
		if s.real != nil || s.w.now >= faultyFor {
			return
		}
		s.kill()
		s.start()
		s.w.after(8*time.Second, func() {
			if s.real != nil || s.w.now >= faultyFor || !s.known(old.term+2) {
				return
			}
			s.w.log("an old backup is put back")
			s.kill()
			now := s.disk
			s.real, s.disk = &now, old
			if s.lifeless = s.w.chance(3); !s.lifeless {
				for range s.w.rng.IntN(5) { // its term may be that of the true one, or above
					s.start()
					s.kill()
				}
			}
			s.start()
			s.w.after(5*time.Second, s.rollForward)
		})
	})
}

// known tells whether every worker has been commanded in a term: one that was
// not cannot tell a copy of before from the scheduler that it takes over.
func (s *schedulerNode) known(term uint64) bool {
	for _, h := range s.w.hosts {
		if s.w.check.fences[h.n].Term < term {
			return false
		}
	}
	return true
}

// rollForward puts the true records back.
func (s *schedulerNode) rollForward() {
	if s.real == nil {
		return
	}
	s.w.log("the true records are put back")
	s.kill()
	s.disk, s.real, s.lifeless = *s.real, nil, false
	s.start()
}

// records are the true ones.
func (s *schedulerNode) records() *disk {
	if s.real != nil {
		return s.real
	}
	return &s.disk
}

func (d *disk) copy() disk {
	return disk{d.term, d.history, maps.Clone(d.jobs), maps.Clone(d.live), maps.Clone(d.workers), maps.Clone(d.requests)}
}

// deliver puts an event into the inbox; a round takes all that are there.
func (s *schedulerNode) deliver(ev scheduler.Event) {
	if !s.up {
		return
	}
	s.inbox = append(s.inbox, ev)
	if s.busy || s.frozen {
		return
	}
	s.busy = true
	life := s.life
	s.w.soon(func() {
		if s.up && s.life == life {
			s.busy = false
			s.round()
		}
	})
}

// thaw goes on after a freeze.
func (s *schedulerNode) thaw() {
	if s.frozen {
		s.frozen, s.awake = false, s.w.now
	}
	s.deliver(scheduler.Event{Tick: true})
}

// ask delivers an event of somebody who waits for the answer.
func (s *schedulerNode) ask(ev scheduler.Event, answer func(scheduler.Result)) {
	s.ticket++
	ev.Reply = s.ticket
	s.asked[ev.Reply] = answer
	s.deliver(ev)
}

func (s *schedulerNode) round() {
	if s.frozen {
		return
	}
	evs := s.inbox
	s.inbox = nil
	var effects []scheduler.Effect
	for i := range evs {
		ev := &evs[i]
		if ev.Submit != nil && ev.Submit.RequestID != "" {
			ev.Submit.Earlier = nil
			if a, ok := s.disk.requests[ev.Submit.Caller.Name+"\x00"+ev.Submit.RequestID]; ok {
				ev.Submit.Earlier = &a
			}
		}
		if ev.Up != nil {
			ev.Up.Records = map[job.ID]*job.Job{}
			for _, key := range s.m.Ended(ev.Up) {
				if j, ok := s.disk.jobs[key.Job]; ok {
					ev.Up.Records[key.Job] = &j
				}
			}
		}
		s.place.event(ev)
		step := s.m.Step(s.instant(), ev)
		s.place.effects(step)
		effects = append(effects, step...)
	}
	if s.doomed(BeforeCommit) {
		return
	}
	s.commit(effects)
	s.w.check.requeued(s.unsent)
	s.unsent = nil
	s.m.Committed()
	if s.doomed(AfterCommit) {
		return
	}
	for i := range effects {
		if i == len(effects)/2 && s.doomed(AmidActs) {
			return
		}
		s.act(&effects[i])
	}
	s.arm()
}

// doomed kills the scheduler at the point that a fault chose.
func (s *schedulerNode) doomed(p Point) bool {
	if s.doom != p {
		return false
	}
	s.kill()
	return true
}

func (s *schedulerNode) arm() {
	next := s.m.NextDeadline()
	if next.IsZero() {
		return
	}
	s.alarm++
	alarm, life := s.alarm, s.life
	s.w.at(s.rate().real(next.Sub(epoch())), func() {
		if s.life == life && s.alarm == alarm {
			s.deliver(scheduler.Event{Tick: true})
		}
	})
}

// commit makes a round durable (records.go does it with keys and values).
func (s *schedulerNode) commit(effects []scheduler.Effect) {
	for i := range effects {
		switch e := &effects[i]; {
		case e.Put != nil:
			if s.real == nil {
				s.w.check.committed(s.disk.jobs[e.Put.ID], *e.Put)
			}
			s.disk.jobs[e.Put.ID] = *e.Put
			if e.New {
				s.disk.live[e.Put.ID] = true
				if e.Put.RequestID != "" {
					a := scheduler.Accepted{Job: e.Put.ID, Hash: e.Hash}
					s.disk.requests[e.Put.RequestedBy+"\x00"+e.Put.RequestID] = a
				}
			}
			if e.Drop {
				delete(s.disk.live, e.Put.ID)
			}
		case e.Worker != nil:
			s.disk.workers[e.Worker.ID] = *e.Worker
		case e.Gone != nil:
			delete(s.disk.workers, *e.Gone)
		}
	}
}

func (s *schedulerNode) act(e *scheduler.Effect) {
	switch {
	case e.Send != nil:
		s.send(e.Send)
	case e.Dial != nil:
		s.dial(*e.Dial)
	case e.Hang != nil:
		if k := s.links[*e.Hang]; k != nil {
			k.end()
			delete(s.links, *e.Hang)
		}
	case e.Result != nil:
		if answer := s.asked[e.Result.To]; answer != nil {
			delete(s.asked, e.Result.To)
			answer(*e.Result)
		}
	case e.Unexpected != "":
		s.w.fail("the scheduler refuses a report of its own worker: %s", e.Unexpected)
	}
}

// send gives a frame to the link of a worker. Without a link, the starts in it are unsent
// (Scheduler.act).
func (s *schedulerNode) send(o *scheduler.Send) {
	for i := range o.Down.Starts {
		s.w.check.orders[orderOf(&o.Down.Starts[i])]++
	}
	if k := s.links[o.Worker]; k != nil && k.conn != nil {
		k.conn.down.send(o.Down)
	} else if len(o.Down.Starts) > 0 {
		s.notSent(o.Worker, o.Down.Starts)
	}
}

// notSent tells the machine of orders that were never given to a link.
func (s *schedulerNode) notSent(w job.WorkerID, starts []job.StartOrder) {
	u := &scheduler.Unsent{Worker: w}
	for i := range starts {
		u.Keys = append(u.Keys, starts[i].Key)
	}
	s.unsent = append(s.unsent, starts...)
	s.deliver(scheduler.Event{Unsent: u})
}

// find returns the id that the scheduler has for a worker.
func (s *schedulerNode) find(name string) (job.WorkerID, bool) {
	for id, w := range s.disk.workers {
		if w.Name == name {
			return id, true
		}
	}
	return job.WorkerID{}, false
}

// asleep reports whether it is down or frozen, or was until just now.
func (s *schedulerNode) asleep() bool { return !s.up || s.frozen || s.w.now-s.awake < comesToAct }

// keeper keeps a link to one worker process (links.keep).
type keeper struct {
	s      *schedulerNode
	life   int
	worker registry.Worker
	gone   bool
	conn   *conn
	pause  time.Duration
}

func (s *schedulerNode) dial(w registry.Worker) {
	if k := s.links[w.ID]; k != nil {
		if k.worker.InstanceID == w.InstanceID {
			return
		}
		k.end()
	}
	k := &keeper{s: s, life: s.life, worker: w, pause: 50 * time.Millisecond}
	s.links[w.ID] = k
	s.w.soon(k.connect)
}

// end lets go of the link for good.
func (k *keeper) end() {
	k.gone = true
	if k.conn != nil {
		k.conn.close()
	}
}

func (k *keeper) again() {
	k.s.w.after(k.s.w.between(k.pause/2, k.pause*3/2), k.connect)
	k.pause = min(2*k.pause, 2*time.Second)
}

// connect opens a session with the worker, which may refuse it (P3).
func (k *keeper) connect() {
	s := k.s
	if k.gone || !s.up || s.life != k.life || k.conn != nil {
		return
	}
	h := s.w.hostOf(k.worker.Address)
	if h.worker == nil || h.cutDown || h.cutUp || s.w.now < h.mute || s.frozen || h.worker.id != k.worker.ID {
		k.again()
		return
	}
	p := h.worker
	lives := s.disk.history
	if s.lifeless {
		lives = job.History{}
	}
	p.greet(s.disk.term, lives, func(err error) {
		if k.gone || !s.up || s.life != k.life {
			return
		}
		if err != nil {
			s.w.log("%s refuses the session: %v", h.name, err)
			if strange := (*job.StrangeLifeError)(nil); errors.As(err, &strange) {
				s.deliver(scheduler.Event{Old: &scheduler.OldRecords{Worker: k.worker.ID, Last: strange.Last}})
			}
			k.again()
			return
		}
		k.pause = 50 * time.Millisecond
		s.number++
		k.conn = newConn(s.w, k, p, s.number)
	})
}

// newID makes ids that are the same in every run of a plan.
func (w *World) newID() uuid.UUID {
	var id uuid.UUID
	copy(id[:], fmt.Sprintf("%016x", w.sequence))
	for i := 8; i < 16; i++ {
		id[i] = byte(w.rng.Uint32())
	}
	return id
}
