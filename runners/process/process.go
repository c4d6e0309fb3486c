// Package process is the engine of runners that start processes: fork and
// exec without a shell, one reaper for all, no goroutine per waiting job.
package process

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/plugins/foreign"
	"github.com/droverhq/drover/plugins/lineage"
	"github.com/droverhq/drover/plugins/pidfd"
	"github.com/droverhq/drover/plugins/runner"
)

// Config makes a Runner.
type Config struct {
	Info runner.Info
	// Argv turns a spec into the argument vector. argv[0] is absolute, or the name of
	// the interpreter of Info, which the worker has found, or another one, which is
	// looked up in the PATH of this process; the process gets it absolute. An error is
	// a *runner.StartError or becomes BAD_REQUEST.
	Argv func(runner.Spec) ([]string, error)
}

// Runner starts processes. It reaps every child of its process, so a process
// holds one Runner and nothing else that waits for children.
type Runner struct {
	config Config
	path   string // PATH of this process
	looks  foreign.Looks
	null   int // the null device, for jobs of this process's user without standard input; -1 could not be opened

	hiding  sync.Once  // of this process from the users of its jobs
	tagging sync.Mutex // held while this process wears the tag of an attempt, for a fork

	mu      sync.Mutex // guards the fields below
	changed *sync.Cond // a process was registered, a fork ended, or the runner closed
	byPID   map[int]*proc
	byID    map[string]*proc
	forks   map[uint64]struct{} // forks under way, by number
	fork    uint64              // number of the newest fork
	closed  bool
}

type proc struct {
	id     string
	pid    int
	exited func(runner.Exit)
}

// New returns a Runner whose reaper runs until Close. A program calls it before it looks
// at its arguments: where root may not set limits of other users, the program is started
// again to do that (see setLimitsAs), and New does it and ends the process.
func New(c Config) *Runner {
	if len(os.Args) > 3 && os.Args[0] == limiterName {
		os.Exit(limiter(os.Args[1:]))
	}
	// Orphans of jobs come to this process instead of init, so that they are
	// reaped here and stay visible as descendants.
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	// What this process inherited by accident is not for jobs: they get fds 0 to
	// 2. Kernels before 5.11 cannot say it in one call and pass it on.
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	c.Info.Keeps = true     // see collect
	c.Info.Restricts = true // see forkInto
	r := &Runner{
		config: c, path: os.Getenv("PATH"), null: -1, byPID: map[int]*proc{}, byID: map[string]*proc{}, forks: map[uint64]struct{}{},
	}
	// Shared by the jobs of one user: flags, owner and locks of a description are seen
	// by all who have it.
	if null, err := syscall.Open(os.DevNull, syscall.O_RDONLY|syscall.O_CLOEXEC, 0); err == nil {
		r.null = null
	}
	r.changed = sync.NewCond(&r.mu)
	go r.reap()
	return r
}

// Info implements runner.Runner.
func (r *Runner) Info() runner.Info { return r.config.Info }

// Close makes the reaper end once no child is left to wait for; running jobs
// are not touched and go to the worker. It does not wait: nothing interrupts
// waitid(2) but a child, and the process ends soon anyway.
func (r *Runner) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.changed.Broadcast()
	return nil
}

// Signal implements runner.Runner. The process cannot be reaped while the lock
// is held, so its pid cannot be another's.
func (r *Runner) Signal(id string, sig syscall.Signal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, ok := r.byID[id]
	if !ok {
		return nil
	}
	if err := syscall.Kill(p.pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal %s: %w", id, err)
	}
	return nil
}

// Start implements runner.Runner.
func (r *Runner) Start(s runner.Spec, exited func(runner.Exit)) (runner.Process, error) {
	argv, err := r.argv(s)
	if err != nil {
		return runner.Process{}, err
	}
	f, err := r.openFiles(s)
	if err != nil {
		return runner.Process{}, err
	}
	defer f.close()
	attr := &syscall.ProcAttr{Dir: s.Workdir, Env: s.Env, Files: f.fds[:], Sys: &syscall.SysProcAttr{Setsid: true}}
	if c := s.Credential; c != nil {
		attr.Sys.Credential = &syscall.Credential{Uid: c.UID, Gid: c.GID, Groups: c.Groups}
	}
	if f.cgroup >= 0 {
		attr.Sys.CgroupFD, attr.Sys.UseCgroupFD = f.cgroup, true
	}
	var number uint64
	pid, ticks, err := r.launch(argv, attr, s, func() { number = r.beginFork() })
	if pid == 0 {
		r.endFork(number, nil)
		return runner.Process{}, err
	}
	f.close() // leaves room for one descriptor more, whatever the limit
	// The reaper takes no process of this fork before endFork: the entry in
	// /proc cannot go away.
	if ticks == 0 {
		var st pidfd.Stat
		st, err = pidfd.ReadStat(pid)
		ticks = st.Ticks
	}
	if err != nil {
		// What cannot be named for ever must not run: a failed start is no process.
		// Its end is told all the same: it had begun.
		_ = syscall.Kill(-pid, syscall.SIGKILL)
	}
	r.endFork(number, &proc{id: s.ID, pid: pid, exited: exited})
	if err != nil {
		return runner.Process{}, err
	}
	return runner.Process{PID: pid, StartTicks: ticks}, nil
}

