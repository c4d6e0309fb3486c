package scheduler

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/store"
)

// The input of a job has a record of its own, in the protobuf wire format. It is
// written with the job, read when the job is dispatched, and removed as soon as no
// further attempt can need it.

// Fields of the record of an input. They are on disk and never reused.
const (
	inputStdin  = 1
	inputUpload = 2
	inputSecret = 3 // one for each
	secretName  = 1 // of the message in inputSecret
	secretValue = 2
)

// Kept is the input of a job that is to be kept.
type Kept struct {
	Job   job.ID
	Input job.Input
}

// isInput reports whether a key of the store is that of an input.
func isInput(key []byte) bool { return key[0] == prefixInput }

func encodeInput(in *job.Input) []byte {
	size := len(in.Stdin) + len(in.Upload) + 16
	for name, value := range in.Secrets {
		size += len(name) + len(value) + 24
	}
	b := make([]byte, 0, size)
	b = appendBytes(b, inputStdin, in.Stdin)
	b = appendBytes(b, inputUpload, in.Upload)
	for name, value := range in.Secrets {
		pair := appendBytes(appendBytes(make([]byte, 0, len(name)+len(value)+16), secretName, []byte(name)), secretValue, value)
		b = appendBytes(b, inputSecret, pair)
	}
	return b
}

func appendBytes(b []byte, field protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), v)
}

// decodeInput reads a record. What it returns shares memory with it.
func decodeInput(b []byte) (in job.Input, err error) {
	err = eachBytes(b, func(field protowire.Number, v []byte) error {
		switch field {
		case inputStdin:
			in.Stdin = v
		case inputUpload:
			in.Upload = v
		case inputSecret:
			var name string
			var value []byte
			err := eachBytes(v, func(field protowire.Number, v []byte) error {
				switch field {
				case secretName:
					name = string(v)
				case secretValue:
					value = v
				}
				return nil
			})
			if err != nil {
				return err
			}
			if in.Secrets == nil {
				in.Secrets = map[string][]byte{}
			}
			in.Secrets[name] = value
		}
		return nil
	})
	return in, err
}

// eachBytes hands out the fields of a message; those of another type are skipped.
func eachBytes(b []byte, use func(protowire.Number, []byte) error) error {
	for len(b) > 0 {
		field, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("decode an input: %w", protowire.ParseError(n))
		}
		b = b[n:]
		if typ != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(field, typ, b); n < 0 {
				return fmt.Errorf("decode an input: %w", protowire.ParseError(n))
			}
			b = b[n:]
			continue
		}
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return fmt.Errorf("decode an input: %w", protowire.ParseError(n))
		}
		if err := use(field, v); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// input reads the input of a job. One that is not there is NotFound, reason INPUT_GONE.
func (r records) input(ctx context.Context, id job.ID) (job.Input, error) {
	const op = "read the input of a job"
	v, err := r.store.Get(ctx, idKey(prefixInput, id))
	if errors.Is(err, store.ErrNotFound) {
		return job.Input{}, errs.E(op, errs.NotFound, job.ReasonInputGone,
			errors.New("its stdin, secrets or upload are not in the store; a backup may have been restored without them"))
	}
	if err != nil {
		return job.Input{}, errs.E(op, errs.Internal, "STORE", err)
	}
	in, err := decodeInput(v)
	if err != nil {
		return job.Input{}, errs.E(op, errs.NotFound, job.ReasonInputGone, err)
	}
	return in, nil
}

// liveJob reads a live job. Versions before kept its input in its own record: it gets
// one of its own then, so that it does not stay in memory.
func (r records) liveJob(ctx context.Context, id job.ID) (*job.Job, error) {
	j, err := r.job(ctx, id)
	if err != nil {
		return nil, err
	}
	in, size := j.Spec.TakeInput()
	if size == 0 {
		return j, nil
	}
	j.Input = size
	var b store.Batch
	b.Put(idKey(prefixInput, id), encodeInput(&in))
	if err := putJob(&b, &Effect{Put: j}); err != nil {
		return nil, err
	}
	if err := r.store.Apply(ctx, &b); err != nil {
		return nil, fmt.Errorf("keep the input of job %s apart: %w", id, err)
	}
	return j, nil
}
