package process

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/plugins/runner"
)

// restrictions are what a process is born with that Go's fork cannot give it.
type restrictions struct {
	tasks      []string // of v1 cgroups
	noNewPrivs bool
	rlimits    []runner.Rlimit
}

func restrictionsOf(s runner.Spec) restrictions {
	return restrictions{tasks: s.CgroupTasks, noNewPrivs: s.NoNewPrivs, rlimits: s.Rlimits}
}

func (x *restrictions) none() bool {
	return len(x.tasks) == 0 && !x.noNewPrivs && len(x.rlimits) == 0
}

// forkExec starts a process. A busy text file (the script was written a moment
// ago by a process that forked meanwhile) goes away by itself within
// milliseconds, see golang.org/issue/22315.
func forkExec(fork func() (int, error)) (int, error) {
	for try := 0; ; try++ {
		pid, err := fork()
		if !errors.Is(err, syscall.ETXTBSY) || try == 10 {
			return pid, err
		}
		time.Sleep(time.Millisecond << min(try, 5))
	}
}

// forkInto forks from a thread that has the restrictions itself: a child is born
// into the v1 cgroups of the thread that forks, and inherits no_new_privs from it.
// The thread is not given back to Go but ends with its goroutine, so nothing else
// runs in there. Without restrictions there is no such thread, and no price.
func forkInto(path string, argv []string, attr *syscall.ProcAttr, x restrictions) (int, error) {
	if x.none() {
		return syscall.ForkExec(path, argv, attr)
	}
	type result struct {
		pid int
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, on purpose
		pid, err := x.fork(path, argv, attr)
		done <- result{pid, err}
	}()
	r := <-done
	return r.pid, r.err
}

// fork runs on a thread of its own.
func (x *restrictions) fork(path string, argv []string, attr *syscall.ProcAttr) (int, error) {
	tid := []byte(strconv.Itoa(syscall.Gettid()))
	for _, t := range x.tasks {
		if err := os.WriteFile(t, tid, 0); err != nil {
			return 0, fmt.Errorf("enter the cgroup: %w", err)
		}
	}
	if x.noNewPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return 0, fmt.Errorf("set no_new_privs: %w", err)
		}
	}
	if len(x.rlimits) == 0 {
		return syscall.ForkExec(path, argv, attr)
	}
	// Limits belong to a process, not to a thread. A traced process stops when it has
	// executed its program and before the first instruction of that.
	traced, sys := *attr, *attr.Sys
	sys.Ptrace = true
	traced.Sys = &sys
	pid, err := syscall.ForkExec(path, argv, &traced)
	if errors.Is(err, syscall.EPERM) {
		err = fmt.Errorf("%w (rlimits need ptrace(2), which this host may not allow)", err)
	}
	if err != nil {
		return 0, err
	}
	if err := limitAndRelease(pid, sys.Credential, x.rlimits); err != nil {
		// Without its limits it must not run. It has run nothing yet.
		_ = syscall.Kill(pid, syscall.SIGKILL)
		_, _ = syscall.Wait4(pid, nil, 0, nil)
		return 0, fmt.Errorf("set resource limits: %w", err)
	}
	return pid, nil
}

// limitAndRelease waits for the stop at exec, sets the limits, and lets go. The
// end of a process that is killed meanwhile is left to the reaper.
func limitAndRelease(pid int, c *syscall.Credential, limits []runner.Rlimit) error {
	for {
		var info childInfo
		err := unix.Waitid(unix.P_PID, pid, (*unix.Siginfo)(unsafe.Pointer(&info)), unix.WSTOPPED|unix.WEXITED|unix.WNOWAIT, nil)
		switch sig := syscall.Signal(info.status); {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return fmt.Errorf("wait for process %d: %w", pid, err)
		case info.code != cldTrapped:
			return nil
		case sig != syscall.SIGTRAP: // somebody else's signal came first
			if err := syscall.PtraceCont(pid, int(sig)); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("continue process %d: %w", pid, err)
			}
		default:
			if err := setLimits(pid, c, limits); err != nil {
				return err
			}
			if err := syscall.PtraceDetach(pid); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("release process %d: %w", pid, err)
			}
			return nil
		}
	}
}
