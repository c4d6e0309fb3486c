// Package kernfile reads the small files in which the kernel tells its state, of
// /proc and of cgroups, with as few system calls as there can be.
package kernfile

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Read returns the content of a file, in buf where it fits. Its errors are those of
// os.ReadFile, which asks for the kind and the size of a file first. Safe for
// concurrent use, with a buffer each.
func Read(path string, buf []byte) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd) //nolint:errcheck // it was only read
	n := 0
	for {
		if n == len(buf) {
			buf = append(buf, make([]byte, len(buf)+4096)...)
		}
		k, err := unix.Read(fd, buf[n:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		}
		if k == 0 {
			return buf[:n], nil
		}
		n += k
	}
}
