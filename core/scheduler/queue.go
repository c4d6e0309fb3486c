package scheduler

import (
	"cmp"
	"container/heap"
	"maps"
	"slices"
	"strings"

	"github.com/droverhq/drover/core/job"
)

// queue holds waiting jobs in classes: jobs that ask for the same placement
// fit, or do not fit, together. An event then costs as many placement
// decisions as there are classes, not as there are jobs.
type queue struct {
	classes map[string]*class
}

// class is the jobs of one placement, highest priority and oldest first.
type class struct {
	key    string
	jobs   []*entry
	reason string // why its head waits
}

func newQueue() *queue { return &queue{classes: map[string]*class{}} }

// classKey tells apart what placement looks at.
func classKey(s *job.Spec) string {
	var b strings.Builder
	for _, part := range []string{s.Worker, s.Command, s.Path} {
		b.WriteString(part + "\x00")
	}
	if s.Uploaded() {
		b.WriteString("\x02\x00")
	}
	for _, k := range slices.Sorted(maps.Keys(s.Labels)) {
		b.WriteString(k + "\x01" + s.Labels[k] + "\x00")
	}
	return b.String()
}

func (q *queue) add(e *entry) *class {
	key := classKey(&e.Spec)
	c := q.classes[key]
	if c == nil {
		c = &class{key: key}
		q.classes[key] = c
	}
	e.class = c
	heap.Push(c, e)
	return c
}

// remove takes a job out wherever it stands. It is rare (a stop, a time-out),
// so a scan of its class will do.
func (q *queue) remove(e *entry) {
	c := e.class
	if c == nil {
		return
	}
	if i := slices.Index(c.jobs, e); i >= 0 {
		heap.Remove(c, i)
	}
	q.left(e)
}

// left cleans up after a job has left its class.
func (q *queue) left(e *entry) {
	if len(e.class.jobs) == 0 {
		delete(q.classes, e.class.key)
	}
	e.class = nil
}

// before is the order of the queue: priority, then age; ids are UUIDv7 and
// sort by submit time.
func before(a, b *entry) bool {
	return cmp.Or(cmp.Compare(b.Spec.Priority, a.Spec.Priority), slices.Compare(a.ID[:], b.ID[:])) < 0
}

// Len implements heap.Interface.
func (c *class) Len() int { return len(c.jobs) }

// Less implements heap.Interface.
func (c *class) Less(i, j int) bool { return before(c.jobs[i], c.jobs[j]) }

// Swap implements heap.Interface.
func (c *class) Swap(i, j int) { c.jobs[i], c.jobs[j] = c.jobs[j], c.jobs[i] }

// Push implements heap.Interface.
func (c *class) Push(x any) { c.jobs = append(c.jobs, x.(*entry)) }

// Pop implements heap.Interface.
func (c *class) Pop() any {
	last := c.jobs[len(c.jobs)-1]
	c.jobs[len(c.jobs)-1] = nil
	c.jobs = c.jobs[:len(c.jobs)-1]
	return last
}

// heads is a heap of classes by their first job.
type heads []*class

// Len implements heap.Interface.
func (h heads) Len() int { return len(h) }

// Less implements heap.Interface.
func (h heads) Less(i, j int) bool { return before(h[i].jobs[0], h[j].jobs[0]) }

// Swap implements heap.Interface.
func (h heads) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

// Push implements heap.Interface.
func (h *heads) Push(x any) { *h = append(*h, x.(*class)) }

// Pop implements heap.Interface.
func (h *heads) Pop() any {
	old := *h
	last := old[len(old)-1]
	*h = old[:len(old)-1]
	return last
}
