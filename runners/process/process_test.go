package process

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/plugins/foreign"
	"github.com/droverhq/drover/plugins/pidfd"
	"github.com/droverhq/drover/plugins/runner"
)

func TestMain(m *testing.M) {
	if os.Args[0] == limiterName {
		New(Config{}) // as the programs that it is in do first
	}
	os.Exit(m.Run())
}

// TestTheStartTimeIsTheOneOfProc holds what the clock says against the kernel.
func TestTheStartTimeIsTheOneOfProc(t *testing.T) {
	known := 0
	for range 200 {
		before := bootClock()
		pid, err := syscall.ForkExec("/bin/sh", []string{"sh", "-c", "exec sleep 60"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		ticks := ticksBetween(before, bootClock())
		stat, err := pidfd.ReadStat(pid)
		_ = syscall.Kill(pid, syscall.SIGKILL)
		_, _ = syscall.Wait4(pid, nil, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		if ticks == 0 {
			continue // a tick went by: /proc is asked
		}
		if known++; ticks != stat.Ticks {
			t.Fatalf("the clock says %d, /proc says %d", ticks, stat.Ticks)
		}
	}
	t.Logf("known without asking: %d of 200", known)
}

func TestATickBetweenTwoLooksLeavesTheStartTimeOpen(t *testing.T) {
	for _, c := range []struct {
		before, after time.Duration
		want          uint64
	}{
		{0, 0, 0}, // the clock could not be read
		{50 * time.Millisecond, 59 * time.Millisecond, 5},
		{59 * time.Millisecond, 60 * time.Millisecond, 0},
		{60*time.Millisecond - 1, 60*time.Millisecond - 1, 5},
	} {
		if got := ticksBetween(c.before, c.after); got != c.want {
			t.Errorf("ticksBetween(%v, %v) = %d, want %d", c.before, c.after, got, c.want)
		}
	}
}

// TestP13TheRequestDoesNotChooseTheInterpreter: neither by PATH nor by the working
// folder.
func TestP13TheRequestDoesNotChooseTheInterpreter(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "tool"), []byte("#!/bin/sh\nexit 99\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	for _, path := range []string{"", ".", ":", ".:/usr/bin", "./", "/usr/bin:/bin"} {
		if file, err := find("tool", path); err == nil {
			t.Errorf("PATH %q: found %s", path, file)
		}
	}
	for name, want := range map[string]string{"tool": filepath.Join(dir, "tool"), "/a/b": "/a/b", "./tool": "", "a/tool": "", "": "", "none": ""} {
		file, err := find(name, "relative:"+dir)
		if file != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", name, file, err)
		}
	}
}

// lane makes a named pipe as a worker does, which holds the read end.
func lane(t *testing.T) (path string, read *os.File) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "out")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	read, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = read.Close() })
	return path, read
}

