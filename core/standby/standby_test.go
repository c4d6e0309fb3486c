package standby_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/standby"
	"github.com/droverhq/drover/core/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const ttl = 3 * time.Second

// throne is what Redis keeps: who holds the lease and until when, and the term.
type throne struct {
	mu     sync.Mutex // guards the fields below
	holder *lease
	ends   time.Time
	term   int
	away   chan struct{} // closed when Redis is back; nil while it is there
}

// lease is a fake of redis.Lease with the same rules.
type lease struct {
	of    *throne
	term  int
	mu    sync.Mutex // guards until
	until time.Time
}

// reach waits for Redis.
func (r *throne) reach(ctx context.Context) error {
	r.mu.Lock()
	away := r.away
	r.mu.Unlock()
	if away == nil {
		return ctx.Err()
	}
	select {
	case <-away:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *throne) cut() (heal func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.away = make(chan struct{})
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		close(r.away)
		r.away = nil
	}
}

func (r *throne) take(force bool) *lease {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if r.holder != nil && now.Before(r.ends) && !force {
		return nil
	}
	r.term++
	r.holder, r.ends = &lease{of: r, term: r.term, until: now.Add(ttl)}, now.Add(ttl)
	return r.holder
}

func (r *throne) await(ctx context.Context) (standby.Lease, error) {
	for {
		if err := r.reach(ctx); err != nil {
			return nil, err
		}
		if l := r.take(false); l != nil {
			return l, nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (l *lease) Renew(ctx context.Context) error {
	asked := time.Now()
	if err := l.of.reach(ctx); err != nil {
		return err
	}
	l.of.mu.Lock()
	defer l.of.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of.term != l.term {
		l.until = time.Time{}
		return store.ErrFenced
	}
	l.of.holder, l.of.ends, l.until = l, time.Now().Add(ttl), asked.Add(ttl)
	return nil
}

func (l *lease) Left() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Until(l.until)
}

func (l *lease) Release(ctx context.Context) error {
	if err := l.of.reach(ctx); err != nil {
		return err
	}
	l.of.mu.Lock()
	defer l.of.mu.Unlock()
	if l.of.holder == l {
		l.of.holder = nil
	}
	return nil
}

// turn is one time that a scheduler was active.
type turn struct {
	who      string
	from, to time.Time
}

// stage runs schedulers on one throne and notes their turns.
type stage struct {
	*throne
	t     *testing.T
	began time.Time
	mu    sync.Mutex // guards turns and log
	turns []turn
	log   bytes.Buffer
}

func newStage(t *testing.T) *stage { return &stage{throne: &throne{}, t: t, began: time.Now()} }

// Write implements io.Writer, for the log.
func (s *stage) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(p)
}

// start runs a scheduler; the function ends it and returns its error.
func (s *stage) start(who string, act func(context.Context) error) (end func() error) {
	ctx, cancel := context.WithCancel(s.t.Context())
	done := make(chan error, 1)
	go func() {
		done <- standby.Run(ctx, standby.Config{
			Policy: standby.Policy{TTL: ttl}, Await: s.await, Log: slog.New(slog.NewTextHandler(s, nil)),
			Act: func(ctx context.Context, _ standby.Lease) error {
				from := time.Now()
				err := act(ctx)
				s.mu.Lock()
				defer s.mu.Unlock()
				s.turns = append(s.turns, turn{who, from, time.Now()})
				return err
			},
		})
	}()
	return func() error {
		cancel()
		return <-done
	}
}

func untilEnd(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// happened checks who acted when, in seconds since the beginning.
func (s *stage) happened(want ...string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	var got []string
	for _, x := range s.turns {
		got = append(got, x.who+" "+x.from.Sub(s.began).Round(time.Second).String()+"-"+x.to.Sub(s.began).Round(time.Second).String())
	}
	if strings.Join(got, ", ") != strings.Join(want, ", ") {
		s.t.Errorf("turns: %q, want %q", got, want)
	}
}

// One acts, for as long as it is there; then the other does.
func TestTheNextActsWhenTheFirstEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		a := s.start("a", untilEnd)
		synctest.Wait()
		b := s.start("b", untilEnd)
		time.Sleep(time.Hour)
		if err := a(); err != nil { // gives the lease back
			t.Error(err)
		}
		time.Sleep(time.Second)
		if err := b(); err != nil {
			t.Error(err)
		}
		s.happened("a 0s-1h0m0s", "b 1h0m0s-1h0m1s")
		if s.term != 2 {
			t.Errorf("the term is %d", s.term)
		}
	})
}

