package runner

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// handDown makes this process one whose children are born as after a login: what the
// worker was started with, by a service manager, by nohup(1) or by a script, is not for
// jobs. Signals come at their defaults and none is blocked, umask, nice value and OOM score are
// those of a new session. A nice value that only root may lower stays.
func handDown() error {
	if err := unblock(); err != nil {
		return err
	}
	syscall.Umask(umask)
	// What is caught here is at its default after an exec, what is ignored here stays
	// ignored (execve(2)). Nobody reads the channel: a worker that is killed must not take
	// this process with it. Go catches all others by itself.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGPIPE,
		syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGCONT)
	_ = syscall.Setpriority(syscall.PRIO_PROCESS, 0, 0)
	// 0 is what it is already, or may be set by everybody whose value is lower.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("0"), 0)
	return nil
}

// unblock executes this program again when signals are blocked: Go gives the mask that a
// process began with to each of its children.
func unblock() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var none, was unix.Sigset_t
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &none, &was); err != nil {
		return fmt.Errorf("unblock signals: %w", err)
	}
	if was == none {
		return nil
	}
	if err := syscall.Exec("/proc/self/exe", os.Args, os.Environ()); err != nil {
		return fmt.Errorf("unblock signals: %w", err)
	}
	return nil
}
