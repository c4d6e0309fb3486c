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
	flight  map[job.Key]int
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

// instant is the worker's clock, which runs at a rate of its own; only the wall
// part jumps.
func (h *host) instant() worker.Instant {
	return worker.Instant{Boot: h.rate.clock(h.w.now-h.booted) + time.Second, Wall: epoch().Add(h.w.now + h.wall)}
}

// startWorker begins a life (worker.Run).
func (h *host) startWorker() {
	if h.worker != nil {
		return
	}
	h.lives++
	wp := &workerProc{
		h: h, instance: fmt.Sprintf("%s-%d", h.name, h.lives), id: h.id,
		m:     worker.NewMachine(worker.MachineConfig{BootID: h.bootID(), Slots: h.w.plan.Slots}),
		posts: map[job.Key]*post{}, dirty: map[job.Key]bool{}, flight: map[job.Key]int{}, tickets: map[worker.Ticket]func(error){},
		stops: map[job.Key]int{}, given: map[job.Key]*given{},
	}
	h.worker, h.awake = wp, h.w.now
	st := journal.Replay(h.records)
	h.w.log("%s: worker starts, boot %d, %d attempts", h.name, h.boot, len(st.Attempts))
	effects := wp.m.Restore(h.instant(), st)
	held := worker.Reopen(st, h.bootID(), keyText)
	wp.commit(effects)
	for _, e := range effects {
		wp.perform(e)
	}
	var alive []worker.Holding
	for _, a := range held {
		if a.Alive {
			alive = append(alive, a)
		}
	}
	wp.resumePlugins(alive)
	wp.arm()
	h.w.soon(wp.register)
}

func (wp *workerProc) dead() bool { return wp.h.worker != wp }

// post puts an event into the inbox.
func (wp *workerProc) post(ev worker.Event) {
	wp.inbox = append(wp.inbox, ev)
	wp.wake()
}

func (wp *workerProc) wake() {
	if wp.busy || wp.frozen || wp.dead() {
		return
	}
	wp.busy = true
	wp.h.w.soon(func() {
		wp.busy = false
		if !wp.dead() && !wp.frozen {
			wp.round()
		}
	})
}

// round is one turn of worker.loop.
func (wp *workerProc) round() {
	evs := wp.inbox
	wp.inbox = nil
	var effects []worker.Effect
	now := wp.h.instant()
	for _, ev := range evs {
		effects = append(effects, wp.m.Step(now, ev)...)
	}
	effects = append(effects, wp.m.Step(now, worker.Tick{})...)
	if wp.doomed(BeforeCommit) {
		return
	}
	wp.commit(effects)
	if wp.doomed(AfterCommit) {
		return
	}
	for i, e := range effects {
		if i == len(effects)/2 && wp.doomed(AmidActs) {
			return
		}
		wp.perform(e)
	}
	wp.arm()
}

func (wp *workerProc) doomed(at Point) bool {
	if wp.doom != at {
		return false
	}
	wp.h.killWorker()
	return true
}

