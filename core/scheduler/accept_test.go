package scheduler

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

// P1: a request id stands for its request from the acceptance on: while the job
// lives, after its end and after a restart.
func TestARequestIDStandsForOneRequest(t *testing.T) {
	t.Parallel()
	script := job.Spec{Path: "a.sh", QueueTimeout: time.Hour} // the scheduler adds the command
	other := script
	other.Args = []string{"x"}
	for _, c := range []struct {
		name string
		way  func(d *desk, id job.ID)
	}{
		{"live", func(*desk, job.ID) {}},
		{"live after a restart", func(d *desk, _ job.ID) { d.restart() }},
		{"ended", func(d *desk, id job.ID) { d.stop(id) }},
		{"ended, after a restart", func(d *desk, id job.ID) {
			d.stop(id)
			d.restart()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			ask := func(s job.Spec, by, request string) Result {
				earlier, err := d.records.accepted(context.Background(), requestKey(Caller{Name: by}.identity(), request))
				if err != nil {
					t.Fatal(err)
				}
				return d.ask(Event{Submit: &Submit{ID: d.id(), Spec: s, Caller: Caller{Name: by}, RequestID: request, Earlier: earlier, Time: d.now}})
			}
			id := ask(script, "ann", "r").Job.ID
			c.way(d, id)
			before := d.job(id)
			if r := ask(script, "ann", "r"); r.Err != nil || r.Job.ID != id {
				t.Errorf("the same request: %v, %v instead of %v", r.Err, r.Job.ID, id)
			}
			if r := ask(other, "ann", "r"); errs.KindOf(r.Err) != errs.Exists || errs.ReasonOf(r.Err) != "REQUEST_ID_REUSED" {
				t.Errorf("another request: %v", r.Err)
			}
			if diff := cmp.Diff(before, d.job(id)); diff != "" {
				t.Errorf("the job changed: %s", diff)
			}
			if r := ask(script, "bob", "r"); r.Err != nil || r.Job.ID == id {
				t.Errorf("another caller's request: %v, %v", r.Err, r.Job.ID)
			}
			if r := ask(script, "ann", ""); r.Err != nil || r.Job.ID == id {
				t.Errorf("a request without an id: %v, %v", r.Err, r.Job.ID)
			}
		})
	}
}
