package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

// withLimits runs a test in each mode in which this host can keep the limits.
func withLimits(t *testing.T, l job.Limits, test func(t *testing.T, m *Manager, g *Group)) {
	t.Helper()
	for _, force := range []string{"", ModeV1} {
		t.Run("force="+force, func(t *testing.T) {
			t.Parallel()
			m := open(t, Config{Force: force})
			if err := m.Check(l); err != nil {
				t.Skipf("this host cannot keep it: %v", err)
			}
			test(t, m, acquire(t, m, l))
		})
	}
}

func TestPidsLimitStopsAForkLoop(t *testing.T) {
	t.Parallel()
	withLimits(t, job.Limits{Pids: 12}, func(t *testing.T, _ *Manager, g *Group) {
		s := start(t, g, `echo ready; for ((i = 0; i < 100; i++)); do sleep 300 & done 2> /dev/null; wait`)
		s.line(t)
		until(t, "the limit to be reached", func() bool {
			list, err := g.Processes(s.req)
			return err == nil && len(list) >= 12
		})
		if list, err := g.Processes(s.req); err != nil || len(list) != 12 {
			t.Errorf("%d processes, %v, want 12", len(list), err)
		}
		stop(t, g, s.req)
	})
}

func TestMemoryLimitKillsAndIsCounted(t *testing.T) {
	t.Parallel()
	withLimits(t, job.Limits{Memory: 32 << 20}, func(t *testing.T, _ *Manager, g *Group) {
		// The hog is the main process: the kernel may take the shell with it.
		s := start(t, g, `exec tail < <(head -c 256M /dev/zero) > /dev/null`)
		<-s.gone
		if got := s.cmd.ProcessState.Sys().(syscall.WaitStatus); !got.Signaled() || got.Signal() != syscall.SIGKILL {
			t.Errorf("the hog ended with %v, want SIGKILL", s.cmd.ProcessState)
		}
		u, err := g.Usage()
		if err != nil || u.OOMKills == 0 || u.MaxRSS < 30<<20 || u.MaxRSS > 33<<20 {
			t.Errorf("usage %+v, %v: want an OOM kill at 32 MiB", u, err)
		}
	})
}

func TestCPULimitSlowsDown(t *testing.T) {
	t.Parallel()
	withLimits(t, job.Limits{CPUMillis: 200}, func(t *testing.T, _ *Manager, g *Group) {
		began := time.Now()
		s := start(t, g, `while :; do t=$(cut -d" " -f14 /proc/$$/stat); ((t >= 20)) && exit; for ((i = 0; i < 20000; i++)); do :; done; done`)
		<-s.gone
		wall := time.Since(began)
		used := s.cmd.ProcessState.UserTime() + s.cmd.ProcessState.SystemTime()
		if used < 150*time.Millisecond || used*5 > wall*2 {
			t.Errorf("%v of processor in %v, want about a fifth", used, wall)
		}
	})
}

