package scheduler

import (
	"slices"
	"testing"
	"time"

	"github.com/droverhq/drover/core/job"
)

func TestRetryPolicies(t *testing.T) {
	t.Parallel()
	code := func(n int32) *int32 { return &n }
	onFailure := job.Retry{Max: 1, OnFailure: true}
	for _, c := range []struct {
		name  string
		retry job.Retry
		end   job.State
		code  *int32
		again bool
	}{
		{"none is the default: failed", job.Retry{}, job.Failed, code(1), false},
		{"none is the default: lost", job.Retry{}, job.Lost, nil, false},
		{"on failure: failed", onFailure, job.Failed, code(1), true},
		{"on failure: by a signal", onFailure, job.Failed, nil, true},
		{"on failure: succeeded", onFailure, job.Succeeded, code(0), false},
		{"on failure: lost", onFailure, job.Lost, nil, false},
		{"on failure: rejected", onFailure, job.Rejected, nil, false},
		{"on lost: lost", job.Retry{Max: 1, OnLost: true}, job.Lost, nil, true},
		{"on lost: rejected", job.Retry{Max: 1, OnLost: true}, job.Rejected, nil, true},
		{"on lost: failed", job.Retry{Max: 1, OnLost: true}, job.Failed, code(1), false},
		{"a code of the list", job.Retry{Max: 1, OnFailure: true, ExitCodes: []int32{3, 75}}, job.Failed, code(75), true},
		{"a code not of the list", job.Retry{Max: 1, OnFailure: true, ExitCodes: []int32{3, 75}}, job.Failed, code(1), false},
		{"a list, and no code", job.Retry{Max: 1, OnFailure: true, ExitCodes: []int32{3}}, job.Failed, nil, false},
		{"no retry is left", job.Retry{OnFailure: true, OnLost: true}, job.Failed, code(1), false},
		{"stopped without being asked", job.Retry{Max: 1, OnFailure: true, OnLost: true}, job.Stopped, nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			d.worker("w", 1)
			id := d.submit(job.Spec{Command: "sleep", Retry: c.retry})
			r := d.says(id, c.end)
			r.ExitCode = c.code
			d.report(r)
			d.pass(0)
			j := d.job(id)
			if c.again && (j.State != job.Dispatched || j.Attempt != 2) {
				t.Errorf("no second attempt: %v, attempt %d", j.State, j.Attempt)
			}
			if !c.again && (j.State != c.end || j.Attempt != 1) {
				t.Errorf("it is %v with attempt %d, want the end %v", j.State, j.Attempt, c.end)
			}
		})
	}
}

func TestRetriesWaitTwiceAsLongEachTime(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		w := d.worker("w", 1)
		id := d.submit(job.Spec{Command: "sleep", Retry: job.Retry{Max: 3, OnFailure: true, Backoff: time.Second}})
		for attempt, wait := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second} {
			d.report(d.exits(id, 1))
			d.wantKinds("QUEUED", "ack/1"[:4]+string(rune('1'+attempt)))
			d.want(id, job.Queued, "RETRY")
			if j := d.job(id); j.Worker != (job.WorkerID{}) || j.WorkerName != "" {
				t.Errorf("a waiting job has the worker %q", j.WorkerName)
			}
			if got, _ := d.m.workers.Get(w); got.Running != 0 {
				t.Errorf("the wait takes a slot")
			}
			d.pass(wait - 1)
			d.want(id, job.Queued, "RETRY")
			d.beat(w)
			d.pass(1)
			d.want(id, job.Dispatched, "")
		}
		d.report(d.exits(id, 1))
		d.want(id, job.Failed, job.ReasonExitCode)
		if a := d.job(id).Attempt; a != 4 {
			t.Errorf("%d attempts, want 1 and 3 retries", a)
		}
	})
}

