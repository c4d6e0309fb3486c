package worker

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/journal"
)

// peer is the scheduler's end of a session: it keeps the newest report of each
// attempt, as a scheduler does.
type peer struct {
	mu       sync.Mutex
	latest   map[job.Key]job.Report
	hellos   []Hello
	frames   []Up
	largest  int
	complete bool
	scripts  int
	runners  int
	down     chan Down
	over     chan error
	cancel   context.CancelFunc
	stall    chan struct{} // non-nil: up blocks until it is closed
	broken   error
}

func testWorkerID() job.WorkerID { return uuid.UUID{0: 9} }

func (b *bench) connect(term uint64, changes ...func(*peer)) *peer {
	b.t.Helper()
	<-b.ready
	if err := b.identity.set(testWorkerID()); err != nil {
		b.t.Fatal(err)
	}
	p := &peer{latest: map[job.Key]job.Report{}, down: make(chan Down), over: make(chan error, 1)}
	for _, c := range changes {
		c(p)
	}
	ctx, cancel := context.WithCancel(b.t.Context())
	p.cancel = cancel
	go func() {
		p.over <- b.Session(ctx, SessionHello{Term: term, WorkerID: testWorkerID()}, p.down, p.up)
		cancel()
	}()
	return p
}

func (p *peer) up(f Up) error {
	p.mu.Lock()
	stall := p.stall
	p.mu.Unlock()
	if stall != nil {
		<-stall
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.broken != nil {
		return p.broken
	}
	p.frames = append(p.frames, f)
	p.largest = max(p.largest, len(f.Reports))
	if f.Hello != nil {
		p.hellos = append(p.hellos, *f.Hello)
		p.complete = p.complete || f.Hello.Complete
	}
	if f.Scripts != nil {
		p.scripts++
	}
	if f.Runners != nil {
		p.runners++
	}
	for _, r := range f.Reports {
		if p.latest[r.Key].Sequence < r.Sequence {
			p.latest[r.Key] = r
		}
	}
	return nil
}

func (p *peer) state(n byte) job.State {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.latest[testKey(n)].State
}

func (p *peer) report(n byte) job.Report {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.latest[testKey(n)]
}

// forgotten lists what the worker has confirmed.
func (p *peer) forgotten() (keys []job.Key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.frames {
		keys = append(keys, p.frames[i].Forgotten...)
	}
	return keys
}

func (p *peer) close(t *testing.T) {
	t.Helper()
	p.cancel()
	if err := <-p.over; err != nil {
		t.Errorf("session ended with %v", err)
	}
}

func TestSessionCarriesAJobThroughItsLife(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		p := b.connect(1)
		p.down <- Down{Starts: []job.StartOrder{order(2, "run=5s"), order(1, "run=1s")}}
		time.Sleep(500 * time.Millisecond)
		if p.state(1) != job.Running || p.state(2) != job.Running {
			t.Errorf("states %s %s: fences of one frame may come in any order", p.state(1), p.state(2))
		}
		p.down <- Down{Stops: []job.StopOrder{stopOrder(2, time.Second)}}
		time.Sleep(time.Second)
		if p.state(1) != job.Succeeded || p.state(2) != job.Stopped {
			t.Errorf("states %s %s", p.state(1), p.state(2))
		}
		if h := p.hellos[0]; !h.Complete || h.BootID != "boot-1" || h.InstanceID != b.InstanceID() {
			t.Errorf("hello %+v", h)
		}
		if p.scripts != 1 || p.runners != 1 {
			t.Errorf("%d script and %d runner indexes", p.scripts, p.runners)
		}
		p.close(t)
		b.clean()
	})
}

// TestP11AnOrderOfALaterVersionIsRejected with the reason it came with, once and for
// good, and the others of its frame run.
func TestP11AnOrderOfALaterVersionIsRejected(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		strange := order(2, "run=1s")
		strange.Refusal = errs.E("start attempt", errs.Precondition, job.ReasonOldWorker, errors.New("output_policy 9 is new"))
		p := b.connect(1)
		p.down <- Down{Starts: []job.StartOrder{order(1, "run=1s"), strange, order(3, "run=1s")}}
		time.Sleep(2 * time.Second)
		if p.state(1) != job.Succeeded || p.state(3) != job.Succeeded {
			t.Errorf("states %s %s: the session goes on", p.state(1), p.state(3))
		}
		r := p.report(2)
		if r.State != job.Rejected || r.Reason != job.ReasonOldWorker || !strings.Contains(r.Message, "output_policy") {
			t.Errorf("%+v", r)
		}
		p.down <- Down{Starts: []job.StartOrder{order(2, "run=1s")}}
		time.Sleep(2 * time.Second)
		if p.state(2) != job.Rejected || b.w.starts[attemptID(testKey(2))] != 0 {
			t.Errorf("P2: refused, and then started: %s", p.state(2))
		}
		strange.Key = testKey(4)
		strange.Fence.Counter = 100
		if _, err := b.Start(t.Context(), strange); errs.ReasonOf(err) != job.ReasonOldWorker {
			t.Errorf("to a caller: %v", err)
		}
		p.close(t)
		b.clean()
	})
}

