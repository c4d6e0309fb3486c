package worker

import (
	"context"
	"maps"
	"math/rand/v2"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/plugins/failpoint"
)

// Waits of the membership loop.
const (
	firstRetry       = 200 * time.Millisecond
	longestRetry     = 4 * time.Second // P15: back within 5 s after a scheduler's restart
	defaultHeartbeat = 5 * time.Second
)

// Registration introduces a worker to a scheduler.
type Registration struct {
	WorkerID   job.WorkerID // zero the first time
	Address    string
	Labels     map[string]string
	Slots      int
	BootID     string
	Version    string
	Runners    []job.RunnerInfo
	Commands   []string // that the policy allows without a runner
	Uploads    bool     // the policy allows scripts that are sent with a request
	InstanceID string
	Lapses     uint64 // how often the lease has run out
}

// Registered is a scheduler's answer.
type Registered struct {
	WorkerID  job.WorkerID
	Term      uint64
	Lease     time.Duration
	Heartbeat time.Duration // how often to renew it
}

// Beat is one heartbeat.
type Beat struct {
	WorkerID   job.WorkerID
	Running    int
	Conditions []job.Condition
	Draining   bool
	Lapses     uint64
}

// Renewal is the answer to a heartbeat.
type Renewal struct {
	Term      uint64
	Lease     time.Duration
	Heartbeat time.Duration // how often to renew it from now on; 0: as before
}

// Scheduler is what a worker asks of its scheduler (core/rpc). Heartbeat answers
// with an error of kind NotFound when the worker has to register again.
type Scheduler interface {
	Register(context.Context, Registration) (Registered, error)
	Heartbeat(context.Context, Beat) (Renewal, error)
	Deregister(context.Context, job.WorkerID) error
}

// membership keeps the worker registered until the context ends or it leaves.
func (w *Worker) membership(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w.tasks.Go(func() {
		select {
		case <-w.leaving:
			cancel()
		case <-ctx.Done():
		}
	})
	for ctx.Err() == nil {
		every, ok := w.register(ctx)
		if !ok {
			return
		}
		w.renew(ctx, every)
	}
}

// register tries until it is registered. One line is logged per change of the
// error, not per try.
func (w *Worker) register(ctx context.Context) (time.Duration, bool) {
	said, rhythm := "", NewRhythm(longestRetry)
	for {
		id, _ := w.identity.get()
		asked, lapses := w.cfg.Now().Boot, w.lapsed()
		got, err := w.cfg.Scheduler.Register(ctx, Registration{
			WorkerID: id, Address: w.cfg.Address, Labels: maps.Clone(w.cfg.Labels), Slots: w.machine.slots,
			BootID: w.cfg.BootID, Version: w.cfg.Version, Runners: job.BoundRunners(w.cfg.Runners.Runners()),
			Commands: w.cfg.Policy.Commands, Uploads: w.cfg.Policy.Uploads, InstanceID: w.instance, Lapses: lapses,
		})
		if err == nil {
			failpoint.At(failpoint.WorkerRegistered)
			err = w.identity.set(got.WorkerID)
		}
		switch {
		case err == nil:
			w.inbox.put(Renewed{Asked: asked, Lease: got.Lease, Term: got.Term, Lapses: lapses})
			w.log.Info("registered", "worker_id", got.WorkerID, "term", got.Term, "lease", got.Lease)
			if got.Heartbeat <= 0 {
				got.Heartbeat = defaultHeartbeat
			}
			return got.Heartbeat, true
		case err.Error() != said && ctx.Err() == nil:
			said = err.Error()
			w.log.Warn("not registered", "error", err)
		}
		if !w.pause(ctx, rhythm.Next(0, err)) {
			return 0, false
		}
	}
}

// renew sends heartbeats, as often as the scheduler says, until it does not know
// the worker any more.
func (w *Worker) renew(ctx context.Context, every time.Duration) {
	said, rhythm := "", NewRhythm(every)
	for next := rhythm.Next(0, nil); w.pauseOrBeat(ctx, next); {
		got, err := w.heartbeat(ctx)
		next = rhythm.Next(got.Heartbeat, err)
		switch {
		case err == nil && said != "":
			said = ""
			w.log.Info("heartbeats arrive again")
		case err == nil, ctx.Err() != nil:
		case errs.KindOf(err) == errs.NotFound:
			w.log.Info("the scheduler does not know this worker; registering again")
			return
		case err.Error() != said:
			said = err.Error()
			w.log.Warn("heartbeat not delivered", "error", err)
		}
	}
}

// Rhythm is how long a worker waits from one call of its scheduler to the next. After
// one that failed it tries again soon, and goes on to: the scheduler may be back, or
// another have taken over (P15). It is one goroutine's own.
type Rhythm struct {
	every, again time.Duration
}

// NewRhythm takes how often there is a call, which is also the longest wait after one
// that failed, where that is less than four seconds.
func NewRhythm(every time.Duration) Rhythm { return Rhythm{every: every, again: firstRetry} }

// Next tells how long to wait after a call that ended with err. told is how often the
// scheduler wants them from now on; 0: as before.
func (r *Rhythm) Next(told time.Duration, err error) time.Duration {
	if told > 0 {
		r.every = told
	}
	if err == nil {
		r.again = firstRetry
		return jitter(r.every)
	}
	wait := min(r.again, r.every)
	r.again = min(2*r.again, longestRetry)
	return jitter(wait)
}

func (w *Worker) heartbeat(ctx context.Context) (Renewal, error) {
	id, _ := w.identity.get()
	c := w.Counts()
	asked, lapses := w.cfg.Now().Boot, w.lapsed()
	got, err := w.cfg.Scheduler.Heartbeat(ctx, Beat{
		WorkerID: id, Running: c.Running, Conditions: w.Conditions(),
		// P9: a host with unkillable processes gets nothing new.
		Draining: c.Draining || c.Unkillable > 0, Lapses: lapses,
	})
	if err == nil {
		w.inbox.put(Renewed{Asked: asked, Lease: got.Lease, Term: got.Term, Lapses: lapses})
	}
	return got, err
}

// jitter spreads d by a tenth, so that workers do not call all at once.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + rand.N(d/5+1)
}

func (w *Worker) pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (w *Worker) pauseOrBeat(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-w.beat:
		return true
	case <-ctx.Done():
		return false
	}
}
