package scheduler

import (
	"testing"

	"github.com/droverhq/drover/core/job"
)

// TestP8_OutputSealedLater_CompletesTheRecord: once, of its own attempt, from its own
// worker, and never what has a sum.
func TestP8_OutputSealedLater_CompletesTheRecord(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	w, other := d.worker("w", 1), d.worker("x", 1)
	id := d.submit(job.Spec{Command: "sleep", Worker: "w"})
	d.report(d.says(id, job.Running))
	open := d.exits(id, 0)
	open.Stdout, open.Stderr = job.Stream{Size: 3}, job.Stream{Size: 1, SHA256: "e"}
	d.report(open)
	late := open
	late.Sequence += 10
	late.Stdout, late.Stderr = job.Stream{Size: 8, SHA256: "o"}, job.Stream{Size: 9, SHA256: "other"}
	tell := func(from job.WorkerID, r job.Report) {
		j := d.job(id)
		d.step(Event{Up: &UpEvent{
			Worker: from, Link: d.m.links[from].number, Up: Up{Reports: []job.Report{r}}, Records: map[job.ID]*job.Job{id: &j},
		}})
	}
	tell(other, late)
	stale := late
	stale.Sequence = open.Sequence
	tell(w, stale)
	failed := late
	failed.State = job.Failed
	tell(w, failed)
	if got := d.job(id).Result.Stdout; got != open.Stdout {
		t.Fatalf("it is %+v before the right report", got)
	}
	tell(w, late)
	r := d.job(id).Result
	if r.Stdout != late.Stdout || r.Stderr != open.Stderr || r.ExitCode == nil || d.job(id).State != job.Succeeded {
		t.Errorf("the record is %+v", r)
	}
}

// TestP8_OutputOfAnEarlierAttemptSealedLater_CompletesTheRecord: of an attempt that was
// retried while its children held the output, whatever has become of the job meanwhile.
func TestP8_OutputOfAnEarlierAttemptSealedLater_CompletesTheRecord(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		w := d.worker("w", 1)
		id := d.submit(job.Spec{Command: "sleep", Retry: job.Retry{Max: 2, OnFailure: true}})
		fail := func() job.Report {
			d.report(d.says(id, job.Running))
			r := d.exits(id, 3)
			r.Stdout = job.Stream{Size: 3}
			d.report(r)
			return r
		}
		sealed := func(r job.Report) job.Report {
			d.seq++
			r.Sequence, r.Stdout = d.seq, job.Stream{Size: 4, SHA256: "sum"}
			return r
		}
		first, second := fail(), fail()
		before := d.job(id).Past
		d.frame(w, Up{Reports: []job.Report{sealed(first)}})
		d.want(id, job.Dispatched, "")
		d.report(d.says(id, job.Running))
		d.report(d.exits(id, 0))
		d.frame(w, Up{Reports: []job.Report{sealed(second)}})
		d.want(id, job.Succeeded, "")
		for i, a := range d.job(id).Past {
			if a.Stdout != (job.Stream{Size: 4, SHA256: "sum"}) || a.Worker != w || *a.ExitCode != 3 {
				t.Errorf("attempt %d is recorded as %+v, before as %+v", a.Number, a, before[i])
			}
		}
		later := sealed(first)
		later.Stdout.SHA256 = "other"
		d.frame(w, Up{Reports: []job.Report{later}})
		if got := d.job(id).Past[0].Stdout.SHA256; got != "sum" {
			t.Errorf("what has a sum has now %q", got)
		}
	})
}

// TestP8_OutputsOfTwoAttemptsSealedTogether_AreBothRecorded: within one round neither
// undoes the other.
func TestP8_OutputsOfTwoAttemptsSealedTogether_AreBothRecorded(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		w := d.worker("w", 1)
		id := d.submit(job.Spec{Command: "sleep", Retry: job.Retry{Max: 1, OnFailure: true}})
		var sealed []job.Report
		for _, code := range []int32{3, 0} {
			d.report(d.says(id, job.Running))
			r := d.exits(id, code)
			r.Stdout.Size = 3
			d.report(r)
			r.Sequence += 10
			r.Stdout.SHA256, r.Stderr.SHA256 = "sum", "none"
			sealed = append(sealed, r)
		}
		d.frame(w, Up{Reports: sealed})
		if j := d.job(id); j.Past[0].Stdout.SHA256 != "sum" || j.Result.Stdout.SHA256 != "sum" {
			t.Errorf("attempt 1 has %+v, attempt 2 %+v", j.Past[0].Stdout, j.Result.Stdout)
		}
	})
}

// TestP8_NoRoom_TheReasonIsShown while the job is what it was.
func TestP8_NoRoom_TheReasonIsShown(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.worker("w", 1)
	id := d.submit(job.Spec{Command: "sleep"})
	d.report(d.says(id, job.Running))
	r := d.says(id, job.Running)
	r.Reason, r.Message = job.ReasonQuota, "waits"
	d.report(r)
	d.want(id, job.Running, job.ReasonQuota)
	d.stop(id)
	r = d.says(id, job.Stopping)
	r.Reason, r.Message = job.ReasonUser, "waits"
	d.report(r)
	d.want(id, job.Stopping, job.ReasonUser)
	if m := d.job(id).Message; m != "waits" {
		t.Errorf("it says %q", m)
	}
}
