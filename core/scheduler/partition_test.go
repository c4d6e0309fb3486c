package scheduler

import (
	"context"
	"testing"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

// leased is a job that stops when its worker is cut off.
func leased(retries uint32) job.Spec {
	return job.Spec{
		Command: "sleep", Grace: 5 * time.Second, OnPartition: job.StopItself,
		Retry: job.Retry{Max: retries, OnLost: retries > 0},
	}
}

// wait is how long the desk's scheduler has to wait for such a job: 1.1 times
// lease and grace, and 10 s, spelled out on purpose.
const wait = (10+5)*1100*time.Millisecond + 10*time.Second

// TestP4GivenUpOnlyWhenSurelyStopped: the wait counts from the last contact with
// the worker, not a moment less, and only jobs that asked for it are given up.
func TestP4GivenUpOnlyWhenSurelyStopped(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		spec   job.Spec
		before func(d *desk, id job.ID)
		wait   time.Duration // after before, until it is LOST; 0 never
	}{
		{"running", leased(0), func(*desk, job.ID) {}, wait},
		{"after a heartbeat", leased(0), func(d *desk, id job.ID) { d.pass(9 * time.Second); d.beat(d.job(id).Worker) }, wait},
		{"after it was offline, and back", leased(0), func(d *desk, id job.ID) { d.pass(20 * time.Second); d.beat(d.job(id).Worker) }, wait},
		{"its user stops it", leased(3), func(d *desk, id job.ID) { d.stop(id) }, wait},
		{"the scheduler is restarted", leased(0), func(d *desk, _ job.ID) { d.pass(24 * time.Second); d.restart() }, wait},
		{"the worker has left", leased(0), func(d *desk, id job.ID) { w := d.job(id).Worker; d.ask(Event{Deregister: &w}) }, wait},
		{"it did not ask for it", plain(), func(*desk, job.ID) {}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			id := d.running(c.spec)
			c.before(d, id)
			if c.wait == 0 {
				d.pass(1000 * time.Hour)
				d.want(id, job.Running, "")
				return
			}
			d.pass(c.wait - time.Nanosecond)
			if s := d.job(id).State; s.Terminal() {
				t.Fatalf("it is %v before its worker has surely stopped it", s)
			}
			d.pass(time.Nanosecond)
			d.want(id, job.Lost, job.ReasonPartition)
		})
	}
}

// TestP4AnEarlierLongerLeaseCounts: what a scheduler with a longer lease has
// given, its next life must wait for, whatever its own lease is.
func TestP4AnEarlierLongerLeaseCounts(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	id := d.running(leased(0))
	d.m = NewMachine(2, time.Second)
	if err := d.records.load(context.Background(), loadWorkersInto(d.m, d.now), loadInto(d.m, d.now)); err != nil {
		t.Fatal(err)
	}
	d.register("w", 1) // it is heard of, and perhaps does not hear the answer
	d.pass(wait - time.Nanosecond)
	d.want(id, job.Running, "")
	d.pass(time.Nanosecond)
	d.want(id, job.Lost, job.ReasonPartition)
}

// TestP5WhatWasCutOffIsTriedAgain: by the policy for lost attempts, elsewhere,
// and what comes later from the first worker changes nothing.
func TestP5WhatWasCutOffIsTriedAgain(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	id := d.running(leased(1))
	old := d.says(id, job.Stopped)
	old.Reason = job.ReasonPartition
	d.pass(wait)
	d.want(id, job.Queued, job.ReasonNoWorker)
	d.worker("other", 1)
	if j := d.job(id); j.WorkerName != "other" || j.Attempt != 2 {
		t.Fatalf("attempt %d on %q", j.Attempt, j.WorkerName)
	}
	d.report(d.says(id, job.Running))
	d.register("w", 1)
	d.hello(workerID("w"), "boot", old)
	d.want(id, job.Running, "")
	d.report(d.exits(id, 0))
	d.want(id, job.Succeeded, "")
}

// TestAWorkerThatIsBackInTimeTellsItself: its own word settles the attempt, and
// the policy for lost attempts counts for it.
func TestAWorkerThatIsBackInTimeTellsItself(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		retries uint32
		asked   bool // a user wanted it stopped
		state   job.State
		reason  string
	}{
		{"without a policy", 0, false, job.Stopped, job.ReasonPartition},
		{"with one", 1, false, job.Dispatched, ""},
		{"with one, and a user's stop", 1, true, job.Stopped, job.ReasonUser},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			id := d.running(leased(c.retries))
			r := d.says(id, job.Stopped)
			r.Reason = job.ReasonPartition
			if c.asked {
				d.stop(id)
				r.Reason = job.ReasonUser
			}
			d.pass(wait - time.Second)
			d.register("w", 1)
			d.hello(workerID("w"), "boot", r)
			d.pass(time.Nanosecond) // a retry is made at once, in the next step
			d.want(id, c.state, c.reason)
		})
	}
}

// TestOrdersNameTheLease: an order that is late over a lapse is known by it.
func TestOrdersNameTheLease(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	w := d.worker("w", 4)
	d.ask(Event{Heartbeat: &Heartbeat{ID: w, Lapses: 7}})
	for _, c := range []struct {
		spec job.Spec
		want uint64
	}{{leased(0), 7}, {plain(), 0}} {
		d.submit(c.spec)
		for _, e := range d.last {
			if e.Send != nil && e.Send.Down.Starts[0].Lapses != c.want {
				t.Errorf("an order of lease %d, want %d", e.Send.Down.Starts[0].Lapses, c.want)
			}
		}
	}
}

func TestAGraceThatNobodyCanWaitFor(t *testing.T) {
	t.Parallel()
	s := leased(0)
	s.Grace = 2 * time.Hour
	if err := validate(&s, ""); errs.ReasonOf(err) != "OUT_OF_RANGE" {
		t.Errorf("a grace of 2 h: %v", err)
	}
	s.OnPartition = job.KeepRunning
	if err := validate(&s, ""); err != nil {
		t.Errorf("a grace of 2 h without it: %v", err)
	}
}
