package journal

import (
	"fmt"

	"github.com/droverhq/drover/core/job"
)

func (s *Started) encode(e *enc) {
	e.int(1, int64(s.PID))
	e.uint(2, s.StartTicks)
	e.time(3, s.Wall)
	e.int(4, int64(s.Boot))
}

func (s *Started) decode(d dec) error {
	switch d.num {
	case 1:
		s.PID = int(d.int())
	case 2:
		s.StartTicks = d.v
	case 3:
		s.Wall = d.time()
	case 4:
		s.Boot = d.duration()
	}
	return nil
}

func (l *Lease) encode(e *enc) {
	e.str(1, l.BootID)
	e.int(2, int64(l.Until))
	e.bool(3, l.Over)
	e.uint(4, l.Lapses)
}

func (l *Lease) decode(d dec) error {
	switch d.num {
	case 1:
		l.BootID = d.str()
	case 2:
		l.Until = d.duration()
	case 3:
		l.Over = d.bool()
	case 4:
		l.Lapses = d.v
	}
	return nil
}

func (s *Stop) encode(e *enc) {
	e.str(1, s.Reason)
	e.int(2, int64(s.Grace))
}

func (s *Stop) decode(d dec) error {
	switch d.num {
	case 1:
		s.Reason = d.str()
	case 2:
		s.Grace = d.duration()
	}
	return nil
}

func (x *Exit) encode(e *enc) {
	e.int(1, int64(x.Code))
	e.str(2, x.Signal)
	e.str(3, x.SpawnError)
	e.uint(4, uint64(x.Evidence))
	e.time(5, x.Wall)
}

func (x *Exit) decode(d dec) error {
	switch d.num {
	case 1:
		x.Code = int32(d.int())
	case 2:
		x.Signal = d.str()
	case 3:
		x.SpawnError = d.str()
	case 4:
		x.Evidence = job.Evidence(d.v)
	case 5:
		x.Wall = d.time()
	}
	return nil
}

func (in *Intent) encode(e *enc) {
	e.str(1, in.BootID)
	e.msg(2, func(e *enc) { encodeSpec(e, &in.Spec) })
	e.bool(3, in.Folder)
	e.str(4, in.Mark)
	e.str(5, in.Stdout)
	e.str(6, in.Stderr)
	e.str(7, in.Cgroup)
	e.uint(8, in.Script.Generation)
	e.str(9, in.Script.Folder)
	e.str(10, in.Script.Name)
	e.str(11, in.Script.SHA256)
	e.str(12, in.Runner.Name)
	e.str(13, in.Runner.Version)
	e.str(14, in.Runner.SHA256)
}

func (in *Intent) decode(d dec) error {
	switch d.num {
	case 1:
		in.BootID = d.str()
	case 2:
		return fields(d.b, func(d dec) error { return decodeSpec(&in.Spec, d) })
	case 3:
		in.Folder = d.bool()
	case 4:
		in.Mark = d.str()
	case 5:
		in.Stdout = d.str()
	case 6:
		in.Stderr = d.str()
	case 7:
		in.Cgroup = d.str()
	case 8:
		in.Script.Generation = d.v
	case 9:
		in.Script.Folder = d.str()
	case 10:
		in.Script.Name = d.str()
	case 11:
		in.Script.SHA256 = d.str()
	case 12:
		in.Runner.Name = d.str()
	case 13:
		in.Runner.Version = d.str()
	case 14:
		in.Runner.SHA256 = d.str()
	}
	return nil
}

func (x *Done) decode(d dec) error {
	switch d.num {
	case 30:
		x.Open = d.bool()
		return nil
	case 31:
		x.Forget = d.bool()
		return nil
	}
	return decodeReport(&x.Report, d)
}

func encodeReport(e *enc, r *job.Report) {
	e.uint(1, r.Sequence)
	e.uint(2, uint64(r.State))
	e.str(3, r.Reason)
	e.str(4, r.Message)
	e.int(5, int64(r.PID))
	if r.ExitCode != nil {
		// P6: an absent code and code 0 are different things.
		e.bool(6, true)
		e.int(7, int64(*r.ExitCode))
	}
	e.str(8, r.Signal)
	e.uint(9, uint64(r.Evidence))
	e.time(10, r.Start)
	e.time(11, r.End)
	e.uint(12, r.Stdout.Size)
	e.str(13, r.Stdout.SHA256)
	e.uint(14, r.Stderr.Size)
	e.str(15, r.Stderr.SHA256)
	e.str(16, r.ScriptSHA256)
	e.str(17, r.Runner)
	e.str(18, r.RunnerVersion)
	if p := r.StopProof; p != nil {
		e.msg(19, func(e *enc) {
			e.str(1, p.Method)
			e.uint(2, uint64(p.Termed))
			e.uint(3, uint64(p.Killed))
			e.int(4, int64(p.Took))
		})
	}
}

func decodeReport(r *job.Report, d dec) error {
	switch d.num {
	case 1:
		r.Sequence = d.v
	case 2:
		r.State = job.State(d.v)
		if !r.State.Terminal() {
			return fmt.Errorf("state %s is not terminal", r.State)
		}
	case 3:
		r.Reason = d.str()
	case 4:
		r.Message = d.str()
	case 5:
		r.PID = int(d.int())
	case 6:
		if r.ExitCode == nil {
			r.ExitCode = new(int32)
		}
	case 7:
		if r.ExitCode == nil {
			r.ExitCode = new(int32)
		}
		*r.ExitCode = int32(d.int())
	case 8:
		r.Signal = d.str()
	case 9:
		r.Evidence = job.Evidence(d.v)
	case 10:
		r.Start = d.time()
	case 11:
		r.End = d.time()
	default:
		return decodeReportEnd(r, d)
	}
	return nil
}

// decodeReportEnd decodes the fields that only a final report has.
func decodeReportEnd(r *job.Report, d dec) error {
	switch d.num {
	case 12:
		r.Stdout.Size = d.v
	case 13:
		r.Stdout.SHA256 = d.str()
	case 14:
		r.Stderr.Size = d.v
	case 15:
		r.Stderr.SHA256 = d.str()
	case 16:
		r.ScriptSHA256 = d.str()
	case 17:
		r.Runner = d.str()
	case 18:
		r.RunnerVersion = d.str()
	case 19:
		r.StopProof = &job.StopProof{}
		return fields(d.b, func(d dec) error {
			switch d.num {
			case 1:
				r.StopProof.Method = d.str()
			case 2:
				r.StopProof.Termed = uint32(d.v)
			case 3:
				r.StopProof.Killed = uint32(d.v)
			case 4:
				r.StopProof.Took = d.duration()
			}
			return nil
		})
	}
	return nil
}
