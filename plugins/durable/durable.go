// Package durable writes small files whole: who reads one after a kill or a power loss
// finds the old content or the new, never a part.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Write replaces a file. It is on the disk when this returns.
func Write(path string, data []byte, mode os.FileMode) error {
	f, err := Stage(path, data, mode)
	if err != nil {
		return err
	}
	defer f.Discard()
	if err := f.Commit(); err != nil {
		return err
	}
	return SyncFolder(filepath.Dir(path))
}

// Staged is a file that is on the disk, and not in its place yet.
type Staged struct{ path, temporary string }

// Stage writes a file beside its place. The temporary name is unique, so that two
// processes never write into one another's file.
func Stage(path string, data []byte, mode os.FileMode) (*Staged, error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	s := &Staged{path, f.Name()}
	_, errWrite := f.Write(data)
	if err := errors.Join(errWrite, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		s.Discard()
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	return s, nil
}

// Commit puts the file into its place; SyncFolder makes that survive a power loss.
func (s *Staged) Commit() error {
	if err := os.Rename(s.temporary, s.path); err != nil {
		return fmt.Errorf("write %s: %w", s.path, err)
	}
	return nil
}

// Discard removes what was not put into its place.
func (s *Staged) Discard() { _ = os.Remove(s.temporary) }

// SyncFolder makes renames and removals in a folder survive a power loss.
func SyncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

// Copy names the second copy of a file that is kept twice.
func Copy(path string) string { return path + ".copy" }

// WriteTwice is Write for a file that nothing else can replace: a second copy lies
// beside it. What is killed in between leaves the old content in one of them.
func WriteTwice(path string, data []byte, mode os.FileMode) error {
	if err := Write(Copy(path), data, mode); err != nil {
		return err
	}
	return Write(path, data, mode)
}

// ReadTwice returns the content of a file that was written with WriteTwice and that
// parse accepts. When only the second copy is good, it takes the place of the first;
// damage says what was wrong with that. When neither is good, err has the word on the
// first, and is fs.ErrNotExist when there is neither.
func ReadTwice(path string, parse func([]byte) error) (damage, err error) {
	data, first := readRegular(path)
	if first == nil {
		if first = parse(data); first == nil {
			return nil, nil
		}
		first = fmt.Errorf("%s: %w", path, first)
	}
	data, second := readRegular(Copy(path))
	if second == nil {
		second = parse(data)
	}
	if second != nil {
		if errors.Is(first, fs.ErrNotExist) && !errors.Is(second, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s: %w", Copy(path), second)
		}
		return nil, first
	}
	mode := os.FileMode(0o600)
	if info, err := os.Stat(Copy(path)); err == nil {
		mode = info.Mode().Perm()
	}
	info, err := os.Lstat(path)
	if err == nil && !info.Mode().IsRegular() {
		err = setAside(path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return first, nil
	}
	if err := Write(path, data, mode); err != nil {
		return errors.Join(first, err), nil
	}
	return first, nil
}

// setAside gives a folder another name: what is in it is somebody's.
func setAside(path string) error {
	const most = 100
	for n := range most {
		aside := fmt.Sprintf("%s.damaged-%d", path, n)
		if _, err := os.Lstat(aside); errors.Is(err, fs.ErrNotExist) {
			return os.Rename(path, aside)
		}
	}
	return fmt.Errorf("%s.damaged-*: there are %d already", path, most)
}

// RemoveTwice removes a file and its second copy.
func RemoveTwice(path string) error {
	var all error
	for _, p := range []string{path, Copy(path)} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			all = errors.Join(all, fmt.Errorf("remove %s: %w", p, err))
		}
	}
	return all
}

// readRegular reads a file, and waits for nothing else that lies there.
func readRegular(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read a small file: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("read %s: %w", path, syscall.EISDIR)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read a small file: %w", err)
	}
	return data, nil
}
