package sim

import (
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
	"github.com/droverhq/drover/core/scheduler"
)

// placement follows one life of the scheduler, event by event and effect by effect. From
// these alone it knows which workers have a session and what they run, and it checks the
// worker of every attempt that the scheduler makes.
type placement struct {
	w        *World
	jobs     map[job.ID]job.Job // live ones
	workers  map[job.WorkerID]registry.State
	sessions map[job.WorkerID]*session
}

// session is the newest session of a worker.
type session struct {
	link     uint64
	complete bool             // the worker has reported everything that it has
	live     map[job.Key]bool // reported attempts that have not ended
}

func newPlacement(w *World) *placement {
	p := &placement{w: w, jobs: map[job.ID]job.Job{}, workers: map[job.WorkerID]registry.State{}, sessions: map[job.WorkerID]*session{}}
	for id := range w.sched.disk.live {
		p.jobs[id] = w.sched.disk.jobs[id]
	}
	return p
}

// event is called before the machine takes the event.
func (p *placement) event(ev *scheduler.Event) {
	if ev.Up == nil {
		return
	}
	id := ev.Up.Worker
	s := p.sessions[id]
	switch {
	case ev.Up.Opened:
		p.sessions[id] = &session{link: ev.Up.Link, live: map[job.Key]bool{}}
	case s == nil || s.link != ev.Up.Link: // of an earlier session
	case ev.Up.Closed:
		delete(p.sessions, id)
	default:
		for i := range ev.Up.Up.Reports {
			r := &ev.Up.Up.Reports[i]
			if r.State.Terminal() {
				delete(s.live, r.Key)
				continue
			}
			if s.live[r.Key] = true; !p.placed(id, r.Key) {
				p.wantStop(id, s.link, r.Key)
			}
		}
		s.complete = s.complete || ev.Up.Up.Hello != nil && ev.Up.Up.Hello.Complete
	}
}

// placed reports whether key is the present attempt of a live job on the worker.
func (p *placement) placed(w job.WorkerID, key job.Key) bool {
	j := p.jobs[key.Job]
	return j.State.Live() && keyOf(j) == key && j.Worker == w
}

// wantStop fails the run if an attempt that the scheduler has given up is still running
// some time after its worker has reported it, unless a fault has delayed the order.
func (p *placement) wantStop(id job.WorkerID, link uint64, key job.Key) {
	k := p.w.sched.links[id]
	if k == nil || k.conn == nil || k.conn.number != link || p.w.sched.real != nil {
		return
	}
	c := k.conn
	h, cuts := c.p.h, c.p.h.cuts
	if h.cutUp || h.cutDown {
		return
	}
	p.w.result.Happened["reported after it was given up"]++
	p.w.after(comesToAct, func() {
		post := c.p.posts[key]
		if !c.open || h.cuts != cuts || h.asleep() || p.w.sched.asleep() || post == nil {
			return
		}
		if s := post.report.State; s.Live() && s != job.Stopping {
			p.w.fail("P5: %s was given up and is still %s on %s, which has reported it", p.w.check.label(key), s, h.name)
		}
	})
}

// effects is called with the effects of each step.
func (p *placement) effects(effects []scheduler.Effect) {
	for i := range effects {
		switch e := &effects[i]; {
		case e.Worker != nil:
			p.workers[e.Worker.ID] = e.Worker.State
		case e.Gone != nil:
			delete(p.workers, *e.Gone)
			delete(p.sessions, *e.Gone)
		case e.Put != nil:
			p.put(*e.Put)
		}
	}
}

func (p *placement) put(j job.Job) {
	before := p.jobs[j.ID]
	if p.jobs[j.ID] = j; j.State.Terminal() {
		delete(p.jobs, j.ID)
	}
	if s := p.sessions[before.Worker]; s != nil && before.State.Live() && !p.placed(before.Worker, keyOf(before)) {
		delete(s.live, keyOf(before)) // until it is reported again
	}
	if j.State == job.Dispatched && j.Fence != before.Fence && p.w.sched.real == nil {
		p.w.check.names[j.ID] = j.RequestID
		p.check(j)
	}
}

// check checks where a new attempt is made.
func (p *placement) check(j job.Job) {
	label, slots := p.w.check.label(keyOf(j)), p.w.plan.Slots
	if !p.commanded(j.Worker) {
		p.w.fail("%s is dispatched to %s, which has no complete session", label, j.WorkerName)
	}
	if n := p.load(j.Worker); n > slots {
		p.w.fail("%s is dispatched to %s, which now has %d attempts for %d slots", label, j.WorkerName, n, slots)
	}
	for _, id := range sortedIDs(p.sessions) {
		for _, key := range sortedKeys(p.sessions[id].live) {
			if t := p.w.check.truths[key]; key.Job == j.ID && key != keyOf(j) && t != nil && t.host.procs[key].main {
				p.w.fail("P5: %s is made while %s is reported as running", label, p.w.check.label(key))
			}
		}
	}
	n := len(j.Past)
	if n == 0 {
		return
	}
	if j.Past[n-1].Worker != j.Worker {
		p.w.result.Happened["retried elsewhere"]++
		return
	}
	for _, id := range sortedIDs(p.workers) {
		if id != j.Worker && p.workers[id] == registry.Online && p.commanded(id) && p.load(id) < slots {
			p.w.fail("%s is dispatched to %s again, although %s is free", label, j.WorkerName, p.w.sched.disk.workers[id].Name)
		}
	}
}

func (p *placement) commanded(w job.WorkerID) bool {
	s := p.sessions[w]
	return s != nil && s.complete
}

// load returns how many slots of a worker are taken: by the jobs that are placed there,
// and by other attempts that it has reported.
func (p *placement) load(w job.WorkerID) int {
	n := 0
	for _, j := range p.jobs {
		if j.State.Live() && j.Worker == w {
			n++
		}
	}
	if s := p.sessions[w]; s != nil {
		for key := range s.live {
			if !p.placed(w, key) {
				n++
			}
		}
	}
	return n
}
