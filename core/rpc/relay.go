package rpc

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// largerPiece is by how much larger pieces must be to be worth another call.
const largerPiece = 4

// relay passes the output of an attempt on from its worker to one reader. While the
// reader stands still there is no stream to the worker: nothing is held on either side.
type relay struct {
	open  func(context.Context, *droverv1.WorkerServiceStreamOutputRequest) (grpc.ClientStream, error)
	req   *droverv1.WorkerServiceStreamOutputRequest
	to    grpc.ServerStream
	flow  *flow
	gone  func() error  // tells whether the job was removed
	stall time.Duration // stallAfter

	at    [3]uint64 // by stream: the offset after what was passed on
	known [3]bool
	ended [3]bool
	blind bool // a message was not understood: there is no going on at a byte
}

// run passes on until the end.
func (r *relay) run(ctx context.Context) error {
	r.at[droverv1.Stream_STREAM_STDOUT], r.at[droverv1.Stream_STREAM_STDERR] = r.req.GetStdoutOffset(), r.req.GetStderrOffset()
	for {
		n, err := r.flow.stand(ctx, r.gone)
		if err != nil {
			return err
		}
		r.req = proto.CloneOf(r.req)
		r.req.PieceBytes = uint32(n)
		again, err := r.once(ctx, n)
		if err != nil || !again {
			return err
		}
		r.req.TailBytes = nil
		r.req.StdoutOffset, r.req.StderrOffset = r.at[droverv1.Stream_STREAM_STDOUT], r.at[droverv1.Stream_STREAM_STDERR]
	}
}

// once passes on what one stream of the worker brings, in pieces of at most so many
// bytes: until its end, until the reader stands still, or until it may have pieces that
// are much larger.
func (r *relay) once(ctx context.Context, piece int) (again bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	from, err := r.open(ctx, r.req)
	if err != nil {
		return false, err
	}
	for {
		n, err := r.flow.await(ctx, r.stall)
		switch {
		case err != nil:
			return false, err
		case (n == 0 || n >= largerPiece*piece) && r.mayLeave():
			return true, nil
		case n == 0:
			if _, err := r.flow.stand(ctx, r.gone); err != nil {
				return false, err
			}
		}
		if err := r.one(from); err != nil {
			if errors.Is(err, io.EOF) {
				return false, nil
			}
			return false, err
		}
	}
}

// one passes one message on.
func (r *relay) one(from grpc.ClientStream) error {
	var f frame
	if err := from.RecvMsg(&f); err != nil {
		return err
	}
	defer f.release()
	if !r.track(&f) {
		return nil
	}
	r.flow.load(&f)
	return r.to.SendMsg(&f)
}

// mayLeave tells whether the stream can be opened again at the same bytes.
func (r *relay) mayLeave() bool {
	if r.blind {
		return false
	}
	if r.req.TailBytes == nil {
		return true
	}
	// Where the tail of a stream begins is known only when it has come.
	switch r.req.GetStream() {
	case droverv1.Stream_STREAM_UNSPECIFIED:
		return r.known[droverv1.Stream_STREAM_STDOUT] && r.known[droverv1.Stream_STREAM_STDERR]
	default:
		return r.known[r.req.GetStream()]
	}
}

// track notes how far a message brings the reader. It returns false when it is an end
// that the reader has already.
func (r *relay) track(f *frame) bool {
	c, size, ok := pieceOf(f)
	id := c.GetStream()
	if !ok || id != droverv1.Stream_STREAM_STDOUT && id != droverv1.Stream_STREAM_STDERR {
		r.blind = true
		return true
	}
	to := c.GetOffset() + uint64(size)
	switch kind := c.GetKind().(type) {
	case *droverv1.OutputChunk_Gap:
		to = kind.Gap.GetTo()
	case *droverv1.OutputChunk_End:
		if r.ended[id] {
			return false
		}
		to, r.ended[id] = kind.End.GetSize(), true
	}
	r.at[id], r.known[id] = to, true
	return true
}

// pieceOf reads a message with output but for its data, of which it returns the size.
func pieceOf(f *frame) (c *droverv1.OutputChunk, data int, ok bool) {
	size := f.data.Len()
	head := make([]byte, min(size, headBytes))
	f.data.CopyTo(head)
	if size <= headBytes {
		var m droverv1.StreamOutputResponse
		if err := proto.Unmarshal(head, &m); err != nil {
			return nil, 0, false
		}
		return m.GetChunk(), len(m.GetChunk().GetData()), true
	}
	number, kind, at := protowire.ConsumeTag(head)
	if at < 0 || number != chunkField || kind != protowire.BytesType {
		return nil, 0, false
	}
	length, n := protowire.ConsumeVarint(head[at:])
	if at += n; n < 0 || length != uint64(size-at) {
		return nil, 0, false
	}
	rest, dataAt, ok := splitHead(head[at:], size-at)
	if !ok {
		return nil, 0, false
	}
	c = &droverv1.OutputChunk{}
	if err := proto.Unmarshal(rest, c); err != nil {
		return nil, 0, false
	}
	return c, size - at - dataAt, true
}
