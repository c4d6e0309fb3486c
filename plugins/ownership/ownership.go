// Package ownership refuses files and folders through which another user of the
// machine could read a secret or change what a process relies on, as ssh does
// with keys.
package ownership

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// ErrExposed is in the chain of every error about an owner or a mode.
var ErrExposed = errors.New("exposed to other users")

// exposed is such an error; its text ends with the command that mends it.
func exposed(format string, args ...any) error {
	return exposure(fmt.Sprintf(format, args...))
}

type exposure string

// Error implements error.
func (e exposure) Error() string { return string(e) }

// Unwrap returns ErrExposed.
func (exposure) Unwrap() error { return ErrExposed }

// ReadSecret returns the content of a regular file that no other user can read or
// write. One of root's may be readable by its group where this process is not root: so
// come the keys of Kubernetes (fsGroup) and systemd (LoadCredential), and root has chosen
// who reads it. What is checked is what is read, whatever happens to the path.
func ReadSecret(path string) ([]byte, error) {
	return read(path, func(info fs.FileInfo) error {
		most := fs.FileMode(0o700)
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			most = secretMode(int(st.Uid), os.Geteuid())
		}
		if mode := info.Mode().Perm(); mode&^most != 0 {
			return exposed("other users can use %s (mode %04o): run chmod %o %s", path, mode, most&0o660, path)
		}
		return nil
	})
}

// secretMode returns the rights that there may be on a secret of an owner, for a process
// of user self. The rule is that of PostgreSQL for its key (ssl_key_file).
func secretMode(owner, self int) fs.FileMode {
	if owner == 0 && self != 0 {
		return 0o740
	}
	return 0o700
}

// ReadTrusted returns the content of a regular file that no other user can write.
func ReadTrusted(path string) ([]byte, error) {
	return read(path, func(info fs.FileInfo) error { return checkMode(path, info) })
}

func read(path string, check func(fs.FileInfo) error) ([]byte, error) {
	// A FIFO must not hold up the open.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err //nolint:wrapcheck // says what was tried on which file
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("read %s: it is not a regular file", path)
	}
	if err := errors.Join(check(info), checkOwner(path, info)); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return data, nil
}

// CheckFile refuses an open file that another user can change. It may be read by
// everybody.
func CheckFile(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("check the owner of %s: %w", f.Name(), err)
	}
	if !info.Mode().IsRegular() {
		return nil // a pipe of the caller's own shell, as of <(...)
	}
	return errors.Join(checkMode(f.Name(), info), checkOwner(f.Name(), info))
}

// CheckFolder refuses a folder that another user can write to, or replace because a
// folder above is theirs. Above, a sticky folder such as /tmp is accepted: nobody
// can rename there what is not their own. So is a sticky one that is mounted to be read
// only, as the folders of Kubernetes' secrets are. A missing folder is fs.ErrNotExist.
func CheckFolder(path string) error {
	abs, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("check the owner of %s: %w", path, err)
	}
	bottom, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return fmt.Errorf("check the owner of %s: %w", path, err)
	}
	for dir := bottom; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return fmt.Errorf("check the owner of %s: %w", path, err)
		}
		if sticky := info.Mode()&fs.ModeSticky != 0; !sticky || dir == bottom && !readOnly(dir) {
			if err := checkMode(dir, info); err != nil {
				return err
			}
		}
		if err := checkOwner(dir, info); err != nil {
			return err
		}
		if dir == "/" {
			return nil
		}
	}
}

// readOnly reports whether a folder lies on a mount that nobody can write to.
func readOnly(dir string) bool {
	var st syscall.Statfs_t
	return syscall.Statfs(dir, &st) == nil && st.Flags&syscall.MS_RDONLY != 0 // ST_RDONLY is the same bit, see statfs(2)
}

func checkMode(path string, info fs.FileInfo) error {
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return exposed("other users can write to %s (mode %04o): run chmod go-w %s", path, mode, path)
	}
	return nil
}

func checkOwner(path string, info fs.FileInfo) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !trusted(int(st.Uid), os.Geteuid(), os.Getenv("SUDO_UID")) {
		return exposed("%s belongs to user %d, not to root or user %d: run chown %d %s", path, st.Uid, os.Geteuid(), os.Geteuid(), path)
	}
	return nil
}

// trusted reports whether a process of user self relies on what an owner can
// change. Whoever became root with sudo could have had root read anything.
func trusted(owner, self int, sudo string) bool {
	return owner == 0 || owner == self || self == 0 && sudo == strconv.Itoa(owner)
}
