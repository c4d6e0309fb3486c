package sim

import (
	"fmt"
	"strings"
	"time"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/journal"
	"github.com/droverhq/drover/core/scheduler"
)

// host is one machine: what is on its disk, its processes, and the daemons.
type host struct {
	w    *World
	n    int
	name string

	boot    int
	booted  time.Duration
	records []journal.Record // of the worker's journal
	synced  int              // how many of them survive a power loss
	id      job.WorkerID     // identity on disk
	graves  []*pluginProc    // dead plugins whose journals are still there
	wall    time.Duration    // how far the wall clock is off

	worker *workerProc // nil: down
	plugin *pluginProc // nil: none runs
	procs  map[job.Key]*process
	lives  int
	pids   int
	rate   rate          // of its clocks
	awake  time.Duration // since when its worker has been up and not frozen

	rebooted, pluginKilled, workerKilled bool // at any time

	late []func() // frames of earlier sessions that come when the next one begins

	cutUp, cutDown bool
	cuts           int
	mute           time.Duration // until then no session with it can begin

	ids map[job.WorkerID]bool // all that schedulers have given it
}

// hurt tells whether results may be LOST: the host was rebooted, or both its worker
// and its plugin were killed. One of them alone costs nothing (P7).
func (h *host) hurt() bool { return h.rebooted || h.pluginKilled && h.workerKilled }

func newHost(w *World, n int) *host {
	return &host{w: w, n: n, name: fmt.Sprintf("w%d", n+1), boot: 1, rate: w.plan.rate(n + 1), procs: map[job.Key]*process{}, ids: map[job.WorkerID]bool{}}
}

func (w *World) hostOf(name string) *host {
	for _, h := range w.hosts {
		if h.name == name {
			return h
		}
	}
	panic("unreachable: no host " + name)
}

// asleep tells whether the worker has had no time to act: it is down, frozen, or
// has just come back.
func (h *host) asleep() bool {
	return h.worker == nil || h.worker.frozen || h.w.now-h.awake < comesToAct
}

// comesToAct is how long a worker that comes back needs to stop what it must.
const comesToAct = 5 * time.Second

func (h *host) bootID() string { return fmt.Sprintf("%s-boot%d", h.name, h.boot) }

// process is the truth about one process and its children.
type process struct {
	key      job.Key
	boot     int
	pid      int
	ticks    uint64 // since boot, as /proc counts
	job      Job
	main     bool // the main process lives
	children bool
	parent   parent
	zombie   bool // it has ended and its parent has not reaped it
	code     int32
	signal   string
	reaped   bool // its result is gone or was taken
}

// parent says who may reap a process.
type parent uint8

const (
	byPlugin parent = iota
	byWorker        // a subreaper above a dead plugin
	byInit
)

func (p *process) alive() bool { return p.main || p.children }

// fork makes the process of an attempt: the moment that P2 is about.
func (h *host) fork(key job.Key) *process {
	h.pids++
	j := h.w.check.began(h, key)
	ticks := uint64(h.instant().Boot / (10 * time.Millisecond))
	p := &process{key: key, boot: h.boot, pid: 1000*h.boot + h.pids, ticks: ticks, job: j, main: true, children: j.Children > 0}
	h.procs[key] = p
	h.w.log("%s: process %d of %s begins", h.name, p.pid, h.w.check.label(key))
	h.w.after(j.Duration, func() { h.exit(p, j.Code, "") })
	h.w.after(j.Duration+j.Children, func() { h.childrenEnd(p) })
	return p
}

// exit ends the main process.
func (h *host) exit(p *process, code int32, signal string) {
	if !p.main {
		return
	}
	p.main, p.zombie, p.code, p.signal = false, true, code, signal
	h.w.check.exited(p)
	h.w.log("%s: process %d ends with %d %s", h.name, p.pid, code, signal)
	switch {
	case p.parent == byPlugin && h.plugin != nil:
		h.plugin.child(p)
	case p.parent == byWorker && h.worker != nil:
		h.worker.child(p)
	default:
		h.orphan(p)
	}
}

