package scheduler

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
	"github.com/droverhq/drover/core/store"
	"github.com/droverhq/drover/core/store/memory"
)

func TestAJobFromSubmitToEnd(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		p := w.join("w1", 1)
		var states []string
		watching := errors.New("ended")
		var watch sync.WaitGroup
		watch.Go(func() {
			err := w.s.Watch(w.ctx, admin(), "", false, func() {}, func(c Change) error {
				if c.Job == nil {
					return nil
				}
				states = append(states, c.Job.State.String())
				if c.Job.State.Terminal() {
					return watching
				}
				return nil
			})
			if !errors.Is(err, watching) {
				t.Errorf("watch: %v", err)
			}
		})
		synctest.Wait()
		begun := time.Now()
		id := w.run(args("run=2500ms", "code=3"))
		j, err := w.s.Job(w.ctx, admin(), id.String(), true)
		if err != nil || j.State != job.Failed || j.Reason != job.ReasonExitCode || *j.Result.ExitCode != 3 || j.Result.Evidence != job.Wait {
			t.Errorf("%+v, %v", j, err)
		}
		if took := time.Since(begun); took != 2500*time.Millisecond {
			t.Errorf("it took %v", took)
		}
		if j.WorkerName != "w1" || j.RequestedBy != "root" || j.Fence.Term != w.s.Term() {
			t.Errorf("%+v", j)
		}
		watch.Wait()
		if got := strings.Join(states, " "); got != "DISPATCHED RUNNING FAILED" {
			t.Errorf("watched %s", got)
		}
		synctest.Wait()
		if p.started(id) != 1 || len(p.attempts) != 0 {
			t.Errorf("started %d times, %d attempts not acknowledged", p.started(id), len(p.attempts))
		}
	})
}

// P1: the same request is the same job, however often and from however many
// goroutines it comes.
func TestTheSameRequestIsTheSameJob(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		p := w.join("w1", 10, "a.sh")
		spec := job.Spec{Path: "a.sh", Args: []string{"run=1s"}}
		var all sync.WaitGroup
		ids := make([]job.ID, 20)
		for i := range ids {
			all.Go(func() {
				var err error
				if ids[i], err = w.s.StartJob(w.ctx, admin(), spec, "r"); err != nil {
					t.Errorf("submit: %v", err)
				}
			})
		}
		all.Wait()
		for _, id := range ids {
			if id != ids[0] {
				t.Fatalf("%v and %v", id, ids[0])
			}
		}
		again := func(when string) {
			t.Helper()
			if id, err := w.s.StartJob(w.ctx, admin(), spec, "r"); err != nil || id != ids[0] {
				t.Errorf("%s: %v, %v", when, id, err)
			}
			other := spec
			other.Env = map[string]string{"A": "1"}
			_, err := w.s.StartJob(w.ctx, admin(), other, "r")
			wantErr(t, err, errs.Exists, "REQUEST_ID_REUSED")
		}
		again("while it lives")
		w.wait(ids[0], job.Succeeded)
		again("when it has ended")
		w.restart()
		again("after a restart")
		if p.started(ids[0]) != 1 || len(p.starts) != 1 {
			t.Errorf("started %d times, %d attempts", p.started(ids[0]), len(p.starts))
		}
	})
}

// gate is a store whose commits wait, or fail.
type gate struct {
	store.Store
	mu   sync.RWMutex // held by the test: commits wait
	fail error
}

func (g *gate) Apply(ctx context.Context, b *store.Batch) error {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.fail != nil {
		return g.fail
	}
	return g.Store.Apply(ctx, b)
}

func TestNothingIsSaidOrDoneBeforeItIsOnDisk(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		g := &gate{Store: w.store}
		w.store = g
		w.restart()
		p := w.join("w1", 1)
		// A channel, not the lock: waiting for it is durable in a bubble.
		hold := make(chan struct{})
		g.Store = slow{g.Store, hold}
		answered := make(chan job.ID, 1)
		go func() { answered <- w.run(args("run=1s")) }()
		synctest.Wait()
		if len(answered) > 0 || len(p.starts) > 0 {
			t.Errorf("answered %v, started %v before the commit (P1)", len(answered) > 0, len(p.starts) > 0)
		}
		if jobs, _, _ := jobsOf(w.ctx, w.s, admin(), JobQuery{}); len(jobs) > 0 {
			t.Errorf("listed before the commit: %v", jobs)
		}
		close(hold)
		w.wait(<-answered, job.Succeeded)
	})
}

// slow is a store whose commits wait for a channel to be closed.
type slow struct {
	store.Store
	hold chan struct{}
}

func (s slow) Apply(ctx context.Context, b *store.Batch) error {
	<-s.hold
	return s.Store.Apply(ctx, b)
}

