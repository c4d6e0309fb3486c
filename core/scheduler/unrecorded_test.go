package scheduler

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

// older makes the records of a scheduler those of an older copy that is in force: what
// the workers did meanwhile is not in them.
func (w *world) older(copied func()) {
	w.t.Helper()
	old := copyOf(w.t, w.store)
	copied()
	if err := w.end(); err != nil {
		w.t.Fatal(err)
	}
	if err := SetTerm(w.ctx, old, w.s.Term()+1); err != nil {
		w.t.Fatal(err)
	}
	w.store = old
	w.begin()
	time.Sleep(time.Minute)
}

// TestP3_JobsOfNewerRecords_AreListedStoppedAdoptedAndForgotten: the scheduler runs on an
// older copy that was accepted. Nothing of what it does not know is stopped or
// acknowledged by itself.
func TestP3_JobsOfNewerRecords_AreListedStoppedAdoptedAndForgotten(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		p := w.join("w1", 5)
		var stopped, adopted, ends, removed job.ID
		w.older(func() {
			stopped, adopted, ends, removed = w.run(args()), w.run(args()), w.run(args("run=1h", "code=3")), w.run(args("run=1h"))
			for _, id := range []job.ID{stopped, adopted, ends, removed} {
				w.wait(id, job.Running)
			}
		})
		if got := w.worker("w1"); len(got.Unrecorded) != 4 || got.Running != 0 {
			t.Fatalf("%d attempts are listed", len(got.Unrecorded))
		}
		time.Sleep(time.Hour)
		for i := range 3 { // the ends stay with the worker
			w.restart()
			time.Sleep(time.Minute)
			if got := w.worker("w1"); len(got.Unrecorded) != 4 || len(p.forgets) > 0 {
				t.Fatalf("after %d restarts %d attempts are listed", i+1, len(got.Unrecorded))
			}
		}
		oper := Caller{Name: "o", Role: "operator"}
		for _, by := range []Caller{oper, {Name: "s", Role: roleSubmitter}} {
			_, err := w.s.StopJob(w.ctx, by, stopped.String(), nil, true)
			wantErr(t, err, errs.NotFound, codeJobUnknown)
			wantErr(t, w.s.RemoveJobs(w.ctx, by, []string{removed.String()}), errs.NotFound, codeJobUnknown)
			_, err = w.s.Job(w.ctx, by, stopped.String(), false)
			if tells := strings.Contains(err.Error(), "which the worker w1 has"); tells != (by == oper) {
				t.Errorf("%s is told: %v", by.Role, err)
			}
		}

		wantErr(t, w.s.RemoveJobs(w.ctx, admin(), []string{stopped.String()}), errs.Precondition, "JOB_LIVE")
		if got := w.worker("w1"); len(got.Unrecorded) != 4 {
			t.Errorf("%d attempts are listed", len(got.Unrecorded))
		}
		j, err := w.s.StopJob(w.ctx, admin(), stopped.String()[24:], nil, true)
		if err != nil || j.State != job.Stopped || j.Reason != job.ReasonUser || j.RequestedBy != "" || !j.Submit.Equal(submitTime(stopped)) {
			t.Errorf("stopped: %+v, %v", j, err)
		}
		if j, err = w.s.Adopt(w.ctx, admin(), adopted.String(), ""); err != nil || j.State != job.Running {
			t.Errorf("adopted: %+v, %v", j, err)
		}
		p.exit(job.Key{Job: adopted, Attempt: 1}, 0)
		w.wait(adopted, job.Succeeded)
		if j, err = w.s.Adopt(w.ctx, admin(), ends.String(), "w1"); err != nil || j.State != job.Failed || *j.Result.ExitCode != 3 {
			t.Errorf("adopted when it had ended: %+v, %v", j, err)
		}
		if err := w.s.RemoveJobs(w.ctx, admin(), []string{removed.String()}); err != nil {
			t.Error(err)
		}
		_, err = w.s.Adopt(w.ctx, admin(), ends.String(), "")
		wantErr(t, err, errs.Exists, "JOB_RECORDED")
		_, err = w.s.Adopt(w.ctx, admin(), removed.String(), "")
		wantErr(t, err, errs.NotFound, codeJobUnknown)
		time.Sleep(time.Minute)
		if got := w.worker("w1"); len(got.Unrecorded) > 0 || !slices.Contains(p.forgets, job.Key{Job: removed, Attempt: 1}) {
			t.Errorf("left: %+v", got.Unrecorded)
		}
		w.restart() // all of it is recorded, and acknowledged
		time.Sleep(time.Minute)
		if got := w.worker("w1"); len(got.Unrecorded) > 0 || w.job(ends).State != job.Failed || p.started(stopped) != 1 {
			t.Errorf("after a restart: %+v", got.Unrecorded)
		}
	})
}

