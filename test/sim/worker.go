package sim

import (
	"errors"
	"fmt"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/journal"
	"github.com/droverhq/drover/core/registry"
	"github.com/droverhq/drover/core/scheduler"
	"github.com/droverhq/drover/core/worker"
)

// workerProc is one life of the worker daemon: its machine, and around it what
// worker.Worker does around its own.
type workerProc struct {
	h        *host
	instance string
	id       job.WorkerID
	m        *worker.Machine
	inbox    []worker.Event
	busy     bool
	frozen   bool
	doom     Point
	alarm    int

	session *conn
	sent    int // frames of the session
	flush   bool
	posts   map[job.Key]*post
	dirty   map[job.Key]bool
	once    []job.Report

	tickets map[worker.Ticket]func(error)
	ticket  worker.Ticket
	stops   map[job.Key]int // number of the newest StopGroup

	attached   *pluginProc
	given      map[job.Key]*given
	fromPlugin []worker.Event
}

// post is a report on the board.
type post struct {
	report job.Report
	acked  bool
}

// instant is the worker's clock; only the wall part jumps.
func (h *host) instant() worker.Instant {
	return worker.Instant{Boot: h.w.now - h.booted + time.Second, Wall: epoch().Add(h.w.now + h.wall)}
}

// startWorker begins a life (worker.Run).
func (h *host) startWorker() {
	if h.worker != nil {
		return
	}
	h.lives++
	p := &workerProc{
		h: h, instance: fmt.Sprintf("%s-%d", h.name, h.lives), id: h.id,
		m:     worker.NewMachine(worker.MachineConfig{BootID: h.bootID(), Slots: h.w.plan.Slots}),
		posts: map[job.Key]*post{}, dirty: map[job.Key]bool{}, tickets: map[worker.Ticket]func(error){},
		stops: map[job.Key]int{}, given: map[job.Key]*given{},
	}
	h.worker = p
	st := journal.Replay(h.records)
	h.w.log("%s: worker starts, boot %d, %d attempts", h.name, h.boot, len(st.Attempts))
	effects := p.m.Restore(h.instant(), st)
	held := worker.Reopen(st, h.bootID(), keyText)
	p.commit(effects)
	for _, e := range effects {
		p.perform(e)
	}
	var alive []worker.Holding
	for _, a := range held {
		if a.Alive {
			alive = append(alive, a)
		}
	}
	p.resumePlugins(alive)
	p.arm()
	h.w.soon(p.register)
}

func (p *workerProc) dead() bool { return p.h.worker != p }

// post puts an event into the inbox.
func (p *workerProc) post(ev worker.Event) {
	p.inbox = append(p.inbox, ev)
	p.wake()
}

func (p *workerProc) wake() {
	if p.busy || p.frozen || p.dead() {
		return
	}
	p.busy = true
	p.h.w.soon(func() {
		p.busy = false
		if !p.dead() && !p.frozen {
			p.round()
		}
	})
}

// round is one turn of worker.loop.
func (p *workerProc) round() {
	evs := p.inbox
	p.inbox = nil
	var effects []worker.Effect
	now := p.h.instant()
	for _, ev := range evs {
		effects = append(effects, p.m.Step(now, ev)...)
	}
	effects = append(effects, p.m.Step(now, worker.Tick{})...)
	if p.doomed(BeforeCommit) {
		return
	}
	p.commit(effects)
	if p.doomed(AfterCommit) {
		return
	}
	for i, e := range effects {
		if i == len(effects)/2 && p.doomed(AmidActs) {
			return
		}
		p.perform(e)
	}
	p.arm()
}

func (p *workerProc) doomed(at Point) bool {
	if p.doom != at {
		return false
	}
	p.h.killWorker()
	return true
}

// commit appends the records of a round; one that raises term or epoch is synced.
func (p *workerProc) commit(effects []worker.Effect) {
	h := p.h
	before := journal.Replay(h.records)
	for _, e := range effects {
		if r, ok := e.(worker.Record); ok {
			h.records = append(h.records, r.Record)
		}
	}
	st := journal.Replay(h.records)
	h.w.check.fence(h, st.Fence)
	if st.Fence.Term > before.Fence.Term || st.Epoch > before.Epoch {
		h.synced = len(h.records)
	}
}

func (p *workerProc) arm() {
	at, ok := p.m.Next()
	if !ok {
		return
	}
	p.alarm++
	alarm := p.alarm
	p.h.w.at(p.h.booted-time.Second+at, func() {
		if p.alarm == alarm && !p.dead() {
			p.wake()
		}
	})
}

