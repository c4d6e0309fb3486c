package scheduler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
	"github.com/droverhq/drover/core/store"
)

// An unrecorded attempt is one that a worker has and that is not in the records: these are
// an older copy that an administrator has accepted, or have lost writes. The scheduler
// neither stops it nor acknowledges its end, so the worker keeps all that it knows of it,
// until an administrator stops, adopts or forgets it (P3).

// Bounds of the unrecorded attempts that are kept in memory: a worker may report any
// number of them (P21).
const (
	maxUnrecorded    = 1024     // of one worker
	maxAllUnrecorded = 32 << 10 // of all workers together
)

const opAdopt = "adopt job"

// unrecorded is the newest report of an unrecorded attempt.
type unrecorded struct {
	told   uint64 // number of the session of that report
	report job.Report
}

// holder is a worker that has an unrecorded attempt.
type holder struct {
	worker job.WorkerID
	key    job.Key
	*unrecorded
}

// unrecord keeps the report of an unrecorded attempt.
func (m *Machine) unrecord(w job.WorkerID, session uint64, r *job.Report) {
	u := m.unrecorded[w][r.Key]
	if u == nil {
		if _, ok := m.workers.Get(w); !ok {
			return
		}
		if len(m.unrecorded[w]) >= maxUnrecorded || m.unrecordedCount >= maxAllUnrecorded {
			m.unlisted[w] = true
			return
		}
		if m.unrecorded[w] == nil {
			m.unrecorded[w] = map[job.Key]*unrecorded{}
		}
		u = &unrecorded{}
		m.unrecorded[w][r.Key] = u
		m.unrecordedCount++
	}
	m.workers.Occupy(w, slots(r)-slots(&u.report))
	u.told, u.report = session, *r
	m.relist(w)
}

// slots is how many slots of its worker the attempt of a report takes.
func slots(r *job.Report) int {
	if r.State == job.None || r.State.Terminal() {
		return 0
	}
	return 1
}

// dropUnrecorded forgets an attempt that is settled, or that its worker has no more.
func (m *Machine) dropUnrecorded(w job.WorkerID, key job.Key) {
	u := m.unrecorded[w][key]
	if u == nil {
		return
	}
	if delete(m.unrecorded[w], key); len(m.unrecorded[w]) == 0 {
		delete(m.unrecorded, w)
		m.askAgain(w)
	}
	m.unrecordedCount--
	m.workers.Occupy(w, -slots(&u.report))
	m.relist(w)
}

// askAgain begins another session with a worker that had more attempts than the list had
// room for: it reports them then.
func (m *Machine) askAgain(id job.WorkerID) {
	if w, ok := m.workers.Get(id); ok && m.unlisted[id] {
		m.effect(Effect{Hang: &id})
		m.effect(Effect{Dial: &w})
	}
	delete(m.unlisted, id)
}

// sweepUnrecorded forgets those that a worker has not reported in its newest session.
func (m *Machine) sweepUnrecorded(w job.WorkerID, session uint64) {
	for key, u := range m.unrecorded[w] {
		if u.told != session {
			m.dropUnrecorded(w, key)
		}
	}
}

// relist notes that the list of a worker is to be published at the end of the step.
func (m *Machine) relist(w job.WorkerID) {
	if !slices.Contains(m.relisted, w) {
		m.relisted = append(m.relisted, w)
	}
}

// listUnrecorded publishes the lists that the step has changed.
func (m *Machine) listUnrecorded() {
	for _, w := range m.relisted {
		list := make([]job.Report, 0, len(m.unrecorded[w]))
		for _, u := range m.unrecorded[w] {
			list = append(list, u.report)
		}
		slices.SortFunc(list, func(a, b job.Report) int { return compareKeys(a.Key, b.Key) })
		m.workers.SetUnrecorded(w, list)
		m.changed(w)
	}
	m.relisted = m.relisted[:0]
}

// holders returns the workers that have unrecorded attempts of a job, in the order of the
// attempts.
func (m *Machine) holders(id job.ID) (all []holder) {
	for w, of := range m.unrecorded {
		for key, u := range of {
			if key.Job == id {
				all = append(all, holder{w, key, u})
			}
		}
	}
	slices.SortFunc(all, func(a, b holder) int {
		return cmp.Or(compareKeys(a.key, b.key), slices.Compare(a.worker[:], b.worker[:]))
	})
	return all
}

