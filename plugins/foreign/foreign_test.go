package foreign

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// nobody is a user without any rights.
const nobody = 65534

// guest is another user than this process's one where there can be one, and else the
// same: what does not need two users is tried in either case.
func guest() *User {
	if os.Geteuid() == 0 {
		return &User{UID: nobody, GID: nobody}
	}
	return &User{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
}

// opened is a folder of this process's user that everybody reaches, and its path.
func opened(t *testing.T) (fd int, dir string) {
	t.Helper()
	dir = t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		must(t, os.Chmod(d, 0o755))
	}
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd, dir
}

// given makes a folder that belongs to the guest.
func given(t *testing.T, dir string) string {
	t.Helper()
	must(t, os.Mkdir(dir, 0o700))
	must(t, os.Chown(dir, int(guest().UID), int(guest().GID)))
	return dir
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestAsActsWithTheRightsOfAnotherUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		// Nobody else can be acted as: f runs, as who we are.
		ran := false
		must(t, As(&User{UID: 1}, func() error { ran = true; return nil }))
		if !ran {
			t.Error("it was not run")
		}
		return
	}
	_, dir := opened(t)
	secret, mine := filepath.Join(dir, "secret"), given(t, filepath.Join(dir, "mine"))
	must(t, os.WriteFile(secret, nil, 0o640))
	must(t, os.Chown(secret, 0, 7))
	for _, c := range []struct {
		user User
		may  bool
	}{{User{UID: nobody, GID: nobody}, false}, {User{UID: nobody, GID: 7}, true}, {User{UID: nobody, GID: nobody, Groups: []uint32{5, 7}}, true}} {
		var wait sync.WaitGroup
		stop := make(chan struct{})
		wait.Go(func() { // the other threads stay who they are
			for {
				if _, err := os.ReadFile(secret); err != nil {
					t.Errorf("another thread: %v", err)
					return
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
		err := As(&c.user, func() error {
			_, err := os.ReadFile(secret)
			return err
		})
		close(stop)
		wait.Wait()
		if (err == nil) != c.may {
			t.Errorf("%+v: %v", c.user, err)
		}
	}
	file := filepath.Join(mine, "file")
	must(t, As(guest(), func() error { return os.WriteFile(file, nil, 0o600) }))
	var st unix.Stat_t
	must(t, unix.Stat(file, &st))
	if st.Uid != nobody || st.Gid != nobody {
		t.Errorf("the file belongs to %d:%d", st.Uid, st.Gid)
	}
	if was, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || was != dumpable() {
		t.Errorf("the process is dumpable %d, was %d, %v", was, dumpable(), err)
	}
}

func TestALookThatHangsIsLeftAlone(t *testing.T) {
	t.Parallel()
	var l Looks
	hang, back := make(chan struct{}), make(chan struct{}, 1)
	for range mostHungOfOne {
		err := l.Do(guest(), time.Millisecond, func() error {
			<-hang
			back <- struct{}{}
			return nil
		}, func() { t.Error("what should follow was done") })
		if !errors.Is(err, ErrNoAnswer) {
			t.Fatalf("%v", err)
		}
	}
	if err := l.Do(guest(), time.Minute, func() error { return nil }, nil); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("one more than may hang: %v", err)
	}
	close(hang)
	for range mostHungOfOne {
		<-back
	}
	eventually(t, "the looks are counted out", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.all == 0 && len(l.hung) == 0
	})
	broken := errors.New("broken")
	if err := l.Do(guest(), time.Minute, func() error { return broken }, func() { t.Error("it went on") }); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	followed := os.Geteuid()
	must(t, l.Do(guest(), time.Minute, func() error { return nil }, func() { followed = unix.Geteuid() + 1 }))
	if followed != os.Geteuid()+1 {
		t.Error("what should follow was not done before Do returned")
	}
}

// TestWhatOneUserMountsHoldsUpNoOtherUser: until there are too many in all.
func TestWhatOneUserMountsHoldsUpNoOtherUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		return // there is one user only
	}
	var l Looks
	hang := make(chan struct{})
	defer close(hang)
	look := func(uid int) error {
		return l.Do(&User{UID: uint32(uid), GID: nobody}, time.Millisecond, func() error { <-hang; return nil }, nil)
	}
	for i := range mostHung {
		uid := nobody - i/mostHungOfOne
		if err := l.Do(&User{UID: uint32(uid), GID: nobody}, time.Minute, func() error { return nil }, nil); err != nil {
			t.Fatalf("%d looks hang, and user %d is told: %v", i, uid, err)
		}
		if err := look(uid); !errors.Is(err, ErrNoAnswer) {
			t.Fatalf("%v", err)
		}
	}
	if err := l.Do(nil, time.Minute, func() error { return nil }, nil); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("one more than may hang in all: %v", err)
	}
}

