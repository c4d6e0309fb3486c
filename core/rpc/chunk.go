package rpc

import (
	"fmt"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/droverhq/drover/core/output"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// The wire form of a piece of output: StreamOutputResponse{chunk}, in which
// OutputChunk{data} holds nearly all bytes. They are not copied for the sake of
// the few around them.
const (
	chunkField protowire.Number = 1 // of the response
	dataField  protowire.Number = 4 // of the chunk; gap and end stand in its place
	gapField   protowire.Number = 5
	endField   protowire.Number = 6
)

// plainly is below which size a message is read as any other.
const plainly = 4 << 10

// chunkFrame is the message that holds a piece of output. data holds c.Data and
// belongs to the frame then.
func chunkFrame(c *output.Chunk, data mem.Buffer) (*frame, error) {
	p := chunkToProto(c)
	if c.Data == nil {
		b, err := proto.Marshal(&droverv1.WorkerServiceStreamOutputResponse{Chunk: p})
		if err != nil {
			return nil, fmt.Errorf("encode output: %w", err)
		}
		return &frame{mem.BufferSlice{mem.SliceBuffer(b)}}, nil
	}
	p.Kind = nil
	head, err := proto.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encode output: %w", err)
	}
	head = protowire.AppendTag(head, dataField, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(len(c.Data)))
	b := protowire.AppendTag(make([]byte, 0, len(head)+16), chunkField, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(len(head)+len(c.Data)))
	return &frame{mem.BufferSlice{mem.SliceBuffer(append(b, head...)), data}}, nil
}

// unmarshalOutput reads a message with much output in it. It returns false, and
// has done nothing, for one that is not of the usual form.
func unmarshalOutput(message mem.BufferSlice, m *droverv1.StreamOutputResponse) bool {
	if message.Len() < plainly {
		return false
	}
	b := message.Materialize() // the one copy: it stays in the message
	number, kind, n := protowire.ConsumeTag(b)
	if n < 0 || number != chunkField || kind != protowire.BytesType {
		return false
	}
	chunk, m1 := protowire.ConsumeBytes(b[n:])
	if m1 < 0 || n+m1 != len(b) {
		return false
	}
	rest, data, ok := splitChunk(chunk)
	if !ok {
		return false
	}
	p := &droverv1.OutputChunk{}
	if err := proto.Unmarshal(rest, p); err != nil {
		return false
	}
	p.Kind = &droverv1.OutputChunk_Data{Data: data}
	m.Reset()
	m.Chunk = p
	return true
}

// splitChunk takes the data out of an encoded chunk, if it has some and once.
func splitChunk(b []byte) (rest, data []byte, ok bool) {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, nil, false
		}
		size := protowire.ConsumeFieldValue(number, kind, b[n:])
		switch {
		case size < 0, number == gapField, number == endField, number == dataField && (ok || kind != protowire.BytesType):
			return nil, nil, false
		case number == dataField:
			data, _ = protowire.ConsumeBytes(b[n:])
			ok = true
		default:
			rest = append(rest, b[:n+size]...)
		}
		b = b[n+size:]
	}
	return rest, data, ok
}
