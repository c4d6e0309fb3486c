// Package runner is the SDK for runner plugins: implement Runner, or take the
// one of runners/process, and give it to Serve. It imports the protocol and
// nothing else of drover.
package runner

import (
	"syscall"
	"time"

	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// Protocol is the version of drover.runner.v1 that this SDK speaks.
const Protocol = 1

// Info says who a runner is.
type Info struct {
	Name       string   // [a-z][a-z0-9-]{0,31}
	Version    string   // semantic
	Commands   []string // further commands it serves beside its name
	Extensions []string // such as ".py"
	// Interpreter is the name of the program that runs the scripts, such as python3.
	// The worker finds it and says where in Spec.Interpreter. "" is none.
	Interpreter string
	// Restricts says that each Start applies NoNewPrivs and Rlimits. A worker gives no
	// Start with these to a runner that does not; the runners of runners/process do.
	Restricts bool
	// Canary is what a worker tries a new version with before it gets jobs; nil is
	// an empty script, which may end as it likes.
	Canary *Canary
	// Keeps says that each Start makes one child of this process and nothing else,
	// and that the child is not reaped before exited has returned. When the plugin
	// is killed in a Start, the worker can then tell whether the job has begun: if
	// not, it is started again, and without Keeps it is LOST. The runners of
	// runners/process keep.
	Keeps bool
}

// Canary is a start that ends by itself at once, with exit code 0.
type Canary struct {
	Command string // "" is the runner's name
	Script  []byte // text of the script; nil: there is no script
	Args    []string
}

// Spec asks for one process. The worker has resolved and allowed everything
// in it; a runner adds its interpreter and nothing else.
type Spec struct {
	ID      string
	Command string
	Script  string // absolute, or ""
	Args    []string
	Env     []string // K=V, the whole environment
	Workdir string
	// WorkdirAsked: the request named the working folder. Workdir is where it really lies:
	// enter it with the rights of Credential, without following links, and so that nothing
	// else waits for its file system.
	WorkdirAsked bool
	Stdin        string   // file; "" is the null device
	Stdout       string   // named pipe; open it O_RDWR for the job
	Stderr       string   // named pipe
	Cgroup       string   // cgroup (v2) folder to be born into; "" is none
	CgroupTasks  []string // v1 "tasks" files that the forking thread enters
	Credential   *Credential
	// Interpreter is where the program of Info.Interpreter lies, absolute; "" when the
	// worker is older: then look in the PATH of this process. Never look in that of
	// Env, which a request may have set.
	Interpreter string
	NoNewPrivs  bool     // see PR_SET_NO_NEW_PRIVS in prctl(2)
	Rlimits     []Rlimit // to set before anything is executed
}

// Rlimit is a resource limit, soft and hard, see setrlimit(2).
type Rlimit struct {
	Resource int    // such as unix.RLIMIT_NOFILE
	Value    uint64 // unix.RLIM_INFINITY is none
}

// Credential is a numeric user.
type Credential struct {
	UID, GID uint32
	Groups   []uint32
}

// Process is a process that exists.
type Process struct {
	PID        int
	StartTicks uint64 // field 22 of /proc/PID/stat, see proc(5)
}

// Exit says how a process ended: by Signal when that is not 0, else with Code.
type Exit struct {
	PID    int
	Code   int
	Signal syscall.Signal
	CPU    time.Duration // user and system time
	MaxRSS uint64        // bytes
	Time   time.Time
}

// Runner turns specs into processes. Its methods are called concurrently.
type Runner interface {
	// Info is asked once.
	Info() Info
	// Start returns when the process exists, or a *StartError when it cannot.
	// exited is called once, when the process has ended, from any goroutine
	// and possibly before Start returns, also when that returns an error. Reap the
	// process after it: until then its end is not in the exit journal, and is lost
	// with the plugin if nobody else can read it.
	Start(s Spec, exited func(Exit)) (Process, error)
	// Signal signals the main process of a Start. A process that is gone is no
	// error.
	Signal(id string, sig syscall.Signal) error
	// Close ends the runner; nothing runs any more.
	Close() error
}

// Reasons of a StartError.
const (
	NotFound      = "NOT_FOUND"      // no such executable or interpreter
	NotExecutable = "NOT_EXECUTABLE" // it is there but cannot be executed
	BadRequest    = "BAD_REQUEST"    // the spec cannot be run by this runner
	Resource      = "RESOURCE"       // the machine has no room for a process
	ShuttingDown  = "SHUTTING_DOWN"  // the plugin takes nothing new
	Internal      = "INTERNAL"       // a defect of the runner
)

// StartError says why a process never came to be.
type StartError struct {
	Reason  string // one of the reasons
	Message string // one line, naming what was tried
}

// Error returns the message.
func (e *StartError) Error() string { return e.Message }

func (c *Canary) proto() *runnerv1.Canary {
	if c == nil {
		return nil
	}
	return &runnerv1.Canary{Command: c.Command, Script: c.Script, Args: c.Args}
}

func specFromProto(p *runnerv1.Start) Spec {
	s := Spec{
		ID: p.GetId(), Command: p.GetCommand(), Script: p.GetScript(), Args: p.GetArgs(), Env: p.GetEnv(),
		Workdir: p.GetWorkdir(), Stdin: p.GetStdin(), Stdout: p.GetStdout(), Stderr: p.GetStderr(),
		Cgroup: p.GetCgroup(), CgroupTasks: p.GetCgroupTasks(),
		Interpreter: p.GetInterpreter(), NoNewPrivs: p.GetNoNewPrivs(), WorkdirAsked: p.GetWorkdirAsked(),
	}
	for _, l := range p.GetRlimits() {
		s.Rlimits = append(s.Rlimits, Rlimit{Resource: int(l.GetResource()), Value: l.GetValue()})
	}
	if c := p.GetCredential(); c != nil {
		s.Credential = &Credential{UID: c.GetUid(), GID: c.GetGid(), Groups: c.GetGroups()}
	}
	return s
}
