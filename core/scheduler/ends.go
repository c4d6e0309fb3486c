package scheduler

import (
	"context"
	"fmt"
	"sync"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

// Bounds of waiting for many jobs (P21).
const (
	// MaxAwaited is how many jobs one Ends waits for.
	MaxAwaited = 100_000
	// awaitedBytes is what a job that is waited for takes, until its end is taken.
	awaitedBytes    = 128
	awaitedOfCaller = 64 << 20 // bytes of one caller's
	awaitedOfAll    = 256 << 20
)

// End is the end of a job; Job is nil when there is no such job. It holds how the job
// ended and nothing else, and is read only.
type End struct {
	ID  job.ID
	Job *job.Job

	later bool // Job is read when the end is taken
}

// endOf keeps of a job what its end tells: many ends may wait for a slow client, and
// must not hold all that was asked for.
func endOf(j *job.Job) *job.Job {
	return &job.Job{
		ID: j.ID, State: j.State, Reason: j.Reason, Message: job.Shorten(j.Message, job.MaxMessage), Attempt: j.Attempt,
		WorkerName: j.WorkerName, Result: job.Report{ExitCode: j.Result.ExitCode, Signal: j.Result.Signal},
	}
}

// Ends gathers the ends of many jobs for one client. Add and Next may be called
// at the same time, each by one goroutine.
type Ends struct {
	scheduler *Scheduler
	by        Caller
	group     *group

	// Guarded by awaited.mu.
	held   int // jobs that were added and not taken yet
	closed bool
}

// Ends returns an empty gathering; Close it.
func (s *Scheduler) Ends(by Caller) *Ends {
	return &Ends{scheduler: s, by: by, group: &group{waits: map[job.ID]int{}, wake: make(chan struct{}, 1)}}
}

const opAwait = "wait for jobs"

// Add waits for further jobs. Those that have ended are there for Next at once,
// and so are those that do not exist, or that a submitter may not see.
func (e *Ends) Add(_ context.Context, ids []job.ID) error {
	if err := e.scheduler.awaited.take(e, len(ids)); err != nil {
		return err
	}
	for _, id := range e.scheduler.hub.attend(e.group, ids, e.sees) {
		e.group.ended(End{ID: id, later: true})
	}
	return nil
}

func (e *Ends) sees(j *job.Job) bool { return e.by.sees(j) }

// Finish says that no Add follows: Next then tells when all is told.
func (e *Ends) Finish() { e.group.finish() }

// Next waits for ends and returns some of those that there are; none when every job
// that was added has been told, after Finish.
func (e *Ends) Next(ctx context.Context) ([]End, error) {
	for {
		ends, over := e.group.take()
		e.scheduler.awaited.give(e, len(ends))
		if over {
			return nil, nil
		}
		if len(ends) > 0 {
			return ends, e.read(ctx, ends)
		}
		select {
		case <-e.group.wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// read reads the jobs of ends that were not kept.
func (e *Ends) read(ctx context.Context, ends []End) error {
	for i := range ends {
		end := &ends[i]
		if !end.later {
			continue
		}
		j, err := e.scheduler.read(ctx, opAwait, end.ID)
		switch {
		case errs.KindOf(err) == errs.NotFound:
		case err != nil:
			return err
		case e.sees(&j): // as find: others look as if they did not exist
			end.Job = endOf(&j)
		}
	}
	return nil
}

// Close forgets the jobs that are still waited for.
func (e *Ends) Close() {
	e.scheduler.hub.leave(e.group)
	e.scheduler.awaited.leave(e)
}

// awaited counts the jobs that are waited for. It may be used concurrently.
type awaited struct {
	mu  sync.Mutex // guards the fields below, and those of each Ends
	all int
	of  map[string]int // by caller
}

// take counts n more of an Ends, unless there are too many.
func (a *awaited) take(e *Ends, n int) error {
	who := e.by.identity()
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case e.closed:
		return nil
	case e.held+n > MaxAwaited:
		return errs.E(opAwait, errs.Exhausted, "TOO_MANY", fmt.Errorf("%d jobs are waited for, at most %d", e.held+n, MaxAwaited)).
			WithHint("take answers first, or open one more stream")
	case a.of[who]+n > awaitedOfCaller/awaitedBytes:
		return errs.E(opAwait, errs.Exhausted, bytesExhausted,
			fmt.Errorf("%s waits for %d jobs, which takes more than %d bytes", e.by.Name, a.of[who]+n, awaitedOfCaller)).
			WithHint("wait for fewer jobs at once, and take answers first")
	case a.all+n > awaitedOfAll/awaitedBytes:
		return errs.E(opAwait, errs.Exhausted, bytesExhausted,
			fmt.Errorf("%d jobs are waited for, which takes more than %d bytes", a.all+n, awaitedOfAll)).
			WithHint("wait for fewer jobs at once, or try again later")
	}
	e.held += n
	a.all += n
	a.of[who] += n
	return nil
}

// give takes back n of an Ends.
func (a *awaited) give(e *Ends, n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.drop(e, n)
}

// leave takes back all of an Ends, for good.
func (a *awaited) leave(e *Ends) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.drop(e, e.held)
	e.closed = true
}

// drop stops counting n of an Ends; a.mu is held.
func (a *awaited) drop(e *Ends, n int) {
	n = min(n, e.held)
	who := e.by.identity()
	e.held -= n
	a.all -= n
	if a.of[who] -= n; a.of[who] == 0 {
		delete(a.of, who)
	}
}
