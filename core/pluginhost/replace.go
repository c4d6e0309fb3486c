package pluginhost

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/plugins/runner"
	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// This file is how one version of a plugin takes the place of another (P11).

// Types of conditions.
const (
	conditionUnhealthy = "RUNNER_UNHEALTHY"
	conditionRefused   = "RUNNER_REFUSED"
)

// drainingMark is a file in the folder of a plugin process that takes no more
// jobs: a restarted worker must not give it any.
const drainingMark = "draining"

// refusal is a plugin file that is not run.
type refusal struct {
	info  job.RunnerInfo
	since time.Time
}

// all lists every version of every plugin that has, or shall have, a process.
func (h *Host) all() []*hosted {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.every()
}

// every is all with h.mu held.
func (h *Host) every() []*hosted {
	out := make([]*hosted, 0, len(h.byKey)+len(h.leaving))
	for _, p := range h.byKey {
		out = append(out, p)
	}
	for p := range h.leaving {
		out = append(out, p)
	}
	return out
}

// scan looks at the plugin folder: new plugins are started, new versions are
// tried, removed plugins are drained, bad files are refused. A refused file is no
// removal: what runs was verified, and stays in service until a good one comes.
func (h *Host) scan() {
	found, err := List(h.config.Dir)
	if err != nil {
		h.config.Log.Warn("plugin folder not read", "error", err)
		return
	}
	refused, good := map[string]refusal{}, map[string]Manifest{}
	for _, f := range found {
		if f.Err != nil {
			info := job.RunnerInfo{Name: f.Name, State: stateRefused, Message: oneLine(f.Err)}
			refused[f.Name] = refusal{info, time.Now()}
			continue
		}
		good[f.Name] = f.Manifest
	}
	h.mu.Lock()
	for name, r := range refused {
		if was := h.refused[name]; was.info.Message == r.info.Message {
			refused[name] = was
			continue
		}
		h.config.Log.Warn("plugin refused", "runner", name, "reason", r.info.Message)
	}
	h.refused = refused
	old := h.choose(good)
	h.mu.Unlock()
	for _, p := range old {
		p.drain(h.base)
	}
	h.note()
}

// choose begins to host what the folder has, and returns what is not wanted any
// more; h.mu is held.
func (h *Host) choose(good map[string]Manifest) (old []*hosted) {
	drop := func(list map[string]*hosted, name string) {
		if p := list[name]; p != nil {
			delete(list, name)
			old = append(old, p)
		}
	}
	for _, list := range []map[string]*hosted{h.current, h.next} {
		for name := range list {
			_, ok := good[name]
			if _, bad := h.refused[name]; !ok && !bad {
				drop(list, name)
			}
		}
	}
	for name, m := range good {
		now, next := h.current[name], h.next[name]
		switch {
		case now == nil:
			h.current[name] = h.host(m, nil, false)
		case now.manifest.SHA256 == m.SHA256: // the old one was installed again
			drop(h.next, name)
		case next != nil && next.manifest.SHA256 == m.SHA256:
		default:
			drop(h.next, name)
			p := h.host(m, nil, false)
			if p.isProven() { // it was in service before this worker began
				drop(h.current, name)
				h.current[name] = p
				continue
			}
			h.next[name] = p
			h.config.Log.Info("new version of a plugin is tried", "runner", name, "version", m.Version, "in_service", now.manifest.Version)
		}
	}
	return old
}

// host begins to run one version of a plugin, with a process that is there or with a
// new one. proven: it needs no canary. h.mu is held.
func (h *Host) host(m Manifest, proc *process, proven bool) *hosted {
	p := newHosted(h, m)
	p.proven = proven
	p.resumed = proc == nil // its process will know of no attempt of an earlier worker
	if proc != nil {
		p.process = proc // from the beginning: Resume looks at it
		if proc.isMarked() {
			p.draining = true
			close(p.leave)
		}
	}
	switch known := h.byKey[p.key()]; {
	case known == nil:
		h.byKey[p.key()] = p
	case p.draining: // another process of the same version is in service
		h.leaving[p] = true
	case known.isDraining():
		h.leaving[known] = true
		h.byKey[p.key()] = p
	case proc != nil: // two are in service: this one keeps what it has
		p.draining = true
		close(p.leave)
		h.leaving[p] = true
	default:
		return known
	}
	h.wait.Go(func() {
		p.run(h.base, proc)
		h.mu.Lock()
		if h.base.Err() == nil {
			delete(h.leaving, p)
			if h.byKey[p.key()] == p {
				delete(h.byKey, p.key())
			}
		}
		h.mu.Unlock()
		h.note()
	})
	return p
}

// retire makes a process of an earlier worker end after the jobs that it has, and
// tells whether it had new ones until now. Those are for a process of this worker's
// own: one that is killed in the middle of a start leaves a child, and only the
// plugin's parent is told how that ends (P7). A plugin that reaps as it likes is no
// better off with another parent, and stays.
func (h *Host) retire(ctx context.Context, proc *process) (hadNew bool) {
	if err := proc.claim(ctx); err != nil {
		h.config.Log.Warn("plugin of an earlier worker stays in service", "runner", proc.Name, "error", err)
		return false
	}
	if proc.isMarked() || !runner.Keeps(proc.Dir) {
		return false
	}
	h.markDraining(proc.Dir)
	return proc.isMarked()
}

// watches tells whether the process, which an earlier worker started, had any of
// these attempts.
func (p *hosted) watches(list []Attempt) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.process != nil && slices.ContainsFunc(list, func(a Attempt) bool { return p.process.claims[a.ID] })
}

