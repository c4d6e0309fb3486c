package scheduler

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/store"
	"github.com/droverhq/drover/core/store/memory"
)

func TestWhichRecordsGo(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	rules := Retention{For: 10 * time.Hour, FailedFor: 20 * time.Hour, Count: 100, Requests: 5 * time.Hour}
	done := func(s job.State, submitted, ended time.Duration, request string) job.Job {
		j := job.Job{State: s, Submit: now.Add(-submitted), RequestID: request}
		if ended > 0 {
			j.Result.End = now.Add(-ended)
		}
		return j
	}
	for _, c := range []struct {
		name  string
		rules Retention
		job   job.Job
		over  bool
		want  bool
	}{
		{"young", rules, done(job.Succeeded, 11*time.Hour, 9*time.Hour, ""), false, false},
		{"old", rules, done(job.Succeeded, 11*time.Hour, 10*time.Hour, ""), false, true},
		{"never started", rules, done(job.Stopped, 11*time.Hour, 0, ""), false, true},
		{"a failure is kept longer", rules, done(job.Failed, 19*time.Hour, 18*time.Hour, ""), false, false},
		{"an old failure", rules, done(job.Failed, 30*time.Hour, 20*time.Hour, ""), false, true},
		{"a loss is a failure", rules, done(job.Lost, 19*time.Hour, 18*time.Hour, ""), false, false},
		{"too many", rules, done(job.Succeeded, 2*time.Hour, time.Hour, ""), true, true},
		{"too many, its request may come again", rules, done(job.Succeeded, 2*time.Hour, time.Hour, "r"), true, false},
		{"too many, its request is old", rules, done(job.Succeeded, 5*time.Hour, time.Hour, "r"), true, true},
		{"live", rules, done(job.Running, 500*time.Hour, 0, ""), true, false},
		{"no limit of age", Retention{Count: 1}, done(job.Succeeded, 5000*time.Hour, 5000*time.Hour, ""), false, false},
		{"failures for ever", Retention{For: time.Hour}, done(job.Rejected, 5000*time.Hour, 0, ""), false, false},
	} {
		if got := c.rules.removes(&c.job, now, c.over); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestNegativeLimitsAreRefusedByName(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]Retention{
		"keep-jobs-for": {For: -1}, "keep-failed-for": {FailedFor: -1}, "keep-requests-for": {Requests: -1}, "keep-jobs": {Count: -1},
	} {
		var e *errs.Error
		if err := r.Validate(); !errors.As(err, &e) || e.Field != name {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := (&Retention{}).Validate(); err != nil {
		t.Errorf("no limits: %v", err)
	}
}

// retaining restarts the scheduler of a story with rules.
func (w *world) retaining(r Retention) {
	w.t.Helper()
	w.rules = r
	w.restart()
}

// gone tells whether the record of a job is removed.
func (w *world) gone(id job.ID) bool {
	_, err := w.s.Job(w.ctx, admin(), id.String(), false)
	return errs.KindOf(err) == errs.NotFound
}

// P1, P8, P15: records go by age and outcome, also after a restart; live jobs and
// request ids stay; the worker is told to forget the output.
func TestRecordsGoWithTime(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		w.retaining(Retention{For: 24 * time.Minute, FailedFor: 72 * time.Minute, Requests: 36 * time.Minute})
		w.join("w1", 5)
		good, bad, lives := w.run(args("run=1s")), w.run(args("run=1s", "code=1")), w.run(args("run=100h"))
		once := job.Spec{Command: "sleep", Args: []string{"run=1s"}}
		named, err := w.s.StartJob(w.ctx, admin(), once, "once")
		if err != nil {
			t.Fatal(err)
		}
		w.wait(good, job.Succeeded)
		w.wait(bad, job.Failed)
		w.wait(named, job.Succeeded)
		time.Sleep(20 * time.Minute)
		w.restart()
		if time.Sleep(2 * time.Minute); w.gone(good) {
			t.Error("removed before its time")
		}
		time.Sleep(5 * time.Minute)
		if !w.gone(good) || w.gone(bad) || w.gone(lives) || w.gone(named) {
			t.Errorf("gone: %v, failed %v, live %v, with a request id %v", w.gone(good), w.gone(bad), w.gone(lives), w.gone(named))
		}
		if again, err := w.s.StartJob(w.ctx, admin(), once, "once"); err != nil || again != named {
			t.Errorf("the request again: %v, %v, want %v", again, err, named)
		}
		if time.Sleep(12 * time.Minute); !w.gone(named) {
			t.Error("a request id is kept for ever")
		}
		if again, err := w.s.StartJob(w.ctx, admin(), once, "once"); err != nil || again == named {
			t.Errorf("the request after its time: %v, %v", again, err)
		}
		if time.Sleep(40 * time.Minute); !w.gone(bad) || w.gone(lives) {
			t.Errorf("in the end gone: failed %v, live %v", w.gone(bad), w.gone(lives))
		}
	})
}

// TestRecordsGoByCount, oldest first, over several steps and a restart.
func TestRecordsGoByCount(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		w.join("w1", 5)
		const n, kept = 2*retainStep + 500, 300
		fillStore(t, w.store, n)
		w.retaining(Retention{Count: kept})
		time.Sleep(10 * time.Minute)
		if got := countRecords(t, w.store, prefixJob); got != kept {
			t.Errorf("%d records, want %d", got, kept)
		}
		if got := countRecords(t, w.store, prefixSuffix); got != kept {
			t.Errorf("%d entries of the index, want %d", got, kept)
		}
		fresh := w.run(args("run=1s"))
		w.wait(fresh, job.Succeeded)
		time.Sleep(10 * time.Minute)
		if got := countRecords(t, w.store, prefixJob); got != kept || w.gone(fresh) {
			t.Errorf("%d records, the newest gone: %v", got, w.gone(fresh))
		}
	})
}

