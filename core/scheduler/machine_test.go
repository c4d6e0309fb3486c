package scheduler

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
)

// TestEveryReportInEveryState spells what each report makes of a job in each
// live state (docs/contract.md). Reports are states: one between may be
// missed, so a legal way with a gap is taken as a whole.
func TestEveryReportInEveryState(t *testing.T) {
	t.Parallel()
	const refused = "refused"
	for _, c := range []struct {
		from, says job.State
		want       string // states that are recorded, in order
	}{
		{job.Dispatched, job.Dispatched, "DISPATCHED"},
		{job.Dispatched, job.Running, "RUNNING"},
		{job.Dispatched, job.Stopping, "STOPPING"},
		{job.Dispatched, job.Succeeded, "SUCCEEDED"},
		{job.Dispatched, job.Failed, "FAILED"},
		{job.Dispatched, job.Stopped, "STOPPING STOPPED"},
		{job.Dispatched, job.Rejected, "REJECTED"},
		{job.Dispatched, job.Lost, "LOST"},
		{job.Running, job.Dispatched, "RUNNING"},
		{job.Running, job.Running, "RUNNING"},
		{job.Running, job.Stopping, "STOPPING"},
		{job.Running, job.Succeeded, "SUCCEEDED"},
		{job.Running, job.Failed, "FAILED"},
		{job.Running, job.Stopped, "STOPPING STOPPED"},
		{job.Running, job.Rejected, refused},
		{job.Running, job.Lost, "LOST"},
		{job.Running, job.None, refused},
		{job.Running, job.Queued, refused},
		{job.Stopping, job.Dispatched, "STOPPING"},
		{job.Stopping, job.Running, "STOPPING"},
		{job.Stopping, job.Stopping, "STOPPING"},
		{job.Stopping, job.Succeeded, "SUCCEEDED"},
		{job.Stopping, job.Failed, "FAILED"},
		{job.Stopping, job.Stopped, "STOPPED"},
		{job.Stopping, job.Rejected, "STOPPED"}, // the tombstone of the stop refused the start
		{job.Stopping, job.Lost, "LOST"},
	} {
		t.Run(c.from.String()+" "+c.says.String(), func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			d.worker("w", 1)
			id := d.submit(plain())
			switch c.from {
			case job.Running:
				d.report(d.says(id, job.Running))
			case job.Stopping:
				d.stop(id)
			}
			before := d.job(id)
			if before.State != c.from {
				t.Fatalf("the test begins in %v", before.State)
			}
			r := d.says(id, c.says)
			var states []string
			told := ""
			for _, e := range d.report(r) {
				if e.Put != nil {
					states = append(states, e.Put.State.String())
				}
				told += e.Unexpected
			}
			if c.want == refused {
				if after := d.job(id); !cmp.Equal(before, after) || told == "" || d.m.jobs[id].Result.Sequence == r.Sequence {
					t.Errorf("an illegal step was taken, or taken in silence: %+v, %q", after, told)
				}
				return
			}
			if got := strings.Join(states, " "); got != c.want || told != "" {
				t.Errorf("recorded %q, want %q (%s)", got, c.want, told)
			}
		})
	}
}

func TestTerminalStatesNeverChange(t *testing.T) {
	t.Parallel()
	for end := job.Succeeded; end <= job.Lost; end++ {
		t.Run(end.String(), func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			w := d.worker("w", 1)
			id := d.submit(plain())
			d.report(d.says(id, end))
			before := d.job(id)
			if before.State != end {
				t.Fatalf("%v instead of %v", before.State, end)
			}
			for s := job.Dispatched; s <= job.Lost; s++ {
				d.frame(w, Up{Reports: []job.Report{d.says(id, s)}})
			}
			d.stop(id)
			d.hello(w, "another boot")
			d.ask(Event{Deregister: &w})
			d.ask(Event{Remove: &w})
			d.pass(time.Hour)
			if diff := cmp.Diff(before, d.job(id)); diff != "" {
				t.Errorf("it changed: %s", diff)
			}
			if w, ok := d.m.workers.Get(w); ok && w.Running != 0 {
				t.Errorf("it still takes %d slots", w.Running)
			}
		})
	}
}

