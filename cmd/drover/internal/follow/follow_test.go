package follow_test

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/droverhq/drover/cmd/drover/internal/follow"
	"github.com/droverhq/drover/core/errs"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

const (
	stdout = droverv1.Stream_STREAM_STDOUT
	stderr = droverv1.Stream_STREAM_STDERR
)

var errBroken = status.Error(codes.Unavailable, "error reading from server: EOF")

// connection is what one call of StreamOutput gives.
type connection struct {
	chunks []*droverv1.OutputChunk
	err    error // after the chunks; nil is the end of the stream
	open   error // instead of a stream
}

// server plays connections in turn and remembers the requests.
type server struct {
	connections []connection
	requests    []*droverv1.StreamOutputRequest
}

func (s *server) StreamOutput(_ context.Context, q *droverv1.StreamOutputRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[droverv1.StreamOutputResponse], error) {
	s.requests = append(s.requests, q)
	c := s.connections[min(len(s.requests), len(s.connections))-1]
	if c.open != nil {
		return nil, c.open
	}
	return &stream{connection: c}, nil
}

type stream struct {
	grpc.ClientStream
	connection
}

func (s *stream) RecvMsg(m any) error {
	if len(s.chunks) == 0 {
		if s.err == nil {
			return io.EOF
		}
		return s.err
	}
	m.(*droverv1.StreamOutputResponse).Chunk = s.chunks[0]
	s.chunks = s.chunks[1:]
	return nil
}

func (s *stream) Recv() (*droverv1.StreamOutputResponse, error) {
	m := &droverv1.StreamOutputResponse{}
	return m, s.RecvMsg(m)
}

func data(s droverv1.Stream, offset uint64, text string) *droverv1.OutputChunk {
	return &droverv1.OutputChunk{Stream: s, Offset: offset, Time: timestamppb.Now(), Kind: &droverv1.OutputChunk_Data{Data: []byte(text)}}
}

func gap(s droverv1.Stream, from, to uint64) *droverv1.OutputChunk {
	return &droverv1.OutputChunk{Stream: s, Offset: from, Kind: &droverv1.OutputChunk_Gap{Gap: &droverv1.OutputGap{To: to, Reason: "RETENTION"}}}
}

func end(s droverv1.Stream, size uint64) *droverv1.OutputChunk {
	return &droverv1.OutputChunk{Stream: s, Offset: size, Kind: &droverv1.OutputChunk_End{End: &droverv1.OutputEnd{Size: size}}}
}

// memory keeps what was written per stream.
type memory struct {
	text map[droverv1.Stream]string
	err  error
}

func (m *memory) Write(s droverv1.Stream, _ time.Time, p []byte) error {
	m.text[s] += string(p)
	return m.err
}

// read runs a config against connections, with sane values for what is unset.
func read(t *testing.T, s *server, change func(*follow.Config)) (*memory, follow.Summary, error) {
	t.Helper()
	m := &memory{text: map[droverv1.Stream]string{}}
	c := follow.Config{
		Opener: s, Request: &droverv1.StreamOutputRequest{JobId: "j", Follow: true}, Sink: m, Patience: time.Minute,
		Finished: func(context.Context) (bool, error) { return false, nil },
	}
	if change != nil {
		change(&c)
	}
	sum, err := follow.Run(t.Context(), c)
	return m, sum, err
}

// TestP16WhoIsPutOffComesAgain: also when nothing has come yet, not before it was told
// to, and not for ever.
func TestP16WhoIsPutOffComesAgain(t *testing.T) {
	t.Parallel()
	st, err := status.New(codes.ResourceExhausted, "1024 reads of output are open already").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		s := &server{connections: []connection{
			{err: st.Err()}, {err: st.Err()}, {chunks: []*droverv1.OutputChunk{data(stdout, 0, "abc"), end(stdout, 3), end(stderr, 0)}},
		}}
		began := time.Now()
		m, _, err := read(t, s, nil)
		if waited := time.Since(began); err != nil || m.text[stdout] != "abc" || waited < time.Second || waited > 4*time.Second {
			t.Errorf("%q, %v after %v", m.text, err, waited)
		}
		s = &server{connections: []connection{{err: st.Err()}}}
		if _, _, err = read(t, s, nil); status.Code(err) != codes.ResourceExhausted || len(s.requests) > 60 {
			t.Errorf("%v after %d requests in a minute", err, len(s.requests))
		}
	})
}

