package worker

import (
	"context"
	"syscall"
	"time"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/journal"
)

// What a worker needs of the packages below it. Small on purpose: each has an
// in-memory fake in the tests, and bind.go fits the real ones to them.

// Recorder appends records as one batch: all or none (core/journal).
type Recorder interface {
	Append(...journal.Record) error
}

// Lanes names the two named pipes of an attempt.
type Lanes struct{ Stdout, Stderr string }

// OutputOptions says how the output of one attempt is kept.
type OutputOptions struct {
	Policy   job.OutputPolicy
	Limit    uint64 // bytes per stream; 0 is job.DefaultOutputLimit
	UID, GID int    // owner of the lanes; -1 is the worker's own
	Unborn   bool   // of Resume: no process may have opened them yet, see NoWriter
}

// LaneKeeper takes output from processes (core/output).
type LaneKeeper interface {
	Take(job.Key, OutputOptions) (Lanes, error)
	Resume(job.Key, Lanes, OutputOptions) error
	NoWriter(job.Key)
	// Whole: of a resumed attempt, nothing was lost with the pipes at the restart.
	Whole(job.Key)
	Drained(job.Key) <-chan struct{}
	// Finish seals the output. alone: the lanes may serve another attempt.
	Finish(ctx context.Context, key job.Key, alone bool) (stdout, stderr job.Stream, err error)
}

// Backlog is output of an attempt without processes that is in no segment yet.
type Backlog interface {
	// Left: held, somebody has a pipe of it; else why the rest waits for room, if it does.
	Left(job.Key) (held bool, why string)
	// GiveUp throws the rest away that nobody holds, and declares it (P8).
	GiveUp(job.Key)
	// Discard gives all bytes back although somebody holds a pipe, and keeps no more.
	Discard(job.Key)
}

// Meter tells how much an attempt has written, and when last.
type Meter interface {
	Sizes(job.Key) (stdout, stderr uint64, ok bool)
	LastWrite(job.Key) time.Time
}

// Archive keeps finished output until it is removed.
type Archive interface {
	// Settled tells how an attempt ended and whether the scheduler knows it: before
	// that, its bytes are not given back.
	Settled(key job.Key, acked, failed bool)
	Remove(job.Key) error
	Keys() []job.Key
	Conditions() []job.Condition
}

// Output is the whole of core/output that a worker uses.
type Output interface {
	LaneKeeper
	Backlog
	Meter
	Archive
}

// Pin is a script that stays as it is until Release.
type Pin struct {
	Path   string // the published file, absolute
	Root   string // folder of the generation
	Source string // where it came from, absolute
	Script journal.Script
	// Release lets go of the generation. It may be called once.
	Release func()
}

// Pinner holds scripts as they are (core/scripts).
type Pinner interface {
	Pin(path string) (Pin, error)
	PinGeneration(journal.Script) (Pin, error)
	// Retain lets go of the generations of earlier lives that are not pinned
	// again and not listed.
	Retain(generations []uint64)
}

// ScriptList says which scripts there are.
type ScriptList interface {
	Index() job.ScriptIndex
	Changed() <-chan struct{}
	Conditions() []job.Condition
}

// Scripts is the whole of core/scripts that a worker uses.
type Scripts interface {
	Pinner
	ScriptList
}

// Place is where a process is born and found.
type Place interface {
	Name() string    // for Reopen; "" without cgroups
	Dir() string     // v2 folder, "" when there is none
	Tasks() []string // v1 "tasks" files
}

// StopRequest says whom to end, for hosts without cgroups, and how gently.
type StopRequest struct {
	PID        int
	StartTicks uint64
	Mark       string
	Grace      time.Duration
}

// Group holds all processes of one attempt (core/cgroup).
type Group interface {
	Place
	// Stop ends every process and proves it (P9). It may take a minute.
	Stop(context.Context, StopRequest) (job.StopProof, error)
	Empty(StopRequest) (bool, error)
	// OOMKills counts kills for want of memory since the group was made.
	OOMKills() (uint64, error)
	Release() error
}

// Groups makes groups.
type Groups interface {
	Check(job.Limits) error
	Acquire(l job.Limits, uid int) (Group, error)
	Reopen(name string) (Group, error)
	// Conditions tells what the host cannot promise.
	Conditions() []job.Condition
	// Prune removes what earlier lives left and nobody has reopened; it returns
	// the groups that cannot go because processes are in them.
	Prune() ([]string, error)
	// End kills what is in groups that Prune has returned.
	End(ctx context.Context, groups []string) error
}

// Launch is what a runner needs to make one process. All is resolved.
type Launch struct {
	ID          string
	Command     string
	Interpreter string // of the runner, absolute; "" when it names none
	Script      string
	Args        []string
	Env         []string
	Workdir     string
	Asked       bool   // the request named Workdir
	Stdin       string // file; "" is /dev/null
	Lanes       Lanes
	Cgroup      string
	CgroupTasks []string
	User        *Credential // nil: the worker's own
	NoNewPrivs  bool
	Rlimits     []Rlimit
}

// Credential is a numeric user.
type Credential struct {
	UID, GID uint32
	Groups   []uint32
}

// Held is an attempt that a plugin may still know after a restart.
type Held struct {
	ID         string
	Runner     journal.Runner
	PID        int // 0: no start was confirmed
	StartTicks uint64
	Lanes      Lanes
}

// Launcher starts processes; results arrive in the Feed (core/pluginhost).
type Launcher interface {
	Lookup(command string) (journal.Runner, error)
	// Interpreter returns the name of the program that a runner runs scripts with; ""
	// when it names none.
	Interpreter(journal.Runner) string
	// Restricts tells whether a runner applies NoNewPrivs and Rlimits.
	Restricts(journal.Runner) bool
	Start(journal.Runner, Launch) error
	Ack(ids ...string)
	// Resume takes over the attempts of an earlier life, if any: news tells what
	// became of each. It waits until the plugins are known.
	Resume(context.Context, []Held) error
}

// RunnerIndex lists the plugins.
type RunnerIndex interface {
	Runners() []job.RunnerInfo
	Conditions() []job.Condition
	Changed() <-chan struct{}
}

// Runners is the whole of core/pluginhost that a worker uses.
type Runners interface {
	Launcher
	RunnerIndex
}

// ProcessEvent is news of one process: Started, Exit, or Gone.
type ProcessEvent struct {
	ID      string
	Started *journal.Started // Boot is filled in by the worker
	Exit    *ProcessExit
	Gone    bool // proved to be gone, without a result
	Unknown bool // the plugin was never told: nothing was started
}

// ProcessExit is how a process ended, or why it never came to be.
type ProcessExit struct {
	PID         int
	Code        int32
	Signal      syscall.Signal // 0: Code counts
	SpawnReason string         // NOT_FOUND, ...; "": there was a process
	SpawnError  string
	Evidence    job.Evidence
	Time        time.Time
}
