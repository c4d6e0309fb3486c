package foreign

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Remains is the error of a removal that left something.
type Remains struct {
	Entries int    // that could not be removed, at least
	Name    string // of one of them
	Err     error  // what is in its way
	Removed int    // entries that are gone, or are nearer to it
}

// mostNamed is how many bytes of a name an error shows: it is somebody else's text.
const mostNamed = 40

// Error tells how much is left, with one name of it.
func (r *Remains) Error() string {
	name := r.Name
	if len(name) > mostNamed {
		name = name[:mostNamed] + "..."
	}
	return fmt.Sprintf("%d entries are left, such as %+q: %v", r.Entries, name, r.Err)
}

// Unwrap returns what is in the way.
func (r *Remains) Unwrap() error { return r.Err }

// ErrUnfinished is what is in the way of a removal whose time is up.
var ErrUnfinished = errors.New("it takes longer")

// Remove removes name below parent, an open folder that nobody but this process's user
// may write to. It takes a bounded number of descriptors, however deep the tree is, and
// about as long as patience; when it returns *Remains it can be called again. What lies
// in a folder of another user is removed with the rights of that user: whatever is
// moved into the way meanwhile, nothing is removed that this user could not remove.
// So a folder of yet another user stays, with what is in it. Its owner's rights would
// remove it, but the user may have moved it here from elsewhere, in a folder of its own,
// and would have destroyed by our hands what others keep. Nothing is removed on other
// file systems.
func Remove(ctx context.Context, parent int, name string, patience time.Duration) error {
	if err := unix.Unlinkat(parent, name, 0); err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	fd, st, err := openFolder(parent, name)
	if err != nil {
		return &Remains{Entries: 1, Name: name, Err: reason(parent, name, err)}
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written to it
	if err := emptyFolder(ctx, fd, st, time.Now().Add(patience)); err != nil {
		return err
	}
	if err := unix.Unlinkat(parent, name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return &Remains{Entries: 1, Name: name, Err: reason(parent, name, err)}
	}
	return nil
}

// emptyFolder empties an open folder with the rights of its owner.
func emptyFolder(ctx context.Context, fd int, st *unix.Stat_t, until time.Time) error {
	r := &remover{top: fd, user: st.Uid, dev: st.Dev, until: until, buf: make([]byte, 16<<10)}
	err := As(&User{UID: st.Uid, GID: st.Gid}, func() error { return r.empty(ctx) })
	var left *Remains
	if errors.As(err, &left) {
		left.Removed = r.done
	}
	return err
}

// openFolder opens a folder, also one that its owner has shut.
func openFolder(parent int, name string) (int, *unix.Stat_t, error) {
	const flags = unix.O_DIRECTORY | unix.O_NONBLOCK
	fd, err := openHere(parent, name, flags)
	if errors.Is(err, unix.EACCES) {
		unlock(parent, name)
		fd, err = openHere(parent, name, flags)
	}
	if err != nil {
		return -1, nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return -1, nil, err
	}
	return fd, &st, nil
}

// unlock lets the owner of a folder, who is acted as, into it. What comes next says
// whether that helped.
func unlock(parent int, name string) {
	fd, err := openHere(parent, name, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return
	}
	defer unix.Close(fd) //nolint:errcheck // nothing can be written to it
	// Such a descriptor is no good for fchmod(2).
	_ = unix.Fchmodat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd), 0o700, 0)
}

// openHere opens an entry of a folder, and no link. What is mounted there is not even
// looked at: it may be a file system of the user's that never answers.
func openHere(parent int, name string, flags int) (int, error) {
	flags |= unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat2(parent, name, &unix.OpenHow{Flags: uint64(flags), Resolve: unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_MAGICLINKS})
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		return unix.Openat(parent, name, flags, 0) // see enterReal
	}
	return fd, err
}

// reason tells why an entry of a folder withstands, where that can be seen.
func reason(dir int, name string, err error) error {
	switch {
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EXDEV):
		return fmt.Errorf("something is mounted there: %w", err)
	case !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM):
		return err
	}
	seen := []int{dir}
	if fd, err := openHere(dir, name, unix.O_PATH); err == nil {
		defer unix.Close(fd) //nolint:errcheck // nothing can be written to it
		seen = append(seen, fd)
	}
	for _, fd := range seen {
		var st unix.Statx_t
		if unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_UID, &st) == nil && st.Attributes&(unix.STATX_ATTR_IMMUTABLE|unix.STATX_ATTR_APPEND) != 0 {
			return fmt.Errorf("it is protected by chattr: %w", err)
		}
	}
	for _, fd := range seen {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && st.Uid != fsUser() {
			return fmt.Errorf("it belongs to user %d: %w", st.Uid, err)
		}
	}
	return err
}