func TestAStoreThatFailsEndsTheScheduler(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := &gate{Store: memory.New()}
		w := &world{t: t, ctx: t.Context(), store: g, workers: map[string]*player{}}
		s, err := New(w.ctx, Config{Store: g, Connector: w})
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- s.Run(w.ctx) }()
		g.fail = errors.New("no space left on device")
		_, err = s.StartJob(w.ctx, admin(), plain(), "")
		wantErr(t, err, errs.Unavailable, "SHUTTING_DOWN")
		if err := <-ended; !errors.Is(err, g.fail) {
			t.Errorf("it ended with %v", err)
		}
		_, err = s.StartJob(w.ctx, admin(), plain(), "")
		wantErr(t, err, errs.Unavailable, "SHUTTING_DOWN")
		_, err = New(w.ctx, Config{Store: g, Connector: w})
		wantErr(t, err, errs.Internal, "STORE")
	})
}

// P16: submits are refused when too many wait; heartbeats have room of their own.
func TestAFullInboxRefusesSubmitsFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, err := New(t.Context(), Config{Store: memory.New()})
		if err != nil {
			t.Fatal(err)
		}
		for range inboxNormal {
			s.normal <- Event{Tick: true}
		}
		_, err = s.StartJob(t.Context(), admin(), plain(), "")
		wantErr(t, err, errs.Exhausted, "OVERLOADED")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = s.Register(ctx, Caller{Name: "w", Role: roleWorker}, registration("w", 1))
		if !errors.Is(err, context.DeadlineExceeded) || len(s.waiting) != 0 {
			t.Errorf("a registration: %v; %d wait for nothing", err, len(s.waiting))
		}
	})
}

// TestP16FramesOfWorkersShutOutNoHeartbeat: thousands of workers that all tell
// something wait for room; heartbeats are not refused meanwhile, and come first.
func TestP16FramesOfWorkersShutOutNoHeartbeat(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, err := New(t.Context(), Config{Store: memory.New()})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var wait sync.WaitGroup
		for range inboxFrames + 1 {
			wait.Go(func() { s.deliver(ctx, Event{Up: &UpEvent{}}) })
		}
		synctest.Wait()
		wait.Go(func() {
			if _, err := s.Register(ctx, Caller{Name: "w", Role: roleWorker}, registration("w", 1)); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("a registration is not let in: %v", err)
			}
		})
		synctest.Wait()
		round := s.gather(ctx, nil, nil)
		if len(round) != maxRound || !slices.ContainsFunc(round[:2], func(ev Event) bool { return ev.Register != nil }) {
			t.Errorf("the registration is not among the first of a round of %d", len(round))
		}
		wait.Wait()
	})
}

func TestALeaseThatRunsOut(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		p := w.join("w1", 1)
		id := w.run(args("run=60s"))
		w.wait(id, job.Running)
		p.cut()
		time.Sleep(DefaultLease + time.Second)
		if got := w.worker("w1"); got.State != registry.Offline || got.Running != 1 {
			t.Errorf("%v with %d jobs", got.State, got.Running)
		}
		if j := w.job(id); j.State != job.Running || j.UnreachableSince.IsZero() {
			t.Errorf("%v, unreachable since %v", j.State, j.UnreachableSince)
		}
		p.heal()
		time.Sleep(5 * time.Second) // a heartbeat, and the backoff of the link
		if j := w.job(id); !j.UnreachableSince.IsZero() || w.worker("w1").State != registry.Online {
			t.Errorf("worker %v, job unreachable since %v", w.worker("w1").State, j.UnreachableSince)
		}
		w.wait(id, job.Succeeded)
		if p.started(id) != 1 {
			t.Errorf("started %d times", p.started(id))
		}
		if log := w.log.String(); strings.Count(log, "worker cannot be reached") != 1 || !strings.Contains(log, "link is back") {
			t.Errorf("the trouble is to be logged once when it begins and once when it ends:\n%s", log)
		}
	})
}

// What the worker did while it was out of reach is known when it is back.
func TestAJobThatEndsOutOfReach(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		p := w.join("w1", 2)
		ends, reboots := w.run(args("run=5s", "code=4")), w.run(args("run=60s"))
		w.wait(reboots, job.Running)
		p.cut()
		time.Sleep(time.Minute / 2)
		w.wait(ends, job.Running)
		p.mu.Lock()
		kept := p.attempts[job.Key{Job: ends, Attempt: 1}]
		p.mu.Unlock()
		p.forgetAll("second boot")
		p.mu.Lock()
		p.attempts[job.Key{Job: ends, Attempt: 1}] = kept // in its journal
		p.mu.Unlock()
		p.heal()
		if j := w.wait(ends, job.Failed); *j.Result.ExitCode != 4 {
			t.Errorf("exit code %d", *j.Result.ExitCode)
		}
		if j := w.wait(reboots, job.Lost); j.Reason != job.ReasonReboot || j.Result.ExitCode != nil {
			t.Errorf("%s, exit code %v (P6)", j.Reason, j.Result.ExitCode)
		}
	})
}

