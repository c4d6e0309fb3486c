package scheduler

import (
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/droverhq/drover/core/job"
)

// A stray is an attempt that runs although the scheduler has given it up: its worker was
// removed by an operator, or taken for dead, and is back. It takes a slot, it may write
// to what the next attempt writes to (P5), and nobody else will ever stop it.

// mostStrays bounds those of one worker that are kept in mind.
const mostStrays = 4096

// strays are those of one worker: the session in which each was told last, and the one
// in which its stop was ordered.
type strays map[job.Key]*stray

type stray struct{ told, ordered uint64 }

// Ended lists the attempts of a frame whose records Step is to be given with it.
func (m *Machine) Ended(ev *UpEvent) (keys []job.Key) {
	for i := range ev.Up.Reports {
		if r := &ev.Up.Reports[i]; m.jobs[r.Job] == nil {
			keys = append(keys, r.Key)
		}
	}
	return keys
}

// settled takes the report of an attempt that is not live here. It returns false when
// there is no record of it at all: this scheduler's records may be older than the job.
func (m *Machine) settled(ev *UpEvent, l *link, r *job.Report) (known bool) {
	record := ev.Records[r.Job]
	if e := m.jobs[r.Job]; e != nil {
		record = &e.Job
	} else if j := m.ended[r.Job]; j != nil {
		record = j // newer than what was read
	}
	removed := ev.Removed[r.Key]
	if !removed && (record == nil || r.Attempt > record.Attempt) {
		return false
	}
	if !removed && m.ofAnother(ev.Worker, record, r.Attempt) {
		return false // each history gives an attempt to one worker: this is of another one
	}
	if !r.State.Terminal() {
		m.strayed(ev.Worker, l, r.Key)
		return true
	}
	if m.strays[ev.Worker][r.Key] != nil {
		m.endStray(ev.Worker, r.Key)
	}
	if removed {
		m.tellForget(ev.Worker, []job.Key{r.Key})
		return true
	}
	m.amend(ev.Worker, record, r)
	return true
}

// ofAnother tells whether a record gives an attempt to another worker than this. One that
// was removed and is back has another id, and the same name.
func (m *Machine) ofAnother(worker job.WorkerID, record *job.Job, attempt uint32) bool {
	a, ok := record.AttemptOf(attempt)
	if !ok || a.Worker == worker || a.Worker == uuid.Nil {
		return false
	}
	w, _ := m.workers.Get(worker)
	return w.Name != a.WorkerName
}

// strayed notes that an attempt runs that must not.
func (m *Machine) strayed(w job.WorkerID, l *link, key job.Key) {
	if s := m.strays[w][key]; s != nil {
		s.told = l.number
		return
	}
	if _, ok := m.workers.Get(w); !ok || len(m.strays[w]) >= mostStrays {
		return
	}
	if m.strays[w] == nil {
		m.strays[w] = strays{}
	}
	m.strays[w][key] = &stray{told: l.number}
	m.workers.Occupy(w, 1)
	if e := m.jobs[key.Job]; e != nil {
		m.hold(e)
	}
}

// stopStrays orders the stop of those that were not stopped in this session.
func (m *Machine) stopStrays(w job.WorkerID, session uint64) {
	for _, key := range inKeyOrder(m.strays[w]) {
		if s := m.strays[w][key]; s.ordered != session {
			s.ordered = session
			m.send(w, Down{Stops: []job.StopOrder{{Key: key, Fence: m.fence(), Reason: job.ReasonGivenUp}}})
		}
	}
}

// sweepStrays forgets those that a worker has not told of in its newest session: they
// have ended.
func (m *Machine) sweepStrays(w job.WorkerID, session uint64) {
	for _, key := range inKeyOrder(m.strays[w]) {
		if m.strays[w][key].told != session {
			m.endStray(w, key)
		}
	}
}

// endStray gives back what a stray took.
func (m *Machine) endStray(w job.WorkerID, key job.Key) {
	if delete(m.strays[w], key); len(m.strays[w]) == 0 {
		delete(m.strays, w)
	}
	m.workers.Occupy(w, -1)
	m.dirty = true
	if e := m.jobs[key.Job]; e != nil {
		m.letGo(e)
	}
}

// hold keeps a job from its next attempt while one that was given up still runs (P5).
func (m *Machine) hold(e *entry) {
	e.strays++
	m.awaitStrays(e)
}

// awaitStrays takes a job out of the queue while there are any.
func (m *Machine) awaitStrays(e *entry) {
	if e.strays == 0 || e.State != job.Queued || e.delayed {
		return
	}
	m.queue.remove(e)
	e.delayed, e.deadline = true, m.now
	e.Reason, e.Message = reasonRetry, fmt.Sprintf("an attempt that was taken for lost still runs and is being stopped; attempt %d is made after it", e.Attempt+1)
	m.put(e)
}

// letGo lets it go on once the last of them has ended.
func (m *Machine) letGo(e *entry) {
	if e.strays--; e.strays == 0 && e.State == job.Queued && e.delayed && !m.now.Before(e.deadline) {
		m.queueDeadline(e)
	}
}

// amend adds to the record of an attempt that has ended what its worker tells later: of
// one that was given up how it was stopped, and what could be sealed only when nobody
// held a pipe any more (P8). What has a sum is final.
func (m *Machine) amend(from job.WorkerID, j *job.Job, r *job.Report) {
	more, changed := *j, false
	if i := slices.IndexFunc(j.Past, func(a job.Attempt) bool { return a.Number == r.Attempt }); i >= 0 {
		more.Past = slices.Clone(j.Past)
		a := &more.Past[i]
		changed = a.Worker == from && a.State == r.State && seal(r, &a.Stdout, &a.Stderr)
	}
	if j.State.Terminal() && j.Attempt == r.Attempt {
		if r.StopProof != nil && j.Result.StopProof == nil {
			more.Result.StopProof, changed = r.StopProof, true
		}
		if j.Worker == from && j.State == r.State && r.Sequence > j.Result.Sequence && seal(r, &more.Result.Stdout, &more.Result.Stderr) {
			more.Result.Sequence, changed = r.Sequence, true
		}
	}
	if e := m.jobs[j.ID]; changed && e != nil {
		e.Job = more
		m.put(e)
	} else if changed {
		m.ended[j.ID] = &more
		m.effect(Effect{Put: &more, Drop: true, Amend: true})
	}
}

// seal takes over the sums that a record lacks.
func seal(r *job.Report, stdout, stderr *job.Stream) (changed bool) {
	for _, s := range []struct{ of, now *job.Stream }{{stdout, &r.Stdout}, {stderr, &r.Stderr}} {
		if s.of.SHA256 == "" && s.now.SHA256 != "" && s.now.Size >= s.of.Size {
			*s.of = *s.now
			changed = true
		}
	}
	return changed
}

func inKeyOrder(s strays) []job.Key {
	keys := make([]job.Key, 0, len(s))
	for k := range s {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, compareKeys)
	return keys
}
