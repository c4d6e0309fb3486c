package rpc

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// wire sends a message through its encoding.
func wire[M proto.Message](t *rapid.T, m, into M) M {
	data, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(data, into); err != nil {
		t.Fatal(err)
	}
	return into
}

func anySpec(t *rapid.T) job.Spec {
	s := rapid.Make[job.Spec]().Draw(t, "spec")
	s.OutputPolicy = job.OutputPolicy(rapid.IntRange(int(job.Ring), int(job.Keep)).Draw(t, "policy"))
	s.OnPartition = job.OnPartition(rapid.IntRange(int(job.KeepRunning), int(job.StopItself)).Draw(t, "partition"))
	for _, d := range []*time.Duration{&s.Timeout, &s.IdleTimeout, &s.QueueTimeout, &s.Grace, &s.Linger, &s.Retry.Backoff} {
		*d %= forever
	}
	if s.Retry.Max == 0 {
		s.Retry = job.Retry{}
	}
	return s
}

func anyTime(t *rapid.T) time.Time {
	if rapid.Bool().Draw(t, "never") {
		return time.Time{}
	}
	return time.Unix(rapid.Int64Range(1, 1<<33).Draw(t, "seconds"), rapid.Int64Range(0, 999_999_999).Draw(t, "nanos")).UTC()
}

// TestOrdersArriveAsTheyWereGiven: what a scheduler orders is what its worker
// reads, whatever is in it.
func TestOrdersArriveAsTheyWereGiven(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		start := job.StartOrder{
			Key: rapid.Make[job.Key]().Draw(t, "key"), Fence: rapid.Make[job.Fence]().Draw(t, "fence"),
			Spec: anySpec(t), BootID: rapid.String().Draw(t, "boot"),
		}
		got, err := startFromProto(wire(t, startToProto(&start), &droverv1.StartAttempt{}))
		if diff := cmp.Diff(start, got, cmpopts.EquateEmpty()); err != nil || diff != "" {
			t.Fatalf("%v\n%s", err, diff)
		}
		stop := rapid.Make[job.StopOrder]().Draw(t, "stop")
		if stop.Grace != nil {
			*stop.Grace %= forever
		}
		back, err := stopFromProto(wire(t, stopToProto(&stop), &droverv1.StopAttempt{}))
		if diff := cmp.Diff(stop, back); err != nil || diff != "" {
			t.Fatalf("%v\n%s", err, diff)
		}
	})
}

// TestReportsArriveAsTheyWereGiven: exit codes, 0 among them, and their evidence.
func TestReportsArriveAsTheyWereGiven(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		r := job.Report{
			Key: rapid.Make[job.Key]().Draw(t, "key"), Sequence: rapid.Uint64().Draw(t, "sequence"),
			State: job.State(rapid.IntRange(0, int(job.Lost)).Draw(t, "state")), Reason: rapid.String().Draw(t, "reason"),
			Message: rapid.String().Draw(t, "message"), PID: rapid.IntRange(0, 1<<22).Draw(t, "pid"),
			ExitCode: rapid.Ptr(rapid.Int32(), true).Draw(t, "code"), Signal: rapid.String().Draw(t, "signal"),
			Evidence: job.Evidence(rapid.IntRange(0, int(job.ExitJournal)).Draw(t, "evidence")), Start: anyTime(t), End: anyTime(t),
			Stdout: rapid.Make[job.Stream]().Draw(t, "stdout"), Stderr: rapid.Make[job.Stream]().Draw(t, "stderr"),
			ScriptSHA256: rapid.String().Draw(t, "sum"), Runner: rapid.String().Draw(t, "runner"),
			RunnerVersion: rapid.String().Draw(t, "version"),
			StopProof:     rapid.Ptr(rapid.Make[job.StopProof](), true).Draw(t, "proof"),
		}
		if r.StopProof != nil {
			r.StopProof.Took %= forever
		}
		got, err := reportFromProto(wire(t, reportToProto(&r), &droverv1.AttemptReport{}))
		if diff := cmp.Diff(r, got); err != nil || diff != "" {
			t.Fatalf("%v\n%s", err, diff)
		}
	})
}

