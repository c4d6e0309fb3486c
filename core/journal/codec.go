package journal

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/google/uuid"

	"github.com/droverhq/drover/core/job"
)

// Records are kind, then fields in the protobuf wire format: a worker of
// another version skips fields it does not know (P11). Field numbers are on
// disk and never reused. Zero values are left out.

// enc appends fields to b.
type enc struct{ b []byte }

func (e *enc) uint(n protowire.Number, v uint64) {
	if v != 0 {
		e.b = protowire.AppendTag(e.b, n, protowire.VarintType)
		e.b = protowire.AppendVarint(e.b, v)
	}
}

func (e *enc) int(n protowire.Number, v int64) { e.uint(n, protowire.EncodeZigZag(v)) }

func (e *enc) bool(n protowire.Number, v bool) { e.uint(n, protowire.EncodeBool(v)) }

func (e *enc) str(n protowire.Number, v string) {
	if v != "" {
		e.always(n, v)
	}
}

// always writes v even when it is empty: empty arguments count.
func (e *enc) always(n protowire.Number, v string) {
	e.b = protowire.AppendTag(e.b, n, protowire.BytesType)
	e.b = protowire.AppendString(e.b, v)
}

// time keeps nanoseconds since 1970 in UTC; the zero time stays zero.
func (e *enc) time(n protowire.Number, t time.Time) {
	if !t.IsZero() {
		e.int(n, t.UnixNano())
	}
}

func (e *enc) strMap(n protowire.Number, m map[string]string) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		e.msg(n, func(e *enc) {
			e.always(1, k)
			e.always(2, m[k])
		})
	}
}

// msg writes a nested message. The length goes in front afterwards, so the body
// is moved; bodies here are a few hundred bytes.
func (e *enc) msg(n protowire.Number, fill func(*enc)) {
	e.b = protowire.AppendTag(e.b, n, protowire.BytesType)
	start := len(e.b)
	fill(e)
	body := len(e.b) - start
	size := protowire.SizeVarint(uint64(body))
	for range size {
		e.b = append(e.b, 0)
	}
	copy(e.b[start+size:], e.b[start:start+body])
	protowire.AppendVarint(e.b[:start], uint64(body))
}

// dec is one decoded field.
type dec struct {
	num protowire.Number
	v   uint64 // varints
	b   []byte // bytes
}

func (d dec) int() int64              { return protowire.DecodeZigZag(d.v) }
func (d dec) bool() bool              { return d.v != 0 }
func (d dec) str() string             { return string(d.b) }
func (d dec) duration() time.Duration { return time.Duration(d.int()) }

// time is the reverse of enc.time; nanosecond 0 itself stands for no time.
func (d dec) time() time.Time {
	if d.v == 0 {
		return time.Time{}
	}
	return time.Unix(0, d.int()).UTC()
}

// fields calls f for each field of b.
func fields(b []byte, f func(dec) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("field tag: %w", protowire.ParseError(n))
		}
		b = b[n:]
		d := dec{num: num}
		switch typ {
		case protowire.VarintType:
			d.v, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			d.b, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
			d.num = 0 // of a type that no version up to this one writes
		}
		if n < 0 {
			return fmt.Errorf("field %d: %w", num, protowire.ParseError(n))
		}
		b = b[n:]
		if err := f(d); err != nil {
			return fmt.Errorf("field %d: %w", num, err)
		}
	}
	return nil
}

func appendRecord(b []byte, r *Record) []byte {
	e := enc{append(b, byte(r.Kind))}
	if r.Key != (job.Key{}) {
		e.b = protowire.AppendTag(e.b, 1, protowire.BytesType)
		e.b = protowire.AppendBytes(e.b, r.Key.Job[:])
		e.uint(2, uint64(r.Key.Attempt))
	}
	e.uint(3, r.Fence.Term)
	e.uint(4, r.Fence.Counter)
	e.uint(5, r.Floor.Term)
	e.uint(6, r.Floor.Counter)
	e.uint(7, r.Epoch)
	switch r.Kind {
	case KindIntent:
		e.msg(8, r.Intent.encode)
	case KindStarted:
		e.msg(8, r.Started.encode)
	case KindStop:
		e.msg(8, r.Stop.encode)
	case KindExited:
		e.msg(8, r.Exit.encode)
	case KindDone:
		e.msg(8, func(e *enc) {
			encodeReport(e, &r.Done.Report)
			e.bool(30, r.Done.Open)
			e.bool(31, r.Done.Forget)
		})
	case KindFence:
		if r.Lease != nil {
			e.msg(8, r.Lease.encode)
		}
		if r.Life != (job.Life{}) {
			e.b = protowire.AppendTag(e.b, 9, protowire.BytesType)
			e.b = protowire.AppendBytes(e.b, job.EncodeLives([]job.Life{r.Life}))
		}
	case KindAcked, KindForgotten:
	}
	return e.b
}

func parseRecord(b []byte) (Record, error) {
	if len(b) == 0 {
		return Record{}, errors.New("empty record")
	}
	r := Record{Kind: Kind(b[0])}
	if r.Kind < KindFence || r.Kind > KindForgotten {
		return r, fmt.Errorf("unknown kind %d: written by a newer worker", r.Kind)
	}
	var body []byte
	err := fields(b[1:], func(d dec) (err error) {
		switch d.num {
		case 1:
			r.Key.Job, err = uuid.FromBytes(d.b)
		case 2:
			r.Key.Attempt = uint32(d.v)
		case 3:
			r.Fence.Term = d.v
		case 4:
			r.Fence.Counter = d.v
		case 5:
			r.Floor.Term = d.v
		case 6:
			r.Floor.Counter = d.v
		case 7:
			r.Epoch = d.v
		case 8:
			body = d.b
		case 9:
			r.Life, err = decodeLife(d.b)
		}
		return err
	})
	if err != nil {
		return r, fmt.Errorf("record of kind %d: %w", r.Kind, err)
	}
	switch r.Kind {
	case KindIntent:
		r.Intent = &Intent{}
		err = fields(body, r.Intent.decode)
	case KindStarted:
		r.Started = &Started{}
		err = fields(body, r.Started.decode)
	case KindStop:
		r.Stop = &Stop{}
		err = fields(body, r.Stop.decode)
	case KindExited:
		r.Exit = &Exit{}
		err = fields(body, r.Exit.decode)
	case KindDone:
		r.Done = &Done{Report: job.Report{Key: r.Key}}
		err = fields(body, r.Done.decode)
	case KindFence:
		if body != nil {
			r.Lease = &Lease{}
			err = fields(body, r.Lease.decode)
		}
	case KindAcked, KindForgotten:
	}
	if err != nil {
		return r, fmt.Errorf("body of kind %d: %w", r.Kind, err)
	}
	return r, nil
}

func decodeLife(b []byte) (job.Life, error) {
	lives, err := job.DecodeLives(b)
	if err != nil || len(lives) != 1 {
		return job.Life{}, fmt.Errorf("life of a scheduler: %d bytes", len(b))
	}
	return lives[0], nil
}