// eventually waits for what another goroutine does next.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not so: %s", what)
		}
	}
}

func TestOnlyWhatIsExpectedIsOpened(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.WriteFile(at("file"), []byte("x"), 0o600))
	must(t, os.WriteFile(at("two"), nil, 0o600))
	must(t, os.Link(at("two"), at("names")))
	must(t, os.Symlink("file", at("link")))
	must(t, os.Mkdir(at("folder"), 0o700))
	must(t, unix.Mkfifo(at("fifo"), 0o600))
	l, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	must(t, err)
	defer unix.Close(l)
	must(t, unix.Bind(l, &unix.SockaddrUnix{Name: at("socket")}))
	own := uint32(os.Geteuid())
	for _, c := range []struct {
		path string
		kind uint32
		want string // in the error; "": it is opened
	}{
		{at("file"), unix.S_IFREG, ""},
		{at("fifo"), unix.S_IFIFO, ""},
		{at("fifo"), unix.S_IFREG, "no regular file"}, // and does not wait for a writer
		{at("file"), unix.S_IFIFO, "no named pipe"},
		{at("folder"), unix.S_IFREG, "no regular file"},
		{at("socket"), unix.S_IFREG, "no such device"},
		{at("link"), unix.S_IFREG, "symbolic links"},
		{at("names"), unix.S_IFREG, "other names"},
		{at("none"), unix.S_IFREG, "no such file"},
		{"/dev/null", unix.S_IFREG, "no regular file"},
	} {
		fd, err := Open(c.path, unix.O_RDONLY, c.kind, own)
		if err == nil {
			must(t, Block(fd))
			if flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); flags&unix.O_NONBLOCK != 0 {
				t.Errorf("%s does not wait", c.path)
			}
			_ = unix.Close(fd)
		}
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s as %o: %v, want %q", c.path, c.kind, err, c.want)
		}
	}
	if own != 0 {
		return // files of others need root
	}
	must(t, os.Chown(at("file"), nobody, nobody))
	if _, err := Open(at("file"), unix.O_RDONLY, unix.S_IFREG, 1); err == nil || !strings.Contains(err.Error(), "belongs to the user 65534") {
		t.Errorf("of a stranger: %v", err)
	}
	fd, err := Open(at("file"), unix.O_RDONLY, unix.S_IFREG, nobody)
	must(t, err)
	_ = unix.Close(fd)
}

func TestTheFolderThatIsInTheWayIsNamed(t *testing.T) {
	t.Parallel()
	_, dir := opened(t)
	deep := filepath.Join(dir, "a", "b", "c")
	must(t, os.MkdirAll(deep, 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o644))
	look := func(path string) error {
		return As(guest(), func() error {
			_, err := Folder(path)
			return err
		})
	}
	must(t, os.Symlink(filepath.Join(dir, "a"), filepath.Join(dir, "link")))
	if where, err := Folder(filepath.Join(dir, "link", "b")); err != nil || where != filepath.Join(dir, "a", "b") {
		t.Errorf("behind a link: %s, %v", where, err)
	}
	must(t, look(deep))
	must(t, look("/"))
	for path, want := range map[string]string{
		filepath.Join(deep, "x", "y"):    fmt.Sprintf("%q does not exist", filepath.Join(deep, "x")),
		filepath.Join(dir, "file"):       fmt.Sprintf("%q is not a folder", filepath.Join(dir, "file")),
		filepath.Join(dir, "file", "no"): fmt.Sprintf("%q is not a folder", filepath.Join(dir, "file")),
	} {
		if err := look(path); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", path, err, want)
		}
	}
	for _, shut := range []string{filepath.Join(dir, "a", "b"), deep} {
		must(t, os.Chmod(shut, 0))
		want := fmt.Sprintf("the job's user may not enter %q", shut)
		if err := look(deep); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
		must(t, os.Chmod(shut, 0o755))
	}
}

