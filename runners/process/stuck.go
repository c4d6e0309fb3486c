package process

import (
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/droverhq/drover/plugins/pidfd"
	"github.com/droverhq/drover/plugins/runner"
)

// stuckAfter is how long a fork may take before its child is looked at.
const stuckAfter = time.Second

// watchFork looks after a fork that another user can hold up. A child has the user of the
// job before it executes its program, and until then this process can fork no other: a
// signal of that user that stops it would stop every start of this runner. Such a child
// is killed, and its job has ended by a signal. The caller says when the fork is over.
// This goroutine does not run when the garbage collector waits for the thread that forks:
// then the worker does the same (core/pluginhost, releaseStuck).
func watchFork(s runner.Spec) (over func()) {
	if s.Credential == nil && len(s.Rlimits) == 0 {
		return func() {}
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(stuckAfter)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				killStopped()
			}
		}
	}()
	return func() {
		close(stop)
		<-ended
	}
}

// killStopped kills the children of this process that were stopped before they executed
// a program. It reads all of /proc: it is needed only under attack.
func killStopped() {
	all, err := os.ReadDir("/proc")
	if err != nil {
		return // the next look comes in a moment
	}
	self := os.Getpid()
	for _, e := range all {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		st, err := pidfd.ReadStat(pid)
		if err == nil && st.Parent == self && st.Forked && (st.State == 'T' || st.State == 't') {
			// It is a child that nobody has reaped: its pid is nobody else's.
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}
