// Package sim runs the scheduler's and the workers' deciding cores against a
// world of fake disks, networks, clocks, plugins and processes, where everything
// that can go wrong does. A run is a function of its Plan: it can be repeated,
// and cut down to what makes it fail.
package sim

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"time"
)

// Times of a run.
const (
	faultyFor = 60 * time.Second  // submits and faults happen in here
	quietFor  = 240 * time.Second // then everything is healed and must converge
	lease     = 10 * time.Second
	heartbeat = 2 * time.Second
)

// Result is what a run came to.
type Result struct {
	Violation string         // "" when every promise was kept
	Trace     []string       // of the run, with Plan.Trace
	Ends      map[string]int // how often jobs ended in each state
	Happened  map[string]int // how often each fault really hit
}

// World is one run. One goroutine owns it.
type World struct {
	plan     Plan
	rng      *rand.Rand
	now      time.Duration
	sequence uint64
	events   events
	sched    *schedulerNode
	hosts    []*host
	check    *checker
	result   Result
}

// Run runs a plan.
func Run(p Plan) Result {
	w := &World{plan: p, rng: rand.New(rand.NewPCG(p.Seed, 0x5eed)), result: Result{Ends: map[string]int{}, Happened: map[string]int{}}}
	w.check = newChecker(w)
	w.sched = newSchedulerNode(w)
	for n := range p.Workers {
		w.hosts = append(w.hosts, newHost(w, n))
	}
	w.sched.start()
	for _, h := range w.hosts {
		h.startWorker()
		h.startPlugin()
	}
	for i := range p.Jobs {
		w.newClient(i)
	}
	for _, f := range p.Faults {
		w.at(f.At, func() { w.inflict(f) })
	}
	w.at(faultyFor, w.heal)
	w.run(faultyFor + quietFor)
	if w.result.Violation == "" {
		w.check.converged()
	}
	if w.result.Violation == "" {
		w.probe()
	}
	return w.result
}

// fail notes the first promise that was broken; the run ends with this event.
func (w *World) fail(format string, args ...any) {
	if w.result.Violation == "" {
		w.result.Violation = fmt.Sprintf(format, args...)
		w.log("VIOLATION %s", w.result.Violation)
	}
}

func (w *World) log(format string, args ...any) {
	if w.plan.Trace {
		w.result.Trace = append(w.result.Trace, fmt.Sprintf("%9.4fs ", w.now.Seconds())+fmt.Sprintf(format, args...))
	}
}

// event is something that is going to happen.
type event struct {
	at  time.Duration
	seq uint64
	do  func()
}

type events []event

func (e events) Len() int      { return len(e) }
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}
func (e *events) Push(x any) { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	old := *e
	last := old[len(old)-1]
	*e = old[:len(old)-1]
	return last
}

func (w *World) at(t time.Duration, do func()) {
	w.sequence++
	heap.Push(&w.events, event{max(t, w.now), w.sequence, do})
}

func (w *World) after(d time.Duration, do func()) { w.at(w.now+d, do) }

// soon happens within a few milliseconds; now and then it takes much longer.
func (w *World) soon(do func()) {
	d := time.Duration(w.rng.Int64N(int64(3 * time.Millisecond)))
	if w.chance(20) {
		d += time.Duration(w.rng.Int64N(int64(400 * time.Millisecond)))
	}
	w.after(d, do)
}

// between is a random duration.
func (w *World) between(from, to time.Duration) time.Duration {
	return from + time.Duration(w.rng.Int64N(int64(to-from)+1))
}

// chance is true once in n times.
func (w *World) chance(n int) bool { return w.rng.IntN(n) == 0 }

// run lets the world go on until t.
func (w *World) run(t time.Duration) {
	for len(w.events) > 0 && w.events[0].at <= t && w.result.Violation == "" {
		e := heap.Pop(&w.events).(event)
		w.now = e.at
		e.do()
	}
	w.now = t
}

// epoch is the wall clock at the beginning of a run.
func epoch() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) }
