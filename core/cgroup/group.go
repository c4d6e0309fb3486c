package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

// reclaim bounds how many groups left with processes are looked at again when
// the pool is empty.
const reclaim = 8

// Group holds the processes of one attempt. All methods may be called from any
// goroutine.
type Group struct {
	m        *Manager
	dir      string       // folder in the killing hierarchy; "" without cgroups
	unified  bool         // dir is a v2 cgroup
	limits   []controlDir // folders that were made for limits, v1 only
	limited  bool
	uid      int // of the job
	reopened bool
	events   *events     // of dir, if that is a v2 cgroup
	base     Usage       // what former attempts in this folder had used; of limited groups only
	killed   atomic.Bool // cgroup.kill was used on it
	released atomic.Bool
}

// controlDir is a group's folder in the tree of a v1 controller.
type controlDir struct{ controller, dir string }

// Acquire returns an empty group with these limits for a job of that user; -1 is
// the user of this process. It takes microseconds when a group is free that had a
// job of the same user, and the limits are zero; otherwise folders are made. Answers
// LIMIT_UNSUPPORTED as Check does.
func (m *Manager) Acquire(l job.Limits, uid int) (*Group, error) {
	const op = "acquire cgroup"
	if err := m.Check(l); err != nil {
		return nil, err
	}
	if m.mode == ModeNone {
		return &Group{m: m}, nil
	}
	if uid < 0 {
		uid = os.Getuid()
	}
	g := &Group{m: m, unified: m.mode != ModeV1, limited: l != job.Limits{}, uid: uid}
	s, name := m.take(g.limited, uid)
	g.dir, g.events = s.dir, s.events
	if g.dir == "" {
		g.dir = filepath.Join(m.base, name)
		if err := os.Mkdir(g.dir, 0o755); err != nil {
			m.forget(g.dir)
			return nil, errs.E(op, errs.Internal, "CGROUP", fmt.Errorf("make group: %w", err))
		}
		if g.unified {
			g.events = newEvents(g.dir)
		}
	}
	if g.limited {
		var err error
		if name == "" {
			g.base, err = g.read(g.dir)
		}
		if err == nil {
			err = g.limit(l)
		}
		if err != nil {
			g.discard()
			return nil, errs.E(op, errs.Internal, "CGROUP", err)
		}
	}
	return g, nil
}

// take gives a spare folder, or the name of one to make. A limited group in v2
// gets a folder of its own, because its counters start at 0 only once. Files of the
// folder that one user still has open are of no use against another (P19).
func (m *Manager) take(limited bool, uid int) (spare, string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	fresh := limited && m.mode != ModeHybrid
	for i := len(m.spares) - 1; i >= 0 && !fresh; i-- {
		if s := m.spares[i]; s.uid == uid {
			m.spares = slices.Delete(m.spares, i, i+1)
			m.used[s.dir] = true
			return s, ""
		}
	}
	m.made++
	name := m.instance + "-" + strconv.FormatUint(m.made, 10)
	m.used[filepath.Join(m.base, name)] = true
	return spare{}, name
}

func (m *Manager) forget(dir string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.used, dir)
}