// TestAStartNeverWaitsForAFile: what is put in the place of standard input or of a lane
// is neither waited for nor given to the job.
func TestAStartNeverWaitsForAFile(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{
		os.WriteFile(at("file"), []byte("in"), 0o400), os.WriteFile(at("two"), nil, 0o400), os.Link(at("two"), at("names")),
		os.Symlink(at("file"), at("link")), syscall.Mkfifo(at("fifo"), 0o600), os.Symlink(at("fifo"), at("pipe")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	r := &Runner{null: -1}
	for _, c := range []struct{ stdin, out, want string }{
		{at("file"), at("fifo"), ""},
		{"", at("fifo"), ""},
		{at("fifo"), at("fifo"), "no regular file"},
		{at("link"), at("fifo"), "symbolic links"},
		{at("names"), at("fifo"), "other names"},
		{at("file"), at("pipe"), "symbolic links"},
		{at("file"), at("file"), "no named pipe"},
		{at("file"), os.DevNull, "no named pipe"},
	} {
		f, err := r.openFiles(runner.Spec{Stdin: c.stdin, Stdout: c.out, Stderr: c.out})
		if c.want != "" {
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%+v: %v", c, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		for i, fd := range f.fds {
			if flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != 0 {
				t.Errorf("%+v: fd %d has the flags %o, %v", c, i, flags, err)
			}
		}
		f.close()
	}
}

// TestAnEndIsToldBeforeItIsReaped: P7. When the plugin is killed before the end is
// in its journal, the zombie must still be there for the worker.
func TestAnEndIsToldBeforeItIsReaped(t *testing.T) {
	r := New(Config{Argv: func(s runner.Spec) ([]string, error) { return s.Args, nil }})
	if !r.Info().Keeps {
		t.Error("it does not say so")
	}
	for _, c := range []struct {
		script string
		want   runner.Exit
	}{
		{"exit 0", runner.Exit{}},
		{"exit 42", runner.Exit{Code: 42}},
		{"kill -TERM $$", runner.Exit{Signal: syscall.SIGTERM}},
		{"ulimit -c 0; kill -ABRT $$", runner.Exit{Signal: syscall.SIGABRT}},
	} {
		out, read := lane(t)
		type seen struct {
			runner.Exit
			state byte
		}
		told := make(chan seen, 1)
		p, err := r.Start(runner.Spec{
			ID: c.script, Args: []string{"sh", "-c", c.script}, Env: []string{"PATH=" + os.Getenv("PATH")},
			Stdout: out, Stderr: out, Workdir: "/",
		}, func(e runner.Exit) {
			st, _ := pidfd.ReadStat(e.PID) // gone: no state
			told <- seen{e, st.State}
		})
		if err != nil {
			t.Fatal(err)
		}
		got := <-told
		if got.state != 'Z' || got.PID != p.PID || got.Code != c.want.Code || got.Signal != c.want.Signal || got.MaxRSS == 0 || got.CPU <= 0 {
			t.Errorf("%s: %+v of process %d in state %q", c.script, got.Exit, p.PID, got.state)
		}
		for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
			if _, err := pidfd.ReadStat(p.PID); err != nil {
				break
			}
			if time.Now().After(end) {
				t.Fatal("it is not reaped")
			}
		}
		_ = read.Close() // its goroutines are looked for
	}
	_ = r.Close()
	goleak.VerifyNone(t) // its reaper would take the children of other tests
}

// TestTheFolderThatRefusesIsNamedAndNotTheProgram: a job of another user cannot pass the
// folder above its working folder.
func TestTheFolderThatRefusesIsNamedAndNotTheProgram(t *testing.T) {
	dir := t.TempDir()
	shut := filepath.Join(dir, "shut")
	for _, err := range []error{os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, 0o755), os.MkdirAll(filepath.Join(shut, "in"), 0o755), os.Chmod(shut, 0o600)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	defer os.Chmod(shut, 0o700)
	out, _ := lane(t)
	r := &Runner{null: -1}
	for _, asked := range []bool{false, true} {
		s := runner.Spec{Workdir: filepath.Join(shut, "in"), WorkdirAsked: asked, Stdout: out, Stderr: out}
		if os.Geteuid() == 0 {
			s.Credential = &runner.Credential{UID: 65534, GID: 65534}
		}
		attr := &syscall.ProcAttr{Dir: s.Workdir, Sys: &syscall.SysProcAttr{}}
		if c := s.Credential; c != nil {
			attr.Sys.Credential = &syscall.Credential{Uid: c.UID, Gid: c.GID}
		}
		_, _, err := r.launch([]string{"/bin/true"}, attr, s, func() {})
		var se *runner.StartError
		if !errors.As(err, &se) || se.Reason != runner.BadRequest || !strings.Contains(se.Message, strconv.Quote(shut)) || strings.Contains(se.Message, "/bin/true") {
			t.Errorf("asked %v: %v", asked, err)
		}
	}
}

// TestLimitsOfOtherUsersNeedNoCapability: root has neither of these in a container.
func TestLimitsOfOtherUsersNeedNoCapability(t *testing.T) {
	if os.Geteuid() != 0 {
		return // there is one user only
	}
	const name, poor = "TestLimitsOfOtherUsersNeedNoCapability", "DROVER_TEST_POOR"
	if os.Getenv(poor) == "" {
		ended := make(chan error, 1)
		go func() {
			runtime.LockOSThread() // never unlocked, on purpose: this thread has lost rights
			for _, c := range []uintptr{unix.CAP_SYS_RESOURCE, unix.CAP_SYS_PTRACE} {
				if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
					ended <- err
					return
				}
			}
			c := exec.Command("/proc/self/exe", "-test.run=^"+name+"$", "-test.v")
			c.Env = append(os.Environ(), poor+"=1")
			out, err := c.CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
			ended <- err
		}()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		return
	}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	var hard unix.Rlimit
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &hard); err != nil {
		t.Fatal(err)
	}
	start := func(argv []string, limits ...runner.Rlimit) (int, error) {
		attr := &syscall.ProcAttr{
			Dir: "/", Files: []uintptr{write.Fd(), write.Fd(), write.Fd()},
			Sys: &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}},
		}
		s := runner.Spec{Workdir: "/", Credential: &runner.Credential{UID: 65534, GID: 65534}, NoNewPrivs: true, Rlimits: limits}
		r := &Runner{}
		pid, _, err := r.launch(argv, attr, s, func() {})
		return pid, err
	}
	pid, err := start([]string{"/bin/cat", "/proc/self/limits"},
		runner.Rlimit{Resource: unix.RLIMIT_NOFILE, Value: 63}, runner.Rlimit{Resource: unix.RLIMIT_CORE, Value: 0}, runner.Rlimit{Resource: unix.RLIMIT_FSIZE, Value: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil || status != 0 {
		t.Errorf("it ended with %v, %v", status, err)
	}
	text := make([]byte, 1<<16)
	n, _ := read.Read(text)
	for limit, want := range map[string]string{"Max open files": "63", "Max core file size": "0", "Max file size": strconv.Itoa(1 << 30)} {
		_, rest, _ := strings.Cut(string(text[:n]), limit)
		if f := strings.Fields(rest); len(f) < 2 || f[0] != want || f[1] != want {
			t.Errorf("%s: %.60q", limit, rest)
		}
	}
	_, err = start([]string{"/bin/true"}, runner.Rlimit{Resource: unix.RLIMIT_CORE, Value: 0}, runner.Rlimit{Resource: unix.RLIMIT_NOFILE, Value: hard.Max + 1})
	want := fmt.Sprintf("rlimits.nofile: set it to %d: operation not permitted: the worker's own limit is %d, and whoever goes beyond it needs CAP_SYS_RESOURCE", hard.Max+1, hard.Max)
	var se *runner.StartError
	if !errors.As(err, &se) || se.Reason != runner.Resource || se.Message != want {
		t.Errorf("more than this process has: %v, want %s", err, want)
	}
}

// TestAProgramThatOnlyRootReachesIsNotSaidToBeMissing: root sees it, the job does not.
func TestAProgramThatOnlyRootReachesIsNotSaidToBeMissing(t *testing.T) {
	dir := t.TempDir()
	tool := filepath.Join(dir, "shut", "tool")
	for _, err := range []error{os.MkdirAll(filepath.Dir(tool), 0o755), os.WriteFile(tool, []byte("#!/bin/sh\n"), 0o755), os.Chmod(filepath.Dir(tool), 0o600)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	defer os.Chmod(filepath.Dir(tool), 0o700)
	r, s := &Runner{}, runner.Spec{Workdir: "/"}
	attr := &syscall.ProcAttr{Sys: &syscall.SysProcAttr{}}
	if os.Geteuid() == 0 {
		s.Credential = &runner.Credential{UID: 65534, GID: 65534}
		attr.Sys.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	}
	_, _, err := r.launch([]string{tool}, attr, s, func() {})
	var se *runner.StartError
	if !errors.As(err, &se) || se.Reason != runner.NotExecutable || !strings.Contains(se.Message, "permission denied") {
		t.Errorf("%v", err)
	}
}

// TestAWorkingFolderIsEntered: the process is where it was asked to be, and this process
// stays where it is.
func TestAWorkingFolderIsEntered(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	r := &Runner{}
	s := runner.Spec{Workdir: dir, WorkdirAsked: true}
	for _, tool := range []string{"touch", "mkdir"} { // the second time the thread is another one, or the same
		pid, _, err := r.launch([]string{"/bin/" + tool, tool}, &syscall.ProcAttr{Dir: dir, Sys: &syscall.SysProcAttr{}}, s, func() {})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := syscall.Wait4(pid, nil, 0, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(dir, tool)); err != nil {
			t.Error(err)
		}
	}
	if now, err := os.Getwd(); err != nil || now != here {
		t.Errorf("this process is in %s, %v", now, err)
	}
}

// TestALinkIsNotFollowedToAWorkingFolder: the worker has told where the folder really
// lies, so what is a link now was put there since.
func TestALinkIsNotFollowedToAWorkingFolder(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink("/", link); err != nil {
		t.Fatal(err)
	}
	r := &Runner{}
	for _, path := range []string{link, filepath.Join(link, "tmp")} {
		_, _, err := r.launch([]string{"/bin/true"}, &syscall.ProcAttr{Dir: path, Sys: &syscall.SysProcAttr{}}, runner.Spec{Workdir: path, WorkdirAsked: true}, func() { t.Error("it forks") })
		var se *runner.StartError
		if !errors.As(err, &se) || se.Reason != runner.BadRequest || !strings.Contains(se.Message, strconv.Quote(link)+" is a link") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestAChildEntersAnOpenFolder: where no thread can have a place of its own. Its user could
// not open the folder by its path.
func TestAChildEntersAnOpenFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dir")
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	f, err := foreign.OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	attr := &syscall.ProcAttr{Dir: inChild(f), Sys: &syscall.SysProcAttr{}}
	if os.Geteuid() == 0 {
		attr.Sys.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	}
	pid, err := syscall.ForkExec("/bin/touch", []string{"touch", "file"}, attr)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := syscall.Wait4(pid, nil, 0, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "file")); err != nil {
		t.Error(err)
	}
}

// TestAFileSystemThatDoesNotAnswerHoldsUpNoOtherStart: a child that hangs in it before it
// has executed its program would hold up every fork of the process.
func TestAFileSystemThatDoesNotAnswerHoldsUpNoOtherStart(t *testing.T) {
	if os.Geteuid() != 0 {
		return // mounts are root's
	}
	dir := t.TempDir()
	fuse, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.Mount("mute", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fuse))
	}
	if err != nil {
		t.Logf("left out where nothing can be mounted: %v", err)
		return
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	defer unix.Close(fuse)
	r := &Runner{}
	hung := make(chan error, 1)
	go func() {
		_, _, err := r.launch([]string{"/bin/true"}, &syscall.ProcAttr{Sys: &syscall.SysProcAttr{}},
			runner.Spec{Workdir: filepath.Join(dir, "sub"), WorkdirAsked: true}, func() { t.Error("it forks") })
		hung <- err
	}()
	for others := 0; ; others++ {
		select {
		case err := <-hung:
			if err == nil || !strings.Contains(err.Error(), "does not answer") || others == 0 {
				t.Errorf("after %d other starts: %v", others, err)
			}
			return
		default:
		}
		pid, _, err := r.launch([]string{"/bin/true"}, &syscall.ProcAttr{Dir: "/", Sys: &syscall.SysProcAttr{}}, runner.Spec{Workdir: "/"}, func() {})
		if err != nil {
			t.Fatal(err)
		}
		_, _ = syscall.Wait4(pid, nil, 0, nil)
	}
}

// TestP19_TheMemoryOfTheRunner_StaysClosedToTheUsersOfItsJobs: a child has the memory of
// this process and the user of the job for a moment, and looks are made as that user.
func TestP19_TheMemoryOfTheRunner_StaysClosedToTheUsersOfItsJobs(t *testing.T) {
	out, _ := lane(t)
	r, s := &Runner{null: -1}, runner.Spec{Workdir: "/", WorkdirAsked: true, Stdout: out, Stderr: out}
	attr := &syscall.ProcAttr{Dir: "/", Sys: &syscall.SysProcAttr{}}
	want := 1
	if os.Geteuid() == 0 {
		s.Credential = &runner.Credential{UID: 65534, GID: 65534}
		attr.Sys.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
		want = 0
	}
	for range 3 {
		pid, _, err := r.launch([]string{"/bin/true"}, attr, s, func() {})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := syscall.Wait4(pid, nil, 0, nil); err != nil {
			t.Fatal(err)
		}
		if got, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || got > want {
			t.Errorf("dumpable is %d, %v", got, err)
		}
	}
}

// TestP19_UserWhoStopsEveryProcessOfHis_HoldsUpNoStart: between its change of user and its
// program a child can be stopped by the job's user, and the fork waits for it.
func TestP19_UserWhoStopsEveryProcessOfHis_HoldsUpNoStart(t *testing.T) {
	out, _ := lane(t)
	s := runner.Spec{Workdir: "/", Stdout: out, Stderr: out}
	attr := &syscall.ProcAttr{Dir: "/", Sys: &syscall.SysProcAttr{}}
	if os.Geteuid() == 0 {
		const uid = 64321 // of no other process on this machine
		s.Credential = &runner.Credential{UID: uid, GID: uid}
		attr.Sys.Credential = &syscall.Credential{Uid: uid, Gid: uid}
		// kill(2) with -1 spares the one who calls it; the attacker ends by itself.
		attacker := exec.Command("/bin/bash", "-c", "while [ $SECONDS -lt 60 ]; do kill -STOP -1; done 2>/dev/null")
		attacker.SysProcAttr = &syscall.SysProcAttr{Credential: attr.Sys.Credential}
		if err := attacker.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			_ = attacker.Process.Kill()
			_ = attacker.Wait()
		}()
	}
	// With the garbage collector waiting for the fork, too, only the worker can help, and
	// there is none here: see core/pluginhost.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	r := &Runner{null: -1}
	for range 500 {
		began := time.Now()
		pid, _, err := r.launch([]string{"/bin/true"}, attr, s, func() {})
		if err != nil {
			t.Fatal(err)
		}
		_ = syscall.Kill(pid, syscall.SIGKILL) // stopped in its program, which is its own matter
		if _, err := syscall.Wait4(pid, nil, 0, nil); err != nil {
			t.Fatal(err)
		}
		if time.Since(began) > stuckAfter { // it was hit before its program, and got away
			break
		}
	}
}