// perform carries out one effect.
func (p *workerProc) perform(effect worker.Effect) {
	switch e := effect.(type) {
	case worker.Publish:
		p.publish(e)
	case worker.Announce:
		p.once = append(p.once, *e.Report)
		p.send()
	case worker.Unpublish:
		delete(p.posts, e.Key)
		delete(p.dirty, e.Key)
	case worker.Reply:
		if answer := p.tickets[e.Ticket]; answer != nil {
			delete(p.tickets, e.Ticket)
			answer(e.Err)
		}
	case worker.AckExit:
		p.ackPlugin(e.Key)
	case worker.StartProcess:
		p.launch(e.Key, e.Void)
	default:
		p.act(effect)
	}
}

// later does something in this life of the worker, unless it is frozen.
func (p *workerProc) later(d time.Duration, do func()) {
	p.h.w.after(d, func() {
		switch {
		case p.dead():
		case p.frozen:
			p.later(100*time.Millisecond, do)
		default:
			do()
		}
	})
}

// act carries out what takes time (worker.hands).
func (p *workerProc) act(effect worker.Effect) {
	w := p.h.w
	quick := w.between(0, 4*time.Millisecond)
	switch e := effect.(type) {
	case worker.Prepare:
		p.later(quick, func() { p.post(p.prepared(e.Key, *e.Spec)) })
	case worker.Relaunch:
		p.later(quick, func() { p.post(p.prepared(e.Key, job.Spec{})) })
	case worker.Settle:
		p.settleMain(e)
	case worker.StopGroup:
		p.stopGroup(e)
	case worker.Finish:
		p.later(quick, func() {
			w.check.nothingLives(p.h, e.Key, "its output is sealed")
			p.post(worker.Finished{Key: e.Key})
		})
	case worker.Watch:
		p.watch(e.Key)
	case worker.ProbeIdle:
		p.later(quick, func() { p.post(worker.Quiet{Key: e.Key}) })
	}
}

func (p *workerProc) prepared(key job.Key, spec job.Spec) worker.Prepared {
	if p.h.w.chance(100) {
		return worker.Prepared{Key: key, Refusal: errs.E("start attempt", errs.Invalid, "PATH_REFUSED", errors.New("refused"))}
	}
	return worker.Prepared{Key: key, Intent: journal.Intent{
		BootID: p.h.bootID(), Spec: spec, Mark: keyText(key), Runner: journal.Runner{Name: "fake", Version: "1", SHA256: "x"},
	}}
}

// settleMain waits for the children for as long as they may linger.
func (p *workerProc) settleMain(e worker.Settle) {
	w := p.h.w
	end := w.now + e.Linger
	var look func()
	look = func() {
		proc := p.h.procs[e.Key]
		switch {
		case p.stops[e.Key] > 0: // a stop took over
		case proc == nil || !proc.alive():
			p.post(worker.Settled{Key: e.Key, Finished: &worker.Finished{Key: e.Key}})
		case w.now < end:
			p.later(50*time.Millisecond, look)
		case e.Detach:
			p.post(worker.Settled{Key: e.Key, Finished: &worker.Finished{Key: e.Key, Open: true}})
		default:
			p.post(worker.Settled{Key: e.Key, Left: true})
		}
	}
	p.later(w.between(0, 2*time.Millisecond), look)
}

// stopGroup ends every process of an attempt; a further one overtakes it.
func (p *workerProc) stopGroup(e worker.StopGroup) {
	w := p.h.w
	p.stops[e.Key]++
	mine := p.stops[e.Key]
	proof := func() {
		if p.stops[e.Key] != mine {
			return
		}
		w.check.nothingLives(p.h, e.Key, "its stop is proved")
		p.post(worker.GroupStopped{Key: e.Key, Proof: job.StopProof{Method: "cgroup-kill", Killed: 1}})
	}
	p.later(w.between(0, 3*time.Millisecond), func() {
		if p.stops[e.Key] != mine {
			return
		}
		if w.chance(80) {
			p.post(worker.GroupStopped{Key: e.Key, Err: errs.E("stop", errs.Internal, "UNKILLABLE", errors.New("a process withstands"))})
			return
		}
		proc := p.h.procs[e.Key]
		if proc != nil && proc.alive() && proc.job.Stubborn && e.Grace > 0 {
			p.later(e.Grace, func() {
				if p.stops[e.Key] == mine {
					p.h.killAll(e.Key, sigkill)
					p.later(w.between(0, 3*time.Millisecond), proof)
				}
			})
			return
		}
		signal := sigterm
		if e.Grace == 0 {
			signal = sigkill
		}
		p.h.killAll(e.Key, signal)
		p.later(w.between(0, 3*time.Millisecond), proof)
	})
}

