// Package follow reads the output of a job and goes on at the same byte when
// the connection breaks.
package follow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/droverhq/drover/cmd/drover/internal/problem"
	"github.com/droverhq/drover/core/errs"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// Waits between attempts to connect again.
const (
	firstWait = 50 * time.Millisecond
	lastWait  = 2 * time.Second
)

// Opener opens a stream of output. The scheduler's client is one.
type Opener interface {
	StreamOutput(context.Context, *droverv1.StreamOutputRequest, ...grpc.CallOption) (grpc.ServerStreamingClient[droverv1.StreamOutputResponse], error)
}

// Sink takes the bytes. Write must not keep data.
type Sink interface {
	Write(stream droverv1.Stream, at time.Time, data []byte) error
}

// Config says what to read and how patiently.
type Config struct {
	Opener  Opener
	Request *droverv1.StreamOutputRequest // is not written
	Sink    Sink
	// Finished tells whether the job is terminal. It is asked when a followed
	// stream ends without saying that it is complete.
	Finished func(context.Context) (bool, error)
	// Patience is how long connecting again is tried after the last progress.
	Patience time.Duration
	// Eager also tries again when nothing has come yet: the job is known to exist.
	Eager bool
	// Notice is called when a connection is lost, once per loss. May be nil.
	Notice func(why error)
}

// Missing is a range of bytes that did not come.
type Missing struct {
	Stream   droverv1.Stream
	From, To uint64
	Reason   string
}

// Undeclared is the reason of a range that the other side did not explain.
const Undeclared = "UNDECLARED"

// Unread is the reason of a gap without a length at the end of a stream: what was
// left in a pipe when worker and plugin were killed together, if anything, is lost.
const Unread = "UNREAD"

// String says what is missing for people.
func (m Missing) String() string {
	if m.Reason == Unread {
		return fmt.Sprintf("%s: what follows byte %d may be missing: %s (worker and plugin were killed together, or there was no room for it when the job was stopped)", Name(m.Stream), m.To, m.Reason)
	}
	text := fmt.Sprintf("%s: bytes %d to %d are missing: %s", Name(m.Stream), m.From, m.To, m.Reason)
	switch m.Reason {
	case "RETENTION_AGE":
		text += " (its worker does not keep the output of ended jobs for longer)"
	case "RETENTION_COUNT":
		text += " (its worker keeps the output of so many ended jobs, and newer ones have come)"
	case "RETENTION_QUOTA":
		text += " (the quota of its worker was used up)"
	}
	return text
}

// Name returns stdout or stderr.
func Name(s droverv1.Stream) string {
	if s == droverv1.Stream_STREAM_STDERR {
		return "stderr"
	}
	return "stdout"
}

// Summary is what a read came to.
type Summary struct {
	Stdout, Stderr Position
	Missing        []Missing
}

// Position is how far one stream was read.
type Position struct {
	Known bool   // whether Next is known: a read of the tail may find nothing
	Next  uint64 // the offset after the last byte
	First uint64 // the offset of the first byte that came
	End   *droverv1.OutputEnd
}

// SinkError is an error of the sink, as opposed to one of the connection.
type SinkError struct{ Err error }

// Error implements error.
func (e *SinkError) Error() string { return "write output: " + e.Err.Error() }

// Unwrap returns the sink's error.
func (e *SinkError) Unwrap() error { return e.Err }

// reader is one read with its reconnects. It is used by one goroutine.
type reader struct {
	Config
	sum      Summary
	progress time.Time
	came     bool // anything at all
}

// Run reads until every wanted stream has ended, or, without Follow, until
// there is no more now. The summary is valid also with an error.
func Run(ctx context.Context, c Config) (Summary, error) {
	r := &reader{Config: c, progress: time.Now()}
	if c.Request.TailBytes == nil && c.Request.GetSince() == nil {
		r.sum.Stdout = Position{Known: true, Next: c.Request.GetStdoutOffset(), First: c.Request.GetStdoutOffset()}
		r.sum.Stderr = Position{Known: true, Next: c.Request.GetStderrOffset(), First: c.Request.GetStderrOffset()}
	}
	wait, lost := firstWait, false
	for {
		before := r.progress
		err := r.once(ctx)
		if err == nil {
			return r.sum, nil
		}
		if ctx.Err() != nil {
			return r.sum, fmt.Errorf("read output: %w", context.Cause(ctx))
		}
		if !r.mayRetry(err) {
			return r.sum, err
		}
		if r.progress.After(before) {
			wait, lost = firstWait, false
		}
		if !lost && r.Notice != nil && !errors.Is(err, errOpenEnd) {
			lost = true
			r.Notice(err)
		}
		if later, ok := problem.ComeAgain(err); ok {
			// Those who were put off together must not come back together.
			wait = max(wait, later/2+rand.N(later))
		}
		if !sleep(ctx, wait) {
			return r.sum, fmt.Errorf("read output: %w", context.Cause(ctx))
		}
		wait = min(wait*2, lastWait)
	}
}

// errOpenEnd is a followed stream that ended without END while its job lives.
var errOpenEnd = errors.New("the output ended before its job")

