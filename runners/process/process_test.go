package process

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/plugins/pidfd"
	"github.com/droverhq/drover/plugins/runner"
)

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
