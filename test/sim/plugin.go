package sim

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/journal"
	"github.com/droverhq/drover/core/worker"
)

func sortedKeys[V any](m map[job.Key]V) []job.Key {
	return slices.SortedFunc(maps.Keys(m), func(a, b job.Key) int {
		return cmp.Or(bytes.Compare(a.Job[:], b.Job[:]), cmp.Compare(a.Attempt, b.Attempt))
	})
}

// pluginProc is one process of a runner plugin (plugins/runner.Server).
type pluginProc struct {
	h        *host
	alive    bool
	doom     Point
	parent   *workerProc // who started it; it reaps nothing that its journal does not tell
	attempts map[job.Key]*started
	recent   map[job.Key]*worker.ProcessExited
	log      map[job.Key]*logged // the exit journal
	waiting  map[job.Key]bool    // of a grave: attempts that are not acknowledged
}

// started is an attempt that the plugin was asked to start.
type started struct {
	pid  int
	exit *worker.ProcessExited
}

// logged is what the exit journal says of an attempt: about to fork, forked, ended.
type logged struct {
	pid  int
	exit *worker.ProcessExited
}

func (h *host) startPlugin() {
	if h.plugin != nil {
		return
	}
	h.plugin = &pluginProc{
		h: h, alive: true, parent: h.worker, attempts: map[job.Key]*started{}, recent: map[job.Key]*worker.ProcessExited{}, log: map[job.Key]*logged{},
	}
	if h.worker != nil {
		h.worker.pluginUp()
	}
}

// doomed kills the plugin when it is to die at this point.
func (p *pluginProc) doomed(point Point) bool {
	if p.doom != point {
		return false
	}
	p.h.killPlugin()
	return true
}

// start takes one Start frame, from whichever worker it came.
func (p *pluginProc) start(key job.Key, void bool) {
	if !p.alive {
		return
	}
	if a := p.attempts[key]; a != nil {
		p.repeat(key, a)
		return
	}
	if e := p.recent[key]; e != nil {
		p.tell(*e)
		return
	}
	a := &started{}
	p.attempts[key] = a
	w := p.h.w
	if void || w.chance(60) {
		p.ended(key, a, worker.ProcessExited{Key: key, Exit: journal.Exit{SpawnError: "BAD_REQUEST: no such pipe", Wall: p.h.instant().Wall}})
		return
	}
	p.log[key] = &logged{}
	w.after(w.between(0, time.Millisecond), func() {
		if !p.alive {
			return // killed between its journal and the fork
		}
		if p.doomed(BeforeCommit) {
			return
		}
		proc := p.h.fork(key)
		w.after(w.between(0, time.Millisecond), func() {
			if !p.alive || p.doomed(AfterCommit) {
				return // killed between the fork and its journal
			}
			a.pid, p.log[key].pid = proc.pid, proc.pid
			p.tell(p.h.confirmed(key, a.pid))
			if proc.zombie {
				p.child(proc)
			}
		})
	})
}

func (p *pluginProc) repeat(key job.Key, a *started) {
	if a.pid != 0 {
		p.tell(p.h.confirmed(key, a.pid))
	}
	if a.exit != nil {
		p.tell(*a.exit)
	}
}

// child tells the end of a process, and reaps it a moment later.
func (p *pluginProc) child(proc *process) {
	w := p.h.w
	w.after(w.between(0, 2*time.Millisecond), func() {
		a := p.attempts[proc.key]
		if !p.alive || !proc.zombie || a == nil || a.pid == 0 || p.doomed(AmidActs) {
			return
		}
		p.ended(proc.key, a, worker.ProcessExited{Key: proc.key, PID: proc.pid, Exit: proc.result(job.Wait, p.h.instant().Wall)})
		w.after(w.between(0, time.Millisecond), func() {
			if p.alive {
				proc.zombie, proc.reaped = false, true
			}
		})
	})
}

func (p *process) result(evidence job.Evidence, now time.Time) journal.Exit {
	return journal.Exit{Code: p.code, Signal: p.signal, Evidence: evidence, Wall: now}
}

func (p *pluginProc) ended(key job.Key, a *started, e worker.ProcessExited) {
	a.exit = &e
	if p.log[key] == nil {
		p.log[key] = &logged{}
	}
	p.log[key].exit = &e
	p.tell(e)
}

// ack forgets an exit that is on the worker's disk.
func (p *pluginProc) ack(key job.Key) {
	if a := p.attempts[key]; p.alive && a != nil && a.exit != nil {
		p.recent[key] = a.exit
		delete(p.attempts, key)
		delete(p.log, key)
	}
}