// mayRetry tells whether connecting again can help.
func (r *reader) mayRetry(err error) bool {
	if time.Since(r.progress) > r.Patience {
		return false
	}
	if _, putOff := problem.ComeAgain(err); putOff {
		return true // P16
	}
	if !r.came && !r.Eager {
		return false
	}
	if errors.Is(err, errOpenEnd) {
		return true
	}
	return Transient(err)
}

// unencodable begins the messages of gRPC, on either side, about a message that
// cannot be encoded: it cannot be the next time either.
const unencodable = "grpc: error while marshaling"

// Transient tells whether a status speaks of the connection or of a moment
// rather than of the request.
func Transient(err error) bool {
	var sink *SinkError
	var own *errs.Error
	if errors.As(err, &sink) || errors.As(err, &own) && own.Kind == errs.Invalid {
		return false
	}
	if st, ok := problem.Status(err); ok && strings.HasPrefix(st.Message(), unencodable) {
		return false
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.ResourceExhausted, codes.Aborted:
		return true
	case codes.Canceled, codes.Internal, codes.Unknown:
		return !problem.Reported(err) // a stream that the other side reset
	default:
		return false
	}
}

// once reads one connection to its end. nil means that the read is complete.
func (r *reader) once(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := r.Opener.StreamOutput(ctx, r.request())
	if err != nil {
		return err
	}
	// The same message each time: the next piece comes into the memory of the last.
	var response droverv1.StreamOutputResponse
	for !r.complete() {
		err := stream.RecvMsg(&response)
		if errors.Is(err, io.EOF) {
			return r.ended(ctx)
		}
		if err != nil {
			return err
		}
		r.came, r.progress = true, time.Now()
		if err := r.take(response.GetChunk()); err != nil {
			return err
		}
		// A sink may stand still for hours, and is then to go on where it was.
		r.progress = time.Now()
	}
	return nil
}

// request asks for what has not come yet.
func (r *reader) request() *droverv1.StreamOutputRequest {
	q := r.Request
	next := &droverv1.StreamOutputRequest{
		JobId: q.GetJobId(), Attempt: q.GetAttempt(), Stream: q.GetStream(), Follow: q.GetFollow(),
		StdoutOffset: q.GetStdoutOffset(), StderrOffset: q.GetStderrOffset(), TailBytes: q.TailBytes, Since: q.GetSince(),
	}
	if r.sum.Stdout.Known {
		next.StdoutOffset = r.sum.Stdout.Next
	}
	if r.sum.Stderr.Known {
		next.StderrOffset = r.sum.Stderr.Next
	}
	if r.came {
		next.TailBytes = nil // offsets are ignored while it is set
	}
	return next
}

func (r *reader) complete() bool {
	out, err := r.sum.Stdout.End != nil, r.sum.Stderr.End != nil
	switch r.Request.GetStream() {
	case droverv1.Stream_STREAM_STDOUT:
		return out
	case droverv1.Stream_STREAM_STDERR:
		return err
	default:
		return out && err
	}
}

// ended decides on a stream that was closed in order.
func (r *reader) ended(ctx context.Context) error {
	if !r.Request.GetFollow() || r.complete() {
		return nil
	}
	done, err := r.Finished(ctx)
	if err != nil {
		return err
	}
	if !done {
		return errOpenEnd
	}
	return nil
}

func (r *reader) take(c *droverv1.OutputChunk) error {
	p := &r.sum.Stdout
	if c.GetStream() == droverv1.Stream_STREAM_STDERR {
		p = &r.sum.Stderr
	}
	switch kind := c.GetKind().(type) {
	case *droverv1.OutputChunk_Data:
		return r.data(p, c, kind.Data)
	case *droverv1.OutputChunk_Gap:
		r.skip(p, c, kind.Gap.GetTo(), kind.Gap.GetReason())
	case *droverv1.OutputChunk_End:
		if p.Known {
			r.skip(p, c, kind.End.GetSize(), Undeclared)
		}
		p.Known, p.Next, p.End = true, kind.End.GetSize(), kind.End
	}
	return nil
}

// data passes on what is new of a chunk (P8: two reads never disagree, so what
// came before need not be compared).
func (r *reader) data(p *Position, c *droverv1.OutputChunk, data []byte) error {
	offset := c.GetOffset()
	if !p.Known {
		p.Known, p.First, p.Next = true, offset, offset
	}
	if offset > p.Next && r.Request.GetSince() == nil {
		r.skip(p, c, offset, Undeclared)
	}
	p.Next = max(p.Next, offset) // Since leaves out what is old
	if end := offset + uint64(len(data)); end <= p.Next {
		return nil
	}
	data = data[p.Next-offset:]
	if err := r.Sink.Write(c.GetStream(), c.GetTime().AsTime(), data); err != nil {
		return &SinkError{err}
	}
	p.Next += uint64(len(data))
	return nil
}

// skip moves a position forward over bytes that will not come.
func (r *reader) skip(p *Position, c *droverv1.OutputChunk, to uint64, reason string) {
	from := p.Next
	if !p.Known {
		from = c.GetOffset()
		p.Known, p.First = true, to
	}
	if to < from || to == from && reason != Unread {
		return
	}
	r.sum.Missing = append(r.sum.Missing, Missing{c.GetStream(), from, to, reason})
	p.Next = to
}

// sleep waits, or returns false when ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