// TestReadGoesOnAtTheSameByte: P7: `logs -f` resumes at its offset.
func TestReadGoesOnAtTheSameByte(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &server{connections: []connection{
			{chunks: []*droverv1.OutputChunk{data(stdout, 0, "abc"), data(stderr, 0, "x")}, err: errBroken},
			{open: errBroken},
			{chunks: []*droverv1.OutputChunk{data(stdout, 1, "bcd"), data(stdout, 4, "e"), data(stderr, 0, "x")}}, // repeats, then closes in order
			{chunks: []*droverv1.OutputChunk{end(stdout, 5), end(stderr, 1)}},
		}}
		notices := 0
		m, sum, err := read(t, s, func(c *follow.Config) { c.Notice = func(error) { notices++ } })
		if err != nil || m.text[stdout] != "abcde" || m.text[stderr] != "x" || len(sum.Missing) != 0 {
			t.Errorf("%q, %+v, %v", m.text, sum, err)
		}
		last := s.requests[len(s.requests)-1]
		if last.GetStdoutOffset() != 5 || last.GetStderrOffset() != 1 {
			t.Errorf("went on at %d and %d", last.GetStdoutOffset(), last.GetStderrOffset())
		}
		if notices != 1 {
			t.Errorf("%d notices of one loss", notices)
		}
	})
}

func TestGapsAndHolesAreReported(t *testing.T) {
	t.Parallel()
	s := &server{connections: []connection{{chunks: []*droverv1.OutputChunk{
		gap(stdout, 0, 10), data(stdout, 10, "ab"), data(stdout, 15, "c"), end(stdout, 20), end(stderr, 0),
	}}}}
	m, sum, err := read(t, s, nil)
	want := []follow.Missing{
		{stdout, 0, 10, "RETENTION"},
		{stdout, 12, 15, follow.Undeclared},
		{stdout, 16, 20, follow.Undeclared},
	}
	if err != nil || m.text[stdout] != "abc" || !slices.Equal(sum.Missing, want) {
		t.Errorf("%q, %v, %v", m.text, sum.Missing, err)
	}
	if got := sum.Missing[0].String(); got != "stdout: bytes 0 to 10 are missing: RETENTION" {
		t.Errorf("%q", got)
	}
}

func TestErrorsOfTheRequestAreFinal(t *testing.T) {
	t.Parallel()
	for _, code := range []codes.Code{codes.NotFound, codes.PermissionDenied, codes.InvalidArgument} {
		s := &server{connections: []connection{{chunks: []*droverv1.OutputChunk{data(stdout, 0, "a")}, err: status.Error(code, "no")}}}
		if _, _, err := read(t, s, nil); status.Code(err) != code || len(s.requests) != 1 {
			t.Errorf("%v: %v after %d requests", code, err, len(s.requests))
		}
	}
}

func TestAFirstFailureIsFinalUnlessEager(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		connections := []connection{{open: errBroken}, {chunks: []*droverv1.OutputChunk{end(stdout, 0), end(stderr, 0)}}}
		if _, _, err := read(t, &server{connections: connections}, nil); status.Code(err) != codes.Unavailable {
			t.Errorf("not eager: %v", err)
		}
		if _, _, err := read(t, &server{connections: connections}, func(c *follow.Config) { c.Eager = true }); err != nil {
			t.Errorf("eager: %v", err)
		}
	})
}

func TestPatienceEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &server{connections: []connection{{chunks: []*droverv1.OutputChunk{data(stdout, 0, "a")}, err: errBroken}, {open: errBroken}}}
		begin := time.Now()
		_, sum, err := read(t, s, nil)
		if took := time.Since(begin); status.Code(err) != codes.Unavailable || took < time.Minute || took > time.Minute+5*time.Second {
			t.Errorf("%v after %v", err, took)
		}
		if sum.Stdout.Next != 1 {
			t.Errorf("got as far as %d", sum.Stdout.Next)
		}
	})
}

func TestCancelEndsTheWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		s := &server{connections: []connection{{open: errBroken}}}
		_, err := follow.Run(ctx, follow.Config{
			Opener: s, Request: &droverv1.StreamOutputRequest{Follow: true}, Sink: &memory{}, Patience: time.Hour, Eager: true,
		})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
}

// TestAJobWithoutOutputEnds: a job that never started has no stream to end.
func TestAJobWithoutOutputEnds(t *testing.T) {
	t.Parallel()
	s := &server{connections: []connection{{}}}
	if _, _, err := read(t, s, func(c *follow.Config) {
		c.Finished = func(context.Context) (bool, error) { return true, nil }
	}); err != nil {
		t.Error(err)
	}
	failing := errors.New("gone")
	if _, _, err := read(t, s, func(c *follow.Config) {
		c.Finished = func(context.Context) (bool, error) { return false, failing }
	}); !errors.Is(err, failing) {
		t.Errorf("%v", err)
	}
}

func TestASinkThatFailsEndsTheRead(t *testing.T) {
	t.Parallel()
	s := &server{connections: []connection{{chunks: []*droverv1.OutputChunk{data(stdout, 0, "a"), data(stdout, 1, "b")}}}}
	_, _, err := read(t, s, func(c *follow.Config) {
		c.Sink = &memory{text: map[droverv1.Stream]string{}, err: os.ErrClosed}
	})
	var sink *follow.SinkError
	if !errors.As(err, &sink) || !errors.Is(err, os.ErrClosed) || !strings.HasPrefix(err.Error(), "write output: ") {
		t.Errorf("%v", err)
	}
}

