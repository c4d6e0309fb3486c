package scheduler

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"time"

	"github.com/google/uuid"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
	"github.com/droverhq/drover/core/store"
	"github.com/droverhq/drover/core/store/backup"
)

const (
	roleAdmin     = "admin"
	roleSubmitter = "submitter"
	roleWorker    = "worker"
)

// StartJob accepts a job durably (P1). The same requestID of the same caller
// with the same spec returns the same id.
func (s *Scheduler) StartJob(ctx context.Context, by Caller, spec job.Spec, requestID string) (job.ID, error) {
	if err := validate(&spec, requestID); err != nil {
		return job.ID{}, err
	}
	if err := s.room(); err != nil {
		return job.ID{}, err
	}
	id, err := uuid.NewV7()
	if err != nil {
		return job.ID{}, errs.E(opSubmit, errs.Internal, "ID", err)
	}
	bytes := spec.Bytes()
	done, err := s.submitting(bytes)
	if err != nil {
		return job.ID{}, err
	}
	r, err := s.ask(ctx, s.normal, Event{Bytes: bytes, done: done, Submit: &Submit{
		ID: id, Spec: spec, Caller: by, RequestID: requestID, Time: s.config.Now().Round(0).UTC(),
	}})
	return r.Job.ID, err
}

// room is an error when nothing new should be accepted.
func (s *Scheduler) room() error {
	if s.config.Room == nil {
		return nil
	}
	return s.config.Room()
}

// StopJob makes a stop durable and returns the job; with wait only when it is
// terminal. A terminal job is returned as it is.
func (s *Scheduler) StopJob(ctx context.Context, by Caller, ref string, grace *time.Duration, wait bool) (job.Job, error) {
	const op = "stop job"
	if grace != nil && *grace < 0 {
		return job.Job{}, errs.Field(op, "grace", "NEGATIVE", "%v is negative", *grace)
	}
	j, err := s.findOrAdopt(ctx, op, by, ref, true)
	if err != nil {
		return j, err
	}
	unrecorded := by.Role == roleAdmin && s.hasUnrecorded(j.ID)
	if j.State.Terminal() && !unrecorded {
		return j, nil
	}
	if _, err := s.ask(ctx, s.urgent, Event{Stop: &Stop{ID: j.ID, Grace: grace, Reason: job.ReasonUser, Unrecorded: unrecorded}}); err != nil {
		return job.Job{}, err
	}
	if wait {
		return s.await(ctx, op, j.ID)
	}
	return s.read(ctx, op, j.ID)
}

// Job returns one job; with wait only when it is terminal.
func (s *Scheduler) Job(ctx context.Context, by Caller, ref string, wait bool) (job.Job, error) {
	const op = "get job"
	j, err := s.find(ctx, op, by, ref)
	if err != nil || !wait || j.State.Terminal() {
		return j, err
	}
	return s.await(ctx, op, j.ID)
}

// Locate finds a job, one of its attempts (0: the newest) and the worker that has its
// output, which is zero when no worker was ever given the attempt.
func (s *Scheduler) Locate(ctx context.Context, by Caller, ref string, number uint32) (job.Job, job.Attempt, registry.Worker, error) {
	const op = "read output"
	none := func(err error) (job.Job, job.Attempt, registry.Worker, error) {
		return job.Job{}, job.Attempt{}, registry.Worker{}, err
	}
	j, err := s.find(ctx, op, by, ref)
	if err != nil {
		return none(err)
	}
	a, ok := j.AttemptOf(number)
	if !ok {
		e := errs.Field(op, "attempt", "ATTEMPT_UNKNOWN", "job %s has no attempt %d, only %d", j.ID, number, j.Attempt)
		e.Kind = errs.NotFound
		return none(e.WithHint("leave it out for the newest"))
	}
	if a.Worker == uuid.Nil {
		return j, a, registry.Worker{}, nil
	}
	w, ok := s.hub.worker(a.Worker)
	if !ok {
		return none(errs.E(op, errs.NotFound, "WORKER_GONE", fmt.Errorf("the worker %q that ran it was removed", a.WorkerName)))
	}
	return j, a, w, nil
}

// AwaitStart waits until a job has begun to run, or to stop, or is terminal.
func (s *Scheduler) AwaitStart(ctx context.Context, id job.ID) (job.Job, error) {
	var found job.Job
	stop := errors.New("found")
	err := s.watch(ctx, "read output", id, true, func() {}, func(c Change) error {
		if c.Job != nil && c.Job.State > job.Dispatched {
			found = *c.Job
			return stop
		}
		return nil
	})
	if errors.Is(err, stop) {
		return found, nil
	}
	return job.Job{}, err
}

