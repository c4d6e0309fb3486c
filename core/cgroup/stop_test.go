package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

// P9: STOPPED means zero processes, 50 times of 50.
func TestStopLeavesNoProcessFiftyTimesOfFifty(t *testing.T) {
	t.Parallel()
	const script = `
trap "" TERM
setsid bash -c 'trap "" TERM; (trap "" TERM; echo a; sleep 300; :) & disown; exit'
(setsid bash -c 'trap "" TERM; echo b; sleep 300; :' &)
(trap "" TERM; echo c; sleep 300; :) &
sleep 300; :
`
	inEveryMode(t, func(t *testing.T, m *Manager) {
		var slowest time.Duration
		for i := range 50 {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				g := acquire(t, m, job.Limits{})
				s := start(t, g, script)
				for range 3 {
					s.line(t)
				}
				s.req.Grace = 5 * time.Millisecond
				proof := stop(t, g, s.req)
				if left := survivors(t, s.req.Mark); len(left) > 0 {
					t.Errorf("%d processes survived a stop that answered: %v", len(left), left)
				}
				if proof.Termed < 4 || proof.Killed < 4 {
					t.Errorf("proof %+v, want at least 4 termed and 4 killed", proof)
				}
				if empty, err := g.Empty(s.req); !empty || err != nil {
					t.Errorf("empty %v, %v", empty, err)
				}
				slowest = max(slowest, proof.Took)
			})
		}
		t.Logf("%s: slowest of 50 stops with 5 ms of grace: %v", m.Mode(), slowest)
	})
}

// P9: fork storms included.
func TestStopEndsAForkStorm(t *testing.T) {
	t.Parallel()
	// Bounded, so that a failing test does not take the machine: 4 loops of at
	// most 150 children, one of them in another session and doubly forked.
	const storm = `
trap "" TERM
burst() { for ((i = 0; i < 150; i++)); do "$@" & done; wait; }
echo go
burst sleep 300 &
burst setsid sleep 300 &
burst bash -c '(sleep 300 &)' &
burst bash -c 'trap "" TERM; sleep 300; :'
`
	inEveryMode(t, func(t *testing.T, m *Manager) {
		g := acquire(t, m, job.Limits{})
		s := start(t, g, storm)
		s.line(t)
		until(t, "the storm to rise", func() bool {
			list, err := g.Processes(s.req)
			return err == nil && len(list) > 50
		})
		s.req.Grace = 10 * time.Millisecond
		proof := stop(t, g, s.req)
		if left := survivors(t, s.req.Mark); len(left) > 0 {
			t.Errorf("%d processes survived the stop", len(left))
		}
		t.Logf("%s: %+v", m.Mode(), proof)
	})
}

func TestTermIsHonouredWithinTheGrace(t *testing.T) {
	t.Parallel()
	inEveryMode(t, func(t *testing.T, m *Manager) {
		g := acquire(t, m, job.Limits{})
		s := start(t, g, `trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done`)
		s.line(t)
		s.req.Grace = 20 * time.Second
		proof := stop(t, g, s.req)
		if proof.Termed == 0 || proof.Killed != 0 || proof.Took > 5*time.Second {
			t.Errorf("%+v, want termed, not killed, and at once", proof)
		}
		if text := s.line(t); text != "bye" {
			t.Errorf("the handler printed %q", text)
		}
	})
}

func TestStoppedProcessesHearTheTerm(t *testing.T) {
	t.Parallel()
	inEveryMode(t, func(t *testing.T, m *Manager) {
		g := acquire(t, m, job.Limits{})
		s := start(t, g, `trap 'exit 0' TERM; echo ready; kill -STOP $$`)
		s.line(t)
		s.req.Grace = 20 * time.Second
		if proof := stop(t, g, s.req); proof.Killed != 0 {
			t.Errorf("%+v: a stopped process was not woken to end by itself", proof)
		}
	})
}

