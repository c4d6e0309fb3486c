package rpc

import (
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// timestamp leaves the zero time out of the wire.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// timeOf takes a time that no calendar has for none: it is for people (P14), and a
// record with it could not be read again.
func timeOf(t *timestamppb.Timestamp) time.Time {
	if t.CheckValid() != nil {
		return time.Time{}
	}
	return t.AsTime()
}

// duration leaves zero out of the wire: for fields whose zero means "none".
func duration(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}

// forever is as good as no bound, and can still be added to any time.
const forever = 100 * 365 * 24 * time.Hour

// durationOf cuts what is longer than anything lasts: a deadline that far off would
// lie before its beginning. Unset is 0.
func durationOf(d *durationpb.Duration) time.Duration {
	return max(min(d.AsDuration(), forever), -forever)
}

func durationOr(d *durationpb.Duration, unset time.Duration) time.Duration {
	if d == nil {
		return unset
	}
	return durationOf(d)
}

// parseID reads a whole job or worker id.
func parseID(op, field, s string) (uuid.UUID, error) {
	id, err := uuid.Parse(s)
	if err != nil {
		return uuid.UUID{}, errs.Field(op, field, "ID_MALFORMED", "%q is not a UUID", s)
	}
	return id, nil
}

func specToProto(s *job.Spec) *droverv1.JobSpec {
	return &droverv1.JobSpec{
		WorkerId: s.Worker, Path: s.Path, Command: s.Command, Args: s.Args, Env: s.Env, Labels: s.Labels,
		Timeout: duration(s.Timeout), IdleTimeout: duration(s.IdleTimeout), QueueTimeout: duration(s.QueueTimeout),
		Grace: durationpb.New(s.Grace), Linger: durationpb.New(s.Linger), DetachChildren: s.DetachChildren,
		Limits: limitsToProto(s.Limits), Stdin: s.Stdin, Workdir: s.Workdir, User: s.User, Name: s.Name,
		Priority: s.Priority, Retry: retryToProto(&s.Retry), OutputPolicy: droverv1.OutputPolicy(s.OutputPolicy) + 1,
		OutputLimit: s.OutputLimit, Secrets: s.Secrets, Upload: s.Upload, UploadSha256: s.UploadSHA256,
		OnPartition: partitionToProto(s.OnPartition),
	}
}

// publicSpec is the spec as it is shown: without stdin and upload, and with the
// names but not the values of secrets.
func publicSpec(s *job.Spec) *droverv1.JobSpec {
	p := specToProto(s)
	p.Stdin, p.Upload = nil, nil
	p.Secrets = nil
	if len(s.Secrets) > 0 {
		p.Secrets = make(map[string][]byte, len(s.Secrets))
		for name := range maps.Keys(s.Secrets) {
			p.Secrets[name] = nil
		}
	}
	return p
}

// specFromProto reads a spec. What it cannot read whole it refuses: a job must not
// run without something that was asked for.
func specFromProto(p *droverv1.JobSpec) (job.Spec, error) {
	if err := knowsAll(p, p.GetLimits()); err != nil {
		return job.Spec{}, err
	}
	s := job.Spec{
		Worker: p.GetWorkerId(), Path: p.GetPath(), Command: p.GetCommand(), Args: p.GetArgs(), Env: p.GetEnv(),
		Labels: p.GetLabels(), Timeout: durationOf(p.GetTimeout()), IdleTimeout: durationOf(p.GetIdleTimeout()),
		QueueTimeout: durationOf(p.GetQueueTimeout()), Grace: durationOr(p.GetGrace(), job.DefaultGrace),
		Linger: durationOr(p.GetLinger(), job.DefaultLinger), DetachChildren: p.GetDetachChildren(),
		Limits: limitsFromProto(p.GetLimits()), Stdin: p.GetStdin(), Workdir: p.GetWorkdir(), User: p.GetUser(),
		Name: p.GetName(), Priority: p.GetPriority(), Retry: retryFromProto(p.GetRetry()),
		OutputLimit: p.GetOutputLimit(), Secrets: p.GetSecrets(), Upload: p.GetUpload(), UploadSHA256: p.GetUploadSha256(),
	}
	policy, err := policyFromProto(p.GetOutputPolicy())
	if err != nil {
		return job.Spec{}, err
	}
	s.OutputPolicy = policy
	s.OnPartition, err = partitionFromProto(p.GetOnPartition())
	return s, err
}

// specFromRequest reads the flat request of clients.
func specFromRequest(r *droverv1.StartJobRequest) (job.Spec, error) {
	if n := proto.Size(r); n > maxRequest {
		return job.Spec{}, errs.Field("read request", "request", "TOO_LONG", "it has %d bytes, at most %d", n, maxRequest)
	}
	if err := knowsAll(r, r.GetRetry()); err != nil {
		return job.Spec{}, err
	}
	return specFromProto(&droverv1.JobSpec{
		WorkerId: r.GetWorkerId(), Path: r.GetPath(), Command: r.GetCommand(), Args: r.GetArgs(), Env: r.GetEnv(),
		Labels: r.GetLabels(), Timeout: r.GetTimeout(), IdleTimeout: r.GetIdleTimeout(), QueueTimeout: r.GetQueueTimeout(),
		Grace: r.GetGrace(), Linger: r.GetLinger(), DetachChildren: r.GetDetachChildren(), Limits: r.GetLimits(),
		Stdin: r.GetStdin(), Workdir: r.GetWorkdir(), User: r.GetUser(), Name: r.GetName(), Priority: r.GetPriority(),
		Retry: r.GetRetry(), OutputPolicy: r.GetOutputPolicy(), OutputLimit: r.GetOutputLimit(), Secrets: r.GetSecrets(),
		Upload:      r.GetUpload(),
		OnPartition: r.GetOnPartition(),
	})
}

// knowsAll refuses messages with a field that this version has no name for: whoever
// set it is newer, and means something by it.
func knowsAll(messages ...proto.Message) error {
	for _, m := range messages {
		r := m.ProtoReflect()
		if number, _, n := protowire.ConsumeTag(r.GetUnknown()); n > 0 {
			return errs.Field("read request", fmt.Sprintf("field %d of %s", number, r.Descriptor().Name()), "FIELD_UNKNOWN", "is not known here")
		}
	}
	return nil
}

// stateFromProto reads a state to select by.
func stateFromProto(p droverv1.JobState) (job.State, error) {
	if s := job.State(p); s.Known() && s != job.None {
		return s, nil
	}
	return job.None, errs.Field("read request", "states", "STATE_UNKNOWN", "%d is not a state of jobs", p)
}

// checkStream refuses a stream that there is not; both would be more than was
// asked for.
func checkStream(s droverv1.Stream) error {
	if _, ok := droverv1.Stream_name[int32(s)]; !ok {
		return errs.Field("read output", "stream", "STREAM_UNKNOWN", "%d is neither stdout nor stderr", s)
	}
	return nil
}

func policyFromProto(p droverv1.OutputPolicy) (job.OutputPolicy, error) {
	switch p {
	case droverv1.OutputPolicy_OUTPUT_POLICY_UNSPECIFIED, droverv1.OutputPolicy_OUTPUT_POLICY_RING:
		return job.Ring, nil
	case droverv1.OutputPolicy_OUTPUT_POLICY_FAIL:
		return job.Fail, nil
	case droverv1.OutputPolicy_OUTPUT_POLICY_KEEP:
		return job.Keep, nil
	default:
		return 0, errs.Field("read request", "output_policy", "OUTPUT_POLICY_UNKNOWN", "%d is none of ring, fail, keep", p)
	}
}

// partitionToProto leaves the default out of the wire.
func partitionToProto(p job.OnPartition) droverv1.OnPartition {
	if p == job.KeepRunning {
		return droverv1.OnPartition_ON_PARTITION_UNSPECIFIED
	}
	return droverv1.OnPartition(p) + 1
}

func partitionFromProto(p droverv1.OnPartition) (job.OnPartition, error) {
	switch p {
	case droverv1.OnPartition_ON_PARTITION_UNSPECIFIED, droverv1.OnPartition_ON_PARTITION_KEEP:
		return job.KeepRunning, nil
	case droverv1.OnPartition_ON_PARTITION_STOP:
		return job.StopItself, nil
	default:
		return 0, errs.Field("read request", "on_partition", "ON_PARTITION_UNKNOWN", "%d is neither keep nor stop", p)
	}
}

func limitsToProto(l job.Limits) *droverv1.Limits {
	if l == (job.Limits{}) {
		return nil
	}
	return &droverv1.Limits{CpuMillis: l.CPUMillis, MemoryBytes: l.Memory, Pids: l.Pids}
}

func limitsFromProto(p *droverv1.Limits) job.Limits {
	return job.Limits{CPUMillis: p.GetCpuMillis(), Memory: p.GetMemoryBytes(), Pids: p.GetPids()}
}

func retryToProto(r *job.Retry) *droverv1.RetryPolicy {
	if r.Max == 0 {
		return nil
	}
	return &droverv1.RetryPolicy{
		MaxRetries: r.Max, OnLost: r.OnLost, OnFailure: r.OnFailure,
		ExitCodes: r.ExitCodes, Backoff: durationpb.New(r.Backoff),
	}
}

func retryFromProto(p *droverv1.RetryPolicy) job.Retry {
	if p == nil {
		return job.Retry{}
	}
	return job.Retry{
		Max: p.GetMaxRetries(), OnLost: p.GetOnLost(), OnFailure: p.GetOnFailure(),
		ExitCodes: p.GetExitCodes(), Backoff: durationOr(p.GetBackoff(), job.DefaultBackoff),
	}
}

func fenceToProto(f job.Fence) *droverv1.Fence {
	return &droverv1.Fence{Term: f.Term, Counter: f.Counter}
}

func fenceFromProto(p *droverv1.Fence) job.Fence {
	return job.Fence{Term: p.GetTerm(), Counter: p.GetCounter()}
}

func streamToProto(s job.Stream) *droverv1.StreamInfo {
	return &droverv1.StreamInfo{Size: s.Size, Sha256: s.SHA256}
}

func streamFromProto(p *droverv1.StreamInfo) job.Stream {
	return job.Stream{Size: p.GetSize(), SHA256: p.GetSha256()}
}

func proofToProto(p *job.StopProof) *droverv1.StopProof {
	if p == nil {
		return nil
	}
	return &droverv1.StopProof{Method: p.Method, Termed: p.Termed, Killed: p.Killed, Took: durationpb.New(p.Took)}
}

func proofFromProto(p *droverv1.StopProof) *job.StopProof {
	if p == nil {
		return nil
	}
	return &job.StopProof{Method: p.GetMethod(), Termed: p.GetTermed(), Killed: p.GetKilled(), Took: durationOf(p.GetTook())}
}

// wholeToProto returns a job as its own readers see it. One that does not fit into a
// message, of before requests were bounded, is summed up.
func wholeToProto(j *job.Job) *droverv1.Job {
	p := jobToProto(j)
	if p.Attempts = attemptsToProto(j); proto.Size(p) <= frameBytes {
		return p
	}
	return summaryToProto(j)
}

// summaryToProto returns a job as lists and watches carry it.
func summaryToProto(j *job.Job) *droverv1.Job {
	short := j.Summary()
	return jobToProto(&short)
}

// jobToProto is a job as it is shown to clients.
func jobToProto(j *job.Job) *droverv1.Job {
	r := &j.Result
	p := &droverv1.Job{
		JobId: j.ID.String(), Name: j.Spec.Name, State: droverv1.JobState(j.State), Reason: j.Reason, Message: j.Message,
		Attempt: j.Attempt, WorkerName: j.WorkerName, Command: j.Spec.Command, Path: j.Spec.Path, Args: j.Spec.Args,
		ScriptSha256: r.ScriptSHA256, Runner: r.Runner, RunnerVersion: r.RunnerVersion, ExitCode: r.ExitCode,
		Signal: r.Signal, Evidence: droverv1.Evidence(r.Evidence), SubmitTime: timestamp(j.Submit),
		StartTime: timestamp(r.Start), EndTime: timestamp(r.End), Stdout: streamToProto(r.Stdout),
		Stderr: streamToProto(r.Stderr), Reachable: j.UnreachableSince.IsZero(),
		UnreachableSince: timestamp(j.UnreachableSince), Labels: j.Spec.Labels, RequestedBy: j.RequestedBy,
		StopProof: proofToProto(r.StopProof), Spec: publicSpec(&j.Spec), Pid: int64(r.PID),
		Truncated: j.Truncated, StdinBytes: uint64(j.StdinBytes),
	}
	if j.Worker != uuid.Nil {
		p.WorkerId = j.Worker.String()
	}
	return p
}

// attemptsToProto lists every attempt of a job.
func attemptsToProto(j *job.Job) []*droverv1.JobAttempt {
	var out []*droverv1.JobAttempt
	for _, a := range j.Attempts() {
		out = append(out, &droverv1.JobAttempt{
			Attempt: a.Number, WorkerId: a.Worker.String(), WorkerName: a.WorkerName, State: droverv1.JobState(a.State), Reason: a.Reason,
			ExitCode: a.ExitCode, Signal: a.Signal, Evidence: droverv1.Evidence(a.Evidence), StartTime: timestamp(a.Start),
			EndTime: timestamp(a.End), Stdout: streamToProto(a.Stdout), Stderr: streamToProto(a.Stderr),
		})
	}
	return out
}

func reportToProto(r *job.Report) *droverv1.AttemptReport {
	return &droverv1.AttemptReport{
		JobId: r.Job.String(), Attempt: r.Attempt, Sequence: r.Sequence, State: droverv1.JobState(r.State),
		Reason: r.Reason, Message: r.Message, Pid: int64(r.PID), ExitCode: r.ExitCode, Signal: r.Signal,
		Evidence: droverv1.Evidence(r.Evidence), StartTime: timestamp(r.Start), EndTime: timestamp(r.End),
		Stdout: streamToProto(r.Stdout), Stderr: streamToProto(r.Stderr), ScriptSha256: r.ScriptSHA256,
		Runner: r.Runner, RunnerVersion: r.RunnerVersion, StopProof: proofToProto(r.StopProof),
	}
}

func reportFromProto(p *droverv1.AttemptReport) (job.Report, error) {
	id, err := parseID("read report", "job_id", p.GetJobId())
	if err != nil {
		return job.Report{}, err
	}
	return job.Report{
		Key: job.Key{Job: id, Attempt: p.GetAttempt()}, Sequence: p.GetSequence(), State: job.State(p.GetState()),
		Reason: p.GetReason(), Message: p.GetMessage(), PID: int(p.GetPid()), ExitCode: p.ExitCode, Signal: p.GetSignal(),
		Evidence: job.Evidence(p.GetEvidence()), Start: timeOf(p.GetStartTime()), End: timeOf(p.GetEndTime()),
		Stdout: streamFromProto(p.GetStdout()), Stderr: streamFromProto(p.GetStderr()), ScriptSHA256: p.GetScriptSha256(),
		Runner: p.GetRunner(), RunnerVersion: p.GetRunnerVersion(), StopProof: proofFromProto(p.GetStopProof()),
	}, nil
}

func startToProto(o *job.StartOrder) *droverv1.StartAttempt {
	return &droverv1.StartAttempt{
		JobId: o.Job.String(), Attempt: o.Attempt, Fence: fenceToProto(o.Fence), Spec: specToProto(&o.Spec), BootId: o.BootID,
		Lapses: o.Lapses,
	}
}

func startFromProto(p *droverv1.StartAttempt) (job.StartOrder, error) {
	key, err := keyFromProto(p.GetJobId(), p.GetAttempt())
	if err != nil {
		return job.StartOrder{}, err
	}
	o := job.StartOrder{Key: key, Fence: fenceFromProto(p.GetFence()), BootID: p.GetBootId(), Lapses: p.GetLapses()}
	o.Spec, err = specFromProto(p.GetSpec())
	if field := (*errs.Error)(nil); errors.As(err, &field) {
		o.Refusal = errs.E("start attempt", errs.Precondition, job.ReasonOldWorker,
			fmt.Errorf("%s %w: the scheduler is newer than this worker", field.Field, field.Err))
	}
	return o, nil
}

func stopToProto(o *job.StopOrder) *droverv1.StopAttempt {
	p := &droverv1.StopAttempt{JobId: o.Job.String(), Attempt: o.Attempt, Fence: fenceToProto(o.Fence), Reason: o.Reason}
	if o.Grace != nil {
		p.Grace = durationpb.New(*o.Grace)
	}
	return p
}

func stopFromProto(p *droverv1.StopAttempt) (job.StopOrder, error) {
	key, err := keyFromProto(p.GetJobId(), p.GetAttempt())
	if err != nil {
		return job.StopOrder{}, err
	}
	return job.StopOrder{
		Key: key, Fence: fenceFromProto(p.GetFence()), Grace: optionalDuration(p.GetGrace()), Reason: p.GetReason(),
	}, nil
}

func optionalDuration(d *durationpb.Duration) *time.Duration {
	if d == nil {
		return nil
	}
	v := durationOf(d)
	return &v
}

func keyFromProto(id string, attempt uint32) (job.Key, error) {
	parsed, err := parseID("read attempt", "job_id", id)
	if err != nil {
		return job.Key{}, err
	}
	return job.Key{Job: parsed, Attempt: attempt}, nil
}