// tell sends news to the worker that listens, if any.
func (p *pluginProc) tell(ev worker.Event) {
	wp := p.h.worker
	if wp == nil || wp.attached != p {
		return
	}
	wp.fromPlugin = append(wp.fromPlugin, ev)
	p.h.w.soon(func() {
		if p.h.worker != wp || len(wp.fromPlugin) == 0 {
			return
		}
		next := wp.fromPlugin[0]
		wp.fromPlugin = wp.fromPlugin[1:]
		wp.news(next)
	})
}

// given is what the worker's plugin host knows of an attempt (pluginhost.given).
type given struct {
	start   bool // not confirmed by a plugin yet: it goes to the next one
	void    bool
	pid     int
	exited  bool
	adopted bool
	watched bool // a pidfd was opened while the process lived
	held    bool
}

// launch hands a start to the plugin (Host.Start).
func (wp *workerProc) launch(key job.Key, void bool) {
	wp.given[key] = &given{start: true, void: void}
	wp.toPlugin(key, void)
}

// toPlugin sends a frame; what was sent arrives, though its sender be killed.
func (wp *workerProc) toPlugin(key job.Key, void bool) {
	p := wp.attached
	if p == nil {
		return // pending: pluginUp sends it
	}
	wp.h.w.soon(func() { p.start(key, void) })
}

// news takes an event of the plugin (hosted.receive).
func (wp *workerProc) news(ev worker.Event) {
	switch e := ev.(type) {
	case worker.ProcessStarted:
		if g := wp.given[e.Key]; g != nil {
			g.held, g.start = false, false
			if g.pid == 0 {
				g.pid = e.Started.PID
				wp.post(e)
			}
		}
	case worker.ProcessExited:
		g := wp.given[e.Key]
		if p := wp.attached; g == nil && p != nil { // on disk since an earlier life
			wp.h.w.soon(func() { p.ack(e.Key) })
		}
		if g != nil && !g.exited {
			g.held, g.exited, g.start = false, true, false
			wp.post(e)
		}
	case synced:
		wp.synced()
	}
}

// synced marks the end of a plugin's replay.
type synced struct{ worker.Tick }

// synced tells of held attempts that the plugin has never heard of
// (hosted.unknown).
func (wp *workerProc) synced() {
	for _, key := range sortedKeys(wp.given) {
		g := wp.given[key]
		if !g.held {
			continue
		}
		delete(wp.given, key)
		if g.pid == 0 {
			wp.post(worker.ProcessUnknown{Key: key})
		} else {
			wp.post(worker.ProcessGone{Key: key})
		}
	}
}

// pluginDied is noticed a moment later; then another one is started.
func (wp *workerProc) pluginDied(p *pluginProc) {
	h := wp.h
	h.w.soon(func() {
		if h.worker != wp {
			return
		}
		wp.attached = nil
		wp.settle(p)
		h.w.after(h.w.between(50*time.Millisecond, 300*time.Millisecond), func() {
			if h.worker == wp {
				h.startPlugin()
			}
		})
	})
}

// settle goes through the attempts of a dead plugin (hosted.settle).
func (wp *workerProc) settle(p *pluginProc) {
	wp.withdraw(p)
	p.waiting = map[job.Key]bool{}
	keys := sortedKeys(wp.given)
	for _, key := range keys {
		if p.log[key] != nil {
			p.waiting[key] = true
		}
	}
	for _, key := range keys {
		if g := wp.given[key]; g != nil && !g.exited && !g.adopted {
			wp.settleOne(key, g, p.log[key])
		}
	}
	wp.h.closeGraves()
}

// withdraw takes back notes of forks that never happened (hosted.withdraw). That is
// proved only of a plugin whose children are the worker's now.
func (wp *workerProc) withdraw(p *pluginProc) {
	for _, key := range sortedKeys(wp.given) {
		left := p.log[key]
		unnamed := left != nil && left.pid == 0 && left.exit == nil && wp.given[key].start
		if unnamed && p.parent == wp && wp.h.procs[key] == nil {
			wp.h.w.result.Happened["never forked, and started again"]++
			delete(p.log, key)
		}
	}
}

// closeGraves removes the journals that nobody needs any more.
func (h *host) closeGraves() {
	h.graves = slices.DeleteFunc(h.graves, func(p *pluginProc) bool { return p.waiting != nil && len(p.waiting) == 0 })
}

