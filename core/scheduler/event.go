package scheduler

import (
	"cmp"
	"time"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
)

// Event is one thing that happened. Exactly one field beside Reply, Bytes and done is set.
type Event struct {
	// Reply numbers the caller that waits for a Result; 0 is nobody.
	Reply uint64

	Submit     *Submit
	Submits    []Submit // many, answered together
	Stop       *Stop
	Register   *Register
	Heartbeat  *Heartbeat
	Deregister *job.WorkerID
	Drain      *Drain
	Forget     []job.Job // terminal jobs to remove
	Adopt      *Adopt
	Remove     *job.WorkerID // worker to remove
	Up         *UpEvent
	Refused    *Refusal
	Unsent     *Unsent
	Old        *OldRecords
	Trouble    *Trouble
	Tick       bool

	// Unrecorded, with Forget, also removes unrecorded attempts of these jobs.
	Unrecorded bool

	// Bytes is how large a submit is: a round takes fewer of large ones.
	Bytes int64

	// done gives back what the event holds, once its round is over; nil: it holds
	// nothing. Whoever waits for the Result may have gone long before.
	done func()
}

// release gives back what the event holds.
func (e *Event) release() {
	if e.done != nil {
		e.done()
	}
}

// Submit asks for a job. ID and Submit time are made outside, so that a step
// is a function of its event.
type Submit struct {
	ID        job.ID
	Spec      job.Spec
	Caller    Caller
	RequestID string
	Time      time.Time
	Earlier   *Accepted // what the store knows of the request id
}

// Accepted is what is remembered of a request id (P1).
type Accepted struct {
	Job  job.ID
	Hash [32]byte
}

// Stop asks for the end of a job.
type Stop struct {
	ID     job.ID
	Grace  *time.Duration
	Reason string
	// Unrecorded also stops the unrecorded attempts of the job.
	Unrecorded bool
}

// Adopt asks for a record of a job of which there are unrecorded attempts only.
type Adopt struct {
	Job    job.ID
	Worker job.WorkerID // that has the attempt; zero: the only one
	Known  bool         // the store has a record of the job
}

// Register introduces a worker.
type Register struct {
	registry.Registration
	Fresh job.WorkerID
}

// Heartbeat renews a lease.
type Heartbeat struct {
	ID         job.WorkerID
	Leaving    bool
	Conditions []job.Condition
	Lapses     uint64 // how often its lease has run out, by its own count
}

// Drain changes whether a worker takes jobs.
type Drain struct {
	ID     job.WorkerID
	Drain  bool
	Reason string
	// After is when jobs that still run are stopped; 0 lets them finish.
	After time.Duration
}

// UpEvent is a frame of a worker, or the state of the link to it.
type UpEvent struct {
	Worker job.WorkerID
	Link   uint64 // number of the link; frames of an older one are dropped
	Opened bool
	Closed bool
	Up     Up
	// Records are what the store has of jobs in Up that are not live, or live in another
	// attempt.
	Records map[job.ID]*job.Job
	// Removed are the attempts in Up whose records were removed and that the worker is
	// still to forget.
	Removed map[job.Key]bool
	// Owed is a page of all that the worker is still to forget, when Owed asks for it.
	Owed []job.Key
}

// Refusal says that an order cannot be sent, ever: the attempt was not started, and
// is not going to be.
type Refusal struct {
	Worker  job.WorkerID
	Key     job.Key
	Reason  string
	Message string
}

// Unsent says that the first orders of some attempts were never given to a link.
type Unsent struct {
	Worker job.WorkerID
	Keys   []job.Key
}

// Trouble says that the link to a worker breaks again and again, or, with an empty
// message, does not any more.
type Trouble struct {
	Worker  job.WorkerID
	Message string
}

// Effect is one thing to do after the step, in order: records are committed
// first, as one batch for all steps of a round; then the rest happens.
type Effect struct {
	Put        *job.Job // write the job's record
	New        bool     // with Put: also its request id and indexes
	Hash       [32]byte // with New: of the request, to be kept with its id
	Drop       bool     // with Put: it is terminal and leaves memory
	Amend      bool     // with Put: it had ended before
	Delete     *job.Job // remove its record
	Owe        *Forget  // write down what a worker is to forget
	Forgot     *Forget  // remove that: the worker has
	Keep       *Kept    // write the record of an input
	Release    *job.ID  // remove the record of an input
	Worker     *registry.Worker
	Gone       *job.WorkerID // remove a worker's record
	Send       *Send
	Dial       *registry.Worker // keep a link to this worker
	Hang       *job.WorkerID    // end the link to this worker
	Result     *Result
	Refused    *Refusal // for the log: a job that ends because its order cannot be sent
	Old        string   // for the log: why nothing is started
	Newer      job.Life // with Old: of the newer records, to be recorded
	Unexpected string   // for the log: a report that the state machine refuses or does not know
}

// Forget names attempts of one worker whose output is to go.
type Forget struct {
	Worker job.WorkerID
	Keys   []job.Key
}

// Send is an order for a worker.
type Send struct {
	Worker job.WorkerID
	Down   Down
}

// Result answers the caller of an event.
type Result struct {
	To     uint64
	Err    error
	Job    job.Job
	Worker registry.Worker
	Jobs   []Answer // to Submits, in their order
}

// Answer is what became of one of several submits.
type Answer struct {
	ID  job.ID
	Err error
}

// Down is a frame for a worker.
type Down struct {
	Starts  []job.StartOrder
	Stops   []job.StopOrder
	Acks    []job.Key
	Forgets []job.Key
	// Revocations is the signed list of revoked certificates; nil: no news.
	Revocations []byte
}

// Empty tells whether there is nothing in the frame.
func (d *Down) Empty() bool {
	return len(d.Starts)+len(d.Stops)+len(d.Acks)+len(d.Forgets)+len(d.Revocations) == 0
}

// Up is a frame of a worker.
type Up struct {
	Hello   *Hello
	Reports []job.Report
	// Forgotten are attempts of Forgets of which the worker keeps nothing any more.
	Forgotten []job.Key
	Scripts   *job.ScriptIndex
	Runners   []job.RunnerInfo // nil: unchanged
	Bytes     int              // of the frame
}

// Hello is what a worker says first on a link.
type Hello struct {
	BootID     string
	InstanceID string
	Complete   bool // no older report is missing after this frame
	Lapses     uint64
}

// Caller is who asks, as the certificate says.
type Caller struct {
	Name string
	Role string
	// Lineage tells apart who had the name in turn; "" is the first of a cluster whose
	// certificates are older than lineages.
	Lineage string
}

// identity is all of it. No name has a slash.
func (c Caller) identity() string { return c.Role + "/" + c.Name + "/" + c.Lineage }

// owns tells whether the caller asked for a job. Records of earlier versions have the
// name alone: they belong to the first who had it.
func (c Caller) owns(j *job.Job) bool {
	if j.Owner == "" {
		return c.Lineage == "" && c.Name == j.RequestedBy
	}
	return c.identity() == j.Owner
}

// sees tells whether the caller may know of a job.
func (c Caller) sees(j *job.Job) bool { return c.Role != roleSubmitter || c.owns(j) }

// owner is who a job belongs to, in keys.
func owner(j *job.Job) string { return cmp.Or(j.Owner, j.RequestedBy) }
