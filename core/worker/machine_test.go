package worker

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/journal"
)

// at is the instant d after the boot.
func at(d time.Duration) Instant {
	return Instant{Boot: d, Wall: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).Add(d)}
}

// kinds names effects in short, for tables.
func kinds(effects []Effect) []string {
	var out []string
	for _, e := range effects {
		switch e := e.(type) {
		case Record:
			out = append(out, []string{"", "fence!", "intent!", "started!", "stop!", "exited!", "done!", "acked!", "forgotten!"}[e.Kind])
		case Publish:
			out = append(out, e.Report.State.String())
		case Reply:
			out = append(out, "reply")
		case StartProcess:
			out = append(out, map[bool]string{false: "StartProcess", true: "VoidStart"}[e.Void])
		default:
			out = append(out, fmt.Sprintf("%T", e)[len("worker."):])
		}
	}
	return out
}

func exitOf(n byte, code int32, signal string) ProcessExited {
	return ProcessExited{Key: testKey(n), PID: 50, Exit: journal.Exit{Code: code, Signal: signal, Evidence: job.Wait}}
}

func TestStepsOfOneAttempt(t *testing.T) {
	t.Parallel()
	k := testKey(1)
	ask := StartAsked{Order: order(1), Ticket: 1}
	prepared := Prepared{Key: k, Intent: journal.Intent{BootID: "b", Mark: "m"}}
	running := ProcessStarted{Key: k, Started: journal.Started{PID: 50}}
	stop := StopAsked{Order: stopOrder(1, time.Second), Ticket: 2}
	stopped := GroupStopped{Key: k, Proof: job.StopProof{Method: "cgroup-kill", Termed: 1}}
	finished := Finished{Key: k}
	sick := ProcessExited{Key: k, Exit: journal.Exit{SpawnError: "RUNNER_UNAVAILABLE: it keeps dying"}}
	busy := ProcessExited{Key: k, Exit: journal.Exit{SpawnError: "SHUTTING_DOWN: later"}}
	empty := Settled{Key: k, Finished: &finished}
	earlier := order(1)
	earlier.BootID = "a"
	full := Blocked{Key: k, Why: job.ReasonQuota}
	for _, c := range []struct {
		name   string
		events []Event
		want   []string // of the last event
	}{
		{"order", []Event{ask}, []string{"DISPATCHED", "Prepare"}},
		{"intent before start (P2)", []Event{ask, prepared}, []string{"intent!", "DISPATCHED", "reply", "StartProcess"}},
		{"started", []Event{ask, prepared, running}, []string{"started!", "Underway", "RUNNING"}},
		{"started twice", []Event{ask, prepared, running, running}, nil},
		{"exit", []Event{ask, prepared, running, exitOf(1, 0, "")}, []string{"exited!", "Settle"}},
		{"exit twice", []Event{ask, prepared, running, exitOf(1, 0, ""), exitOf(1, 1, "")}, nil},
		{"exit before started", []Event{ask, prepared, exitOf(1, 0, "")}, []string{"exited!", "Settle"}},
		{
			"start and exit at once",
			[]Event{ask, prepared, ProcessExited{Key: k, PID: 9, Started: &journal.Started{PID: 9, StartTicks: 3}}},
			[]string{"exited!", "Settle"},
		},
		{"end", []Event{ask, prepared, running, exitOf(1, 0, ""), empty}, []string{"done!", "AckExit", "SUCCEEDED", "Cleanup"}},
		{"exit after the end", []Event{ask, prepared, running, exitOf(1, 0, ""), empty, exitOf(1, 0, "")}, []string{"AckExit"}},
		{"left over (P10)", []Event{ask, prepared, running, exitOf(1, 0, ""), Settled{Key: k, Left: true}}, []string{"StopGroup"}},
		{"left over is gone", []Event{ask, prepared, running, exitOf(1, 0, ""), Settled{Key: k, Left: true}, stopped}, []string{"Finish"}},
		{"stop (P9)", []Event{ask, prepared, running, stop}, []string{"stop!", "STOPPING", "StopGroup", "reply", "STOPPING"}},
		{"stop again", []Event{ask, prepared, running, stop, stop}, []string{"reply", "STOPPING"}},
		{
			"stop harder",
			[]Event{ask, prepared, running, stop, StopAsked{Order: stopOrder(1, 0), Ticket: 3}},
			[]string{"stop!", "StopGroup", "reply", "STOPPING"},
		},
		{"proof without exit", []Event{ask, prepared, running, stop, stopped}, nil},
		{"proof, then exit", []Event{ask, prepared, running, stop, stopped, exitOf(1, 0, "")}, []string{"exited!", "Finish"}},
		{"exit, then proof", []Event{ask, prepared, running, stop, exitOf(1, 0, ""), stopped}, []string{"Finish"}},
		{"stopped", []Event{ask, prepared, running, stop, exitOf(1, 0, ""), stopped, finished}, []string{"done!", "AckExit", "STOPPED", "Cleanup"}},
		{"stop while preparing", []Event{ask, stop}, []string{"stop!", "STOPPING", "reply", "STOPPING"}},
		{"stop while preparing, prepared", []Event{ask, stop, prepared}, []string{"done!", "STOPPED", "reply", "Cleanup"}},
		{"stop while launching", []Event{ask, prepared, stop}, []string{"stop!", "STOPPING", "reply", "STOPPING"}},
		{"stop while launching, started", []Event{ask, prepared, stop, running}, []string{"started!", "Underway", "STOPPING", "StopGroup"}},
		{"refused", []Event{ask, Prepared{Key: k, Refusal: errs.E("x", errs.Invalid, "POLICY", nil)}}, []string{"done!", "REJECTED", "reply", "Cleanup"}},
		{"no plugin", []Event{ask, prepared, LaunchRefused{Key: k, Err: errors.New("x")}}, []string{"Finish"}},
		{"a plugin that shuts down (P11)", []Event{ask, prepared, busy}, []string{"AckExit", "Relaunch"}},
		{"and the next plugin", []Event{ask, prepared, busy, prepared}, []string{"intent!", "DISPATCHED", "StartProcess"}},
		{"and no other plugin", []Event{ask, prepared, busy, LaunchRefused{Key: k, Err: errors.New("x")}, finished}, []string{"done!", "AckExit", "REJECTED", "Cleanup"}},
		{"between plugins, and a stop", []Event{ask, prepared, busy, stop, prepared}, []string{"Finish"}},
		{"a plugin that shuts down, and a stop", []Event{ask, prepared, stop, busy}, []string{"AckExit", "Finish"}},
		{"gone (P4)", []Event{ask, prepared, running, ProcessGone{Key: k}}, []string{"StopGroup"}},
		{"gone, and nothing is left", []Event{ask, prepared, running, ProcessGone{Key: k}, stopped, finished}, []string{"done!", "AckExit", "LOST", "Cleanup"}},
		{"gone while stopping", []Event{ask, prepared, running, stop, ProcessGone{Key: k}, stopped, finished}, []string{"done!", "AckExit", "STOPPED", "Cleanup"}},
		{"gone, and then its exit", []Event{ask, prepared, running, ProcessGone{Key: k}, stopped, exitOf(1, 3, ""), finished}, []string{"done!", "AckExit", "FAILED", "Cleanup"}},
		{"ack of a live one", []Event{ask, prepared, running, Acked{Keys: []job.Key{k}}}, nil},
		{"ack", []Event{ask, Prepared{Key: k, Refusal: errors.New("x")}, Acked{Keys: []job.Key{k}}}, []string{"acked!", "REJECTED"}},
		{
			"forget",
			[]Event{ask, Prepared{Key: k, Refusal: errors.New("x")}, Forgotten{Keys: []job.Key{k}}},
			[]string{"forgotten!", "Unpublish", "RemoveOutput", "Confirm"},
		},
		{"forget a live one", []Event{ask, prepared, running, Forgotten{Keys: []job.Key{k}}}, nil},
		{
			"forget while detached children live",
			[]Event{ask, prepared, running, exitOf(1, 0, ""), Settled{Key: k, Finished: &Finished{Key: k, Open: true}}, Forgotten{Keys: []job.Key{k}}},
			[]string{"done!", "Discard", "Confirm"},
		},
		{
			"forgotten at their end",
			[]Event{ask, prepared, running, exitOf(1, 0, ""), Settled{Key: k, Finished: &Finished{Key: k, Open: true}}, Forgotten{Keys: []job.Key{k}}, Emptied{Key: k}},
			[]string{"done!", "SUCCEEDED", "Cleanup", "forgotten!", "Unpublish", "RemoveOutput"},
		},
		{"no room (P8)", []Event{ask, prepared, running, exitOf(1, 0, ""), Settled{Key: k, Left: true}, stopped, full}, []string{"RUNNING"}},
		{"still no room", []Event{ask, prepared, running, exitOf(1, 0, ""), Settled{Key: k, Left: true}, stopped, full, full}, nil},
		{
			"no room, and a stop",
			[]Event{ask, prepared, running, exitOf(1, 0, ""), Settled{Key: k, Left: true}, stopped, full, stop},
			[]string{"stop!", "STOPPING", "Finish", "reply", "STOPPING"},
		},
		{
			"no room, a stop, and what is left is given up",
			[]Event{ask, prepared, running, exitOf(1, 0, ""), Settled{Key: k, Left: true}, stopped, full, stop, finished},
			[]string{"done!", "AckExit", "SUCCEEDED", "Cleanup"},
		},
		{"tombstone (P2)", []Event{stop}, []string{"fence!", "stop!", "STOPPED", "reply"}},
		{"start of a tombstone", []Event{stop, ask}, []string{"reply", "STOPPED"}},
		{"session of a new term", []Event{TermSeen{Term: 2, Ticket: 1}}, []string{"fence!", "reply"}},
		{"session of an old term (P3)", []Event{TermSeen{Term: 2}, TermSeen{Term: 1, Ticket: 1}}, []string{"reply"}},
		{"order left over from an old session (P3)", []Event{TermSeen{Term: 2}, StartAsked{Order: order(1), Session: 1}}, nil},
		{"order for an earlier boot (P4)", []Event{StartAsked{Order: earlier, Session: 1}}, nil},
		{"order for an earlier boot, from elsewhere", []Event{StartAsked{Order: earlier, Ticket: 1}}, []string{"reply"}},
		{"stop left over from an old session", []Event{TermSeen{Term: 2}, StopAsked{Order: stopOrder(1, 0), Session: 1}}, nil},
		{"resend in a new session", []Event{TermSeen{Term: 2}, StartAsked{Order: order(1), Session: 2}}, []string{"DISPATCHED", "Prepare"}},
		{"unknown to the plugin (P7)", []Event{ask, prepared, ProcessUnknown{Key: k}}, []string{"StartProcess"}},
		{"unknown to the plugin, and stopped", []Event{ask, prepared, stop, ProcessUnknown{Key: k}}, []string{"VoidStart"}},
		{"refused by the host", []Event{ask, prepared, LaunchRefused{Key: k, Err: errors.New("x"), Again: true}}, []string{"Relaunch"}},
		{"refused by the host, and stopped", []Event{ask, prepared, stop, LaunchRefused{Key: k, Err: errors.New("x"), Again: true}}, []string{"Finish"}},
		{
			"a runner that does not stay up", []Event{ask, prepared, sick, finished}, []string{"done!", "AckExit", "REJECTED", "Cleanup"},
		},
		{"unknown, yet started", []Event{ask, prepared, running, ProcessUnknown{Key: k}}, nil},
		{"news of nobody", []Event{running}, nil},
		{"exit of nobody", []Event{exitOf(1, 0, "")}, []string{"AckExit"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := NewMachine(MachineConfig{BootID: "b"})
			var got []string
			for i, ev := range c.events {
				got = kinds(m.Step(at(time.Duration(i+1)*time.Millisecond), ev))
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestAProcessThatEndsItselfAfterAStopIsStopped(t *testing.T) {
	t.Parallel()
	m := NewMachine(MachineConfig{})
	var last *job.Report
	for _, ev := range []Event{
		StartAsked{Order: order(1)},
		Prepared{Key: testKey(1)},
		ProcessStarted{Key: testKey(1), Started: journal.Started{PID: 9}},
		StopAsked{Order: stopOrder(1, time.Second)},
		exitOf(1, 0, ""),
		GroupStopped{Key: testKey(1), Proof: job.StopProof{Method: "cgroup-kill"}},
		Finished{Key: testKey(1)},
	} {
		for _, e := range m.Step(at(time.Second), ev) {
			if p, ok := e.(Publish); ok {
				last = p.Report
			}
		}
	}
	if last.State != job.Stopped || last.ExitCode == nil || *last.ExitCode != 0 || last.StopProof == nil {
		t.Errorf("%+v", last)
	}
}

func TestP6TheExitThatNeverComesLeavesNoCode(t *testing.T) {
	t.Parallel()
	m := NewMachine(MachineConfig{})
	for _, ev := range []Event{
		StartAsked{Order: order(1)},
		Prepared{Key: testKey(1)},
		ProcessStarted{Key: testKey(1), Started: journal.Started{PID: 9}},
		StopAsked{Order: stopOrder(1, time.Second)},
		GroupStopped{Key: testKey(1)},
	} {
		m.Step(at(time.Second), ev)
	}
	due, ok := m.Next()
	if !ok || due != time.Second+exitPatience {
		t.Fatalf("next deadline %s %v", due, ok)
	}
	if got := kinds(m.Step(at(due), Tick{})); !slices.Equal(got, []string{"Finish"}) {
		t.Fatalf("%v", got)
	}
	for _, e := range m.Step(at(due), Finished{Key: testKey(1)}) {
		if p, ok := e.(Publish); ok && (p.Report.State != job.Stopped || p.Report.ExitCode != nil || p.Report.Evidence != job.NoEvidence) {
			t.Errorf("%+v", p.Report)
		}
	}
	if _, ok := m.Next(); ok {
		t.Error("a deadline is left")
	}
}

func TestSameEventsGiveSameEffects(t *testing.T) {
	t.Parallel()
	run := func() []string {
		m := NewMachine(MachineConfig{Slots: 3})
		var all []string
		for n := range byte(9) {
			all = append(all, kinds(m.Step(at(1), StartAsked{Order: order(n + 1), Session: 1}))...)
		}
		for n := range byte(9) {
			for _, e := range m.Step(at(2), Prepared{Key: testKey(n + 1)}) {
				all = append(all, fmt.Sprintf("%T", e))
			}
		}
		for _, e := range m.Step(at(3), DrainAsked{On: true, StopAll: true}) {
			if s, ok := e.(Record); ok {
				all = append(all, s.Key.Job.String())
			}
		}
		return all
	}
	if diff := cmp.Diff(run(), run()); diff != "" {
		t.Error(diff)
	}
}

// model checks every effect of a machine against the promises, and plays the
// hands: it remembers what the machine asked for and answers in any order.
type model struct {
	m       *Machine
	now     time.Duration
	intents map[job.Key]bool
	stops   map[job.Key]bool
	exits   map[job.Key]bool // an exit with evidence was told
	gone    map[job.Key]bool // proved gone
	alive   map[job.Key]bool // a process exists
	made    map[job.Key]bool // a process existed
	proved  map[job.Key]bool // zero processes were proved
	reports map[job.Key]*job.Report
	todo    []Effect
	disk    []journal.Record
	exited  map[job.Key]ProcessExited // what the plugin would tell again
}

func newModel(slots int) *model {
	return &model{
		m: NewMachine(MachineConfig{BootID: "b", Slots: slots, Overshoot: 3}), now: time.Second,
		intents: map[job.Key]bool{}, stops: map[job.Key]bool{}, exits: map[job.Key]bool{},
		gone: map[job.Key]bool{}, alive: map[job.Key]bool{}, made: map[job.Key]bool{}, proved: map[job.Key]bool{}, exited: map[job.Key]ProcessExited{}, reports: map[job.Key]*job.Report{},
	}
}

func (x *model) step(t *rapid.T, ev Event) {
	for _, e := range slices.Clone(x.m.Step(at(x.now), ev)) {
		x.effect(t, e)
	}
	live, unacked := 0, 0
	for _, a := range x.m.attempts {
		if a.phase != phaseDone {
			live++
		} else if !a.acked {
			unacked++
		}
	}
	if c := x.m.Counts(); c.Live != live || c.Unacked != unacked {
		t.Fatalf("%+v, but %d are live and %d not acknowledged", c, live, unacked)
	}
	if x.m.used > x.m.slots || x.m.used < 0 {
		t.Fatalf("%d of %d slots in use", x.m.used, x.m.slots)
	}
}

// crash ends the machine and begins the next one from the records. With torn,
// the records of a last event are on the disk and its other effects are not.
func (x *model) crash(t *rapid.T, torn Event) {
	if torn != nil {
		for _, e := range x.m.Step(at(x.now), torn) {
			if r, ok := e.(Record); ok {
				x.disk = append(x.disk, r.Record)
				x.record(r.Record)
			}
		}
	}
	st := journal.Replay(x.disk)
	x.m = NewMachine(MachineConfig{BootID: "b", Slots: x.m.slots, Overshoot: 3})
	x.todo = nil
	for _, e := range x.m.Restore(at(x.now), st) {
		x.effect(t, e)
	}
	for _, h := range Reopen(st, "b", attemptID) {
		if !h.Alive {
			continue
		}
		switch {
		case !x.made[h.Key] && x.exited[h.Key].Key == (job.Key{}):
			x.step(t, ProcessUnknown{Key: h.Key})
		case x.exited[h.Key].Key == h.Key:
			x.step(t, x.exited[h.Key])
		case x.gone[h.Key]:
			x.step(t, ProcessGone{Key: h.Key})
		default:
			x.step(t, ProcessStarted{Key: h.Key, Started: journal.Started{PID: 7}})
		}
	}
}

func (x *model) record(r journal.Record) {
	switch r.Kind {
	case journal.KindIntent:
		x.intents[r.Key] = true
	case journal.KindStop:
		x.stops[r.Key] = true
	}
}

func (x *model) published(t *rapid.T, r *job.Report) {
	k := r.Key
	if old := x.reports[k]; old != nil && old != r {
		repeated := r.Sequence == old.Sequence && cmp.Equal(*r, *old)
		if r.Sequence <= old.Sequence && !repeated {
			t.Fatalf("sequence of %v went from %d to %d", k, old.Sequence, r.Sequence)
		}
		// A crash may swallow the report of STOPPING between two others.
		over := old.State.CanBecome(job.Stopping) && job.Stopping.CanBecome(r.State)
		if old.State != r.State && !old.State.CanBecome(r.State) && !over {
			t.Fatalf("%v went from %s to %s", k, old.State, r.State)
		}
	}
	x.reports[k] = r
	coded := r.ExitCode != nil || r.Signal != ""
	switch {
	case coded && (!x.exits[k] || r.Evidence == job.NoEvidence):
		t.Fatalf("P6: %v has a result that nobody observed: %+v", k, r)
	case r.State == job.Succeeded && !x.exits[k]:
		t.Fatalf("P6: %v succeeded unseen", k)
	case r.State == job.Stopped && (!x.stops[k] || x.alive[k]):
		t.Fatalf("P9: %v is STOPPED, stop recorded %v, alive %v", k, x.stops[k], x.alive[k])
	case r.State == job.Lost && (x.alive[k] || !x.gone[k] && !x.proved[k]):
		t.Fatalf("P4: %v is LOST without proof", k)
	case r.State == job.Rejected && x.alive[k]:
		t.Fatalf("%v is REJECTED and runs", k)
	}
}

// act answers one of the things that the machine asked for.
func (x *model) act(t *rapid.T) {
	if len(x.todo) == 0 {
		return
	}
	i := rapid.IntRange(0, len(x.todo)-1).Draw(t, "which")
	e := x.todo[i]
	x.todo = slices.Delete(x.todo, i, i+1)
	switch e := e.(type) {
	case Prepare:
		if rapid.Bool().Draw(t, "refuse") {
			x.step(t, Prepared{Key: e.Key, Refusal: errs.E("x", errs.Invalid, job.ReasonPolicy, nil)})
			return
		}
		x.step(t, Prepared{Key: e.Key, Intent: journal.Intent{BootID: "b"}})
	case StartProcess:
		if e.Void {
			x.exited[e.Key] = ProcessExited{Key: e.Key, Exit: journal.Exit{SpawnError: "BAD_REQUEST: void"}}
			x.step(t, x.exited[e.Key])
			return
		}
		x.launch(t, e.Key)
	case Relaunch:
		if rapid.Bool().Draw(t, "found") {
			x.step(t, Prepared{Key: e.Key, Intent: journal.Intent{BootID: "b"}})
			return
		}
		x.step(t, LaunchRefused{Key: e.Key, Err: errors.New("no plugin")})
	case Settle:
		if x.alive[e.Key] {
			x.step(t, Settled{Key: e.Key, Left: true})
			return
		}
		x.step(t, Settled{Key: e.Key, Finished: &Finished{Key: e.Key}})
	case StopGroup:
		if rapid.IntRange(0, 9).Draw(t, "withstands") == 0 {
			x.step(t, GroupStopped{Key: e.Key, Err: errs.E("stop", errs.Precondition, reasonUnkillable, nil)})
			return
		}
		x.alive[e.Key], x.proved[e.Key] = false, true
		x.step(t, GroupStopped{Key: e.Key, Proof: job.StopProof{Method: "x", Killed: 1}})
	case Finish:
		x.step(t, Finished{Key: e.Key})
	case ProbeIdle:
		x.step(t, Quiet{Key: e.Key, For: time.Duration(rapid.IntRange(0, 20).Draw(t, "quiet")) * time.Second})
	}
}

func (x *model) effect(t *rapid.T, e Effect) {
	switch e := e.(type) {
	case Record:
		x.disk = append(x.disk, e.Record)
		x.record(e.Record)
	case StartProcess:
		if x.made[e.Key] {
			t.Fatalf("P2: %v is started twice", e.Key)
		}
		if !x.intents[e.Key] {
			t.Fatalf("P2: %v is started before its intent", e.Key)
		}
		x.todo = append(x.todo, e)
	case Publish:
		x.published(t, e.Report)
	case Prepare, Relaunch, Settle, StopGroup, Finish, ProbeIdle:
		x.todo = append(x.todo, e)
	}
}

func (x *model) launch(t *rapid.T, k job.Key) {
	switch rapid.IntRange(0, 4).Draw(t, "launch") {
	case 0:
		x.step(t, LaunchRefused{Key: k, Err: errors.New("no plugin"), Again: rapid.Bool().Draw(t, "again")})
	case 1:
		x.exited[k] = ProcessExited{Key: k, Exit: journal.Exit{SpawnError: "NOT_FOUND: x"}}
		x.step(t, x.exited[k])
	default:
		x.alive[k], x.made[k] = true, true
		x.step(t, ProcessStarted{Key: k, Started: journal.Started{PID: 7}})
	}
}

func TestMachineKeepsItsPromises(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		x := newModel(rapid.IntRange(1, 3).Draw(t, "slots"))
		key := func() job.Key { return testKey(rapid.ByteRange(1, 5).Draw(t, "key")) }
		counter := uint64(0)
		t.Repeat(map[string]func(*rapid.T){
			"start": func(t *rapid.T) {
				counter++
				o := order(key().Job[15])
				o.Fence.Counter = counter
				o.Spec.Timeout = time.Duration(rapid.IntRange(0, 3).Draw(t, "timeout")) * 10 * time.Second
				o.Spec.IdleTimeout = time.Duration(rapid.IntRange(0, 1).Draw(t, "idle")) * 5 * time.Second
				x.step(t, StartAsked{Order: o, Session: rapid.Uint64Range(0, 1).Draw(t, "session"), Ticket: 1})
			},
			"stop": func(t *rapid.T) {
				o := stopOrder(key().Job[15], time.Duration(rapid.IntRange(0, 20).Draw(t, "grace"))*time.Second)
				x.step(t, StopAsked{Order: o, Wait: true, Ticket: 2})
			},
			"act":  x.act,
			"act2": x.act,
			"exit": func(t *rapid.T) {
				k := key()
				if !x.made[k] {
					return
				}
				// Children may stay.
				x.alive[k] = x.alive[k] && rapid.Bool().Draw(t, "children")
				if !x.exits[k] {
					x.exits[k] = true
					x.exited[k] = exitOf(k.Job[15], int32(rapid.IntRange(0, 2).Draw(t, "code")), "")
				}
				if rapid.IntRange(0, 3).Draw(t, "torn") == 0 {
					x.crash(t, x.exited[k])
					return
				}
				x.step(t, x.exited[k])
			},
			"gone": func(t *rapid.T) {
				k := key()
				if x.made[k] {
					x.gone[k] = true
					x.alive[k] = false
					x.step(t, ProcessGone{Key: k})
				}
			},
			"time": func(t *rapid.T) {
				x.now += time.Duration(rapid.IntRange(1, 15).Draw(t, "seconds")) * time.Second
				x.step(t, Tick{})
				if due, ok := x.m.Next(); ok && due <= x.now {
					t.Fatalf("a deadline at %s is left at %s", due, x.now)
				}
			},
			"crash": func(t *rapid.T) { x.crash(t, nil) },
			"crash in a stop": func(t *rapid.T) {
				x.crash(t, StopAsked{Order: stopOrder(key().Job[15], time.Second)})
			},
			"crash in a launch": func(t *rapid.T) {
				for i, e := range x.todo {
					if p, ok := e.(Prepare); ok {
						x.todo = slices.Delete(x.todo, i, i+1)
						x.crash(t, Prepared{Key: p.Key, Intent: journal.Intent{BootID: "b"}})
						return
					}
				}
			},
			"over": func(t *rapid.T) { x.step(t, OutputExceeded{Key: key()}) },
			"ack":  func(t *rapid.T) { x.step(t, Acked{Keys: []job.Key{key()}}) },
			"drain": func(t *rapid.T) {
				x.step(t, DrainAsked{On: rapid.Bool().Draw(t, "on"), StopAll: rapid.IntRange(0, 5).Draw(t, "all") == 0})
			},
		})
		x.end(t)
	})
}

// end plays until nothing is left to do: every attempt must come to an end.
func (x *model) end(t *rapid.T) {
	x.step(t, DrainAsked{On: true, Close: true, StopAll: true})
	for range 10_000 {
		if x.m.Counts().Live == 0 {
			return
		}
		x.act(t)
		x.now += 15 * time.Second
		x.step(t, Tick{})
	}
	t.Fatalf("attempts never end: %+v", x.m.Counts())
}

func TestARunningAttemptIsSmall(t *testing.T) {
	const n = 1000
	m := NewMachine(MachineConfig{Slots: n})
	var orders []job.StartOrder
	for i := range n {
		o := order(1)
		o.Job[1], o.Job[2] = byte(i>>8), byte(i)
		o.Spec.Env = map[string]string{"A": string(make([]byte, 4096))}
		orders = append(orders, o)
	}
	bytes := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			m = NewMachine(MachineConfig{Slots: n})
			for _, o := range orders {
				m.Step(at(1), StartAsked{Order: o, Session: 1})
				m.Step(at(2), Prepared{Key: o.Key})
				m.Step(at(3), ProcessStarted{Key: o.Key, Started: journal.Started{PID: 1}})
			}
		}
	})
	for _, a := range m.attempts {
		if a.spec != nil {
			t.Fatal("a running attempt keeps its whole request")
		}
	}
	t.Logf("%d bytes and %s for each of %d attempts up to RUNNING", bytes.AllocedBytesPerOp()/n, time.Duration(bytes.NsPerOp()/n), n)
	if per := bytes.AllocedBytesPerOp() / n; per > 5<<10 {
		t.Errorf("%d bytes per attempt", per)
	}
}