// TestP6AStateOfALaterVersionIsNone of this one's: the job stays as it is and says why,
// the report is not acknowledged, and the first that is understood settles it.
func TestP6AStateOfALaterVersionIsNone(t *testing.T) {
	for _, s := range []job.State{job.Lost + 1, 256 + job.Succeeded, 256 + job.Running, -1} {
		t.Run(s.String(), func(t *testing.T) {
			desks(t, func(t *testing.T, d *desk) {
				id := d.running(plain())
				w := d.job(id).Worker
				strange := d.says(id, s)
				d.report(strange)
				d.wantKinds(fmt.Sprintf("job %s: its worker w reports state %d, which this scheduler does not know: the worker is newer than the scheduler", id, s), "RUNNING")
				d.want(id, job.Running, job.ReasonOldScheduler)
				d.report(strange)
				d.wantKinds() // said once
				d.hello(w, "boot", strange)
				d.want(id, job.Running, job.ReasonOldScheduler) // known to the worker: not LOST
				d.report(d.says(id, job.Running))
				d.want(id, job.Running, "")
				d.report(d.exits(id, 0))
				d.want(id, job.Succeeded, "")
			})
		})
	}
}

func TestAFinalReportIsAcknowledgedEachTime(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		id := d.running(plain())
		r := d.exits(id, 0)
		d.report(r)
		d.wantKinds("SUCCEEDED", "ack/1")
		d.report(r) // the first ack was lost with the link
		d.wantKinds("ack/1")
		d.want(id, job.Succeeded, "")
	})
}

func TestAStartThatIsConfirmedTwiceChangesNothing(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		d.worker("w", 1)
		id := d.submit(plain())
		d.wantKinds("start/1", "new DISPATCHED", "answer")
		started := d.says(id, job.Running)
		d.report(started)
		before := d.job(id)
		d.report(started)
		d.wantKinds()
		older := started
		older.Sequence, older.State = 0, job.Failed
		d.report(older)
		d.wantKinds("ack/1")
		if diff := cmp.Diff(before, d.job(id)); diff != "" {
			t.Errorf("it changed: %s", diff)
		}
	})
}

func TestReportsOfAnotherAttemptOrWorkerAreHistory(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		w, other := d.worker("w", 1), d.worker("x", 1)
		id := d.submit(job.Spec{Command: "sleep", Worker: "w", Retry: job.Retry{Max: 1, OnFailure: true}})
		first := d.says(id, job.Running)
		d.report(d.exits(id, 1))
		d.pass(0)
		d.want(id, job.Dispatched, "")
		if a := d.job(id).Attempt; a != 2 {
			t.Fatalf("attempt %d", a)
		}
		before := d.job(id)
		first.Sequence = 1000
		d.frame(w, Up{Reports: []job.Report{first}}) // an old attempt: it must not run any more
		d.wantKinds("stop/1")
		first.State = job.Failed
		d.frame(w, Up{Reports: []job.Report{first}}) // its end is acknowledged, so that the worker may forget it
		d.wantKinds("ack/1")
		d.frame(other, Up{Reports: []job.Report{d.says(id, job.Succeeded)}}) // not its worker
		if diff := cmp.Diff(before, d.job(id)); diff != "" {
			t.Errorf("it changed: %s", diff)
		}
	})
}

func TestFramesOfAnOlderLinkAreDropped(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		id := d.running(plain())
		w, old := d.job(id).Worker, d.link
		d.hello(w, "boot", d.says(id, job.Running))
		d.step(Event{Up: &UpEvent{Worker: w, Link: old, Up: Up{Reports: []job.Report{d.exits(id, 7)}}}})
		d.wantKinds()
		d.step(Event{Up: &UpEvent{Worker: w, Link: old, Closed: true}})
		d.want(id, job.Running, "")
		if d.stop(id); !cmp.Equal(kinds(d.last), []string{"STOPPING", "stop/1", "answer"}) {
			t.Errorf("the end of the old link closed the new one: %q", kinds(d.last))
		}
	})
}

func TestStopBeforeStartNeverStarts(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		id := d.submit(plain())
		d.want(id, job.Queued, job.ReasonNoWorker)
		d.stop(id)
		d.wantKinds("STOPPED", "answer")
		d.worker("w", 1)
		d.pass(time.Hour)
		d.want(id, job.Stopped, job.ReasonUser)
		if a := d.job(id).Attempt; a != 0 {
			t.Errorf("attempt %d was made", a)
		}
	})
}

