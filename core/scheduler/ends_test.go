package scheduler

import (
	"errors"
	"strconv"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

// TestP21_WaitingForJobs_IsBoundedInBytes_OfOneAndInAll: who waits for too many is
// refused, leaves room for others, and may wait again when it has taken answers.
func TestP21_WaitingForJobs_IsBoundedInBytes_OfOneAndInAll(t *testing.T) {
	t.Parallel()
	a := awaited{of: map[string]int{}}
	ends := func(name string) *Ends { return &Ends{by: Caller{Name: name, Role: roleSubmitter}} }
	fill := func(name string) error {
		for {
			if err := a.take(ends(name), MaxAwaited); err != nil {
				return err
			}
		}
	}
	err := fill("ann")
	wantErr(t, err, errs.Exhausted, bytesExhausted)
	if e := (*errs.Error)(nil); !errors.As(err, &e) || e.Hint == "" || !strings.Contains(err.Error(), "ann waits for") {
		t.Errorf("%v", err)
	}
	if a.all*awaitedBytes > awaitedOfCaller {
		t.Errorf("ann waits for %d jobs", a.all)
	}
	bob := ends("bob")
	if err := a.take(bob, MaxAwaited); err != nil {
		t.Errorf("bob is refused for ann: %v", err)
	}
	wantErr(t, a.take(bob, 1), errs.Exhausted, "TOO_MANY")
	for i := 0; (a.all+MaxAwaited)*awaitedBytes <= awaitedOfAll; i++ {
		_ = fill(strconv.Itoa(i))
	}
	wantErr(t, a.take(ends("zoe"), MaxAwaited), errs.Exhausted, bytesExhausted)
	a.give(bob, 1)
	if err := a.take(bob, 1); err != nil {
		t.Errorf("an answer was taken: %v", err)
	}
	before := a.all
	a.leave(bob)
	a.leave(bob)
	if err := a.take(bob, 1); err != nil || a.all != before-MaxAwaited {
		t.Errorf("after one has left %d jobs are waited for, %d before: %v", a.all, before, err)
	}
}

// TestP21_EndsOfASlowClient_AreReadWhenTheyAreTaken: what waits for it are ids, and it
// learns all the same.
func TestP21_EndsOfASlowClient_AreReadWhenTheyAreTaken(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		const jobs = 1500
		p := w.join("w1", jobs)
		ids := make([]job.ID, jobs)
		e := w.s.Ends(admin())
		defer e.Close()
		for i := range ids {
			ids[i] = w.run(args("run=1h", "code=3"))
		}
		nobody := uuid.Must(uuid.NewV7())
		if err := e.Add(w.ctx, append(ids, nobody)); err != nil {
			t.Fatal(err)
		}
		for _, id := range ids {
			p.exit(job.Key{Job: id, Attempt: 1}, 3)
		}
		for _, id := range ids {
			w.wait(id, job.Failed)
		}
		if e.group.kept > endsKept+2<<10 || len(e.group.ends) != jobs+1 {
			t.Errorf("%d ends wait with %d bytes", len(e.group.ends), e.group.kept)
		}
		told := map[job.ID]bool{}
		for e.Finish(); len(told) < jobs+1; {
			ends, err := e.Next(w.ctx)
			if err != nil || len(ends) == 0 || len(ends) > endsTaken {
				t.Fatalf("after %d: %d ends, %v", len(told), len(ends), err)
			}
			for _, end := range ends {
				told[end.ID] = true
				if j := end.Job; (j == nil) != (end.ID == nobody) || j != nil && (j.State != job.Failed || *j.Result.ExitCode != 3) {
					t.Errorf("the end of %s is %+v", end.ID, j)
				}
			}
		}
		if e.group.kept != 0 || e.held != 0 || w.s.awaited.all != 0 {
			t.Errorf("after all %d bytes are kept, %d and %d jobs counted", e.group.kept, e.held, w.s.awaited.all)
		}
	})
}
