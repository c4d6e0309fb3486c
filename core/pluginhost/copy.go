package pluginhost

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/droverhq/drover/plugins/durable"
)

// This file keeps a private copy of the program of each version of a plugin, so that
// what is executed is what was verified, also when another version is installed.

// binary opens the program of one version. The descriptor is that of the bytes that
// were hashed a moment ago: whoever executes it executes those. A copy that is not
// what its name says, such as one that a power cut has torn, is made again.
func (h *Host) binary(m Manifest) (*os.File, error) {
	kept := filepath.Join(h.config.State, "bin", m.SHA256)
	f, err := openHashed(kept, m.SHA256)
	if err == nil {
		return f, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		h.config.Log.Warn("the kept copy of a plugin is not what was verified, making it again", "plugin", m.Name, "err", err)
	}
	from, found, err := openVerified(h.config.Dir, m.Name)
	if err != nil {
		return nil, err
	}
	defer from.Close()
	if found.SHA256 != m.SHA256 {
		return nil, fmt.Errorf("version %s of %s lies in the plugin folder, and no copy of version %s is kept", found.Version, m.Name, m.Version)
	}
	if info, err := os.Lstat(kept); err == nil && info.IsDir() {
		if err := os.RemoveAll(kept); err != nil {
			return nil, fmt.Errorf("copy the plugin: %w", err)
		}
	}
	if err := keep(kept, from, m.SHA256); err != nil {
		return nil, fmt.Errorf("copy the plugin: %w", err)
	}
	return openHashed(kept, m.SHA256)
}

// openHashed opens a file that has the given sum.
func openHashed(path, sum string) (*os.File, error) {
	// Not blocking: nothing says what lies there before it is looked at.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open the copy of the plugin: %w", err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	var got string
	if err == nil {
		got, err = sumFrom(f)
	}
	if err == nil && got != sum {
		err = fmt.Errorf("%s has sha256 %s", path, got)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// keep copies an open file to path, whole and on disk or not at all.
func keep(path string, from *os.File, sum string) error {
	if _, err := from.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read the plugin again: %w", err)
	}
	hash := sha256.New()
	copied, err := writeExecutable(filepath.Dir(path), 0o500, io.TeeReader(from, hash))
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if got := hex.EncodeToString(hash.Sum(nil)); got != sum {
		return errors.Join(fmt.Errorf("it was changed meanwhile: its sha256 is now %s", got), os.Remove(copied))
	}
	if err := os.Rename(copied, path); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(copied))
	}
	return durable.SyncFolder(filepath.Dir(path))
}

// command executes an open program by its descriptor, under the name of its file. The
// interpreter of a script opens the script once more, after the execution: it inherits
// the descriptor.
func command(bin *os.File) (*exec.Cmd, error) {
	const firstExtra = 3 // the number of ExtraFiles[0], see exec.Cmd
	var begin [2]byte
	if _, err := bin.ReadAt(begin[:], 0); err != nil {
		return nil, fmt.Errorf("read %s: %w", bin.Name(), err)
	}
	fd, extra := int(bin.Fd()), []*os.File(nil)
	if string(begin[:]) == "#!" {
		fd, extra = firstExtra, []*os.File{bin}
	}
	cmd := exec.Command("/proc/self/fd/" + strconv.Itoa(fd))
	cmd.Args[0], cmd.ExtraFiles = bin.Name(), extra
	return cmd, nil
}