func TestStopOfAStartThatWaitsForTheSession(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		w := d.worker("w", 1)
		id := d.submit(plain())
		d.cut(w) // the order is lost on its way
		d.stop(id)
		d.wantKinds("STOPPING", "answer")
		d.hello(w, "boot")
		d.wantKinds("stop/1") // and no start: the stop leaves a tombstone
		r := d.says(id, job.Stopped)
		r.Reason = job.ReasonTombstone
		d.report(r)
		d.want(id, job.Stopped, job.ReasonTombstone)
	})
}

func TestASecondStopIsOrderedAgainWithItsGrace(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		id := d.running(plain())
		d.stop(id)
		first := d.job(id)
		now := time.Duration(0)
		d.ask(Event{Stop: &Stop{ID: id, Grace: &now, Reason: job.ReasonUser}})
		d.wantKinds("STOPPING", "stop/1", "answer")
		o := d.last[1].Send.Down.Stops[0]
		if o.Grace == nil || *o.Grace != 0 {
			t.Errorf("the shorter grace is not ordered: %+v", o)
		}
		first.StopGrace = &now
		if diff := cmp.Diff(first, d.job(id)); diff != "" {
			t.Errorf("the record changed: %s", diff)
		}
		d.report(d.says(id, job.Stopped))
		if r := d.stop(id); r.Err != nil {
			t.Errorf("a stop of what has ended: %v", r.Err)
		}
		d.want(id, job.Stopped, "")
	})
}

func TestFencesGrowOverOrdersAndRestarts(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		d.worker("w", 3)
		var last job.Fence
		check := func(what string, f job.Fence) {
			t.Helper()
			if !last.Less(f) {
				t.Errorf("%s: %v after %v", what, f, last)
			}
			last = f
		}
		first := d.submit(plain())
		check("start", d.last[0].Send.Down.Starts[0].Fence)
		d.submit(plain())
		check("start", d.last[0].Send.Down.Starts[0].Fence)
		d.stop(first)
		check("stop", d.last[1].Send.Down.Stops[0].Fence)
		d.restart()
		d.worker("w", 3)
		id := d.submit(plain())
		check("start of the next life", d.job(id).Fence)
	})
}

func TestReconciliationAfterHello(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		state  job.State // of the job before the hello
		boot   string
		known  job.State // what the worker says of it, None: nothing
		state2 job.State
		reason string
		orders []string
	}{
		{"never confirmed: the order again", job.None, "boot", job.None, job.Dispatched, "", []string{"start/1"}},
		{"never confirmed, rebooted: it may have run", job.None, "other", job.None, job.Lost, job.ReasonReboot, nil},
		{"confirmed and gone", job.Dispatched, "boot", job.None, job.Lost, job.ReasonNoProcess, nil},
		{"ran and is gone", job.Running, "boot", job.None, job.Lost, job.ReasonNoProcess, nil},
		{"ran on a host that was rebooted", job.Running, "other", job.None, job.Lost, job.ReasonReboot, nil},
		{"runs", job.Running, "boot", job.Running, job.Running, "", nil},
		{"started meanwhile", job.None, "boot", job.Running, job.Running, "", nil},
		{"ended meanwhile", job.Running, "boot", job.Succeeded, job.Succeeded, "", []string{"ack/1"}},
		{"stopping", job.Stopping, "boot", job.Running, job.Stopping, job.ReasonUser, []string{"stop/1"}},
		{"stopping and not known", job.Stopping, "boot", job.None, job.Stopping, job.ReasonUser, []string{"stop/1"}},
		{"stopped meanwhile", job.Stopping, "boot", job.Stopped, job.Stopped, "", []string{"ack/1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			w := d.worker("w", 1)
			id := d.submit(plain())
			switch c.state {
			case job.Stopping:
				d.report(d.says(id, job.Running))
				d.stop(id)
			case job.None:
			default:
				d.report(d.says(id, c.state))
			}
			var reports []job.Report
			if c.known != job.None {
				reports = append(reports, d.says(id, c.known))
			}
			var got []string
			for _, e := range d.hello(w, c.boot, reports...) {
				if e.Send != nil {
					got = append(got, orders(&e.Send.Down)...)
				}
			}
			if !cmp.Equal(got, c.orders) {
				t.Errorf("orders %q, want %q", got, c.orders)
			}
			d.want(id, c.state2, c.reason)
		})
	}
}

