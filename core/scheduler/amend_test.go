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
