// Package scheduler accepts jobs durably, places them on workers, forwards
// stops, and records what became of them. Machine decides, the loop of
// Scheduler commits and acts, core/rpc speaks.
package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
	"github.com/droverhq/drover/core/store"
	"github.com/droverhq/drover/plugins/failpoint"
)

// Bounds of the loop's inbox (P16): submits are refused before heartbeats and
// stops are. What workers tell on their sessions waits for room instead; it has an
// inbox of its own, or thousands of workers that all tell something keep that of
// heartbeats full, and are called offline.
const (
	inboxUrgent = 4096
	inboxFrames = 4096
	inboxNormal = 4096
	maxRound    = 1024 // events per commit, each of several submits counted
	eventBytes  = 8 << 10
	maxPending  = 64 << 20 // bytes of submits that wait for their commit
	maxLists    = 32       // lists of jobs that are read or wait: each may look at many records
)

// Defaults of Config.
const (
	DefaultLease     = 10 * time.Second
	DefaultHeartbeat = 2 * time.Second
)

// Config configures a Scheduler.
type Config struct {
	Store     store.Store
	Connector Connector
	Lease     time.Duration // 0: DefaultLease
	Heartbeat time.Duration // 0: DefaultHeartbeat
	Term      uint64        // that was raised for this scheduler; 0: New raises one
	Retention Retention     // of records; the zero value keeps all
	Budget    Budget        // of what live jobs hold; the zero value is the defaults
	Room      func() error  // an error: nothing new is accepted; nil: always room
	Trouble   func() error  // an error while the store does not answer; may be nil
	Log       *slog.Logger
	Now       func() time.Time // nil: time.Now, whose readings are monotonic (P14)
}

// Scheduler is the running scheduler. Its methods may be called concurrently
// while Run runs.
type Scheduler struct {
	config  Config
	records records
	machine *Machine // owned by Run once it runs
	hub     *hub
	term    uint64
	urgent  chan Event
	frames  chan Event // of workers
	normal  chan Event
	bulks   chan struct{} // one for each StartJobs or removal that waits
	lists   chan struct{} // one for each list that is being read, or waits
	listing chan struct{} // one for each that is being read
	links   *links
	retain  *retainer
	awaited awaited
	later   []Event // what the last round has led to; owned by Run

	mu      sync.Mutex // guards the fields below
	waiting map[uint64]chan Result
	next    uint64
	pending int64 // bytes of submits that wait for their commit
}

// New raises the term, unless that is done, and loads what the store knows (P3,
// P15).
func New(ctx context.Context, c Config) (*Scheduler, error) {
	if c.Lease == 0 {
		c.Lease = DefaultLease
	}
	if c.Heartbeat == 0 {
		c.Heartbeat = DefaultHeartbeat
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	const op = "start the scheduler"
	term := c.Term
	if term == 0 {
		var err error
		if term, err = store.RaiseTerm(ctx, c.Store); err != nil {
			return nil, storeError(op, err)
		}
	}
	failpoint.At(failpoint.SchedulerTermRaised)
	c.Store = store.Fence(c.Store, term) // P3: nothing is written after a newer life began
	s := &Scheduler{
		config: c, records: records{c.Store}, hub: newHub(), term: term,
		urgent: make(chan Event, inboxUrgent), frames: make(chan Event, inboxFrames), normal: make(chan Event, inboxNormal),
		bulks: make(chan struct{}, bulksAtOnce), lists: make(chan struct{}, maxLists), listing: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)),
		waiting: map[uint64]chan Result{}, awaited: awaited{of: map[string]int{}},
	}
	s.machine = NewMachine(s.term, c.Lease)
	s.machine.SetBudget(c.Budget)
	history, err := s.records.begin(ctx, term)
	if err != nil {
		return nil, errs.E(op, errs.Internal, "STORE", err)
	}
	if history.outdated() {
		s.machine.setOld(&history.newer, "a worker")
		c.Log.Error(s.machine.old, "hint", hintOldRecords)
	}
	s.links = newLinks(c.Connector, s.term, history, c.Log, s.deliver, s.records.input)
	s.retain = &retainer{s: s, rules: c.Retention, begun: c.Now()}
	if err := s.load(ctx); err != nil {
		return nil, storeError(op, err)
	}
	failpoint.At(failpoint.SchedulerLoaded)
	return s, nil
}

func (s *Scheduler) load(ctx context.Context) error {
	now := s.config.Now()
	effects := make([]Effect, 0, loadAtOnce)
	if err := s.records.loadOwing(ctx, s.machine.LoadOwing); err != nil {
		return err
	}
	return s.records.load(ctx, func(w registry.Worker) {
		s.machine.LoadWorker(now, w)
		loaded, _ := s.machine.workers.Get(w.ID)
		s.hub.publish([]Effect{{Worker: &loaded}})
	}, func(jobs []*job.Job) {
		effects = effects[:0]
		for _, j := range jobs {
			if j.State.Live() && j.UnreachableSince.IsZero() {
				j.UnreachableSince = now.Round(0)
			}
			s.machine.LoadJob(now, *j)
			effects = append(effects, Effect{Put: j})
		}
		s.hub.publish(effects)
	})
}