func TestWhatIsNotAcknowledgedIsSentAgain(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		p := b.connect(1)
		p.down <- Down{Starts: []job.StartOrder{order(1, "run=1s"), order(2, "run=1s"), order(3)}}
		time.Sleep(2 * time.Second)
		p.down <- Down{Acks: []job.Key{testKey(1), testKey(3), testKey(99)}}
		synctest.Wait()
		p.close(t)

		p = b.connect(1)
		synctest.Wait()
		if p.state(1) != job.None || p.state(2) != job.Succeeded || p.state(3) != job.Running {
			t.Errorf("states %s %s %s", p.state(1), p.state(2), p.state(3))
		}
		// A live attempt cannot be acknowledged or forgotten.
		p.down <- Down{Acks: []job.Key{testKey(2)}, Forgets: []job.Key{testKey(2), testKey(3), testKey(98)}}
		synctest.Wait()
		if got := p.forgotten(); !slices.Equal(got, []job.Key{testKey(2), testKey(98)}) {
			t.Errorf("confirmed are %v: one is live, one was forgotten before", got)
		}
		if _, err := b.Attempt(t.Context(), testKey(2)); errs.KindOf(err) != errs.NotFound {
			t.Errorf("forgotten attempt: %v", err)
		}
		if _, left := b.w.outputs[testKey(2)]; left {
			t.Error("its output is kept")
		}
		b.wait(3, job.Running)
		p.down <- Down{Starts: []job.StartOrder{order(2, "run=1s")}}
		synctest.Wait()
		if r := p.report(2); r.State == job.Running || b.w.starts[attemptID(testKey(2))] != 1 {
			t.Errorf("P2: a forgotten attempt was started again: %+v", r)
		}
		p.down <- Down{Stops: []job.StopOrder{stopOrder(3, 0)}}
		time.Sleep(time.Second)
		p.close(t)
		b.clean()
	})
}

// TestOutputIsToldWhoKnowsOfTheEnd: before the scheduler has acknowledged an end, no
// rule may take the bytes; another life of the worker tells it again.
func TestOutputIsToldWhoKnowsOfTheEnd(t *testing.T) {
	lives(t, func(t *testing.T, w *world, next func(...option) *bench) {
		told := func(n byte, acked, failed bool) {
			t.Helper()
			w.mu.Lock()
			defer w.mu.Unlock()
			if x := w.outputs[testKey(n)]; x.acked != acked || x.failed != failed {
				t.Errorf("attempt %d: acked %v, failed %v", n, x.acked, x.failed)
			}
		}
		b := next()
		p := b.connect(1)
		p.down <- Down{Starts: []job.StartOrder{order(1, "run=1s"), order(2, "run=1s", "code=3")}}
		time.Sleep(2 * time.Second)
		told(1, false, false)
		told(2, false, true)
		p.down <- Down{Acks: []job.Key{testKey(2)}}
		synctest.Wait()
		told(1, false, false)
		told(2, true, true)
		p.close(t)
		w.mu.Lock()
		w.outputs[testKey(2)].acked = false // memory, which does not outlive the worker
		w.mu.Unlock()
		b.crash()
		b = next()
		b.wait(2, job.Failed)
		synctest.Wait()
		told(1, false, false)
		told(2, true, true)
		b.clean()
		b.crash()
	})
}

func TestASlowSchedulerMissesNoLastState(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		stall := make(chan struct{})
		p := b.connect(1, func(p *peer) { p.stall = stall })
		p.down <- Down{Starts: []job.StartOrder{order(1, "run=1s"), order(2, "run=1s", "code=2")}}
		time.Sleep(time.Minute)
		close(stall)
		synctest.Wait()
		if p.state(1) != job.Succeeded || p.state(2) != job.Failed {
			t.Errorf("states %s %s", p.state(1), p.state(2))
		}
		p.mu.Lock()
		sent := 0
		for _, f := range p.frames {
			sent += len(f.Reports)
		}
		p.mu.Unlock()
		if sent > 4 {
			t.Errorf("%d reports queued up while it stalled", sent)
		}
		p.close(t)
	})
}

