package scheduler

import (
	"context"
	"strconv"

	"github.com/google/uuid"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

// Bounds of requests that speak of many jobs (P16).
const (
	// MaxSubmits is how many jobs one StartJobs takes.
	MaxSubmits = 1000
	// bulksAtOnce is how many StartJobs and removals wait for their commit at once.
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
	leave, err := s.bulk()
	if err != nil {
		return nil, err
	}
	bytes := int64(0)
	for i := range submits {
		bytes += submits[i].Spec.Bytes()
	}
	done, err := s.submitting(bytes)
	if err != nil {
		leave()
		return nil, err
	}
	r, err := s.ask(ctx, s.normal, Event{Submits: submits, Bytes: bytes, done: func() { done(); leave() }})
	return r.Jobs, err
}

// bulk counts a request that speaks of many jobs until leave.
func (s *Scheduler) bulk() (leave func(), err error) {
	select {
	case s.bulks <- struct{}{}:
		return func() { <-s.bulks }, nil
	default:
		return nil, overloaded("ask the scheduler", "too many requests are waiting")
	}
}
