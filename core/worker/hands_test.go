package worker

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/droverhq/drover/core/job"
)

func TestWorkWithAHoldingIsDoneInOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var tasks sync.WaitGroup
		h := &holding{}
		var mu sync.Mutex
		var done []int
		for i := range 20 {
			h.do(t.Context(), &tasks, false, func(context.Context) {
				time.Sleep(time.Duration(20-i) * time.Millisecond)
				mu.Lock()
				defer mu.Unlock()
				done = append(done, i)
			})
		}
		tasks.Wait()
		if !slices.IsSorted(done) || len(done) != 20 {
			t.Errorf("order %v", done)
		}
		if h.active || h.queue != nil {
			t.Error("something is left of a queue without work")
		}
		h.do(t.Context(), &tasks, true, func(context.Context) { done = append(done, 99) })
		tasks.Wait()
		if done[20] != 99 {
			t.Error("the queue does not begin again")
		}
	})
}

func TestUrgentWorkCancelsWhatRunsAndNothingElse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var tasks sync.WaitGroup
		h := &holding{}
		var first, second, third error
		h.do(t.Context(), &tasks, false, func(ctx context.Context) {
			<-ctx.Done()
			first = ctx.Err()
		})
		h.do(t.Context(), &tasks, false, func(ctx context.Context) { second = ctx.Err() })
		synctest.Wait()
		h.do(t.Context(), &tasks, true, func(ctx context.Context) { third = ctx.Err() })
		tasks.Wait()
		if first == nil || second != nil || third != nil {
			t.Errorf("errors %v, %v, %v", first, second, third)
		}
	})
}

func TestAGroupThatCannotBeOpenedProvesNothing(t *testing.T) {
	t.Parallel()
	broken := errors.New("permission denied")
	s := shutGroup{open: func() (Group, error) { return nil, broken }}
	if empty, err := s.Empty(StopRequest{}); empty || !errors.Is(err, broken) {
		t.Errorf("empty %v, %v", empty, err)
	}
	if _, err := s.Stop(t.Context(), StopRequest{}); !errors.Is(err, broken) {
		t.Errorf("stop: %v", err)
	}
	s.open = func() (Group, error) { return noGroup{}, nil }
	if empty, err := s.Empty(StopRequest{}); !empty || err != nil {
		t.Errorf("empty %v, %v", empty, err)
	}
	if p, err := s.Stop(t.Context(), StopRequest{}); err != nil || p.Method != neverStartedProof {
		t.Errorf("stop: %+v, %v", p, err)
	}
	if s.Name() != "" || s.Dir() != "" || s.Tasks() != nil || s.Release() != nil {
		t.Error("a group that is none has properties")
	}
	if n, err := s.OOMKills(); n != 0 || err != nil {
		t.Errorf("%d kills, %v", n, err)
	}
}

func TestP4NothingIsLostWhileItsGroupIsShut(t *testing.T) {
	lives(t, func(t *testing.T, w *world, next func(...option) *bench) {
		b := next()
		b.start(order(1))
		b.wait(1, job.Running)
		b.crash()
		w.mu.Lock()
		w.amnesia, w.shut = true, errors.New("permission denied")
		w.procs[attemptID(testKey(1))].hidden = true
		w.mu.Unlock()
		b = next()
		time.Sleep(time.Minute)
		if r := b.wait(1, job.Running); r.Message == "" {
			t.Error("the report does not say what is in the way")
		}
		w.mu.Lock()
		w.shut = nil
		w.mu.Unlock()
		if r := b.wait(1, job.Lost); r.Reason != job.ReasonNoProcess {
			t.Errorf("%+v", r)
		}
		b.crash()
	})
}

func TestWhatCannotBeTakenUpAgainIsNoEnd(t *testing.T) {
	lives(t, func(t *testing.T, w *world, next func(...option) *bench) {
		b := next()
		b.start(order(1, "run=3s", "code=6"))
		b.wait(1, job.Running)
		b.crash()
		w.mu.Lock()
		delete(w.outputs, testKey(1)) // the lanes were deleted
		delete(w.groups, "group1")    // the group was removed: so it is empty
		w.unpinned = errors.New("the generation is gone")
		w.mu.Unlock()
		b = next()
		time.Sleep(time.Second)
		w.mu.Lock()
		w.procs[attemptID(testKey(1))].cgroup = ""
		w.mu.Unlock()
		if r := b.wait(1, job.Failed); *r.ExitCode != 6 || r.Message == "" {
			t.Errorf("%+v", r)
		}
		b.crash()
	})
}

func TestABoardSendsStatesAndNotSteps(t *testing.T) {
	t.Parallel()
	b := newBoard()
	k := testKey(1)
	session := uint64(0)
	b.publish(Publish{Report: &job.Report{Key: k, Sequence: 1}, Quiet: true})
	if got, _ := b.collect(session, 9); got != nil {
		t.Errorf("without a session: %v", got)
	}
	session, _ = b.begin()
	for n := range uint64(50) {
		b.publish(Publish{Report: &job.Report{Key: k, Sequence: n}})
	}
	b.announce(&job.Report{Key: testKey(2), Sequence: 7})
	got, more := b.collect(session, 9)
	var sequences []uint64
	for _, r := range got {
		sequences = append(sequences, r.Sequence)
	}
	if diff := cmp.Diff([]uint64{7, 49}, sequences); diff != "" || more {
		t.Errorf("more %v, %s", more, diff)
	}
	b.publish(Publish{Report: &job.Report{Key: k, Sequence: 50}, Quiet: true})
	b.publish(Publish{Report: &job.Report{Key: testKey(3)}, Volatile: true})
	if got, _ := b.collect(session, 9); got != nil {
		t.Errorf("quiet and volatile reports were sent: %v", got)
	}
	b.end(session)
	session, _ = b.begin()
	if got, _ := b.collect(session, 9); len(got) != 1 || got[0].Sequence != 50 {
		t.Errorf("a new session got %v", got)
	}
	old := session
	session, _ = b.begin()
	b.end(old)
	if got, _ := b.collect(old, 9); got != nil {
		t.Errorf("an old session got %v", got)
	}
	if got, _ := b.collect(session, 9); len(got) != 1 {
		t.Errorf("the present session got %v", got)
	}
	b.unpublish(k)
	if _, ok := b.find(job.Key{Job: k.Job}); ok {
		t.Error("a forgotten attempt is found")
	}
}

func TestTicketsAreAnsweredOnce(t *testing.T) {
	t.Parallel()
	x := newTickets()
	n, ch := x.take()
	x.answer(n, answer{err: errors.New("first")})
	x.answer(n, answer{err: errors.New("second")})
	if a := <-ch; a.err.Error() != "first" {
		t.Errorf("%v", a.err)
	}
	n, _ = x.take()
	x.drop(n)
	x.answer(n, answer{}) // nobody waits: it must not block
	x.answer(0, answer{})
	if len(x.open) != 0 {
		t.Errorf("%d tickets are left", len(x.open))
	}
}
