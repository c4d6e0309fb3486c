// Package pidfd holds processes by handles that are never another's, and tells
// how one ended that is no child of this process.
package pidfd

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/plugins/kernfile"
)

// Stat is what is needed of /proc/PID/stat, see proc_pid_stat(5).
type Stat struct {
	State    byte // 'Z' is a zombie
	Parent   int
	Session  int
	Forked   bool               // it has executed no program since it was forked
	Ticks    uint64             // start time in clock ticks since boot
	ExitCode syscall.WaitStatus // of a zombie, if the kernel lets us see it
}

// forkNoExec is PF_FORKNOEXEC of linux/sched.h: set by fork, cleared by execve(2)
// once the program before is given up, and kept by a zombie.
const forkNoExec = 0x40

// ReadStat reads the state of a process.
func ReadStat(pid int) (Stat, error) {
	var buf [2048]byte // 52 numbers and a name of at most 64 bytes
	data, err := kernfile.Read("/proc/"+strconv.Itoa(pid)+"/stat", buf[:])
	if err != nil {
		return Stat{}, fmt.Errorf("read process %d: %w", pid, err)
	}
	text := string(data)
	// The command name may hold spaces and brackets: count from the last one.
	f := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(f) < 50 {
		return Stat{}, fmt.Errorf("read process %d: short stat", pid)
	}
	parent, err1 := strconv.Atoi(f[1])
	session, err2 := strconv.Atoi(f[3])
	ticks, err3 := strconv.ParseUint(f[19], 10, 64)
	code, err4 := strconv.ParseUint(f[49], 10, 32)
	flags, err5 := strconv.ParseUint(f[6], 10, 64)
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return Stat{}, fmt.Errorf("read process %d: %w", pid, err)
	}
	return Stat{f[0][0], parent, session, flags&forkNoExec != 0, ticks, syscall.WaitStatus(code)}, nil
}

// tick is the unit of start times: USER_HZ is 100 on every Linux that Go runs on
// (proc_pid_stat(5), field 22).
const tick = 10 * time.Millisecond

// Now is the present time as start times are counted, or 0 when it cannot be read.
// What is forked from now on has no smaller one.
func Now() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return uint64(time.Duration(ts.Nano()) / tick)
}

// Alive tells whether the process with that pid is the one that began at ticks
// and has not ended.
func Alive(pid int, ticks uint64) bool {
	st, err := ReadStat(pid)
	return err == nil && st.Ticks == ticks && st.State != 'Z' && st.State != 'X'
}

// Open opens a handle to the process that has the pid and began at ticks (0 is
// any). ESRCH: it is gone. The start time is compared after the handle is open:
// from then on the pid cannot be another's. The handle is close-on-exec.
func Open(pid int, ticks uint64) (int, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, fmt.Errorf("open process %d: %w", pid, err)
	}
	if st, err := ReadStat(pid); err != nil || ticks != 0 && st.Ticks != ticks {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("open process %d: %w", pid, syscall.ESRCH)
	}
	return fd, nil
}

// Exited tells whether the process behind a handle has ended.
func Exited(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if !errors.Is(err, syscall.EINTR) {
			return err == nil && n == 1
		}
	}
}

// info is struct pidfd_info of linux/pidfd.h, version 0.
type info struct {
	mask     uint64
	_        [8]byte // cgroupid
	pid      uint32
	_        [10]uint32
	exitCode int32
}

const (
	getInfo  = 0xC0000000 | 64<<16 | 0xFF<<8 | 11 // _IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)
	infoExit = 1 << 3                             // kernel 6.15 and newer
)

// Status returns how a process ended that others reap: while it is a zombie
// /proc tells, after that the handle, on kernels from 6.15. EAGAIN: nobody tells
// yet; on an older kernel, once it was reaped, nobody ever will.
func Status(fd, pid int, ticks uint64) (syscall.WaitStatus, error) {
	if st, err := ReadStat(pid); err == nil && st.Ticks == ticks && st.State == 'Z' {
		return st.ExitCode, nil
	}
	i := info{mask: infoExit}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), getInfo, uintptr(unsafe.Pointer(&i)))
	if errno != 0 && !errors.Is(errno, syscall.ESRCH) && !errors.Is(errno, syscall.ENOTTY) {
		return 0, fmt.Errorf("ask for the result of process %d: %w", pid, errno)
	}
	if i.mask&infoExit == 0 || errno != 0 {
		return 0, syscall.EAGAIN
	}
	return syscall.WaitStatus(i.exitCode), nil
}