func TestAHugeBackoffDoesNotTurnIntoNone(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		d.worker("w", 1)
		id := d.submit(job.Spec{Command: "sleep", Retry: job.Retry{Max: 5, OnFailure: true, Backoff: 1 << 61}})
		for range 3 {
			e := d.m.jobs[id]
			if e.State == job.Queued {
				d.pass(e.deadline.Sub(d.now))
				d.worker("w", 1)
			}
			d.report(d.exits(id, 1))
			d.want(id, job.Queued, "RETRY")
			if wait := d.m.jobs[id].deadline.Sub(d.now); wait < 1<<61 {
				t.Fatalf("attempt %d waits %v", d.job(id).Attempt+1, wait)
			}
		}
	})
}

func TestARetryThatWaitsCanBeStopped(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		d.worker("w", 1)
		id := d.submit(job.Spec{Command: "sleep", Retry: job.Retry{Max: 3, OnFailure: true, Backoff: time.Minute}})
		d.report(d.exits(id, 1))
		d.stop(id)
		d.want(id, job.Stopped, job.ReasonUser)
		d.pass(time.Hour)
		d.want(id, job.Stopped, job.ReasonUser)
	})
}

func TestAStoppedJobIsNotRetried(t *testing.T) {
	t.Parallel()
	for end := job.Succeeded; end <= job.Lost; end++ {
		t.Run(end.String(), func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			id := d.running(job.Spec{Command: "sleep", Retry: job.Retry{Max: 3, OnFailure: true, OnLost: true}})
			d.stop(id)
			d.report(d.says(id, end))
			if j := d.job(id); !j.State.Terminal() {
				t.Errorf("%v, %s", j.State, j.Message)
			}
		})
	}
}

// A timeout is a failure, whether or not the scheduler has seen the STOPPING
// between: the policy decides, not the speed of the link.
func TestATimeoutIsRetriedAsAFailure(t *testing.T) {
	t.Parallel()
	spec := job.Spec{Command: "sleep", Timeout: time.Second, Retry: job.Retry{Max: 1, OnFailure: true}}
	timeout := func(d *desk, id job.ID, s job.State) job.Report {
		r := d.says(id, s)
		r.Reason = job.ReasonTimeout
		return r
	}
	for _, c := range []struct {
		name string
		way  func(d *desk, id job.ID)
		want job.State
	}{
		{"seen at once", func(*desk, job.ID) {}, job.Queued},
		{"seen stopping", func(d *desk, id job.ID) { d.report(timeout(d, id, job.Stopping)) }, job.Queued},
		{"seen stopping, and a restart", func(d *desk, id job.ID) {
			d.report(timeout(d, id, job.Stopping))
			d.restart()
			d.worker("w", 1)
		}, job.Queued},
		{"and a user's stop meanwhile", func(d *desk, id job.ID) {
			d.report(timeout(d, id, job.Stopping))
			d.stop(id)
		}, job.Failed},
		{"and a user's stop meanwhile, and a restart", func(d *desk, id job.ID) {
			d.report(timeout(d, id, job.Stopping))
			d.stop(id)
			d.restart()
			d.worker("w", 1)
		}, job.Failed},
		{"after a user's stop", func(d *desk, id job.ID) {
			d.stop(id)
			d.report(timeout(d, id, job.Stopping))
		}, job.Failed},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			id := d.running(spec)
			c.way(d, id)
			d.report(timeout(d, id, job.Failed))
			if j := d.job(id); j.State != c.want {
				t.Errorf("%v (%s: %s), want %v", j.State, j.Reason, j.Message, c.want)
			}
		})
	}
}

func TestABackoffOutlivesARestart(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		d.worker("w", 1)
		id := d.submit(job.Spec{Command: "sleep", Retry: job.Retry{Max: 3, OnFailure: true, Backoff: time.Minute}})
		d.report(d.exits(id, 1))
		d.restart()
		w := d.worker("w", 1)
		d.want(id, job.Queued, "RETRY")
		for range 12 {
			d.pass(5 * time.Second)
			d.beat(w)
		}
		d.want(id, job.Dispatched, "")
		if a := d.job(id).Attempt; a != 2 {
			t.Errorf("attempt %d", a)
		}
	})
}

