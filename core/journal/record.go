package journal

import (
	"time"

	"github.com/droverhq/drover/core/job"
)

// Kind names what a record says.
type Kind uint8

// The kinds. Numbers are on disk and never reused.
const (
	KindFence     Kind = 1 // the highest fence seen, and the highest forgotten; the lease
	KindIntent    Kind = 2 // the attempt is about to be started
	KindStarted   Kind = 3 // its process exists
	KindStop      Kind = 4 // it is to end; without an intent: a tombstone (P2)
	KindExited    Kind = 5 // its main process is gone
	KindDone      Kind = 6 // its final report
	KindAcked     Kind = 7 // the final report is durable at the scheduler
	KindForgotten Kind = 8 // nothing of it is needed any more
)

// Record is one entry. Kind says which of the other fields count.
type Record struct {
	Kind    Kind
	Key     job.Key   // all but KindFence
	Fence   job.Fence // KindFence, KindIntent, KindStop
	Floor   job.Fence // KindFence, KindForgotten: highest fence of a forgotten attempt
	Epoch   uint64    // KindFence: how often the worker has begun
	Intent  *Intent   // KindIntent
	Started *Started  // KindStarted
	Stop    *Stop     // KindStop
	Exit    *Exit     // KindExited
	Done    *Done     // KindDone
	Lease   *Lease    // KindFence: nil is unchanged
	Life    job.Life  // KindFence: of the scheduler that commands; zero is unchanged
}

// Lease is what a worker remembers of its lease over a restart (P4 c).
type Lease struct {
	BootID string        // of the host; Until means nothing in another boot
	Until  time.Duration // since boot: when it ends, or ended
	Over   bool          // it has run out
	Lapses uint64        // how often a lease has run out
}

// Intent is everything that is needed to go on with an attempt after a restart.
// Standard input and secrets are not in it: they lie in files of the attempt's
// own folder, secrets never reach a journal.
type Intent struct {
	BootID string   // boot of the host the process would belong to
	Spec   job.Spec // without Stdin, Secrets and Upload
	Folder bool     // the attempt has a folder with stdin or secrets
	Mark   string   // value of DROVER_MARK in the job's environment
	Stdout string   // lane, named pipe
	Stderr string   // lane, named pipe
	Cgroup string   // name for reopening; "" is none
	Script Script
	Runner Runner
}

// Script names a pinned script.
type Script struct {
	Generation uint64 // 0: the script came with the order and lies in the attempt's folder
	Folder     string
	Name       string // "" is no script
	SHA256     string
}

// Runner names a plugin exactly.
type Runner struct {
	Name, Version, SHA256 string
}

// Started names a process for ever, together with the boot id of the intent.
type Started struct {
	PID        int
	StartTicks uint64
	Wall       time.Time     // for people
	Boot       time.Duration // since boot; timeouts go on from here after a restart (P14)
}

// Stop says that an attempt is to end.
type Stop struct {
	Reason string
	Grace  time.Duration
}

// Exit is how a main process ended.
type Exit struct {
	Code       int32
	Signal     string // "" when Code counts
	SpawnError string // non-empty: the process never came to be
	Evidence   job.Evidence
	Wall       time.Time
}

// Done is a final report. Open says that detached children still hold a stream, and
// Forget that nothing of it is needed any more once they do not.
type Done struct {
	Report job.Report
	Open   bool
	Forget bool
}
