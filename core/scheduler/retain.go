package scheduler

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/store"
)

// Retention says how long the records of terminal jobs are kept. A field that is
// zero sets no limit; records of live jobs stay in any case.
type Retention struct {
	For       time.Duration // since the end of the job
	FailedFor time.Duration // the same, of jobs that are FAILED, LOST or REJECTED
	Count     int           // terminal jobs in all; the oldest go first
	// Requests is how long a request id is recognized (P1): a job that has one stays
	// for so long after it was submitted, whatever the limits above say.
	Requests time.Duration
}

// How the records are looked through: in steps, so that nobody waits for one.
const (
	retainEvery = time.Minute           // between two passes, at the most
	retainOften = time.Second           // at the least, with limits of seconds
	retainPause = 50 * time.Millisecond // between two steps
	retainStep  = 1000                  // records looked at in one step, and removed at the most
	countEvery  = time.Hour             // the count drifts a little when jobs end while it is taken
)

// Validate refuses limits that are negative, by the names of their settings.
func (r *Retention) Validate() error {
	const op = "start the scheduler"
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"keep-jobs-for", r.For}, {"keep-failed-for", r.FailedFor}, {"keep-requests-for", r.Requests}} {
		if d.value < 0 {
			return errs.Field(op, d.name, "NEGATIVE", "%v is negative", d.value)
		}
	}
	if r.Count < 0 {
		return errs.Field(op, "keep-jobs", "NEGATIVE", "%d is negative", r.Count)
	}
	return nil
}

// limits tells whether anything is ever removed.
func (r *Retention) limits() bool { return r.For > 0 || r.FailedFor > 0 || r.Count > 0 }

// keep is how long a job of this outcome is kept; 0 is for ever.
func (r *Retention) keep(s job.State) time.Duration {
	if s == job.Failed || s == job.Lost || s == job.Rejected {
		return r.FailedFor
	}
	return r.For
}

// shortest is the least age at which any record may go; 0 is never.
func (r *Retention) shortest() time.Duration {
	if r.For == 0 || r.FailedFor == 0 {
		return max(r.For, r.FailedFor)
	}
	return min(r.For, r.FailedFor)
}

// every is how long a record may stay after its time: a quarter of it, and a
// minute at the most.
func (r *Retention) every() time.Duration {
	if d := r.shortest(); d > 0 {
		return min(max(d/4, retainOften), retainEvery)
	}
	return retainEvery
}

// removes tells whether a record goes now; over tells that there are more than
// Count. The age counts from the end, whoever settled the job.
func (r *Retention) removes(j *job.Job, now time.Time, over bool) bool {
	if !j.State.Terminal() || j.RequestID != "" && now.Sub(j.Submit) < r.Requests {
		return false
	}
	end := j.Ended
	if end.IsZero() { // of an earlier version
		end = j.Result.End
	}
	if end.Before(j.Submit) {
		end = j.Submit
	}
	keep := r.keep(j.State)
	return over || keep > 0 && now.Sub(end) >= keep
}

// retainer removes records that need not be kept any more. Its methods are
// called by one goroutine, but for changed.
type retainer struct {
	s     *Scheduler
	rules Retention
	begun time.Time // with its monotonic reading

	terminal atomic.Int64 // records of terminal jobs, as far as they were counted
	counted  time.Time
	next     []byte // where the next step begins
}

// now is the wall clock of the start plus the time since: a clock that is set
// while the scheduler runs removes nothing (P14).
func (r *retainer) now() time.Time {
	return r.begun.Round(0).Add(r.s.config.Now().Sub(r.begun))
}

// changed follows what is committed.
func (r *retainer) changed(effects []Effect) {
	n := int64(0)
	for i := range effects {
		switch e := &effects[i]; {
		case e.Put != nil && e.Drop && !e.Amend:
			n++
		case e.Delete != nil:
			n--
		}
	}
	if n != 0 {
		r.terminal.Add(n)
	}
}

// run makes passes over the records until ctx ends.
func (r *retainer) run(ctx context.Context) {
	if !r.rules.limits() {
		return
	}
	trouble := false
	every := r.rules.every()
	timer := time.NewTimer(every)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		err := r.step(ctx)
		if err != nil && ctx.Err() == nil && !trouble {
			r.s.config.Log.Warn("old job records not removed, trying on", "error", err)
		}
		trouble = err != nil
		pause := retainPause
		if r.next == nil || err != nil {
			pause = every
		}
		timer.Reset(pause)
	}
}

// step looks at some records, oldest first, and has those removed that go.
func (r *retainer) step(ctx context.Context) error {
	if now := r.s.config.Now(); r.rules.Count > 0 && (r.counted.IsZero() || now.Sub(r.counted) >= countEvery) {
		if err := r.count(ctx); err != nil {
			return err
		}
		r.counted = now
	}
	jobs, err := r.gather(ctx)
	if err != nil || len(jobs) == 0 {
		return err
	}
	_, err = r.s.ask(ctx, r.s.normal, Event{Forget: jobs})
	return err
}

// gather reads one step's records and returns those that go. At the end of a
// pass next is nil.
func (r *retainer) gather(ctx context.Context) ([]job.Job, error) {
	var (
		out   []job.Job
		now   = r.now()
		young = r.rules.shortest()
		over  = int64(0)
		seen  = 0
		scan  = store.Prefix([]byte{prefixJob})
	)
	if r.rules.Count > 0 {
		over = r.terminal.Load() - int64(r.rules.Count)
	}
	if r.next != nil {
		scan.From = r.next
	}
	r.next = nil
	for p, err := range r.s.config.Store.Scan(ctx, scan) {
		if err != nil {
			return nil, errs.E("look for old jobs", errs.Internal, "STORE", err)
		}
		if seen == retainStep {
			r.next = p.Key
			break
		}
		seen++
		j, err := decodeJob(p.Value)
		if err != nil {
			return nil, errs.E("look for old jobs", errs.Internal, "STORE", err)
		}
		// Ids sort by the time of submission: all that follow are younger. The time
		// in an id is no age: ids go on from the highest when the clock is set back.
		if over <= int64(len(out)) && (young == 0 || now.Sub(j.Submit) < young) {
			break
		}
		if r.rules.removes(j, now, over > int64(len(out))) {
			out = append(out, *j)
		}
	}
	return out, nil
}

// count counts the records of terminal jobs: every job has one entry among the
// suffixes, a live one also among the live.
func (r *retainer) count(ctx context.Context) error {
	r.terminal.Store(0)
	n := int64(0)
	for _, part := range []struct {
		prefix byte
		sign   int64
	}{{prefixSuffix, 1}, {prefixLive, -1}} {
		for _, err := range r.s.config.Store.Scan(ctx, store.Prefix([]byte{part.prefix})) {
			if err != nil {
				return errs.E("count jobs", errs.Internal, "STORE", err)
			}
			n += part.sign
		}
	}
	r.terminal.Add(n)
	return nil
}
