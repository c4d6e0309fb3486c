package worker

import (
	"slices"
	"testing"
	"time"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/journal"
)

// leasedOrder is one for a job that stops when its worker is cut off.
func leasedOrder(n byte, lapses uint64) job.StartOrder {
	o := order(n)
	o.Spec.OnPartition, o.Lapses = job.StopItself, lapses
	return o
}

// timed is an event and when it comes.
type timed struct {
	at time.Duration
	ev Event
}

// TestP4AWorkerWithoutALeaseStops: the lease counts from when it was asked for,
// on the worker's own clock, and only what asked for it is stopped.
func TestP4AWorkerWithoutALeaseStops(t *testing.T) {
	t.Parallel()
	const second = time.Second
	k := testKey(1)
	renewed := func(asked time.Duration) Renewed { return Renewed{Asked: asked, Lease: 10 * second, Term: 1} }
	lease := timed{0, renewed(0)}
	ask := timed{second, StartAsked{Order: leasedOrder(1, 0), Session: 1}}
	prepared := timed{second, Prepared{Key: k, Intent: journal.Intent{BootID: "b", Mark: "m"}}}
	running := timed{second, ProcessStarted{Key: k, Started: journal.Started{PID: 50}}}
	tick := func(at time.Duration) timed { return timed{at, Tick{}} }
	stopped := []string{"fence!", "stop!", "STOPPING", "StopGroup"}
	plain := timed{second, StartAsked{Order: order(1), Session: 1}}
	late := timed{12 * second, Renewed{Asked: 9 * second, Lease: 10 * second, Term: 1}}
	for _, c := range []struct {
		name   string
		events []timed
		want   []string // of the last event
	}{
		{"an order under a lease is taken, and the lease kept", []timed{lease, ask, prepared}, []string{"fence!", "intent!", "DISPATCHED", "StartProcess"}},
		{"a moment before its end", []timed{lease, ask, prepared, running, tick(10*second - 1)}, nil},
		{"at its end", []timed{lease, ask, prepared, running, tick(10 * second)}, stopped},
		{"once only", []timed{lease, ask, prepared, running, tick(10 * second), tick(11 * second)}, nil},
		{"what did not ask for it runs on", []timed{lease, plain, prepared, running, tick(10 * second)}, []string{"fence!"}},
		{"a renewed lease", []timed{lease, ask, prepared, running, {9 * second, renewed(8 * second)}, tick(17 * second)}, nil},
		{"a renewed lease is kept, too", []timed{lease, ask, prepared, running, {9 * second, renewed(8 * second)}}, []string{"fence!"}},
		{"its end", []timed{lease, ask, prepared, running, {9 * second, renewed(8 * second)}, tick(18 * second)}, stopped},
		{"an answer that comes late still counts", []timed{lease, ask, prepared, running, late}, []string{"fence!"}},
		{"an answer that comes too late", []timed{lease, ask, prepared, running, {12 * second, renewed(second)}}, stopped},
		{"an answer to what was asked after its end", []timed{lease, ask, prepared, running, {12 * second, renewed(11 * second)}}, stopped},
		{"an answer from before the end", []timed{lease, ask, prepared, running, tick(10 * second), late}, nil},
		{
			"a word of an older scheduler",
			[]timed{lease, ask, prepared, running, {2 * second, TermSeen{Term: 2}}, {3 * second, renewed(3 * second)}, tick(10 * second)},
			stopped,
		},
		{"while it waits for its preparation", []timed{lease, ask, tick(10 * second)}, []string{"fence!", "stop!", "STOPPING"}},
		{"and is prepared then", []timed{lease, ask, tick(10 * second), {10 * second, prepared.ev}}, []string{"done!", "STOPPED", "Cleanup"}},
		{"while it is launched", []timed{lease, ask, prepared, tick(10 * second)}, []string{"fence!", "stop!", "STOPPING"}},
		{"and is started then", []timed{lease, ask, prepared, tick(10 * second), {11 * second, running.ev}}, []string{"started!", "Underway", "STOPPING", "StopGroup"}},
		{"prepared after a lease that nobody saw end", []timed{lease, ask, {12 * second, prepared.ev}}, []string{"fence!", "stop!", "STOPPING", "done!", "STOPPED", "Cleanup"}},
		{"an order without a lease", []timed{ask}, []string{"done!", "REJECTED", "Cleanup"}},
		{"an order of after the end", []timed{lease, {10 * second, ask.ev}}, []string{"fence!", "done!", "REJECTED", "Cleanup"}},
		{
			"an order that was on its way over a lapse",
			[]timed{lease, tick(10 * second), {11 * second, Renewed{Asked: 11 * second, Lease: 10 * second, Term: 1, Lapses: 1}}, {12 * second, ask.ev}},
			[]string{"done!", "REJECTED", "Cleanup"},
		},
		{
			"an order of the next lease",
			[]timed{
				lease, tick(10 * second),
				{11 * second, Renewed{Asked: 11 * second, Lease: 10 * second, Term: 1, Lapses: 1}},
				{12 * second, StartAsked{Order: leasedOrder(1, 1), Session: 1}},
			},
			[]string{"DISPATCHED", "Prepare"},
		},
		{"an order of a unary call is refused with an error", []timed{{0, StartAsked{Order: leasedOrder(1, 0), Ticket: 7}}}, []string{"reply"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := NewMachine(MachineConfig{BootID: "b"})
			var got []string
			for _, e := range c.events {
				got = kinds(m.Step(at(e.at), e.ev))
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

// TestP4TheGraceCountsFromTheEndOfTheLease: the scheduler waits for lease and
// grace, however late the worker comes to it; so a worker that was frozen, or
// restarted meanwhile, has the less left.
func TestP4TheGraceCountsFromTheEndOfTheLease(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		wakes time.Duration // the lease ends at 10 s
		grace time.Duration
	}{
		{"in time", 10 * time.Second, 10 * time.Second},
		{"late", 14 * time.Second, 6 * time.Second},
		{"much too late", 60 * time.Second, 0},
	} {
		for _, restart := range []bool{false, true} {
			name := c.name
			if restart {
				name += ", in the next life"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				m := NewMachine(MachineConfig{BootID: "b"})
				var disk []journal.Record
				step := func(d time.Duration, ev Event) []Effect {
					out := slices.Clone(m.Step(at(d), ev))
					for _, e := range out {
						if r, ok := e.(Record); ok {
							disk = append(disk, r.Record)
						}
					}
					return out
				}
				o := leasedOrder(1, 0)
				step(0, Renewed{Lease: 10 * time.Second, Term: 1})
				step(0, StartAsked{Order: o, Session: 1})
				step(0, Prepared{Key: o.Key, Intent: journal.Intent{BootID: "b", Mark: "m", Spec: o.Spec}})
				step(time.Second, ProcessStarted{Key: o.Key, Started: journal.Started{PID: 50}})
				var effects []Effect
				if restart {
					m = NewMachine(MachineConfig{BootID: "b"})
					effects = m.Restore(at(c.wakes), journal.Replay(disk))
				} else {
					effects = step(c.wakes, Tick{})
				}
				var got *StopGroup
				for _, e := range effects {
					if s, ok := e.(StopGroup); ok {
						got = &s
					}
				}
				if got == nil || got.Grace != c.grace {
					t.Errorf("stopped with %+v, want a grace of %v", got, c.grace)
				}
				if m.Lapses() != 1 {
					t.Errorf("%d lapses, want 1", m.Lapses())
				}
			})
		}
	}
}

// TestP7ARestartKeepsTheLease: a worker that is killed costs no job, also none
// that is bound to the lease.
func TestP7ARestartKeepsTheLease(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		lease  *journal.Lease
		boot   string
		lapses uint64
		taken  bool // an order of these lapses is taken
	}{
		{"none was kept", nil, "b", 1, false},
		{"it goes on", &journal.Lease{BootID: "b", Until: 10 * time.Second, Lapses: 3}, "b", 3, true},
		{"it has ended meanwhile", &journal.Lease{BootID: "b", Until: time.Second, Lapses: 3}, "b", 4, false},
		{"it had ended before", &journal.Lease{BootID: "b", Until: time.Second, Over: true, Lapses: 3}, "b", 4, false},
		{"it is of another boot", &journal.Lease{BootID: "a", Until: 10 * time.Second, Lapses: 3}, "b", 4, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := NewMachine(MachineConfig{BootID: c.boot})
			m.Restore(at(5*time.Second), &journal.State{Epoch: 1, Lease: c.lease})
			if m.Lapses() != c.lapses {
				t.Errorf("%d lapses, want %d", m.Lapses(), c.lapses)
			}
			effects := kinds(m.Step(at(5*time.Second), StartAsked{Order: leasedOrder(1, c.lapses), Session: 1}))
			if taken := slices.Contains(effects, "Prepare"); taken != c.taken {
				t.Errorf("an order gives %v", effects)
			}
		})
	}
}

// TestP4_RestartForgetsTheLease_AnEarlierOrderIsRefused: a lease is on disk only while a
// job needs it. The order may have been given up since, and a new lease gives it no right.
func TestP4_RestartForgetsTheLease_AnEarlierOrderIsRefused(t *testing.T) {
	t.Parallel()
	m := NewMachine(MachineConfig{BootID: "b"})
	var disk []journal.Record
	for _, e := range append(m.Restore(at(0), journal.Replay(nil)), m.Step(at(0), Renewed{Lease: 10 * time.Second, Term: 1})...) {
		if r, ok := e.(Record); ok {
			disk = append(disk, r.Record)
		}
	}
	earlier := m.Lapses()
	m = NewMachine(MachineConfig{BootID: "b"})
	m.Restore(at(time.Second), journal.Replay(disk))
	m.Step(at(time.Minute), Renewed{Asked: at(time.Minute).Boot, Lease: 10 * time.Second, Term: 1, Lapses: m.Lapses()})
	if effects := kinds(m.Step(at(time.Minute), StartAsked{Order: leasedOrder(1, earlier), Session: 1})); slices.Contains(effects, "Prepare") {
		t.Errorf("the order of before gives %v", effects)
	}
	if effects := kinds(m.Step(at(time.Minute), StartAsked{Order: leasedOrder(2, m.Lapses()), Session: 1})); !slices.Contains(effects, "Prepare") {
		t.Errorf("a new order gives %v", effects)
	}
}

// TestP4APartitionIsToldTruthfully: what the worker reports afterwards.
func TestP4APartitionIsToldTruthfully(t *testing.T) {
	t.Parallel()
	k := testKey(1)
	proof := GroupStopped{Key: k, Proof: job.StopProof{Method: "cgroup-kill", Termed: 1}}
	for _, c := range []struct {
		name   string
		events []Event // after the start, before the end of the lease
		state  job.State
		reason string
	}{
		{"stopped by itself", nil, job.Stopped, job.ReasonPartition},
		{"ended before", []Event{exitOf(1, 3, "")}, job.Failed, job.ReasonExitCode},
		{"stopped by its user before", []Event{StopAsked{Order: stopOrder(1, time.Hour), Session: 1}}, job.Stopped, job.ReasonUser},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := NewMachine(MachineConfig{BootID: "b"})
			var last *job.Report
			step := func(d time.Duration, ev Event) {
				for _, e := range m.Step(at(d), ev) {
					if p, ok := e.(Publish); ok {
						last = p.Report
					}
				}
			}
			step(0, Renewed{Lease: 10 * time.Second, Term: 1})
			step(0, StartAsked{Order: leasedOrder(1, 0), Session: 1})
			step(0, Prepared{Key: k, Intent: journal.Intent{BootID: "b", Mark: "m"}})
			step(0, ProcessStarted{Key: k, Started: journal.Started{PID: 50}})
			for _, ev := range c.events {
				step(time.Second, ev)
			}
			for _, ev := range []Event{Tick{}, exitOf(1, 0, "SIGTERM"), proof, Finished{Key: k}} {
				step(10*time.Second, ev)
			}
			if last.State != c.state || last.Reason != c.reason {
				t.Errorf("reported as %v (%s), want %v (%s)", last.State, last.Reason, c.state, c.reason)
			}
			if c.reason == job.ReasonPartition && last.Message == "" {
				t.Error("it does not say in words what happened")
			}
		})
	}
}