func (h *host) childrenEnd(p *process) { p.children = false }

// orphan gives a process to init, which reaps it at once.
func (h *host) orphan(p *process) {
	p.parent = byInit
	if p.zombie {
		p.zombie, p.reaped = false, true
	}
	if h.worker != nil && !p.main {
		h.worker.child(p) // a pidfd that was opened before tells, on newer kernels
	}
}

// of a dead parent: the next subreaper above takes its children.
func (h *host) reparent(from, to parent) {
	for _, p := range h.sortedProcs() {
		if p.parent != from || p.reaped || p.boot != h.boot {
			continue
		}
		if to == byWorker && h.worker == nil {
			to = byInit
		}
		p.parent = to
		if to == byInit && p.zombie {
			p.zombie, p.reaped = false, true
		}
	}
}

func (h *host) sortedProcs() []*process {
	var out []*process
	for _, key := range sortedKeys(h.procs) {
		out = append(out, h.procs[key])
	}
	return out
}

// killAll ends every process of an attempt.
func (h *host) killAll(key job.Key, signal string) {
	if p := h.procs[key]; p != nil {
		p.children = false
		h.exit(p, 0, signal)
	}
}

func (h *host) killWorker() {
	if h.worker == nil {
		return
	}
	h.w.log("%s: worker is killed", h.name)
	h.workerKilled = true
	p := h.worker
	h.worker = nil
	if p.session != nil {
		p.session.close()
	}
	h.reparent(byWorker, byInit)
}

func (h *host) killPlugin() {
	p := h.plugin
	if p == nil {
		return
	}
	h.w.log("%s: plugin is killed", h.name)
	h.pluginKilled = true
	p.alive = false
	h.plugin = nil
	h.graves = append(h.graves, p)
	h.reparent(byPlugin, byWorker)
	if h.worker != nil {
		h.worker.pluginDied(p)
	}
}

// reboot ends everything; of the journal only what was synced is sure to stay.
func (h *host) reboot() {
	h.w.log("%s: reboots", h.name)
	h.rebooted = true
	h.killWorker()
	if h.plugin != nil {
		h.plugin.alive = false
		h.graves = append(h.graves, h.plugin)
		h.plugin = nil
	}
	for _, p := range h.sortedProcs() {
		p.main, p.children, p.zombie, p.reaped = false, false, false, true
	}
	if lost := len(h.records) - h.synced; lost > 0 {
		h.records = h.records[:h.synced+h.w.rng.IntN(lost+1)]
	}
	h.boot++
	h.booted = h.w.now
}

// inflict makes a fault happen.
func (w *World) inflict(f Fault) {
	h := w.hosts[f.Host]
	w.result.Happened[string(f.Kind)]++
	w.log("fault: %s of %s for %v at point %d", f.Kind, h.name, f.For, f.Point)
	switch f.Kind {
	case KillScheduler:
		w.doomScheduler(f)
	case KillWorker:
		h.doomWorker(f)
	case KillPlugin:
		h.doomPlugin(f)
	case KillBoth:
		h.killPlugin()
		h.killWorker()
		w.after(f.For, h.startWorker)
	case Reboot:
		h.reboot()
		w.after(f.For, h.startWorker)
	case CutUp, CutDown, CutBoth:
		h.cut(f)
	case Reset:
		h.flap(w.now + f.For)
	case NoSession:
		h.mute = max(h.mute, w.now+f.For)
		h.reset()
	case FreezeSched:
		w.sched.frozen = true
		life := w.sched.life
		w.after(f.For, func() {
			if w.sched.life == life && w.sched.up {
				w.sched.thaw()
			}
		})
	case FreezeWorker:
		h.freeze(f.For)
	case ClockJump:
		h.wall += w.between(-10*365*24*time.Hour, 10*365*24*time.Hour)
	case Drain:
		w.drain(h, f)
	case Rollback:
		w.sched.rollback(f)
	case Remove:
		w.remove(h, f)
	}
}

