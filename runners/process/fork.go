package process

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/plugins/foreign"
	"github.com/droverhq/drover/plugins/runner"
)

// files are what a fork needs: the three descriptors that a job begins with, and
// the cgroup that it is born into.
type files struct {
	fds    [3]uintptr
	own    [3]int // to close after the fork; -1 is shared
	cgroup int    // -1 is none
	user   uint32 // that the job runs as
}

// openFiles opens the job's ends of its pipes O_RDWR: the job itself then
// counts as a reader and never gets SIGPIPE, it only waits while nobody drains
// the pipe (P8).
func (r *Runner) openFiles(s runner.Spec) (*files, error) {
	f := &files{own: [3]int{-1, -1, -1}, cgroup: -1, user: uint32(os.Geteuid())}
	if s.Credential != nil {
		f.user = s.Credential.UID
	}
	if s.Stdin == "" && s.Credential == nil && r.null >= 0 {
		f.fds[0] = uintptr(r.null)
	} else if s.Stdin == "" {
		fd, err := syscall.Open(os.DevNull, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
		if err := f.take(0, fd, err); err != nil {
			return nil, err
		}
	} else if err := f.open(0, s.Stdin, syscall.O_RDONLY, unix.S_IFREG); err != nil {
		return nil, err
	}
	if err := f.open(1, s.Stdout, syscall.O_RDWR, unix.S_IFIFO); err != nil {
		return nil, err
	}
	if err := f.open(2, s.Stderr, syscall.O_RDWR, unix.S_IFIFO); err != nil {
		return nil, err
	}
	if s.Cgroup == "" {
		return f, nil
	}
	// Not kept for the next job of the group: every fork copies, and every exec
	// closes, each descriptor that this process has.
	fd, err := syscall.Open(s.Cgroup, unix.O_PATH|syscall.O_DIRECTORY|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
	if err != nil {
		f.close()
		return nil, openFailed(err, fmt.Sprintf("open the cgroup %s: %v", s.Cgroup, err))
	}
	f.cgroup = fd
	return f, nil
}

// open opens one of the three, which the worker has made for this job; on an error all
// are closed. It never waits: a start that hangs can be stopped by nobody.
func (f *files) open(i int, path string, mode int, kind uint32) error {
	fd, err := foreign.Open(path, mode, kind, f.user)
	if err == nil {
		err = foreign.Block(fd) // which closes it if it cannot
	}
	return f.take(i, fd, err)
}

// take keeps what was opened, or closes all.
func (f *files) take(i, fd int, err error) error {
	if err != nil {
		f.close()
		return openFailed(err, fmt.Sprintf("fd %d: %v", i, err))
	}
	f.own[i], f.fds[i] = fd, uintptr(fd)
	return nil
}

func openFailed(err error, message string) error {
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		return &runner.StartError{Reason: runner.Resource, Message: message}
	}
	return &runner.StartError{Reason: runner.Internal, Message: message}
}

// close may be called again.
func (f *files) close() {
	for i, fd := range f.own {
		if fd >= 0 {
			_ = syscall.Close(fd)
			f.own[i] = -1
		}
	}
	if f.cgroup >= 0 {
		_ = syscall.Close(f.cgroup)
		f.cgroup = -1
	}
}

// tick is the unit of start times in /proc: USER_HZ is 100 on every Linux that
// Go runs on (proc_pid_stat(5), field 22).
const tick = 10 * time.Millisecond

// bootClock is the clock that start times are in; 0 when it cannot be read.
func bootClock() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// ticksBetween is the start time of a process that was made between two looks at
// the clock, or 0 when a tick lies between them. The kernel notes the same clock
// in the fork and shows it cut to ticks (kernel/fork.c, fs/proc/array.c), so what
// costs four system calls to read is known already.
func ticksBetween(before, after time.Duration) uint64 {
	if before <= 0 || before/tick != after/tick {
		return 0
	}
	return uint64(before / tick)
}
