package output

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// lane is a pair of named pipes. The store holds only read ends, from the first
// job to the last: a pipe hangs up exactly while no process holds the other side
// (P8). Nothing tells the store of other readers, so a lane serves a second job
// only where none can be left (P19, see Finish).
type lane struct {
	number int
	paths  Lanes
	fds    [2]int   // -1 while they are not open
	tokens [2]int32 // by which epoll speaks of them; 0 while it does not listen
	grown  bool     // holds more than a new pipe
	once   bool     // serves this attempt and no other
}

// makeLane makes new pipes for a job of the given user, who may reopen them through
// /dev/stdout and /dev/stderr.
func makeLane(dir string, number int, o Options) (*lane, error) {
	base := filepath.Join(dir, strconv.Itoa(number))
	l := Lanes{Stdout: base + ".out", Stderr: base + ".err"}
	for _, p := range []string{l.Stdout, l.Stderr} {
		// A pipe of an earlier life may be another user's, and somebody may still
		// write to it.
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("remove the old pipe %s: %w", p, err)
		}
		if err := syscall.Mkfifo(p, 0o600); err != nil {
			return nil, fmt.Errorf("make the pipe %s: %w", p, err)
		}
		if o.own() {
			continue
		}
		if err := os.Chown(p, o.UID, o.GID); err != nil {
			return nil, fmt.Errorf("change the owner of the pipe %s: %w", p, errors.Join(err, os.Remove(p)))
		}
	}
	return &lane{number: number, paths: l, fds: [2]int{-1, -1}, once: !o.own()}, nil
}

// openLane opens the pipes of an earlier life. held tells of each whether somebody
// had it open: the kernel keeps what is in a pipe only so long.
func openLane(paths Lanes) (l *lane, held [2]bool, err error) {
	number, err := strconv.Atoi(strings.TrimSuffix(filepath.Base(paths.Stdout), ".out"))
	if err != nil {
		return nil, held, fmt.Errorf("%s is not a lane: %w", paths.Stdout, err)
	}
	for i, p := range []string{paths.Stdout, paths.Stderr} {
		// Fails where nobody reads (fifo(7)); a job has its pipes open for both.
		fd, err := syscall.Open(p, syscall.O_WRONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
		if err == nil {
			held[i] = true
			_ = syscall.Close(fd) // before the read end is opened, which would take it for a writer that has left
		}
	}
	// What its job did while there was no worker is not known.
	l = &lane{number: number, paths: paths, fds: [2]int{-1, -1}, once: true}
	return l, held, l.open()
}

// open opens the read ends that are not open.
func (l *lane) open() error {
	for i, p := range []string{l.paths.Stdout, l.paths.Stderr} {
		if l.fds[i] >= 0 {
			continue
		}
		fd, err := syscall.Open(p, syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
		if err != nil {
			l.close()
			return fmt.Errorf("open the pipe %s: %w", p, err)
		}
		l.fds[i] = fd
	}
	return nil
}

// poke opens and closes the write side of both pipes. When nobody else holds
// it, the read side sees end-of-file; when somebody does, nothing happens. A
// reader that opened after the last writer left would wait for ever otherwise
// (fifo(7): end-of-file is reported only after there was a writer).
func (l *lane) poke() error {
	for _, p := range []string{l.paths.Stdout, l.paths.Stderr} {
		fd, err := syscall.Open(p, syscall.O_WRONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open the pipe %s: %w", p, err)
		}
		if err := syscall.Close(fd); err != nil {
			return fmt.Errorf("close the pipe %s: %w", p, err)
		}
	}
	return nil
}

// ends tells of each pipe whether no process holds the write side and nothing is
// in it. It asks the pipes themselves and does not wait.
func (l *lane) ends() (ended [2]bool) {
	p := [2]unix.PollFd{{Fd: int32(l.fds[0]), Events: unix.POLLIN}, {Fd: int32(l.fds[1]), Events: unix.POLLIN}}
	if _, err := unix.Poll(p[:], 0); err != nil {
		return ended // asked again when there is news
	}
	for i := range ended {
		ended[i] = p[i].Revents&(unix.POLLHUP|unix.POLLIN) == unix.POLLHUP
	}
	return ended
}

// grow gives a stream that writes much a larger pipe: fewer wake-ups. It is a
// wish; a user over their share of pipe memory keeps the small one.
func grow(fd int) {
	_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, maxMove)
}

func (l *lane) close() {
	for i, fd := range l.fds {
		if fd >= 0 {
			_ = syscall.Close(fd) // epoll forgets it with that
			l.fds[i], l.tokens[i] = -1, 0
		}
	}
}

// remove closes the lane and removes its pipes.
func (l *lane) remove() {
	l.close()
	_ = os.Remove(l.paths.Stdout)
	_ = os.Remove(l.paths.Stderr)
}
