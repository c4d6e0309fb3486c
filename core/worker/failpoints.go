package worker

import (
	"github.com/droverhq/drover/core/journal"
	"github.com/droverhq/drover/plugins/failpoint"
)

// about passes the points before the records of a batch are in the journal. It is
// called only where points are compiled in.
func about(records []journal.Record) {
	for i := range records {
		switch records[i].Kind {
		case journal.KindFence:
			failpoint.At(failpoint.WorkerFenceBefore)
		case journal.KindIntent:
			failpoint.At(failpoint.WorkerIntentBefore)
		case journal.KindStarted:
			failpoint.At(failpoint.WorkerStartedBefore)
		case journal.KindStop:
			failpoint.At(failpoint.WorkerAskedBefore)
		case journal.KindExited:
			failpoint.At(failpoint.WorkerExitedBefore)
		case journal.KindDone:
			failpoint.At(failpoint.WorkerDoneBefore)
		case journal.KindAcked:
			failpoint.At(failpoint.WorkerAckedBefore)
		}
	}
}

// noted passes those after it.
func noted(records []journal.Record) {
	for i := range records {
		switch records[i].Kind {
		case journal.KindFence:
			failpoint.At(failpoint.WorkerFenceAfter)
		case journal.KindIntent:
			failpoint.At(failpoint.WorkerIntentAfter)
		case journal.KindStarted:
			failpoint.At(failpoint.WorkerStartedAfter)
		case journal.KindStop:
			failpoint.At(failpoint.WorkerAskedAfter)
		case journal.KindExited:
			failpoint.At(failpoint.WorkerExitedAfter)
		case journal.KindDone:
			failpoint.At(failpoint.WorkerDoneAfter)
		case journal.KindAcked:
			failpoint.At(failpoint.WorkerAckedAfter)
		}
	}
}
