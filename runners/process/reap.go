package process

import (
	"errors"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reap is the one waiter for all children: jobs, and orphans of jobs that
// came to this process because it is a subreaper.
func (r *Runner) reap() {
	for {
		pid, err := peek()
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil: // no child: sleep until there may be one
			if !r.awaitFork() {
				return
			}
		default:
			r.collect(pid)
		}
	}
}

// peek waits for the end of any child and leaves it a zombie, so that its pid
// stays its own until the table knows of it.
func peek() (int, error) {
	var info childInfo
	if err := unix.Waitid(unix.P_ALL, 0, (*unix.Siginfo)(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		return 0, err
	}
	return int(info.pid), nil
}

// childInfo is siginfo_t for SIGCHLD on 64-bit Linux, see sigaction(2); the
// x/sys type leaves the pid out.
type childInfo struct {
	_   [4]int32 // signo, errno, code, padding
	pid int32
	_   [108]byte
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

// collect reaps one zombie. A pid that the table does not know is an orphan,
// unless it belongs to a fork that began before it was seen and has not
// registered yet.
func (r *Runner) collect(pid int) {
	r.mu.Lock()
	seen := r.fork
	for r.byPID[pid] == nil && r.forkBefore(seen) {
		r.changed.Wait()
	}
	p := r.byPID[pid]
	var (
		status syscall.WaitStatus
		usage  syscall.Rusage
	)
	// Under the lock: Signal must not see the pid after it was given back.
	_, err := syscall.Wait4(pid, &status, syscall.WNOHANG, &usage)
	if p != nil {
		delete(r.byPID, pid)
		delete(r.byID, p.id)
	}
	r.mu.Unlock()
	if p != nil && err == nil {
		p.exited(exitOf(pid, status, &usage))
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
