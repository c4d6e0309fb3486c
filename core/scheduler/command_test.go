package scheduler

import (
	"testing"
	"time"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
)

// TestP16_WorkerWithoutASession_GetsNoJob: it renews its lease and looks idle, so that
// it drew every job, and kept them.
func TestP16_WorkerWithoutASession_GetsNoJob(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		mute, free := d.register("a", 9), d.worker("b", 1)
		if id := d.submit(plain()); d.job(id).Worker != free {
			t.Errorf("it is given to %s", d.job(id).WorkerName)
		}
		waits := d.submit(job.Spec{Command: "sleep", QueueTimeout: time.Minute})
		d.want(waits, job.Queued, job.ReasonConnecting)
		for range 12 {
			d.pass(5 * time.Second)
			d.beat(mute)
			d.beat(free)
		}
		d.want(waits, job.Rejected, job.ReasonQueueTimeout)
		if w, _ := d.m.workers.Get(mute); w.State != registry.Online || w.Trouble.Type != registry.NoSession {
			t.Errorf("the worker is %v with %+v", w.State, w.Trouble)
		}
		d.hello(mute, "boot")
		if w, _ := d.m.workers.Get(mute); w.Trouble.Type != "" {
			t.Errorf("with a session it has %+v", w.Trouble)
		}
		if id := d.submit(plain()); d.job(id).Worker != mute {
			t.Errorf("with a session it is given to %q", d.job(id).WorkerName)
		}
	})
}

// TestP4_WorkerLosesItsSession_ItsJobsAreOutOfReach: its lease says nothing of that.
func TestP4_WorkerLosesItsSession_ItsJobsAreOutOfReach(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		id := d.running(plain())
		w := d.job(id).Worker
		reachable := func(want bool) {
			t.Helper()
			if got := d.job(id).UnreachableSince.IsZero(); got != want {
				t.Errorf("reachable: %t, want %t", got, want)
			}
		}
		d.cut(w)
		for range 2 {
			reachable(true) // sessions come back
			d.pass(testLease/2 - 1)
			d.beat(w)
		}
		d.pass(2)
		reachable(false)
		d.want(id, job.Running, "")
		r := d.says(id, job.Running)
		d.hello(w, "boot", r)
		reachable(true)
	})
}

// TestP5_OrderThatWasNeverSent_IsMadeElsewhere and costs no attempt.
func TestP5_OrderThatWasNeverSent_IsMadeElsewhere(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		first, second := d.worker("a", 1), d.worker("b", 1)
		id := d.submit(plain())
		key := job.Key{Job: id, Attempt: 1}
		d.cut(first)
		d.step(Event{Unsent: &Unsent{Worker: first, Keys: []job.Key{key}}})
		if j := d.job(id); j.State != job.Dispatched || j.Worker != second || j.Attempt != 1 {
			t.Errorf("%v on %s, attempt %d", j.State, j.WorkerName, j.Attempt)
		}
		// Once an order has been made again, an earlier copy of it may be on its way.
		d.cut(second)
		d.hello(second, "boot")
		d.wantKinds("start/1")
		d.step(Event{Unsent: &Unsent{Worker: second, Keys: []job.Key{key}}})
		if j := d.job(id); j.State != job.Dispatched || j.Worker != second {
			t.Errorf("%v on %s", j.State, j.WorkerName)
		}
	})
}

// TestP4_UnsentOrderIsRequeuedWhileItsWorkerIsOffline_ItsPartitionDeadlineIsGone: the
// deadline after which the job would be given up was taken for a queue timeout.
func TestP4_UnsentOrderIsRequeuedWhileItsWorkerIsOffline_ItsPartitionDeadlineIsGone(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		w := d.worker("w", 1)
		id := d.submit(job.Spec{Command: "sleep", OnPartition: job.StopItself})
		d.pass(testLease)
		d.step(Event{Unsent: &Unsent{Worker: w, Keys: []job.Key{{Job: id, Attempt: 1}}}})
		d.pass(time.Hour)
		d.want(id, job.Queued, job.ReasonNoWorker)
	})
}