// adopt makes a record of a job from what its worker has reported, and follows it as any
// other job. What the report does not tell the record lacks: who asked for the job, its
// arguments, limits and retry policy.
func (m *Machine) adopt(to uint64, a *Adopt) {
	j, err := m.adopted(a)
	m.reply(to, Result{Job: j, Err: err})
}

func (m *Machine) adopted(a *Adopt) (job.Job, error) {
	if a.Known || m.jobs[a.Job] != nil || m.ended[a.Job] != nil {
		return job.Job{}, errRecorded(a.Job)
	}
	all := m.holders(a.Job)
	newest, err := chooseHolder(all, a)
	if err != nil {
		return job.Job{}, err
	}
	if s := newest.report.State; !s.Known() {
		return job.Job{}, errs.E(opAdopt, errs.Precondition, job.ReasonOldScheduler, fmt.Errorf("its worker reports state %d, which this scheduler does not know", s)).
			WithHint("upgrade the scheduler")
	}
	w, _ := m.workers.Get(newest.worker)
	r := newest.report
	e := &entry{Job: job.Job{
		ID: a.Job, Spec: job.Spec{Command: r.Runner, Path: w.ScriptPaths([]job.Report{r})[r.ScriptSHA256]},
		State: job.Dispatched, Attempt: r.Attempt, Worker: w.ID, WorkerName: w.Name, BootID: w.BootID,
		Fence: m.fence(), Submit: submitTime(a.Job).UTC(),
	}}
	for _, h := range all {
		if older := h.report; h.key.Attempt < r.Attempt && older.State.Terminal() {
			past := job.Job{Attempt: h.key.Attempt, Worker: h.worker, State: older.State, Reason: older.Reason, Result: older}
			if of, ok := m.workers.Get(h.worker); ok {
				past.WorkerName = of.Name
			}
			attempt, _ := past.AttemptOf(h.key.Attempt)
			e.Past = append(e.Past, attempt)
			m.settle(h)
		}
	}
	if l := m.links[w.ID]; l == nil || !l.complete {
		e.UnreachableSince = m.wall()
	}
	e.bytes = e.Spec.Bytes()
	m.account.add(owner(&e.Job), e.bytes)
	j := e.Job
	m.effect(Effect{Put: &j, New: true})
	m.jobs[e.ID] = e
	m.workers.Occupy(w.ID, 1)
	m.place(e)
	m.apply(e, &r)
	m.settle(newest)
	return e.Job, nil
}

// settle takes an attempt that is in the records now off the list; its end is
// acknowledged after the commit of the round.
func (m *Machine) settle(h holder) {
	m.dropUnrecorded(h.worker, h.key)
	if h.report.State.Terminal() {
		m.send(h.worker, Down{Acks: []job.Key{h.key}})
	}
}

// chooseHolder returns the worker whose attempt is adopted: the one with the newest attempt.
func chooseHolder(all []holder, a *Adopt) (holder, error) {
	if a.Worker != uuid.Nil {
		all = slices.DeleteFunc(slices.Clone(all), func(h holder) bool { return h.worker != a.Worker })
	}
	if len(all) == 0 {
		return holder{}, jobUnknown(opAdopt, a.Job.String())
	}
	newest := all[len(all)-1]
	if n := len(all); n > 1 && all[n-2].key == newest.key {
		return holder{}, errs.E(opAdopt, errs.Precondition, "JOB_AMBIGUOUS",
			fmt.Errorf("several workers have attempt %d of the job %s", newest.key.Attempt, a.Job)).WithHint("name the worker: drover jobs adopt --worker")
	}
	return newest, nil
}

func errRecorded(id job.ID) error {
	return errs.E(opAdopt, errs.Exists, "JOB_RECORDED", fmt.Errorf("there is a record of the job %s", id)).
		WithHint(`"drover stop" stops its attempts that are not in the record, too; "drover jobs rm" forgets them`)
}

// stopUnrecorded orders the stop of all unrecorded attempts of a job.
func (m *Machine) stopUnrecorded(s *Stop) {
	for _, h := range m.holders(s.ID) {
		if !h.report.State.Terminal() {
			m.send(h.worker, Down{Stops: []job.StopOrder{{Key: h.key, Fence: m.fence(), Grace: s.Grace, Reason: s.Reason}}})
		}
	}
}

// forgetUnrecorded lets workers forget the unrecorded attempts of a job that have ended.
func (m *Machine) forgetUnrecorded(id job.ID) {
	for _, h := range m.holders(id) {
		if l := m.links[h.worker]; h.report.State.Terminal() && l != nil && l.complete {
			m.send(h.worker, Down{Forgets: []job.Key{h.key}})
			m.dropUnrecorded(h.worker, h.key)
		}
	}
}

