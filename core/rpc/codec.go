package rpc

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
)

// frame is a message that is not parsed: its bytes pass from one stream to
// another as they came.
type frame struct {
	data mem.BufferSlice
}

// frameCodec hands frames through unparsed and every other message to the codec
// below. It keeps the name of that codec, so that the other side
// sees plain protobuf.
type frameCodec struct {
	encoding.CodecV2
}

// Marshal implements encoding.CodecV2.
func (c frameCodec) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(*frame); ok {
		f.data.Ref()
		return f.data, nil
	}
	return c.CodecV2.Marshal(v)
}

// Unmarshal implements encoding.CodecV2.
func (c frameCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if f, ok := v.(*frame); ok {
		// A copy of its own: buffers that gRPC takes back and gives out again were
		// still waiting to be sent when readers were slow.
		f.data = mem.BufferSlice{mem.SliceBuffer(data.Materialize())}
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}

// release gives the buffers of a frame back.
func (f *frame) release() {
	f.data.Free()
	f.data = nil
}
