package scheduler

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/store"
)

// When the record of a job is removed, every worker that had an attempt of it is to
// forget the output. The order may not reach one that is away. So what each worker is
// to forget is in the store, written with the removal, until the worker confirms that it
// has: an attempt without a record is forgotten only when its removal is known. That
// there is no record does not tell that, for the records may be older than the job (P3).

// owedPage is how many attempts a worker is told to forget at once when it is back.
const owedPage = 4096

// LoadOwing says that the store has attempts that a worker is to forget.
func (m *Machine) LoadOwing(w job.WorkerID) { m.owing[w] = true }

// forget removes the records of terminal jobs and orders their workers to forget the
// output; a job that is live stays (P1).
func (m *Machine) forget(to uint64, jobs []job.Job, unrecorded bool) {
	for i := range jobs {
		j := &jobs[i]
		if m.jobs[j.ID] != nil || !j.State.Terminal() {
			continue
		}
		m.effect(Effect{Delete: j})
		for _, a := range j.Attempts() {
			if _, ok := m.workers.Get(a.Worker); !ok {
				continue // an operator removed it
			}
			keys := []job.Key{{Job: j.ID, Attempt: a.Number}}
			m.owing[a.Worker] = true
			m.effect(Effect{Owe: &Forget{a.Worker, keys}})
			m.tellForget(a.Worker, keys)
		}
		if unrecorded {
			m.forgetUnrecorded(j.ID)
		}
	}
	m.reply(to, Result{})
}

// tellForget orders a worker to forget attempts. An order that is lost is given again in
// the next session.
func (m *Machine) tellForget(w job.WorkerID, keys []job.Key) {
	if l := m.links[w]; l != nil {
		l.unsure += len(keys)
	}
	// Also before all is told in a session: nothing is decided by it.
	m.effect(Effect{Send: &Send{w, Down{Forgets: keys}}})
}

// Owed tells whether Step is to be given a page of what the worker of a frame is to
// forget, and after which attempt it begins.
func (m *Machine) Owed(ev *UpEvent) (after job.Key, ok bool) {
	l := m.links[ev.Worker]
	switch {
	case l == nil || l.number != ev.Link:
		return after, false
	case ev.Up.Hello != nil && ev.Up.Hello.Complete && !l.complete:
		return after, m.owing[ev.Worker]
	default:
		return l.owedFrom, l.owed && l.unsure-len(ev.Up.Forgotten) <= owedPage/2
	}
}

// forgotten takes what a worker confirms, and tells it what else to forget.
func (m *Machine) forgotten(ev *UpEvent, l *link) {
	_, page := m.Owed(ev)
	if done := ev.Up.Forgotten; len(done) > 0 {
		l.unsure = max(0, l.unsure-len(done))
		m.effect(Effect{Forgot: &Forget{ev.Worker, done}})
	}
	if !page {
		return
	}
	l.owed = len(ev.Owed) == owedPage
	if len(ev.Owed) == 0 {
		return
	}
	l.owedFrom = ev.Owed[len(ev.Owed)-1]
	m.tellForget(ev.Worker, ev.Owed)
}

// forgetKey sorts by worker, job and attempt.
func forgetKey(w job.WorkerID, key job.Key) []byte {
	b := append(idKey(prefixForget, w), key.Job[:]...)
	return binary.BigEndian.AppendUint32(b, key.Attempt)
}

func decodeForget(b []byte) (w job.WorkerID, key job.Key, err error) {
	if len(b) != 1+16+16+4 {
		return w, key, fmt.Errorf("read what workers are to forget: a key of %d bytes", len(b))
	}
	return job.WorkerID(b[1:17]), job.Key{Job: job.ID(b[17:33]), Attempt: binary.BigEndian.Uint32(b[33:])}, nil
}

// loadOwing calls owing for each worker that has something to forget, and does not look
// at all of that.
func (r records) loadOwing(ctx context.Context, owing func(job.WorkerID)) error {
	rest := store.Prefix([]byte{prefixForget})
	for more := true; more; {
		more = false
		for p, err := range r.store.Scan(ctx, rest) {
			if err != nil {
				return fmt.Errorf("load what workers are to forget: %w", err)
			}
			w, _, err := decodeForget(p.Key)
			if err != nil {
				return err
			}
			owing(w)
			rest.From, more = store.Prefix(idKey(prefixForget, w)).To, true
			break
		}
	}
	return nil
}

// owed reads a page of what a worker is to forget.
func (r records) owed(ctx context.Context, w job.WorkerID, after job.Key) (keys []job.Key, err error) {
	scan := store.Prefix(idKey(prefixForget, w))
	if after != (job.Key{}) {
		scan.From = append(forgetKey(w, after), 0)
	}
	for p, err := range r.store.Scan(ctx, scan) {
		if err != nil {
			return nil, fmt.Errorf("read what a worker is to forget: %w", err)
		}
		_, key, err := decodeForget(p.Key)
		if err != nil {
			return nil, err
		}
		if keys = append(keys, key); len(keys) == owedPage {
			break
		}
	}
	return keys, nil
}

// ofRemoved notes in a frame that the record of an attempt in it was removed, if it was.
func (r records) ofRemoved(ctx context.Context, ev *UpEvent, key job.Key) error {
	if _, err := r.store.Get(ctx, forgetKey(ev.Worker, key)); err != nil {
		return fmt.Errorf("read what a worker is to forget: %w", err)
	}
	if ev.Removed == nil {
		ev.Removed = map[job.Key]bool{}
	}
	ev.Removed[key] = true
	return nil
}