// TestAStopBeforeTheExitStaysBeforeIt: what came first is told by the order of
// the records, also to a worker that starts between the exit and the report.
func TestAStopBeforeTheExitStaysBeforeIt(t *testing.T) {
	t.Parallel()
	k := testKey(1)
	stop := journal.Record{Kind: journal.KindStop, Key: k, Stop: &journal.Stop{Reason: job.ReasonTimeout}}
	exit := journal.Record{Kind: journal.KindExited, Key: k, Exit: &journal.Exit{Signal: "SIGKILL", Evidence: job.Wait}}
	for name, c := range map[string]struct {
		records []journal.Record
		want    string
	}{
		"stop, exit": {[]journal.Record{stop, exit}, job.ReasonTimeout},
		"exit, stop": {[]journal.Record{exit, stop}, job.ReasonSignal},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := NewMachine(MachineConfig{BootID: "b"})
			m.Restore(at(0), journal.Replay(append([]journal.Record{
				{Kind: journal.KindIntent, Key: k, Intent: &journal.Intent{BootID: "b"}},
				{Kind: journal.KindStarted, Key: k, Started: &journal.Started{PID: 50}},
			}, c.records...)))
			m.Step(at(time.Second), GroupStopped{Key: k, Proof: job.StopProof{Method: "cgroup-kill"}})
			m.Step(at(time.Second), Finished{Key: k})
			if r := m.attempts[k].report; r.State != job.Failed || r.Reason != c.want {
				t.Errorf("%s (%s), want %s", r.State, r.Reason, c.want)
			}
		})
	}
}
