package pluginhost

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/plugins/pidfd"
	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// childInfo is siginfo_t for SIGCHLD on 64-bit Linux, see sigaction(2).
type childInfo struct {
	_      [2]int32 // signo, errno
	code   int32
	_      int32
	pid    int32
	uid    uint32
	status int32
	_      [100]byte
}

// cldExited is the code of a process that called exit; any other end in
// siginfo is by a signal (waitid(2)).
const cldExited = 1

// collect takes the result of an ended process from its handle. Children are
// reaped (AdoptedWait); of others /proc or the kernel may tell it (PidFD).
func collect(fd, pid int, ticks uint64) (e *runnerv1.Exited, evidence job.Evidence, err error) {
	var info childInfo
	err = unix.Waitid(unix.P_PIDFD, fd, (*unix.Siginfo)(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOHANG, nil)
	switch {
	case err == nil && info.pid != 0:
		e = &runnerv1.Exited{Pid: int64(info.pid)}
		if info.code == cldExited {
			e.Result = &runnerv1.Exited_ExitCode{ExitCode: info.status}
		} else {
			e.Result = &runnerv1.Exited_Signal{Signal: info.status}
		}
		return e, job.AdoptedWait, nil
	case err == nil:
		return nil, job.NoEvidence, syscall.EAGAIN
	case errors.Is(err, syscall.ECHILD):
		return fromOthers(fd, pid, ticks)
	default:
		return nil, job.NoEvidence, fmt.Errorf("wait for a process: %w", err)
	}
}

// fromOthers asks for the result of a process that somebody else reaps. EAGAIN:
// nobody tells yet.
func fromOthers(fd, pid int, ticks uint64) (*runnerv1.Exited, job.Evidence, error) {
	status, err := pidfd.Status(fd, pid, ticks)
	if err != nil {
		return nil, job.NoEvidence, err
	}
	e := &runnerv1.Exited{Pid: int64(pid)}
	if status.Signaled() {
		e.Result = &runnerv1.Exited_Signal{Signal: int32(status.Signal())}
	} else {
		e.Result = &runnerv1.Exited_ExitCode{ExitCode: int32(status.ExitStatus())}
	}
	return e, job.PidFD, nil
}

// children lists the children of this process.
func children() []int { return childrenOf("self") }

// childrenOf lists the children of a process, as /proc names it.
func childrenOf(process string) []int {
	dir := "/proc/" + process + "/task"
	tasks, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var out []int
	for _, t := range tasks {
		data, err := os.ReadFile(dir + "/" + t.Name() + "/children")
		if err != nil {
			continue // the thread ended meanwhile
		}
		for f := range strings.FieldsSeq(string(data)) {
			if pid, err := strconv.Atoi(f); err == nil {
				out = append(out, pid)
			}
		}
	}
	return out
}

// withMark finds a plugin process by a variable of its environment. It leads a session
// and runs as the user of this process: a job of another user that has the same
// variable is no plugin. Children of this process come first, then all: a plugin that
// an earlier worker started has gone elsewhere.
func withMark(mark string) (pid int, ok bool) {
	if mark == "" {
		return 0, false
	}
	for _, list := range []func() []int{children, everybody} {
		for _, c := range list() {
			if !hasVariable(c, mark) {
				continue
			}
			if st, err := pidfd.ReadStat(c); err == nil && st.Session == c && runsAs(c, os.Getuid()) {
				return c, true
			}
		}
	}
	return 0, false
}

func hasVariable(pid int, variable string) bool {
	env, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return false
	}
	for kv := range strings.SplitSeq(string(env), "\x00") {
		if kv == variable {
			return true
		}
	}
	return false
}

// runsAs tells whether a process is one of that user, whatever rights it has beside.
func runsAs(pid, uid int) bool {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(status)) {
		if ids, ok := strings.CutPrefix(line, "Uid:"); ok {
			f := strings.Fields(ids) // the real one first, proc_pid_status(5)
			return len(f) > 0 && f[0] == strconv.Itoa(uid)
		}
	}
	return false
}

// everybody lists all processes.
func everybody() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var out []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			out = append(out, pid)
		}
	}
	return out
}