func (wp *workerProc) settleOne(key job.Key, g *given, left *logged) {
	g.held = false
	if left != nil && left.pid != 0 && g.pid == 0 {
		g.pid = left.pid
		wp.post(wp.h.confirmed(key, g.pid))
	}
	switch {
	case left != nil && left.exit != nil:
		g.exited = true
		e := *left.exit
		if e.Exit.SpawnError == "" {
			e.Exit.Evidence = job.ExitJournal
		}
		wp.post(e)
	case g.pid == 0 && left != nil: // the fork was about to happen
		// One that has ended is told by its cgroup: these hosts have them.
		if proc := wp.h.procs[key]; proc != nil && (proc.main || proc.zombie) && proc.parent == byWorker {
			g.pid = proc.pid
			wp.post(wp.h.confirmed(key, g.pid))
		} else {
			g.exited = true
			wp.post(worker.ProcessGone{Key: key})
		}
	case g.pid == 0 && g.start: // it never reached the plugin: pluginUp sends it again
	case g.pid == 0:
		delete(wp.given, key)
		wp.post(worker.ProcessUnknown{Key: key})
	}
	if g.pid != 0 && !g.exited {
		wp.adopt(key, g)
	}
}

func (h *host) confirmed(key job.Key, pid int) worker.ProcessStarted {
	ticks := uint64(1)
	if p := h.procs[key]; p != nil && p.pid == pid {
		ticks = p.ticks
	}
	return worker.ProcessStarted{Key: key, Started: journal.Started{PID: pid, StartTicks: ticks, Wall: h.instant().Wall}}
}

// adopt waits for a process by its pidfd (adopter.adopt).
func (wp *workerProc) adopt(key job.Key, g *given) {
	g.adopted = true
	proc := wp.h.procs[key]
	if proc == nil || proc.pid != g.pid || proc.reaped {
		wp.post(worker.ProcessGone{Key: key})
		return
	}
	g.watched = true
	if !proc.main {
		wp.child(proc)
	}
}

// child collects an adopted process that has ended (adopter.settle).
func (wp *workerProc) child(proc *process) {
	wp.h.w.soon(func() {
		g := wp.given[proc.key]
		if wp.h.worker != wp || g == nil || !g.adopted || !g.watched || g.exited {
			return
		}
		g.exited = true
		switch {
		case proc.zombie && proc.parent == byWorker:
			proc.zombie, proc.reaped = false, true
			wp.post(worker.ProcessExited{Key: proc.key, PID: proc.pid, Exit: proc.result(job.AdoptedWait, wp.h.instant().Wall)})
		case wp.h.w.plan.Seed%2 == 0: // a kernel that tells through the pidfd
			wp.post(worker.ProcessExited{Key: proc.key, PID: proc.pid, Exit: proc.result(job.PidFD, wp.h.instant().Wall)})
		default:
			wp.post(worker.ProcessGone{Key: proc.key})
		}
	})
}

// pluginUp attaches a new plugin and sends what the last one never saw.
func (wp *workerProc) pluginUp() {
	wp.attached = wp.h.plugin
	for _, key := range sortedKeys(wp.given) {
		if g := wp.given[key]; g.start && g.pid == 0 && !g.exited {
			wp.toPlugin(key, g.void)
		}
	}
}

// resumePlugins takes over the attempts of an earlier life (Host.Resume).
func (wp *workerProc) resumePlugins(held []worker.Holding) {
	h := wp.h
	left := held
	for _, p := range slices.Clone(h.graves) {
		var others []worker.Holding
		for _, a := range left {
			if p.log[a.Key] != nil {
				wp.given[a.Key] = &given{pid: a.Held.PID, held: true}
			} else {
				others = append(others, a)
			}
		}
		left = others
		wp.settle(p)
	}
	if h.plugin == nil {
		for _, a := range left { // alone
			if a.Held.PID == 0 {
				wp.post(worker.ProcessUnknown{Key: a.Key})
				continue
			}
			g := &given{pid: a.Held.PID}
			wp.given[a.Key] = g
			wp.adopt(a.Key, g)
		}
		h.startPlugin()
		return
	}
	for _, a := range left {
		wp.given[a.Key] = &given{pid: a.Held.PID, held: true}
	}
	p := h.plugin
	wp.attached = p
	for _, key := range sortedKeys(p.attempts) {
		p.repeat(key, p.attempts[key])
	}
	p.tell(synced{})
}

// ackPlugin says that an end is on disk (Host.Ack).
func (wp *workerProc) ackPlugin(key job.Key) {
	if wp.given[key] == nil {
		return
	}
	delete(wp.given, key)
	for _, p := range wp.h.graves {
		delete(p.waiting, key)
	}
	wp.h.closeGraves()
	if p := wp.attached; p != nil {
		wp.h.w.soon(func() { p.ack(key) })
	}
}

// Names of signals as reports have them.
const (
	sigterm = "SIGTERM"
	sigkill = "SIGKILL"
)
