package registry

import (
	"container/heap"
	"maps"
	"slices"
	"strings"

	"github.com/droverhq/drover/core/job"
)

// maxViews bounds what placements are kept in view; above it they are built
// anew. Each costs 5 bytes per worker.
const maxViews = 256

// view is one placement as asked for by any number of jobs: the workers that
// fit now, the least loaded first, and of the others how many fail for which
// reason. Every change of a worker updates every view, so that a decision does
// not look at all the workers.
type view struct {
	spec job.Spec        // what placement looks at
	heap []*entry        // those that fit
	at   []int32         // by entry.slot: index in heap
	why  []nearness      // by entry.slot
	sum  [reasonsEnd]int // how many workers there are of each
}

// absent marks a worker that has no say: removed or deregistered.
const absent = reasonsEnd

func viewKey(s *job.Spec) string {
	var b strings.Builder
	b.WriteString(s.Command)
	b.WriteByte(0)
	b.WriteString(s.Path)
	if s.Uploaded() {
		b.WriteString("\x00\x02")
	}
	if len(s.Labels) == 0 {
		return b.String()
	}
	for _, k := range slices.Sorted(maps.Keys(s.Labels)) {
		b.WriteByte(0)
		b.WriteString(k)
		b.WriteByte(1)
		b.WriteString(s.Labels[k])
	}
	return b.String()
}

// view returns the placement that a job asks for.
func (r *Registry) view(s *job.Spec) *view {
	key := viewKey(s)
	if v := r.views[key]; v != nil {
		return v
	}
	if len(r.views) == maxViews {
		clear(r.views)
	}
	v := &view{spec: job.Spec{Command: s.Command, Path: s.Path, Labels: s.Labels}}
	if s.Uploaded() {
		v.spec.UploadSHA256 = "any" // which one makes no difference
	}
	for _, e := range r.byID {
		v.update(e)
	}
	r.views[key] = v
	return v
}

// moved tells every view of a change of a worker.
func (r *Registry) moved(e *entry) {
	for _, v := range r.views {
		v.update(e)
	}
}

// gone takes a worker out of every view and frees its slot.
func (r *Registry) gone(e *entry) {
	for _, v := range r.views {
		v.set(e, absent)
	}
	r.spare = append(r.spare, e.slot)
}

// slotFor gives a new worker a number for the tables of the views.
func (r *Registry) slotFor() int {
	if n := len(r.spare); n > 0 {
		slot := r.spare[n-1]
		r.spare = r.spare[:n-1]
		return slot
	}
	r.slots++
	return r.slots - 1
}

func (v *view) update(e *entry) {
	if e.State == Deregistered {
		v.set(e, absent)
		return
	}
	v.set(e, e.fit(&v.spec))
}

func (v *view) set(e *entry, why nearness) {
	for len(v.why) <= e.slot {
		v.why, v.at = append(v.why, absent), append(v.at, -1)
	}
	if before := v.why[e.slot]; before != absent {
		v.sum[before]--
	}
	if v.why[e.slot] = why; why != absent {
		v.sum[why]++
	}
	switch at := int(v.at[e.slot]); {
	case why == fits && at < 0:
		heap.Push(v, e)
	case why == fits:
		heap.Fix(v, at) // it may be more or less loaded than before
	case at >= 0:
		heap.Remove(v, at)
	}
}

// best is the least loaded worker that fits, but for one, which comes last; nil when
// nobody fits.
func (v *view) best(last job.WorkerID) *entry {
	if len(v.heap) == 0 {
		return nil
	}
	first := v.heap[0]
	if first.ID != last || len(v.heap) == 1 {
		return first
	}
	// In a heap the next one is among the two below the first.
	second := v.heap[1]
	if len(v.heap) > 2 && lessLoaded(v.heap[2], second) {
		second = v.heap[2]
	}
	return second
}

// nearest is the reason of the worker that came nearest to taking the job.
func (v *view) nearest() nearness {
	for why := reasonsEnd - 1; why > fits; why-- {
		if v.sum[why] > 0 {
			return why
		}
	}
	return fits
}

// Len implements heap.Interface.
func (v *view) Len() int { return len(v.heap) }

// Less implements heap.Interface.
func (v *view) Less(i, j int) bool { return lessLoaded(v.heap[i], v.heap[j]) }

// Swap implements heap.Interface.
func (v *view) Swap(i, j int) {
	v.heap[i], v.heap[j] = v.heap[j], v.heap[i]
	v.at[v.heap[i].slot], v.at[v.heap[j].slot] = int32(i), int32(j)
}

// Push implements heap.Interface.
func (v *view) Push(x any) {
	e := x.(*entry)
	v.at[e.slot] = int32(len(v.heap))
	v.heap = append(v.heap, e)
}

// Pop implements heap.Interface.
func (v *view) Pop() any {
	last := len(v.heap) - 1
	e := v.heap[last]
	v.heap[last], v.heap = nil, v.heap[:last]
	v.at[e.slot] = -1
	return e
}
