package render

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/droverhq/drover/cmd/drover/internal/term"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// Job is a job as JSON shows it. The names are stable: scripts read them.
type Job struct {
	JobID            string            `json:"job_id"`
	Name             string            `json:"name"`
	State            string            `json:"state"`
	Reason           string            `json:"reason"`
	Message          string            `json:"message"`
	Attempt          uint32            `json:"attempt"`
	WorkerID         string            `json:"worker_id"`
	WorkerName       string            `json:"worker_name"`
	Command          string            `json:"command"`
	Path             string            `json:"path"`
	Args             []string          `json:"args"`
	ScriptSHA256     string            `json:"script_sha256"`
	Runner           string            `json:"runner"`
	RunnerVersion    string            `json:"runner_version"`
	ExitCode         *int32            `json:"exit_code"` // null: not observed (P6)
	Signal           string            `json:"signal"`
	Evidence         string            `json:"evidence"`
	SubmitTime       *time.Time        `json:"submit_time"`
	StartTime        *time.Time        `json:"start_time"`
	EndTime          *time.Time        `json:"end_time"`
	Stdout           Stream            `json:"stdout"`
	Stderr           Stream            `json:"stderr"`
	Reachable        bool              `json:"reachable"`
	UnreachableSince *time.Time        `json:"unreachable_since"`
	Labels           map[string]string `json:"labels"`
	RequestedBy      string            `json:"requested_by"`
	PID              int64             `json:"pid"`
	StopProof        *StopProof        `json:"stop_proof"`
	Spec             *Spec             `json:"spec,omitempty"`
	Truncated        bool              `json:"truncated,omitempty"` // "drover status JOB" has all
	Attempts         []Attempt         `json:"attempts,omitempty"`  // of "drover status JOB"
}

// Attempt is one attempt of a job as JSON shows it.
type Attempt struct {
	Attempt    uint32     `json:"attempt"`
	WorkerID   string     `json:"worker_id"`
	WorkerName string     `json:"worker_name"`
	State      string     `json:"state"`
	Reason     string     `json:"reason"`
	ExitCode   *int32     `json:"exit_code"` // null: not observed (P6)
	Signal     string     `json:"signal"`
	Evidence   string     `json:"evidence"`
	StartTime  *time.Time `json:"start_time"`
	EndTime    *time.Time `json:"end_time"`
	Stdout     Stream     `json:"stdout"`
	Stderr     Stream     `json:"stderr"`
}

// Stream is one output stream as JSON shows it.
type Stream struct {
	Size   uint64 `json:"size"`
	SHA256 string `json:"sha256"`
}

// StopProof is what a stop took as JSON shows it.
type StopProof struct {
	Method string  `json:"method"`
	Termed uint32  `json:"termed"`
	Killed uint32  `json:"killed"`
	Took   float64 `json:"took"` // seconds
}

// Spec is the rest of what was asked as JSON shows it; durations in seconds.
type Spec struct {
	WorkerID       string            `json:"worker_id,omitempty"`
	Env            map[string]string `json:"env,omitempty"`
	Timeout        float64           `json:"timeout,omitempty"`
	IdleTimeout    float64           `json:"idle_timeout,omitempty"`
	QueueTimeout   float64           `json:"queue_timeout,omitempty"`
	Grace          *float64          `json:"grace,omitempty"`
	Linger         *float64          `json:"linger,omitempty"`
	DetachChildren bool              `json:"detach_children,omitempty"`
	Limits         *Limits           `json:"limits,omitempty"`
	Workdir        string            `json:"workdir,omitempty"`
	User           string            `json:"user,omitempty"`
	Priority       int32             `json:"priority,omitempty"`
	Retry          *Retry            `json:"retry,omitempty"`
	OutputPolicy   string            `json:"output_policy,omitempty"`
	OutputLimit    uint64            `json:"output_limit,omitempty"`
	OnPartition    string            `json:"on_partition,omitempty"`
	Secrets        []string          `json:"secrets,omitempty"` // names
}

// Limits bounds an attempt, as JSON shows it.
type Limits struct {
	CPUMillis   uint32 `json:"cpu_millis,omitempty"`
	MemoryBytes uint64 `json:"memory_bytes,omitempty"`
	Pids        uint32 `json:"pids,omitempty"`
}

// Retry is a retry policy as JSON shows it.
type Retry struct {
	MaxRetries uint32  `json:"max_retries"`
	OnLost     bool    `json:"on_lost"`
	OnFailure  bool    `json:"on_failure"`
	ExitCodes  []int32 `json:"exit_codes,omitempty"`
	Backoff    float64 `json:"backoff,omitempty"`
}