// watch yields the changes of a job, or of all, until ctx ends; with a snapshot
// the present state comes first, also that of a terminal job.
func (s *Scheduler) watch(ctx context.Context, op string, id job.ID, snapshot bool, begun func(), yield func(Change) error) error {
	w, jobs, workers := s.hub.subscribe(id)
	if w == nil {
		return overloaded(op, "too many watch already")
	}
	defer s.hub.unsubscribe(w)
	begun()
	if !snapshot {
		return w.follow(ctx, yield)
	}
	if id != (job.ID{}) && len(jobs) == 0 {
		j, err := s.read(ctx, op, id)
		if err != nil {
			return err
		}
		jobs = append(jobs, j)
	}
	for i := range jobs {
		if err := yield(Change{Job: &jobs[i]}); err != nil {
			return err
		}
	}
	for i := range workers {
		if err := yield(Change{Worker: &workers[i]}); err != nil {
			return err
		}
	}
	return w.follow(ctx, yield)
}

func (s *Scheduler) await(ctx context.Context, op string, id job.ID) (job.Job, error) {
	done, live := s.hub.await(id)
	if !live {
		return s.read(ctx, op, id)
	}
	select {
	case j := <-done:
		return j, nil
	case <-ctx.Done():
		s.hub.forget(id, done)
		return job.Job{}, ctx.Err()
	}
}

// read returns the committed state of a job.
func (s *Scheduler) read(ctx context.Context, op string, id job.ID) (job.Job, error) {
	if j, live := s.hub.job(id); live {
		return j, nil
	}
	j, err := s.records.job(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return job.Job{}, jobUnknown(op, id.String())
	}
	if err != nil {
		return job.Job{}, storeError(op, err)
	}
	return *j, nil
}

const (
	codeJobUnknown = "JOB_UNKNOWN"
	hintJobs       = `"drover jobs" lists them`
)

func jobUnknown(op, ref string) error {
	return errs.E(op, errs.NotFound, codeJobUnknown, fmt.Errorf("there is no job %q", ref)).WithHint("%s", hintJobs)
}

// RemoveJobs forgets terminal jobs. Nothing is removed when one is not terminal.
func (s *Scheduler) RemoveJobs(ctx context.Context, by Caller, refs []string) error {
	const op = "remove jobs"
	if len(refs) > maxRemoved {
		return errs.Field(op, "job_ids", "TOO_MANY", "%d jobs, at most %d in one request", len(refs), maxRemoved)
	}
	var jobs []job.Job
	for _, ref := range refs {
		j, err := s.findOrAdopt(ctx, op, by, ref, false)
		if err != nil {
			return err
		}
		if !j.State.Terminal() {
			return errs.E(op, errs.Precondition, "JOB_LIVE", fmt.Errorf("job %s is %s", j.ID, j.State)).WithHint("stop it first")
		}
		j.Spec = job.Spec{} // what is removed is found without it
		jobs = append(jobs, j)
	}
	if len(jobs) == 0 {
		return nil
	}
	done, err := s.bulk()
	if err != nil {
		return err
	}
	_, err = s.ask(ctx, s.normal, Event{Forget: jobs, Unrecorded: by.Role == roleAdmin, done: done})
	return err
}

// Registered is the answer to a registration.
type Registered struct {
	Worker    registry.Worker
	Term      uint64
	Lease     time.Duration
	Heartbeat time.Duration // how often to renew it
}

// Register introduces a worker. Its name is the caller's.
func (s *Scheduler) Register(ctx context.Context, by Caller, reg registry.Registration) (Registered, error) {
	const op = "register worker"
	if by.Role != roleWorker {
		return Registered{}, errs.E(op, errs.Denied, "ROLE", fmt.Errorf("%s %q is no worker", by.Role, by.Name))
	}
	reg.Name = by.Name
	if err := checkRegistration(&reg); err != nil {
		return Registered{}, err
	}
	reg.Runners = job.BoundRunners(reg.Runners)
	fresh, err := uuid.NewV7()
	if err != nil {
		return Registered{}, errs.E(op, errs.Internal, "ID", err)
	}
	r, err := s.ask(ctx, s.urgent, Event{Register: &Register{Registration: reg, Fresh: fresh}})
	return s.registered(r), err
}

