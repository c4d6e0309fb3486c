package worker

import (
	"cmp"
	"context"
	"syscall"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

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

// Interpreter returns the name of the program that the runner runs scripts with.
func (b boundRunners) Interpreter(r journal.Runner) string {
	return b.Host.Interpreter(pluginhost.Runner(r))
}

// Restricts tells whether the runner applies what a policy takes from jobs.
func (b boundRunners) Restricts(r journal.Runner) bool {
	return b.Host.Restricts(pluginhost.Runner(r))
}

// Start hands a launch to a runner.
func (b boundRunners) Start(r journal.Runner, l Launch) error {
	s := &runnerv1.Start{
		Id: l.ID, Command: l.Command, Script: l.Script, Args: l.Args, Env: l.Env, Workdir: l.Workdir, WorkdirAsked: l.Asked, Stdin: l.Stdin,
		Stdout: l.Lanes.Stdout, Stderr: l.Lanes.Stderr, Cgroup: l.Cgroup, CgroupTasks: l.CgroupTasks,
		Interpreter: l.Interpreter, NoNewPrivs: l.NoNewPrivs,
	}
	for _, x := range l.Rlimits {
		s.Rlimits = append(s.Rlimits, &runnerv1.Rlimit{Resource: int32(x.Resource), Value: x.Value})
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
		as[i] = pluginhost.Attempt{ID: h.ID, Runner: pluginhost.Runner(h.Runner), PID: h.PID, StartTicks: h.StartTicks, Stdout: h.Lanes.Stdout, Stderr: h.Lanes.Stderr}
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
	n := ProcessEvent{ID: e.ID, Gone: e.Lost, Unknown: e.Unknown}
	if s := e.Started; s != nil {
		n.Started = &journal.Started{PID: int(s.GetPid()), StartTicks: s.GetStartTicks(), Wall: wallTime(s.GetTime())}
	}
	if e.Exited != nil {
		n.Exit = processExit(e.Exited, e.Evidence)
		// P6: a result that says nothing is none.
		n.Gone = n.Exit == nil
	}
	return n
}

// lastSignal is the highest that wait(2) can tell: it has seven bits for it.
const lastSignal = 127

// processExit is nil when the plugin gave no result, or one that cannot be: a newer
// plugin may say what this worker does not know. Then nobody saw how it ended (P6).
func processExit(p *runnerv1.Exited, evidence job.Evidence) *ProcessExit {
	x := &ProcessExit{PID: int(p.GetPid()), Time: wallTime(p.GetTime()), Evidence: evidence}
	if p.GetFromJournal() {
		x.Evidence = job.ExitJournal
	}
	switch r := p.GetResult().(type) {
	case *runnerv1.Exited_ExitCode:
		x.Code = r.ExitCode
	case *runnerv1.Exited_Signal:
		if r.Signal < 1 || r.Signal > lastSignal {
			return nil // 0 above all: it would read as exit code 0
		}
		x.Signal = syscall.Signal(r.Signal)
	case *runnerv1.Exited_Error:
		x.SpawnReason, x.SpawnError = cmp.Or(r.Error.GetReason(), "INTERNAL"), r.Error.GetMessage()
		x.Evidence = job.NoEvidence
	default:
		return nil
	}
	return x
}

// wallTime leaves a time unset that is not set, or that no calendar has.
func wallTime(t *timestamppb.Timestamp) time.Time {
	if t.CheckValid() != nil {
		return time.Time{}
	}
	return t.AsTime()
}
