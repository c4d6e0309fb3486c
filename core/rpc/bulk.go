package rpc

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/scheduler"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// StartJobs implements the service.
func (s *SchedulerServer) StartJobs(ctx context.Context, r *droverv1.StartJobsRequest) (*droverv1.StartJobsResponse, error) {
	requests := make([]scheduler.Request, len(r.GetJobs()))
	for i, q := range r.GetJobs() {
		spec, err := specFromRequest(q)
		requests[i] = scheduler.Request{Spec: spec, RequestID: q.GetRequestId(), Err: err}
	}
	answers, err := s.scheduler.StartJobs(ctx, caller(ctx), r.GetRequestId(), requests)
	if err != nil {
		return nil, err
	}
	out := &droverv1.StartJobsResponse{Results: make([]*droverv1.StartJobsResult, len(answers))}
	for i := range answers {
		out.Results[i] = answerToProto(&answers[i])
	}
	return out, nil
}

func answerToProto(a *scheduler.Answer) *droverv1.StartJobsResult {
	if a.Err == nil {
		return &droverv1.StartJobsResult{Kind: &droverv1.StartJobsResult_JobId{JobId: a.ID.String()}}
	}
	p := &droverv1.StartJobsError{Code: uint32(status.Code(ToStatus(a.Err))), Message: job.Shorten(a.Err.Error(), maxText)}
	if e := (*errs.Error)(nil); errors.As(a.Err, &e) {
		p.Reason, p.Hint, p.Field = e.Reason, job.Shorten(e.Hint, maxText/2), job.Shorten(e.Field, job.MaxCode)
	}
	return &droverv1.StartJobsResult{Kind: &droverv1.StartJobsResult_Error{Error: p}}
}

// WaitJobs implements the service.
func (s *SchedulerServer) WaitJobs(stream grpc.BidiStreamingServer[droverv1.WaitJobsRequest, droverv1.WaitJobsResponse]) error {
	// At once, so that the client knows that it is heard: ends may take hours.
	if err := stream.SendHeader(metadata.MD{}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	ends := s.scheduler.Ends(caller(ctx))
	defer ends.Close()
	// Recv ends only when this call has returned, so nothing here can wait for
	// the reader; after that Add changes nothing.
	go func() {
		if err := readWaits(ctx, stream, ends); err != nil {
			cancel(err)
		}
	}()
	for {
		next, err := ends.Next(ctx)
		if err != nil {
			return context.Cause(ctx)
		}
		if len(next) == 0 {
			return nil
		}
		for ends := range frames(next, endToProto) {
			if err := stream.Send(&droverv1.WaitJobsResponse{Ends: ends}); err != nil {
				return err
			}
		}
	}
}

// readWaits adds what the client asks for until it closes its side.
func readWaits(ctx context.Context, stream grpc.BidiStreamingServer[droverv1.WaitJobsRequest, droverv1.WaitJobsResponse], ends *scheduler.Ends) error {
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			ends.Finish()
			return nil
		}
		if err != nil {
			return err
		}
		ids := make([]job.ID, len(r.GetJobIds()))
		for i, id := range r.GetJobIds() {
			if ids[i], err = parseID("wait for jobs", "job_ids", id); err != nil {
				return err
			}
		}
		if err := ends.Add(ctx, ids); err != nil {
			return err
		}
	}
}

func endToProto(e *scheduler.End) *droverv1.JobEnd {
	p := &droverv1.JobEnd{JobId: e.ID.String()}
	if j := e.Job; j != nil {
		p.State, p.Reason, p.Message = droverv1.JobState(j.State), j.Reason, j.Message
		p.ExitCode, p.Signal, p.Attempt, p.WorkerName = j.Result.ExitCode, j.Result.Signal, j.Attempt, j.WorkerName
	}
	return p
}