func TestManyReportsGoInBoundedFrames(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		p := b.connect(1)
		var f Down
		for i := range 1100 {
			o := order(1, "spawn=NOT_FOUND")
			o.Job = uuid.UUID{0: 2, 1: byte(i >> 8), 2: byte(i)}
			f.Starts = append(f.Starts, o)
		}
		p.down <- f
		time.Sleep(time.Second)
		p.close(t)
		p = b.connect(1)
		synctest.Wait()
		if len(p.latest) != 1100 || p.largest > reportsPerFrame || len(p.hellos) != 3 {
			t.Errorf("%d reports, %d in the largest frame, %d hellos", len(p.latest), p.largest, len(p.hellos))
		}
		for i, h := range p.hellos {
			if h.Complete != (i == 2) {
				t.Errorf("hello %d: complete %v", i, h.Complete)
			}
		}
		p.close(t)
	}, func(c *Config) { c.Overshoot = 2000 })
}

func TestANewSessionEndsTheOneBefore(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		first := b.connect(3)
		synctest.Wait()
		second := b.connect(3)
		if err := <-first.over; errs.ReasonOf(err) != "SESSION_REPLACED" {
			t.Errorf("first session ended with %v", err)
		}
		synctest.Wait()
		if !second.complete {
			t.Error("second session got no hello")
		}
		third := b.connect(4)
		<-second.over
		stale := b.connect(3)
		if err := <-stale.over; errs.ReasonOf(err) != job.ReasonFenced || errs.KindOf(err) != errs.Precondition {
			t.Errorf("P3: a session of a lower term ended with %v", err)
		}
		// After a restart the scheduler sends what was on its way again, with the
		// fence that it had given before.
		third.down <- Down{Starts: []job.StartOrder{order(1)}, Stops: []job.StopOrder{stopOrder(2, 0)}}
		time.Sleep(3 * youngLeast)
		if third.state(1) != job.Running || third.state(2) != job.Stopped {
			t.Errorf("states %s %s", third.state(1), third.state(2))
		}
		third.close(t)
	})
}

func TestASessionThatIsStuckHoldsUpNoOther(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		stuck := make(chan struct{})
		first := b.connect(3, func(p *peer) { p.stall = stuck })
		first.down <- Down{Starts: []job.StartOrder{order(1, "run=1s")}}
		time.Sleep(500 * time.Millisecond)
		second := b.connect(3)
		time.Sleep(time.Second)
		if second.state(1) != job.Succeeded {
			t.Errorf("state %s", second.state(1))
		}
		close(stuck)
		if err := <-first.over; errs.ReasonOf(err) != "SESSION_REPLACED" {
			t.Errorf("%v", err)
		}
		second.down <- Down{Starts: []job.StartOrder{order(2, "run=1s")}}
		time.Sleep(2 * time.Second)
		if second.state(2) != job.Succeeded {
			t.Errorf("state %s", second.state(2))
		}
		second.close(t)
	})
}

func TestSessionsForAnotherWorkerAreRefused(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		err := b.Session(t.Context(), SessionHello{Term: 1, WorkerID: uuid.UUID{0: 8}}, nil, nil)
		if errs.ReasonOf(err) != "WRONG_WORKER" {
			t.Errorf("%v", err)
		}
	})
}

func TestABrokenOrClosedStreamEndsTheSession(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		p := b.connect(1, func(p *peer) { p.broken = errors.New("connection reset") })
		if err := <-p.over; errs.KindOf(err) != errs.Unavailable {
			t.Errorf("broken stream: %v", err)
		}
		p = b.connect(1)
		close(p.down)
		if err := <-p.over; err != nil {
			t.Errorf("closed stream: %v", err)
		}
	})
}

func TestIndexesAreSentWhenTheyChange(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		p := b.connect(1)
		synctest.Wait()
		for range 3 {
			b.w.changed <- struct{}{}
			synctest.Wait()
		}
		if p.scripts != 4 || p.runners != 4 {
			t.Errorf("%d script and %d runner indexes", p.scripts, p.runners)
		}
		p.close(t)
		b.w.changed <- struct{}{}
		synctest.Wait()
		p = b.connect(1)
		synctest.Wait()
		if p.scripts != 1 {
			t.Errorf("a new session got %d indexes", p.scripts)
		}
		p.close(t)
	})
}

