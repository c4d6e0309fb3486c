// Package failpoint names the places at which tests kill a daemon or a plugin:
// one before and one after each step that makes something durable or hands it
// on. In ordinary builds At is empty and inlined, so that no call of it and no
// point is in the binaries; with the build tag failpoint it kills its own process where a test has
// asked for that.
package failpoint

// Variable names the folder in which a test says where to die. Only builds with
// the tag look at it.
const Variable = "DROVER_FAILPOINTS"

// Files of that folder.
const (
	ArmedFile = "armed" // the points to die at, one a line, in this order
	HitPrefix = "hit."  // of a file per point that was reached, named for it
)

// Point is one place in the code.
type Point string

// The points of the scheduler, and of one that stands by.
const (
	SchedulerTermRaised   Point = "scheduler.term.raised"   // its term is durable, nothing is loaded yet
	SchedulerLoaded       Point = "scheduler.loaded"        // the records are in memory
	SchedulerCommitBefore Point = "scheduler.commit.before" // a round is decided, nothing of it is durable
	SchedulerCommitAfter  Point = "scheduler.commit.after"  // it is durable, nobody was told
	SchedulerActAfter     Point = "scheduler.act.after"     // orders and answers are on their way
	StandbyLeaseTaken     Point = "standby.lease.taken"     // the lease and its term are durable, nothing was done
	StandbyLeaseRenewed   Point = "standby.lease.renewed"   // it lasts its whole time again
)

// The points of certificates, in whichever daemon stores one.
const (
	CertsFileBefore Point = "certs.file.before" // a file is written and synced, not in its place
	CertsFileAfter  Point = "certs.file.after"  // it is in its place
	CertsLinkBefore Point = "certs.link.before" // a pair is durable, not in use
	CertsLinkAfter  Point = "certs.link.after"  // it is in use
)

// The points of the worker: what it does, and what its journal takes.
const (
	WorkerRegistered     Point = "worker.registered"      // the scheduler knows the worker, its disk does not
	WorkerIdentityBefore Point = "worker.identity.before" // its id is in a file that is not in its place
	WorkerIdentityAfter  Point = "worker.identity.after"  // it is in its place
	WorkerRestored       Point = "worker.restored"        // attempts are taken up, the plugins were not asked
	WorkerPrepared       Point = "worker.prepared"        // pipes, group and script are taken, the intent is not written
	WorkerStartHanded    Point = "worker.start.handed"    // the start is with the plugin host
	WorkerStopBefore     Point = "worker.stop.before"     // a stop is in the journal, no signal was sent
	WorkerStopAfter      Point = "worker.stop.after"      // no process is left, nobody knows yet
	WorkerActAfter       Point = "worker.act.after"       // all of a round was done or begun

	WorkerFenceBefore    Point = "worker.fence.before"    // a newer scheduler is here, the journal has its fence not yet
	WorkerFenceAfter     Point = "worker.fence.after"     // it has
	WorkerIntentBefore   Point = "worker.intent.before"   // an attempt is about to be started
	WorkerIntentAfter    Point = "worker.intent.after"    // the intent is in the journal, nothing was started
	WorkerStartedBefore  Point = "worker.started.before"  // a process exists
	WorkerStartedAfter   Point = "worker.started.after"   // it is in the journal, the scheduler does not know
	WorkerAskedBefore    Point = "worker.asked.before"    // a stop was asked for
	WorkerAskedAfter     Point = "worker.asked.after"     // it is in the journal, nobody was told
	WorkerExitedBefore   Point = "worker.exited.before"   // a process is gone
	WorkerExitedAfter    Point = "worker.exited.after"    // its exit is in the journal
	WorkerDoneBefore     Point = "worker.done.before"     // a final report is made
	WorkerDoneAfter      Point = "worker.done.after"      // it is in the journal, the scheduler does not know
	WorkerAckedBefore    Point = "worker.acked.before"    // the scheduler has it on disk
	WorkerAckedAfter     Point = "worker.acked.after"     // that is in the journal
	WorkerCompactBefore  Point = "worker.compact.before"  // a new journal is written, the old one in use
	WorkerCompactAfter   Point = "worker.compact.after"   // the new one is in its place
	WorkerRecordBefore   Point = "worker.record.before"   // a plugin process lives, and nobody has it in writing
	WorkerRecordAfter    Point = "worker.record.after"    // its record is in its place
	WorkerWithdrawBefore Point = "worker.withdraw.before" // a fork is proved never to have happened
	WorkerWithdrawAfter  Point = "worker.withdraw.after"  // that is in the dead plugin's journal
	WorkerSegmentBefore  Point = "worker.segment.before"  // a new segment is needed
	WorkerSegmentAfter   Point = "worker.segment.after"   // its files are there
	WorkerMoveBefore     Point = "worker.move.before"     // a move of output is announced in the index
	WorkerMoveAfter      Point = "worker.move.after"      // the bytes are in the segment
	WorkerEndBefore      Point = "worker.end.before"      // nobody writes any more, the sums are made
	WorkerEndAfter       Point = "worker.end.after"       // the ends of the streams are in the index
)

// The points of a runner plugin.
const (
	PluginStartBefore   Point = "plugin.start.before"   // the start has come, the exit journal knows nothing
	PluginForkBefore    Point = "plugin.fork.before"    // the exit journal says that a fork comes
	PluginForkAfter     Point = "plugin.fork.after"     // the process exists, the exit journal has no pid
	PluginStartAfter    Point = "plugin.start.after"    // it has
	PluginExitBefore    Point = "plugin.exit.before"    // the exit was seen, the exit journal does not have it
	PluginExitAfter     Point = "plugin.exit.after"     // it has, the worker does not know
	PluginReapBefore    Point = "plugin.reap.before"    // the process is a zombie whose exit is in the journal
	PluginReapAfter     Point = "plugin.reap.after"     // it is gone
	PluginSendBefore    Point = "plugin.send.before"    // a frame of news is made
	PluginSendAfter     Point = "plugin.send.after"     // it is on its way
	PluginAckBefore     Point = "plugin.ack.before"     // the worker has an exit on disk, the plugin still holds it
	PluginAckAfter      Point = "plugin.ack.after"      // it is forgotten
	PluginCompactBefore Point = "plugin.compact.before" // a new exit journal is written, the old one in use
	PluginCompactAfter  Point = "plugin.compact.after"  // the new one is in its place
)

// Sooner is a size from which something is done: n, but soon where points are
// compiled in, so that a test gets there.
func Sooner[T int64 | uint64](n, soon T) T {
	if Enabled {
		return soon
	}
	return n
}
