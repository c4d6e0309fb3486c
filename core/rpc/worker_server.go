package rpc

import (
	"context"
	"errors"
	"io"
	"log/slog"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/output"
	"github.com/droverhq/drover/core/worker"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// WorkerServer serves drover.v1.WorkerService for one worker.
type WorkerServer struct {
	droverv1.UnimplementedWorkerServiceServer
	worker  *worker.Worker
	output  *output.Store
	source  *certs.Source
	log     *slog.Logger
	loans   loans // for output that is on its way
	windows windows
}

// NewWorkerServer returns the service. source takes the lists of revoked certificates
// that a scheduler passes on.
func NewWorkerServer(w *worker.Worker, o *output.Store, source *certs.Source, log *slog.Logger) *WorkerServer {
	return &WorkerServer{worker: w, output: o, source: source, log: log}
}

// StartJob implements the service.
func (s *WorkerServer) StartJob(ctx context.Context, r *droverv1.WorkerServiceStartJobRequest) (*droverv1.WorkerServiceStartJobResponse, error) {
	o, err := startFromProto(r.GetStart())
	if err != nil {
		return nil, err
	}
	report, err := s.worker.Start(ctx, o)
	if err != nil {
		return nil, err
	}
	return &droverv1.WorkerServiceStartJobResponse{Report: reportToProto(&report)}, nil
}

// StopJob implements the service.
func (s *WorkerServer) StopJob(ctx context.Context, r *droverv1.WorkerServiceStopJobRequest) (*droverv1.WorkerServiceStopJobResponse, error) {
	o, err := stopFromProto(r.GetStop())
	if err != nil {
		return nil, err
	}
	report, err := s.worker.Stop(ctx, o, r.GetWait())
	if err != nil {
		return nil, err
	}
	return &droverv1.WorkerServiceStopJobResponse{Report: reportToProto(&report)}, nil
}

// GetJob implements the service.
func (s *WorkerServer) GetJob(ctx context.Context, r *droverv1.WorkerServiceGetJobRequest) (*droverv1.WorkerServiceGetJobResponse, error) {
	key, err := keyFromProto(r.GetJobId(), r.GetAttempt())
	if err != nil {
		return nil, err
	}
	report, err := s.worker.Attempt(ctx, key)
	if err != nil {
		return nil, err
	}
	return &droverv1.WorkerServiceGetJobResponse{Report: reportToProto(&report)}, nil
}

// StreamOutput implements the service.
func (s *WorkerServer) StreamOutput(r *droverv1.WorkerServiceStreamOutputRequest, stream grpc.ServerStreamingServer[droverv1.WorkerServiceStreamOutputResponse]) error {
	ctx := stream.Context()
	if err := checkStream(r.GetStream()); err != nil {
		return err
	}
	key, err := keyFromProto(r.GetJobId(), r.GetAttempt())
	if err != nil {
		return err
	}
	if key.Attempt == 0 {
		report, err := s.worker.Attempt(ctx, key)
		if err != nil {
			return err
		}
		key = report.Key
	}
	reader, err := s.open(key, r)
	if err != nil {
		return err
	}
	defer reader.Close()
	since := timeOf(r.GetSince())
	memory := loan{from: &s.loans}
	reader.Into(memory.take)
	flow := newFlow(&s.windows)
	defer flow.close()
	gone := func() error {
		if s.output.Gone(key) {
			return errGone()
		}
		return nil
	}
	for {
		n := flow.piece()
		if n == 0 {
			if n, err = flow.stand(ctx, gone); err != nil {
				return err
			}
		}
		if most := int(r.GetPieceBytes()); most > 0 {
			n = min(n, max(most, headBytes))
		}
		reader.Limit(n)
		c, err := reader.Next(ctx, r.GetFollow())
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		data := memory.buffer()
		if c.Data != nil && c.Time.Before(since) {
			data.Free()
			continue
		}
		if err := sendChunk(stream, &c, data, flow); err != nil {
			return err
		}
	}
}

// sendChunk sends a piece of output; data is its memory.
func sendChunk(stream grpc.ServerStream, c *output.Chunk, data mem.Buffer, to *flow) error {
	f, err := chunkFrame(c, data)
	if err != nil {
		return err
	}
	defer f.release()
	to.load(f)
	return stream.SendMsg(f)
}

func (s *WorkerServer) open(key job.Key, r *droverv1.WorkerServiceStreamOutputRequest) (*output.Reader, error) {
	from := [2]uint64{r.GetStdoutOffset(), r.GetStderrOffset()}
	if r.TailBytes != nil {
		stdout, stderr, _ := s.output.Sizes(key)
		from = [2]uint64{stdout - min(stdout, r.GetTailBytes()), stderr - min(stderr, r.GetTailBytes())}
	}
	switch r.GetStream() {
	case droverv1.Stream_STREAM_STDOUT:
		return s.output.Read(key, output.Stdout, from[0])
	case droverv1.Stream_STREAM_STDERR:
		return s.output.Read(key, output.Stderr, from[1])
	default:
		return s.output.ReadBoth(key, from)
	}
}

func chunkToProto(c *output.Chunk) *droverv1.OutputChunk {
	p := &droverv1.OutputChunk{Stream: droverv1.Stream(c.Stream), Offset: c.Offset, Time: timestamp(c.Time)}
	switch {
	case c.End != nil:
		p.Kind = &droverv1.OutputChunk_End{End: &droverv1.OutputEnd{Size: c.End.Size, Sha256: c.End.SHA256}}
	case c.Gap != nil:
		p.Kind = &droverv1.OutputChunk_Gap{Gap: &droverv1.OutputGap{To: c.Gap.To, Reason: c.Gap.Reason}}
	default:
		p.Kind = &droverv1.OutputChunk_Data{Data: c.Data}
	}
	return p
}

// Session implements the service.
func (s *WorkerServer) Session(stream grpc.BidiStreamingServer[droverv1.SessionRequest, droverv1.SessionResponse]) error {
	const op = "open session"
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if first.GetHello() == nil {
		return errs.Field(op, "hello", "HELLO_MISSING", "the first frame has none")
	}
	id, err := parseID(op, "worker_id", first.GetHello().GetWorkerId())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	down := make(chan worker.Down)
	// Recv ends only when this call has returned, so nothing here can wait for
	// the receiver; it touches nothing but the stream and its own channel.
	go func() {
		defer close(down)
		cancel(s.receive(ctx, stream, down))
	}()
	lives, err := job.DecodeLives(first.GetHello().GetLives())
	if err != nil {
		return errs.Field(op, "lives", "SIZE", "%w", err)
	}
	hello := worker.SessionHello{
		Term: first.GetHello().GetTerm(), WorkerID: id, History: job.History{Lives: lives, Decided: first.GetHello().GetDecidedTerm()},
	}
	err = s.worker.Session(ctx, hello, down, func(u worker.Up) error {
		return sendUp(&u, first.GetHello().GetIndexParts(), stream.Send)
	})
	if cause := context.Cause(ctx); errs.KindOf(cause) == errs.Invalid {
		return cause
	}
	if strange := (*job.StrangeLifeError)(nil); errors.As(err, &strange) {
		last := job.EncodeLives([]job.Life{strange.Last})
		// The reason comes after it; whoever does not read this one reads that.
		_ = stream.Send(&droverv1.SessionResponse{Hello: &droverv1.WorkerHello{StrangeLife: last}})
	}
	return err
}

// receive hands frames on until the stream ends; the error says why.
func (s *WorkerServer) receive(ctx context.Context, stream grpc.BidiStreamingServer[droverv1.SessionRequest, droverv1.SessionResponse], down chan<- worker.Down) error {
	for {
		f, err := stream.Recv()
		if err != nil {
			return err
		}
		if list := f.GetRevocations(); len(list) > 0 { // P22
			if err := s.source.TakeRevocations(list); err != nil {
				s.log.Warn("revoked certificates may go on being accepted", "error", err)
			}
		}
		d, err := downFromProto(f)
		if err != nil {
			return err
		}
		select {
		case down <- d:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func downFromProto(f *droverv1.SessionRequest) (d worker.Down, err error) {
	for _, p := range f.GetStarts() {
		o, err := startFromProto(p)
		if err != nil {
			return d, err
		}
		d.Starts = append(d.Starts, o)
	}
	for _, p := range f.GetStops() {
		o, err := stopFromProto(p)
		if err != nil {
			return d, err
		}
		d.Stops = append(d.Stops, o)
	}
	if d.Acks, err = keysFromProto(f.GetAcks()); err != nil {
		return d, err
	}
	d.Forgets, err = keysFromProto(f.GetForgets())
	return d, err
}

// sendUp cuts news into frames. Reports and runners are bounded in number and each in
// size (core/job), so that one frame has room for them; scripts may take several.
func sendUp(u *worker.Up, parts bool, send func(*droverv1.SessionResponse) error) error {
	f := &droverv1.SessionResponse{}
	if h := u.Hello; h != nil {
		f.Hello = &droverv1.WorkerHello{BootId: h.BootID, InstanceId: h.InstanceID, Complete: h.Complete, Lapses: h.Lapses}
	}
	for i := range u.Reports {
		f.Reports = append(f.Reports, reportToProto(&u.Reports[i]))
	}
	f.Forgotten = keysToProto(u.Forgotten)
	if u.Runners != nil {
		f.Runners = &droverv1.RunnerIndex{Runners: runnersToProto(u.Runners)}
	}
	if u.Scripts == nil {
		return send(f)
	}
	for _, part := range indexToProto(u.Scripts, parts) {
		if part.GetPart() > 0 || proto.Size(f)+proto.Size(part) > MaxMessage {
			if err := send(f); err != nil {
				return err
			}
			f = &droverv1.SessionResponse{}
		}
		f.Scripts = part
	}
	return send(f)
}
