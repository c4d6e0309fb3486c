package worker

import (
	"context"
	"fmt"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/journal"
	"github.com/droverhq/drover/plugins/failpoint"
)

// Waits of the loop when the journal refuses a batch.
const (
	journalPause   = 50 * time.Millisecond
	journalLongest = 2 * time.Second
)

// resume takes over the attempts of earlier lives (P7).
func (w *Worker) resume(ctx context.Context) error {
	effects := w.machine.Restore(w.cfg.Now(), w.cfg.State)
	all := Reopen(w.cfg.State, w.cfg.BootID, attemptID)
	keep := make(map[string]bool, len(all))
	for _, r := range all {
		keep[attemptID(r.Key)] = r.Intent.Folder
	}
	if err := w.hands.preparer.folders.sweep(keep); err != nil {
		w.log.Warn("old attempt folders not removed", "error", err)
	}
	alive := w.hands.hold(all, w.cfg.BootID)
	w.cfg.Scripts.Retain(nil) // what is needed has its pins again
	if !w.carryOut(ctx, effects) {
		return errs.E("take over attempts", errs.Canceled, "", ctx.Err())
	}
	w.dropStrayOutput()
	failpoint.At(failpoint.WorkerRestored)
	if len(alive) > 0 {
		w.log.Info("attempts are taken over", "attempts", len(alive))
	}
	if err := w.cfg.Runners.Resume(ctx, alive); err != nil {
		return errs.E("take over attempts", errs.Unavailable, job.ReasonRunnerFailed, fmt.Errorf("resume plugins: %w", err))
	}
	first := w.cfg.State.Epoch == 0 && len(all) == 0
	w.cfg.State = nil
	w.prune(ctx, first)
	return nil
}

// prune removes the groups that earlier lives left. One with processes in it
// belongs to no attempt that is known: it is told, and left alone. But in the first life
// of a data folder they are of attempts whose folder was lost. Nobody can adopt them, and
// the scheduler is about to be told that they do not run (P4, P5): they are ended.
func (w *Worker) prune(ctx context.Context, first bool) {
	alive, err := w.cfg.Groups.Prune()
	if err == nil && first && len(alive) > 0 {
		w.log.Warn("data folder is new, but attempts of this worker still run; ending them", "cgroups", alive)
		if err = w.cfg.Groups.End(ctx, alive); err == nil {
			alive, err = w.cfg.Groups.Prune()
		}
	}
	if err != nil {
		w.log.Warn("old cgroups not removed", "error", err)
	}
	for _, dir := range alive {
		w.log.Warn("old cgroup still has processes", "cgroup", dir)
	}
}

// dropStrayOutput removes output of attempts that the journal does not know:
// their lanes were taken, and the worker died before the intent.
func (w *Worker) dropStrayOutput() {
	known := w.board.keys()
	for _, key := range w.cfg.Output.Keys() {
		if known[key] {
			continue
		}
		if err := w.cfg.Output.Remove(key); err != nil {
			w.log.Warn("stray output not removed", "job", key.Job, "attempt", key.Attempt, "error", err)
		}
	}
}

