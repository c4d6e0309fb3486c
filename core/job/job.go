// Package job holds the words of drover as plain values: spec, job, attempt,
// fence, evidence, and the state machine that binds them. It is pure: no clock,
// no I/O, no concurrency; values are copied or owned by one goroutine.
package job

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
)

// ID names a job: a UUIDv7, so ids sort by submit time.
type ID = uuid.UUID

// FewestDigits is how many of an id a short reference has at the least.
const FewestDigits = 4

// Abbreviates tells whether a reference in lower case is the beginning or the end of an
// id, as lists show it.
func Abbreviates(ref string, id uuid.UUID) bool {
	whole := id.String()
	return len(ref) >= FewestDigits && (strings.HasPrefix(whole, ref) || strings.HasSuffix(whole, ref))
}

// WorkerID names a worker.
type WorkerID = uuid.UUID

// Key names one attempt of one job.
type Key struct {
	Job     ID
	Attempt uint32 // from 1
}

// Fence orders commands of schedulers (P3).
type Fence struct {
	Term    uint64 // raised at each scheduler start or takeover
	Counter uint64 // position within the term
}

// Less tells whether f was given before g.
func (f Fence) Less(g Fence) bool {
	return f.Term < g.Term || f.Term == g.Term && f.Counter < g.Counter
}

// Evidence says how a result is known (P6).
type Evidence int32

// The kinds of evidence; zero means that no exit was observed.
const (
	NoEvidence Evidence = iota
	Wait
	AdoptedWait
	PidFD
	ExitJournal
)

// OutputPolicy says what happens to output that outgrows its limit (P8).
type OutputPolicy int32

// The policies; zero is Ring.
const (
	Ring OutputPolicy = iota
	Fail
	Keep
)

// OnPartition says what becomes of an attempt whose worker is out of contact with
// its scheduler (P4 c).
type OnPartition int32

// What may become of it; zero is KeepRunning.
const (
	KeepRunning OnPartition = iota
	StopItself
)

// Limits bounds one attempt; zero is no limit.
type Limits struct {
	CPUMillis uint32
	Memory    uint64 // bytes
	Pids      uint32
}

// Retry is a retry policy (P5); the zero value is never.
type Retry struct {
	Max       uint32
	OnLost    bool // after LOST or REJECTED
	OnFailure bool
	ExitCodes []int32       // with OnFailure; empty is all but 0
	Backoff   time.Duration // before the first retry, doubled each time
}

// Spec is what was asked. It never changes after acceptance; slices and maps
// are never written after that.
type Spec struct {
	Worker         string // id or name; "" lets the scheduler choose
	Path           string
	Command        string
	Args           []string
	Env            map[string]string
	Labels         map[string]string
	Timeout        time.Duration // 0: none
	IdleTimeout    time.Duration // 0: none
	QueueTimeout   time.Duration // 0: none
	Grace          time.Duration // DefaultGrace unless asked otherwise; 0 kills at once
	Linger         time.Duration // DefaultLinger unless asked otherwise
	DetachChildren bool
	Limits         Limits
	Stdin          []byte
	Workdir        string
	User           string
	Name           string
	Priority       int32
	Retry          Retry
	OutputPolicy   OutputPolicy
	OutputLimit    uint64            // bytes per stream; 0 is DefaultOutputLimit
	Secrets        map[string][]byte // never logged
	Upload         []byte            // the script itself, Path being its name; gone once the job has ended
	UploadSHA256   string            // lower-case hex, of Upload; "" when the script is one of the worker's
	// OnPartition is left out of records when it is not set: equal requests of
	// before it existed keep their hash (P1).
	OnPartition OnPartition `json:",omitempty"`
}

// SHA256 is the checksum of a script as records hold it, in lower-case hex.
func SHA256(script []byte) string {
	sum := sha256.Sum256(script)
	return hex.EncodeToString(sum[:])
}

// Uploaded tells whether the script came with the request.
func (s *Spec) Uploaded() bool { return s.UploadSHA256 != "" || len(s.Upload) > 0 }

// EnvArrayIndex is the one variable with drover's prefix that a request may
// set: which job of an array it is. It says nothing that a worker relies on.
const EnvArrayIndex = "DROVER_ARRAY_INDEX"

// Defaults of a spec.
const (
	DefaultGrace       = 10 * time.Second
	DefaultLinger      = 2 * time.Second
	DefaultOutputLimit = 64 << 20
	DefaultBackoff     = time.Second
)

// Stream sums up one output stream.
type Stream struct {
	Size   uint64
	SHA256 string // lower-case hex; "" while open
}

// StopProof says what ending an attempt took (P9).
type StopProof struct {
	Method string // cgroup-kill, cgroup-freeze or process-walk
	Termed uint32
	Killed uint32
	Took   time.Duration
}

// Report is the whole state of one attempt as its worker knows it. Reports
// are states, not deltas: an older Sequence changes nothing.
type Report struct {
	Key
	Sequence      uint64
	State         State
	Reason        string
	Message       string
	PID           int
	ExitCode      *int32
	Signal        string // such as SIGKILL
	Evidence      Evidence
	Start, End    time.Time // wall clock, for people only (P14)
	Stdout        Stream
	Stderr        Stream
	ScriptSHA256  string
	Runner        string
	RunnerVersion string
	StopProof     *StopProof
}