// NewJob makes the view of a job.
func NewJob(j *droverv1.Job) Job {
	v := Job{
		JobID: j.GetJobId(), Name: j.GetName(), State: JobState(j.GetState()), Reason: j.GetReason(), Message: j.GetMessage(),
		Attempt: j.GetAttempt(), WorkerID: j.GetWorkerId(), WorkerName: j.GetWorkerName(), Command: j.GetCommand(),
		Path: j.GetPath(), Args: j.GetArgs(), ScriptSHA256: j.GetScriptSha256(), Runner: j.GetRunner(),
		RunnerVersion: j.GetRunnerVersion(), ExitCode: j.ExitCode, Signal: j.GetSignal(),
		SubmitTime: timeOf(j.GetSubmitTime()), StartTime: timeOf(j.GetStartTime()), EndTime: timeOf(j.GetEndTime()),
		Stdout: newStream(j.GetStdout()), Stderr: newStream(j.GetStderr()), Reachable: j.GetReachable(),
		UnreachableSince: timeOf(j.GetUnreachableSince()), Labels: j.GetLabels(), RequestedBy: j.GetRequestedBy(),
		PID: j.GetPid(), Spec: newSpec(j.GetSpec()), Truncated: j.GetTruncated(),
	}
	v.Evidence = evidence(j.GetEvidence())
	for _, a := range j.GetAttempts() {
		v.Attempts = append(v.Attempts, Attempt{
			Attempt: a.GetAttempt(), WorkerID: a.GetWorkerId(), WorkerName: a.GetWorkerName(), State: JobState(a.GetState()),
			Reason: a.GetReason(), ExitCode: a.ExitCode, Signal: a.GetSignal(), Evidence: evidence(a.GetEvidence()),
			StartTime: timeOf(a.GetStartTime()), EndTime: timeOf(a.GetEndTime()),
			Stdout: newStream(a.GetStdout()), Stderr: newStream(a.GetStderr()),
		})
	}
	if p := j.GetStopProof(); p != nil {
		v.StopProof = &StopProof{p.GetMethod(), p.GetTermed(), p.GetKilled(), seconds(p.GetTook())}
	}
	if v.Args == nil {
		v.Args = []string{}
	}
	if v.Labels == nil {
		v.Labels = map[string]string{}
	}
	return v
}

func evidence(e droverv1.Evidence) string {
	if e == droverv1.Evidence_EVIDENCE_UNSPECIFIED {
		return ""
	}
	return strings.TrimPrefix(e.String(), "EVIDENCE_")
}

// Jobs makes the views of several jobs.
func Jobs(js []*droverv1.Job) []Job {
	out := make([]Job, len(js))
	for i, j := range js {
		out[i] = NewJob(j)
	}
	return out
}

// JobState is a state as it is printed: RUNNING.
func JobState(s droverv1.JobState) string { return strings.TrimPrefix(s.String(), "JOB_STATE_") }

func newStream(s *droverv1.StreamInfo) Stream { return Stream{s.GetSize(), s.GetSha256()} }

func newSpec(s *droverv1.JobSpec) *Spec {
	if s == nil {
		return nil
	}
	v := &Spec{
		WorkerID: s.GetWorkerId(), Env: s.GetEnv(), Timeout: seconds(s.GetTimeout()), IdleTimeout: seconds(s.GetIdleTimeout()),
		QueueTimeout: seconds(s.GetQueueTimeout()), Grace: optional(s.GetGrace()), Linger: optional(s.GetLinger()),
		DetachChildren: s.GetDetachChildren(), Workdir: s.GetWorkdir(), User: s.GetUser(), Priority: s.GetPriority(),
		OutputLimit: s.GetOutputLimit(), Secrets: slices.Sorted(maps.Keys(s.GetSecrets())),
	}
	if l := s.GetLimits(); l != nil {
		v.Limits = &Limits{l.GetCpuMillis(), l.GetMemoryBytes(), l.GetPids()}
	}
	if r := s.GetRetry(); r != nil {
		v.Retry = &Retry{r.GetMaxRetries(), r.GetOnLost(), r.GetOnFailure(), r.GetExitCodes(), seconds(r.GetBackoff())}
	}
	if p := s.GetOnPartition(); p != droverv1.OnPartition_ON_PARTITION_UNSPECIFIED {
		v.OnPartition = strings.ToLower(strings.TrimPrefix(p.String(), "ON_PARTITION_"))
	}
	if p := s.GetOutputPolicy(); p != droverv1.OutputPolicy_OUTPUT_POLICY_UNSPECIFIED {
		v.OutputPolicy = strings.ToLower(strings.TrimPrefix(p.String(), "OUTPUT_POLICY_"))
	}
	return v
}

func seconds(d *durationpb.Duration) float64 { return d.AsDuration().Seconds() }

func optional(d *durationpb.Duration) *float64 {
	if d == nil {
		return nil
	}
	s := seconds(d)
	return &s
}

func timeOf(t *timestamppb.Timestamp) *time.Time {
	if t == nil {
		return nil
	}
	v := t.AsTime()
	return &v
}