func TestGraceOfZeroKillsAtOnce(t *testing.T) {
	t.Parallel()
	inEveryMode(t, func(t *testing.T, m *Manager) {
		g := acquire(t, m, job.Limits{})
		s := start(t, g, `trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done`)
		s.line(t)
		proof := stop(t, g, s.req)
		if proof.Termed != 0 || proof.Killed == 0 {
			t.Errorf("%+v, want killed only", proof)
		}
		<-s.gone
		if text, err := s.out.ReadString('\n'); err == nil {
			t.Errorf("it had time to print %q", text)
		}
	})
}

func TestTheProofNamesTheMethod(t *testing.T) {
	t.Parallel()
	inEveryMode(t, func(t *testing.T, m *Manager) {
		want := map[string]string{ModeV2: MethodKill, ModeHybrid: MethodKill, ModeV1: MethodFreeze, ModeNone: MethodWalk}
		g := acquire(t, m, job.Limits{})
		s := start(t, g, `echo ready; sleep 300`)
		s.line(t)
		if proof := stop(t, g, s.req); proof.Method != want[m.Mode()] || proof.Took <= 0 {
			t.Errorf("proof %+v in mode %s", proof, m.Mode())
		}
	})
}

func TestStopOfAnEmptyGroupIsQuick(t *testing.T) {
	t.Parallel()
	inEveryMode(t, func(t *testing.T, m *Manager) {
		g := acquire(t, m, job.Limits{})
		s := start(t, g, `exit 3`)
		<-s.gone
		until(t, "the group to be empty", func() bool {
			empty, err := g.Empty(s.req)
			return empty && err == nil
		})
		s.req.Grace = time.Hour
		proof := stop(t, g, s.req)
		if proof.Termed+proof.Killed != 0 || proof.Took > time.Second {
			t.Errorf("%+v for nothing to do", proof)
		}
		t.Logf("%s: %v", m.Mode(), proof.Took)
	})
}

func TestASecondStopHastensTheFirst(t *testing.T) {
	t.Parallel()
	inEveryMode(t, func(t *testing.T, m *Manager) {
		g := acquire(t, m, job.Limits{})
		s := start(t, g, `trap "echo deaf" TERM; echo ready; while :; do sleep 0.01; done`)
		s.line(t)
		type answer struct {
			proof job.StopProof
			err   error
		}
		first := make(chan answer, 1)
		patient := s.req
		patient.Grace = time.Hour
		go func() {
			proof, err := g.Stop(t.Context(), patient)
			first <- answer{proof, err}
		}()
		s.line(t) // the first SIGTERM has arrived
		stop(t, g, s.req)
		a := <-first
		if a.err != nil || a.proof.Termed == 0 {
			t.Errorf("the first stop answered %+v, %v", a.proof, a.err)
		}
	})
}

func TestStopGivesUpWithItsContext(t *testing.T) {
	t.Parallel()
	inEveryMode(t, func(t *testing.T, m *Manager) {
		g := acquire(t, m, job.Limits{})
		s := start(t, g, `trap "" TERM; echo ready; while :; do sleep 1; done`)
		s.line(t)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		s.req.Grace = time.Hour
		if _, err := g.Stop(ctx, s.req); errs.KindOf(err) != errs.Canceled || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want Canceled", err)
		}
	})
}

// P9: who withstands SIGKILL is named. A process in a frozen v1 cgroup does not
// die before it is thawed, which is as close to the uninterruptible as a test gets.
func TestUnkillableProcessesAreReported(t *testing.T) {
	t.Parallel()
	m := open(t, Config{Unkillable: 300 * time.Millisecond})
	frost := open(t, Config{Force: ModeV1})
	if frost.Mode() != ModeV1 || m.Mode() == ModeV1 {
		t.Skip("needs a v1 freezer beside another way to kill")
	}
	ice := acquire(t, frost, job.Limits{})
	g := acquire(t, m, job.Limits{})
	s := start(t, g, `echo ready; sleep 300; :`)
	s.line(t)
	if err := writeFile(ice.dir, "cgroup.procs", fmt.Sprint(s.req.PID)); err != nil {
		t.Fatal(err)
	}
	cold := &cell{dir: ice.dir}
	if err := cold.freeze(); err != nil {
		t.Fatal(err)
	}
	_, err := g.Stop(t.Context(), s.req)
	if errs.KindOf(err) != errs.Precondition || errs.ReasonOf(err) != ReasonUnkillable {
		t.Errorf("got %v, want %s", err, ReasonUnkillable)
	}
	if err != nil && !strings.Contains(err.Error(), fmt.Sprint(s.req.PID)) {
		t.Errorf("%q does not name process %d", err, s.req.PID)
	}
	if err := cold.thaw(); err != nil {
		t.Fatal(err)
	}
	if proof := stop(t, g, s.req); proof.Took > 5*time.Second {
		t.Errorf("%+v after the thaw", proof)
	}
	if err := ice.Release(); err != nil {
		t.Error(err)
	}
}

