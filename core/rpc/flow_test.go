package rpc

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/output"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// sendPiece hands a message of so many bytes to a flow, and returns what gives it back.
func sendPiece(f *flow, n int) (landed func()) {
	m := &frame{mem.BufferSlice{mem.SliceBuffer(make([]byte, n))}}
	f.load(m)
	return m.release
}

// TestP16_Flow_WindowGrowsWithWhatIsTaken, and no further than the server allows.
func TestP16_Flow_WindowGrowsWithWhatIsTaken(t *testing.T) {
	t.Parallel()
	all := new(windows)
	f := newFlow(all)
	if n := f.piece(); n == 0 || n > leastWindow/2 {
		t.Fatalf("the first piece may have %d bytes", n)
	}
	var landed []func()
	held := 0
	for n := f.piece(); n > 0; n = f.piece() {
		landed = append(landed, sendPiece(f, n))
		held += n
	}
	if held > leastWindow {
		t.Errorf("%d bytes are held for a reader that takes nothing", held)
	}
	for _, l := range landed {
		l()
	}
	for range 1000 {
		n := f.piece()
		if n == 0 {
			t.Fatal("a reader that takes all gets nothing")
		}
		sendPiece(f, n)()
	}
	if n := f.piece(); n != mostWindow/2-headBytes {
		t.Errorf("a reader that takes all gets pieces of %d bytes", n)
	}
	var others []*flow
	for range 200 {
		o := newFlow(all)
		o.taken = 1 << 40
		if o.piece() == 0 {
			t.Fatal("no piece at all")
		}
		others = append(others, o)
	}
	if used := all.used.Load(); used > windowsMost {
		t.Errorf("%d bytes are on their way in all", used)
	}
	for _, o := range append(others, f) {
		o.close()
	}
	if used := all.used.Load(); used != 0 {
		t.Errorf("%d bytes are never given back", used)
	}
}

// TestP16_Flow_ReaderThatTakesNothing_IsEnded: with a status that lets it come again.
func TestP16_Flow_ReaderThatTakesNothing_IsEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlow(new(windows))
		looks := 0
		for n := f.piece(); n > 0; n = f.piece() {
			sendPiece(f, n)
		}
		began := time.Now()
		_, err := f.stand(t.Context(), func() error { looks++; return nil })
		if errs.KindOf(err) != errs.Unavailable || errs.ReasonOf(err) != reasonIdle {
			t.Errorf("it ends with %v", err)
		}
		if took := time.Since(began); took < idleMost || took > idleMost+time.Minute || looks < 100 {
			t.Errorf("it ends after %s and %d looks", took, looks)
		}
		gone := errGone()
		if _, err := f.stand(t.Context(), func() error { return gone }); !errors.Is(err, gone) {
			t.Errorf("a removed job ends it with %v", err)
		}
	})
}

// upstream is a worker with one output, which counts the streams that are open.
type upstream struct {
	size  uint64
	open  atomic.Int32
	mu    sync.Mutex // guards calls
	calls []*droverv1.WorkerServiceStreamOutputRequest
}

type upstreamCall struct {
	grpc.ClientStream
	u   *upstream
	at  uint64
	max uint64
	end bool
}

func (u *upstream) stream(ctx context.Context, r *droverv1.WorkerServiceStreamOutputRequest) (grpc.ClientStream, error) {
	u.open.Add(1)
	u.mu.Lock()
	u.calls = append(u.calls, r)
	u.mu.Unlock()
	context.AfterFunc(ctx, func() { u.open.Add(-1) })
	return &upstreamCall{u: u, at: r.GetStdoutOffset(), max: uint64(r.GetPieceBytes())}, nil
}

// RecvMsg implements grpc.ClientStream.
func (c *upstreamCall) RecvMsg(m any) error {
	chunk := &output.Chunk{Stream: output.Stdout, Offset: c.at}
	var data mem.Buffer
	switch {
	case c.end:
		return io.EOF
	case c.at == c.u.size:
		c.end = true
		chunk.End = &job.Stream{Size: c.u.size}
	default:
		chunk.Data = make([]byte, min(c.max, c.u.size-c.at))
		data = mem.SliceBuffer(chunk.Data)
		c.at += uint64(len(chunk.Data))
	}
	f, err := chunkFrame(chunk, data)
	if err == nil {
		*m.(*frame) = *f
	}
	return err
}

// slowReader takes a message when it is told to.
type slowReader struct {
	grpc.ServerStream
	t    *testing.T
	mu   sync.Mutex // guards the fields below
	held []mem.BufferSlice
	next uint64
	ends int
}

// SendMsg implements grpc.ServerStream.
func (s *slowReader) SendMsg(m any) error {
	f := m.(*frame)
	c, n, ok := pieceOf(f)
	if !ok {
		s.t.Fatal("a message that is not understood")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.GetOffset() != s.next {
		s.t.Errorf("after byte %d comes byte %d", s.next, c.GetOffset())
	}
	s.next += uint64(n)
	if c.GetEnd() != nil {
		s.ends++
	}
	f.data.Ref()
	s.held = append(s.held, f.data)
	return nil
}

// take takes all that is there, and tells how many ends have come.
func (s *slowReader) take() int {
	s.mu.Lock()
	held := s.held
	s.held = nil
	ends := s.ends
	s.mu.Unlock()
	for _, d := range held {
		d.Free()
	}
	return ends
}

// TestP16_Relay_ReaderStandsStill_NoStreamIsOpen: it goes on at its byte, with larger
// pieces as it reads, and gets one end.
func TestP16_Relay_ReaderStandsStill_NoStreamIsOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u, to := &upstream{size: 32 << 20}, &slowReader{t: t}
		r := &relay{
			open: u.stream, to: to, flow: newFlow(new(windows)), stall: stallAfter, gone: func() error { return nil },
			req: &droverv1.WorkerServiceStreamOutputRequest{Stream: droverv1.Stream_STREAM_STDOUT},
		}
		done := make(chan error, 1)
		go func() { done <- r.run(t.Context()) }()
		for range 5 {
			time.Sleep(3 * stallAfter)
			synctest.Wait()
			if n := u.open.Load(); n != 0 {
				t.Errorf("%d streams are open while the reader stands still", n)
			}
			to.take()
		}
		for to.take() == 0 {
			time.Sleep(time.Millisecond)
			synctest.Wait()
		}
		if err := <-done; err != nil || to.next != u.size || to.ends != 1 {
			t.Errorf("%d bytes, %d ends, %v", to.next, to.ends, err)
		}
		if last := u.calls[len(u.calls)-1]; last.GetPieceBytes() < 128<<10 || len(u.calls) > 16 {
			t.Errorf("%d calls, the last with pieces of %d bytes", len(u.calls), last.GetPieceBytes())
		}
	})
}