// Reopen returns the group of that name, after a restart of the worker. A group
// that was removed meanwhile was empty, and so is the one returned. The name ""
// gives a group on a host without cgroups.
func (m *Manager) Reopen(name string) (*Group, error) {
	const op = "reopen cgroup"
	g := &Group{m: m, reopened: true}
	if name == "" {
		return g, nil
	}
	for i, part := range strings.Split(name, ";") {
		controller, dir, ok := strings.Cut(part, ":")
		clean := filepath.Clean(dir)
		if !ok || clean != dir || !strings.HasPrefix(filepath.Base(filepath.Dir(dir)), "drover-") {
			return nil, errs.Field(op, "name", "NAME_INVALID", "%q does not name a group", name)
		}
		switch {
		case i > 0:
			g.limits = append(g.limits, controlDir{controller, dir})
			g.limited = true
		case controller == "unified" || controller == "unified-limited":
			g.dir, g.unified, g.limited = dir, true, controller == "unified-limited"
			g.events = newEvents(dir)
		case controller == "freezer":
			g.dir = dir
		default:
			return nil, errs.Field(op, "name", "NAME_INVALID", "%q does not name a group", name)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.used[g.dir] = true
	m.parents[filepath.Dir(g.dir)] = true
	for _, c := range g.limits {
		m.used[c.dir] = true
		m.parents[filepath.Dir(c.dir)] = true
	}
	return g, nil
}

// Name is what Reopen finds the group by, also in another life of the worker
// that has been put into another cgroup; "" without cgroups.
func (g *Group) Name() string {
	if g.dir == "" {
		return ""
	}
	kind := "freezer:"
	if g.unified {
		kind = "unified:"
		if g.limited && len(g.limits) == 0 {
			kind = "unified-limited:"
		}
	}
	var b strings.Builder
	b.WriteString(kind + g.dir)
	for _, c := range g.limits {
		b.WriteString(";" + c.controller + ":" + c.dir)
	}
	return b.String()
}

// Dir is the v2 folder that a process can be born into (CLONE_INTO_CGROUP), or
// "" where there is none.
func (g *Group) Dir() string {
	if g.unified {
		return g.dir
	}
	return ""
}

// Tasks lists the v1 "tasks" files that the forking thread enters before the
// fork, by writing 0, so that the child is born inside. The thread must leave
// them again before the start is reported: with v1 a stop freezes who is inside.
func (g *Group) Tasks() []string {
	var list []string
	if g.dir != "" && !g.unified {
		list = append(list, filepath.Join(g.dir, "tasks"))
	}
	for _, c := range g.limits {
		if file := filepath.Join(c.dir, "tasks"); !slices.Contains(list, file) {
			list = append(list, file)
		}
	}
	return list
}

// Release gives the group back. An empty one is used again; one with processes
// (P10: detach) is left alone and removed when they are gone. Calls after the
// first do nothing.
func (g *Group) Release() error {
	if g.released.Swap(true) || g.dir == "" {
		return nil
	}
	state, err := g.state()
	if err != nil {
		spare{events: g.events}.close()
		return errs.E("release cgroup", errs.Internal, "CGROUP", err)
	}
	// A group that was killed is not used again: Linux of 2025 and later takes a process
	// that is born into it (CLONE_INTO_CGROUP) for one that the kill missed, and
	// kills it at birth (kill_seq in kernel/cgroup/cgroup.c).
	reusable := state.empty && !state.frozen && !state.nested && !state.gone && !g.reopened && !g.killed.Load()
	if !reusable || g.limited && len(g.limits) == 0 {
		g.discard()
		return nil
	}
	surplus := g.m.give(spare{dir: g.dir, events: g.events, uid: g.uid})
	for _, c := range g.limits {
		g.m.remove(c.dir)
	}
	if surplus.dir != "" {
		surplus.close()
		g.m.remove(surplus.dir)
	}
	return nil
}

// discard removes the group's folders, now or when they can be.
func (g *Group) discard() {
	spare{events: g.events}.close()
	g.m.remove(g.dir)
	for _, c := range g.limits {
		g.m.remove(c.dir)
	}
	g.m.sweep()
}

// give puts a folder into the pool. It returns one that is to be removed: the one
// that has waited longest, so that users who have left do not keep the pool full.
func (m *Manager) give(s spare) (surplus spare) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return s
	}
	delete(m.used, s.dir)
	m.spares = append(m.spares, s)
	if len(m.spares) > m.cfg.Spares {
		surplus = m.spares[0]
		m.spares = slices.Delete(m.spares, 0, 1)
		m.used[surplus.dir] = true
	}
	return surplus
}

// remove removes a folder, or notes that it is to be removed: a thread that
// forked into it, a dying task or a detached child may still be there.
func (m *Manager) remove(dir string) {
	err := removeTree(dir)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		delete(m.used, dir)
		return
	}
	m.doomed = append(m.doomed, dir)
	if !errors.Is(err, unix.EBUSY) {
		m.cfg.Log.Warn("a cgroup cannot be removed", "dir", dir, "error", err)
	}
}

// sweep looks again at a few folders that could not be removed.
func (m *Manager) sweep() {
	m.mu.Lock()
	n := min(reclaim, len(m.doomed))
	list := append([]string(nil), m.doomed[:n]...)
	m.doomed = append(m.doomed[:0], m.doomed[n:]...)
	m.mu.Unlock()
	for _, dir := range list {
		m.remove(dir)
	}
}

// state is what a group's folder tells about its content.
type state struct{ empty, frozen, nested, gone bool }

// state reads the group's folder. One that was removed is empty.
func (g *Group) state() (state, error) {
	var st unix.Stat_t
	if err := unix.Stat(g.dir, &st); gone(err) {
		return state{empty: true, gone: true}, nil
	} else if err != nil {
		return state{}, &os.PathError{Op: "stat", Path: g.dir, Err: err}
	}
	s := state{nested: st.Nlink > 2}
	if !g.unified {
		pids, err := (&cell{dir: g.dir}).pids()
		s.empty = len(pids) == 0
		return s, err
	}
	populated, frozen, err := g.events.read()
	if gone(err) {
		return state{empty: true, gone: true}, nil
	}
	s.empty, s.frozen = !populated, frozen
	return s, err
}