// Term is the term of this scheduler life.
func (s *Scheduler) Term() uint64 { return s.term }

// Run is the loop; it returns when ctx ends. Events that are waiting then are
// answered with an error.
func (s *Scheduler) Run(ctx context.Context) error {
	defer s.links.closeAll()
	ctx, cancel := context.WithCancel(ctx)
	var wait sync.WaitGroup
	wait.Go(func() { s.retain.run(ctx) })
	defer wait.Wait()
	defer s.abandon()
	defer cancel()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var round []Event
	for {
		s.arm(timer)
		round = s.gather(ctx, timer.C, round[:0])
		if ctx.Err() != nil {
			return nil
		}
		err := s.turn(ctx, round)
		for i := range round {
			round[i].release()
		}
		clear(round) // what it held may go
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
}

func (s *Scheduler) arm(t *time.Timer) {
	d := time.Hour
	if next := s.machine.NextDeadline(); !next.IsZero() {
		d = max(0, next.Sub(s.config.Now()))
	}
	t.Reset(d)
}

// gather waits for one event and takes all that are there with it: what came
// while the last round was committed makes one round, so batches grow with the
// load and an idle scheduler answers at once.
func (s *Scheduler) gather(ctx context.Context, tick <-chan time.Time, round []Event) []Event {
	if len(s.later) > 0 {
		round, s.later = append(round, s.later...), nil
		return round
	}
	select {
	case <-ctx.Done():
		return round
	case ev := <-s.urgent:
		round = append(round, ev)
	case ev := <-s.frames:
		round = append(round, ev)
	case ev := <-s.normal:
		round = append(round, ev)
	case <-tick:
		round = append(round, Event{Tick: true})
	}
	for size := weigh(&round[0]); size < maxRound; size += weigh(&round[len(round)-1]) {
		ev, ok := s.first()
		if !ok {
			break
		}
		round = append(round, ev)
	}
	return round
}

// first takes what comes first of the events that are there.
func (s *Scheduler) first() (ev Event, ok bool) {
	for _, inbox := range [...]<-chan Event{s.urgent, s.frames, s.normal} {
		select {
		case ev := <-inbox:
			return ev, true
		default:
		}
	}
	return Event{}, false
}

// weigh is how much of a round an event takes: large submits count as several.
func weigh(ev *Event) int { return max(1, len(ev.Submits), int(ev.Bytes/eventBytes)) }

// turn steps the events of a round, commits once, then acts.
func (s *Scheduler) turn(ctx context.Context, round []Event) error {
	now := s.config.Now()
	var (
		batch   store.Batch
		effects []Effect
	)
	for i := range round {
		ev := &round[i]
		if err := s.lookUp(ctx, ev); err != nil && ev.Up != nil {
			return fmt.Errorf("take a worker's reports: %w", err) // none of them may be passed over
		} else if err != nil {
			s.answer(Result{To: ev.Reply, Err: storeError(opSubmit, err)})
			continue
		}
		effects = append(effects, s.machine.Step(now, ev)...)
	}
	if err := putRound(&batch, effects); err != nil {
		return err
	}
	if len(batch.Ops) > 0 {
		failpoint.At(failpoint.SchedulerCommitBefore)
		if err := s.config.Store.Apply(ctx, &batch); err != nil {
			return commitError(err)
		}
		failpoint.At(failpoint.SchedulerCommitAfter)
	}
	s.machine.Committed()
	s.retain.changed(effects)
	s.hub.publish(effects)
	s.act(effects)
	if len(batch.Ops) > 0 {
		failpoint.At(failpoint.SchedulerActAfter)
	}
	return nil
}

func commitError(err error) error {
	if errors.Is(err, store.ErrFenced) {
		return errs.E("commit", errs.Precondition, "FENCED", err).
			WithHint("a newer scheduler uses these records; run one only")
	}
	return fmt.Errorf("commit: %w", err)
}

// lookUp reads what the store knows of the request ids of submits. Jobs that
// live are in the machine's own table, so a step decides on both.
func (s *Scheduler) lookUp(ctx context.Context, ev *Event) error {
	if ev.Submit != nil {
		return s.lookUpOne(ctx, ev.Submit)
	}
	if ev.Adopt != nil {
		var err error
		ev.Adopt.Known, err = s.records.isRecorded(ctx, ev.Adopt.Job)
		return err
	}
	if ev.Up != nil {
		return s.records.ofFrame(ctx, s.machine, ev.Up)
	}
	for i := range ev.Submits {
		if err := s.lookUpOne(ctx, &ev.Submits[i]); err != nil {
			return err
		}
	}
	return nil
}

func (s *Scheduler) lookUpOne(ctx context.Context, sub *Submit) (err error) {
	if sub.RequestID != "" {
		sub.Earlier, err = s.records.accepted(ctx, requestKey(sub.Caller.identity(), sub.RequestID))
	}
	if sub.RequestID != "" && sub.Caller.Lineage == "" && sub.Earlier == nil && err == nil {
		// What an earlier version accepted belongs to the name alone (P1).
		sub.Earlier, err = s.records.accepted(ctx, requestKey(sub.Caller.Name, sub.RequestID))
	}
	return err
}

func (s *Scheduler) act(effects []Effect) {
	for i := range effects {
		switch e := &effects[i]; {
		case e.Send != nil:
			if starts := e.Send.Down.Starts; !s.links.send(e.Send.Worker, e.Send.Down) && len(starts) > 0 {
				u := &Unsent{Worker: e.Send.Worker}
				for i := range starts {
					u.Keys = append(u.Keys, starts[i].Key)
				}
				s.later = append(s.later, Event{Unsent: u})
			}
		case e.Dial != nil:
			s.links.dial(*e.Dial)
		case e.Hang != nil:
			s.links.hang(*e.Hang)
		case e.Result != nil:
			s.answer(*e.Result)
		case e.Refused != nil:
			r := e.Refused
			s.config.Log.Warn("order cannot be sent; its job is rejected", "job", r.Key.Job, "attempt", r.Key.Attempt, "worker_id", r.Worker,
				"reason", r.Reason, "error", r.Message)
		case e.Old != "":
			s.config.Log.Error(e.Old, "hint", hintOldRecords)
		case e.Unexpected != "":
			s.config.Log.Warn("report refused by the state machine", "step", e.Unexpected)
		}
	}
}

func (s *Scheduler) answer(r Result) {
	s.mu.Lock()
	c := s.waiting[r.To]
	delete(s.waiting, r.To)
	s.mu.Unlock()
	if c != nil {
		c <- r // has room for its one value
	}
}

// abandon answers whoever still waits when the loop ends.
func (s *Scheduler) abandon() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for to, c := range s.waiting {
		c <- Result{To: to, Err: shuttingDown()}
		delete(s.waiting, to)
	}
	s.waiting = nil
}

