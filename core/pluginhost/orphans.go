package pluginhost

import (
	"maps"
	"path/filepath"
	"slices"

	"github.com/droverhq/drover/plugins/failpoint"
	"github.com/droverhq/drover/plugins/pidfd"
	"github.com/droverhq/drover/plugins/runner"
	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// This file is what happens to the attempts of a plugin process that is gone.

// grave is what a dead plugin process left. It is kept until the worker has on
// disk what became of every attempt in its journal: a worker that is killed
// before that asks the journal again, instead of taking the start for one that
// never happened (P2).
type grave struct {
	record record
	ids    map[string]bool // attempts in the journal that are not acknowledged
}

// readopt asks a new process of the plugin to watch what others have left.
func (p *hosted) readopt() {
	p.add(func(f *runnerv1.SessionRequest) {
		for _, id := range slices.Sorted(maps.Keys(p.attempts)) {
			if g := p.attempts[id]; g.adopted && !g.exited {
				f.Adopts = append(f.Adopts, g.adopt(id))
			}
		}
	})
}

func (g *given) adopt(id string) *runnerv1.Adopt {
	return &runnerv1.Adopt{Id: id, Pid: int64(g.pid), StartTicks: g.ticks, Stdout: g.stdout, Stderr: g.stderr}
}

// adopt watches a process whose plugin is gone, and asks the present plugin
// process, if there is one, to do it too: it goes on when this one is killed.
func (p *hosted) adopt(id string) {
	p.mu.Lock()
	g := p.attempts[id]
	if g == nil {
		p.mu.Unlock()
		return
	}
	g.adopted = true
	pid, ticks, handle := g.pid, g.ticks, g.handle
	g.handle = -1 // the adopter's now
	if p.process != nil {
		p.pending.Adopts = append(p.pending.Adopts, g.adopt(id))
	}
	p.mu.Unlock()
	p.nudge()
	p.host.adopter.adopt(p.key(), id, pid, ticks, handle)
}

// foreign opens handles to the jobs of a plugin that an earlier worker started.
// When it dies they become no children of this process, and whoever reaps them
// tells nobody: the handle must be open before.
func (p *hosted) foreign(f *runnerv1.SessionResponse) map[string]int {
	if !p.isForeign() {
		return nil
	}
	out := make(map[string]int, len(f.GetStarted()))
	for _, s := range f.GetStarted() {
		if _, twice := out[s.GetId()]; twice {
			continue
		}
		if fd, err := pidfd.Open(int(s.GetPid()), s.GetStartTicks()); err == nil {
			out[s.GetId()] = fd
		}
	}
	return out
}

// died settles the attempts of a dead plugin process: its journal knows most
// ends, its living jobs are this process's children now, and starts that never
// reached it go to the next one.
func (p *hosted) died(proc *process) {
	h := p.host
	p.mu.Lock()
	p.process, p.settling = nil, true
	orderly := p.draining && len(p.attempts) == 0
	if !orderly {
		p.deaths++
	}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.settling = false
		p.mu.Unlock()
	}()
	proc.awaitEnd()
	proc.hangUp()
	left, err := runner.ReadJournal(proc.Dir)
	if err != nil {
		h.config.Log.Error("exit journal not read", "runner", p.manifest.Name, "error", err)
	}
	if !orderly {
		h.tellDamage(proc.Dir, &left)
		h.config.Log.Warn("plugin died", "runner", p.manifest.Name, "pid", proc.PID)
		p.set(stateStarting, "it died and is started again")
	}
	p.mu.Lock()
	ids := slices.Sorted(maps.Keys(p.attempts))
	p.mu.Unlock()
	if p.settle(proc, left, ids) {
		p.mu.Lock()
		p.useful = true
		p.mu.Unlock()
	}
}

// settle goes through attempts of a dead process, and tells whether it had started
// any, though the news of that may have died with it.
func (p *hosted) settle(proc *process, left runner.Journal, ids []string) (begun bool) {
	p.doubt(left, ids)
	found, never := p.locate(proc, left, ids)
	begun = len(found) > 0
	p.withdraw(proc, left, never)
	// Before the news: the answer to it may close the grave.
	p.bury(proc.record, left, ids)
	for _, id := range ids {
		begun = begun || left.Started[id].GetPid() != 0
		p.settleOne(id, left.Started[id], left.Exited[id], found)
	}
	p.closeGraves(nil)
	return begun
}