// fillStore adds finished jobs of the past.
func fillStore(t *testing.T, st store.Store, n int) {
	t.Helper()
	var b store.Batch
	begin := time.Now().Add(-time.Hour)
	for i := range n {
		j := job.Job{ID: pastID(begin, i), State: job.Succeeded, Submit: begin}
		if err := putEffect(&b, &Effect{Put: &j, New: true, Drop: true}); err != nil {
			t.Fatal(err)
		}
	}
	if err := st.Apply(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
}

func countRecords(t *testing.T, st store.Store, prefix byte) (n int) {
	t.Helper()
	for _, err := range st.Scan(t.Context(), store.Prefix([]byte{prefix})) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	return n
}

// TestRetentionKeepsWhatItMust: any records, any rules. What is removed has a
// reason, and after a pass nothing is left that has one.
func TestRetentionKeepsWhatItMust(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		now := time.Now()
		hours := rapid.IntRange(0, 50)
		drawn := func(name string) time.Duration { return time.Duration(hours.Draw(rt, name)) * time.Hour }
		rules := Retention{For: drawn("for"), FailedFor: drawn("failed"), Requests: drawn("requests"), Count: rapid.IntRange(0, 20).Draw(rt, "count")}
		r := &retainer{s: &Scheduler{config: Config{Store: memory.New(), Now: func() time.Time { return now }}}, rules: rules, begun: now}
		r.s.records = records{r.s.config.Store}
		var b store.Batch
		all := map[job.ID]job.Job{}
		for i := range rapid.IntRange(0, 40).Draw(rt, "jobs") {
			age := time.Duration(rapid.IntRange(0, 60*60).Draw(rt, "age")) * time.Minute
			j := job.Job{ID: pastID(now.Add(-age), i), Submit: now.Add(-age), State: rapid.SampledFrom(everyState()).Draw(rt, "state")}
			if rapid.Bool().Draw(rt, "request") {
				j.RequestID = uuid.NewString()
			}
			all[j.ID] = j
			if err := putEffect(&b, &Effect{Put: &j, New: true, Drop: j.State.Terminal()}); err != nil {
				rt.Fatal(err)
			}
		}
		if err := r.s.config.Store.Apply(t.Context(), &b); err != nil {
			rt.Fatal(err)
		}
		if err := r.count(t.Context()); err != nil {
			rt.Fatal(err)
		}
		gone, err := r.gather(t.Context())
		if err != nil {
			rt.Fatal(err)
		}
		terminal := 0
		for _, j := range all {
			if j.State.Terminal() {
				terminal++
			}
		}
		for i := range gone {
			j := gone[i]
			aged := rules.removes(&j, now, false)
			if !rules.removes(&j, now, true) || !aged && (rules.Count == 0 || terminal <= rules.Count) {
				rt.Errorf("%v %v removed by %+v, %d of them", j.State, now.Sub(j.Submit), rules, terminal)
			}
			delete(all, j.ID)
		}
		left := 0
		for _, j := range all {
			if rules.removes(&j, now, false) {
				rt.Errorf("%v of %v ago kept by %+v", j.State, now.Sub(j.Submit), rules)
			}
			if rules.removes(&j, now, true) {
				left++
			}
		}
		if rules.Count > 0 && left > 0 && terminal-len(gone) > rules.Count {
			rt.Errorf("%d terminal jobs kept, %d of them could go, want %d", terminal-len(gone), left, rules.Count)
		}
	})
}

func everyState() []job.State {
	var out []job.State
	for s := job.Queued; s <= job.Lost; s++ {
		out = append(out, s)
	}
	return out
}

// TestAClockThatIsSetRemovesNothing (P14): what counts is the time that passed.
func TestAClockThatIsSetRemovesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		r := &retainer{s: &Scheduler{config: Config{Now: time.Now}}, begun: begun}
		time.Sleep(time.Hour)
		// Without its monotonic reading a time is what the wall clock says.
		if got, want := r.now(), begun.Round(0).Add(time.Hour); !got.Equal(want) || got != got.Round(0) {
			t.Errorf("now is %v, want %v", got, want)
		}
	})
}

// TestALiveJobIsNotForgotten, whoever asks for it.
func TestALiveJobIsNotForgotten(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.worker("w1", 1)
	live := d.submit(job.Spec{Command: "date"})
	d.step(Event{Forget: []job.Job{{ID: live, State: job.Succeeded}}})
	for i := range d.last {
		if d.last[i].Delete != nil {
			t.Error("the record of a live job is removed")
		}
	}
}

// TestRetentionCountsFromTheEnd: a job that nobody saw end counted from its submission,
// and was gone at once.
func TestRetentionCountsFromTheEnd(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		id := d.running(plain())
		d.cut(d.job(id).Worker)
		d.pass(24 * time.Hour)
		w := d.job(id).Worker
		d.ask(Event{Remove: &w})
		d.want(id, job.Lost, job.ReasonWorkerGone)
		rules := Retention{FailedFor: time.Hour}
		j := d.job(id)
		if rules.removes(&j, d.now.Add(time.Hour-time.Second), false) || !rules.removes(&j, d.now.Add(time.Hour), false) {
			t.Errorf("it ended at %v, and the record says %v", d.now, j.Ended)
		}
	})
}