// commit appends the records of a round; one that raises term or epoch is synced.
func (wp *workerProc) commit(effects []worker.Effect) {
	h := wp.h
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

func (wp *workerProc) arm() {
	at, ok := wp.m.Next()
	if !ok {
		return
	}
	wp.alarm++
	alarm := wp.alarm
	wp.h.w.at(wp.h.booted+wp.h.rate.real(at-time.Second), func() {
		if wp.alarm == alarm && !wp.dead() {
			wp.wake()
		}
	})
}

// perform carries out one effect.
func (wp *workerProc) perform(effect worker.Effect) {
	switch e := effect.(type) {
	case worker.Publish:
		wp.publish(e)
	case worker.Announce:
		wp.once = append(wp.once, *e.Report)
		wp.send()
	case worker.Unpublish:
		delete(wp.posts, e.Key)
		delete(wp.dirty, e.Key)
	case worker.Reply:
		if answer := wp.tickets[e.Ticket]; answer != nil {
			delete(wp.tickets, e.Ticket)
			answer(e.Err)
		}
	case worker.AckExit:
		wp.ackPlugin(e.Key)
	case worker.StartProcess:
		wp.launch(e.Key, e.Void)
	default:
		wp.act(effect)
	}
}

// later does something in this life of the worker, unless it is frozen.
func (wp *workerProc) later(d time.Duration, do func()) {
	wp.h.w.after(d, func() {
		switch {
		case wp.dead():
		case wp.frozen:
			wp.later(100*time.Millisecond, do)
		default:
			do()
		}
	})
}

// act carries out what takes time (worker.hands).
func (wp *workerProc) act(effect worker.Effect) {
	w := wp.h.w
	quick := w.between(0, 4*time.Millisecond)
	switch e := effect.(type) {
	case worker.Prepare:
		wp.later(quick, func() { wp.post(wp.prepared(e.Key, *e.Spec)) })
	case worker.Relaunch:
		wp.later(quick, func() { wp.post(wp.prepared(e.Key, job.Spec{})) })
	case worker.Settle:
		wp.settleMain(e)
	case worker.StopGroup:
		wp.stopGroup(e)
	case worker.Finish:
		wp.later(quick, func() {
			w.check.nothingLives(wp.h, e.Key, "its output is sealed")
			wp.post(worker.Finished{Key: e.Key, Stdout: sealed(e.Key)})
		})
	case worker.Watch:
		wp.watch(e.Key)
	case worker.ProbeIdle:
		wp.later(quick, func() { wp.post(worker.Quiet{Key: e.Key}) })
	}
}

func (wp *workerProc) prepared(key job.Key, spec job.Spec) worker.Prepared {
	if wp.h.w.chance(100) {
		return worker.Prepared{Key: key, Refusal: errs.E("start attempt", errs.Invalid, "PATH_REFUSED", errors.New("refused"))}
	}
	return worker.Prepared{Key: key, Intent: journal.Intent{
		BootID: wp.h.bootID(), Spec: spec, Mark: keyText(key), Runner: journal.Runner{Name: "fake", Version: "1", SHA256: "x"},
	}}
}

// sealed is the output of an attempt that nobody holds any more.
func sealed(key job.Key) job.Stream {
	return job.Stream{Size: uint64(key.Attempt), SHA256: keyText(key)}
}

// settleMain waits for the children for as long as they may linger.
func (wp *workerProc) settleMain(e worker.Settle) {
	w := wp.h.w
	end := w.now + e.Linger
	var look func()
	look = func() {
		proc := wp.h.procs[e.Key]
		switch {
		case wp.stops[e.Key] > 0: // a stop took over
		case proc == nil || !proc.alive():
			wp.post(worker.Settled{Key: e.Key, Finished: &worker.Finished{Key: e.Key, Stdout: sealed(e.Key)}})
		case w.now < end:
			wp.later(50*time.Millisecond, look)
		case e.Detach:
			wp.post(worker.Settled{Key: e.Key, Finished: &worker.Finished{Key: e.Key, Open: true}})
		default:
			wp.post(worker.Settled{Key: e.Key, Left: true})
		}
	}
	wp.later(w.between(0, 2*time.Millisecond), look)
}

// stopGroup ends every process of an attempt; a further one overtakes it.
func (wp *workerProc) stopGroup(e worker.StopGroup) {
	w := wp.h.w
	wp.stops[e.Key]++
	mine := wp.stops[e.Key]
	proof := func() {
		if wp.stops[e.Key] != mine {
			return
		}
		w.check.nothingLives(wp.h, e.Key, "its stop is proved")
		wp.post(worker.GroupStopped{Key: e.Key, Proof: job.StopProof{Method: "cgroup-kill", Killed: 1}})
	}
	wp.later(w.between(0, 3*time.Millisecond), func() {
		if wp.stops[e.Key] != mine {
			return
		}
		if w.chance(80) {
			wp.post(worker.GroupStopped{Key: e.Key, Err: errs.E("stop", errs.Internal, "UNKILLABLE", errors.New("a process withstands"))})
			return
		}
		proc := wp.h.procs[e.Key]
		if proc != nil && proc.alive() && proc.job.Stubborn && e.Grace > 0 {
			wp.later(e.Grace, func() {
				if wp.stops[e.Key] == mine {
					wp.h.killAll(e.Key, sigkill)
					wp.later(w.between(0, 3*time.Millisecond), proof)
				}
			})
			return
		}
		signal := sigterm
		if e.Grace == 0 {
			signal = sigkill
		}
		wp.h.killAll(e.Key, signal)
		wp.later(w.between(0, 3*time.Millisecond), proof)
	})
}

func (wp *workerProc) watch(key job.Key) {
	var look func()
	look = func() {
		if proc := wp.h.procs[key]; proc != nil && proc.alive() {
			wp.later(100*time.Millisecond, look)
			return
		}
		wp.post(worker.Emptied{Key: key, Stdout: sealed(key)})
	}
	wp.later(0, look)
}

// publish is board.publish.
func (wp *workerProc) publish(e worker.Publish) {
	wp.posts[e.Report.Key] = &post{*e.Report, e.Acked || e.Volatile}
	if wp.session != nil && !e.Quiet && !e.Volatile {
		wp.dirty[e.Report.Key] = true
		wp.send()
	}
}

// greet answers whether this worker takes a session of that term.
func (wp *workerProc) greet(term uint64, h job.History, answer func(error)) {
	wp.ticket++
	wp.tickets[wp.ticket] = func(err error) {
		wp.h.w.soon(func() {
			if !wp.dead() {
				answer(err)
			}
		})
	}
	wp.post(worker.TermSeen{Term: term, History: h, Ticket: wp.ticket})
}

// attach begins a session; it ends the one before.
func (wp *workerProc) attach(c *conn) {
	if old := wp.session; old != nil {
		old.close()
	}
	wp.session, wp.sent, wp.once = c, 0, nil
	for _, frame := range wp.h.late {
		wp.h.w.soon(frame)
	}
	wp.h.late = nil
	clear(wp.dirty)
	clear(wp.flight)
	for key, post := range wp.posts {
		if !post.acked {
			wp.dirty[key] = true
		}
	}
	wp.send()
}

// perFrame is how many reports one frame takes; small, so that a hello needs
// several.
const perFrame = 3

// send sends what has changed (Worker.send).
func (wp *workerProc) send() {
	if wp.session == nil || wp.flush {
		return
	}
	wp.flush = true
	wp.later(wp.h.w.between(0, 2*time.Millisecond), func() {
		wp.flush = false
		c := wp.session
		if c == nil || !c.open {
			return
		}
		up := scheduler.Up{Reports: wp.once}
		wp.once = nil
		more := false
		for _, key := range sortedKeys(wp.dirty) {
			if len(up.Reports) >= perFrame {
				more = true
				break
			}
			delete(wp.dirty, key)
			if post := wp.posts[key]; post != nil {
				if post.report.State.Terminal() {
					wp.flight[key]++
				}
				up.Reports = append(up.Reports, post.report)
			}
		}
		if wp.sent >= 0 { // the hello is not complete yet
			up.Hello = &scheduler.Hello{BootID: wp.h.bootID(), InstanceID: wp.instance, Complete: !more, Lapses: wp.m.Lapses()}
			wp.sent++
			if !more {
				wp.sent = -1
			}
		}
		if up.Hello != nil || len(up.Reports) > 0 {
			c.up.send(up)
		}
		if more {
			wp.send()
		}
	})
}

// receive takes a frame of the scheduler (Worker.receive).
func (wp *workerProc) receive(d scheduler.Down) {
	if !wp.dead() && wp.session != nil {
		wp.take(d, wp.session.term)
	}
}

// landed is board.landed.
func (wp *workerProc) landed(keys []job.Key) (landed []job.Key) {
	for _, key := range keys {
		wp.flight[key] = max(0, wp.flight[key]-1)
		if !wp.dirty[key] && wp.flight[key] == 0 {
			landed = append(landed, key)
		}
	}
	return landed
}

func (wp *workerProc) take(d scheduler.Down, term uint64) {
	for _, o := range d.Starts {
		wp.post(worker.StartAsked{Order: o, Session: term})
	}
	for _, o := range d.Stops {
		wp.h.w.check.stopOrdered(o)
		wp.post(worker.StopAsked{Order: o, Session: term})
	}
	if len(d.Acks) > 0 {
		wp.post(worker.Acked{Keys: wp.landed(d.Acks)})
	}
	if len(d.Forgets) > 0 {
		wp.post(worker.Forgotten{Keys: d.Forgets})
	}
}

// register introduces the worker until the scheduler knows it.
func (wp *workerProc) register() {
	if wp.dead() {
		return
	}
	w := wp.h.w
	ev := scheduler.Event{Register: &scheduler.Register{Fresh: w.newID(), Registration: registry.Registration{
		ID: wp.h.id, Name: wp.h.name, Address: wp.h.name, Slots: w.plan.Slots, BootID: wp.h.bootID(), InstanceID: wp.instance,
		Version: "1", Commands: []string{"*"}, Lapses: wp.m.Lapses(),
	}}}
	renewed := wp.asking()
	w.call(wp, ev, func(r scheduler.Result, ok bool) {
		switch {
		case wp.frozen || !ok || r.Err != nil:
			wp.later(w.between(200*time.Millisecond, 2*time.Second), wp.register)
		default:
			wp.h.id, wp.id = r.Worker.ID, r.Worker.ID
			wp.h.ids[wp.id] = true
			renewed()
			wp.later(heartbeat, wp.beat)
		}
	})
}

// asking remembers when the scheduler was asked for a lease (Worker.heartbeat);
// what it returns is called with the answer.
func (wp *workerProc) asking() func() {
	e := worker.Renewed{Asked: wp.h.instant().Boot, Lease: lease, Term: wp.h.w.sched.disk.term, Lapses: wp.m.Lapses()}
	return func() { wp.post(e) }
}

func (wp *workerProc) beat() {
	w := wp.h.w
	renewed := wp.asking()
	w.call(wp, scheduler.Event{Heartbeat: &scheduler.Heartbeat{ID: wp.id, Lapses: wp.m.Lapses()}}, func(r scheduler.Result, ok bool) {
		if ok && errs.KindOf(r.Err) == errs.NotFound {
			wp.register()
			return
		}
		if ok && r.Err == nil {
			renewed()
		}
		wp.later(heartbeat, wp.beat)
	})
}
