package scheduler

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

// batch makes n requests that differ.
func batch(n int) []Request {
	out := make([]Request, n)
	for i := range out {
		out[i].Spec = job.Spec{Command: "sleep", Args: []string{"run=1s", fmt.Sprint(i)}}
	}
	return out
}

func accepted(t *testing.T, answers []Answer, err error) []job.ID {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	ids := make([]job.ID, len(answers))
	seen := map[job.ID]bool{}
	for i, a := range answers {
		if a.Err != nil || a.ID == (job.ID{}) || seen[a.ID] {
			t.Fatalf("job %d: %v, %v", i, a.ID, a.Err)
		}
		ids[i], seen[a.ID] = a.ID, true
	}
	return ids
}

// P1: a batch that is sent again makes nothing twice: while its jobs live,
// after a restart, and after their ends.
func TestABatchThatIsSentAgainMakesNothingTwice(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		w.join("w1", 3)
		send := func() []job.ID {
			answers, err := w.s.StartJobs(w.ctx, admin(), "b", batch(10))
			return accepted(t, answers, err)
		}
		first := send()
		same := func(when string) {
			t.Helper()
			synctest.Wait() // what the jobs themselves have to record is recorded
			before := everything(t, w.store)
			if again := send(); fmt.Sprint(again) != fmt.Sprint(first) {
				t.Errorf("%s: other jobs", when)
			}
			if !maps.Equal(before, everything(t, w.store)) {
				t.Errorf("%s: a repetition was recorded", when)
			}
		}
		same("at once")
		w.restart()
		same("after a restart")
		for _, id := range first {
			w.wait(id, job.Succeeded)
		}
		same("after the ends")
		w.restart()
		same("after the ends and a restart")
		one, err := w.s.StartJob(w.ctx, admin(), batch(4)[3].Spec, "b/3")
		if err != nil || one != first[3] {
			t.Errorf("the same job alone: %v, %v, want %v", one, err, first[3])
		}
	})
}

func TestARefusedJobKeepsNoOtherBack(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		w.join("w1", 10, "a.sh")
		requests := batch(6)
		requests[1].Spec = job.Spec{}                            // no command
		requests[2].Spec.Env = map[string]string{"A-B": "1"}     // refused by validation
		requests[3].Err = errs.Field("read", "x", "X", "wrong")  // refused before
		requests[4].Spec = job.Spec{Path: "b.sh"}                // refused by placement
		requests[5].RequestID, requests[0].RequestID = "x", "x/" // of their own
		answers, err := w.s.StartJobs(w.ctx, admin(), "b", requests)
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range []string{"", "COMMAND_MISSING", "ENV_NAME", "X", "SCRIPT_NOT_FOUND", ""} {
			a := answers[i]
			if got := errs.ReasonOf(a.Err); got != want || (a.ID == job.ID{}) != (want != "") {
				t.Errorf("job %d: %v, %v, want %q", i, a.ID, a.Err, want)
			}
		}
		var e *errs.Error
		if !errors.As(answers[4].Err, &e) || e.Field != "path" {
			t.Errorf("the field at fault is not named: %+v", e)
		}
		if id, err := w.s.StartJob(w.ctx, admin(), requests[5].Spec, "x"); err != nil || id != answers[5].ID {
			t.Errorf("a request id of its own was not used: %v, %v", id, err)
		}
		requests[5].Spec.Args = nil
		answers, err = w.s.StartJobs(w.ctx, admin(), "b", requests)
		if err != nil || errs.ReasonOf(answers[5].Err) != "REQUEST_ID_REUSED" || answers[0].Err != nil {
			t.Errorf("another request with the same id: %v, %v", answers, err)
		}
	})
}

func TestABatchIsBounded(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		for n, reason := range map[int]string{0: "MISSING", MaxSubmits + 1: "TOO_MANY"} {
			_, err := w.s.StartJobs(w.ctx, admin(), "b", batch(n))
			wantErr(t, err, errs.Invalid, reason)
		}
		long := batch(1)
		answers, err := w.s.StartJobs(w.ctx, admin(), string(make([]byte, maxRequestID-1)), long)
		if err != nil || errs.ReasonOf(answers[0].Err) != "TOO_LONG" {
			t.Errorf("a request id that is too long with its index: %v, %v", answers, err)
		}
		// P16: more of them at once than are let in.
		for range bulksAtOnce {
			w.s.bulks <- struct{}{}
		}
		_, err = w.s.StartJobs(w.ctx, admin(), "c", batch(1))
		wantErr(t, err, errs.Exhausted, "OVERLOADED")
		<-w.s.bulks
		answers, err = w.s.StartJobs(w.ctx, admin(), "c", batch(MaxSubmits))
		accepted(t, answers, err)
	})
}