// flap ends the session with a worker, and those that follow until end.
func (h *host) flap(end time.Duration) {
	h.reset()
	if h.w.now < end {
		h.w.after(h.w.between(20*time.Millisecond, 200*time.Millisecond), func() { h.flap(end) })
	}
}

// reset ends the session with a worker.
func (h *host) reset() {
	if h.worker != nil && h.worker.session != nil {
		h.worker.session.close()
	}
}

// remove makes a worker unreachable and lets an operator remove it. Its jobs keep running,
// and the worker comes back with them.
func (w *World) remove(h *host, f Fault) {
	away := lease + 3*time.Second + f.For
	switch f.Point {
	case BeforeCommit:
		h.killWorker()
		w.after(away, h.startWorker)
	case AfterCommit:
		h.freeze(away)
	default:
		h.cut(Fault{Kind: CutBoth, For: away})
	}
	end, removed := w.now+away, false
	var try func()
	try = func() {
		if removed || w.now >= min(end, faultyFor) {
			return
		}
		w.after(time.Second, try)
		if id, ok := w.sched.find(h.name); ok && w.sched.serves() {
			w.check.asked[id] = true
			w.sched.ask(scheduler.Event{Remove: &id}, func(r scheduler.Result) { removed = removed || r.Err == nil })
		}
	}
	try()
}

func (w *World) doomScheduler(f Fault) {
	s := w.sched
	if !s.up || s.real != nil { // each life of an old copy would raise its term
		return
	}
	if f.Point == AtOnce {
		s.kill()
	}
	s.doom = f.Point
	life := s.life
	w.after(f.For, func() {
		if s.life == life {
			s.kill() // when no round came by
			s.start()
		}
	})
}

func (h *host) doomWorker(f Fault) {
	if h.worker == nil {
		return
	}
	if f.Point == AtOnce {
		h.killWorker()
	} else {
		h.worker.doom = f.Point
	}
	h.w.after(f.For, func() {
		h.killWorker()
		h.startWorker()
	})
}

func (h *host) doomPlugin(f Fault) {
	p := h.plugin
	if p == nil {
		return
	}
	if f.Point == AtOnce {
		h.killPlugin()
		return
	}
	p.doom = f.Point
	h.w.after(max(f.For, time.Second), func() {
		if p.alive {
			h.killPlugin()
		}
	})
}

func (h *host) cut(f Fault) {
	h.cuts++
	mine := h.cuts
	h.cutUp, h.cutDown = f.Kind != CutDown, f.Kind != CutUp
	h.w.after(f.For, func() {
		if h.cuts == mine {
			h.cutUp, h.cutDown = false, false
		}
	})
}

func (h *host) freeze(d time.Duration) {
	p := h.worker
	if p == nil {
		return
	}
	p.frozen = true
	h.w.after(d, func() {
		if h.worker == p {
			p.frozen, h.awake = false, h.w.now
			p.wake()
		}
	})
}

// heal ends all faults.
func (w *World) heal() {
	w.log("all faults end")
	w.sched.rollForward()
	if !w.sched.up {
		w.sched.start()
	}
	w.sched.doom = AtOnce
	w.sched.thaw()
	for _, h := range w.hosts {
		h.cuts++
		h.cutUp, h.cutDown, h.mute = false, false, 0
		if h.worker == nil {
			h.startWorker()
		}
		if h.worker.frozen {
			h.awake = w.now
		}
		h.worker.doom, h.worker.frozen = AtOnce, false
		h.worker.wake()
	}
}

func keyText(k job.Key) string {
	return fmt.Sprintf("%s/%d", strings.ToUpper(k.Job.String()[32:]), k.Attempt)
}