// Whoever cannot renew ends before the lease does, so never do two act; it
// stands by, says so once, and gets another turn.
func TestACutOffSchedulerEndsInTimeAndStandsBy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		a := s.start("a", untilEnd)
		time.Sleep(10*time.Second + time.Millisecond) // it has renewed at 10 s
		heal := s.cut()
		time.Sleep(9 * time.Second)
		s.happened("a 0s-13s")
		heal()
		time.Sleep(11 * time.Second)
		if err := a(); err != nil {
			t.Error(err)
		}
		s.happened("a 0s-13s", "a 19s-30s")
		if log := s.log.String(); strings.Count(log, "\n") != 1 || !strings.Contains(log, "no longer the active scheduler") {
			t.Errorf("log: %s", log)
		}
	})
}

// P3: a scheduler that slept through its lease is not asked to renew when it
// wakes, nor does it answer anybody. Its clock has gone on, as after SIGSTOP.
func TestWhoeverSleptThroughItsLeaseDoesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &throne{}
		l := r.take(false)
		if err := standby.Awake(l); err != nil {
			t.Error(err)
		}
		time.Sleep(ttl) // nobody renews it meanwhile
		if err := standby.Awake(l); errs.ReasonOf(err) != standby.ReasonStandby || errs.KindOf(err) != errs.Unavailable {
			t.Errorf("it answers: %v", err)
		}
		var cause error
		err := standby.Hold(t.Context(), l, standby.Policy{TTL: ttl}, func(ctx context.Context) error {
			<-ctx.Done()
			cause = context.Cause(ctx)
			return nil
		})
		if !errors.Is(err, standby.ErrLost) || !errors.Is(cause, standby.ErrLost) {
			t.Errorf("%v, %v", err, cause)
		}
		if r.holder != l || r.term != 1 {
			t.Error("it touched the lease")
		}
	})
}

// A fence ends a turn at once: one that a renewal finds and one that a write finds.
func TestAFenceEndsATurn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &throne{}
		l := r.take(false)
		time.AfterFunc(10*time.Second, func() { r.take(true) })
		began := time.Now()
		err := standby.Hold(t.Context(), l, standby.Policy{TTL: ttl, Outlive: true}, untilEnd)
		if took := time.Since(began); !errors.Is(err, standby.ErrLost) || !errors.Is(err, store.ErrFenced) || took > 10*time.Second+ttl/3 {
			t.Errorf("%v after %v", err, took)
		}
		l = r.take(true)
		err = standby.Hold(t.Context(), l, standby.Policy{TTL: ttl}, func(context.Context) error {
			return errs.E("commit", errs.Precondition, "FENCED", store.ErrFenced)
		})
		if !errors.Is(err, standby.ErrLost) || r.holder != l {
			t.Errorf("%v", err)
		}
	})
}

// A scheduler that nobody stands by for lives through any time without Redis.
func TestOutlive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &throne{}
		l := r.take(false)
		heal := r.cut()
		time.AfterFunc(time.Hour, heal)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Hour)
		defer cancel()
		if err := standby.Hold(ctx, l, standby.Policy{TTL: ttl, Outlive: true}, untilEnd); err != nil || r.holder != nil {
			t.Errorf("%v, given back %v", err, r.holder == nil)
		}
	})
}