// submitting counts the bytes of a submit until done. Too many at once are EXHAUSTED:
// until they are committed they are in memory, also when nobody waits for them any
// more (P16).
func (s *Scheduler) submitting(bytes int64) (done func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pending > 0 && s.pending+bytes > maxPending {
		return nil, overloaded("ask the scheduler", "the requests that wait have too many bytes")
	}
	s.pending += bytes
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.pending -= bytes
	}, nil
}

func shuttingDown() error {
	return errs.E("ask the scheduler", errs.Unavailable, "SHUTTING_DOWN", errors.New("it is shutting down"))
}

// overloaded puts a caller off (P16).
func overloaded(op, why string) error {
	return errs.E(op, errs.Exhausted, "OVERLOADED", errors.New(why)).WithHint("try again in a second")
}

// deliver puts an event of a link into the inbox; it waits for room.
func (s *Scheduler) deliver(ctx context.Context, ev Event) {
	select {
	case s.frames <- ev:
	case <-ctx.Done():
	}
}

// ask sends an event through the loop and waits for its result. A full inbox
// is EXHAUSTED (P16). What the event holds is given back when its round is over, and not
// when ctx ends.
func (s *Scheduler) ask(ctx context.Context, inbox chan Event, ev Event) (Result, error) {
	done := make(chan Result, 1)
	s.mu.Lock()
	if s.waiting == nil {
		s.mu.Unlock()
		ev.release()
		return Result{}, shuttingDown()
	}
	s.next++
	ev.Reply = s.next
	s.waiting[ev.Reply] = done
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.waiting, ev.Reply)
		s.mu.Unlock()
	}()
	select {
	case inbox <- ev:
	default:
		ev.release()
		return Result{}, overloaded("ask the scheduler", "too many requests are waiting")
	}
	late, stop := s.late(ctx)
	defer stop()
	for {
		select {
		case r := <-done:
			return r, r.Err
		case <-late:
			if err := s.config.Trouble(); err != nil {
				return Result{}, err
			}
			late = nil
		case <-ctx.Done():
			return Result{}, ctx.Err()
		}
	}
}

// late tells when a caller will wait no more than a moment longer, and can just be
// told that the store is what it waits for.
func (s *Scheduler) late(ctx context.Context) (<-chan time.Time, func()) {
	end, ok := ctx.Deadline()
	if !ok || s.config.Trouble == nil {
		return nil, func() {}
	}
	left := time.Until(end)
	timer := time.NewTimer(left - min(left/4, 2*time.Second))
	return timer.C, func() { timer.Stop() }
}

// storeError is the error of a store, with what the store says about it.
func storeError(op string, err error) error {
	var e *errs.Error
	if !errors.As(err, &e) {
		return errs.E(op, errs.Internal, "STORE", err)
	}
	kind := e.Kind
	if kind == errs.Unavailable {
		kind = errs.Internal // the scheduler was patient already: its caller need not be
	}
	return errs.E(op, kind, e.Reason, err).WithHint("%s", e.Hint)
}
