package process

import (
	"errors"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/plugins/failpoint"
	"github.com/droverhq/drover/plugins/runner"
)

// reap is the one waiter for all children: jobs, and orphans of jobs that
// came to this process because it is a subreaper.
func (r *Runner) reap() {
	for {
		end, held, err := peek()
		switch {
		case errors.Is(err, syscall.EINTR):
		case held:
			r.awaitRelease()
		case err != nil: // no child: sleep until there may be one
			if !r.awaitFork() {
				return
			}
		default:
			r.collect(end)
			// Who tells of the end goes first, on this thread: it is about to block in
			// the kernel, and waking another one takes longer.
			runtime.Gosched()
		}
	}
}

// peek waits for the end of any child and tells it, but leaves a zombie: its pid
// stays its own until the table knows of it, and its end is not lost with this
// process before it is written down.
// Linux also tells of traced children that stop, though nobody asked; held is that.
func peek() (end runner.Exit, held bool, err error) {
	var (
		info  childInfo
		usage unix.Rusage
	)
	if err := unix.Waitid(unix.P_ALL, 0, (*unix.Siginfo)(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOWAIT, &usage); err != nil {
		return runner.Exit{}, false, err
	}
	return exitOf(&info, &usage), info.code == cldTrapped, nil
}

// childInfo is siginfo_t for SIGCHLD on 64-bit Linux, see sigaction(2); the
// x/sys type leaves all but the code out.
type childInfo struct {
	_      [2]int32 // signo, errno
	code   int32
	_      int32
	pid    int32
	uid    uint32
	status int32
	_      [100]byte
}

// Codes of waitid(2): of a process that called exit, and of one that is traced and
// has stopped. The others that end one are signals.
const (
	cldExited  = 1
	cldTrapped = 4
)

func exitOf(i *childInfo, u *unix.Rusage) runner.Exit {
	e := runner.Exit{
		PID: int(i.pid), Time: time.Now(), MaxRSS: uint64(u.Maxrss) << 10, // getrusage(2) counts KiB
		CPU: time.Duration(u.Utime.Nano() + u.Stime.Nano()),
	}
	if i.code == cldExited {
		e.Code = int(i.status)
	} else {
		e.Signal = syscall.Signal(i.status)
	}
	return e
}

// awaitFork blocks until a process is registered; false means closed.
func (r *Runner) awaitFork() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.byPID) == 0 && len(r.forks) == 0 && !r.closed {
		r.changed.Wait()
	}
	if len(r.byPID) == 0 && len(r.forks) > 0 {
		r.changed.Wait() // the fork ends in either case, and says so
	}
	return len(r.byPID) > 0 || !r.closed
}

// awaitRelease waits for the forks under way: one of them holds its child until that
// has its limits, and lets go of it before the fork ends.
func (r *Runner) awaitRelease() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for seen := r.fork; r.forkBefore(seen); {
		r.changed.Wait()
	}
}

// collect tells the end of one child, and then reaps it. A pid that the table does
// not know is an orphan, unless it belongs to a fork that began before it was seen
// and has not registered yet.
func (r *Runner) collect(end runner.Exit) {
	r.mu.Lock()
	seen := r.fork
	for r.byPID[end.PID] == nil && r.forkBefore(seen) {
		r.changed.Wait()
	}
	p := r.byPID[end.PID]
	r.mu.Unlock()
	if p != nil {
		// P7: when this process is killed before the end is in its journal, the
		// zombie goes to the worker, which reads the end from it.
		p.exited(end)
	}
	failpoint.At(failpoint.PluginReapBefore)
	r.mu.Lock()
	defer r.mu.Unlock()
	// Under the lock: Signal must not see the pid after it was given back.
	_, _ = syscall.Wait4(end.PID, nil, syscall.WNOHANG, nil) // gone: a fork that failed has reaped it
	failpoint.At(failpoint.PluginReapAfter)
	if p != nil {
		delete(r.byPID, end.PID)
		delete(r.byID, p.id)
	}
}

// forkBefore tells whether a fork up to the given number is under way; r.mu is
// held.
func (r *Runner) forkBefore(number uint64) bool {
	for n := range r.forks {
		if n <= number {
			return true
		}
	}
	return false
}
