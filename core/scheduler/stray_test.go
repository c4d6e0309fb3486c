package scheduler

import (
	"slices"
	"testing"
	"time"

	"github.com/droverhq/drover/core/job"
)

// TestP5_AttemptThatWasGivenUp_IsStoppedBeforeTheNext: a worker that an operator had
// removed came back and went on with what it ran, uncounted, beside the retry.
func TestP5_AttemptThatWasGivenUp_IsStoppedBeforeTheNext(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		w := d.worker("w", 1)
		id := d.submit(job.Spec{Command: "sleep", Retry: job.Retry{Max: 1, OnLost: true}})
		d.report(d.says(id, job.Running))
		running := d.says(id, job.Running)
		d.cut(w)
		d.pass(2 * testLease)
		d.ask(Event{Remove: &w})
		d.want(id, job.Queued, reasonRetry)
		d.register("w", 1)
		d.hello(w, "boot", running)
		if got := kinds(d.last); !slices.Contains(got, "stop/1") || slices.Contains(got, "start/2") {
			t.Fatalf("effects %q", got)
		}
		d.want(id, job.Queued, reasonRetry)
		if got, _ := d.m.workers.Get(w); got.Running != 1 {
			t.Errorf("%d slots are taken", got.Running)
		}
		d.cut(w)
		d.hello(w, "boot", running)
		if got := kinds(d.last); !slices.Contains(got, "stop/1") {
			t.Fatalf("in the next session: effects %q", got)
		}
		stopped := running
		stopped.Sequence, stopped.State, stopped.StopProof = running.Sequence+1, job.Stopped, &job.StopProof{Method: "x", Killed: 1, Took: time.Second}
		d.frame(w, Up{Reports: []job.Report{stopped}})
		if got := kinds(d.last); !slices.Contains(got, "start/2") || !slices.Contains(got, "ack/1") {
			t.Errorf("effects %q", got)
		}
		d.want(id, job.Dispatched, "")
	})
}

// TestP4_StrayOfAnEndedJob_IsStoppedAndItsEndIsRecorded: without a retry.
func TestP4_StrayOfAnEndedJob_IsStoppedAndItsEndIsRecorded(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		id := d.running(plain())
		w := d.job(id).Worker
		running := d.says(id, job.Running)
		d.cut(w)
		d.pass(2 * testLease)
		d.ask(Event{Remove: &w})
		d.want(id, job.Lost, job.ReasonWorkerGone)
		d.register("w", 1)
		d.hello(w, "boot", running)
		if next := d.submit(plain()); d.job(next).State != job.Queued {
			t.Error("the slot of a stray is given to another job")
		}
		stopped := running
		stopped.Sequence, stopped.State, stopped.StopProof = running.Sequence+1, job.Stopped, &job.StopProof{Method: "x"}
		d.frame(w, Up{Reports: []job.Report{stopped}})
		d.want(id, job.Lost, job.ReasonWorkerGone)
		if d.job(id).Result.StopProof == nil {
			t.Error("the proof is not recorded")
		}
	})
}

// TestP3_ReportOfAnUnknownJob_IsNotAcknowledged nor stopped: the records may be older than
// the job.
func TestP3_ReportOfAnUnknownJob_IsNotAcknowledged(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		w := d.worker("w", 1)
		for _, s := range []job.State{job.Running, job.Succeeded} {
			d.frame(w, Up{Reports: []job.Report{{Key: job.Key{Job: job.ID{9}, Attempt: 1}, Sequence: 1, State: s}}})
			d.wantKinds("worker ONLINE")
		}
		id := d.submit(plain())
		later := d.says(id, job.Succeeded)
		later.Attempt = 7 // of a later time than these records
		d.frame(w, Up{Reports: []job.Report{later}})
		d.wantKinds("worker ONLINE")
		d.want(id, job.Dispatched, "")
	})
}

// TestAStopKeepsItsGraceOverARestart: the order was rebuilt without it.
func TestAStopKeepsItsGraceOverARestart(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		id := d.running(plain())
		w, grace := d.job(id).Worker, 50*time.Second
		d.ask(Event{Stop: &Stop{ID: id, Grace: &grace, Reason: job.ReasonUser}})
		d.restart()
		d.register("w", 1)
		d.hello(w, "boot", d.says(id, job.Stopping))
		for _, e := range d.last {
			if e.Send != nil && len(e.Send.Down.Stops) == 1 {
				if g := e.Send.Down.Stops[0].Grace; g == nil || *g != grace {
					t.Errorf("the grace is %v", g)
				}
				return
			}
		}
		t.Errorf("no stop is ordered: %q", kinds(d.last))
	})
}

// TestP5_OrderIsTakenBackWhileAStrayRuns_TheJobWaits: what was told of while an order was on
// its way holds back the next one, too.
func TestP5_OrderIsTakenBackWhileAStrayRuns_TheJobWaits(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		w := d.worker("w", 2)
		id := d.submit(job.Spec{Command: "sleep", Retry: job.Retry{Max: 1, OnLost: true}})
		running := d.says(id, job.Running)
		d.report(running)
		d.cut(w)
		d.pass(2 * testLease)
		d.ask(Event{Remove: &w})
		mute := d.worker("mute", 1)
		d.want(id, job.Dispatched, "") // before the worker is back
		d.register("w", 2)
		d.hello(w, "boot", running)
		d.cut(mute)
		d.step(Event{Unsent: &Unsent{Worker: mute, Keys: []job.Key{{Job: id, Attempt: 2}}}})
		d.want(id, job.Queued, reasonRetry)
		stopped := running
		stopped.Sequence, stopped.State = running.Sequence+1, job.Stopped
		d.frame(w, Up{Reports: []job.Report{stopped}})
		d.want(id, job.Dispatched, "")
	})
}