// TestAFolderIsOpenedWithoutLinks: with openat2, and where that is not known.
func TestAFolderIsOpenedWithoutLinks(t *testing.T) {
	t.Parallel()
	_, dir := opened(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.MkdirAll(at("a/b"), 0o755))
	must(t, os.MkdirAll(at("shut/in"), 0o755))
	must(t, os.Chmod(at("shut"), 0))
	must(t, os.WriteFile(at("file"), nil, 0o644))
	must(t, os.Symlink(at("a"), at("link")))
	for how, enter := range map[string]func(string) (int, error){"openat2": enterReal, "walk": walk} {
		for path, want := range map[string]error{
			"/": nil, at("a/b"): nil, at("a"): nil, at("link"): unix.ELOOP, at("link/b"): unix.ELOOP, "/proc/self/cwd": unix.ELOOP,
			at("none"): unix.ENOENT, at("file"): unix.ENOTDIR, at("file/x"): unix.ENOTDIR, at("shut"): unix.EACCES, at("shut/in"): unix.EACCES,
		} {
			if os.Geteuid() != 0 && errors.Is(want, unix.EACCES) {
				continue // it is the owner's own
			}
			err := As(guest(), func() error {
				fd, err := enter(path)
				if err == nil {
					err = unix.Close(fd)
				}
				return err
			})
			if !errors.Is(err, want) {
				t.Errorf("%s: %s: %v, want %v", how, path, err, want)
			}
		}
	}
	want := fmt.Sprintf("%q is a link and is not followed", at("link"))
	if _, err := OpenFolder(at("link/b")); err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	must(t, os.Chmod(at("shut"), 0o755))
}

func TestAnythingOfAUserIsRemoved(t *testing.T) {
	t.Parallel()
	parent, dir := opened(t)
	long := strings.Repeat("n", 255)
	grow := map[string]func(t *testing.T, root string){
		"nothing": func(*testing.T, string) {},
		"a shut folder": func(t *testing.T, root string) {
			must(t, os.MkdirAll(filepath.Join(root, "a", "b"), 0o700))
			must(t, os.WriteFile(filepath.Join(root, "a", "b", "file"), nil, 0))
			must(t, os.Chmod(filepath.Join(root, "a", "b"), 0))
			must(t, os.Chmod(filepath.Join(root, "a"), 0o500))
			must(t, os.Chmod(root, 0o100))
		},
		"every kind of file": func(t *testing.T, root string) {
			must(t, unix.Mkfifo(filepath.Join(root, "fifo"), 0))
			must(t, os.Symlink("/", filepath.Join(root, "link")))
			must(t, os.Symlink(root, filepath.Join(root, "loop")))
			must(t, os.WriteFile(filepath.Join(root, "-rf\n\x1b[2J"), nil, 0))
			must(t, os.WriteFile(filepath.Join(root, long), nil, 0))
			must(t, os.Link(filepath.Join(root, long), filepath.Join(root, "second")))
		},
		"names as it gives itself": func(t *testing.T, root string) {
			for i := range 20 {
				must(t, os.MkdirAll(filepath.Join(root, ".drover-"+strconv.Itoa(i), "x", "y", "z"), 0o700))
			}
		},
		"many": func(t *testing.T, root string) {
			for i := range 1200 {
				must(t, os.WriteFile(filepath.Join(root, strconv.Itoa(i)), nil, 0o600))
			}
		},
		"wide": func(t *testing.T, root string) {
			for i := range 200 {
				must(t, os.MkdirAll(filepath.Join(root, strconv.Itoa(i%7), strconv.Itoa(i), "leaf", "leaf"), 0o700))
			}
		},
	}
	for name, f := range grow {
		t.Run(name, func(t *testing.T) {
			root := given(t, filepath.Join(dir, "tree"))
			must(t, As(guest(), func() error { f(t, root); return nil }))
			must(t, Remove(t.Context(), parent, "tree", time.Minute))
			if _, err := os.Lstat(root); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%v", err)
			}
		})
	}
	must(t, Remove(t.Context(), parent, "none", time.Minute))
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0))
	must(t, Remove(t.Context(), parent, "file", time.Minute))
}

