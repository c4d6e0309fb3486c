package cgroup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

// ReasonUnkillable is the reason of a stop whose processes withstand SIGKILL.
const ReasonUnkillable = "UNKILLABLE"

// The methods of a stop, as its proof names them.
const (
	MethodKill   = "cgroup-kill"
	MethodFreeze = "cgroup-freeze"
	MethodWalk   = "process-walk"
)

// StopRequest says whom to end and how gently. PID, StartTicks and Mark matter
// only on hosts without cgroups.
type StopRequest struct {
	PID        int    // the main process, leader of its session; 0 if unknown
	StartTicks uint64 // field 22 of its /proc/PID/stat; 0 if unknown
	Mark       string // value of MarkVariable in its environment
	Grace      time.Duration
}

// process is one process, which its number alone is not: numbers are used again.
type process struct {
	pid   int
	start uint64 // clock ticks since boot; 0 where a cgroup vouches for it
}

// holder is one way of finding and ending the processes of a group.
type holder interface {
	method() string
	empty() (bool, error)
	// terminate sends SIGTERM to every process and counts them.
	terminate() (int, error)
	// kill sends SIGKILL to every process there is and adds them to killed.
	kill(killed map[process]bool) error
	processes() ([]process, error)
}

func (g *Group) holder(req StopRequest) holder {
	if g.dir == "" {
		return &walker{scanner: g.m.scanner, never: g.m.never, req: req, reopened: g.reopened, known: map[process]bool{}}
	}
	return &cell{dir: g.dir, unified: g.unified, own: g.m.never, events: g.events}
}

// Empty tells whether no process of the attempt is left. Zombies do not count:
// they run no more.
func (g *Group) Empty(req StopRequest) (bool, error) {
	empty, err := g.holder(req).empty()
	if err != nil {
		return false, errs.E("look into cgroup", errs.Internal, "CGROUP", err)
	}
	return empty, nil
}

// Processes lists the attempt's processes by number, in no order.
func (g *Group) Processes(req StopRequest) ([]int, error) {
	list, err := g.holder(req).processes()
	if err != nil {
		return nil, errs.E("list processes", errs.Internal, "CGROUP", err)
	}
	numbers := make([]int, len(list))
	for i, p := range list {
		numbers[i] = p.pid
	}
	return numbers, nil
}

// Kill is Stop without SIGTERM and grace.
func (g *Group) Kill(ctx context.Context, req StopRequest) (job.StopProof, error) {
	req.Grace = 0
	return g.Stop(ctx, req)
}

// Stop ends every process of the attempt: SIGTERM to each, the grace, then
// SIGKILL to all at once (P9). It returns once no process is left, with the
// proof; with a grace of 0 there is no SIGTERM. Processes that withstand SIGKILL
// are Precondition, reason UNKILLABLE, after Config.Unkillable; if ctx ends first
// the error is Canceled and processes may be left. A second Stop may hasten the
// first. No lock is held while it waits.
func (g *Group) Stop(ctx context.Context, req StopRequest) (job.StopProof, error) {
	const op = "stop attempt"
	began := time.Now()
	h := g.holder(req)
	proof := job.StopProof{Method: h.method()}
	empty, err := h.empty()
	if err == nil && !empty && req.Grace > 0 {
		var termed int
		termed, err = h.terminate()
		proof.Termed = uint32(termed)
		if err == nil {
			empty, err = g.await(ctx, h, req.Grace)
		}
	}
	if err == nil && !empty {
		g.killed.Store(true)
		killed := map[process]bool{}
		empty, err = g.end(ctx, h, killed)
		proof.Killed = uint32(len(killed))
	}
	proof.Took = time.Since(began)
	switch {
	case err != nil && ctx.Err() != nil:
		return proof, errs.E(op, errs.Canceled, "CANCELED", err)
	case err != nil:
		return proof, errs.E(op, errs.Internal, "CGROUP", err)
	case !empty:
		return proof, errs.E(op, errs.Precondition, ReasonUnkillable, withstands(h, g.m.cfg.Unkillable))
	}
	return proof, nil
}

