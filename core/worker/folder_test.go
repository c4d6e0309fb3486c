package worker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/output"
	"github.com/droverhq/drover/plugins/foreign"
)

// Users of these tests. Where the tests are not root's all are the same one, and what
// needs several is left out.
const (
	nobody   = 65534
	stranger = 4321 // in no group of nobody's
)

// guest is the account that jobs of these tests run as; nil is the worker's own user.
func guest() *account {
	if os.Geteuid() != 0 {
		return nil
	}
	return &account{name: "nobody", cred: Credential{UID: nobody, GID: nobody}}
}

// asGuest runs f with the rights of the job's user.
func asGuest(f func() error) error {
	return foreign.As(&foreign.User{UID: nobody, GID: nobody}, f)
}

// newFolders makes the folders of a worker whose jobs run as others, too.
func newFolders(t *testing.T) attemptFolders {
	t.Helper()
	data := t.TempDir()
	for d := data; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	f, err := makeAttemptFolders(data, 0o711, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// brought is an order that brings everything.
func brought() *job.Spec {
	return &job.Spec{
		Path: "own.sh", Upload: []byte("echo own\n"), Stdin: []byte("typed"),
		Secrets: map[string][]byte{"token": []byte("hunter2")},
	}
}

// TestP19WhatAnAttemptBringsIsItsUsersAlone: its job reads it and changes nothing of
// it; nobody else reads it, be it a member of the same group.
func TestP19WhatAnAttemptBringsIsItsUsersAlone(t *testing.T) {
	t.Parallel()
	f := newFolders(t)
	files, err := f.make("a.1", brought(), guest())
	if err != nil {
		t.Fatal(err)
	}
	token, work := filepath.Join(files.secrets, "token"), filepath.Join(f.work, "a.1")
	if err := asGuest(func() error {
		for file, want := range map[string]string{token: "hunter2", files.script: "echo own\n"} {
			if got, err := os.ReadFile(file); err != nil || string(got) != want {
				t.Errorf("the job reads %q, %v", got, err)
			}
		}
		if all, err := os.ReadDir(files.secrets); err != nil || len(all) != 1 {
			t.Errorf("the job lists its secrets: %v, %v", all, err)
		}
		return os.WriteFile(filepath.Join(work, "made"), nil, 0o600)
	}); err != nil {
		t.Errorf("the job writes in its working folder: %v", err)
	}
	if os.Geteuid() != 0 {
		return // the job is the worker's own user and may do anything
	}
	if _, err := os.Stat(filepath.Join(f.root, "a.1", "stdin")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("standard input lies where jobs pass")
	}
	for name, do := range map[string]func() error{
		"write the script":     func() error { return os.WriteFile(files.script, nil, 0) },
		"chmod the script":     func() error { return os.Chmod(files.script, 0o777) },
		"remove the script":    func() error { return os.Remove(files.script) },
		"rename the script":    func() error { return os.Rename(files.script, filepath.Join(work, "x")) },
		"replace the script":   func() error { return os.Rename(filepath.Join(work, "made"), files.script) },
		"add beside it":        func() error { return os.WriteFile(filepath.Dir(files.script)+"/x", nil, 0o600) },
		"link the script":      func() error { return os.Link(files.script, filepath.Join(work, "x")) },
		"replace a secret":     func() error { return os.Rename(filepath.Join(work, "made"), token) },
		"add a secret":         func() error { return os.WriteFile(filepath.Join(files.secrets, "x"), nil, 0o600) },
		"rename the secrets":   func() error { return os.Rename(files.secrets, filepath.Join(work, "x")) },
		"replace the folder":   func() error { return os.Rename(work, filepath.Join(f.work, "x")) },
		"make the next folder": func() error { return os.Mkdir(filepath.Join(f.root, "a.2"), 0o700) },
		"make the next work":   func() error { return os.Mkdir(filepath.Join(f.work, "a.2"), 0o700) },
		"read standard input":  func() error { _, err := os.ReadFile(files.stdin); return err },
		"list all attempts":    func() error { _, err := os.ReadDir(f.root); return err },
		"look into the trash":  func() error { _, err := os.ReadDir(f.trash.dir); return err },
	} {
		if err := asGuest(do); err == nil || !errors.Is(err, fs.ErrPermission) {
			t.Errorf("the job may %s: %v", name, err)
		}
	}
	for who, u := range map[string]*foreign.User{
		"another user": {UID: stranger, GID: stranger}, "another member of its group": {UID: stranger, GID: nobody},
	} {
		for _, file := range []string{token, files.script, files.stdin, filepath.Join(work, "made")} {
			err := foreign.As(u, func() error { _, err := os.ReadFile(file); return err })
			if !errors.Is(err, fs.ErrPermission) {
				t.Errorf("%s reads %s: %v", who, file, err)
			}
		}
	}
}

// TestP19_FileSystemWithoutAccessControlLists_SecretsStayTheUsersOwn: other members of the
// group pass as the job does, and read the script, but no secret.
func TestP19_FileSystemWithoutAccessControlLists_SecretsStayTheUsersOwn(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		return // mounts are root's, and so are other users
	}
	data := t.TempDir()
	if err := unix.Mount("ramfs", data, "ramfs", 0, "mode=755"); err != nil {
		t.Logf("left out where nothing can be mounted: %v", err)
		return
	}
	t.Cleanup(func() { _ = unix.Unmount(data, unix.MNT_DETACH) })
	if err := os.Chmod(filepath.Dir(data), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := foreign.Admit(data, nobody); !errors.Is(err, unix.ENOTSUP) {
		t.Fatalf("ramfs keeps access control lists: %v", err)
	}
	f, err := makeAttemptFolders(data, 0o711, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	files, err := f.make("a.1", brought(), guest())
	if err != nil {
		t.Fatal(err)
	}
	token := filepath.Join(files.secrets, "token")
	for _, c := range []struct {
		who            string
		user           foreign.User
		script, secret bool
	}{
		{"the job", foreign.User{UID: nobody, GID: nobody}, true, true},
		{"another member of its group", foreign.User{UID: stranger, GID: nobody}, true, false},
		{"another user", foreign.User{UID: stranger, GID: stranger}, false, false},
	} {
		for file, may := range map[string]bool{files.script: c.script, token: c.secret, files.stdin: false} {
			err := foreign.As(&c.user, func() error { _, err := os.ReadFile(file); return err })
			if may != (err == nil) || !may && !errors.Is(err, fs.ErrPermission) {
				t.Errorf("%s reads %s: %v", c.who, file, err)
			}
			err = foreign.As(&c.user, func() error { return os.WriteFile(filepath.Join(filepath.Dir(file), "more"), nil, 0o600) })
			if !errors.Is(err, fs.ErrPermission) {
				t.Errorf("%s writes beside %s: %v", c.who, file, err)
			}
		}
	}
}

// TestP19NothingPutInTheWayIsFollowed: a process of the job's user renames links, pipes
// and files over all that the folders of the next attempts are made of, while the worker
// makes them and a runner opens them.
func TestP19NothingPutInTheWayIsFollowed(t *testing.T) {
	t.Parallel()
	f := newFolders(t)
	rounds := 300
	if os.Getenv("DROVER_LONG") != "" {
		rounds = 10000
	}
	precious := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(precious, []byte("root's"), 0o600); err != nil {
		t.Fatal(err)
	}
	lair := filepath.Join(filepath.Dir(f.root), "lair")
	if err := errors.Join(os.Mkdir(lair, 0o700), os.Chown(lair, uidOf(guest()), -1)); err != nil {
		t.Fatal(err)
	}
	var (
		next = make(chan string, 1)
		wait sync.WaitGroup
	)
	wait.Go(func() {
		if guest() == nil {
			for range next { // the same user may do anything to itself
			}
			return
		}
		_ = asGuest(func() error { swapAll(f, lair, precious, next); return nil })
	})
	for i := range rounds {
		id := strconv.Itoa(i) + ".1"
		next <- id
		if err := useOnce(f, id); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		if got, err := os.ReadFile(precious); err != nil || string(got) != "root's" {
			t.Fatalf("round %d: the file of root holds %q, %v", i, got, err)
		}
	}
	close(next)
	wait.Wait()
}

func uidOf(u *account) int {
	if u == nil {
		return -1
	}
	return int(u.cred.UID)
}

// useOnce does what worker and runner do with the files of one.
func useOnce(f attemptFolders, id string) error {
	files, err := f.make(id, brought(), guest())
	if err != nil {
		return err
	}
	fd, err := foreign.Open(files.stdin, unix.O_RDONLY, unix.S_IFREG, foreign.Anybody)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	buf := make([]byte, 100)
	n, err := unix.Read(fd, buf)
	if err != nil || string(buf[:n]) != "typed" {
		return fmt.Errorf("standard input is %q, %w", buf[:n], err)
	}
	for file, want := range map[string]string{files.script: "echo own\n", filepath.Join(files.secrets, "token"): "hunter2"} {
		if got, err := os.ReadFile(file); err != nil || string(got) != want {
			return fmt.Errorf("%s holds %q, %w", file, got, err)
		}
	}
	if info, err := os.Lstat(filepath.Join(f.work, id)); err != nil || !info.IsDir() {
		return fmt.Errorf("the working folder is %v, %w", info, err)
	}
	return f.discard(id)
}

// swapAll puts something of its own over every name that the next attempt uses.
func swapAll(f attemptFolders, lair, precious string, next <-chan string) {
	id, more := <-next
	for n := 0; more; n++ {
		bait := filepath.Join(lair, strconv.Itoa(n%7))
		_ = os.RemoveAll(bait)
		switch n % 4 {
		case 0:
			_ = os.Symlink(precious, bait)
		case 1:
			_ = unix.Mkfifo(bait, 0o666)
		case 2:
			_ = os.Link(precious, bait)
		default:
			_ = os.WriteFile(bait, []byte("mine"), 0o644)
		}
		dir := filepath.Join(f.root, id)
		for _, name := range []string{
			filepath.Join(f.stdin, id), filepath.Join(dir, "stdin"), filepath.Join(dir, secretsFolder, "token"), filepath.Join(dir, secretsFolder),
			filepath.Join(dir, scriptFolder, "own.sh"), filepath.Join(dir, scriptFolder), dir, filepath.Join(f.work, id),
		} {
			_ = os.Rename(bait, name)
			_ = os.Rename(name, bait)
		}
		// Its own folder it may fill.
		_ = os.MkdirAll(filepath.Join(f.work, id, "a", "b"), 0o700)
		_ = os.Symlink(filepath.Dir(precious), filepath.Join(f.work, id, "a", "link"))
		select {
		case id, more = <-next:
		default:
		}
	}
}

// TestP17WhatCannotBeRemovedHoldsUpNobody: the worker goes on, tells of it, tries again,
// and ends.
func TestP17WhatCannotBeRemovedHoldsUpNobody(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		return // nothing withstands the removal by its own user
	}
	folders := newFolders(t)
	var text strings.Builder
	folders.trash.log = slog.New(slog.NewTextHandler(&text, nil))
	if _, err := folders.make("a.1", brought(), guest()); err != nil {
		t.Fatal(err)
	}
	theirs := filepath.Join(folders.work, "a.1", "\x1b[31m"+strings.Repeat("x", 200))
	if err := os.MkdirAll(filepath.Join(theirs, "of root"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := folders.discard("a.1"); err != nil {
		t.Errorf("the end of the attempt: %v", err)
	}
	for _, dir := range []string{folders.stdin, folders.root, folders.work} {
		if all, err := os.ReadDir(dir); err != nil || len(all) != 0 {
			t.Errorf("%s holds %v, %v", dir, all, err)
		}
	}
	again := func() (was, is stuck) {
		t.Helper()
		for _, s := range folders.trash.stuck {
			was = s
		}
		for name, s := range folders.trash.stuck {
			s.next = time.Time{}
			folders.trash.stuck[name] = s
		}
		if goes, err := folders.trash.round(t.Context()); goes || err != nil {
			t.Fatalf("a round: %v, %v", goes, err)
		}
		for _, s := range folders.trash.stuck {
			is = s
		}
		return was, is
	}
	again()
	if was, is := again(); is.pause != 2*was.pause || is.since != was.since || time.Until(is.next) < is.pause/2 {
		t.Errorf("tried again: %+v, and then %+v", was, is)
	}
	all := folders.trash.conditions()
	if len(all) != 1 || all[0].Type != conditionFiles || len(all[0].Message) > 300 || strings.Contains(all[0].Message, "\x1b") {
		t.Errorf("conditions %q", all)
	}
	if n := strings.Count(text.String(), "cannot be removed"); n != 1 || strings.Contains(text.String(), "\x1b") || text.Len() > 600 {
		t.Errorf("logged %d times: %q", n, text.String())
	}
	left, _ := filepath.Glob(filepath.Join(folders.trash.dir, "*", "*"))
	if len(left) != 1 {
		t.Fatalf("left: %q", left)
	}
	if err := os.RemoveAll(left[0]); err != nil {
		t.Fatal(err)
	}
	if again(); folders.trash.conditions() != nil {
		t.Errorf("when the way is free: %v", folders.trash.conditions())
	}
}

// TestP17_TreeThatCannotBeRemoved_IsTriedEverMoreRarely: also while other attempts leave
// something all the time. A round of it was made every 200 ms when looking through it took
// longer than a slice.
func TestP17_TreeThatCannotBeRemoved_IsTriedEverMoreRarely(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		return // nothing withstands the removal by its own user
	}
	synctest.Test(t, func(t *testing.T) {
		folders := newFolders(t)
		tree := filepath.Join(folders.trash.dir, "tree")
		for _, err := range []error{os.MkdirAll(filepath.Join(tree, "of root", "in"), 0o755), os.Chown(tree, nobody, nobody)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wait sync.WaitGroup
		wait.Go(func() { folders.trash.run(ctx) })
		tries, last := 0, time.Time{}
		for range 24 * 60 {
			time.Sleep(time.Minute)
			folders.trash.poke()
			synctest.Wait()
			folders.trash.mu.Lock()
			if next := folders.trash.stuck["tree"].next; next != last {
				tries, last = tries+1, next
			}
			folders.trash.mu.Unlock()
		}
		if tries < 20 || tries > 40 {
			t.Errorf("tried in %d of the minutes of a day", tries)
		}
		cancel()
		wait.Wait()
	})
}

// TestARemovalThatRunsOutOfTimeIsStuckWhenNothingGoes.
func TestARemovalThatRunsOutOfTimeIsStuckWhenNothingGoes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		want bool
	}{
		{&foreign.Remains{Entries: 1, Err: foreign.ErrUnfinished, Removed: 1}, true},
		{&foreign.Remains{Entries: 1, Err: foreign.ErrUnfinished}, false},
		{&foreign.Remains{Entries: 1, Err: unix.EACCES, Removed: 1}, false},
		{unix.ENOENT, false},
	} {
		if advances(c.err) != c.want {
			t.Errorf("%v: %v", c.err, !c.want)
		}
	}
}

// TestTheTrashIsEmptiedWhenThereIsTime lives through a worker's life: what an earlier one
// left, what comes, and what comes at the end.
func TestTheTrashIsEmptiedWhenThereIsTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		folders := newFolders(t)
		fill := func(name string) {
			t.Helper()
			if err := os.MkdirAll(filepath.Join(folders.trash.dir, name, "a", "b"), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		empty := func() bool {
			all, err := os.ReadDir(folders.trash.dir)
			return err == nil && len(all) == 0
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wait sync.WaitGroup
		fill("old")
		wait.Go(func() { folders.trash.run(ctx) })
		synctest.Wait()
		if !empty() {
			t.Error("what an earlier life left is still there")
		}
		fill("new")
		folders.trash.poke()
		synctest.Wait()
		if !empty() {
			t.Error("what came is still there")
		}
		fill("last")
		cancel()
		wait.Wait()
		if !empty() {
			t.Error("what came last is still there")
		}
	})
}

// TestAnUploadedScriptOfAnotherUser runs one with all that it may bring.
func TestAnUploadedScriptOfAnotherUser(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	if err := os.Chmod(filepath.Dir(filepath.Dir(s.data)), 0o755); err != nil { // the way there
		t.Fatal(err)
	}
	s.policy = Policy{Uploads: true, Users: []string{"nobody"}}
	l := s.begin()
	defer l.end()
	spec := job.Spec{
		Command: "bash", Path: "own.sh", Stdin: []byte("typed"), Secrets: map[string][]byte{"token": []byte("hunter2")},
		Upload: []byte("cat /dev/stdin; ls $DROVER_SECRETS; cat $DROVER_SECRETS/token; echo; pwd; mkdir -p deep/er; id -un; cd ..; echo x > $0; rm -f $0\n"),
	}
	if os.Geteuid() == 0 {
		spec.User = "nobody"
	}
	key := l.run(spec)
	r := l.finished(key)
	work := filepath.Join(s.data, "work", attemptID(key))
	lines := strings.Split(l.read(key, output.Stdout), "\n")
	if len(lines) != 5 || !slices.Equal(lines[:3], []string{"typedtoken", "hunter2", work}) {
		t.Fatalf("%+v said %q", r, lines)
	}
	if os.Geteuid() == 0 {
		if said := l.read(key, output.Stderr); strings.Count(said, "Permission denied") < 2 || lines[3] != "nobody" {
			t.Errorf("as %s it said %q", lines[3], said)
		}
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(2 * time.Millisecond) {
		left, err := filepath.Glob(filepath.Join(s.data, "*", attemptID(key)+"*"))
		if err == nil && len(left) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("left: %q", left)
		}
	}
}

// TestWorkingFoldersAreLookedAtAsTheJobsUser: root sees more than the job will.
func TestWorkingFoldersAreLookedAtAsTheJobsUser(t *testing.T) {
	t.Parallel()
	p := newPreparer(t, newWorld(), Policy{})
	p.folders = newFolders(t)
	base := filepath.Dir(p.folders.root)
	closed, open := filepath.Join(base, "closed", "in"), filepath.Join(base, "open")
	for dir, mode := range map[string]os.FileMode{closed: 0o755, open: 0o755} {
		if err := os.MkdirAll(dir, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Dir(closed), 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(filepath.Dir(closed), 0o700)
	if got, err := p.workdir(&prepared{}, &job.Spec{Workdir: open}, guest()); err != nil || got != open {
		t.Errorf("%s, %v", got, err)
	}
	want := fmt.Sprintf("the job's user may not enter %q", filepath.Dir(closed))
	if _, err := p.workdir(&prepared{}, &job.Spec{Workdir: closed}, guest()); errs.ReasonOf(err) != reasonWorkdir || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %s", err, want)
	}
}

// TestAPipeAsACommandIsNotWaitedFor: the first line of a program is read, not awaited.
func TestAPipeAsACommandIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	p := newPreparer(t, newWorld(), Policy{})
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o777); err != nil {
		t.Fatal(err)
	}
	err := p.checkPath(&job.Spec{Env: map[string]string{"PATH": "/"}}, pipe, nil)
	if errs.ReasonOf(err) != job.ReasonPolicy || !strings.Contains(err.Error(), "no regular file") {
		t.Errorf("%v", err)
	}
}

// TestALinkLeadsToNoWorkingFolderThatIsNotAllowed: nor does the policy's own link keep
// anybody out.
func TestALinkLeadsToNoWorkingFolderThatIsNotAllowed(t *testing.T) {
	t.Parallel()
	p := newPreparer(t, newWorld(), Policy{})
	base := filepath.Join(filepath.Dir(p.folders.root), "base")
	at := func(name string) string { return filepath.Join(base, name) }
	for _, err := range []error{
		os.MkdirAll(at("srv/in"), 0o755), os.MkdirAll(at("other"), 0o755),
		os.Symlink(at("other"), at("srv/out")), os.Symlink(at("srv"), at("alias")), os.Symlink(at("srv/in"), at("srv/around")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	p.policy.Workdirs = []string{at("alias"), at("srv")}
	for dir, want := range map[string]string{
		at("srv/in"): "", at("srv/around"): "", at("alias/in"): "", at("srv/out"): job.ReasonPolicy, at("alias/out"): job.ReasonPolicy, at("other"): job.ReasonPolicy,
	} {
		got, err := p.workdir(&prepared{}, &job.Spec{Workdir: dir}, nil)
		if errs.ReasonOf(err) != want || err == nil && got != at("srv/in") {
			t.Errorf("%s: %s, %v", dir, got, err)
		}
	}
}

// TestP19_LinkIsSwappedWhileAJobStarts_TheJobBeginsInNoOtherFolder: a link is put in the
// place of a folder that is allowed, and taken away, all the time.
func TestP19_LinkIsSwappedWhileAJobStarts_TheJobBeginsInNoOtherFolder(t *testing.T) {
	t.Parallel()
	p := newPreparer(t, newWorld(), Policy{})
	p.folders = newFolders(t)
	base := filepath.Join(filepath.Dir(p.folders.root), "base")
	at := func(name string) string { return filepath.Join(base, name) }
	for _, err := range []error{
		os.MkdirAll(at("srv/way/in"), 0o755), os.MkdirAll(at("other/in"), 0o755), os.Symlink(at("other"), at("srv/link")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	p.policy.Workdirs = []string{at("srv")}
	stop := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() {
		for {
			if err := unix.Renameat2(unix.AT_FDCWD, at("srv/way"), unix.AT_FDCWD, at("srv/link"), unix.RENAME_EXCHANGE); err != nil {
				t.Errorf("swap: %v", err)
				return
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	allowed, entered := 0, 0
	for range 3000 {
		dir, err := p.workdir(&prepared{}, &job.Spec{Workdir: at("srv/way/in")}, guest())
		if err != nil {
			continue
		}
		allowed++
		f, err := foreign.OpenFolder(dir) // as the runner does
		if err != nil {
			continue
		}
		where, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
		if entered++; err != nil || !strings.HasPrefix(where, at("srv")+"/") {
			t.Errorf("the job begins in %s, %v", where, err)
		}
		_ = f.Close()
	}
	close(stop)
	wait.Wait()
	if entered == 0 {
		t.Errorf("of 3000 folders %d were allowed and none was entered", allowed)
	}
}

// mute mounts a file system that never answers, until the test ends; "" where nothing
// can be mounted.
func mute(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	fuse, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.Mount("silent", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fuse))
	}
	if err != nil {
		t.Logf("left out where nothing can be mounted: %v", err)
		return ""
	}
	t.Cleanup(func() {
		_ = unix.Close(fuse) // whoever waits for it gets an error
		_ = unix.Unmount(dir, unix.MNT_DETACH)
	})
	return dir
}

// TestAFileSystemThatDoesNotAnswerHoldsUpNothing: the order is refused in time, and
// others are taken meanwhile.
func TestAFileSystemThatDoesNotAnswerHoldsUpNothing(t *testing.T) {
	t.Parallel()
	p := newPreparer(t, newWorld(), Policy{})
	dir := mute(t)
	if dir == "" {
		return
	}
	began := time.Now()
	var wait sync.WaitGroup
	for i := range 12 {
		wait.Go(func() {
			sub := filepath.Join(dir, strconv.Itoa(i))
			if _, err := p.workdir(&prepared{}, &job.Spec{Workdir: sub}, guest()); errs.ReasonOf(err) != reasonWorkdir || !strings.Contains(err.Error(), "does not answer") {
				t.Errorf("%v", err)
			}
		})
	}
	for _, f := range []func() error{
		func() error {
			return p.checkPath(&job.Spec{Env: map[string]string{"PATH": "/"}}, filepath.Join(dir, "tool"), guest())
		},
		func() error { _, err := p.find(guest(), fallbackPath, filepath.Join(dir, "tool")); return err },
	} {
		wait.Go(func() { _ = f() })
	}
	if got, err := p.workdir(&prepared{}, &job.Spec{}, guest()); err != nil || got != p.scratch {
		t.Errorf("another order: %s, %v", got, err)
	}
	wait.Wait()
	if took := time.Since(began); took > 6*lookPatience {
		t.Errorf("it took %v", took)
	}
}