func TestADrainLetsJobsEndAndTakesNone(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		w.join("w1", 4)
		id := w.run(args("run=5s"))
		d, err := w.s.Drain(w.ctx, "w1", Drain{Drain: true, Reason: "new disk"})
		if err != nil || d.State != registry.Draining || d.DrainReason != "new disk" {
			t.Fatalf("%+v, %v", d, err)
		}
		waits := w.run(args("run=1s"))
		if j := w.job(waits); j.State != job.Queued || j.Reason != job.ReasonWorkerDrained {
			t.Errorf("%v, %s", j.State, j.Reason)
		}
		w.wait(id, job.Succeeded)
		if _, err := w.s.Drain(w.ctx, "w1", Drain{}); err != nil {
			t.Fatal(err)
		}
		w.wait(waits, job.Succeeded)
		_, err = w.s.Drain(w.ctx, "nobody", Drain{Drain: true})
		wantErr(t, err, errs.NotFound, "WORKER_UNKNOWN")
		long := w.run(args("run=10h"))
		if _, err := w.s.Drain(w.ctx, "w1", Drain{Drain: true, After: time.Minute}); err != nil {
			t.Fatal(err)
		}
		if j := w.wait(long, job.Stopped); j.Reason != job.ReasonDrain {
			t.Errorf("stopped for %s", j.Reason)
		}
	})
}

func TestStops(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		w.join("w1", 1)
		id, queued := w.run(args("run=1h")), w.run(args())
		w.wait(id, job.Running)
		if j, err := w.s.StopJob(w.ctx, admin(), queued.String(), nil, true); err != nil || j.State != job.Stopped {
			t.Errorf("while it waits: %v, %v", j.State, err)
		}
		negative := -time.Second
		_, err := w.s.StopJob(w.ctx, admin(), id.String(), &negative, false)
		wantErr(t, err, errs.Invalid, "NEGATIVE")
		w.wait(id, job.Running)
		if j, err := w.s.StopJob(w.ctx, admin(), id.String(), nil, true); err != nil || j.State != job.Stopped || j.Reason != job.ReasonUser {
			t.Errorf("while it runs: %v, %v", j, err)
		}
		if j, err := w.s.StopJob(w.ctx, admin(), id.String(), nil, true); err != nil || j.State != job.Stopped {
			t.Errorf("twice: %v, %v", j, err)
		}
		_, err = w.s.StopJob(w.ctx, admin(), uuid.NewString(), nil, false)
		wantErr(t, err, errs.NotFound, "JOB_UNKNOWN")
	})
}

func TestAStopOutOfReachIsKept(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		p := w.join("w1", 1)
		id := w.run(args("run=10h"))
		w.wait(id, job.Running)
		p.cut()
		time.Sleep(time.Second)
		if j, err := w.s.StopJob(w.ctx, admin(), id.String(), nil, false); err != nil || j.State != job.Stopping {
			t.Fatalf("%v, %v", j.State, err)
		}
		ctx, cancel := context.WithTimeout(w.ctx, time.Minute)
		defer cancel()
		if _, err := w.s.Job(ctx, admin(), id.String(), true); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("it was waited for, and %v", err)
		}
		if len(w.s.hub.waiters) != 0 {
			t.Errorf("who gave up is still waited on")
		}
		w.restart()
		p.heal()
		w.wait(id, job.Stopped)
	})
}

func TestRemoveJobs(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		p := w.join("w1", 2)
		ended, err := w.s.StartJob(w.ctx, admin(), job.Spec{Command: "x", Args: []string{"run=1s"}}, "r")
		if err != nil {
			t.Fatal(err)
		}
		live := w.run(args("run=1h"))
		w.wait(ended, job.Succeeded)
		err = w.s.RemoveJobs(w.ctx, admin(), []string{ended.String(), live.String()})
		wantErr(t, err, errs.Precondition, "JOB_LIVE")
		w.wait(ended, job.Succeeded) // nothing is removed when one is not terminal
		if err := w.s.RemoveJobs(w.ctx, admin(), []string{ended.String()}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if len(p.forgets) != 1 || p.forgets[0] != (job.Key{Job: ended, Attempt: 1}) {
			t.Errorf("the worker was told to forget %v", p.forgets)
		}
		for _, ref := range []string{ended.String(), ended.String()[24:]} {
			_, err = w.s.Job(w.ctx, admin(), ref, false)
			wantErr(t, err, errs.NotFound, "JOB_UNKNOWN")
		}
		err = w.s.RemoveJobs(w.ctx, admin(), []string{ended.String()})
		wantErr(t, err, errs.NotFound, "JOB_UNKNOWN")
		if again, err := w.s.StartJob(w.ctx, admin(), plain(), "r"); err != nil || again == ended {
			t.Errorf("its request id is not free: %v, %v", again, err)
		}
	})
}

