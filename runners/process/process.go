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

	"github.com/droverhq/drover/plugins/runner"
)

// Config makes a Runner.
type Config struct {
	Info runner.Info
	// Argv turns a spec into the argument vector; argv[0] is looked up in the
	// job's own PATH. An error is a *runner.StartError or becomes BAD_REQUEST.
	Argv func(runner.Spec) ([]string, error)
}

// Runner starts processes. It reaps every child of its process, so a process
// holds one Runner and nothing else that waits for children.
type Runner struct {
	config Config
	null   int // the null device, for jobs without standard input

	mu      sync.Mutex // guards the fields below
	changed *sync.Cond // a process was registered, a fork ended, or the runner closed
	byPID   map[int]*proc
	byID    map[string]*proc
	forks   map[uint64]struct{} // forks under way, by number
	fork    uint64              // number of the newest fork
	cgroups map[string]int      // opened cgroup folders
	closed  bool
}

type proc struct {
	id     string
	pid    int
	exited func(runner.Exit)
}

// New returns a Runner whose reaper runs until Close.
func New(c Config) *Runner {
	// Orphans of jobs come to this process instead of init, so that they are
	// reaped here and stay visible as descendants.
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	// What this process inherited by accident is not for jobs: they get fds 0 to
	// 2. Kernels before 5.11 cannot say it in one call and pass it on.
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	r := &Runner{
		config: c, null: -1, byPID: map[int]*proc{}, byID: map[string]*proc{},
		forks: map[uint64]struct{}{}, cgroups: map[string]int{},
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
	for _, fd := range r.cgroups {
		_ = syscall.Close(fd)
	}
	r.cgroups = map[string]int{}
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
	path, err := lookPath(argv[0], s.Env, s.Workdir)
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
	if s.Cgroup != "" {
		if attr.Sys.CgroupFD, err = r.cgroup(s.Cgroup); err != nil {
			return runner.Process{}, err
		}
		attr.Sys.UseCgroupFD = true
	}
	number := r.beginFork()
	pid, err := forkExec(path, argv, attr, s.CgroupTasks)
	if err != nil {
		r.endFork(number, nil)
		return runner.Process{}, explain(err, path, s)
	}
	f.close() // leaves room for one descriptor more, whatever the limit
	// The reaper takes no process of this fork before endFork: the entry in
	// /proc cannot go away.
	ticks, err := startTicks(pid)
	if err != nil {
		// What cannot be named for ever must not run: a failed start is no process.
		_ = syscall.Kill(-pid, syscall.SIGKILL)
		exited = func(runner.Exit) {}
	}
	r.endFork(number, &proc{id: s.ID, pid: pid, exited: exited})
	if err != nil {
		return runner.Process{}, err
	}
	return runner.Process{PID: pid, StartTicks: ticks}, nil
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

// cgroup returns an open folder of a cgroup; folders are reused by many jobs,
// so descriptors are kept.
func (r *Runner) cgroup(path string) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if fd, ok := r.cgroups[path]; ok {
		return fd, nil
	}
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return 0, &runner.StartError{Reason: runner.Internal, Message: fmt.Sprintf("open the cgroup %s: %v", path, err)}
	}
	r.cgroups[path] = fd
	return fd, nil
}

// lookPath finds an executable in the job's own PATH.
func lookPath(name string, env []string, workdir string) (string, error) {
	if name == "" {
		return "", &runner.StartError{Reason: runner.BadRequest, Message: "the command is empty"}
	}
	if strings.ContainsRune(name, '/') {
		if err := checkExecutable(name, workdir); err != nil {
			return "", err
		}
		return name, nil
	}
	path := "/usr/local/bin:/usr/bin:/bin"
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v
		}
	}
	var denied error
	for _, dir := range filepath.SplitList(path) {
		if dir == "" {
			dir = "."
		}
		candidate := filepath.Join(dir, name)
		err := checkExecutable(candidate, workdir)
		if err == nil {
			return candidate, nil
		}
		if err.Reason == runner.NotExecutable {
			denied = err
		}
	}
	if denied != nil {
		return "", denied
	}
	return "", &runner.StartError{Reason: runner.NotFound, Message: fmt.Sprintf("%q is not in the PATH %s", name, path)}
}

func checkExecutable(path, workdir string) *runner.StartError {
	if !filepath.IsAbs(path) {
		path = filepath.Join(workdir, path)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return &runner.StartError{Reason: runner.NotFound, Message: fmt.Sprintf("execute %s: %v", path, err)}
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFREG || st.Mode&0o111 == 0 {
		return &runner.StartError{Reason: runner.NotExecutable, Message: fmt.Sprintf("execute %s: it is not an executable file", path)}
	}
	return nil
}

// explain turns an errno of fork or exec into a reason.
func explain(err error, path string, s runner.Spec) error {
	message := fmt.Sprintf("execute %s: %v", path, err)
	switch {
	case errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENOTDIR):
		if _, statErr := os.Stat(s.Workdir); s.Workdir != "" && statErr != nil {
			return &runner.StartError{Reason: runner.BadRequest, Message: fmt.Sprintf("working folder: %v", statErr)}
		}
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

// exitOf turns a wait status into an Exit.
func exitOf(pid int, w syscall.WaitStatus, u *syscall.Rusage) runner.Exit {
	e := runner.Exit{
		PID: pid, Time: time.Now(), MaxRSS: uint64(u.Maxrss) << 10, // getrusage(2) counts KiB
		CPU: time.Duration(u.Utime.Nano() + u.Stime.Nano()),
	}
	if w.Signaled() {
		e.Signal = w.Signal()
	} else {
		e.Code = w.ExitStatus()
	}
	return e
}