func (p *workerProc) watch(key job.Key) {
	var look func()
	look = func() {
		if proc := p.h.procs[key]; proc != nil && proc.alive() {
			p.later(100*time.Millisecond, look)
			return
		}
		p.post(worker.Emptied{Key: key})
	}
	p.later(0, look)
}

// publish is board.publish.
func (p *workerProc) publish(e worker.Publish) {
	p.posts[e.Report.Key] = &post{*e.Report, e.Acked || e.Volatile}
	if p.session != nil && !e.Quiet && !e.Volatile {
		p.dirty[e.Report.Key] = true
		p.send()
	}
}

// greet answers whether this worker takes a session of that term.
func (p *workerProc) greet(term uint64, answer func(error)) {
	p.ticket++
	p.tickets[p.ticket] = func(err error) {
		p.h.w.soon(func() {
			if !p.dead() {
				answer(err)
			}
		})
	}
	p.post(worker.TermSeen{Term: term, Ticket: p.ticket})
}

// attach begins a session; it ends the one before.
func (p *workerProc) attach(c *conn) {
	if old := p.session; old != nil {
		old.close()
	}
	p.session, p.sent, p.once = c, 0, nil
	clear(p.dirty)
	for key, post := range p.posts {
		if !post.acked {
			p.dirty[key] = true
		}
	}
	p.send()
}

// perFrame is how many reports one frame takes; small, so that a hello needs
// several.
const perFrame = 3

// send sends what has changed (Worker.send).
func (p *workerProc) send() {
	if p.session == nil || p.flush {
		return
	}
	p.flush = true
	p.later(p.h.w.between(0, 2*time.Millisecond), func() {
		p.flush = false
		c := p.session
		if c == nil || !c.open {
			return
		}
		up := scheduler.Up{Reports: p.once}
		p.once = nil
		more := false
		for _, key := range sortedKeys(p.dirty) {
			if len(up.Reports) >= perFrame {
				more = true
				break
			}
			delete(p.dirty, key)
			if post := p.posts[key]; post != nil {
				up.Reports = append(up.Reports, post.report)
			}
		}
		if p.sent >= 0 { // the hello is not complete yet
			up.Hello = &scheduler.Hello{BootID: p.h.bootID(), InstanceID: p.instance, Complete: !more}
			p.sent++
			if !more {
				p.sent = -1
			}
		}
		if up.Hello != nil || len(up.Reports) > 0 {
			c.up.send(up)
		}
		if more {
			p.send()
		}
	})
}

// receive takes a frame of the scheduler (Worker.receive).
func (p *workerProc) receive(d scheduler.Down) {
	if !p.dead() && p.session != nil {
		p.take(d, p.session.term)
	}
}

func (p *workerProc) take(d scheduler.Down, term uint64) {
	for _, o := range d.Starts {
		p.post(worker.StartAsked{Order: o, Session: term})
	}
	for _, o := range d.Stops {
		p.post(worker.StopAsked{Order: o, Session: term})
	}
	if len(d.Acks) > 0 {
		p.post(worker.Acked{Keys: d.Acks})
	}
	if len(d.Forgets) > 0 {
		p.post(worker.Forgotten{Keys: d.Forgets})
	}
}

// register introduces the worker until the scheduler knows it.
func (p *workerProc) register() {
	if p.dead() {
		return
	}
	w := p.h.w
	ev := scheduler.Event{Register: &scheduler.Register{Fresh: w.newID(), Registration: registry.Registration{
		ID: p.h.id, Name: p.h.name, Address: p.h.name, Slots: w.plan.Slots, BootID: p.h.bootID(), InstanceID: p.instance,
		Version: "1", Commands: []string{"*"},
	}}}
	w.call(p, ev, func(r scheduler.Result, ok bool) {
		switch {
		case p.frozen || !ok || r.Err != nil:
			p.later(w.between(200*time.Millisecond, 2*time.Second), p.register)
		default:
			p.h.id, p.id = r.Worker.ID, r.Worker.ID
			p.later(heartbeat, p.beat)
		}
	})
}

func (p *workerProc) beat() {
	w := p.h.w
	w.call(p, scheduler.Event{Heartbeat: &scheduler.Heartbeat{ID: p.id}}, func(r scheduler.Result, ok bool) {
		if ok && errs.KindOf(r.Err) == errs.NotFound {
			p.register()
			return
		}
		p.later(heartbeat, p.beat)
	})
}
