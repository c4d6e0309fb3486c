package scheduler

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
)

// first watches until the first change and returns it.
func first(ctx context.Context, s *Scheduler, by Caller, ref string, snapshot bool) (Change, error) {
	var found Change
	done := errors.New("done")
	err := s.Watch(ctx, by, ref, snapshot, func() {}, func(c Change) error {
		found = c
		return done
	})
	if errors.Is(err, done) {
		return found, nil
	}
	return found, err
}

func TestWatchOfAJobThatHasEnded(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		w.join("w1", 1)
		id := w.run(args("run=1s"))
		w.wait(id, job.Succeeded)
		if c, err := first(w.ctx, w.s, admin(), id.String(), true); err != nil || c.Job == nil || c.Job.State != job.Succeeded {
			t.Errorf("%+v, %v", c.Job, err)
		}
		if j, err := w.s.AwaitStart(w.ctx, id); err != nil || j.State != job.Succeeded {
			t.Errorf("await the start: %v, %v", j.State, err)
		}
		_, err := w.s.AwaitStart(w.ctx, uuid.New())
		wantErr(t, err, errs.NotFound, "JOB_UNKNOWN")
		_, err = first(w.ctx, w.s, admin(), uuid.NewString(), true)
		wantErr(t, err, errs.NotFound, "JOB_UNKNOWN")
		ctx, cancel := context.WithTimeout(w.ctx, time.Minute)
		defer cancel()
		if _, err := first(ctx, w.s, admin(), id.String(), false); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("without a snapshot: %v", err)
		}
	})
}

func TestAwaitStart(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		id, stopped := w.run(args("run=1s")), w.run(args())
		begun := make(chan job.State, 2)
		for _, id := range []job.ID{id, stopped} {
			go func() {
				j, err := w.s.AwaitStart(w.ctx, id)
				if err != nil {
					t.Errorf("await the start: %v", err)
				}
				begun <- j.State
			}()
		}
		synctest.Wait()
		if len(begun) > 0 {
			t.Errorf("a queued job counts as begun: %v", <-begun)
		}
		if _, err := w.s.StopJob(w.ctx, admin(), stopped.String(), nil, false); err != nil {
			t.Fatal(err)
		}
		if s := <-begun; s != job.Stopped {
			t.Errorf("%v", s)
		}
		w.join("w1", 1)
		if s := <-begun; s != job.Running {
			t.Errorf("%v", s)
		}
		if len(w.s.hub.watchers) != 0 {
			t.Errorf("%d watchers are left", len(w.s.hub.watchers))
		}
	})
}

// An end between a look and a subscription was missed, and the caller waited
// for ever.
func TestAnEndAtTheMomentOfTheWatchIsNotMissed(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute) // for a hang, not for a slow machine
	defer cancel()
	d := newDesk(t)
	s := &Scheduler{hub: newHub(), records: d.records}
	for range 2000 {
		id := d.submit(plain())
		s.hub.publish(d.last)
		var both sync.WaitGroup
		both.Go(func() {
			if j, err := s.AwaitStart(ctx, id); err != nil || j.State != job.Stopped {
				t.Errorf("await the start: %v, %v", j.State, err)
			}
		})
		both.Go(func() {
			if j, err := s.await(ctx, "wait", id); err != nil || j.State != job.Stopped {
				t.Errorf("wait for the end: %v, %v", j.State, err)
			}
		})
		d.stop(id) // on disk first, then to be seen, as in a turn
		s.hub.publish(d.last)
		both.Wait()
		if t.Failed() {
			return
		}
	}
}

// What a subscriber is shown is one moment: every later change follows, no
// earlier one does.
func TestASubscriberSeesEachChangeOnce(t *testing.T) {
	t.Parallel()
	const last = 500
	h, id := newHub(), job.ID{1}
	change := func(n uint32) { h.publish([]Effect{{Put: &job.Job{ID: id, State: job.Running, Attempt: n}}}) }
	change(0)
	var all sync.WaitGroup
	for _, which := range []job.ID{{}, id, {}, id} {
		all.Go(func() {
			w, jobs, _ := h.subscribe(which)
			defer h.unsubscribe(w)
			for seen := jobs[0].Attempt; seen < last; seen++ {
				if c := <-w.out; c.Job.Attempt != seen+1 {
					t.Errorf("change %d after %d", c.Job.Attempt, seen)
					return
				}
			}
		})
	}
	for n := range uint32(last) {
		change(n + 1)
	}
	all.Wait()
}

func TestASlowWatcherIsToldWhatItMissed(t *testing.T) {
	t.Parallel()
	h := newHub()
	w, _, _ := h.subscribe(job.ID{})
	for n := range uint32(watchBuffer + 7) {
		h.publish([]Effect{{Put: &job.Job{ID: job.ID{1}, State: job.Running, Attempt: n}}})
	}
	enough, missed, seen := errors.New("enough"), uint64(0), 0
	err := w.follow(t.Context(), func(c Change) error {
		if missed += c.Missed; c.Job != nil {
			seen++
		}
		if seen == watchBuffer {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) || missed != 7 {
		t.Errorf("%v; %d changes missed, want 7", err, missed)
	}
}

func TestWhatAWatcherIsShown(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		ann := Caller{Name: "ann", Role: roleSubmitter}
		w.join("w1", 2)
		theirs := w.run(args("run=1h"))
		mine, err := w.s.StartJob(w.ctx, ann, job.Spec{Command: "x", Args: []string{"run=1h"}}, "")
		if err != nil {
			t.Fatal(err)
		}
		w.wait(mine, job.Running)
		w.wait(theirs, job.Running)
		show := func(by Caller) (jobs map[job.ID]bool, workers int) {
			ctx, cancel := context.WithTimeout(w.ctx, time.Second)
			defer cancel()
			jobs = map[job.ID]bool{}
			err := w.s.Watch(ctx, by, "", true, func() {}, func(c Change) error {
				if c.Job != nil {
					jobs[c.Job.ID] = true
				}
				if c.Worker != nil {
					workers++
				}
				return nil
			})
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("watch: %v", err)
			}
			return jobs, workers
		}
		if jobs, workers := show(admin()); len(jobs) != 2 || workers != 1 {
			t.Errorf("%v and %d workers", jobs, workers)
		}
		if jobs, workers := show(ann); len(jobs) != 1 || !jobs[mine] || workers != 0 {
			t.Errorf("a submitter sees %v and %d workers", jobs, workers)
		}
		_, err = first(w.ctx, w.s, ann, theirs.String(), true)
		wantErr(t, err, errs.NotFound, "JOB_UNKNOWN")
		change := make(chan Change, 1)
		go func() {
			c, err := first(w.ctx, w.s, admin(), "", false)
			if err != nil {
				t.Errorf("watch: %v", err)
			}
			change <- c
		}()
		synctest.Wait()
		if _, err := w.s.Drain(w.ctx, "w1", Drain{Drain: true}); err != nil {
			t.Fatal(err)
		}
		if c := <-change; c.Worker == nil || c.Worker.State != registry.Draining {
			t.Errorf("%+v", c)
		}
	})
}
