package rpc

import (
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// newer adds a field to a message that this version does not know.
func newer[M proto.Message](m M) M {
	raw := protowire.AppendTag(nil, 1000, protowire.VarintType)
	m.ProtoReflect().SetUnknown(protowire.AppendVarint(raw, 1))
	return m
}

// anyNumber draws numbers of enumerations as another version may send them: those
// that are known here, their neighbours, and those that would be known ones if they
// were cut to a byte.
func anyNumber(t *rapid.T, label string) int32 {
	return rapid.OneOf(
		rapid.Int32Range(-1, 12), rapid.Int32Range(250, 270), rapid.Int32Range(65530, 65550), rapid.Int32(),
	).Draw(t, label)
}

// TestP11AnOrderThatIsNotUnderstoodIsRefusedAlone: a worker that is older than its
// scheduler names what it does not know, and goes on with the rest of the frame.
func TestP11AnOrderThatIsNotUnderstoodIsRefusedAlone(t *testing.T) {
	t.Parallel()
	for field, spec := range map[string]*droverv1.JobSpec{
		"output_policy":         {OutputPolicy: 260},
		"on_partition":          {OnPartition: -1},
		"field 1000 of JobSpec": newer(&droverv1.JobSpec{}),
		"field 1000 of Limits":  {Limits: newer(&droverv1.Limits{})},
	} {
		t.Run(field, func(t *testing.T) {
			t.Parallel()
			start := func(n byte, s *droverv1.JobSpec) *droverv1.StartAttempt {
				return &droverv1.StartAttempt{JobId: job.ID{n}.String(), Attempt: 1, Fence: &droverv1.Fence{Term: 1}, Spec: s}
			}
			d, err := downFromProto(&droverv1.SessionRequest{
				Starts: []*droverv1.StartAttempt{start(1, &droverv1.JobSpec{}), start(2, spec), start(3, &droverv1.JobSpec{})},
				Stops:  []*droverv1.StopAttempt{{JobId: job.ID{4}.String(), Attempt: 1}},
			})
			if err != nil || len(d.Starts) != 3 || len(d.Stops) != 1 {
				t.Fatalf("%+v, %v", d, err)
			}
			for i, o := range d.Starts {
				if (o.Refusal != nil) != (i == 1) {
					t.Errorf("order %d: %v", i+1, o.Refusal)
				}
			}
			bad := d.Starts[1]
			if bad.Job != (job.ID{2}) || bad.Fence.Term != 1 || errs.ReasonOf(bad.Refusal) != job.ReasonOldWorker {
				t.Errorf("%+v", bad)
			}
			if text := bad.Refusal.Error(); !strings.Contains(text, field) || !strings.Contains(text, "the scheduler is newer") {
				t.Errorf("it says %q", text)
			}
		})
	}
}

// TestP6NoStateOrEvidenceBecomesAnother: whatever number a worker sends, it is
// recorded, compared and shown as that number.
func TestP6NoStateOrEvidenceBecomesAnother(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		state, evidence := anyNumber(t, "state"), anyNumber(t, "evidence")
		r, err := reportFromProto(wire(t, &droverv1.AttemptReport{
			JobId: job.ID{1}.String(), Attempt: 1, State: droverv1.JobState(state), Evidence: droverv1.Evidence(evidence),
		}, &droverv1.AttemptReport{}))
		if err != nil || int32(r.State) != state || int32(r.Evidence) != evidence {
			t.Fatalf("%d became %d, %d became %d, %v", state, r.State, evidence, r.Evidence, err)
		}
		_, known := droverv1.JobState_name[state]
		if r.State.Known() != known || !known && (r.State.Terminal() || r.State.Live()) {
			t.Fatalf("state %d: known %v, terminal %v, live %v", state, r.State.Known(), r.State.Terminal(), r.State.Live())
		}
		p := jobToProto(&job.Job{State: r.State, Result: r})
		if int32(p.GetState()) != state || int32(p.GetEvidence()) != evidence {
			t.Fatalf("shown as %v and %v", p.GetState(), p.GetEvidence())
		}
		back := reportToProto(&r)
		if int32(back.GetState()) != state || int32(back.GetEvidence()) != evidence {
			t.Fatalf("told as %v and %v", back.GetState(), back.GetEvidence())
		}
	})
}

// TestNoChoiceBecomesAnother: what a request chooses is done as it says, or refused
// with the name of the field.
func TestNoChoiceBecomesAnother(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := anyNumber(t, "number")
		check := func(field string, names map[int32]string, back int32, err error) {
			_, known := names[n]
			if !known && (errs.KindOf(err) != errs.Invalid || !strings.Contains(err.Error(), field)) {
				t.Fatalf("%s %d: %v", field, n, err)
			}
			if known && (err != nil || n != 0 && back != n) {
				t.Fatalf("%s %d became %d, %v", field, n, back, err)
			}
		}
		policy, err := policyFromProto(droverv1.OutputPolicy(n))
		check("output_policy", droverv1.OutputPolicy_name, int32(specToProto(&job.Spec{OutputPolicy: policy}).GetOutputPolicy()), err)
		partition, err := partitionFromProto(droverv1.OnPartition(n))
		back := partitionToProto(partition)
		if back == droverv1.OnPartition_ON_PARTITION_UNSPECIFIED {
			back = droverv1.OnPartition_ON_PARTITION_KEEP
		}
		check("on_partition", droverv1.OnPartition_name, int32(back), err)
		check("stream", droverv1.Stream_name, n, checkStream(droverv1.Stream(n)))
		if state, err := stateFromProto(droverv1.JobState(n)); n != 0 {
			check("states", droverv1.JobState_name, int32(state), err)
		} else if err == nil {
			t.Fatal("the state 0 can be selected")
		}
	})
}