// gathered takes ends until there are n.
func gathered(ctx context.Context, t *testing.T, e *Ends, n int) map[job.ID]int {
	t.Helper()
	got := map[job.ID]int{}
	for n > 0 {
		ends, err := e.Next(ctx)
		if err != nil || len(ends) == 0 {
			t.Fatalf("%d ends are missing: %v", n, err)
		}
		for _, end := range ends {
			if end.Job != nil && (end.Job.ID != end.ID || !end.Job.State.Terminal()) {
				t.Errorf("no end: %+v", end.Job)
			}
			got[end.ID]++
			n--
		}
	}
	return got
}

func TestEndsAreToldOnceForEachTimeAJobWasAdded(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		w.join("w1", 5)
		answers, err := w.s.StartJobs(w.ctx, admin(), "", batch(20))
		ids := accepted(t, answers, err)
		e := w.s.Ends(admin())
		defer e.Close()
		add := func(ids ...job.ID) {
			if err := e.Add(w.ctx, ids); err != nil {
				t.Fatal(err)
			}
		}
		add(ids[:10]...)
		got := gathered(w.ctx, t, e, 10)
		add(ids[5:]...) // some have ended, some live
		add(ids[19], ids[19])
		nobody := uuid.Must(uuid.NewV7())
		add(nobody)
		e.Finish()
		for id, n := range gathered(w.ctx, t, e, 18) {
			got[id] += n
		}
		for i, id := range ids {
			want := 1
			if i >= 5 && i < 10 {
				want = 2
			}
			if i == 19 {
				want = 3
			}
			if got[id] != want {
				t.Errorf("job %d was told %d times, want %d", i, got[id], want)
			}
		}
		if got[nobody] != 1 {
			t.Error("a job that does not exist has no answer")
		}
		if ends, err := e.Next(w.ctx); err != nil || len(ends) != 0 {
			t.Errorf("after all: %v, %v", ends, err)
		}
	})
}

func TestASubmitterLearnsTheEndsOfItsOwnJobsOnly(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		w.join("w1", 5)
		ann, bob := Caller{Name: "ann", Role: roleSubmitter}, Caller{Name: "bob", Role: roleSubmitter}
		if _, err := w.s.StartJob(w.ctx, ann, args("run=1s"), ""); err == nil {
			t.Fatal("args alone have no command")
		}
		id, err := w.s.StartJob(w.ctx, ann, job.Spec{Command: "x", Args: []string{"run=1s"}}, "")
		if err != nil {
			t.Fatal(err)
		}
		for _, when := range []string{"live", "ended"} {
			e := w.s.Ends(bob)
			if err := e.Add(w.ctx, []job.ID{id}); err != nil {
				t.Fatal(err)
			}
			if ends, err := e.Next(w.ctx); err != nil || len(ends) != 1 || ends[0].Job != nil {
				t.Errorf("%s: bob learns %v, %v", when, ends, err)
			}
			e.Close()
			w.wait(id, job.Succeeded)
		}
	})
}

func TestWhatIsWaitedForIsBoundedAndForgotten(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		id := w.run(job.Spec{Command: "x", QueueTimeout: time.Hour})
		e := w.s.Ends(admin())
		many := make([]job.ID, MaxAwaited)
		for i := range many {
			many[i] = id
		}
		if err := e.Add(w.ctx, many); err != nil {
			t.Fatal(err)
		}
		wantErr(t, e.Add(w.ctx, many[:1]), errs.Exhausted, "TOO_MANY")
		ctx, cancel := context.WithTimeout(w.ctx, time.Second)
		defer cancel()
		if _, err := e.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("an end of a job that lives: %v", err)
		}
		e.Close()
		if w.s.awaited.all != 0 || len(w.s.awaited.of) != 0 {
			t.Errorf("after the close %d jobs are counted", w.s.awaited.all)
		}
		if n := len(w.s.hub.groups); n != 0 {
			t.Errorf("%d jobs have waiters after all have left", n)
		}
		if err := e.Add(w.ctx, many[:1]); err != nil || len(w.s.hub.groups) != 0 {
			t.Errorf("a job was added after the close: %v", err)
		}
	})
}

// A submit costs the same however many wait before it.
func TestASubmitToALongQueueRecordsOneJob(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.worker("w", 1)
	for range 10 {
		d.submit(plain())
	}
	d.submit(plain())
	puts := 0
	for _, e := range d.last {
		if e.Put != nil {
			puts++
		}
	}
	if puts != 1 {
		t.Errorf("%d records for one submit", puts)
	}
}
