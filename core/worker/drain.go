package worker

import (
	"context"
	"time"

	"github.com/droverhq/drover/core/errs"
)

// Times of a drain.
const (
	drainLook    = 50 * time.Millisecond // between two looks whether all is done
	ackPatience  = 5 * time.Second       // for the scheduler to confirm the last reports
	leaveTimeout = 5 * time.Second       // for the goodbye
)

// Drain makes the worker leave for good: it tells the scheduler, takes nothing
// new, waits for what runs, stops the rest once the deadline has passed, and
// deregisters. A deadline of 0 stops at once, a negative one waits for ever.
// Run goes on until its context ends.
func (w *Worker) Drain(ctx context.Context, deadline time.Duration) error {
	const op = "drain worker"
	if err := w.setDrain(ctx, DrainAsked{On: true}); err != nil {
		return err
	}
	w.log.Info("draining", "live", w.Counts().Live, "deadline", deadline)
	if deadline != 0 {
		limit := ctx
		if deadline > 0 {
			var cancel context.CancelFunc
			limit, cancel = context.WithTimeout(ctx, deadline)
			defer cancel()
		}
		w.until(limit, func(c Counts) bool { return c.Live == 0 })
	}
	if err := ctx.Err(); err != nil { // before anything is stopped: jobs are left to the next life
		return errs.E(op, errs.Canceled, "", err)
	}
	if err := w.setDrain(ctx, DrainAsked{On: true, Close: true, StopAll: true}); err != nil {
		return err
	}
	if !w.until(ctx, func(c Counts) bool { return c.Live == 0 }) {
		return errs.E(op, errs.Canceled, "", ctx.Err())
	}
	if w.cfg.Scheduler == nil {
		return nil
	}
	// What the scheduler has not confirmed stays in the journal: a later life of
	// this worker reports it again.
	last, cancel := context.WithTimeout(ctx, ackPatience)
	defer cancel()
	w.until(last, func(c Counts) bool { return c.Unacked == 0 })
	return w.leave(ctx)
}

// leave ends the membership, then deregisters: a heartbeat that learns that the
// worker is not known any more would register it again.
func (w *Worker) leave(ctx context.Context) error {
	id, ok := w.identity.get()
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	w.leaveOnce.Do(func() { close(w.leaving) })
	select {
	case <-w.left:
	case <-w.ended:
	case <-ctx.Done():
		return errs.E("deregister worker", errs.Canceled, "", ctx.Err())
	}
	if err := w.cfg.Scheduler.Deregister(ctx, id); err != nil {
		return errs.E("deregister worker", errs.KindOf(err), errs.ReasonOf(err), err)
	}
	w.log.Info("deregistered", "worker_id", id)
	return nil
}

func (w *Worker) setDrain(ctx context.Context, e DrainAsked) error {
	w.inbox.put(e)
	_, err := w.ask(ctx, "drain worker", func(t Ticket) Event { return Sync{Ticket: t} })
	return err
}

// until waits for the counts to be as wanted; false when the context ends first.
func (w *Worker) until(ctx context.Context, done func(Counts) bool) bool {
	for {
		// The counts of the step that has taken all events up to now.
		_, err := w.ask(ctx, "drain worker", func(t Ticket) Event { return Sync{Ticket: t} })
		if err == nil && done(w.Counts()) {
			return true
		}
		if !w.pause(ctx, drainLook) {
			return false
		}
	}
}