// TestP11ARecordOfANewerSchedulerIsNotMadeLess: after a step back to an older version
// of the scheduler, what its records hold is ordered as it is; the worker judges it.
func TestP11ARecordOfANewerSchedulerIsNotMadeLess(t *testing.T) {
	t.Parallel()
	o := job.StartOrder{Key: job.Key{Job: job.ID{1}, Attempt: 1}, Spec: job.Spec{OnPartition: job.StopItself + 1}}
	if got, err := startFromProto(startToProto(&o)); err != nil || got.Refusal == nil {
		t.Errorf("%v, %v", got.Refusal, err)
	}
	o.Spec = job.Spec{OutputPolicy: job.Keep + 1}
	if got, err := startFromProto(startToProto(&o)); err != nil || got.Refusal == nil {
		t.Errorf("%v, %v", got.Refusal, err)
	}
}

// TestP14NoLengthOfTimeRunsOver: the longest durations that the wire can carry are as
// good as none, and can be added to a clock; no time that a record cannot hold gets in.
func TestP14NoLengthOfTimeRunsOver(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		d := &durationpb.Duration{Seconds: rapid.Int64().Draw(t, "seconds"), Nanos: rapid.Int32().Draw(t, "nanos")}
		s, err := specFromProto(&droverv1.JobSpec{Timeout: d, IdleTimeout: d, QueueTimeout: d, Grace: d, Linger: d, Retry: &droverv1.RetryPolicy{Backoff: d}})
		if err != nil {
			t.Fatal(err)
		}
		const uptime = 50 * 365 * 24 * time.Hour
		for _, got := range []time.Duration{s.Timeout, s.IdleTimeout, s.QueueTimeout, s.Grace, s.Linger, s.Retry.Backoff, *optionalDuration(d)} {
			if d.GetSeconds() > 1 && got <= 0 || d.GetSeconds() < -1 && got >= 0 && d.GetNanos() <= 0 || got > 0 && uptime+got < uptime {
				t.Fatalf("%v became %v", d, got)
			}
		}
		at := timeOf(&timestamppb.Timestamp{Seconds: rapid.Int64().Draw(t, "since 1970"), Nanos: rapid.Int32().Draw(t, "and")})
		if _, err := at.MarshalJSON(); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzSession reads any bytes as frames of both directions. What is read is known, or
// refused by name.
func FuzzSession(f *testing.F) {
	spec := &droverv1.JobSpec{Command: "bash", OutputPolicy: 260, OnPartition: math.MinInt32, Timeout: &durationpb.Duration{Seconds: math.MaxInt64}}
	for _, m := range []proto.Message{
		&droverv1.SessionRequest{Starts: []*droverv1.StartAttempt{{JobId: job.ID{1}.String(), Attempt: 1, Spec: newer(spec)}}},
		&droverv1.SessionRequest{Stops: []*droverv1.StopAttempt{{JobId: job.ID{1}.String(), Grace: &durationpb.Duration{Nanos: -1}}}, Acks: []*droverv1.ReportAck{{}}},
		&droverv1.SessionResponse{
			Reports: []*droverv1.AttemptReport{{JobId: job.ID{1}.String(), State: 261, Evidence: 260, EndTime: &timestamppb.Timestamp{Seconds: math.MaxInt64}}},
			Scripts: &droverv1.ScriptIndex{Scripts: []*droverv1.Script{{Size: math.MaxUint64}}},
			Runners: &droverv1.RunnerIndex{Runners: []*droverv1.RunnerInfo{{Jobs: math.MaxUint32}}},
		},
	} {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var down droverv1.SessionRequest
		if proto.Unmarshal(data, &down) == nil {
			if d, err := downFromProto(&down); err == nil {
				for i, o := range d.Starts {
					_, policy := droverv1.OutputPolicy_name[int32(down.GetStarts()[i].GetSpec().GetOutputPolicy())]
					_, partition := droverv1.OnPartition_name[int32(down.GetStarts()[i].GetSpec().GetOnPartition())]
					if o.Refusal == nil && (!policy || !partition) {
						t.Errorf("taken: %v", down.GetStarts()[i])
					}
				}
			}
		}
		var up droverv1.SessionResponse
		if proto.Unmarshal(data, &up) == nil {
			if u, err := upFromProto(&up); err == nil {
				for i := range u.Reports {
					if p := up.GetReports()[i]; int32(u.Reports[i].State) != int32(p.GetState()) || int32(u.Reports[i].Evidence) != int32(p.GetEvidence()) {
						t.Errorf("%v became %+v", p, u.Reports[i])
					}
				}
			}
		}
	})
}
