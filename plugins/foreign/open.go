package foreign

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Anybody is an owner of Open that is not compared.
const Anybody = ^uint32(0)

// Open opens a file that was made for a job, and nothing else: no link, nothing of
// another kind than kind (unix.S_IFREG, unix.S_IFIFO), nothing that has a second name,
// and nothing of another owner than this process's user or owner. It never waits: the
// descriptor is O_NONBLOCK, see Block.
func Open(path string, flags int, kind, owner uint32) (int, error) {
	fd, err := unix.Open(path, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return -1, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	var bad string
	switch {
	case st.Mode&unix.S_IFMT != kind:
		bad = "it is no " + map[uint32]string{unix.S_IFREG: "regular file", unix.S_IFIFO: "named pipe"}[kind]
	case owner != Anybody && st.Uid != owner && int(st.Uid) != os.Geteuid():
		bad = fmt.Sprintf("it belongs to the user %d", st.Uid)
	case st.Nlink > 1:
		bad = "it has other names, too"
	default:
		return fd, nil
	}
	_ = unix.Close(fd)
	return -1, fmt.Errorf("open %s: %s", path, bad)
}

// Block makes a descriptor of Open one that waits, as programs expect it. On an error
// it is closed.
func Block(fd int) error {
	// Of the flags that can be changed, Open has set no other (fcntl(2), F_SETFL).
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, 0); err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("let a descriptor wait: %w", err)
	}
	return nil
}

// Beginning reads the first bytes of a regular file that the calling thread may read. It
// waits for nobody to write to it.
func Beginning(path string, most int) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written to it
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("read %s: it is no regular file", path)
	}
	text := make([]byte, most)
	n, err := unix.Read(fd, text)
	if err != nil {
		return nil, &os.PathError{Op: "read", Path: path, Err: err}
	}
	return text[:n], nil
}

// Folder tells where a folder really lies that the calling thread can work in; path is
// absolute and clean. The error names the first folder on the way that is in the way.
func Folder(path string) (string, error) {
	fd, err := firstInTheWay(path, enter)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing can be written to it
	return os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
}

// OpenFolder opens a folder that the calling thread can work in, as a place to begin in
// and for nothing else; path is what Folder has told. No link is followed: whatever was
// swapped since, the folder lies where its path says.
func OpenFolder(path string) (*os.File, error) {
	fd, err := firstInTheWay(path, enterReal)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// firstInTheWay opens a folder. Its error names the first folder on the way to it that
// cannot be entered.
func firstInTheWay(path string, enter func(string) (int, error)) (int, error) {
	fd, err := enter(path)
	if err == nil {
		return fd, nil
	}
	for i := 1; i < len(path); i++ {
		if path[i] != '/' {
			continue
		}
		fd, before := enter(path[:i])
		if before != nil {
			return -1, inTheWay(path[:i], before)
		}
		_ = unix.Close(fd)
	}
	return -1, inTheWay(path, err)
}

func inTheWay(dir string, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%q does not exist", dir)
	case errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%q is not a folder", dir)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("the job's user may not enter %q", dir)
	case errors.Is(err, unix.ELOOP):
		return fmt.Errorf("%q is a link and is not followed", dir)
	}
	return fmt.Errorf("enter %q: %w", dir, err)
}

const folderFlags = unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC

// enter opens a folder as one to work in; the dot asks for the right to pass through
// the folder itself.
func enter(path string) (int, error) {
	return unix.Open(strings.TrimSuffix(path, "/")+"/.", folderFlags, 0)
}

// enterReal is enter without links.
func enterReal(path string) (int, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, strings.TrimSuffix(path, "/")+"/.", &unix.OpenHow{
		Flags: folderFlags, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		return walk(path) // a kernel before 5.6, or a filter of a container that does not know the call
	}
	return fd, err
}

// walk is enterReal for kernels that cannot: a folder at a time.
func walk(path string) (int, error) {
	fd, err := unix.Open("/", folderFlags, 0)
	if err != nil {
		return -1, err
	}
	for name := range strings.SplitSeq(strings.Trim(path, "/")+"/.", "/") {
		if name == "" {
			continue
		}
		next, err := unix.Openat(fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		_ = unix.Close(fd)
		if err != nil {
			return -1, err
		}
		var st unix.Stat_t
		if err = unix.Fstat(next, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
			err = unix.ELOOP
		} else if err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			err = unix.ENOTDIR
		}
		if err != nil {
			_ = unix.Close(next)
			return -1, err
		}
		fd = next
	}
	return fd, nil
}
