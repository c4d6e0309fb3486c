package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/plugins/kernfile"
)

// rmdirPatience is how long a cgroup that was just emptied is given to let go of
// its last dying task.
const rmdirPatience = time.Second

// closeFd closes a descriptor that holds nothing back to be written.
func closeFd(fd int) { _ = unix.Close(fd) }

// readLine reads a file of one line.
func readLine(dir, file string) (string, error) {
	text, err := kernfile.Read(filepath.Join(dir, file), make([]byte, 256))
	return strings.TrimSpace(string(text)), err
}

// writeFile writes a value to a kernel file that exists.
func writeFile(dir, file, value string) error {
	path := filepath.Join(dir, file)
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer closeFd(fd)
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return fmt.Errorf("write %q: %w", value, &os.PathError{Op: "write", Path: path, Err: err})
	}
	return nil
}

// readKey reads the number beside key in a flat keyed file such as cgroup.events.
// A key that is not there is 0.
func readKey(dir, file, key string) (uint64, error) {
	text, err := kernfile.Read(filepath.Join(dir, file), make([]byte, 1024))
	if err != nil {
		return 0, err
	}
	return keyed(text, key), nil
}

func keyed(text []byte, key string) uint64 {
	for line := range bytes.Lines(text) {
		name, value, ok := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
		if ok && string(name) == key {
			n, _ := strconv.ParseUint(string(value), 10, 64)
			return n
		}
	}
	return 0
}

// readPids appends the numbers of a cgroup.procs or tasks file.
func readPids(pids []int, dir, file string) ([]int, error) {
	text, err := kernfile.Read(filepath.Join(dir, file), make([]byte, 4096))
	if gone(err) {
		return pids, nil
	}
	if err != nil {
		return pids, err
	}
	for line := range bytes.Lines(text) {
		if n, err := strconv.Atoi(string(bytes.TrimSpace(line))); err == nil && n > 0 {
			pids = append(pids, n)
		}
	}
	return pids, nil
}

// gone tells whether a cgroup has been removed: then nothing is in it.
func gone(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) }

// walkTree calls visit for dir and every cgroup below it, children first: a job
// with the right to do so may have made cgroups of its own.
func walkTree(dir string, visit func(dir string) error) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); gone(err) {
		return nil
	} else if err != nil {
		return &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	if st.Nlink > 2 {
		entries, err := os.ReadDir(dir)
		if err != nil && !gone(err) {
			return fmt.Errorf("list cgroup: %w", err)
		}
		for _, e := range entries {
			if !e.IsDir() {
				continue
			}
			if err := walkTree(filepath.Join(dir, e.Name()), visit); err != nil {
				return err
			}
		}
	}
	return visit(dir)
}

// removeTree removes a cgroup and those below it, or answers EBUSY.
func removeTree(dir string) error {
	return walkTree(dir, func(dir string) error {
		if err := unix.Rmdir(dir); err != nil && !gone(err) {
			return &os.PathError{Op: "rmdir", Path: dir, Err: err}
		}
		return nil
	})
}

// removeEmpty removes the empty groups in parent, then parent. What holds
// processes is left. A cgroup whose last task is still on its way out is waited for.
func removeEmpty(parent string) error {
	deadline := time.Now().Add(rmdirPatience)
	for pause := time.Millisecond; ; pause *= 2 {
		dying, alive, err := removeChildren(parent)
		if err != nil {
			return err
		}
		if dying+alive == 0 {
			err := unix.Rmdir(parent)
			if err == nil || gone(err) || errors.Is(err, unix.EBUSY) {
				return nil
			}
			return &os.PathError{Op: "rmdir", Path: parent, Err: err}
		}
		if dying == 0 || time.Now().After(deadline) {
			return nil
		}
		time.Sleep(pause)
	}
}

// removeChildren counts the groups that cannot be removed: those in which a
// process is to be seen and those in which none is.
func removeChildren(parent string) (dying, alive int, err error) {
	entries, err := os.ReadDir(parent)
	if gone(err) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, fmt.Errorf("list groups: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		dir := filepath.Join(parent, e.Name())
		err := removeTree(dir)
		switch {
		case err == nil:
		case !errors.Is(err, unix.EBUSY):
			return dying, alive, err
		default:
			pids, err := readPids(nil, dir, "cgroup.procs")
			if err == nil && len(pids) == 0 {
				dying++
			} else {
				alive++
			}
		}
	}
	return dying, alive, nil
}