// isMarked tells whether no worker may give it jobs.
func (p *process) isMarked() bool {
	_, err := os.Stat(filepath.Join(p.Dir, drainingMark))
	return err == nil
}

// claim opens a session and learns what the process has. What an earlier worker
// ordered and is not begun is dropped with that: it may be given to another process
// (P2).
func (p *process) claim(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, infoTimeout)
	defer cancel()
	p.claims = map[string]bool{}
	stream, err := p.api.Session(ctx)
	for err == nil {
		var f *runnerv1.SessionResponse
		f, err = stream.Recv()
		for _, s := range f.GetStarted() {
			p.claims[s.GetId()] = true
		}
		for _, e := range f.GetExited() {
			p.claims[e.GetId()] = true
		}
		for _, id := range f.GetBeginning() {
			p.claims[id] = true
		}
		if err == nil && f.GetSynced() {
			return nil
		}
	}
	return fmt.Errorf("ask %s what it has: %w", p.Name, err)
}

// knowsAttempts waits until Resume has said which attempts there are: a process of an
// earlier worker that dies before must not be settled without them.
func (h *Host) knowsAttempts(ctx context.Context) bool {
	select {
	case <-h.told:
		return true
	case <-ctx.Done():
		return false
	}
}

// promote gives new jobs to a version whose first process is up and has passed
// its canary; the one before keeps its jobs and ends after the last.
func (h *Host) promote(p *hosted) {
	name := p.manifest.Name
	h.mu.Lock()
	if h.next[name] != p {
		h.mu.Unlock()
		return
	}
	old := h.current[name]
	h.current[name] = p
	delete(h.next, name)
	h.mu.Unlock()
	h.config.Log.Info("new version of a plugin takes over", "runner", name, "version", p.manifest.Version, "before", old.manifest.Version)
	h.wait.Go(func() { old.drain(h.base) })
	h.note()
}

// standIn is the version that stays in service while p is not taken; "" when p is
// the only one.
func (h *Host) standIn(p *hosted) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.current[p.manifest.Name]
	if h.next[p.manifest.Name] != p || now == nil {
		return ""
	}
	return cmp.Or(now.manifest.Version, now.manifest.SHA256)
}

// recovered makes plugins that died again and again ready once they have stayed up.
func (h *Host) recovered() {
	for _, p := range h.all() {
		p.mu.Lock()
		up := p.state == stateUnhealthy && p.process != nil && (p.useful || time.Since(p.begun) > healthyAfter)
		if up {
			p.deaths = 0
		}
		p.mu.Unlock()
		if up {
			p.set(stateReady, "")
		}
	}
}

// sicken shows a plugin that does nothing but die as unhealthy.
func (p *hosted) sicken() {
	p.mu.Lock()
	deaths, draining := p.deaths, p.draining
	p.mu.Unlock()
	if deaths >= unhealthyAt && !draining {
		p.set(stateUnhealthy, fmt.Sprintf("it died %d times in a row without starting a job, and is started again with growing pauses", deaths))
	}
}

// keep lets a process that was started while its version drained live as long as
// there is something for it to watch.
func (p *hosted) keep() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.late = len(p.attempts) > 0
	return p.late
}

// release ends such a process after the last acknowledgement.
func (p *hosted) release() {
	p.mu.Lock()
	proc, done := p.process, p.late && p.draining && len(p.attempts) == 0
	if done {
		p.late = false
	}
	p.mu.Unlock()
	if done && proc != nil {
		p.host.wait.Go(func() { p.shutdown(p.host.base, proc) })
	}
}

func (p *hosted) isProven() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.proven
}

// markDraining lets the next worker know. A process that is gone has no folder.
func (h *Host) markDraining(dir string) {
	if err := os.WriteFile(filepath.Join(dir, drainingMark), nil, 0o600); ignoreMissing(err) != nil {
		h.config.Log.Warn("draining plugin not marked", "error", err)
	}
}

// holdLeaving gives attempts of an earlier worker to the draining process of their
// version that began them, and returns the others.
func (h *Host) holdLeaving(key string, attempts []Attempt) []Attempt {
	h.mu.Lock()
	var leaving []*hosted
	for p := range h.leaving {
		if p.key() == key {
			leaving = append(leaving, p)
		}
	}
	h.mu.Unlock()
	for _, p := range leaving {
		p.mu.Lock()
		proc := p.process
		p.mu.Unlock()
		if proc == nil {
			continue
		}
		began, err := runner.ReadJournal(proc.Dir)
		if err != nil {
			h.config.Log.Error("exit journal not read", "runner", p.manifest.Name, "error", err)
			continue
		}
		var own []Attempt
		attempts = slices.DeleteFunc(slices.Clone(attempts), func(a Attempt) bool {
			if mentions(began, a.ID) || proc.claims[a.ID] {
				own = append(own, a)
				return true
			}
			return false
		})
		h.hold(p, own, true)
	}
	return attempts
}

// Conditions tells what is wrong with plugins, for people.
func (h *Host) Conditions() []job.Condition {
	var out []job.Condition
	add := func(kind string, since time.Time, r job.RunnerInfo) {
		text := fmt.Sprintf("%s %s: %s", r.Name, r.Version, r.Message)
		if r.Version == "" {
			text = r.Name + ": " + r.Message
		}
		out = append(out, job.Condition{Type: kind, Message: text, Since: since})
	}
	for _, p := range h.all() {
		info := p.info()
		p.mu.Lock()
		since := p.since
		p.mu.Unlock()
		if info.State == stateUnhealthy {
			add(conditionUnhealthy, since, info)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.refused {
		add(conditionRefused, r.since, r.info)
	}
	slices.SortFunc(out, func(a, b job.Condition) int { return cmp.Compare(a.Message, b.Message) })
	return out
}