// launch finds the executable and starts it; forking is called when a fork comes.
// ticks is 0 when the start time has to be asked for.
func (r *Runner) launch(argv []string, attr *syscall.ProcAttr, s runner.Spec, forking func()) (pid int, ticks uint64, err error) {
	if s.Credential != nil {
		r.hiding.Do(hide)
	}
	path, err := r.program(argv[0], s)
	if err != nil {
		return 0, 0, err
	}
	// Some programs look themselves up in the PATH of the job when their name is none
	// with a slash, and load their libraries from beside what they find.
	argv = append([]string{path}, argv[1:]...)
	var before, after time.Duration
	refused := r.begin(path, argv, attr, s, func(fork func() (int, error)) {
		forking()
		takeOff := r.tag(&s)
		before = bootClock()
		free := watchFork(s)
		pid, err = forkExec(fork)
		free()
		after = bootClock()
		takeOff()
	})
	if refused != nil {
		return 0, 0, refused
	}
	if err != nil {
		return 0, 0, r.explain(err, path, s)
	}
	return pid, ticksBetween(before, after), nil
}

// hide closes the memory of this process to the users that its children become. A child
// shares it from its change of user until it executes its program, and the kernel
// lets that user's processes open it as long as this process counts as dumpable
// (prctl(2), ptrace(2)). A change of user makes it undumpable by itself; what looks at
// files as another user puts back what was before (plugins/foreign).
func hide() { _ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) }

// tag gives this process the tag of an attempt that no cgroup holds, so that what is
// forked has it (P9). It returns the way back.
func (r *Runner) tag(s *runner.Spec) (takeOff func()) {
	if s.Cgroup != "" || len(s.CgroupTasks) > 0 {
		return func() {}
	}
	r.tagging.Lock()
	back := lineage.Wear(lineage.Of(s.ID))
	return func() {
		back()
		r.tagging.Unlock()
	}
}

// program returns what to execute for argv[0].
func (r *Runner) program(name string, s runner.Spec) (string, error) {
	if name == r.config.Info.Interpreter && filepath.IsAbs(s.Interpreter) {
		return s.Interpreter, nil
	}
	return find(name, r.path)
}

func (r *Runner) argv(s runner.Spec) ([]string, error) {
	argv, err := r.config.Argv(s)
	var se *runner.StartError
	if err != nil && !errors.As(err, &se) {
		return nil, &runner.StartError{Reason: runner.BadRequest, Message: err.Error()}
	}
	if err != nil {
		return nil, err
	}
	for _, list := range [][]string{argv, s.Env} {
		for _, a := range list {
			if strings.ContainsRune(a, 0) {
				return nil, &runner.StartError{Reason: runner.BadRequest, Message: "an argument or environment value holds a NUL byte"}
			}
		}
	}
	return argv, nil
}

// beginFork announces a fork to the reaper.
func (r *Runner) beginFork() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fork++
	r.forks[r.fork] = struct{}{}
	return r.fork
}

func (r *Runner) endFork(number uint64, p *proc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.forks, number)
	if p != nil {
		r.byPID[p.pid] = p
		r.byID[p.id] = p
	}
	r.changed.Broadcast()
}

// explain turns an errno of fork or exec into a reason.
func (r *Runner) explain(err error, path string, s runner.Spec) error {
	var known *runner.StartError
	if errors.As(err, &known) {
		return known
	}
	if errors.As(r.whyNot(path, s), &known) {
		return known
	}
	message := fmt.Sprintf("execute %s: %v", path, err)
	switch {
	case errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENOTDIR):
		return &runner.StartError{Reason: runner.NotFound, Message: message + " (is its interpreter installed?)"}
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM), errors.Is(err, syscall.ENOEXEC):
		return &runner.StartError{Reason: runner.NotExecutable, Message: message}
	case errors.Is(err, syscall.E2BIG):
		return &runner.StartError{Reason: runner.BadRequest, Message: message}
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return &runner.StartError{Reason: runner.Resource, Message: message}
	default:
		return &runner.StartError{Reason: runner.Internal, Message: message}
	}
}
