package scripts

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// Why a file is not taken just now.
var (
	errMoved = errors.New("it changed while it was read")
	errBusy  = errors.New("it is open for writing")
)

// file is a published version of a file.
type file struct {
	Sig    signature // of the source, as it was when it was read
	SHA256 string
	Blob   string // name in the blob store
	// Ino and Modified are the blob's: who writes to a published file changes
	// them, and is found out by Pin.
	Ino      uint64
	Modified int64
}

// same tells whether two versions publish the same thing.
func (f file) same(g file) bool {
	return f.SHA256 == g.SHA256 && f.Blob == g.Blob && f.Ino == g.Ino && f.Modified == g.Modified
}

// blobs keeps each content once, by sha256, mode and owner. Only the goroutine
// that publishes adds and removes.
type blobs struct {
	dir, tmp string

	mu     sync.Mutex // guards intact
	intact map[string]file
}

func newBlobs(dir, tmp string) *blobs { return &blobs{dir: dir, tmp: tmp, intact: map[string]file{}} }

// trust takes note of a blob that a former life made.
func (b *blobs) trust(f file) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.intact[f.Blob] = f
}

// distrust makes the next add replace a blob that somebody wrote to.
func (b *blobs) distrust(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.intact, name)
}

func (b *blobs) known(name string) (file, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f, ok := b.intact[name]
	return f, ok
}

// add copies the file of that name and signature into the store. It answers
// errMoved when the file is another by now, and errBusy while anybody has it open
// for writing: then it may be half written (P12).
func (b *blobs) add(root *os.Root, name string, sig signature) (file, error) {
	// O_NONBLOCK: a named pipe put there meanwhile must not hold us.
	src, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return file{}, errMoved
	}
	if err != nil {
		return file{}, fmt.Errorf("open script: %w", err)
	}
	defer src.Close()
	if err := still(src, sig); err != nil {
		return file{}, err
	}
	tmp, err := os.CreateTemp(b.tmp, "blob-")
	if err != nil {
		return file{}, fmt.Errorf("copy script: %w", err)
	}
	defer discard(tmp)
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(tmp, sum), io.LimitReader(src, sig.Size+1)); err != nil {
		return file{}, fmt.Errorf("copy script: %w", err)
	}
	if err := errors.Join(still(src, sig), written(src)); err != nil {
		return file{}, err
	}
	return b.keep(tmp, sig, hex.EncodeToString(sum.Sum(nil)))
}

// discard removes what did not become a blob.
func discard(tmp *os.File) {
	tmp.Close()
	_ = os.Remove(tmp.Name()) // it has another name if it became one
}

// still tells whether an open file is the one that was looked at.
func still(f *os.File, sig signature) error {
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("look at script: %w", err)
	}
	if signatureOf(info) != sig {
		return errMoved
	}
	return nil
}

// written tells whether anybody has a file open for writing, by asking for a read
// lease (fcntl(2), F_SETLEASE), which the kernel then refuses with EAGAIN. Where
// leases are not to be had (other owner, network file system) it knows nothing.
func written(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("look at script: %w", err)
	}
	busy := false
	err = raw.Control(func(fd uintptr) {
		_, err := unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_RDLCK)
		busy = errors.Is(err, unix.EAGAIN)
		if err == nil {
			_, _ = unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_UNLCK)
		}
	})
	if err == nil && busy {
		return errBusy
	}
	return err
}

// keep gives a finished copy its name, mode and owner, or finds that it is there.
func (b *blobs) keep(tmp *os.File, sig signature, sum string) (file, error) {
	// Nobody writes to what is published, and nobody gains by it: no write and no
	// setuid bits.
	mode := os.FileMode(sig.Mode & 0o555)
	name := sum + "-" + strconv.FormatUint(uint64(mode), 8)
	own := os.Geteuid() != 0
	if !own {
		name += fmt.Sprintf("-%d-%d", sig.UID, sig.GID)
	}
	path := filepath.Join(b.dir, name)
	if old, ok := b.known(name); ok && old.untouched(path) {
		old.Sig = sig
		return old, nil
	}
	if !own && sig.UID+sig.GID != 0 {
		if err := tmp.Chown(int(sig.UID), int(sig.GID)); err != nil {
			return file{}, fmt.Errorf("give script its owner: %w", err)
		}
	}
	if err := tmp.Chmod(mode); err != nil {
		return file{}, fmt.Errorf("give script its mode: %w", err)
	}
	info, err := tmp.Stat()
	if err != nil {
		return file{}, fmt.Errorf("keep script: %w", err)
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return file{}, fmt.Errorf("keep script: %w", err)
	}
	made := signatureOf(info)
	f := file{Sig: sig, SHA256: sum, Blob: name, Ino: made.Ino, Modified: made.Modified}
	b.trust(f)
	return f, nil
}

// untouched tells whether path is f's blob and nobody has written to it.
func (f file) untouched(path string) bool {
	var st unix.Stat_t
	return unix.Lstat(path, &st) == nil && st.Ino == f.Ino && st.Mtim.Nano() == f.Modified && st.Size == f.Sig.Size
}

// link makes path a hard link to f's blob. A blob with as many links as the file
// system allows gets a successor, and f with it.
func (b *blobs) link(f file, path string) (file, error) {
	if now, ok := b.known(f.Blob); ok { // it may have had a successor since f was made
		f.Ino, f.Modified = now.Ino, now.Modified
	}
	err := os.Link(filepath.Join(b.dir, f.Blob), path)
	if errors.Is(err, unix.EMLINK) {
		if f, err = b.renew(f); err == nil {
			err = os.Link(filepath.Join(b.dir, f.Blob), path)
		}
	}
	if err != nil {
		return file{}, fmt.Errorf("publish script: %w", err)
	}
	return f, nil
}

// renew replaces a blob by a copy of itself.
func (b *blobs) renew(f file) (file, error) {
	src, err := os.Open(filepath.Join(b.dir, f.Blob))
	if err != nil {
		return file{}, err
	}
	defer src.Close()
	tmp, err := os.CreateTemp(b.tmp, "blob-")
	if err != nil {
		return file{}, err
	}
	defer discard(tmp)
	if _, err := io.Copy(tmp, src); err != nil {
		return file{}, err
	}
	b.distrust(f.Blob)
	return b.keep(tmp, f.Sig, f.SHA256)
}

// sweep removes blobs that no generation links to.
func (b *blobs) sweep() error {
	entries, err := os.ReadDir(b.dir)
	if err != nil {
		return fmt.Errorf("list blobs: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(b.dir, e.Name())
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil || st.Nlink > 1 {
			continue
		}
		b.distrust(e.Name())
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("remove blob: %w", err)
		}
	}
	return nil
}
