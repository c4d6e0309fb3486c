package scheduler

import (
	"bytes"
	"maps"
	"testing"

	"github.com/droverhq/drover/core/job"
)

// FuzzInput: a record of an input is read as it was written, and one that is torn or
// strange is an error or an input, never a panic.
func FuzzInput(f *testing.F) {
	f.Add([]byte("in"), []byte("#!/bin/sh\n"), "token", []byte("secret"), []byte{0x1a, 0xff})
	f.Add([]byte{}, []byte{}, "", []byte{}, encodeInput(&job.Input{Stdin: []byte("x"), Secrets: map[string][]byte{"a": nil}}))
	f.Fuzz(func(t *testing.T, stdin, upload []byte, name string, value, raw []byte) {
		in := job.Input{Stdin: stdin, Upload: upload, Secrets: map[string][]byte{name: value}}
		got, err := decodeInput(encodeInput(&in))
		if err != nil || !bytes.Equal(got.Stdin, stdin) || !bytes.Equal(got.Upload, upload) || !maps.EqualFunc(got.Secrets, in.Secrets, bytes.Equal) {
			t.Errorf("%+v is read as %+v, %v", in, got, err)
		}
		_, _ = decodeInput(raw)
	})
}
