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
	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// procStat is what is needed of /proc/PID/stat, see proc_pid_stat(5).
type procStat struct {
	state   byte
	parent  int
	session int
	ticks   uint64
}

func readStat(pid int) (procStat, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return procStat{}, fmt.Errorf("read process %d: %w", pid, err)
	}
	// The command name may hold spaces and brackets: count from the last one.
	f := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if len(f) < 20 {
		return procStat{}, fmt.Errorf("read process %d: short stat", pid)
	}
	parent, err1 := strconv.Atoi(f[1])
	session, err2 := strconv.Atoi(f[3])
	ticks, err3 := strconv.ParseUint(f[19], 10, 64)
	if err := errors.Join(err1, err2, err3); err != nil {
		return procStat{}, fmt.Errorf("read process %d: %w", pid, err)
	}
	return procStat{f[0][0], parent, session, ticks}, nil
}

// alive tells whether the process with that pid is the one that began at ticks
// and has not ended.
func alive(pid int, ticks uint64) bool {
	st, err := readStat(pid)
	return err == nil && st.ticks == ticks && st.state != 'Z' && st.state != 'X'
}

// openPidfd opens a handle to one process. The start time is compared after
// that: from then on the pid cannot be another's.
func openPidfd(pid int, ticks uint64) (int, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, fmt.Errorf("open process %d: %w", pid, err)
	}
	if st, err := readStat(pid); err != nil || ticks != 0 && st.ticks != ticks {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("open process %d: %w", pid, syscall.ESRCH)
	}
	return fd, nil
}

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
// reaped (AdoptedWait); for others the kernel may remember it (PidFD).
func collect(fd int) (e *runnerv1.Exited, evidence job.Evidence, err error) {
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
		return fromKernel(fd)
	default:
		return nil, job.NoEvidence, fmt.Errorf("wait for a process: %w", err)
	}
}

// pidfdInfo is struct pidfd_info of linux/pidfd.h, version 0.
type pidfdInfo struct {
	mask     uint64
	_        [8]byte // cgroupid
	pid      uint32
	_        [10]uint32
	exitCode int32
}

const (
	pidfdGetInfo  = 0xC0000000 | 64<<16 | 0xFF<<8 | 11 // _IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)
	pidfdInfoExit = 1 << 3                             // kernel 6.15 and newer
)

// fromKernel asks a pidfd that was opened while the process lived for its wait
// status. EAGAIN: nobody has reaped it yet. Older kernels do not tell.
func fromKernel(fd int) (*runnerv1.Exited, job.Evidence, error) {
	info := pidfdInfo{mask: pidfdInfoExit}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	if errno != 0 && !errors.Is(errno, syscall.ESRCH) {
		return nil, job.NoEvidence, fmt.Errorf("ask for a result: %w", errno)
	}
	if info.mask&pidfdInfoExit == 0 {
		return nil, job.NoEvidence, syscall.EAGAIN
	}
	status := syscall.WaitStatus(info.exitCode)
	e := &runnerv1.Exited{Pid: int64(info.pid)}
	if status.Signaled() {
		e.Result = &runnerv1.Exited_Signal{Signal: int32(status.Signal())}
	} else {
		e.Result = &runnerv1.Exited_ExitCode{ExitCode: int32(status.ExitStatus())}
	}
	return e, job.PidFD, nil
}

// children lists the children of this process.
func children() []int {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil
	}
	var out []int
	for _, t := range tasks {
		data, err := os.ReadFile("/proc/self/task/" + t.Name() + "/children")
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

// childWithMark finds a child of this process whose environment carries mark.
func childWithMark(mark string) (pid int, ticks uint64, ok bool) {
	if mark == "" {
		return 0, 0, false
	}
	for _, c := range children() {
		env, err := os.ReadFile("/proc/" + strconv.Itoa(c) + "/environ")
		if err != nil {
			continue
		}
		for kv := range strings.SplitSeq(string(env), "\x00") {
			if kv == mark {
				if st, err := readStat(c); err == nil {
					return c, st.ticks, true
				}
			}
		}
	}
	return 0, 0, false
}
