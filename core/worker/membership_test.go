package worker

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

// registrar plays the scheduler of the membership loop.
type registrar struct {
	mu       sync.Mutex
	down     bool
	unknown  bool          // heartbeats find no such worker
	every    time.Duration // that the answer to a heartbeat asks for
	regs     []Registration
	beats    []Beat
	left     []job.WorkerID
	arrivals []time.Time
}

func (r *registrar) Register(_ context.Context, g Registration) (Registered, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.arrivals = append(r.arrivals, time.Now())
	if r.down {
		return Registered{}, errs.E("register", errs.Unavailable, "", errors.New("connection refused"))
	}
	r.regs = append(r.regs, g)
	r.unknown = false
	return Registered{WorkerID: testWorkerID(), Term: 1, Lease: 15 * time.Second, Heartbeat: 5 * time.Second}, nil
}

func (r *registrar) Heartbeat(_ context.Context, b Beat) (Renewal, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.beats = append(r.beats, b)
	switch {
	case r.down:
		return Renewal{}, errs.E("heartbeat", errs.Unavailable, "", errors.New("connection refused"))
	case r.unknown:
		return Renewal{}, errs.E("heartbeat", errs.NotFound, "WORKER_UNKNOWN", nil)
	}
	return Renewal{Term: 1, Lease: 15 * time.Second, Heartbeat: r.every}, nil
}

func (r *registrar) Deregister(_ context.Context, id job.WorkerID) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.left = append(r.left, id)
	r.unknown = true
	return nil
}

func (r *registrar) set(f func(*registrar)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(r)
}

// lines is a log that may be read while it is written.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func with(r *registrar) option {
	return func(c *Config) {
		c.Scheduler, c.Address, c.Labels = r, "127.0.0.1:7430", map[string]string{"zone": "a"}
	}
}

func TestMembership(t *testing.T) {
	r := &registrar{}
	story(t, func(t *testing.T, b *bench) {
		synctest.Wait()
		if g := r.regs[0]; g.WorkerID != (job.WorkerID{}) || g.Address != "127.0.0.1:7430" || g.Slots != 4 ||
			g.Labels["zone"] != "a" || g.BootID != "boot-1" || g.InstanceID == "" || len(g.Runners) != 1 || g.Commands[0] != "true" {
			t.Errorf("registration %+v", g)
		}
		if id, ok := b.ID(); !ok || id != testWorkerID() {
			t.Errorf("id %v %v", id, ok)
		}
		b.start(order(1))
		time.Sleep(time.Minute)
		r.mu.Lock()
		if n := len(r.beats); n < 10 || n > 14 {
			t.Errorf("%d heartbeats in a minute", n)
		}
		if last := r.beats[len(r.beats)-1]; last.WorkerID != testWorkerID() || last.Running != 1 || len(last.Conditions) != 1 {
			t.Errorf("heartbeat %+v", last)
		}
		r.unknown = true
		r.mu.Unlock()
		time.Sleep(10 * time.Second)
		r.mu.Lock()
		if len(r.regs) != 2 || r.regs[1].WorkerID != testWorkerID() {
			t.Errorf("after NOT_FOUND: %+v", r.regs)
		}
		r.mu.Unlock()
		if _, err := b.Stop(t.Context(), stopOrder(1, 0), true); err != nil {
			t.Fatal(err)
		}
	}, with(r))
}

// TestTheSchedulerSetsThePace: it may change its mind with any heartbeat, and one
// that says nothing of it, as older ones do, means what it said before.
func TestTheSchedulerSetsThePace(t *testing.T) {
	r := &registrar{}
	story(t, func(t *testing.T, _ *bench) {
		perMinute := func(every time.Duration) int {
			r.set(func(r *registrar) { r.every = every })
			time.Sleep(20 * time.Second) // one heartbeat at the old pace
			n := 0
			r.set(func(r *registrar) { n -= len(r.beats) })
			time.Sleep(time.Minute)
			r.set(func(r *registrar) { n += len(r.beats) })
			return n
		}
		for _, c := range []struct {
			every       time.Duration
			least, most int
		}{{0, 10, 14}, {15 * time.Second, 3, 5}, {0, 3, 5}, {time.Second, 54, 67}, {5 * time.Second, 10, 14}} {
			if n := perMinute(c.every); n < c.least || n > c.most {
				t.Errorf("%d heartbeats in a minute, asked for one every %v", n, c.every)
			}
		}
	}, with(r))
}

// TestASlowRhythmIsQuickAfterAFailure: P15. A worker that the scheduler of a large
// cluster hears every ten seconds, or less often, is back within five.
func TestASlowRhythmIsQuickAfterAFailure(t *testing.T) {
	t.Parallel()
	r := NewRhythm(time.Second)
	between := func(least, most time.Duration, told time.Duration, err error) {
		t.Helper()
		if got := r.Next(told, err); got < least || got > most {
			t.Errorf("it waits %v, want %v to %v", got, least, most)
		}
	}
	between(900*time.Millisecond, 1100*time.Millisecond, 0, nil)
	between(54*time.Second, 66*time.Second, time.Minute, nil)
	for range 2 {
		between(180*time.Millisecond, 220*time.Millisecond, 0, io.EOF)
		for range 20 {
			between(360*time.Millisecond, 5*time.Second, 0, io.EOF)
		}
		between(54*time.Second, 66*time.Second, 0, nil)
	}
	r = NewRhythm(100 * time.Millisecond) // and never slower than without
	for range 5 {
		between(90*time.Millisecond, 110*time.Millisecond, 0, io.EOF)
	}
}

