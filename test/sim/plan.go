package sim

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/droverhq/drover/core/job"
)

// Plan is everything that comes from outside of the cluster in one run.
type Plan struct {
	Seed    uint64 // of delays and other small chances
	Workers int
	Slots   int // of each worker
	Jobs    []Job
	Faults  []Fault
	Trace   bool // keep a trace
}

// Job is one request of a client, and how its process will behave.
type Job struct {
	At       time.Duration // of the submit
	Twice    bool          // the client asks twice with one request id
	Retry    job.Retry
	Leased   bool // it asks to be stopped when its worker is cut off
	Timeout  time.Duration
	Grace    time.Duration
	Detach   bool
	StopAt   time.Duration // 0: never
	StopIn   time.Duration // grace of the stop
	Duration time.Duration // of the process
	Code     int32
	Children time.Duration // how much longer its children live
	Stubborn bool          // deaf to SIGTERM
}

// Kind is a kind of fault.
type Kind string

// The faults.
const (
	KillScheduler Kind = "kill scheduler"
	KillWorker    Kind = "kill worker"
	KillPlugin    Kind = "kill plugin"
	KillBoth      Kind = "kill worker and plugin"
	Reboot        Kind = "reboot host"
	CutUp         Kind = "cut worker -> scheduler"
	CutDown       Kind = "cut scheduler -> worker"
	CutBoth       Kind = "cut both ways"
	Reset         Kind = "reset connection"
	FreezeSched   Kind = "freeze scheduler"
	FreezeWorker  Kind = "freeze worker"
	ClockJump     Kind = "jump of the wall clock"
	Drain         Kind = "drain worker"
	Rollback      Kind = "put an old backup back"
	NoSession     Kind = "keep sessions away"
	Remove        Kind = "remove a worker that is away"
)

// Kinds lists all faults.
func Kinds() []Kind {
	return []Kind{
		KillScheduler, KillWorker, KillPlugin, KillBoth, Reboot, CutUp, CutDown, CutBoth, Reset,
		FreezeSched, FreezeWorker, ClockJump, Drain, Rollback, NoSession, Remove,
	}
}

// Fault is one thing that goes wrong.
type Fault struct {
	Kind  Kind
	At    time.Duration
	For   time.Duration // until it is mended
	Host  int
	Point Point // of a kill
}

// Point is where in its round a daemon is killed.
type Point uint8

// The points: at once, or in the next round before its records are durable,
// after that, or in the middle of what follows. A plugin is killed between its
// note and the fork, after the fork, or when it has seen an exit.
const (
	AtOnce Point = iota
	BeforeCommit
	AfterCommit
	AmidActs
)

// NewPlan draws a plan.
func NewPlan(seed uint64) Plan {
	r := rand.New(rand.NewPCG(seed, 0x91a2))
	p := Plan{Seed: seed, Workers: 1 + r.IntN(3), Slots: 1 + r.IntN(3)}
	within := func(d time.Duration) time.Duration { return time.Duration(r.Int64N(int64(d))) }
	outlives := false
	for range 2 + r.IntN(10) {
		j := Job{
			At: within(faultyFor), Twice: r.IntN(4) == 0, Duration: within(500 * time.Millisecond),
			Grace: time.Duration(r.IntN(3)) * time.Second, Stubborn: r.IntN(4) == 0, Detach: r.IntN(10) == 0,
		}
		if r.IntN(2) == 0 {
			j.Duration = within(20 * time.Second)
		}
		if r.IntN(3) == 0 {
			j.Code = int32(1 + r.IntN(100))
		}
		if r.IntN(3) == 0 {
			j.StopAt, j.StopIn = j.At+within(10*time.Second), time.Duration(r.IntN(9))*time.Second
			j.Stubborn = j.Stubborn || r.IntN(2) == 0
		}
		if r.IntN(4) == 0 || j.Detach {
			j.Children = within(4 * time.Second)
		}
		if r.IntN(6) == 0 {
			j.Timeout = time.Second + within(5*time.Second)
		}
		if r.IntN(3) == 0 {
			j.Retry = job.Retry{Max: uint32(1 + r.IntN(3)), OnLost: true, OnFailure: r.IntN(2) == 0, Backoff: within(2 * time.Second)}
		}
		if j.Leased = r.IntN(3) == 0; j.Leased && r.IntN(3) == 0 {
			j.Grace, j.Stubborn = 15*time.Second, true
		}
		if j.Leased && !outlives { // a partition; one will do, or there is no end
			outlives = true
			j.Duration, j.Code = 60*time.Second, 0
		}
		p.Jobs = append(p.Jobs, j)
	}
	kinds := Kinds()
	for range r.IntN(11) {
		f := Fault{
			Kind: kinds[r.IntN(len(kinds))], At: within(faultyFor), For: within(time.Second), Host: r.IntN(p.Workers),
			Point: Point(r.IntN(4)),
		}
		if r.IntN(3) == 0 {
			f.For = within(25 * time.Second)
		}
		if (f.Kind == CutBoth || f.Kind == CutUp) && r.IntN(2) == 0 {
			f.For = within(50 * time.Second)
		}
		if r.IntN(2) == 0 { // near a submit there is more to break
			j := &p.Jobs[r.IntN(len(p.Jobs))]
			if f.At = j.At + within(100*time.Millisecond); j.StopAt > 0 && r.IntN(2) == 0 {
				f.At = j.StopAt + within(time.Second)
			}
		}
		if f.Kind == Remove && r.IntN(2) == 0 { // with a job that runs until the worker is back
			j := &p.Jobs[r.IntN(len(p.Jobs))]
			j.Duration, j.Leased, j.Retry = 20*time.Second+within(20*time.Second), false, job.Retry{Max: 1, OnLost: true}
			f.At = j.At + within(3*time.Second)
		}
		p.Faults = append(p.Faults, f)
	}
	return p
}

// Shrink drops jobs and faults for as long as the plan still breaks a promise.
func Shrink(p Plan) Plan {
	for changed := true; changed; {
		changed = false
		for i := 0; i < len(p.Faults); i++ {
			q := p
			q.Faults = without(p.Faults, i)
			if Run(q).Violation != "" {
				p, changed = q, true
				i--
			}
		}
		for i := 0; i < len(p.Jobs) && len(p.Jobs) > 1; i++ {
			q := p
			q.Jobs = without(p.Jobs, i)
			if Run(q).Violation != "" {
				p, changed = q, true
				i--
			}
		}
	}
	return p
}

func without[T any](list []T, i int) []T {
	return append(append([]T(nil), list[:i]...), list[i+1:]...)
}

// String describes the plan for people.
func (p Plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d, %d workers with %d slots\n", p.Seed, p.Workers, p.Slots)
	for i, j := range p.Jobs {
		fmt.Fprintf(&b, "job %d: %+v\n", i, j)
	}
	for _, f := range p.Faults {
		fmt.Fprintf(&b, "fault: %+v\n", f)
	}
	return b.String()
}
