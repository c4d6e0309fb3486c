package worker

import (
	"time"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/journal"
)

// Instant is the time as the machine sees it. Decisions use Boot only, which no
// clock change moves (P14); Wall is for people.
type Instant struct {
	Boot time.Duration // since the boot of the host
	Wall time.Time
}

// Ticket names a caller who waits for a Reply; 0 is nobody.
type Ticket uint64

// Event is something that happened. The machine knows no other input.
type Event interface{ event() }

// StartAsked is an order to start. Orders of a session are fenced by the term
// that the session was opened with: they may be a resend, after a lost frame or
// a restart of the scheduler, and need not come in the order of their counters.
// Orders from elsewhere must have a fence above all before.
type StartAsked struct {
	Order   job.StartOrder
	Session uint64 // term of the session; 0: not of a session
	Ticket  Ticket
}

// StopAsked is an order to stop. With Wait the ticket is answered at the end.
type StopAsked struct {
	Order   job.StopOrder
	Session uint64 // term of the session; 0: not of a session
	Wait    bool
	Ticket  Ticket
}

// Acked says that final reports are durable at the scheduler.
type Acked struct{ Keys []job.Key }

// Forgotten says that records and output may go.
type Forgotten struct{ Keys []job.Key }

// TermSeen says that a scheduler of this term opened a session.
type TermSeen struct {
	Term    uint64
	History job.History // of its records
	Ticket  Ticket
}

// Renewed says that a scheduler has renewed the lease.
type Renewed struct {
	Asked  time.Duration // since boot: when it was asked to
	Lease  time.Duration
	Term   uint64 // of the scheduler
	Lapses uint64 // as it was told
}

// Prepared ends a Prepare: either Intent is filled, or Refusal says why not.
type Prepared struct {
	Key     job.Key
	Intent  journal.Intent
	Refusal error
}

// LaunchRefused says that no plugin took the start: nothing was started. Another
// version of the plugin may take it when Again is set.
type LaunchRefused struct {
	Key   job.Key
	Err   error
	Again bool
}

// ProcessStarted says that the process exists.
type ProcessStarted struct {
	Key     job.Key
	Started journal.Started
}

// ProcessExited says how the main process ended, or that there was none. Started
// is set when the news of its start came at the same time.
type ProcessExited struct {
	Key     job.Key
	PID     int
	Started *journal.Started
	Exit    journal.Exit
}

// ProcessGone says that the process is gone and nobody saw how.
type ProcessGone struct{ Key job.Key }

// ProcessUnknown says that the plugin of an earlier life does not know of the
// start: nothing was started, though the start may still be on its way.
type ProcessUnknown struct{ Key job.Key }

// Settled ends a Settle: the main process is gone, and this is what is left.
type Settled struct {
	Key      job.Key
	Left     bool // processes or writers are left after the linger
	Finished *Finished
}

// Finished ends a Finish: both streams are sealed, or why not.
type Finished struct {
	Key            job.Key
	Stdout, Stderr job.Stream
	OOM            bool // the kernel killed for want of memory
	Open           bool // somebody still writes; no sha256 yet
	Err            error
}

// Blocked says that output of an attempt whose processes are gone waits for room.
type Blocked struct {
	Key job.Key
	Why string // job.ReasonQuota or job.ReasonDiskFull
}

// Emptied says that the last detached process of a finished attempt is gone.
type Emptied struct {
	Key            job.Key
	Stdout, Stderr job.Stream
}

// GroupStopped ends a StopGroup.
type GroupStopped struct {
	Key   job.Key
	Proof job.StopProof
	Err   error
}

// Quiet answers a ProbeIdle: how long both streams have been silent.
type Quiet struct {
	Key job.Key
	For time.Duration
}

// OutputExceeded says that a stream passed its limit under policy Fail.
type OutputExceeded struct{ Key job.Key }

// DrainAsked begins or ends draining; Close refuses every further start.
type DrainAsked struct {
	On, Close bool
	StopAll   bool // stop what still runs, for ReasonDrain
}

// Sync is answered once all events before it are on disk.
type Sync struct{ Ticket Ticket }

// Tick lets deadlines pass.
type Tick struct{}

func (StartAsked) event()     {}
func (StopAsked) event()      {}
func (Acked) event()          {}
func (Forgotten) event()      {}
func (TermSeen) event()       {}
func (Renewed) event()        {}
func (Prepared) event()       {}
func (LaunchRefused) event()  {}
func (ProcessStarted) event() {}
func (ProcessExited) event()  {}
func (ProcessGone) event()    {}
func (ProcessUnknown) event() {}
func (Settled) event()        {}
func (Finished) event()       {}
func (Blocked) event()        {}
func (Emptied) event()        {}
func (GroupStopped) event()   {}
func (Quiet) event()          {}
func (OutputExceeded) event() {}
func (DrainAsked) event()     {}
func (Sync) event()           {}
func (Tick) event()           {}
