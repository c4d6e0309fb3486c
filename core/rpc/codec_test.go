package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/output"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// pieces cuts bytes as frames of HTTP/2 do.
func pieces(t *rapid.T, b []byte) mem.BufferSlice {
	var out mem.BufferSlice
	for len(b) > 0 {
		n := rapid.IntRange(1, len(b)).Draw(t, "piece")
		out = append(out, mem.SliceBuffer(bytes.Clone(b[:n])))
		b = b[n:]
	}
	return out
}

// TestOutputComesOutOfItsFrameAsItWentIn: the frame that a worker makes by hand
// is what any client of the protocol reads, and what drover's own reads.
func TestOutputComesOutOfItsFrameAsItWentIn(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		c := output.Chunk{
			Stream: output.StreamID(rapid.IntRange(1, 2).Draw(t, "stream")), Offset: rapid.Uint64().Draw(t, "offset"), Time: anyTime(t),
		}
		switch rapid.IntRange(0, 3).Draw(t, "kind") {
		case 0:
			c.Gap = &output.Gap{To: rapid.Uint64().Draw(t, "to"), Reason: "RETENTION"}
		case 1:
			c.End = &job.Stream{Size: rapid.Uint64().Draw(t, "size"), SHA256: "ab"}
		default:
			c.Data = bytes.Repeat([]byte{rapid.Byte().Draw(t, "byte")}, rapid.SampledFrom([]int{1, 127, 128, plainly - 1, plainly, plainly + 1, 70_000}).Draw(t, "bytes"))
		}
		want := &droverv1.StreamOutputResponse{Chunk: chunkToProto(&c)}
		f, err := chunkFrame(&c, mem.SliceBuffer(c.Data))
		if err != nil {
			t.Fatal(err)
		}
		data, err := Codec().Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		message := data.Materialize()
		got := &droverv1.StreamOutputResponse{}
		if n := rapid.IntRange(0, 80_000).Draw(t, "memory of the message before"); n > 0 {
			got.Chunk = &droverv1.OutputChunk{Offset: 9, Kind: &droverv1.OutputChunk_Data{Data: bytes.Repeat([]byte("old"), n/3+1)}}
		}
		if err := Codec().Unmarshal(pieces(t, message), got); err != nil || !proto.Equal(want, got) {
			t.Fatalf("%v: %v, want %v", err, got, want)
		}
		plain := &droverv1.StreamOutputResponse{}
		if err := proto.Unmarshal(message, plain); err != nil || !proto.Equal(want, plain) {
			t.Fatalf("%v: as plain protobuf %v, want %v", err, plain, want)
		}
	})
}

// TestOddMessagesAreReadAsProtobufReadsThem: fields may come in any order, twice
// or from a later version of drover.
func TestOddMessagesAreReadAsProtobufReadsThem(t *testing.T) {
	t.Parallel()
	field := func(b []byte, n protowire.Number, value []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), value)
	}
	long := bytes.Repeat([]byte("x"), 2*plainly)
	at, err := proto.Marshal(timestamppb.New(timestamppb.Now().AsTime()))
	if err != nil {
		t.Fatal(err)
	}
	stream := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 2)
	for name, message := range map[string][]byte{
		"data first":            field(nil, chunkField, append(field(field(nil, dataField, long), 3, at), stream...)),
		"data twice":            field(nil, chunkField, field(field(nil, dataField, long), dataField, []byte("y"))),
		"a gap after data":      field(nil, chunkField, field(field(nil, dataField, long), gapField, nil)),
		"data after an end":     field(nil, chunkField, field(field(nil, endField, nil), dataField, long)),
		"two chunks":            field(field(nil, chunkField, field(nil, dataField, long)), chunkField, stream),
		"an unknown field":      field(nil, chunkField, field(append(field(nil, 99, []byte("new")), stream...), dataField, long)),
		"an unknown field else": field(field(nil, 99, long), chunkField, stream),
		"cut off":               field(nil, chunkField, field(nil, dataField, long))[:plainly+1],
		"data of another type":  field(nil, chunkField, append(protowire.AppendVarint(protowire.AppendTag(nil, dataField, protowire.VarintType), 7), field(nil, 99, long)...)),
	} {
		want, got := &droverv1.StreamOutputResponse{}, &droverv1.StreamOutputResponse{}
		errWant, errGot := proto.Unmarshal(message, want), Codec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(message)}, got)
		if (errWant == nil) != (errGot == nil) || errWant == nil && !proto.Equal(want, got) {
			t.Errorf("%s: %v, %v; want %v, %v", name, got, errGot, want, errWant)
		}
	}
}

// TestOutputComesIntoTheMemoryOfTheMessageBefore only when it is received into the
// same message: a new one keeps its own.
func TestOutputComesIntoTheMemoryOfTheMessageBefore(t *testing.T) {
	t.Parallel()
	receive := func(m *droverv1.StreamOutputResponse, letter string, size int) []byte {
		t.Helper()
		data := bytes.Repeat([]byte(letter), size)
		f, err := chunkFrame(&output.Chunk{Stream: output.Stdout, Data: data}, mem.SliceBuffer(data))
		if err == nil {
			err = Codec().Unmarshal(f.data, m)
		}
		got := m.GetChunk().GetData()
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes of %s, %v", len(got), letter, err)
		}
		return got
	}
	var same, other droverv1.StreamOutputResponse
	first := receive(&same, "a", 2*plainly)
	kept := receive(&other, "b", 2*plainly)
	second := receive(&same, "c", plainly)
	if &first[0] != &second[0] {
		t.Error("other memory was taken")
	}
	if receive(&same, "d", 4*plainly); kept[0] != 'b' || &kept[0] != &other.GetChunk().GetData()[0] {
		t.Error("the memory of another message was taken")
	}
}

