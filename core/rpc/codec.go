package rpc

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"

	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// frame is a message that is not parsed: its bytes pass from one stream to
// another as they came.
type frame struct {
	data mem.BufferSlice
}

// frameCodec hands frames through without copying them, reads output with one
// copy, and hands every other message to the codec below. It keeps the name of
// that codec, so that the other side sees plain protobuf.
type frameCodec struct {
	encoding.CodecV2
}

// Codec is what both sides of drover's connections encode messages with. Who
// receives output into the same message again uses the memory of its data again.
func Codec() encoding.CodecV2 { return frameCodec{encoding.GetCodecV2(proto.Name)} }

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
	switch m := v.(type) {
	case *frame:
		// The buffers belong to the frame until release, and to each connection that
		// it is sent on until they are written, however slow that is.
		data.Ref()
		m.data = data
		return nil
	case *droverv1.StreamOutputResponse:
		if unmarshalOutput(data, m) {
			return nil
		}
	}
	return c.CodecV2.Unmarshal(data, v)
}

// release gives the buffers of a frame back.
func (f *frame) release() {
	f.data.Free()
	f.data = nil
}
