package pidfd_test

import (
	"errors"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/droverhq/drover/plugins/pidfd"
)

// start starts a shell that ends when the test says so.
func start(t *testing.T, script string) (pid int, end func()) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "read x; "+script)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// Reaped by the test itself, when it has looked at the zombie.
	t.Cleanup(func() { _ = cmd.Wait() })
	return cmd.Process.Pid, func() { _ = in.Close() }
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not so: %s", what)
		}
	}
}

func TestResultOfAProcessThatSomebodyElseReaps(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		script string
		check  func(syscall.WaitStatus) bool
	}{
		"code":   {"exit 42", func(s syscall.WaitStatus) bool { return s.Exited() && s.ExitStatus() == 42 }},
		"zero":   {"exit 0", func(s syscall.WaitStatus) bool { return s.Exited() && s.ExitStatus() == 0 }},
		"signal": {"kill -9 $$", func(s syscall.WaitStatus) bool { return s.Signaled() && s.Signal() == syscall.SIGKILL }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pid, end := start(t, c.script)
			st, err := pidfd.ReadStat(pid)
			if err != nil {
				t.Fatal(err)
			}
			fd, err := pidfd.Open(pid, st.Ticks)
			if err != nil {
				t.Fatal(err)
			}
			defer syscall.Close(fd)
			if pidfd.Exited(fd) || !pidfd.Alive(pid, st.Ticks) {
				t.Error("it is said to have ended")
			}
			if _, err := pidfd.Status(fd, pid, st.Ticks); !errors.Is(err, syscall.EAGAIN) {
				t.Errorf("before its end: %v", err)
			}
			end()
			await(t, "it has ended", func() bool { return pidfd.Exited(fd) })
			if pidfd.Alive(pid, st.Ticks) {
				t.Error("a zombie is said to live")
			}
			got, err := pidfd.Status(fd, pid, st.Ticks)
			if err != nil || !c.check(got) {
				t.Errorf("as a zombie: %v, %v", got, err)
			}
			var status syscall.WaitStatus
			if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil || status != got {
				t.Errorf("its parent sees %v, %v; the handle said %v", status, err, got)
			}
			// After that only newer kernels know, and none knows it wrong.
			if got, err := pidfd.Status(fd, pid, st.Ticks); err == nil && got != status || err != nil && !errors.Is(err, syscall.EAGAIN) {
				t.Errorf("after it was reaped: %v, %v", got, err)
			}
		})
	}
}

func TestOpenRefusesAnotherProcess(t *testing.T) {
	t.Parallel()
	pid, end := start(t, "exit 0")
	defer end()
	st, err := pidfd.ReadStat(pid)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pidfd.Open(pid, st.Ticks+1); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("another start time: %v", err)
	}
	if pidfd.Alive(pid, st.Ticks+1) {
		t.Error("another start time is said to live")
	}
	if _, err := pidfd.ReadStat(1 << 23); err == nil {
		t.Error("a pid that cannot be was read")
	}
}
