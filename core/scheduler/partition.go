package scheduler

import (
	"fmt"
	"time"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
)

// outOfReach marks the jobs of a worker that has no lease any more, and begins
// to wait for those that stop by themselves.
func (m *Machine) outOfReach(id job.WorkerID) {
	m.setReachable(id, false)
	for _, e := range m.onWorker(id) {
		m.awaitPartition(e)
	}
}

// awaitPartition sets the time when an attempt with on_partition=stop has surely
// been stopped by its worker, should the worker not be heard of until then.
func (m *Machine) awaitPartition(e *entry) {
	if w, ok := m.workers.Get(e.Worker); ok && e.Spec.OnPartition == job.StopItself {
		m.setDeadline(e, m.surelyStopped(e, &w))
	}
}

// surelyStopped is that time on this scheduler's monotonic clock (P4 c). Of
// contacts before its own life it knows only that they were before.
func (m *Machine) surelyStopped(e *entry, w *registry.Worker) time.Time {
	contact := w.Contact
	if contact.IsZero() {
		contact = m.began
	}
	return contact.Add(job.PartitionWait(w.Lease, e.Spec.Grace))
}

// partitioned gives an attempt up whose worker has surely stopped it.
func (m *Machine) partitioned(e *entry) {
	w, ok := m.workers.Get(e.Worker)
	if !ok || w.State.Leased() {
		return // it was heard of: its own report settles the attempt
	}
	if at := m.surelyStopped(e, &w); m.now.Before(at) {
		m.setDeadline(e, at)
		return
	}
	m.finish(e, job.Lost, job.ReasonPartition, fmt.Sprintf(
		"its worker %s was out of reach for so long that it has stopped the job by itself (on_partition=stop)", w.Name))
}