// TestADeepTreeTakesFewDescriptors: a tree of 26,000 folders in one another once took a
// descriptor for each.
func TestADeepTreeTakesFewDescriptors(t *testing.T) {
	parent, dir := opened(t)
	given(t, filepath.Join(dir, "tree"))
	depth := 2000
	if os.Getenv("DROVER_LONG") != "" {
		depth = 26000
	}
	must(t, As(guest(), func() error { return nest(parent, "tree", depth, strings.Repeat("d", 255)) }))
	ctx, cancel := context.WithCancel(t.Context())
	most := 0
	var wait sync.WaitGroup
	wait.Go(func() {
		look := time.NewTicker(5 * time.Millisecond)
		defer look.Stop()
		for ctx.Err() == nil {
			<-look.C
			all, _ := os.ReadDir("/proc/self/fd")
			most = max(most, len(all))
		}
	})
	err := Remove(ctx, parent, "tree", 5*time.Minute)
	cancel()
	wait.Wait()
	must(t, err)
	if most > 100 {
		t.Errorf("%d descriptors at once", most)
	}
}

// nest makes folders in one another, with two descriptors.
func nest(parent int, name string, depth int, each string) error {
	fd, err := unix.Openat(parent, name, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	for range depth {
		if err := unix.Mkdirat(fd, each, 0o700); err != nil {
			return err
		}
		next, err := unix.Openat(fd, each, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		_ = unix.Close(fd)
		fd = next
	}
	return unix.Close(fd)
}

func TestARemovalThatTakesLongGoesOnLater(t *testing.T) {
	t.Parallel()
	parent, dir := opened(t)
	given(t, filepath.Join(dir, "tree"))
	must(t, As(guest(), func() error { return nest(parent, "tree", 500, "d") }))
	var left *Remains
	if err := Remove(t.Context(), parent, "tree", 0); !errors.As(err, &left) || !errors.Is(err, ErrUnfinished) {
		t.Fatalf("without time: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Remove(ended, parent, "tree", time.Minute); !errors.As(err, &left) {
		t.Fatalf("at the end: %v", err)
	}
	for try := 0; ; try++ {
		err := Remove(t.Context(), parent, "tree", time.Millisecond)
		if err == nil {
			break
		}
		if !errors.As(err, &left) || try > 10000 {
			t.Fatalf("try %d: %v", try, err)
		}
	}
}

// TestWhatAUserCannotRemoveStays: it is told with a part of its name, and what is
// around it goes.
func TestWhatAUserCannotRemoveStays(t *testing.T) {
	t.Parallel()
	parent, dir := opened(t)
	root := given(t, filepath.Join(dir, "tree"))
	name := "\x1b]0;" + strings.Repeat("é", 100)
	theirs := filepath.Join(root, name)
	must(t, os.MkdirAll(filepath.Join(theirs, "more"), 0o755))
	must(t, os.WriteFile(filepath.Join(theirs, "file"), nil, 0o600))
	must(t, As(guest(), func() error { return os.MkdirAll(filepath.Join(root, "a", "b"), 0o700) }))
	err := Remove(t.Context(), parent, "tree", time.Minute)
	if os.Geteuid() != 0 {
		must(t, err) // it is all ours
		return
	}
	var left *Remains
	if !errors.As(err, &left) || !errors.Is(err, unix.EACCES) || left.Entries != 2 {
		t.Fatalf("%v", err)
	}
	if text := err.Error(); len(text) > 300 || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
		t.Errorf("%q", text)
	}
	if all, _ := os.ReadDir(root); len(all) != 1 {
		t.Errorf("left: %v", all)
	}
	must(t, os.RemoveAll(theirs))
	must(t, Remove(t.Context(), parent, "tree", time.Minute))
}

// TestAUserDestroysNothingOfOthersByTheirRights: it has moved a folder of its own to where
// it is removed, with what another user keeps in it. The user could not remove that, and
// its owner's rights are not lent.
func TestAUserDestroysNothingOfOthersByTheirRights(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		return // there is one user only
	}
	parent, dir := opened(t)
	root, home := given(t, filepath.Join(dir, "tree")), given(t, filepath.Join(dir, "home"))
	for owner, name := range []string{"of root", "of another"} {
		kept := filepath.Join(home, "own", name)
		must(t, os.MkdirAll(kept, 0o700))
		must(t, os.WriteFile(filepath.Join(kept, "precious"), nil, 0o600))
		must(t, os.Chown(kept, owner, owner))
	}
	must(t, os.Chown(filepath.Join(home, "own"), nobody, nobody))
	must(t, As(guest(), func() error { return os.Rename(filepath.Join(home, "own"), filepath.Join(root, "own")) }))
	err := Remove(t.Context(), parent, "tree", time.Minute)
	if err == nil || !strings.Contains(err.Error(), "it belongs to user") {
		t.Errorf("%v", err)
	}
	for _, name := range []string{"of root", "of another"} {
		if all, _ := filepath.Glob(filepath.Join(root, "*", name, "precious")); len(all) != 1 {
			t.Errorf("what is %s is gone", name)
		}
	}
}

// TestWhatWithstandsSaysWhy: a mount, also one of a folder of the same file system, and
// what chattr protects.
func TestWhatWithstandsSaysWhy(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		return // mounts are root's
	}
	parent, dir := opened(t)
	root := given(t, filepath.Join(dir, "tree"))
	at := func(name string) string { return filepath.Join(root, name) }
	precious := filepath.Join(dir, "precious")
	must(t, os.Mkdir(precious, 0o777))
	must(t, os.Chmod(precious, 0o777))
	must(t, os.WriteFile(filepath.Join(precious, "file"), nil, 0o666))
	must(t, As(guest(), func() error { return os.MkdirAll(at("deep/mnt"), 0o700) }))
	if err := unix.Mount(precious, at("deep/mnt"), "", unix.MS_BIND, ""); err != nil {
		t.Logf("left out where nothing can be mounted: %v", err)
	} else {
		err := Remove(t.Context(), parent, "tree", time.Minute)
		if err == nil || !strings.Contains(err.Error(), `"mnt": something is mounted there`) {
			t.Errorf("%v", err)
		}
		mounted, _ := filepath.Glob(at("*/mnt"))
		for _, m := range mounted {
			must(t, unix.Unmount(m, unix.MNT_DETACH))
		}
		if _, err := os.Stat(filepath.Join(precious, "file")); err != nil {
			t.Errorf("it was removed through a mount: %v", err)
		}
		must(t, Remove(t.Context(), parent, "tree", time.Minute))
		given(t, root)
	}
	const immutable = 0x10 // FS_IMMUTABLE_FL, see ioctl_iflags(2)
	for name, grow := range map[string]func() error{
		"file": func() error { return os.WriteFile(at("file"), nil, 0o600) },
		"sub":  func() error { return os.MkdirAll(at("sub/in"), 0o700) },
	} {
		must(t, As(guest(), grow))
		fd, err := unix.Open(at(name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		must(t, err)
		defer unix.Close(fd)
		if err := unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, immutable); err != nil {
			t.Logf("left out where files cannot be made immutable: %v", err)
			return
		}
		defer unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, 0)
		if err := Remove(t.Context(), parent, "tree", time.Minute); err == nil || !strings.Contains(err.Error(), strconv.Quote(name)+": it is protected by chattr") {
			t.Errorf("%s: %v", name, err)
		}
		must(t, unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, 0))
		must(t, Remove(t.Context(), parent, "tree", time.Minute))
		given(t, root)
	}
}

