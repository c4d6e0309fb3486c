package cgroup

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

func TestAGroupIsUsedAgainOnceItIsEmpty(t *testing.T) {
	t.Parallel()
	inEveryMode(t, func(t *testing.T, m *Manager) {
		first := acquire(t, m, job.Limits{})
		name := first.Name()
		s := start(t, first, `exit 0`)
		<-s.gone
		until(t, "the group to be empty", func() bool {
			empty, err := first.Empty(s.req)
			return empty && err == nil
		})
		if err := first.Release(); err != nil {
			t.Fatal(err)
		}
		second := acquire(t, m, job.Limits{})
		if second.Name() != name {
			t.Errorf("%q was made though %q was free", second.Name(), name)
		}
		if err := first.Release(); err != nil { // once more, which does nothing
			t.Error(err)
		}
		third := acquire(t, m, job.Limits{})
		if m.Mode() != ModeNone && third.Name() == name {
			t.Error("one group was given out twice")
		}
		again := start(t, second, `echo alive; sleep 300`)
		again.line(t)
		if list, err := second.Processes(again.req); err != nil || len(list) == 0 {
			t.Errorf("processes %v, %v", list, err)
		}
		if err := third.Release(); err != nil {
			t.Error(err)
		}
	})
}

// TestP19_FreeGroup_ServesJobsOfOneUserOnly: what a job has open of its group, and
// what it has set there, is for jobs of its own user at most.
func TestP19_FreeGroup_ServesJobsOfOneUserOnly(t *testing.T) {
	t.Parallel()
	inEveryMode(t, func(t *testing.T, m *Manager) {
		names := map[string]int{}
		for _, uid := range []int{-1, 1, 65534, 1, -1, os.Getuid(), 65534} {
			g, err := m.Acquire(job.Limits{}, uid)
			if err != nil {
				t.Fatal(err)
			}
			if uid < 0 {
				uid = os.Getuid()
			}
			if of, used := names[g.Name()]; used && of != uid && g.Name() != "" {
				t.Errorf("a job of user %d got the group of user %d", uid, of)
			}
			names[g.Name()] = uid
			if err := g.Release(); err != nil {
				t.Fatal(err)
			}
		}
		if m.Mode() != ModeNone && len(names) != 3 {
			t.Errorf("%d groups were made for three users", len(names))
		}
	})
}

// TestUsersWhoAreGoneDoNotKeepThePoolFull: the newest free groups stay.
func TestUsersWhoAreGoneDoNotKeepThePoolFull(t *testing.T) {
	t.Parallel()
	m := &Manager{cfg: Config{Spares: 2}, used: map[string]bool{}}
	var surplus []string
	for _, s := range []spare{{dir: "a", uid: 1}, {dir: "b", uid: 1}, {dir: "c", uid: 2}, {dir: "d", uid: 2}} {
		if old := m.give(s); old.dir != "" {
			surplus = append(surplus, old.dir)
		}
	}
	if !slices.Equal(surplus, []string{"a", "b"}) {
		t.Errorf("%v left the pool", surplus)
	}
}

// The kernel kills what is born into a group that was killed before.
func TestAKilledGroupIsNotUsedAgain(t *testing.T) {
	t.Parallel()
	inEveryMode(t, func(t *testing.T, m *Manager) {
		g := acquire(t, m, job.Limits{})
		s := start(t, g, `echo ready; sleep 300; :`)
		s.line(t)
		stop(t, g, s.req)
		if err := g.Release(); err != nil {
			t.Fatal(err)
		}
		next := acquire(t, m, job.Limits{})
		if next.Name() != "" && next.Name() == g.Name() {
			t.Error("a killed group was given out")
		}
		alive := start(t, next, `echo alive; sleep 300`)
		if word := alive.line(t); word != "alive" {
			t.Errorf("the next attempt printed %q", word)
		}
	})
}

func TestThePoolIsBounded(t *testing.T) {
	t.Parallel()
	m := open(t, Config{Spares: 2})
	if m.Mode() == ModeNone {
		t.Skip("needs cgroups")
	}
	var all []*Group
	for range 5 {
		all = append(all, acquire(t, m, job.Limits{}))
	}
	for _, g := range all {
		if err := g.Release(); err != nil {
			t.Fatal(err)
		}
	}
	left, err := filepath.Glob(filepath.Join(m.base, m.instance+"-*"))
	if err != nil || len(left) != 2 {
		t.Errorf("%d folders are kept, want 2 (%v)", len(left), err)
	}
}