// Job is one accepted request and what became of it.
type Job struct {
	ID          ID
	Spec        Spec
	State       State
	Reason      string
	Message     string
	Attempt     uint32 // 0 before the first dispatch
	Worker      WorkerID
	WorkerName  string
	BootID      string // of the worker's host when the attempt was placed
	Fence       Fence  // of the present attempt
	Submit      time.Time
	RequestedBy string // name in the certificate of who asked
	// Owner is the whole identity of who asked, as the scheduler compares it; "" in
	// records of earlier versions.
	Owner     string
	RequestID string
	Result    Report // the latest report of the present attempt
	// Past are the attempts that a retry came after, oldest first: each keeps its worker,
	// its output and its end for as long as the job has a record.
	Past             []Attempt
	UnreachableSince time.Time
	// StopGrace is what the stop that was asked for gives; nil: what the job asks for.
	StopGrace *time.Duration
	// Ended is when the scheduler settled the job; zero in records of earlier versions.
	Ended time.Time
	// Input is how many bytes of input are kept apart from the job; 0: there is none, or
	// it is not needed any more.
	Input int64
	// StdinBytes is how much standard input was given; it is not kept after the end.
	StdinBytes int64 `json:",omitempty"`
	Truncated  bool  // this is a summary, and something was cut
}

// Attempt is one attempt of a job: where it was made, and what became of it.
type Attempt struct {
	Number     uint32
	Worker     WorkerID
	WorkerName string
	State      State
	Reason     string
	ExitCode   *int32
	Signal     string
	Evidence   Evidence
	Start, End time.Time // wall clock, for people only (P14)
	Stdout     Stream
	Stderr     Stream
}

// AttemptOf returns an attempt by its number; 0 is the newest. ok is false when it was
// never made.
func (j *Job) AttemptOf(number uint32) (a Attempt, ok bool) {
	if number == 0 {
		number = j.Attempt
	}
	for i := range j.Past {
		if j.Past[i].Number == number {
			return j.Past[i], true
		}
	}
	r := &j.Result
	return Attempt{
		Number: j.Attempt, Worker: j.Worker, WorkerName: j.WorkerName, State: j.State, Reason: j.Reason,
		ExitCode: r.ExitCode, Signal: r.Signal, Evidence: r.Evidence, Start: r.Start, End: r.End, Stdout: r.Stdout, Stderr: r.Stderr,
	}, number == j.Attempt
}

// Attempts lists all that were made, oldest first.
func (j *Job) Attempts() []Attempt {
	all := slices.Clone(j.Past)
	if n := len(all); j.Attempt > 0 && (n == 0 || all[n-1].Number != j.Attempt) {
		now, _ := j.AttemptOf(j.Attempt)
		all = append(all, now)
	}
	return all
}

// Reasons of states, stable codes that appear in Job.Reason.
const (
	ReasonExitCode      = "EXIT_CODE"
	ReasonSignal        = "SIGNAL"
	ReasonTimeout       = "TIMEOUT"
	ReasonIdleTimeout   = "IDLE_TIMEOUT"
	ReasonOOM           = "OOM"
	ReasonSpawn         = "SPAWN"
	ReasonOutputLimit   = "OUTPUT_LIMIT"
	ReasonUser          = "USER"
	ReasonDrain         = "DRAIN"
	ReasonNoWorker      = "NO_WORKER"
	ReasonNoRunner      = "NO_RUNNER"
	ReasonNoScript      = "NO_SCRIPT"
	ReasonNoLabels      = "NO_LABELS"
	ReasonConnecting    = "CONNECTING" // a worker has not told yet what it offers
	ReasonNoUploads     = "NO_UPLOADS"
	ReasonNoSlot        = "NO_SLOT"
	ReasonDiskFull      = "DISK_FULL" // of the worker; also the type of its condition
	ReasonQuota         = "QUOTA"     // of the worker's output; also the type of its condition
	ReasonWorkerOffline = "WORKER_OFFLINE"
	ReasonWorkerDrained = "WORKER_DRAINED"
	ReasonWorkerGone    = "WORKER_GONE"
	ReasonQueueTimeout  = "QUEUE_TIMEOUT"
	ReasonScriptGone    = "SCRIPT_NOT_FOUND"
	ReasonPath          = "PATH_REFUSED"
	ReasonPolicy        = "POLICY"
	ReasonLimit         = "LIMIT_UNSUPPORTED"
	ReasonRunnerFailed  = "RUNNER_UNAVAILABLE"
	ReasonReboot        = "REBOOT"
	ReasonNoProcess     = "NO_PROCESS"
	ReasonFenced        = "FENCED"
	ReasonOldRecords    = "OLD_RECORDS" // the scheduler's records do not know what a worker was told
	ReasonTombstone     = "STOPPED_BEFORE_START"
	ReasonGivenUp       = "GIVEN_UP"          // the scheduler had settled the attempt before it ended
	ReasonPartition     = "PARTITION"         // the worker had no contact with its scheduler for a lease
	ReasonTooLarge      = "TOO_LARGE"         // no message has room for the order
	ReasonInputGone     = "INPUT_GONE"        // its stdin, secrets or upload were not kept, as in a restored backup
	ReasonOldWorker     = "WORKER_TOO_OLD"    // it does not know what the job asks for
	ReasonOldScheduler  = "SCHEDULER_TOO_OLD" // it does not know what the worker says of the job
)
