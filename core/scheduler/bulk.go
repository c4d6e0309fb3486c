package scheduler

import (
	"context"
	"fmt"
	"strconv"

	"github.com/google/uuid"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

// Bounds of requests that speak of many jobs (P16).
const (
	// MaxSubmits is how many jobs one StartJobs takes.
	MaxSubmits = 1000
	// MaxAwaited is how many jobs one Ends waits for.
	MaxAwaited = 100_000
	// bulksAtOnce is how many StartJobs wait for their commit at once.
	bulksAtOnce = 64
)

// Request is one of several submits.
type Request struct {
	Spec      job.Spec
	RequestID string
	Err       error // what was found wrong before; it is the answer
}

// StartJobs accepts many jobs durably (P1) and answers each in its place. A job
// without a request id gets one from batch, if that is not empty, so that the
// same batch makes nothing twice.
func (s *Scheduler) StartJobs(ctx context.Context, by Caller, batch string, requests []Request) ([]Answer, error) {
	switch {
	case len(requests) == 0:
		return nil, invalid("jobs", "MISSING", "there are none")
	case len(requests) > MaxSubmits:
		return nil, invalid("jobs", "TOO_MANY", "%d jobs, at most %d in one request", len(requests), MaxSubmits)
	}
	if err := s.room(); err != nil {
		return nil, err
	}
	answers := make([]Answer, len(requests))
	submits, places := make([]Submit, 0, len(requests)), make([]int, 0, len(requests))
	now := s.config.Now().Round(0).UTC()
	for i := range requests {
		r := &requests[i]
		if r.RequestID == "" && batch != "" {
			r.RequestID = batch + "/" + strconv.Itoa(i)
		}
		if answers[i].Err = r.Err; r.Err == nil {
			answers[i].Err = validate(&r.Spec, r.RequestID)
		}
		if answers[i].Err != nil {
			continue
		}
		id, err := uuid.NewV7()
		if err != nil {
			return nil, errs.E(opSubmit, errs.Internal, "ID", err)
		}
		submits = append(submits, Submit{ID: id, Spec: r.Spec, Caller: by, RequestID: r.RequestID, Time: now})
		places = append(places, i)
	}
	if len(submits) == 0 {
		return answers, nil
	}
	got, err := s.submit(ctx, submits)
	if err != nil {
		return nil, err
	}
	for k, a := range got {
		answers[places[k]] = a
	}
	return answers, nil
}

// submit passes many submits through the loop.
func (s *Scheduler) submit(ctx context.Context, submits []Submit) ([]Answer, error) {
	select {
	case s.bulks <- struct{}{}:
		defer func() { <-s.bulks }()
	default:
		return nil, overloaded("ask the scheduler", "too many requests are waiting")
	}
	bytes := int64(0)
	for i := range submits {
		bytes += submits[i].Spec.Bytes()
	}
	done, err := s.submitting(bytes)
	if err != nil {
		return nil, err
	}
	defer done()
	r, err := s.ask(ctx, s.normal, Event{Submits: submits, Bytes: bytes})
	return r.Jobs, err
}

// End is the end of a job; Job is nil when there is no such job. It holds how the job
// ended and nothing else, and is read only.
type End struct {
	ID  job.ID
	Job *job.Job
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
}

// Ends returns an empty gathering; Close it.
func (s *Scheduler) Ends(by Caller) *Ends {
	return &Ends{scheduler: s, by: by, group: &group{waits: map[job.ID]int{}, wake: make(chan struct{}, 1)}}
}

// Add waits for further jobs. Those that have ended are there for Next at once,
// and so are those that do not exist, or that a submitter may not see.
func (e *Ends) Add(ctx context.Context, ids []job.ID) error {
	if n := e.group.pending(); n+len(ids) > MaxAwaited {
		return errs.E(opAwait, errs.Exhausted, "TOO_MANY", fmt.Errorf("%d jobs are waited for, at most %d", n+len(ids), MaxAwaited)).
			WithHint("take answers first, or open one more stream")
	}
	for _, id := range e.scheduler.hub.attend(e.group, ids, e.sees) {
		j, err := e.scheduler.read(ctx, opAwait, id)
		end := End{id, endOf(&j)}
		switch {
		case errs.KindOf(err) == errs.NotFound:
			end.Job = nil
		case err != nil:
			return err
		case !e.sees(&j):
			end.Job = nil // as find: it looks as if it did not exist
		}
		e.group.ended(end)
	}
	return nil
}

const opAwait = "wait for jobs"

func (e *Ends) sees(j *job.Job) bool { return e.by.sees(j) }

// Finish says that no Add follows: Next then tells when all is told.
func (e *Ends) Finish() { e.group.finish() }

// Next waits for ends and returns all that there are; none when every job that
// was added has been told, after Finish.
func (e *Ends) Next(ctx context.Context) ([]End, error) {
	for {
		if ends, over := e.group.take(); len(ends) > 0 || over {
			return ends, nil
		}
		select {
		case <-e.group.wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Close forgets the jobs that are still waited for.
func (e *Ends) Close() { e.scheduler.hub.leave(e.group) }