// loop takes all waiting events, steps them, appends one batch to the journal,
// and carries out what was decided.
func (w *Worker) loop(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var spare []Event
	var effects []Effect
	for {
		select {
		case <-w.inbox.wake:
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		evs := w.inbox.take(spare)
		now := w.cfg.Now()
		effects = effects[:0]
		for _, ev := range evs {
			effects = append(effects, w.machine.Step(now, ev)...)
		}
		effects = append(effects, w.machine.Step(now, Tick{})...)
		spare = evs
		if !w.carryOut(ctx, effects) {
			return
		}
		clear(effects)
		w.arm(timer)
		w.gather(ctx, len(evs))
	}
}

// gather waits a moment for more events while many attempts come and go: one round
// then serves many. Alone, an event is served at once.
func (w *Worker) gather(ctx context.Context, last int) {
	sleep(ctx, gate(w.machine.Counts().Live, last))
}

// arm sets the timer for the machine's next deadline.
func (w *Worker) arm(timer *time.Timer) {
	timer.Stop()
	if at, ok := w.machine.Next(); ok {
		timer.Reset(max(0, at-w.cfg.Now().Boot))
	}
}

// carryOut writes the records and then does the rest; false when the worker
// ends before the records are written.
func (w *Worker) carryOut(ctx context.Context, effects []Effect) bool {
	var records []journal.Record
	for _, e := range effects {
		if r, ok := e.(Record); ok {
			records = append(records, r.Record)
		}
	}
	if !w.commit(ctx, records) {
		return false
	}
	// Before the answers: who has one finds counts at least as new.
	w.note()
	var orders []Prepare
	var acks []string
	for _, e := range effects {
		switch e := e.(type) {
		case Prepare:
			orders = append(orders, e)
		case AckExit:
			acks = append(acks, attemptID(e.Key))
		default:
			w.perform(ctx, e)
		}
	}
	w.hands.prepare(ctx, orders)
	if len(acks) > 0 {
		w.cfg.Runners.Ack(acks...)
	}
	if len(records) > 0 {
		failpoint.At(failpoint.WorkerActAfter)
	}
	return true
}

// commit appends a batch, for as long as it takes: nothing is answered, started
// or signalled before it is on disk (P2, P9).
func (w *Worker) commit(ctx context.Context, records []journal.Record) bool {
	if len(records) == 0 {
		return true
	}
	failing := false
	if failpoint.Enabled {
		about(records)
	}
	for pause := journalPause; ; pause = min(2*pause, journalLongest) {
		err := w.cfg.Journal.Append(records...)
		if err == nil {
			break
		}
		if !failing {
			failing = true
			w.log.Error("journal refuses records; nothing is started or answered", "error", err)
			w.setCondition(&job.Condition{Type: journal.ReasonWrite, Message: err.Error(), Since: w.cfg.Now().Wall})
		}
		again := time.NewTimer(pause)
		select {
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return false
		}
	}
	if failpoint.Enabled {
		noted(records)
	}
	if failing {
		w.log.Info("journal takes records again")
		w.setCondition(nil)
	}
	return true
}

func (w *Worker) setCondition(c *job.Condition) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.condition = c
}

// perform carries out one effect.
func (w *Worker) perform(ctx context.Context, e Effect) {
	switch e := e.(type) {
	case Record:
	case Publish:
		w.board.publish(e)
		w.settled(e)
	case Announce:
		w.board.announce(e.Report)
	case Unpublish:
		w.board.unpublish(e.Key)
	case Confirm:
		w.board.confirm(e.Keys)
	case Reply:
		w.tickets.answer(e.Ticket, answer{e.Report, e.Err})
	default:
		w.act(ctx, e)
	}
}

// settled tells the output of an ended attempt who knows of the end.
func (w *Worker) settled(e Publish) {
	switch r := e.Report; r.State {
	case job.Succeeded, job.Stopped:
		w.cfg.Output.Settled(r.Key, e.Acked, false)
	case job.Failed, job.Lost, job.Rejected:
		w.cfg.Output.Settled(r.Key, e.Acked, true)
	}
}

// act carries out the effects that touch processes and files.
func (w *Worker) act(ctx context.Context, e Effect) {
	switch e := e.(type) {
	case StartProcess:
		w.hands.startProcess(ctx, e)
	case Relaunch:
		w.hands.relaunch(ctx, e)
	case Underway:
		w.hands.underway(e)
	case Settle:
		w.hands.settle(ctx, e)
	case StopGroup:
		w.hands.stopGroup(ctx, e)
	case Finish:
		w.hands.finish(ctx, e)
	case Watch:
		w.hands.watch(ctx, e)
	case ProbeIdle:
		w.hands.probeIdle(e)
	case Cleanup:
		w.hands.cleanup(ctx, e)
	case Discard:
		w.hands.output.Discard(e.Key)
	case RemoveOutput:
		w.hands.removeOutput(e)
	}
}

// note keeps the machine's counts for callers.
func (w *Worker) note() {
	c := w.machine.Counts()
	w.mu.Lock()
	was, lapses := w.counts, w.lapses
	w.counts, w.lapses = c, w.machine.Lapses()
	lapses = w.lapses - lapses
	switch {
	case c.Unkillable == 0:
		w.unkill = time.Time{}
	case w.unkill.IsZero():
		w.unkill = w.cfg.Now().Wall
	}
	w.mu.Unlock()
	if (c.Unkillable == 0) != (was.Unkillable == 0) || c.Draining != was.Draining || lapses > 0 {
		w.beatNow()
	}
}

// beatNow asks for a heartbeat out of turn.
func (w *Worker) beatNow() {
	select {
	case w.beat <- struct{}{}:
	default:
	}
}