// Kernels before 5.14 have no cgroup.kill.
func TestV2CanBeKilledByFreezing(t *testing.T) {
	t.Parallel()
	m := open(t, Config{})
	if m.watcher == nil {
		t.Skipf("needs cgroup v2, mode is %s", m.Mode())
	}
	g := acquire(t, m, job.Limits{})
	s := start(t, g, `trap "" TERM; sleep 300 & (setsid sleep 300 &) ; echo ready; sleep 300; :`)
	s.line(t)
	c := &cell{dir: g.dir, unified: true, events: g.events}
	killed := map[process]bool{}
	if err := c.killFrozen(killed); err != nil {
		t.Fatal(err)
	}
	if len(killed) < 3 {
		t.Errorf("killed %d, want all 3 or more", len(killed))
	}
	until(t, "the group to be empty", func() bool {
		empty, err := c.empty()
		return empty && err == nil
	})
	if st, err := g.state(); err != nil || st.frozen {
		t.Errorf("state %+v, %v: left frozen", st, err)
	}
}

func TestCgroupsThatAJobMadeAreEndedToo(t *testing.T) {
	t.Parallel()
	m := open(t, Config{})
	if m.watcher == nil {
		t.Skipf("needs cgroup v2, mode is %s", m.Mode())
	}
	g := acquire(t, m, job.Limits{})
	inner := filepath.Join(g.dir, "inner", "most")
	s := start(t, g, `mkdir -p "$1"; echo $BASHPID > "$1/cgroup.procs"; trap "" TERM; echo ready; while :; do sleep 1; done`, inner)
	s.line(t)
	if list, err := g.Processes(s.req); err != nil || len(list) == 0 {
		t.Errorf("processes %v, %v", list, err)
	}
	s.req.Grace = time.Millisecond
	if proof := stop(t, g, s.req); proof.Termed == 0 || proof.Killed == 0 {
		t.Errorf("%+v", proof)
	}
	if err := g.Release(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(inner); err == nil {
		t.Errorf("%s is left", inner)
	}
}

// A runner's thread that stands in a v1 group to fork into it is not the job.
func TestAVisitingThreadIsNotStopped(t *testing.T) {
	t.Parallel()
	m := open(t, Config{Force: ModeV1})
	if m.Mode() != ModeV1 {
		t.Skipf("needs a v1 freezer, mode is %s", m.Mode())
	}
	g := acquire(t, m, job.Limits{})
	home, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	own, _ := find(home, "freezer")
	in, leave, left := make(chan error), make(chan struct{}), make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		in <- writeFile(g.dir, "tasks", "0")
		<-leave
		left <- writeFile(own.dir, "tasks", "0")
	}()
	if err := <-in; err != nil {
		t.Fatal(err)
	}
	if empty, err := g.Empty(StopRequest{}); !empty || err != nil {
		t.Errorf("empty %v, %v with only a visitor", empty, err)
	}
	s := start(t, g, `echo ready; sleep 300; :`)
	s.line(t)
	list, err := g.Processes(s.req)
	if err != nil || slices.Contains(list, os.Getpid()) || len(list) == 0 {
		t.Errorf("processes %v, %v: want the job's without %d", list, err, os.Getpid())
	}
	s.req.Grace = time.Millisecond
	stop(t, g, s.req)
	// The group cannot be removed while the visitor is there, and is later.
	if err := g.Release(); err != nil {
		t.Error(err)
	}
	close(leave)
	if err := <-left; err != nil {
		t.Fatal(err)
	}
}