func TestUsageCountsThisAttemptOnly(t *testing.T) {
	t.Parallel()
	m := open(t, Config{})
	limits := job.Limits{Pids: 50}
	if m.watcher == nil || m.Check(limits) != nil {
		t.Skipf("needs cgroup v2 and a limit, mode is %s", m.Mode())
	}
	for range 2 {
		g := acquire(t, m, limits)
		before, err := g.Usage()
		if err != nil || before.CPUMicros != 0 {
			t.Errorf("a fresh group has used %+v, %v", before, err)
		}
		s := start(t, g, `for ((i = 0; i < 20000; i++)); do :; done`)
		<-s.gone
		until(t, "the group to be empty", func() bool {
			empty, err := g.Empty(s.req)
			return empty && err == nil
		})
		if u, err := g.Usage(); err != nil || u.CPUMicros == 0 {
			t.Errorf("usage %+v, %v", u, err)
		}
		if err := g.Release(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLimitedGroupsSurviveARestart(t *testing.T) {
	t.Parallel()
	l := job.Limits{Memory: 64 << 20, Pids: 20, CPUMillis: 900}
	withLimits(t, l, func(t *testing.T, m *Manager, g *Group) {
		s := start(t, g, `echo ready; sleep 300; :`)
		s.line(t)
		again, err := m.Reopen(g.Name())
		if err != nil {
			t.Fatal(err)
		}
		if again.Name() != g.Name() || !again.limited {
			t.Errorf("reopened %q of %q", again.Name(), g.Name())
		}
		if u, err := again.Usage(); err != nil || u.MaxRSS == 0 {
			t.Errorf("usage %+v, %v", u, err)
		}
		stop(t, again, s.req)
		if err := again.Release(); err != nil {
			t.Error(err)
		}
		for _, c := range again.limits {
			if _, err := os.Stat(c.dir); err == nil {
				t.Errorf("%s is left", c.dir)
			}
		}
	})
}

func TestLimitsThatTheHostCannotKeepAreRefused(t *testing.T) {
	t.Parallel()
	m := open(t, Config{Force: ModeNone})
	for field, l := range map[string]job.Limits{
		"limits.cpu_millis":   {CPUMillis: 100},
		"limits.memory_bytes": {Memory: 1 << 30},
		"limits.pids":         {Pids: 10},
	} {
		for _, err := range []error{m.Check(l), second(m.Acquire(l, -1))} {
			var e *errs.Error
			if !errors.As(err, &e) || e.Kind != errs.Invalid || e.Reason != job.ReasonLimit || e.Field != field || e.Hint == "" {
				t.Errorf("%s: %#v", field, err)
			}
		}
	}
	if err := m.Check(job.Limits{}); err != nil {
		t.Errorf("no limits: %v", err)
	}
}

func second(_ *Group, err error) error { return err }

// With v1 the forking thread is counted, so that a limit of 1 could start nothing.
func TestAPidsLimitOfOneIsRefusedWithV1(t *testing.T) {
	t.Parallel()
	m := &Manager{controls: map[string]control{pidsTree: {version: 1}}}
	if err := m.Check(job.Limits{Pids: 1}); errs.ReasonOf(err) != job.ReasonLimit {
		t.Errorf("got %v", err)
	}
	m.controls[pidsTree] = control{version: 2}
	if err := m.Check(job.Limits{Pids: 1}); err != nil {
		t.Errorf("v2 counts exactly, got %v", err)
	}
}

// knobs makes a folder with files like those of a cgroup.
func knobs(t *testing.T, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, n := range names {
		if err := os.WriteFile(filepath.Join(dir, n), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func content(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// This host has v2 without controllers, so that v2's knobs are played by files.
func TestV2LimitsAreWrittenAsTheKernelWantsThem(t *testing.T) {
	t.Parallel()
	dir := knobs(t, "cpu.max", "memory.max", "memory.oom.group", "pids.max", "cgroup.events")
	all := map[string]control{}
	for _, c := range []string{cpuTree, memoryTree, pidsTree} {
		all[c] = control{version: 2}
	}
	g := &Group{m: &Manager{controls: all}, dir: dir, unified: true, limited: true}
	if err := g.limit(job.Limits{CPUMillis: 1500, Memory: 1 << 20, Pids: 7}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"cpu.max": "150000 100000", "memory.max": "1048576", "memory.oom.group": "1", "pids.max": "7",
	} {
		if got := content(t, dir, name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if len(g.Tasks()) != 0 || !strings.HasPrefix(g.Name(), "unified-limited:") {
		t.Errorf("tasks %v, name %q: v2 alone needs no second folder", g.Tasks(), g.Name())
	}
}

func TestV2CountersAreReadAndRebased(t *testing.T) {
	t.Parallel()
	dir := knobs(t)
	for name, text := range map[string]string{
		"cpu.stat": "usage_usec 1500\nuser_usec 1\n", "memory.events": "low 0\noom 4\noom_kill 3\n", "memory.peak": "4096\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m := &Manager{controls: map[string]control{memoryTree: {version: 2}}}
	g := &Group{m: m, dir: dir, unified: true, limited: true, base: Usage{CPUMicros: 500, OOMKills: 1}}
	if u, err := g.Usage(); err != nil || u != (Usage{CPUMicros: 1000, MaxRSS: 4096, OOMKills: 2}) {
		t.Errorf("usage %+v, %v", u, err)
	}
}

func TestQuotaStaysAboveTheKernelsLeast(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		millis        uint32
		quota, period uint64
	}{{1, 1000, 1_000_000}, {9, 9000, 1_000_000}, {10, 1000, 100_000}, {1000, 100_000, 100_000}, {64_000, 6_400_000, 100_000}} {
		if q, p := quota(c.millis); q != c.quota || p != c.period {
			t.Errorf("%d: %d per %d, want %d per %d", c.millis, q, p, c.quota, c.period)
		}
	}
}

func TestControllersAreHandedOnAndTakenBack(t *testing.T) {
	t.Parallel()
	home := knobs(t, "cgroup.subtree_control")
	base := filepath.Join(home, "drover-x")
	if err := os.Mkdir(base, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(base, "cgroup.subtree_control"), []byte("memory pids\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := open(t, Config{Force: ModeNone})
	m.base = base
	if before, err := m.enable(base, memoryTree); err != nil || !before {
		t.Errorf("a controller that is on: %v, %v", before, err)
	}
	m.enableV2(home)
	if len(m.controls) != 3 || m.controls[cpuTree] != (control{2, base}) {
		t.Errorf("controls %v", m.controls)
	}
	m.disableV2()
	if got := content(t, home, "cgroup.subtree_control"); !strings.Contains(got, "-pids") {
		t.Errorf("home has %q", got)
	}
	if _, err := m.enable(filepath.Join(home, "gone"), cpuTree); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}
