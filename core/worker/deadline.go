package worker

import (
	"container/heap"
	"time"
)

// deadlineKind is what an attempt waits for.
type deadlineKind uint8

const (
	dueTimeout  deadlineKind = iota // the spec's timeout
	dueIdle                         // look whether it is silent
	dueExit                         // no process is left, but its exit is not known yet
	dueRetry                        // try the stop again
	dueKindsEnd                     // how many there are
)

// deadlines holds an attempt's times since boot; 0 is none.
type deadlines [dueKindsEnd]time.Duration

func (d *deadlines) next() time.Duration {
	first := time.Duration(0)
	for _, at := range d {
		if at != 0 && (first == 0 || at < first) {
			first = at
		}
	}
	return first
}

// dueHeap orders attempts by their nearest deadline. Attempts without one are
// not in it: a job that only sleeps costs nothing here.
type dueHeap []*attempt

// Len is for container/heap only.
func (h dueHeap) Len() int { return len(h) }

// Less is for container/heap only.
func (h dueHeap) Less(i, j int) bool { return h[i].due.next() < h[j].due.next() }

// Swap is for container/heap only.
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].heapAt, h[j].heapAt = i, j
}

// Push is for container/heap only.
func (h *dueHeap) Push(x any) {
	a := x.(*attempt)
	a.heapAt = len(*h)
	*h = append(*h, a)
}

// Pop is for container/heap only.
func (h *dueHeap) Pop() any {
	old := *h
	a := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	a.heapAt = -1
	return a
}

// schedule sets one deadline of an attempt; 0 clears it.
func (m *Machine) schedule(a *attempt, kind deadlineKind, at time.Duration) {
	if a.due[kind] == at {
		return
	}
	a.due[kind] = at
	switch {
	case a.due.next() == 0:
		if a.heapAt >= 0 {
			heap.Remove(&m.due, a.heapAt)
		}
	case a.heapAt >= 0:
		heap.Fix(&m.due, a.heapAt)
	default:
		heap.Push(&m.due, a)
	}
}

// unschedule clears every deadline of an attempt.
func (m *Machine) unschedule(a *attempt) {
	a.due = deadlines{}
	if a.heapAt >= 0 {
		heap.Remove(&m.due, a.heapAt)
	}
}

// Next returns the time since boot at which a Tick is due.
func (m *Machine) Next() (time.Duration, bool) {
	at, ok := m.lease.until, !m.lease.over
	if len(m.due) > 0 {
		if next := m.due[0].due.next(); !ok || next < at {
			at, ok = next, true
		}
	}
	return at, ok
}

// pass lets every deadline up to now pass, in order.
func (m *Machine) pass() {
	for len(m.due) > 0 && m.due[0].due.next() <= m.now.Boot {
		a := m.due[0]
		kind := dueTimeout
		for k, at := range a.due {
			if at != 0 && at == a.due.next() {
				kind = deadlineKind(k)
				break
			}
		}
		m.schedule(a, kind, 0)
		m.passed(a, kind)
	}
}
