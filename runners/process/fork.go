package process

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/droverhq/drover/plugins/runner"
)

// files are the three descriptors that a job begins with.
type files struct {
	fds [3]uintptr
	own [3]int // to close after the fork; -1 is shared
}

// openFiles opens the job's ends of its pipes O_RDWR: the job itself then
// counts as a reader and never gets SIGPIPE, it only waits while nobody drains
// the pipe (P8).
func (r *Runner) openFiles(s runner.Spec) (*files, error) {
	f := &files{own: [3]int{-1, -1, -1}}
	stdin := s.Stdin
	if stdin == "" {
		stdin = os.DevNull
	}
	for i, o := range []struct {
		path string
		mode int
	}{{stdin, syscall.O_RDONLY}, {s.Stdout, syscall.O_RDWR}, {s.Stderr, syscall.O_RDWR}} {
		fd, err := syscall.Open(o.path, o.mode|syscall.O_CLOEXEC, 0)
		if err != nil {
			f.close()
			reason := runner.Internal
			if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
				reason = runner.Resource
			}
			return nil, &runner.StartError{Reason: reason, Message: fmt.Sprintf("open %s for fd %d: %v", o.path, i, err)}
		}
		f.own[i], f.fds[i] = fd, uintptr(fd)
	}
	return f, nil
}

// close may be called again.
func (f *files) close() {
	for i, fd := range f.own {
		if fd >= 0 {
			_ = syscall.Close(fd)
			f.own[i] = -1
		}
	}
}

// forkExec starts a process. A busy text file (the script was written a moment
// ago by a process that forked meanwhile) goes away by itself within
// milliseconds, see golang.org/issue/22315.
func forkExec(path string, argv []string, attr *syscall.ProcAttr, tasks []string) (int, error) {
	for try := 0; ; try++ {
		pid, err := forkInto(path, argv, attr, tasks)
		if !errors.Is(err, syscall.ETXTBSY) || try == 10 {
			return pid, err
		}
		time.Sleep(time.Millisecond << min(try, 5))
	}
}

// forkInto forks from a thread that has entered the v1 cgroups of the job: a
// child is born into the cgroups of the thread that forks. The thread is not
// given back to Go but ends with its goroutine, so nothing else runs in there.
func forkInto(path string, argv []string, attr *syscall.ProcAttr, tasks []string) (int, error) {
	if len(tasks) == 0 {
		return syscall.ForkExec(path, argv, attr)
	}
	type result struct {
		pid int
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, on purpose
		tid := []byte(strconv.Itoa(syscall.Gettid()))
		for _, t := range tasks {
			if err := os.WriteFile(t, tid, 0); err != nil {
				done <- result{0, fmt.Errorf("enter the cgroup: %w", err)}
				return
			}
		}
		pid, err := syscall.ForkExec(path, argv, attr)
		done <- result{pid, err}
	}()
	r := <-done
	return r.pid, r.err
}

// startTicks reads field 22 of /proc/PID/stat. The command name in field 2 may
// hold spaces and brackets, so fields are counted from the last bracket.
func startTicks(pid int) (uint64, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, fmt.Errorf("read the start time: %w", err)
	}
	s := string(data)
	fields := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(fields) < 20 {
		return 0, fmt.Errorf("read the start time: /proc/%d/stat is short", pid)
	}
	ticks, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read the start time: %w", err)
	}
	return ticks, nil
}