// TestLoansAreWhatWasAskedFor and come back: the memory of a piece is used
// again only after its last owner has let go.
func TestLoansAreWhatWasAskedFor(t *testing.T) {
	t.Parallel()
	var pool loans
	for _, n := range []int{1, 1024, 1025, 1 << smallestLoan, 1<<smallestLoan + 1, 40 << 10, 1 << largestLoan, 1<<largestLoan + 1} {
		l := loan{from: &pool}
		b := l.take(n)
		for i := range b {
			b[i] = byte(n)
		}
		buffer := l.buffer()
		if len(b) != n || buffer.Len() != n || l.buffer() != nil {
			t.Fatalf("%d bytes: %d lent, %d in the buffer", n, len(b), buffer.Len())
		}
		buffer.Ref()
		buffer.Free()
		other := loan{from: &pool}
		clear(other.take(n))
		if data := buffer.ReadOnlyData(); data[0] != byte(n) || data[n-1] != byte(n) {
			t.Errorf("%d bytes: lent to two at once", n)
		}
		buffer.Free()
	}
}

// poison spoils what is given back, so that whoever still looks at it sees.
type poison struct{ mem.BufferPool }

func (p poison) Put(b *[]byte) {
	all := (*b)[:cap(*b)]
	for i := range all {
		all[i] = 0xdb
	}
	p.BufferPool.Put(b)
}

// endpoint serves one stream by a handler, without TLS.
func endpoint(t *testing.T, handler grpc.StreamHandler, o ...grpc.ServerOption) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(append(o, grpc.ForceServerCodecV2(Codec()), grpc.UnknownServiceHandler(handler))...)
	var wait sync.WaitGroup
	wait.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() {
		s.Stop()
		wait.Wait()
	})
	return l.Addr().String()
}

func follow(t *testing.T, address string, o ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient("passthrough:///"+address, append(o, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(Codec())))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestFramesAreNotUsedAgainBeforeTheyAreSent: the scheduler passes on the very
// buffers that it has received. Many readers with narrow windows, which stop in
// the middle or leave, must see nothing of each other's (P8).
func TestFramesAreNotUsedAgainBeforeTheyAreSent(t *testing.T) {
	t.Parallel()
	const readers, chunks, size = 16, 12, 300_000
	content := func(reader, chunk int) []byte {
		return bytes.Repeat([]byte(fmt.Sprintf("%02d/%02d.", reader, chunk)), size/6)
	}
	source := endpoint(t, func(_ any, s grpc.ServerStream) error {
		var q droverv1.StreamOutputRequest
		if err := s.RecvMsg(&q); err != nil {
			return err
		}
		for i := range chunks {
			data := content(int(q.GetAttempt()), i)
			f, err := chunkFrame(&output.Chunk{Stream: output.Stdout, Data: data}, mem.SliceBuffer(data))
			if err != nil {
				return err
			}
			if err := s.SendMsg(f); err != nil {
				return err
			}
		}
		return nil
	})
	pool := poison{mem.DefaultBufferPool()}
	upstream := follow(t, source, experimental.WithBufferPool(pool))
	middle := endpoint(t, func(_ any, s grpc.ServerStream) error {
		var q droverv1.StreamOutputRequest
		if err := s.RecvMsg(&q); err != nil {
			return err
		}
		r := &relay{
			req: &droverv1.WorkerServiceStreamOutputRequest{Attempt: q.GetAttempt()}, to: s, flow: newFlow(new(windows)), stall: time.Minute, blind: true,
			open: func(ctx context.Context, q *droverv1.WorkerServiceStreamOutputRequest) (grpc.ClientStream, error) {
				from, err := upstream.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/any/stream")
				if err == nil {
					err = errors.Join(from.SendMsg(q), from.CloseSend())
				}
				return from, err
			},
		}
		return r.run(s.Context())
	}, experimental.BufferPool(pool))
	client := follow(t, middle, grpc.WithInitialWindowSize(64<<10), grpc.WithInitialConnWindowSize(64<<10))
	var wait sync.WaitGroup
	for r := range readers {
		wait.Go(func() {
			s, err := client.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, "/any/stream")
			if err == nil {
				err = errors.Join(s.SendMsg(&droverv1.StreamOutputRequest{Attempt: uint32(r)}), s.CloseSend())
			}
			for i := 0; err == nil; i++ {
				var got droverv1.StreamOutputResponse
				if err = s.RecvMsg(&got); err != nil {
					break
				}
				if !bytes.Equal(got.GetChunk().GetData(), content(r, i)) {
					t.Errorf("reader %d: chunk %d is not what was written", r, i)
				}
				if r%4 == 3 && i == r/2 {
					return // leaves; its stream ends with the test
				}
			}
			if !errors.Is(err, io.EOF) {
				t.Errorf("reader %d: %v", r, err)
			}
		})
	}
	wait.Wait()
}