// P10: detach lets children live; their group goes when they are gone.
func TestAGroupWithProcessesIsLeftAlone(t *testing.T) {
	t.Parallel()
	inEveryMode(t, func(t *testing.T, m *Manager) {
		g := acquire(t, m, job.Limits{})
		s := start(t, g, `echo ready; sleep 300; :`)
		s.line(t)
		if err := g.Release(); err != nil {
			t.Fatal(err)
		}
		next := acquire(t, m, job.Limits{})
		if m.Mode() != ModeNone && next.Name() == g.Name() {
			t.Fatal("a group with processes was given out")
		}
		if left := survivors(t, s.req.Mark); len(left) == 0 {
			t.Error("the detached process is gone")
		}
		stop(t, g, s.req)
		if err := next.Release(); err != nil {
			t.Error(err)
		}
		m.sweep()
		if _, err := os.Stat(g.dir); g.dir != "" && err == nil {
			t.Errorf("%s is left after its last process", g.dir)
		}
	})
}

// P7: another life of the worker finds the processes again.
func TestReopenFindsTheProcessesOfAFormerLife(t *testing.T) {
	t.Parallel()
	for _, force := range []string{"", ModeV1, ModeNone} {
		t.Run("force="+force, func(t *testing.T) {
			t.Parallel()
			name := unique()
			first, err := New(Config{Name: name, Force: force})
			if err != nil {
				t.Fatal(err)
			}
			g := acquire(t, first, job.Limits{})
			s := start(t, g, `trap "" TERM; echo ready; while :; do sleep 1; done`)
			s.line(t)
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			if left := survivors(t, s.req.Mark); len(left) == 0 {
				t.Fatal("closing the manager ended a job")
			}
			m := open(t, Config{Name: name, Force: force})
			again, err := m.Reopen(g.Name())
			if err != nil {
				t.Fatal(err)
			}
			if again.Name() != g.Name() || again.Dir() != g.Dir() || !slices.Equal(again.Tasks(), g.Tasks()) {
				t.Errorf("reopened %q, was %q", again.Name(), g.Name())
			}
			if alive, err := m.Prune(); err != nil || len(alive) != 0 {
				t.Errorf("prune found %v, %v beside the reopened group", alive, err)
			}
			if empty, err := again.Empty(s.req); err != nil || empty {
				t.Errorf("empty %v, %v", empty, err)
			}
			s.req.Grace = time.Millisecond
			stop(t, again, s.req)
			if left := survivors(t, s.req.Mark); len(left) > 0 {
				t.Errorf("survived: %v", left)
			}
			if err := again.Release(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestReopenOfARemovedGroupIsEmpty(t *testing.T) {
	t.Parallel()
	m := open(t, Config{})
	g, err := m.Reopen("unified:/sys/fs/cgroup/nowhere/drover-x/1;memory:/sys/fs/cgroup/nowhere/drover-x/1")
	if err != nil {
		t.Fatal(err)
	}
	if empty, err := g.Empty(StopRequest{}); !empty || err != nil {
		t.Errorf("empty %v, %v", empty, err)
	}
	if proof, err := g.Stop(t.Context(), StopRequest{Grace: time.Hour}); err != nil || proof.Killed != 0 {
		t.Errorf("stop: %+v, %v", proof, err)
	}
	if u, err := g.Usage(); err != nil || u != (Usage{}) {
		t.Errorf("usage %+v, %v", u, err)
	}
	if err := g.Release(); err != nil {
		t.Error(err)
	}
}

func TestReopenRefusesWhatIsNoName(t *testing.T) {
	t.Parallel()
	m := open(t, Config{Force: ModeNone})
	for _, name := range []string{
		"x", "unified:/", "unified:/sys/fs/cgroup/system.slice/x", "unified:/a/drover-x/../../b",
		"memory:/a/drover-x/1", "freezer:/a/drover-x/1;/b",
	} {
		if _, err := m.Reopen(name); errs.KindOf(err) != errs.Invalid {
			t.Errorf("%q: %v, want Invalid", name, err)
		}
	}
}

func TestPruneRemovesEmptyGroupsOfFormerLivesOnly(t *testing.T) {
	t.Parallel()
	for _, force := range []string{"", ModeV1} {
		t.Run("force="+force, func(t *testing.T) {
			t.Parallel()
			m := open(t, Config{Force: force})
			if m.Mode() == ModeNone {
				t.Skip("needs cgroups")
			}
			former := filepath.Join(m.base, "0000000000-1")
			dir := filepath.Join(m.base, "0000000000-2")
			alive := &Group{m: m, dir: dir, unified: m.Mode() != ModeV1, events: newEvents(dir), reopened: true}
			for _, dir := range []string{former, alive.dir} {
				if err := os.Mkdir(dir, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			own := acquire(t, m, job.Limits{})
			s := start(t, alive, `echo ready; sleep 300; :`)
			s.line(t)
			list, err := m.Prune()
			if err != nil || !slices.Equal(list, []string{alive.dir}) {
				t.Errorf("alive %v, %v", list, err)
			}
			if _, err := os.Stat(former); err == nil {
				t.Error("an empty group of a former life is left")
			}
			if err := m.End(t.Context(), list); err != nil {
				t.Error(err)
			}
			if list, err = m.Prune(); err != nil || len(list) > 0 {
				t.Errorf("after its end: alive %v, %v", list, err)
			}
			if _, err := os.Stat(own.dir); err != nil {
				t.Errorf("a group in use was removed: %v", err)
			}
		})
	}
}

// P17: Close leaves what lives, and nothing else.
func TestCloseKeepsOnlyGroupsWithProcesses(t *testing.T) {
	t.Parallel()
	name := unique()
	m, err := New(Config{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	if m.Mode() == ModeNone {
		t.Skip("needs cgroups")
	}
	used, idle := acquire(t, m, job.Limits{}), acquire(t, m, job.Limits{})
	s := start(t, used, `echo ready; sleep 300; :`)
	s.line(t)
	for range 2 { // a second Close does nothing
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(idle.dir); err == nil {
		t.Error("an empty group is left")
	}
	if _, err := os.Stat(used.dir); err != nil {
		t.Errorf("the group of a living process is gone: %v", err)
	}
	// What is left goes with the next life.
	next := open(t, Config{Name: name})
	again, err := next.Reopen(used.Name())
	if err != nil {
		t.Fatal(err)
	}
	stop(t, again, s.req)
}

func TestNewRefusesWhatCannotBe(t *testing.T) {
	t.Parallel()
	for _, cfg := range []Config{
		{Name: "../up"},
		{Name: "a/b"},
		{Name: ".hidden"},
		{Name: strings.Repeat("n", 65)},
		{Name: "line\nbreak"},
		{Force: "v3"},
		{Force: ModeHybrid},
	} {
		m, err := New(cfg)
		if errs.KindOf(err) != errs.Invalid {
			t.Errorf("%+v: %v, want Invalid", cfg, err)
		}
		if err == nil {
			m.Close()
		}
	}
}

// BenchmarkAcquire: a free group costs microseconds; a fork costs hundreds.
func BenchmarkAcquire(b *testing.B) {
	m, err := New(Config{Name: unique()})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	b.Run("acquire", func(b *testing.B) {
		for b.Loop() {
			g, err := m.Acquire(job.Limits{}, -1)
			if err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			if err := g.Release(); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
	b.Run("acquire+release", func(b *testing.B) {
		for b.Loop() {
			g, err := m.Acquire(job.Limits{}, -1)
			if err != nil {
				b.Fatal(err)
			}
			if err := g.Release(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("limited", func(b *testing.B) {
		l := job.Limits{Pids: 10, Memory: 1 << 30, CPUMillis: 500}
		if m.Check(l) != nil {
			b.Skip("limits are not supported here")
		}
		for b.Loop() {
			g, err := m.Acquire(l, -1)
			if err != nil {
				b.Fatal(err)
			}
			if err := g.Release(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkScan is what one look costs without cgroups.
func BenchmarkScan(b *testing.B) {
	for b.Loop() {
		if _, err := readTable(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkEmpty is what the end of a job costs without cgroups, on a host at rest and
// on one where others start processes all the time.
func BenchmarkEmpty(b *testing.B) {
	m, err := New(Config{Name: unique(), Force: ModeNone})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	g, err := m.Acquire(job.Limits{}, -1)
	if err != nil {
		b.Fatal(err)
	}
	for _, forks := range []bool{false, true} {
		name := "rest"
		if forks {
			name = "forks"
			c := exec.CommandContext(b.Context(), "/bin/sh", "-c", "while :; do /bin/true; done")
			if err := c.Start(); err != nil {
				b.Fatal(err)
			}
			defer func() { _ = c.Wait() }() // after the context has ended it
			defer func() { _ = c.Process.Kill() }()
		}
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if empty, err := g.Empty(StopRequest{Mark: unique()}); err != nil || !empty {
					b.Fatal(empty, err)
				}
			}
		})
	}
}