// EndHidden ends the processes of no attempt that one can tell: those that have come to
// this process or to one of the plugins, and hide whose they are. It is for a worker
// that leaves, once its attempts are stopped; with cgroups there are none. It counts
// what it killed.
func (m *Manager) EndHidden(ctx context.Context, plugins []int) (killed int, err error) {
	if m.mode != ModeNone {
		return 0, nil
	}
	// A child that this process had before it made its first attempt is not of drover:
	// a shell that starts something else beside the worker, and then becomes it.
	w := &walker{scanner: m.scanner, never: maps.Clone(m.never), orphans: map[int]uint64{os.Getpid(): m.first}, known: map[process]bool{}}
	for _, pid := range plugins {
		w.never[pid], w.orphans[pid] = true, 0
	}
	empty, err := w.empty()
	gone := map[process]bool{}
	if err == nil && !empty {
		empty, err = (&Group{m: m}).end(ctx, w, gone)
	}
	if err == nil && !empty {
		err = withstands(w, m.cfg.Unkillable)
	}
	if err != nil {
		return len(gone), errs.E("end hidden processes", errs.Internal, "CGROUP", err)
	}
	return len(gone), nil
}

// end kills until nothing is left. It kills again from time to time: without
// cgroup.kill a process may have been missed.
func (g *Group) end(ctx context.Context, h holder, killed map[process]bool) (bool, error) {
	deadline := time.Now().Add(g.m.cfg.Unkillable)
	for pause := 25 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		if err := h.kill(killed); err != nil {
			return false, err
		}
		left := time.Until(deadline)
		empty, err := g.await(ctx, h, max(0, min(pause, left)))
		if empty || err != nil || left <= 0 {
			return empty, err
		}
	}
}

// await waits until nothing is left, for as long as patience. It looks when the
// kernel says that something changed, and by itself with growing pauses.
func (g *Group) await(ctx context.Context, h holder, patience time.Duration) (bool, error) {
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	var changed <-chan struct{}
	slowest := 50 * time.Millisecond
	if g.unified && g.m.watcher != nil {
		news, cancel, err := g.m.watcher.watch(g.dir)
		if err == nil {
			defer cancel()
			changed, slowest = news, 500*time.Millisecond
		}
	}
	poll := time.NewTimer(0)
	defer poll.Stop()
	for pause := time.Millisecond; ; {
		if empty, err := h.empty(); empty || err != nil {
			return empty, err
		}
		poll.Reset(pause)
		select {
		case <-changed:
		case <-poll.C:
			pause = min(2*pause, slowest)
		case <-timeout.C:
			return h.empty()
		case <-ctx.Done():
			return false, fmt.Errorf("wait for processes to end: %w", ctx.Err())
		}
	}
}

// withstands says which process does not die, and what it hangs in.
func withstands(h holder, waited time.Duration) error {
	list, err := h.processes()
	if err != nil || len(list) == 0 {
		return fmt.Errorf("processes are left %v after SIGKILL", waited)
	}
	e, err := readStat(list[0].pid)
	if err != nil {
		return fmt.Errorf("%d processes are left %v after SIGKILL, one is %d", len(list), waited, list[0].pid)
	}
	return fmt.Errorf("%d processes are left %v after SIGKILL, one is %d in state %c (D: waiting in the kernel, T: stopped or frozen)",
		len(list), waited, e.pid, e.state)
}

// send sends a signal to the process behind a pidfd. One that is gone is fine;
// one that may not be signalled (setuid) shows as unkillable in the end.
func send(pidfd int, sig unix.Signal) error {
	err := unix.PidfdSendSignal(pidfd, sig, nil, 0)
	if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("send %v: %w", sig, err)
	}
	return nil
}