// While it ends in good order it is still the only one.
func TestTheLeaseIsKeptUntilTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		a := s.start("a", func(ctx context.Context) error {
			<-ctx.Done()
			time.Sleep(10 * time.Second)
			return nil
		})
		synctest.Wait()
		b := s.start("b", untilEnd)
		time.Sleep(5 * time.Second)
		if err := a(); err != nil {
			t.Error(err)
		}
		time.Sleep(5 * time.Second)
		if err := b(); err != nil {
			t.Error(err)
		}
		s.happened("a 0s-15s", "b 15s-20s")
	})
}

// What a scheduler fails with, and waiting does not mend, is its end.
func TestFailuresEndIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, want := &throne{}, errors.New("broken")
		if err := standby.Run(t.Context(), standby.Config{
			Policy: standby.Policy{TTL: ttl}, Await: r.await, Act: func(context.Context, standby.Lease) error { return want },
		}); !errors.Is(err, want) || r.holder != nil {
			t.Errorf("%v, given back %v", err, r.holder == nil)
		}
		tries := 0
		err := standby.Run(t.Context(), standby.Config{Policy: standby.Policy{TTL: ttl}, Await: func(context.Context) (standby.Lease, error) {
			if tries++; tries < 3 {
				return nil, errs.E("take the lease", errs.Unavailable, "STORE_UNREACHABLE", nil)
			}
			return nil, want
		}})
		if !errors.Is(err, want) || tries != 3 {
			t.Errorf("%v after %d tries", err, tries)
		}
		for active, part := range map[string]string{"": "no other is known", "s1:7420": "the active one is at s1:7420"} {
			if err := standby.Refusal(active, nil); !strings.Contains(err.Error(), part) {
				t.Errorf("%v", err)
			}
		}
	})
}

// TestP3_OlderCopyOfTheStore_EndsTheScheduler: it neither acts on nor stands by, but
// says why.
func TestP3_OlderCopyOfTheStore_EndsTheScheduler(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		lost := errs.E("renew the lease", errs.Precondition, store.ReasonLostWrites, store.ErrLostWrites)
		acted := 0
		err := standby.Run(t.Context(), standby.Config{
			Policy: standby.Policy{TTL: ttl}, Log: slog.New(slog.DiscardHandler),
			Await: func(ctx context.Context) (standby.Lease, error) {
				l, err := s.await(ctx)
				return older{l, lost}, err
			},
			Act: func(ctx context.Context, _ standby.Lease) error { acted++; return untilEnd(ctx) },
		})
		if errs.ReasonOf(err) != store.ReasonLostWrites || acted != 1 || time.Since(s.began) > ttl {
			t.Errorf("%v, acted %d times, after %v", err, acted, time.Since(s.began))
		}
	})
}

// older is a lease of a store that turns out to be an older copy.
type older struct {
	standby.Lease
	err error
}

func (l older) Renew(context.Context) error { return l.err }

// A scheduler that was asleep from when it got the lease until that was over does not
// begin to act.
func TestP3_AsleepWithAFreshLease_DoesNotAct(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		times, acted := 0, 0
		ctx, cancel := context.WithCancel(t.Context())
		err := standby.Run(ctx, standby.Config{
			Policy: standby.Policy{TTL: ttl}, Log: slog.New(slog.DiscardHandler),
			Await: func(ctx context.Context) (standby.Lease, error) {
				l, err := s.await(ctx)
				if times++; times == 1 {
					time.Sleep(2 * ttl)
				}
				return l, err
			},
			Act: func(_ context.Context, l standby.Lease) error {
				if acted++; l.Left() <= 0 {
					t.Error("it acts without a lease")
				}
				cancel()
				return nil
			},
		})
		if err != nil || times != 2 || acted != 1 {
			t.Errorf("%v: %d leases, acted %d times", err, times, acted)
		}
	})
}