func TestWorkersActForThemselvesOnly(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		p := w.join("w1", 1)
		other := Caller{Name: "w2", Role: roleWorker}
		_, err := w.s.Register(w.ctx, admin(), registration("w1", 1))
		wantErr(t, err, errs.Denied, "ROLE")
		_, err = w.s.Heartbeat(w.ctx, other, Heartbeat{ID: p.id()})
		wantErr(t, err, errs.Denied, "WORKER_NAME")
		wantErr(t, w.s.Deregister(w.ctx, Caller{Name: "w1", Role: "admin"}, p.id()), errs.Denied, "WORKER_NAME")
		wantErr(t, w.s.Deregister(w.ctx, other, uuid.New()), errs.NotFound, "WORKER_UNKNOWN")
		second := registration("w1", 1)
		second.InstanceID = "two"
		_, err = w.s.Register(w.ctx, p.by, second)
		wantErr(t, err, errs.Exists, "NAME_TAKEN")
		second.Labels = map[string]string{"a b": "c"}
		_, err = w.s.Register(w.ctx, p.by, second)
		wantErr(t, err, errs.Invalid, "LABEL")
		r, err := w.s.Register(w.ctx, p.by, p.reg)
		if err != nil || r.Term != w.s.Term() || r.Lease != DefaultLease || r.Heartbeat != DefaultHeartbeat || r.Worker.Name != "w1" {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

func TestAWorkerThatLeaves(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		p := w.join("w1", 1)
		id := w.run(args("run=1h"))
		w.wait(id, job.Running)
		wantErr(t, w.s.RemoveWorker(w.ctx, admin(), "w1"), errs.Precondition, "WORKER_ONLINE")
		p.cut()
		if err := w.s.Deregister(w.ctx, p.by, p.id()); err != nil {
			t.Fatal(err)
		}
		if got := w.worker("w1"); got.State != registry.Deregistered {
			t.Errorf("it is %v", got.State)
		}
		if _, _, got, err := w.s.Locate(w.ctx, admin(), id.String(), 0); err != nil || got.Name != "w1" {
			t.Errorf("located at %q, %v", got.Name, err)
		}
		if err := w.s.RemoveWorker(w.ctx, admin(), "w1"); err != nil {
			t.Fatal(err)
		}
		w.wait(id, job.Lost)
		_, _, _, err := w.s.Locate(w.ctx, admin(), id.String(), 0)
		wantErr(t, err, errs.NotFound, "WORKER_GONE")
		wantErr(t, w.s.RemoveWorker(w.ctx, admin(), "w1"), errs.NotFound, "WORKER_UNKNOWN")
		if _, _, got, err := w.s.Locate(w.ctx, admin(), w.run(args()).String(), 0); err != nil || got.ID != uuid.Nil {
			t.Errorf("a job that waits is located at %v, %v", got, err)
		}
		w.restart()
		if all, _, err := workersOf(w.ctx, w.s, nil, 0, ""); len(all) != 0 || err != nil {
			t.Errorf("%v, %v", all, err)
		}
	})
}

func TestAWorkerThatKnowsANewerSchedulerIsNotCommanded(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		p := w.join("w1", 1)
		p.cut()
		p.mu.Lock()
		p.term = 99
		p.mu.Unlock()
		p.heal()
		time.Sleep(time.Second) // its session has ended, and the next is refused
		id := w.run(args("run=1s"))
		time.Sleep(time.Minute)
		if p.started(id) != 0 || w.job(id).State != job.Queued {
			t.Errorf("%v, started %d times (P3)", w.job(id).State, p.started(id))
		}
		if log := w.log.String(); strings.Count(log, "refuses this scheduler") != 1 {
			t.Errorf("logged:\n%s", log)
		}
		if err := w.end(); err != nil {
			t.Fatal(err)
		}
		wantErr(t, SetTerm(w.ctx, w.store, 0), errs.Invalid, "TERM")
		if err := SetTerm(w.ctx, w.store, 100); err != nil {
			t.Fatal(err)
		}
		w.begin()
		if w.s.Term() != 100 {
			t.Errorf("term %d", w.s.Term())
		}
		w.wait(id, job.Succeeded)
	})
}