// ShortID is what tables show of an id: its last 8 hex digits. The first ones
// of a UUIDv7 are the time and alike for all jobs of a minute.
func ShortID(id string) string {
	if len(id) > 8 {
		return id[len(id)-8:]
	}
	return id
}

// Shown is the state as people see it: a live job whose worker cannot be
// reached is UNREACHABLE.
func (j Job) Shown() string {
	if !j.Reachable && !j.Terminal() && j.WorkerID != "" {
		return "UNREACHABLE"
	}
	return j.State
}

// Terminal tells whether the job has ended.
func (j Job) Terminal() bool {
	switch j.State {
	case "SUCCEEDED", "FAILED", "STOPPED", "REJECTED", "LOST":
		return true
	default:
		return false
	}
}

// What is the command line of the job in one line.
func (j Job) What() string {
	words := slices.Clone(j.Args)
	if j.Path != "" {
		words = append([]string{j.Path}, words...)
	}
	if j.Command != "" {
		words = append([]string{j.Command}, words...)
	}
	for i, w := range words {
		words[i] = quoted(w)
	}
	if j.Truncated {
		words = append(words, "...")
	}
	return strings.Join(words, " ")
}

// quoted shows a word so that its ends can be seen.
func quoted(w string) string {
	plain := func(r rune) bool {
		return r > 0x7f || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-/=:,+@%", r)
	}
	if w != "" && strings.TrimFunc(w, plain) == "" {
		return term.Line(w)
	}
	return "'" + strings.ReplaceAll(term.Line(w), "'", `'\''`) + "'"
}

// Result is the exit code or signal, "" while there is none.
func (j Job) Result() string { return result(j.Signal, j.ExitCode) }

// Result is how the attempt ended, in the same words.
func (a Attempt) Result() string { return result(a.Signal, a.ExitCode) }

func result(signal string, code *int32) string {
	switch {
	case signal != "":
		return signal
	case code != nil:
		return strconv.Itoa(int(*code))
	default:
		return ""
	}
}

// Took is how long the job ran, up to now while it runs.
func (j Job) Took(now time.Time) string {
	switch {
	case j.StartTime == nil:
		return ""
	case j.EndTime != nil:
		return Duration(j.EndTime.Sub(*j.StartTime))
	case j.Terminal():
		return ""
	default:
		return Duration(now.Sub(*j.StartTime).Truncate(time.Second))
	}
}

// Key implements Row.
func (j Job) Key() string { return j.JobID }

// Label implements Row.
func (j Job) Label() string { return j.JobID }

// JobHeader is the header of a table of jobs.
func JobHeader(f Format) []string {
	if f == Wide {
		return []string{"JOB", "NAME", "STATE", "REASON", "ATTEMPT", "WORKER", "EXIT", "SUBMITTED", "TOOK", "STDOUT", "STDERR", "BY", "LABELS", "WHAT"}
	}
	return []string{"JOB", "STATE", "WORKER", "EXIT", "AGE", "TOOK", "WHAT"}
}

// Cells implements Row.
func (j Job) Cells(p *Printer) []string {
	state := p.Palette.Paint(colour(j.Shown()), j.Shown())
	submitted := time.Time{}
	if j.SubmitTime != nil {
		submitted = *j.SubmitTime
	}
	if p.Format == Wide {
		return []string{
			j.JobID, orDash(term.Line(j.Name)), state, orDash(j.Reason), strconv.Itoa(int(j.Attempt)), orDash(term.Line(j.WorkerName)),
			orDash(j.Result()), stamp(j.SubmitTime), orDash(j.Took(p.Now)), strconv.FormatUint(j.Stdout.Size, 10),
			strconv.FormatUint(j.Stderr.Size, 10), orDash(term.Line(j.RequestedBy)), orDash(Labels(j.Labels)), j.What(),
		}
	}
	what := j.What()
	if j.Name != "" {
		what = term.Line(j.Name) + ": " + what
	}
	return []string{
		ShortID(j.JobID), state, orDash(term.Line(j.WorkerName)), orDash(j.Result()), Age(p.Now, submitted), orDash(j.Took(p.Now)), Cut(what, 60),
	}
}

// colour says at a glance how a job does.
func colour(state string) term.Colour {
	switch state {
	case "SUCCEEDED", "ONLINE", "ready":
		return term.Green
	case "FAILED", "LOST", "REJECTED", "OFFLINE", "unhealthy", "refused":
		return term.Red
	case "QUEUED", "STOPPING", "UNREACHABLE", "DRAINING", "draining", "starting":
		return term.Yellow
	case "RUNNING", "DISPATCHED":
		return term.Blue
	default:
		return term.Grey
	}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func stamp(t *time.Time) string {
	if t == nil {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// Labels is a set of labels in one line.
func Labels(labels map[string]string) string {
	pairs := make([]string, 0, len(labels))
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		pairs = append(pairs, term.Line(k+"="+labels[k]))
	}
	return strings.Join(pairs, ",")
}
