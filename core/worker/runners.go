package worker

import (
	"context"
	"syscall"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/journal"
	"github.com/droverhq/drover/core/pluginhost"
	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// BindRunners fits a plugin host to a worker. The host's Events callback
// should be FeedEvents of the worker's feed.
func BindRunners(h *pluginhost.Host) Runners { return boundRunners{h} }

type boundRunners struct{ *pluginhost.Host }

// Lookup finds the runner of a command.
func (b boundRunners) Lookup(command string) (journal.Runner, error) {
	r, err := b.Host.Lookup(command)
	return journal.Runner(r), err
}

// Start hands a launch to a runner.
func (b boundRunners) Start(r journal.Runner, l Launch) error {
	s := &runnerv1.Start{
		Id: l.ID, Command: l.Command, Script: l.Script, Args: l.Args, Env: l.Env, Workdir: l.Workdir, Stdin: l.Stdin,
		Stdout: l.Lanes.Stdout, Stderr: l.Lanes.Stderr, Cgroup: l.Cgroup, CgroupTasks: l.CgroupTasks,
	}
	if u := l.User; u != nil {
		s.Credential = &runnerv1.Credential{Uid: u.UID, Gid: u.GID, Groups: u.Groups}
	}
	return b.Host.Start(pluginhost.Runner(r), s)
}

// Resume takes over the attempts of an earlier worker.
func (b boundRunners) Resume(ctx context.Context, held []Held) error {
	as := make([]pluginhost.Attempt, len(held))
	for i, h := range held {
		as[i] = pluginhost.Attempt{ID: h.ID, Runner: pluginhost.Runner(h.Runner), PID: h.PID, StartTicks: h.StartTicks}
	}
	return b.Host.Resume(ctx, as)
}

// FeedEvents returns the callback that carries a plugin host's events to f.
func FeedEvents(f *Feed) func([]pluginhost.Event) {
	return func(evs []pluginhost.Event) {
		out := make([]ProcessEvent, len(evs))
		for i := range evs {
			out[i] = processEvent(&evs[i])
		}
		f.Push(out)
	}
}

func processEvent(e *pluginhost.Event) ProcessEvent {
	switch {
	case e.Started != nil:
		return ProcessEvent{ID: e.ID, Started: &journal.Started{
			PID: int(e.Started.GetPid()), StartTicks: e.Started.GetStartTicks(), Wall: e.Started.GetTime().AsTime(),
		}}
	case e.Exited != nil:
		return ProcessEvent{ID: e.ID, Exit: processExit(e.Exited, e.Evidence)}
	default:
		return ProcessEvent{ID: e.ID, Gone: e.Lost, Unknown: e.Unknown}
	}
}

func processExit(p *runnerv1.Exited, evidence job.Evidence) *ProcessExit {
	x := &ProcessExit{PID: int(p.GetPid()), Time: p.GetTime().AsTime(), Evidence: evidence}
	switch r := p.GetResult().(type) {
	case *runnerv1.Exited_ExitCode:
		x.Code = r.ExitCode
	case *runnerv1.Exited_Signal:
		x.Signal = syscall.Signal(r.Signal)
	case *runnerv1.Exited_Error:
		x.SpawnReason, x.SpawnError = r.Error.GetReason(), r.Error.GetMessage()
		x.Evidence = job.NoEvidence
	}
	return x
}