func TestRegistrationIsTriedForEverAndSaidOnce(t *testing.T) {
	r := &registrar{down: true}
	said := &lines{}
	story(t, func(t *testing.T, _ *bench) {
		time.Sleep(10 * time.Minute)
		r.set(func(r *registrar) {
			if n := len(r.arrivals); n < 100 {
				t.Errorf("%d tries in ten minutes", n)
			}
			for i := range r.arrivals[1:] {
				// P15: after the scheduler is back, within 5 s.
				if gap := r.arrivals[i+1].Sub(r.arrivals[i]); gap > 5*time.Second {
					t.Errorf("%s between two tries", gap)
				}
			}
			r.down = false
		})
		time.Sleep(10 * time.Second)
		r.set(func(r *registrar) { r.down = true })
		time.Sleep(time.Minute)
		r.set(func(r *registrar) { r.down = false })
		time.Sleep(time.Minute)
		text := said.String()
		for line, want := range map[string]int{`"not registered"`: 1, "msg=registered": 1, "heartbeat not delivered": 1, "heartbeats arrive again": 1} {
			if got := strings.Count(text, line); got != want {
				t.Errorf("%d lines of %s in:\n%s", got, line, text)
			}
		}
	}, with(r), func(c *Config) { c.Log = slog.New(slog.NewTextHandler(said, nil)) })
}

func TestDrainWaitsAndLeaves(t *testing.T) {
	r := &registrar{}
	story(t, func(t *testing.T, b *bench) {
		b.start(order(1, "run=20s"))
		b.start(order(2))
		b.wait(1, job.Running)
		p := b.connect(1)
		drained := make(chan error, 1)
		began := time.Now()
		go func() { drained <- b.Drain(t.Context(), 30*time.Second) }()
		time.Sleep(time.Second)
		if _, err := b.Start(t.Context(), order(3)); errs.ReasonOf(err) != job.ReasonWorkerDrained {
			t.Errorf("an order while draining: %v", err)
		}
		// An order that was on its way when the scheduler had not heard is taken.
		p.down <- Down{Starts: []job.StartOrder{order(4, "run=1s")}}
		r.set(func(r *registrar) {
			if !r.beats[len(r.beats)-1].Draining {
				t.Error("the scheduler was not told")
			}
		})
		time.Sleep(30 * time.Second)
		if p.state(1) != job.Succeeded || p.state(4) != job.Succeeded {
			t.Errorf("states %s %s", p.state(1), p.state(4))
		}
		if x := p.report(2); x.State != job.Stopped || x.Reason != job.ReasonDrain {
			t.Errorf("%+v", x)
		}
		p.down <- Down{Starts: []job.StartOrder{order(5)}, Acks: []job.Key{testKey(1), testKey(2), testKey(4)}}
		synctest.Wait()
		if x := p.report(5); x.State != job.Rejected || x.Reason != job.ReasonWorkerDrained {
			t.Errorf("an order at the end: %+v", x)
		}
		p.down <- Down{Acks: []job.Key{testKey(5)}}
		if err := <-drained; err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 40*time.Second {
			t.Errorf("it took %s", took)
		}
		r.set(func(r *registrar) {
			if len(r.left) != 1 {
				t.Errorf("deregistered %v", r.left)
			}
		})
		p.close(t)
		b.clean()
	}, with(r))
}

// TestALeaverStaysAway: no heartbeat that finds it deregistered brings it back.
func TestALeaverStaysAway(t *testing.T) {
	r := &registrar{}
	story(t, func(t *testing.T, b *bench) {
		synctest.Wait()
		for range 2 { // a second drain changes nothing
			if err := b.Drain(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
		}
		r.set(func(r *registrar) {
			if len(r.regs) != 1 {
				t.Errorf("it registered %d times", len(r.regs))
			}
		})
	}, with(r))
}

func TestDrainAtOnceStopsAll(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		b.start(order(1))
		b.wait(1, job.Running)
		if err := b.Drain(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		if x := b.wait(1, job.Stopped); x.Reason != job.ReasonDrain {
			t.Errorf("%+v", x)
		}
		b.clean()
	})
}

func TestDrainGivesUpWithItsContext(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		b.start(order(1))
		b.wait(1, job.Running)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := b.Drain(ctx, -1); errs.KindOf(err) != errs.Canceled && errs.KindOf(err) != errs.Timeout {
			t.Errorf("%v", err)
		}
		time.Sleep(time.Minute) // nothing that was asked for arrives late
		if r, err := b.Attempt(t.Context(), testKey(1)); err != nil || r.State != job.Running {
			t.Errorf("the job that was left alone is %s, %v", r.State, err)
		}
	})
}

func TestCallsOfAnEndingWorkerAreAnswered(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := begin(t, newWorld(), data)
		<-b.ready
		b.crash()
		if _, err := b.Start(t.Context(), order(1)); errs.KindOf(err) != errs.Unavailable {
			t.Errorf("start: %v", err)
		}
		if err := b.Session(t.Context(), SessionHello{}, nil, nil); err == nil {
			t.Error("a session was opened")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		idle, err := New(Config{Name: "w2", Data: t.TempDir(), Feed: NewFeed(), Environ: []string{}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := idle.Start(ctx, order(1)); errs.KindOf(err) != errs.Timeout {
			t.Errorf("start of a worker that does not run: %v", err)
		}
	})
}