// Adopt makes a record of a job that workers have reported and that is not in the
// records. ref is its id, or a unique beginning or end of it; worker may be empty.
func (s *Scheduler) Adopt(ctx context.Context, by Caller, ref, worker string) (job.Job, error) {
	a := &Adopt{}
	if worker != "" {
		w, err := s.Worker(ctx, worker)
		if err != nil {
			return job.Job{}, err
		}
		a.Worker = w.ID
	}
	r, _, err := s.unrecorded(opAdopt, ref)
	if err != nil {
		return job.Job{}, err
	}
	if a.Job = r.Job; a.Job == uuid.Nil {
		j, err := s.find(ctx, opAdopt, by, ref)
		if err == nil {
			err = errRecorded(j.ID)
		}
		return job.Job{}, err
	}
	if _, err := s.ask(ctx, s.urgent, Event{Adopt: a}); err != nil {
		return job.Job{}, err
	}
	s.config.Log.Info("job adopted", "job", a.Job, "by", by.Name)
	return s.read(ctx, opAdopt, a.Job)
}

// findOrAdopt finds a job as find does. An administrator who names one that only a worker
// knows gets a record of it, unless it lives and may not.
func (s *Scheduler) findOrAdopt(ctx context.Context, op string, by Caller, ref string, mayLive bool) (job.Job, error) {
	j, err := s.find(ctx, op, by, ref)
	if by.Role != roleAdmin || errs.ReasonOf(err) != codeJobUnknown {
		return j, err
	}
	r, _, other := s.unrecorded(op, ref)
	switch {
	case other != nil:
		return j, other
	case r.Job == uuid.Nil:
		return j, err
	case !mayLive && !r.State.Terminal():
		return job.Job{ID: r.Job, State: r.State}, nil
	}
	return s.Adopt(ctx, by, ref, "")
}

// unrecorded returns the newest unrecorded attempt of the job that a reference means, and
// the worker that has it; zero when there is none.
func (s *Scheduler) unrecorded(op, ref string) (newest job.Report, worker string, err error) {
	ref = strings.ToLower(ref)
	for _, w := range s.hub.allWorkers() {
		for i := range w.Unrecorded {
			r := &w.Unrecorded[i]
			if !job.Abbreviates(ref, r.Job) {
				continue
			}
			if newest.Job != uuid.Nil && newest.Job != r.Job {
				return newest, "", errs.Field(op, "job_id", "JOB_AMBIGUOUS", "%q fits several jobs, such as %s and %s", ref, newest.Job, r.Job).
					WithHint("give more digits")
			}
			if r.Attempt > newest.Attempt {
				newest, worker = *r, w.Name
			}
		}
	}
	return newest, worker, nil
}

// unknown is the error of a reference that no record fits. It tells those who may know of
// all jobs that a worker has the job.
func (s *Scheduler) unknown(op string, by Caller, ref, hint string) error {
	e := errs.E(op, errs.NotFound, codeJobUnknown, fmt.Errorf("there is no job %q", ref))
	if by.Role == roleSubmitter {
		return e.WithHint("%s", hint)
	}
	if r, w, err := s.unrecorded(op, ref); err == nil && r.Job != uuid.Nil {
		return errs.E(op, errs.NotFound, codeJobUnknown, fmt.Errorf("there is no record of the job %s, which the worker %s has", r.Job, w)).
			WithHint(`an admin makes one with "drover jobs adopt %s"`, r.Job)
	}
	return e.WithHint("%s", hint)
}

// isRecorded reports whether the store has a record of a job.
func (r records) isRecorded(ctx context.Context, id job.ID) (bool, error) {
	_, err := r.store.Get(ctx, idKey(prefixJob, id))
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up the job: %w", err)
	}
	return true, nil
}

// hasUnrecorded reports whether a worker has an unrecorded attempt of a job.
func (s *Scheduler) hasUnrecorded(id job.ID) bool {
	return slices.ContainsFunc(s.hub.allWorkers(), func(w registry.Worker) bool {
		return slices.ContainsFunc(w.Unrecorded, func(r job.Report) bool { return r.Job == id })
	})
}

func compareKeys(a, b job.Key) int {
	return cmp.Or(slices.Compare(a.Job[:], b.Job[:]), cmp.Compare(a.Attempt, b.Attempt))
}