func TestARetriedJobWaitsForASlotLikeAnyOther(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		d.worker("w", 1)
		first := d.submit(job.Spec{Command: "sleep", Retry: job.Retry{Max: 3, OnFailure: true, Backoff: time.Second}})
		second := d.submit(plain())
		d.want(second, job.Queued, job.ReasonNoSlot)
		d.report(d.exits(first, 1))
		d.want(second, job.Dispatched, "")
		d.pass(time.Second)
		d.want(first, job.Queued, job.ReasonNoSlot)
		d.report(d.exits(second, 0))
		d.want(first, job.Dispatched, "")
	})
}

func TestARetryThatJoinsOthersThatWaitSaysWhy(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		w := d.worker("w", 1)
		id := d.submit(job.Spec{Command: "sleep", Retry: job.Retry{Max: 1, OnFailure: true, Backoff: time.Second}})
		d.ask(Event{Drain: &Drain{ID: w, Drain: true}})
		d.submit(plain())
		d.report(d.exits(id, 1))
		d.pass(time.Second)
		d.want(id, job.Queued, job.ReasonWorkerDrained)
	})
}

// The queue's deadline of the first wait must not end the wait of a retry.
func TestAnOldDeadlineOfTheQueueDoesNotCutABackoffShort(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		id := d.submit(job.Spec{
			Command: "sleep", QueueTimeout: 2 * time.Second, Retry: job.Retry{Max: 1, OnFailure: true, Backoff: 5 * time.Second},
		})
		d.worker("w", 1)
		d.report(d.exits(id, 1))
		d.pass(3 * time.Second)
		d.want(id, job.Queued, reasonRetry)
		d.pass(2 * time.Second)
		d.want(id, job.Dispatched, "")
	})
}

// TestP8_EachAttempt_KeepsItsWorkerAndItsEnd: a retry forgot where the attempt before
// had run, so that its output was nowhere; and it went to the same worker again.
func TestP8_EachAttempt_KeepsItsWorkerAndItsEnd(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		first, second := d.worker("a", 2), d.worker("b", 2)
		id := d.submit(job.Spec{Command: "sleep", Retry: job.Retry{Max: 2, OnFailure: true, Backoff: time.Minute}})
		r := d.exits(id, 7)
		r.Stdout.Size = 14
		d.report(r)
		check := func(when string) {
			t.Helper()
			j := d.job(id)
			a, ok := j.AttemptOf(1)
			if !ok || a.Worker != first || a.WorkerName != "a" || a.Stdout.Size != 14 || a.ExitCode == nil || *a.ExitCode != 7 || a.State != job.Failed {
				t.Errorf("%s: %+v", when, a)
			}
		}
		check("in the backoff")
		d.restart()
		check("after a restart")
		d.register("a", 2)
		d.register("b", 2)
		d.hello(first, "boot")
		d.hello(second, "boot")
		for range 13 {
			d.pass(5 * time.Second)
			d.beat(first)
			d.beat(second)
		}
		if j := d.job(id); j.State != job.Dispatched || j.Worker != second {
			t.Errorf("attempt 2 is %v on %s", j.State, j.WorkerName)
		}
		d.report(d.exits(id, 8))
		check("after the second")
		d.stop(id)
		check("at the end")
		j := d.job(id)
		if all := j.Attempts(); len(all) != 2 || all[1].WorkerName != "b" || j.State != job.Stopped {
			t.Errorf("%v: %+v", j.State, all)
		}
		d.ask(Event{Forget: []job.Job{j}})
		if got := kinds(d.last); !slices.Contains(got, "forget/1") || !slices.Contains(got, "forget/2") {
			t.Errorf("effects %q", got)
		}
	})
}
