package rpc

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/output"
	"github.com/droverhq/drover/core/registry"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// StreamOutput implements the service: it finds the worker and passes its
// frames on unparsed. The scheduler keeps no byte of output.
func (s *SchedulerServer) StreamOutput(r *droverv1.StreamOutputRequest, stream grpc.ServerStreamingServer[droverv1.StreamOutputResponse]) error {
	ctx := stream.Context()
	if err := checkStream(r.GetStream()); err != nil {
		return err
	}
	j, a, w, err := s.scheduler.Locate(ctx, caller(ctx), r.GetJobId(), r.GetAttempt())
	if err != nil {
		return err
	}
	// Who follows the newest attempt of a job that waits wants the next one.
	if waits := !a.State.Terminal() || r.GetAttempt() == 0 && r.GetFollow(); waits && j.State <= job.Dispatched {
		if !r.GetFollow() {
			return nil
		}
		if _, err := s.scheduler.AwaitStart(ctx, j.ID); err != nil {
			return err
		}
		if j, a, w, err = s.scheduler.Locate(ctx, caller(ctx), j.ID.String(), r.GetAttempt()); err != nil {
			return err
		}
	}
	if neverWrote(&a) {
		return sendEnds(&a, r, stream)
	}
	req := &droverv1.WorkerServiceStreamOutputRequest{
		JobId: j.ID.String(), Attempt: a.Number, Stream: r.GetStream(), StdoutOffset: r.GetStdoutOffset(),
		StderrOffset: r.GetStderrOffset(), Follow: r.GetFollow(), TailBytes: r.TailBytes, Since: r.GetSince(),
	}
	flow := newFlow(&s.windows)
	defer flow.close()
	err = s.workers.forward(ctx, &w, &relay{req: req, to: stream, flow: flow, stall: stallAfter, gone: func() error {
		if _, _, _, err := s.scheduler.Locate(ctx, caller(ctx), j.ID.String(), a.Number); errs.KindOf(err) == errs.NotFound {
			return errGone()
		}
		return nil
	}})
	if status.Code(err) != codes.NotFound || flow.began() {
		return outputError(err)
	}
	// The worker has no output of it: it never came to be, or it is gone.
	if !a.State.Terminal() {
		if !r.GetFollow() {
			return nil
		}
		if j, err = s.scheduler.Job(ctx, caller(ctx), j.ID.String(), true); err != nil {
			return err
		}
		a, _ = j.AttemptOf(a.Number)
	}
	return sendEnds(&a, r, stream)
}

// outputError keeps statuses of the worker and names the one that matters.
func outputError(err error) error {
	if status.Code(err) == codes.Unavailable {
		return errs.E("read output", errs.Unavailable, "WORKER_UNREACHABLE", errors.New("its worker cannot be reached: "+status.Convert(err).Message())).
			WithHint("the output is on the worker's disk and can be read when it is back")
	}
	return err
}

// neverWrote tells whether an attempt is settled without a byte of output.
func neverWrote(a *job.Attempt) bool {
	return a.State.Terminal() && a.Stdout.Size == 0 && a.Stderr.Size == 0
}

// sendEnds closes the streams of an attempt whose bytes cannot be had: what it
// wrote is declared as a gap, never passed over in silence (P8).
func sendEnds(a *job.Attempt, r *droverv1.StreamOutputRequest, stream grpc.ServerStreamingServer[droverv1.StreamOutputResponse]) error {
	for _, st := range []struct {
		id   droverv1.Stream
		sum  job.Stream
		from uint64
	}{
		{droverv1.Stream_STREAM_STDOUT, a.Stdout, r.GetStdoutOffset()},
		{droverv1.Stream_STREAM_STDERR, a.Stderr, r.GetStderrOffset()},
	} {
		if r.GetStream() != droverv1.Stream_STREAM_UNSPECIFIED && r.GetStream() != st.id {
			continue
		}
		if st.from < st.sum.Size {
			gap := &droverv1.OutputChunk{
				Stream: st.id, Offset: st.from,
				Kind: &droverv1.OutputChunk_Gap{Gap: &droverv1.OutputGap{To: st.sum.Size, Reason: "RETENTION"}},
			}
			if err := stream.Send(&droverv1.StreamOutputResponse{Chunk: gap}); err != nil {
				return err
			}
		}
		if st.sum.Size == 0 && st.sum.SHA256 == "" && (a.ExitCode != nil || a.Signal != "") {
			gap := &droverv1.OutputChunk{Stream: st.id, Kind: &droverv1.OutputChunk_Gap{Gap: &droverv1.OutputGap{Reason: output.Unread}}}
			if err := stream.Send(&droverv1.StreamOutputResponse{Chunk: gap}); err != nil {
				return err
			}
		} else if st.sum.Size == 0 {
			empty := sha256.Sum256(nil)
			st.sum.SHA256 = hex.EncodeToString(empty[:])
		}
		end := &droverv1.OutputChunk{
			Stream: st.id, Offset: st.sum.Size,
			Kind: &droverv1.OutputChunk_End{End: &droverv1.OutputEnd{Size: st.sum.Size, Sha256: st.sum.SHA256}},
		}
		if err := stream.Send(&droverv1.StreamOutputResponse{Chunk: end}); err != nil {
			return err
		}
	}
	return nil
}

// forward opens the worker's stream and passes frames on. Request and response
// of the two services have the same wire form for what is passed on.
func (c *Connector) forward(ctx context.Context, w *registry.Worker, r *relay) error {
	conn, err := c.conn(w.ID, w.Address, w.Name)
	if err != nil {
		return err
	}
	r.open = func(ctx context.Context, req *droverv1.WorkerServiceStreamOutputRequest) (grpc.ClientStream, error) {
		from, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, droverv1.WorkerService_StreamOutput_FullMethodName)
		if err != nil {
			return nil, err
		}
		if err := from.SendMsg(req); err != nil {
			return nil, err
		}
		return from, from.CloseSend()
	}
	return r.run(ctx)
}