func TestNothingIsLostBeforeTheWorkerHasToldAll(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		id := d.running(plain())
		w := d.job(id).Worker
		d.link++
		d.step(Event{Up: &UpEvent{Worker: w, Link: d.link, Opened: true}})
		d.frame(w, Up{Hello: &Hello{BootID: "boot", InstanceID: "one"}}) // more reports follow
		d.want(id, job.Running, "")
		d.frame(w, Up{Hello: &Hello{BootID: "boot", InstanceID: "one"}, Reports: []job.Report{d.says(id, job.Running)}})
		d.frame(w, Up{Hello: &Hello{BootID: "boot", InstanceID: "one", Complete: true}})
		d.want(id, job.Running, "")
	})
}

func TestAWorkerOutOfReachAndBack(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		back func(d *desk, w job.WorkerID, id job.ID)
	}{
		{"by a heartbeat over the old session", func(d *desk, w job.WorkerID, _ job.ID) { d.beat(w) }},
		{"by a registration and a new session", func(d *desk, w job.WorkerID, id job.ID) {
			d.step(Event{Up: &UpEvent{Worker: w, Link: d.link, Closed: true}})
			d.register("w", 1)
			if d.job(id).UnreachableSince.IsZero() {
				d.t.Errorf("it counts as reached before its worker has opened a session (P3)")
			}
			d.hello(w, "boot", d.says(id, job.Running))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			id := d.running(job.Spec{Command: "sleep", Retry: job.Retry{Max: 3, OnLost: true, OnFailure: true}})
			w := d.job(id).Worker
			d.pass(testLease - time.Nanosecond)
			if j := d.job(id); !j.UnreachableSince.IsZero() {
				t.Errorf("unreachable before the lease ran out")
			}
			d.pass(time.Nanosecond)
			d.wantKinds("worker OFFLINE", "RUNNING")
			gone := d.now
			d.pass(24 * time.Hour) // P4: no evidence, not LOST, and nothing runs again
			d.want(id, job.Running, "")
			if j := d.job(id); !j.UnreachableSince.Equal(gone) || j.Attempt != 1 {
				t.Errorf("unreachable since %v, want %v; attempt %d", j.UnreachableSince, gone, j.Attempt)
			}
			c.back(d, w, id)
			d.want(id, job.Running, "")
			if j := d.job(id); !j.UnreachableSince.IsZero() {
				t.Errorf("still unreachable since %v", j.UnreachableSince)
			}
		})
	}
}

func TestAHeartbeatPutsTheLeaseOff(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		w := d.worker("w", 1)
		for range 5 {
			d.pass(testLease - time.Second)
			d.beat(w)
		}
		if got, _ := d.m.workers.Get(w); got.State != registry.Online {
			t.Errorf("it is %v", got.State)
		}
	})
}

func TestDeregisteredIsNotLost(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		id := d.running(plain())
		w := d.job(id).Worker
		d.ask(Event{Deregister: &w})
		d.wantKinds("worker DEREGISTERED", "hang", "RUNNING", "answer")
		d.want(id, job.Running, "")
		if d.job(id).UnreachableSince.IsZero() {
			t.Errorf("it counts as reachable")
		}
		if r := d.beat(w); errs.KindOf(r.Err) != errs.NotFound {
			t.Errorf("a heartbeat of a worker that left: %v", r.Err)
		}
	})
}

func TestRemovingAWorkerIsTheOperatorsEvidence(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		id := d.running(plain())
		waits := d.submit(job.Spec{Command: "sleep", Worker: "w"})
		w := d.job(id).Worker
		if r := d.ask(Event{Remove: &w}); errs.ReasonOf(r.Err) != "WORKER_ONLINE" {
			t.Fatalf("removed while it is online: %v", r.Err)
		}
		d.want(id, job.Running, "")
		d.pass(testLease)
		d.ask(Event{Remove: &w})
		d.want(id, job.Lost, job.ReasonWorkerGone)
		d.want(waits, job.Queued, job.ReasonWorkerGone)
		if r := d.ask(Event{Remove: &w}); errs.KindOf(r.Err) != errs.NotFound {
			t.Errorf("removed twice: %v", r.Err)
		}
	})
}
