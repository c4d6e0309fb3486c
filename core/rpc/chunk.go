package rpc

import (
	"fmt"
	"slices"

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

// headBytes is how much of a message holds what comes before the data, and more.
const headBytes = 256

// unmarshalOutput reads a message with much output in it, of the form that
// chunkFrame makes and plain protobuf too: the data comes last. It copies the data
// once, into the memory of the data that m has from the message before, if it is
// large enough. It returns false, and has done nothing, for any other message.
func unmarshalOutput(message mem.BufferSlice, m *droverv1.StreamOutputResponse) bool {
	size := message.Len()
	if size < plainly {
		return false
	}
	head := make([]byte, min(size, headBytes))
	message.CopyTo(head)
	number, kind, at := protowire.ConsumeTag(head)
	if at < 0 || number != chunkField || kind != protowire.BytesType {
		return false
	}
	length, n := protowire.ConsumeVarint(head[at:])
	if at += n; n < 0 || length != uint64(size-at) {
		return false
	}
	rest, dataAt, ok := splitHead(head[at:], size-at)
	if !ok {
		return false
	}
	p := &droverv1.OutputChunk{}
	if err := proto.Unmarshal(rest, p); err != nil {
		return false
	}
	data := m.GetChunk().GetData()
	data = slices.Grow(data[:0], size-at-dataAt)[:size-at-dataAt]
	copyFrom(data, message, at+dataAt)
	p.Kind = &droverv1.OutputChunk_Data{Data: data}
	m.Reset()
	m.Chunk = p
	return true
}

// splitHead finds where the data begins in an encoded chunk of so many bytes, of
// which it is given the first, if nothing comes after it. rest is what comes before.
func splitHead(b []byte, size int) (rest []byte, dataAt int, ok bool) {
	for at := 0; at < len(b); {
		number, kind, n := protowire.ConsumeTag(b[at:])
		switch {
		case n < 0, number == gapField, number == endField:
			return nil, 0, false
		case number == dataField:
			length, m := protowire.ConsumeVarint(b[at+n:])
			dataAt = at + n + m
			return b[:at], dataAt, kind == protowire.BytesType && m > 0 && length == uint64(size-dataAt)
		}
		value := protowire.ConsumeFieldValue(number, kind, b[at+n:])
		if value < 0 {
			return nil, 0, false
		}
		at += n + value
	}
	return nil, 0, false
}

// copyFrom fills data with what a message has after so many bytes.
func copyFrom(data []byte, message mem.BufferSlice, skip int) {
	for _, b := range message {
		piece := b.ReadOnlyData()
		if skip >= len(piece) {
			skip -= len(piece)
			continue
		}
		data = data[copy(data, piece[skip:]):]
		skip = 0
	}
}