// TestWhatAWorkerOffersArrives: runners, scripts, conditions.
func TestWhatAWorkerOffersArrives(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		runners := rapid.SliceOf(rapid.Make[job.RunnerInfo]()).Draw(t, "runners")
		for i := range runners {
			runners[i].Jobs = int(uint32(runners[i].Jobs))
		}
		if diff := cmp.Diff(runners, runnersFromProto(runnersToProto(runners)), cmpopts.EquateEmpty()); diff != "" {
			t.Fatal(diff)
		}
		x := job.ScriptIndex{Generation: rapid.Uint64().Draw(t, "generation")}
		for range rapid.IntRange(0, 4).Draw(t, "scripts") {
			x.Scripts = append(x.Scripts, job.ScriptInfo{
				Path: rapid.String().Draw(t, "path"), Folder: rapid.String().Draw(t, "folder"), SHA256: rapid.String().Draw(t, "sum"),
				Size: rapid.Int64Range(0, 1<<40).Draw(t, "size"), ModTime: anyTime(t),
			})
		}
		var parts indexParts
		got, err := parts.add(wire(t, indexToProto(&x, true)[0], &droverv1.ScriptIndex{}))
		if diff := cmp.Diff(&x, got, cmpopts.EquateEmpty()); err != nil || diff != "" {
			t.Fatal(err, diff)
		}
		var cs []job.Condition
		for range rapid.IntRange(0, 3).Draw(t, "conditions") {
			cs = append(cs, job.Condition{Type: rapid.String().Draw(t, "type"), Message: rapid.String().Draw(t, "text"), Since: anyTime(t)})
		}
		if diff := cmp.Diff(cs, conditionsFromProto(conditionsToProto(cs)), cmpopts.EquateEmpty()); diff != "" {
			t.Fatal(diff)
		}
	})
}

// TestSecretsAreNotShown: a job that is shown has the names of its secrets only,
// and no standard input.
func TestSecretsAreNotShown(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		j := job.Job{Spec: anySpec(t)}
		p := jobToProto(&j)
		if len(p.GetSpec().GetStdin()) > 0 || len(p.GetSpec().GetSecrets()) != len(j.Spec.Secrets) {
			t.Fatalf("shown: %v", p.GetSpec())
		}
		for name, value := range p.GetSpec().GetSecrets() {
			if _, ok := j.Spec.Secrets[name]; !ok || len(value) > 0 {
				t.Fatalf("the secret %q is shown as %q", name, value)
			}
		}
	})
}

func TestBadMessagesAreRefusedByField(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		read   func() error
		reason string
	}{
		"a start of no job":    {func() error { _, err := startFromProto(&droverv1.StartAttempt{JobId: "x"}); return err }, "ID_MALFORMED"},
		"a stop of no job":     {func() error { _, err := stopFromProto(&droverv1.StopAttempt{}); return err }, "ID_MALFORMED"},
		"a report of no job":   {func() error { _, err := reportFromProto(&droverv1.AttemptReport{JobId: "1"}); return err }, "ID_MALFORMED"},
		"an unknown policy":    {func() error { _, err := specFromRequest(&droverv1.StartJobRequest{OutputPolicy: 99}); return err }, "OUTPUT_POLICY_UNKNOWN"},
		"an unknown behaviour": {func() error { _, err := specFromRequest(&droverv1.StartJobRequest{OnPartition: 99}); return err }, "ON_PARTITION_UNKNOWN"},
		"a field of later":     {func() error { _, err := specFromRequest(newer(&droverv1.StartJobRequest{})); return err }, "FIELD_UNKNOWN"},
		"a limit of later": {func() error {
			_, err := specFromRequest(&droverv1.StartJobRequest{Limits: newer(&droverv1.Limits{})})
			return err
		}, "FIELD_UNKNOWN"},
		"a retry of later": {func() error {
			_, err := specFromRequest(&droverv1.StartJobRequest{Retry: newer(&droverv1.RetryPolicy{})})
			return err
		}, "FIELD_UNKNOWN"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := c.read(); errs.ReasonOf(err) != c.reason || errs.KindOf(err) != errs.Invalid {
				t.Errorf("%v, want %s", err, c.reason)
			}
		})
	}
}

// TestWhatIsNotAskedForIsTheDefault: an absent grace is ten seconds, a grace of
// zero is none.
func TestWhatIsNotAskedForIsTheDefault(t *testing.T) {
	t.Parallel()
	s, err := specFromRequest(&droverv1.StartJobRequest{})
	if err != nil || s.Grace != job.DefaultGrace || s.Linger != job.DefaultLinger || s.Timeout != 0 || s.OutputPolicy != job.Ring {
		t.Errorf("%+v, %v", s, err)
	}
	s.Grace, s.Linger = 0, 0
	back, err := specFromProto(specToProto(&s))
	if err != nil || back.Grace != 0 || back.Linger != 0 {
		t.Errorf("a grace of zero became %v, a linger %v, %v", back.Grace, back.Linger, err)
	}
}