func TestOneStreamEndsAlone(t *testing.T) {
	t.Parallel()
	for _, want := range []droverv1.Stream{stdout, stderr} {
		s := &server{connections: []connection{{chunks: []*droverv1.OutputChunk{data(want, 7, "z"), end(want, 8), data(want, 8, "never")}}}}
		m, sum, err := read(t, s, func(c *follow.Config) {
			c.Request = &droverv1.StreamOutputRequest{Follow: true, Stream: want, StdoutOffset: 7, StderrOffset: 7}
		})
		if err != nil || m.text[want] != "z" || len(sum.Missing) != 0 {
			t.Errorf("%s: %q, %+v, %v", follow.Name(want), m.text, sum, err)
		}
	}
}

// TestTheTailBeginsWhereTheOtherSideSays: no offset is known before the first
// byte, and what lies before it is not missing.
func TestTheTailBeginsWhereTheOtherSideSays(t *testing.T) {
	t.Parallel()
	tail := uint64(4)
	s := &server{connections: []connection{{chunks: []*droverv1.OutputChunk{data(stdout, 96, "tail")}, err: errBroken}, {}}}
	m, sum, err := read(t, s, func(c *follow.Config) {
		c.Request = &droverv1.StreamOutputRequest{TailBytes: &tail}
	})
	if err != nil || m.text[stdout] != "tail" || len(sum.Missing) != 0 {
		t.Errorf("%q, %+v, %v", m.text, sum, err)
	}
	if p := sum.Stdout; !p.Known || p.First != 96 || p.Next != 100 || sum.Stderr.Known {
		t.Errorf("%+v", sum)
	}
	if s.requests[0].GetTailBytes() != 4 || s.requests[1].TailBytes != nil || s.requests[1].GetStdoutOffset() != 100 {
		t.Errorf("%v", s.requests)
	}
}

func TestSinceLeavesOutWithoutMissing(t *testing.T) {
	t.Parallel()
	s := &server{connections: []connection{{chunks: []*droverv1.OutputChunk{
		data(stdout, 10, "a"), data(stdout, 20, "b"), end(stdout, 21), end(stderr, 500),
	}}}}
	m, sum, err := read(t, s, func(c *follow.Config) {
		c.Request = &droverv1.StreamOutputRequest{Follow: true, Since: timestamppb.Now()}
	})
	if err != nil || m.text[stdout] != "ab" || len(sum.Missing) != 0 {
		t.Errorf("%q, %+v, %v", m.text, sum, err)
	}
}

// TestAnyCutsGiveTheSameBytes: P8: wherever connections break and chunks are
// cut or repeated, the bytes are those that were written.
func TestAnyCutsGiveTheSameBytes(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		whole := rapid.StringN(0, 200, 200).Draw(r, "output")
		s := &server{}
		at := 0
		for at < len(whole) {
			var c connection
			for range rapid.IntRange(0, 3).Draw(r, "chunks") {
				from := max(0, at-rapid.IntRange(0, 3).Draw(r, "repeated"))
				to := min(len(whole), at+rapid.IntRange(1, 50).Draw(r, "length"))
				c.chunks = append(c.chunks, data(stdout, uint64(from), whole[from:to]))
				at = to
			}
			if rapid.Bool().Draw(r, "breaks") {
				c.err = errBroken
			}
			s.connections = append(s.connections, c)
		}
		s.connections = append(s.connections, connection{chunks: []*droverv1.OutputChunk{end(stdout, uint64(len(whole))), end(stderr, 0)}})
		synctest.Test(t, func(t *testing.T) {
			m, sum, err := read(t, s, func(c *follow.Config) { c.Eager = true })
			if err != nil || m.text[stdout] != whole || len(sum.Missing) != 0 {
				t.Errorf("%q, want %q; %+v, %v", m.text[stdout], whole, sum, err)
			}
		})
	})
}

// TestAMessageThatCannotBeEncodedIsNotTriedAgain: INTERNAL is a passing fault only
// when it speaks of the connection.
func TestAMessageThatCannotBeEncodedIsNotTriedAgain(t *testing.T) {
	t.Parallel()
	for message, want := range map[string]bool{
		"grpc: error while marshaling: string field contains invalid UTF-8": false,
		"stream terminated by RST_STREAM with error code: INTERNAL_ERROR":   true,
	} {
		if got := follow.Transient(status.Error(codes.Internal, message)); got != want {
			t.Errorf("%q: %v, want %v", message, got, want)
		}
	}
	if follow.Transient(errs.Field("send the request", "args[0]", "USAGE", "it is not UTF-8")) {
		t.Error("a request that was refused here is sent again")
	}
}
