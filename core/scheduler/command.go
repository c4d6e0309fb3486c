package scheduler

import (
	"fmt"
	"time"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
)

// A worker that is ONLINE renews its lease; whether an order would reach it is another
// question. It is commanded while there is a session in which it has told all it has.

// commanded notes that a worker can be given jobs.
func (m *Machine) commanded(id job.WorkerID) {
	m.workers.SetCommanded(id, true)
	delete(m.mute, id)
	if w, ok := m.workers.Get(id); ok && w.Trouble.Type == registry.NoSession && m.workers.SetTrouble(id, m.wall(), "", "") {
		m.changed(id)
	}
	m.dirty = true
}

// uncommanded notes that it cannot. Sessions end every day and are back at once: only
// when that takes long people are told.
func (m *Machine) uncommanded(id job.WorkerID) {
	m.workers.SetCommanded(id, false)
	_, known := m.workers.Get(id)
	if _, counts := m.mute[id]; known && !counts {
		m.mute[id] = m.now.Add(m.workers.Lease())
	}
	m.dirty = true // who waits for it learns why
}

// endPatience shows what is placed on workers without a session as out of reach.
func (m *Machine) endPatience() {
	if len(m.mute) == 0 {
		return
	}
	for _, w := range m.workers.All() {
		at, ok := m.mute[w.ID]
		if !ok || at.IsZero() || m.now.Before(at) {
			continue
		}
		m.mute[w.ID] = time.Time{}
		if !w.State.Leased() {
			continue // that is told already
		}
		m.setReachable(w.ID, false)
		text := fmt.Sprintf("it renews its lease, but the scheduler has had no session with it for %v and gives it no jobs", m.workers.Lease())
		if m.workers.SetTrouble(w.ID, m.wall(), registry.NoSession, text) {
			m.changed(w.ID)
		}
	}
}

// unsent takes orders back that have surely never left: the next session may be long
// in coming, and another worker free.
func (m *Machine) unsent(u *Unsent) {
	for _, key := range u.Keys {
		e := m.jobs[key.Job]
		if e == nil || e.attempt() != key || e.Worker != u.Worker || e.State != job.Dispatched || e.Result.Sequence > 0 || e.resent {
			continue
		}
		m.workers.Occupy(u.Worker, -1)
		m.displace(e)
		e.State, e.Attempt = job.Queued, e.Attempt-1
		e.Worker, e.WorkerName, e.UnreachableSince = job.WorkerID{}, "", time.Time{}
		m.enqueue(e)
		m.put(e)
		m.awaitStrays(e)
		m.dirty = true
	}
}
