package cgroup

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/plugins/lineage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serial makes names of managers and marks unique among tests and test runs.
var serial atomic.Uint64

func unique() string { return fmt.Sprintf("test-%d-%d", os.Getpid(), serial.Add(1)) }

// inEveryMode runs a test in each mode that this host can be brought into.
func inEveryMode(t *testing.T, test func(t *testing.T, m *Manager)) {
	t.Helper()
	for _, force := range []string{"", ModeV1, ModeNone} {
		name := force
		if force == "" {
			name = "best"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := open(t, Config{Force: force})
			if force != "" && m.Mode() != force {
				t.Skipf("this host has no usable v1 freezer: mode is %s", m.Mode())
			}
			test(t, m)
		})
	}
}

// open makes a manager that must leave nothing behind when the test ends.
func open(t *testing.T, cfg Config) *Manager {
	t.Helper()
	if cfg.Name == "" {
		cfg.Name = unique()
	}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		parents := m.parentList()
		if err := m.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		for _, dir := range parents {
			if _, err := os.Stat(dir); err == nil {
				t.Errorf("P17: %s is left", dir)
			}
		}
	})
	return m
}

func acquire(t *testing.T, m *Manager, l job.Limits) *Group {
	t.Helper()
	g, err := m.Acquire(l, -1)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// started is a job's main process with a pipe on its stdout.
type started struct {
	cmd  *exec.Cmd
	out  *bufio.Reader
	req  StopRequest
	gone chan struct{} // closed when it was reaped
}

// start runs bash with a script inside g, as a runner does: in a session of its
// own, born into the group, marked. It is ended with the test, whatever happens.
func start(t *testing.T, g *Group, script string, args ...string) *started {
	t.Helper()
	mark := unique()
	const enter = `for t in $TASKS; do echo 0 > "$t" || exit 99; done; [ -z "$TAG" ] || ulimit -S -x "$TAG"; exec bash -c "$@"`
	cmd := exec.Command("bash", append([]string{"-c", enter, "sh", script, "bash"}, args...)...)
	cmd.Env = append(os.Environ(), MarkVariable+"="+mark, "TASKS="+strings.Join(g.Tasks(), " "))
	if g.Name() == "" {
		cmd.Env = append(cmd.Env, fmt.Sprintf("TAG=%d", lineage.Of(mark)))
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if dir := g.Dir(); dir != "" {
		fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, fd
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	e, err := readStat(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	s := &started{
		cmd: cmd, out: bufio.NewReader(r), gone: make(chan struct{}),
		req: StopRequest{PID: cmd.Process.Pid, StartTicks: e.start, Mark: mark},
	}
	go func() {
		cmd.Wait()
		close(s.gone)
	}()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
		defer cancel()
		if _, err := g.Kill(ctx, s.req); err != nil {
			t.Errorf("clean up: %v", err)
		}
		<-s.gone
		r.Close()
		if err := g.Release(); err != nil {
			t.Errorf("release: %v", err)
		}
	})
	return s
}

// line reads what the job prints next.
func (s *started) line(t *testing.T) string {
	t.Helper()
	text, err := s.out.ReadString('\n')
	if err != nil {
		t.Fatalf("job ended its output: %v", err)
	}
	return strings.TrimSuffix(text, "\n")
}

// survivors looks for living processes that carry the mark, apart from the code
// under test.
func survivors(t *testing.T, mark string) []string {
	t.Helper()
	var found []string
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		env, err := os.ReadFile(f)
		if err != nil || !strings.Contains(string(env), MarkVariable+"="+mark+"\x00") {
			continue
		}
		stat, err := os.ReadFile(filepath.Join(filepath.Dir(f), "stat"))
		if err == nil && !strings.Contains(string(stat), ") Z ") {
			found = append(found, string(stat))
		}
	}
	return found
}

// until waits for a condition that no channel tells of, by looking again.
func until(t *testing.T, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(60 * time.Second); !condition(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited 10 s for %s", what)
		}
	}
}

func stop(t *testing.T, g *Group, req StopRequest) job.StopProof {
	t.Helper()
	proof, err := g.Stop(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return proof
}
