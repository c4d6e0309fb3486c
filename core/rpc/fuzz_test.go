package rpc

import (
	"bytes"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// FuzzOutput: the quick reader of output reads what protobuf reads, or leaves it to
// protobuf.
func FuzzOutput(f *testing.F) {
	for _, n := range []int{0, 10, plainly, 3 * plainly} {
		m := &droverv1.StreamOutputResponse{Chunk: &droverv1.OutputChunk{
			Stream: droverv1.Stream_STREAM_STDERR, Offset: 7, Kind: &droverv1.OutputChunk_Data{Data: bytes.Repeat([]byte("x"), n)},
		}}
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, n/2)
	}
	f.Fuzz(func(t *testing.T, head []byte, cut int) {
		for _, message := range [][]byte{head, append(bytes.Clone(head), make([]byte, plainly)...)} {
			cut = max(0, min(cut, len(message)))
			quick := &droverv1.StreamOutputResponse{}
			pieces := mem.BufferSlice{mem.SliceBuffer(bytes.Clone(message[:cut])), mem.SliceBuffer(bytes.Clone(message[cut:]))}
			if !unmarshalOutput(pieces, quick) {
				continue
			}
			plain := &droverv1.StreamOutputResponse{}
			if err := proto.Unmarshal(message, plain); err != nil || !proto.Equal(quick, plain) {
				t.Errorf("%v, protobuf reads %v, %v", quick, plain, err)
			}
		}
	})
}

// FuzzRequest: a request that is taken becomes a spec that is written and read
// again without a change, and what is shown of it holds no secret.
func FuzzRequest(f *testing.F) {
	for _, r := range []*droverv1.StartJobRequest{
		{},
		{Command: "bash", Path: "a.sh", Args: []string{"x", ""}, Env: map[string]string{"A": "b"}, Secrets: map[string][]byte{"k": []byte("hidden")}, Stdin: []byte("in")},
		{Timeout: durationpb.New(1 << 62), Grace: &durationpb.Duration{Seconds: -1 << 62, Nanos: 1}, Limits: &droverv1.Limits{CpuMillis: 1<<32 - 1}},
		{Retry: &droverv1.RetryPolicy{MaxRetries: 3, OnFailure: true, ExitCodes: []int32{1, -1}}, Priority: -1 << 31, OutputPolicy: 99},
	} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		r := &droverv1.StartJobRequest{}
		if proto.Unmarshal(message, r) != nil {
			return
		}
		spec, err := specFromRequest(r)
		if err != nil {
			return
		}
		shown := publicSpec(&spec)
		for name, value := range shown.GetSecrets() {
			if len(value) > 0 {
				t.Errorf("the secret %q is shown", name)
			}
		}
		if len(shown.GetStdin()) > 0 {
			t.Error("standard input is shown")
		}
		first := specToProto(&spec)
		again, err := specFromProto(first)
		if err != nil {
			t.Fatalf("%v: %v", first, err)
		}
		if second := specToProto(&again); !proto.Equal(first, second) {
			t.Errorf("%v\nbecomes\n%v", first, second)
		}
	})
}
