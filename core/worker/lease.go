package worker

import (
	"fmt"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/journal"
)

// lease is the worker's own view of its lease (P4 c). It counts from the moment
// when the worker asked for it, on its own monotonic clock, so it is over before
// the scheduler can think so.
type lease struct {
	until  time.Duration // since boot: when it ends, or ended
	over   bool          // there is none: it ran out, or none was ever given
	lapses uint64        // how often it ran out
	needed int           // live attempts that stop when it does
	kept   time.Duration // until, as it is on disk
}

// renewed takes the scheduler's word for a longer lease. One of an older term
// cannot give it: a newer scheduler counts without it. Neither can one that was
// asked before the lease ran out, nor, after that, one that knows nothing of it: a
// worker that was frozen may ask before it looks at its clock.
func (m *Machine) renewed(e Renewed) {
	until := e.Asked + e.Lease
	if e.Term < m.fence.Term || e.Lapses != m.lease.lapses || until <= m.now.Boot {
		return
	}
	if !m.lease.over && (until <= m.lease.until || e.Asked >= m.lease.until) {
		return
	}
	m.lease.until, m.lease.over = until, false
	if m.lease.needed > 0 {
		m.keepLease()
	}
}

// keepLease brings the lease to the disk: after a restart the worker must know
// whether the scheduler may have given its attempts up.
func (m *Machine) keepLease() {
	if m.lease.kept != m.lease.until {
		m.recordLease()
	}
}

func (m *Machine) recordLease() {
	m.lease.kept = m.lease.until
	m.record(journal.Record{
		Kind: journal.KindFence, Fence: m.fence, Floor: m.floor, Epoch: m.epoch,
		Lease: &journal.Lease{BootID: m.boot, Until: m.lease.until, Over: m.lease.over, Lapses: m.lease.lapses},
	})
}

// passLease notes that the lease has run out, and stops what asked for that.
func (m *Machine) passLease() {
	if m.lease.over || m.now.Boot < m.lease.until {
		return
	}
	m.lease.over = true
	m.lease.lapses++
	m.recordLease()
	m.stopUnleased()
}

// stopUnleased stops the attempts that may not live without a lease. Their
// grace counts from its end: the scheduler waits no longer, however late the
// worker comes to it.
func (m *Machine) stopUnleased() {
	if m.lease.needed == 0 {
		return
	}
	for _, a := range m.inOrder() {
		if a.leased && a.phase != phaseDone {
			m.end(a, job.ReasonPartition, max(0, m.lease.until+a.grace-m.now.Boot))
		}
	}
}

// unleased refuses an order that is bound to a lease which the worker has not.
func (m *Machine) unleased(o *job.StartOrder) error {
	const op = "start attempt"
	switch {
	case o.Spec.OnPartition != job.StopItself:
		return nil
	case m.lease.over:
		return errs.E(op, errs.Precondition, job.ReasonPartition, fmt.Errorf("the worker has no lease of a scheduler, and the job shall not run without"))
	case o.Lapses != m.lease.lapses:
		// It was on its way for so long that the scheduler may have given it up.
		return errs.E(op, errs.Precondition, job.ReasonPartition,
			fmt.Errorf("the order is of lease %d of the worker, this is lease %d", o.Lapses, m.lease.lapses))
	default:
		return nil
	}
}

// need counts the live attempts that are bound to the lease.
func (m *Machine) need(a *attempt, n int) {
	if a.leased {
		m.lease.needed += n
	}
}

// restoreLease takes up what is on disk. A lease of another boot, or one that
// has ended meanwhile, has run out.
func (m *Machine) restoreLease(l *journal.Lease) {
	m.lease = lease{over: true}
	if l != nil {
		m.lease = lease{until: l.Until, over: l.Over, lapses: l.Lapses, kept: l.Until}
		if l.BootID != m.boot {
			m.lease.until = 0
		}
	}
	if m.lease.over && m.epoch > 1 {
		// The earlier life may have had a lease that is not on disk, and orders of it may
		// be on their way: it has run out.
		m.lease.lapses++
		m.recordLease()
	}
}

// Lapses tells how often the lease has run out.
func (m *Machine) Lapses() uint64 { return m.lease.lapses }