// Heartbeat renews the lease of the caller's own worker.
func (s *Scheduler) Heartbeat(ctx context.Context, by Caller, h Heartbeat) (Registered, error) {
	if err := s.own("renew lease", by, h.ID); err != nil {
		return Registered{}, err
	}
	h.Conditions = job.BoundConditions(h.Conditions)
	r, err := s.ask(ctx, s.urgent, Event{Heartbeat: &h})
	return s.registered(r), err
}

func (s *Scheduler) registered(r Result) Registered {
	return Registered{r.Worker, s.term, s.config.Lease, pace(s.config.Heartbeat, s.config.Lease, s.hub.countOnline())}
}

// Deregister ends the membership of the caller's own worker.
func (s *Scheduler) Deregister(ctx context.Context, by Caller, id job.WorkerID) error {
	if err := s.own("deregister worker", by, id); err != nil {
		return err
	}
	_, err := s.ask(ctx, s.urgent, Event{Deregister: &id})
	return err
}

// own makes sure that a worker acts on nobody but itself.
func (s *Scheduler) own(op string, by Caller, id job.WorkerID) error {
	w, ok := s.hub.worker(id)
	if !ok {
		return errs.E(op, errs.NotFound, "WORKER_UNKNOWN", fmt.Errorf("there is no worker %s", id))
	}
	if by.Role != roleWorker || by.Name != w.Name {
		return errs.E(op, errs.Denied, "WORKER_NAME", fmt.Errorf("%s %q may not act as the worker %q", by.Role, by.Name, w.Name))
	}
	return nil
}

// Worker returns a worker by id or name.
func (s *Scheduler) Worker(_ context.Context, ref string) (registry.Worker, error) {
	if w, ok := s.hub.named(ref); ok {
		return w, nil
	}
	if id, err := uuid.Parse(ref); err == nil && id.String() == ref {
		if w, ok := s.hub.worker(id); ok {
			return w, nil
		}
	}
	all := map[job.WorkerID]registry.Worker{}
	for _, w := range s.hub.allWorkers() {
		all[w.ID] = w
	}
	id, err := registry.Expand(ref, maps.Keys(all))
	return all[id], err
}

// Drain stops or resumes placing jobs on a worker; ref takes the place of d.ID.
func (s *Scheduler) Drain(ctx context.Context, ref string, d Drain) (registry.Worker, error) {
	if len(d.Reason) > maxReason {
		return registry.Worker{}, errs.Field("drain worker", "reason", "TOO_LONG", "it has %d bytes, at most %d", len(d.Reason), maxReason)
	}
	w, err := s.Worker(ctx, ref)
	if err != nil {
		return registry.Worker{}, err
	}
	d.ID = w.ID
	r, err := s.ask(ctx, s.urgent, Event{Drain: &d})
	return r.Worker, err
}

// RemoveWorker forgets a worker that is gone.
func (s *Scheduler) RemoveWorker(ctx context.Context, by Caller, ref string) error {
	w, err := s.Worker(ctx, ref)
	if err != nil {
		return err
	}
	if _, err := s.ask(ctx, s.urgent, Event{Remove: &w.ID}); err != nil {
		return err
	}
	s.config.Log.Info("worker removed", "worker", w.Name, "by", by.Name)
	return nil
}

// Watch calls yield with every change after begun was called, until ctx ends or yield
// returns an error. A submitter sees its own jobs only.
func (s *Scheduler) Watch(ctx context.Context, by Caller, ref string, snapshot bool, begun func(), yield func(Change) error) error {
	var id job.ID
	if ref != "" {
		j, err := s.find(ctx, "watch job", by, ref)
		if err != nil {
			return err
		}
		id = j.ID
	}
	return s.watch(ctx, "watch job", id, snapshot, begun, func(c Change) error {
		if by.Role == roleSubmitter && (c.Job == nil || !by.owns(c.Job)) && c.Missed == 0 {
			return nil
		}
		return yield(c)
	})
}

// PassRevocations tells all workers which certificates are revoked: list is signed,
// and each worker checks it.
func (s *Scheduler) PassRevocations(list []byte) { s.links.revoke(list) }

// Backup writes a copy of all records, as they are at this moment, to w. The input of
// jobs is left out: a file that is copied from machine to machine must not hold
// secrets. A job that needs it after a restore is REJECTED, reason INPUT_GONE.
func (s *Scheduler) Backup(ctx context.Context, by Caller, w io.Writer) error {
	n, err := backup.Write(ctx, s.config.Store, w, isInput)
	if err != nil {
		return errs.E("back up", errs.Internal, "BACKUP", err)
	}
	s.config.Log.Info("backup taken", "records", n, "by", by.Name)
	return nil
}
