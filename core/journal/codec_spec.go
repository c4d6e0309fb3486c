package journal

import (
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/droverhq/drover/core/job"
)

// encodeSpec leaves out Stdin, Secrets and Upload on purpose: they are files of
// the attempt's folder, and secrets never appear in a journal (docs/security.md).
func encodeSpec(e *enc, s *job.Spec) {
	e.str(1, s.Worker)
	e.str(2, s.Path)
	e.str(3, s.Command)
	for _, a := range s.Args {
		e.always(4, a)
	}
	e.strMap(5, s.Env)
	e.strMap(6, s.Labels)
	e.int(7, int64(s.Timeout))
	e.int(8, int64(s.IdleTimeout))
	e.int(9, int64(s.QueueTimeout))
	e.int(10, int64(s.Grace))
	e.int(11, int64(s.Linger))
	e.bool(12, s.DetachChildren)
	e.uint(13, uint64(s.Limits.CPUMillis))
	e.uint(14, s.Limits.Memory)
	e.uint(15, uint64(s.Limits.Pids))
	e.str(16, s.Workdir)
	e.str(17, s.User)
	e.str(18, s.Name)
	e.int(19, int64(s.Priority))
	if s.Retry.Max != 0 {
		e.msg(20, func(e *enc) { encodeRetry(e, &s.Retry) })
	}
	e.uint(21, uint64(s.OutputPolicy))
	e.uint(22, s.OutputLimit)
	e.uint(23, uint64(s.OnPartition))
	e.str(25, s.UploadSHA256)
}

func encodeRetry(e *enc, r *job.Retry) {
	e.uint(1, uint64(r.Max))
	e.bool(2, r.OnLost)
	e.bool(3, r.OnFailure)
	for _, c := range r.ExitCodes {
		// Not e.int: it leaves zero out, and the list may hold any code.
		e.b = protowire.AppendTag(e.b, 4, protowire.VarintType)
		e.b = protowire.AppendVarint(e.b, protowire.EncodeZigZag(int64(c)))
	}
	e.int(5, int64(r.Backoff))
}

func decodeRetry(r *job.Retry, d dec) error {
	switch d.num {
	case 1:
		r.Max = uint32(d.v)
	case 2:
		r.OnLost = d.bool()
	case 3:
		r.OnFailure = d.bool()
	case 4:
		r.ExitCodes = append(r.ExitCodes, int32(d.int()))
	case 5:
		r.Backoff = d.duration()
	}
	return nil
}

// decodeSpec reads what was asked; decodeSpecBounds the rest of the fields.
func decodeSpec(s *job.Spec, d dec) error {
	switch d.num {
	case 1:
		s.Worker = d.str()
	case 2:
		s.Path = d.str()
	case 3:
		s.Command = d.str()
	case 4:
		s.Args = append(s.Args, d.str())
	case 5:
		return decodePair(&s.Env, d)
	case 6:
		return decodePair(&s.Labels, d)
	case 16:
		s.Workdir = d.str()
	case 17:
		s.User = d.str()
	case 18:
		s.Name = d.str()
	case 19:
		s.Priority = int32(d.int())
	case 20:
		return fields(d.b, func(d dec) error { return decodeRetry(&s.Retry, d) })
	case 25:
		s.UploadSHA256 = d.str()
	default:
		decodeSpecBounds(s, d)
	}
	return nil
}

func decodeSpecBounds(s *job.Spec, d dec) {
	switch d.num {
	case 7:
		s.Timeout = d.duration()
	case 8:
		s.IdleTimeout = d.duration()
	case 9:
		s.QueueTimeout = d.duration()
	case 10:
		s.Grace = d.duration()
	case 11:
		s.Linger = d.duration()
	case 12:
		s.DetachChildren = d.bool()
	case 13:
		s.Limits.CPUMillis = uint32(d.v)
	case 14:
		s.Limits.Memory = d.v
	case 15:
		s.Limits.Pids = uint32(d.v)
	case 21:
		s.OutputPolicy = job.OutputPolicy(d.v)
	case 22:
		s.OutputLimit = d.v
	case 23:
		s.OnPartition = job.OnPartition(d.v)
	}
}

func decodePair(m *map[string]string, d dec) error {
	var k, v string
	err := fields(d.b, func(d dec) error {
		switch d.num {
		case 1:
			k = d.str()
		case 2:
			v = d.str()
		}
		return nil
	})
	if *m == nil {
		*m = make(map[string]string)
	}
	(*m)[k] = v
	return err
}
