package worker

import (
	"time"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/journal"
)

// Effect is something to be done. Records of a step are on disk before any
// other effect of the same step is carried out.
type Effect interface{ effect() }

// Record is one journal record.
type Record struct{ journal.Record }

// Publish makes a report the present one. A quiet one is not sent by itself:
// the scheduler knows it already, but a new session must hear of it. A volatile
// one is never sent: nothing of the attempt is on disk yet, so a scheduler that
// had heard of it would take a crash of the worker for the loss of the attempt,
// instead of sending the order again.
type Publish struct {
	Report   *job.Report // never changed afterwards
	Acked    bool
	Quiet    bool
	Volatile bool
}

// Announce sends a report once without keeping it: the answer to an order that
// was refused by its fence.
type Announce struct{ Report *job.Report }

// Unpublish forgets a report.
type Unpublish struct{ Key job.Key }

// Prepare checks an order and takes what it needs; answered by Prepared.
type Prepare struct {
	Key  job.Key
	Spec *job.Spec
}

// StartProcess hands the prepared attempt to its plugin (P2: after the intent).
// A void one has no lanes and cannot be carried out: it takes the id, so that an
// earlier start that is still on its way to the plugin starts nothing any more.
type StartProcess struct {
	Key  job.Key
	Void bool
}

// Underway lets go of what was needed to start: the process exists.
type Underway struct{ Key job.Key }

// Relaunch looks for a plugin anew, after one that was shutting down refused the
// start; answered by Prepared or LaunchRefused.
type Relaunch struct{ Key job.Key }

// Settle waits until no process is left and nobody writes, at the most Linger;
// answered by Settled.
type Settle struct {
	Key job.Key
	StopRequest
	Linger time.Duration
	Detach bool
	OOM    bool // look whether the kernel killed for want of memory
	Whole  bool // nothing was lost with the pipes, see LaneKeeper
}

// StopGroup ends every process; answered by GroupStopped. A further one
// overtakes the one before.
type StopGroup struct {
	Key job.Key
	StopRequest
}

// Finish seals the output once nobody writes; answered by Finished.
type Finish struct {
	Key      job.Key
	NoWriter bool // there is no process, and will be none
	Whole    bool // nothing was lost with the pipes, see LaneKeeper
	OOM      bool
	// GiveUp: it was stopped. What no room is found for is declared as missing, after
	// a while.
	GiveUp bool
}

// Watch waits for the end of detached processes; answered by Emptied.
type Watch struct {
	Key job.Key
	StopRequest
}

// ProbeIdle asks how long an attempt has been silent; answered by Quiet.
type ProbeIdle struct{ Key job.Key }

// AckExit lets the plugin forget an exit that is on disk.
type AckExit struct{ Key job.Key }

// Cleanup gives back what Prepare took.
type Cleanup struct{ Key job.Key }

// Confirm tells the scheduler that attempts are forgotten, as it ordered.
type Confirm struct{ Keys []job.Key }

// Discard gives back the output of an attempt that is to be forgotten, as far as the
// processes that still hold it allow.
type Discard struct{ Key job.Key }

// RemoveOutput deletes the output of a forgotten attempt.
type RemoveOutput struct{ Key job.Key }

// Reply answers a ticket.
type Reply struct {
	Ticket Ticket
	Report *job.Report
	Err    error
}

func (Record) effect()       {}
func (Publish) effect()      {}
func (Announce) effect()     {}
func (Unpublish) effect()    {}
func (Prepare) effect()      {}
func (StartProcess) effect() {}
func (Underway) effect()     {}
func (Relaunch) effect()     {}
func (Settle) effect()       {}
func (StopGroup) effect()    {}
func (Finish) effect()       {}
func (Watch) effect()        {}
func (ProbeIdle) effect()    {}
func (AckExit) effect()      {}
func (Cleanup) effect()      {}
func (Confirm) effect()      {}
func (Discard) effect()      {}
func (RemoveOutput) effect() {}
func (Reply) effect()        {}