// fsUser is whose rights on files the calling thread has.
func fsUser() uint32 {
	id, _ := unix.SetfsuidRetUid(-1) // changes nothing, see setfsuid(2)
	return uint32(id)
}

// remover empties one folder.
type remover struct {
	top   int
	user  uint32 // who owns it, and whose rights are used
	dev   uint64
	until time.Time
	buf   []byte
	done  int      // removed, or moved up
	moved []string // up, and not looked at since
	left  Remains
}

// mostMoved is how many names are remembered; the others are found again.
const mostMoved = 1000

// empty goes through the folder until nothing is left or nothing goes any more. A
// folder in it that is not empty is emptied by moving what is in there up: so two
// descriptors are enough for any depth.
func (r *remover) empty(ctx context.Context) error {
	_ = unix.Fchmod(r.top, 0o700) // what this is needed for says what is in the way
	for {
		before := r.done
		r.left = Remains{}
		if _, err := unix.Seek(r.top, 0, unix.SEEK_SET); err != nil {
			return fmt.Errorf("list a folder: %w", err)
		}
		err := r.each(ctx, r.top, func(name string) {
			if r.drop(r.top, name) {
				r.flatten(ctx, name)
			}
			for len(r.moved) > 0 && !r.late(ctx) {
				last := r.moved[len(r.moved)-1]
				r.moved = r.moved[:len(r.moved)-1]
				r.flatten(ctx, last)
			}
		})
		switch {
		case err != nil:
			return err
		case r.left.Entries == 0 && r.done == before:
			return nil
		case r.done == before:
			return &r.left
		}
	}
}

// each calls f for every entry of a folder, until the time is up.
func (r *remover) each(ctx context.Context, dir int, f func(name string)) error {
	for {
		// f lists folders, too: the entries are taken out of the buffer first.
		n, err := unix.ReadDirent(dir, r.buf)
		if err != nil {
			return fmt.Errorf("list a folder: %w", err)
		}
		if n <= 0 {
			return nil
		}
		_, _, names := unix.ParseDirent(r.buf[:n], -1, nil)
		for _, name := range names {
			if r.late(ctx) {
				return &Remains{Entries: len(names), Name: name, Err: ErrUnfinished}
			}
			f(name)
		}
	}
}

// late tells whether the time is up.
func (r *remover) late(ctx context.Context) bool {
	return ctx.Err() != nil || time.Now().After(r.until)
}

// drop removes an entry of dir. It tells whether that is a folder that is not empty.
func (r *remover) drop(dir int, name string) (full bool) {
	err := unix.Unlinkat(dir, name, 0)
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) { // POSIX says EPERM
		if as := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); !errors.Is(as, unix.ENOTDIR) {
			err = as
		}
	}
	switch {
	case err == nil:
		r.done++
	case errors.Is(err, unix.ENOENT):
	case errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EEXIST):
		return true
	default:
		r.leave(name, reason(dir, name, err))
	}
	return false
}

// flatten empties a folder of the top one: what is in there and not empty itself is
// moved up.
func (r *remover) flatten(ctx context.Context, name string) {
	dir, st, err := openFolder(r.top, name)
	if err != nil {
		r.leave(name, reason(r.top, name, err))
		return
	}
	defer unix.Close(dir) //nolint:errcheck // nothing was written to it
	switch {
	case st.Dev != r.dev:
		err = reason(r.top, name, unix.EXDEV)
	case st.Uid != r.user && r.user == 0:
		err = emptyFolder(ctx, dir, st, r.until)
		var left *Remains
		if errors.As(err, &left) {
			r.done += left.Removed
		}
	default:
		if st.Mode&0o700 != 0o700 {
			_ = unix.Fchmod(dir, 0o700)
		}
		err = r.each(ctx, dir, func(child string) {
			if r.drop(dir, child) {
				r.moveUp(dir, child)
			}
		})
	}
	if err != nil {
		r.leave(name, err)
		return
	}
	r.drop(r.top, name) // else the next round sees it again
}

// moveUp gives a folder a new name in the top one. A name that somebody else takes
// first costs another round.
func (r *remover) moveUp(dir int, name string) {
	fresh := ".drover-" + strconv.FormatUint(rand.Uint64(), 36)
	err := unix.Renameat(dir, name, r.top, fresh)
	if errors.Is(err, unix.EACCES) {
		// A folder is moved by who may write to it: its link to the one above changes.
		unlock(dir, name)
		err = unix.Renameat(dir, name, r.top, fresh)
	}
	switch {
	case err == nil:
		if r.done++; len(r.moved) < mostMoved {
			r.moved = append(r.moved, fresh)
		}
	case !errors.Is(err, unix.ENOENT):
		r.leave(name, reason(dir, name, err))
	}
}

// leave counts what cannot be removed.
func (r *remover) leave(name string, err error) {
	if r.left.Entries++; r.left.Name == "" {
		r.left.Name, r.left.Err = name, err
	}
}
