package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// events is a v2 group's cgroup.events. It stays open from the first look until
// the folder goes: it is read at the end of every attempt, and opening costs
// more than reading.
type events struct {
	file string // its path

	mu     sync.Mutex // guards what follows
	fd     int        // -1 while it is not open
	closed bool
}

func newEvents(dir string) *events {
	return &events{file: filepath.Join(dir, "cgroup.events"), fd: -1}
}

// read returns whether processes are in the group, and whether it is frozen. The
// error of one that was removed is gone.
func (e *events) read() (populated, frozen bool, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.fd < 0 {
		fd, err := unix.Open(e.file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return false, false, &os.PathError{Op: "open", Path: e.file, Err: err}
		}
		e.fd = fd
	}
	var buf [256]byte
	n, err := unix.Pread(e.fd, buf[:], 0)
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Pread(e.fd, buf[:], 0)
	}
	if e.closed { // a late look: nobody will close it again
		e.shut()
	}
	if err != nil {
		return false, false, &os.PathError{Op: "read", Path: e.file, Err: err}
	}
	return keyed(buf[:n], "populated") != 0, keyed(buf[:n], "frozen") != 0, nil
}

// close lets go of the file. A later read opens it for itself.
func (e *events) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	e.shut()
}

func (e *events) shut() {
	if e.fd >= 0 {
		closeFd(e.fd)
		e.fd = -1
	}
}