func TestOrdersOfASessionThatFindNoRoomAreRejectedForGood(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		p := b.connect(1)
		p.down <- Down{Starts: []job.StartOrder{order(1), order(2, "run=1s"), order(3, "run=1s")}}
		synctest.Wait()
		if r := p.report(3); r.State != job.Rejected || r.Reason != job.ReasonNoSlot {
			t.Errorf("third order: %+v", r)
		}
		if r, err := b.Attempt(t.Context(), testKey(2)); err != nil || r.State != job.Dispatched || r.Reason != job.ReasonNoSlot {
			t.Errorf("second order: %+v, %v", r, err)
		}
		if p.state(2) != job.None {
			t.Error("the scheduler was told of an attempt that is not on disk")
		}
		p.down <- Down{Stops: []job.StopOrder{stopOrder(1, 0)}}
		time.Sleep(5 * time.Second)
		p.down <- Down{Starts: []job.StartOrder{order(3, "run=1s")}}
		time.Sleep(5 * time.Second)
		if p.state(2) != job.Succeeded || p.state(3) != job.Rejected {
			t.Errorf("states %s %s", p.state(2), p.state(3))
		}
		p.close(t)
	}, func(c *Config) { c.Slots, c.Overshoot = 1, 1 })
}

func TestOrdersWithoutAKeyAreLeftOut(t *testing.T) {
	t.Parallel()
	f := Down{Starts: []job.StartOrder{{}, order(1)}, Stops: []job.StopOrder{{}}}
	if evs := f.events(1); len(evs) != 1 {
		t.Errorf("%d events", len(evs))
	}
}

// TestP3_SchedulerOfALowerTerm_IsToldTheLifeThatItDoesNotKnow: a term proves nothing to a
// scheduler, and one that was refused for it alone went on with workers that had never
// heard of the newer one.
func TestP3_SchedulerOfALowerTerm_IsToldTheLifeThatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	first, second := job.NewLife(1, nil), job.NewLife(2, nil)
	m := NewMachine(MachineConfig{BootID: "b"})
	m.Step(at(0), TermSeen{Term: 2, History: job.History{Lives: []job.Life{first, second}}})
	for _, e := range m.Step(at(0), TermSeen{Term: 1, History: job.History{Lives: []job.Life{first}}, Ticket: 1}) {
		var strange *job.StrangeLifeError
		if r, ok := e.(Reply); !ok || !errors.As(r.Err, &strange) || strange.Last != second || errs.ReasonOf(r.Err) != job.ReasonOldRecords {
			t.Errorf("it is told %+v", e)
		}
	}
	for _, e := range m.Step(at(0), TermSeen{Term: 1, Ticket: 1}) { // of a version without lives
		if r, ok := e.(Reply); !ok || errs.ReasonOf(r.Err) != job.ReasonFenced {
			t.Errorf("it is told %+v", e)
		}
	}
}

// TestP3_RecordsThatAreInForceAgain_HearOfAllResults: those that were acknowledged by the
// records that are lost, too, also when the worker is started again in between.
func TestP3_RecordsThatAreInForceAgain_HearOfAllResults(t *testing.T) {
	t.Parallel()
	k, first, second, third := testKey(1), job.NewLife(1, nil), job.NewLife(2, nil), job.NewLife(9, nil)
	m := NewMachine(MachineConfig{BootID: "b"})
	var records []journal.Record
	step := func(m *Machine, ev Event) (reports []Publish) {
		for _, e := range m.Step(at(0), ev) {
			switch e := e.(type) {
			case Record:
				records = append(records, e.Record)
			case Publish:
				reports = append(reports, e)
			}
		}
		return reports
	}
	for _, ev := range []Event{
		TermSeen{Term: 2, History: job.History{Lives: []job.Life{first, second}}},
		StartAsked{Order: order(1), Session: 2},
		Prepared{Key: k, Intent: journal.Intent{BootID: "b", Mark: "m"}},
		ProcessStarted{Key: k, Started: journal.Started{PID: 50}},
		exitOf(1, 0, ""),
		Settled{Key: k, Finished: &Finished{Key: k}},
		Finished{Key: k},
		Acked{Keys: []job.Key{k}},
	} {
		step(m, ev)
	}
	older := TermSeen{Term: 9, History: job.History{Lives: []job.Life{first, third}, Decided: 9}}
	if m.Counts().Unacked != 0 {
		t.Fatal("it is not acknowledged")
	}
	if got := step(m, older); len(got) != 1 || got[0].Acked || got[0].Report.State != job.Succeeded {
		t.Errorf("the scheduler hears %+v", got)
	}
	again := NewMachine(MachineConfig{BootID: "b"})
	again.Restore(at(0), journal.Replay(records))
	if n := again.Counts().Unacked; n != 1 {
		t.Errorf("%d are not acknowledged after a restart", n)
	}
	step(again, Acked{Keys: []job.Key{k}})
	if got := step(again, older); len(got) != 0 || again.Counts().Unacked != 0 {
		t.Errorf("in the next session it hears %+v again", got)
	}
}