// doubt takes starts that a process was given, and of which its journal says nothing
// because it is damaged, for starts whose fork was about to happen: they may have been
// more than that, and must not be given to another process (P2).
func (p *hosted) doubt(left runner.Journal, ids []string) {
	if !left.Damaged {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range ids {
		g := p.attempts[id]
		if g == nil || g.pid != 0 || g.begun != nil || g.ended != nil || mentions(left, id) {
			continue
		}
		if g.start != nil && slices.Contains(p.pending.GetStarts(), g.start) {
			continue // it was not sent
		}
		left.Started[id] = &runnerv1.Started{Id: id}
	}
}

// tellDamage says that an exit journal is not whole.
func (h *Host) tellDamage(dir string, left *runner.Journal) {
	if left.Damaged {
		h.config.Log.Error("exit journal is damaged; jobs that it may have named are not started again", "path", filepath.Join(dir, runner.JournalName))
	}
}

// withdraw makes starts whose fork never happened ones that never reached the
// process: the next one will have them (P7). That is on disk first, so that a
// worker which is killed now does not take the note of the dead process for news.
func (p *hosted) withdraw(proc *process, left runner.Journal, never []string) {
	if len(never) == 0 {
		return
	}
	failpoint.At(failpoint.WorkerWithdrawBefore)
	if err := runner.Withdraw(proc.Dir, never); err != nil {
		p.host.config.Log.Error("jobs are lost that have not begun", "runner", p.manifest.Name, "jobs", len(never), "error", err)
		return
	}
	failpoint.At(failpoint.WorkerWithdrawAfter)
	for _, id := range never {
		delete(left.Started, id)
	}
}

// inherit settles what a process has left that died before this worker began. The
// present process of the plugin may have been watching it and is heard first:
// what it saw end while there was no worker is gone now.
func (p *hosted) inherit(r record, left runner.Journal, ids []string) {
	p.mu.Lock()
	lives := p.process != nil
	p.mu.Unlock()
	if !lives {
		p.settle(&process{record: r, foreign: true}, left, ids)
		return
	}
	p.bury(r, left, ids)
	var now []string
	p.mu.Lock()
	for _, id := range ids {
		g := p.attempts[id]
		if left.Exited[id].GetResult() != nil {
			now = append(now, id)
			continue
		}
		g.held, g.begun, g.ended = true, left.Started[id], left.Exited[id]
	}
	p.mu.Unlock()
	for _, id := range now {
		p.settleOne(id, left.Started[id], left.Exited[id], nil)
	}
	p.closeGraves(nil)
}

// bury keeps what a dead process has left until nobody needs it any more.
func (p *hosted) bury(r record, left runner.Journal, ids []string) {
	if r.Dir == "" {
		return
	}
	buried := &grave{record: r, ids: map[string]bool{}}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range ids {
		if mentions(left, id) && p.attempts[id] != nil {
			buried.ids[id] = true
		}
	}
	p.graves = append(p.graves, buried)
}

// mentions tells whether a plugin process began to start an attempt.
func mentions(j runner.Journal, id string) bool {
	return j.Started[id] != nil || j.Exited[id] != nil
}

// closeGraves removes what dead processes left once nobody needs it any more.
func (p *hosted) closeGraves(acked []string) {
	var done []*grave
	p.mu.Lock()
	p.graves = slices.DeleteFunc(p.graves, func(g *grave) bool {
		for _, id := range acked {
			delete(g.ids, id)
		}
		if len(g.ids) == 0 {
			done = append(done, g)
		}
		return len(g.ids) == 0
	})
	p.mu.Unlock()
	for _, g := range done {
		p.host.forget(&g.record)
	}
}

// settleOne settles one of them by what the journal of the process says, or, when
// it says nothing, by what that of an earlier one said. found are the processes
// that no journal names.
func (p *hosted) settleOne(id string, started *runnerv1.Started, exited *runnerv1.Exited, found map[string]named) {
	h := p.host
	p.mu.Lock()
	g := p.attempts[id]
	if g != nil && started == nil && exited == nil {
		started, exited = g.begun, g.ended
	}
	if g == nil || g.exited || g.adopted && exited == nil {
		p.mu.Unlock()
		return
	}
	g.held = false
	var out []Event
	if started != nil && started.GetPid() != 0 && g.pid == 0 {
		g.pid, g.ticks = int(started.GetPid()), started.GetStartTicks()
		out = append(out, Event{Plugin: p.key(), ID: id, Started: started})
	}
	switch {
	case exited != nil:
		g.exited = true
		g.letGo()
		out = append(out, p.ended(exited))
	case g.pid == 0 && started != nil: // the fork was about to happen
		if n, ok := found[id]; ok {
			g.pid, g.ticks = n.pid, n.ticks
			out = append(out, Event{Plugin: p.key(), ID: id, Started: &runnerv1.Started{Id: id, Pid: int64(n.pid), StartTicks: n.ticks}})
		} else {
			g.exited = true // the next death must not take it for one that never reached a plugin
			out = append(out, Event{Plugin: p.key(), ID: id, Lost: true})
		}
	case g.pid == 0 && g.start != nil: // it never reached the plugin
		if !slices.Contains(p.pending.GetStarts(), g.start) {
			p.pending.Starts = append(p.pending.Starts, g.start)
		}
	case g.pid == 0 && started == nil:
		delete(p.attempts, id)
		out = append(out, Event{Plugin: p.key(), ID: id, Unknown: true})
	}
	orphan := g.pid != 0 && !g.exited
	p.mu.Unlock()
	h.emit(out)
	if orphan {
		p.adopt(id)
	}
}