// TestP3_ReportOfAnAttemptOfAnotherWorker_IsNotAcknowledged: the accepted copy shows a job
// as queued that had been started at a worker which was not there, so that it ran twice. The
// first result is kept.
func TestP3_ReportOfAnAttemptOfAnotherWorker_IsNotAcknowledged(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		d.worker("w1", 1)
		id := d.submit(plain())
		d.report(d.says(id, job.Running))
		second := d.worker("w2", 1)
		r := d.says(id, job.Running)
		d.frame(second, Up{Reports: []job.Report{r}})
		if got := kinds(d.last); slices.Contains(got, "stop/1") {
			t.Fatalf("effects %q", got)
		}
		d.step(Event{Stop: &Stop{ID: id, Reason: job.ReasonUser, Unrecorded: true}})
		stops := 0
		for _, e := range d.last {
			if e.Send != nil {
				stops += len(e.Send.Down.Stops)
			}
		}
		if stops != 2 {
			t.Errorf("effects %q", kinds(d.last))
		}
		d.report(d.says(id, job.Stopped))
		r.Sequence, r.State = r.Sequence+10, job.Stopped
		d.frame(second, Up{Reports: []job.Report{r}})
		if got := kinds(d.last); slices.Contains(got, "ack/1") {
			t.Fatalf("effects %q", got)
		}
		if w, _ := d.m.workers.Get(second); len(w.Unrecorded) != 1 || w.Running != 0 {
			t.Errorf("listed: %+v", w)
		}
		d.ask(Event{Forget: []job.Job{d.job(id)}, Unrecorded: true})
		if got := kinds(d.last); !slices.Contains(got, "forget/1") {
			t.Errorf("effects %q", got)
		}
	})
}

// TestAdoptTakesTheNewestAttempt, keeps what became of those before, and asks which one is
// meant when two workers have it.
func TestAdoptTakesTheNewestAttempt(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		first, second := d.worker("w1", 1), d.worker("w2", 1)
		id, code := d.id(), int32(1)
		d.frame(first, Up{Reports: []job.Report{{Key: job.Key{Job: id, Attempt: 1}, Sequence: 1, State: job.Failed, ExitCode: &code}}})
		newest := job.Report{Key: job.Key{Job: id, Attempt: 2}, Sequence: 1, State: job.Running}
		d.frame(first, Up{Reports: []job.Report{newest}})
		d.frame(second, Up{Reports: []job.Report{newest}})
		wantErr(t, d.ask(Event{Adopt: &Adopt{Job: id}}).Err, errs.Precondition, "JOB_AMBIGUOUS")
		wantErr(t, d.ask(Event{Adopt: &Adopt{Job: id, Known: true}}).Err, errs.Exists, "JOB_RECORDED")
		wantErr(t, d.ask(Event{Adopt: &Adopt{Job: id, Worker: uuid.New()}}).Err, errs.NotFound, codeJobUnknown)
		if r := d.ask(Event{Adopt: &Adopt{Job: id, Worker: second}}); r.Err != nil {
			t.Fatal(r.Err)
		}
		if got := kinds(d.last); !slices.Contains(got, "ack/1") {
			t.Errorf("effects %q", got)
		}
		d.want(id, job.Running, "")
		j := d.job(id)
		if all := j.Attempts(); len(all) != 2 || all[0].State != job.Failed || *all[0].ExitCode != 1 || all[0].WorkerName != "w1" || j.Worker != second {
			t.Errorf("attempts %+v", all)
		}
		d.restart()
		d.register("w2", 1)
		d.hello(second, "boot", newest)
		d.want(id, job.Running, "")
	})
}

// TestP3_MoreUnrecordedAttemptsThanAreListed_AreReportedAgain once those on the list are
// settled.
func TestP3_MoreUnrecordedAttemptsThanAreListed_AreReportedAgain(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		w := d.worker("w1", 1)
		var reports []job.Report
		for range maxUnrecorded + 5 {
			reports = append(reports, job.Report{Key: job.Key{Job: d.id(), Attempt: 1}, Sequence: 1, State: job.Succeeded})
		}
		d.hello(w, "boot", reports...)
		for _, r := range reports[:maxUnrecorded] {
			if got := kinds(d.last); slices.Contains(got, "dial") {
				t.Fatalf("too early: effects %q", got)
			}
			if r := d.ask(Event{Adopt: &Adopt{Job: r.Job}}); r.Err != nil {
				t.Fatal(r.Err)
			}
		}
		if got := kinds(d.last); !slices.Contains(got, "hang") || !slices.Contains(got, "dial") {
			t.Fatalf("effects %q", got)
		}
		d.hello(w, "boot", reports[maxUnrecorded:]...)
		if got, _ := d.m.workers.Get(w); len(got.Unrecorded) != 5 {
			t.Errorf("%d are listed", len(got.Unrecorded))
		}
	})
}