// TestRootActsInFoldersOfOthersAsTheOthers: in a tree of root lies a folder of another
// user with something of root's in it.
func TestRootActsInFoldersOfOthersAsTheOthers(t *testing.T) {
	t.Parallel()
	parent, dir := opened(t)
	inner := filepath.Join(dir, "tree", "a", "theirs")
	must(t, os.MkdirAll(inner, 0o755))
	must(t, os.MkdirAll(filepath.Join(inner, "kept", "file"), 0o755))
	must(t, os.Mkdir(filepath.Join(inner, "gone"), 0o700))
	must(t, os.Chown(inner, int(guest().UID), int(guest().GID)))
	err := Remove(t.Context(), parent, "tree", time.Minute)
	if os.Geteuid() != 0 {
		must(t, err)
		return
	}
	var left *Remains
	if !errors.As(err, &left) {
		t.Fatalf("%v", err)
	}
	found := ""
	_ = filepath.WalkDir(filepath.Join(dir, "tree"), func(path string, _ os.DirEntry, _ error) error {
		found += filepath.Base(path) + " "
		return nil
	})
	if !strings.HasSuffix(found, "kept file ") || strings.Contains(found, "gone") {
		t.Errorf("left: %s", found)
	}
}

// TestNothingIsRemovedThroughWhatIsPutInTheWay: while a tree is removed again and
// again, its user puts links to a folder of somebody else into the way.
func TestNothingIsRemovedThroughWhatIsPutInTheWay(t *testing.T) {
	t.Parallel()
	parent, dir := opened(t)
	precious := filepath.Join(dir, "precious")
	must(t, os.MkdirAll(filepath.Join(precious, "x"), 0o755))
	must(t, os.WriteFile(filepath.Join(precious, "x", "file"), nil, 0o644))
	rounds := 50
	if os.Getenv("DROVER_LONG") != "" {
		rounds = 10000
	}
	for range rounds {
		root := given(t, filepath.Join(dir, "tree"))
		stop, ready := make(chan struct{}), make(chan struct{})
		var wait sync.WaitGroup
		wait.Go(func() {
			_ = As(guest(), func() error {
				swap(root, precious, ready, stop)
				return nil
			})
		})
		<-ready
		_ = Remove(t.Context(), parent, "tree", 5*time.Millisecond) // who goes on making cannot be overtaken
		close(stop)
		wait.Wait()
		must(t, Remove(t.Context(), parent, "tree", time.Minute))
		if all, err := os.ReadDir(filepath.Join(precious, "x")); err != nil || len(all) != 1 {
			t.Fatalf("something else was removed: %v, %v", all, err)
		}
	}
}

// swap makes folders, fills them, and puts links in their place.
func swap(root, precious string, ready, stop chan struct{}) {
	a, b := filepath.Join(root, "a"), filepath.Join(root, "b")
	for i := 0; ; i++ {
		_ = os.MkdirAll(filepath.Join(a, "x", "y"), 0o700)
		_ = os.WriteFile(filepath.Join(a, "x", "file"), nil, 0o600)
		_ = os.Symlink(precious, b)
		_ = unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
		_ = os.Symlink(filepath.Join(precious, "x"), filepath.Join(b, "x2"))
		_ = unix.Renameat2(unix.AT_FDCWD, filepath.Join(b, "x"), unix.AT_FDCWD, filepath.Join(b, "x2"), unix.RENAME_EXCHANGE)
		_ = os.Rename(b, filepath.Join(root, strconv.Itoa(i%3)))
		if i == 0 {
			close(ready)
		}
		select {
		case <-stop:
			return
		default:
		}
	}
}
