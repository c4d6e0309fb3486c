package redis_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/store"
	"github.com/droverhq/drover/core/store/redis"
	"github.com/droverhq/drover/core/store/redis/redistest"
)

func put(t *testing.T, s store.Store, key, value string) error {
	t.Helper()
	var b store.Batch
	b.Put([]byte(key), []byte(value))
	return s.Apply(t.Context(), &b)
}

// P3: of many that want to be the active scheduler one is, and the term tells.
func TestOneContenderGetsTheLease(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	var (
		wait   sync.WaitGroup
		mu     sync.Mutex
		leases []*redis.Lease
	)
	for range 8 {
		s := open(t, server.URL())
		wait.Go(func() {
			l, err := s.Acquire(context.Background(), "somebody", time.Hour)
			if err != nil {
				if errs.ReasonOf(err) != redis.ReasonHeld || errs.KindOf(err) != errs.Precondition || !strings.Contains(err.Error(), "somebody holds it for another") {
					t.Error(err)
				}
				return
			}
			mu.Lock()
			leases = append(leases, l)
			mu.Unlock()
		})
	}
	wait.Wait()
	if len(leases) != 1 {
		t.Fatalf("%d hold the lease", len(leases))
	}
	term, err := store.Term(t.Context(), open(t, server.URL()))
	if err != nil || term != leases[0].Term() || leases[0].Left() < time.Minute {
		t.Errorf("the term is %d, %v; the lease has %d for %v", term, err, leases[0].Term(), leases[0].Left())
	}
}

// P3: a holder that was paused for longer than its lease changes nothing when
// it wakes, neither by a write nor by a renewal nor by a release.
func TestAPausedHolderIsFenced(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	first, second := open(t, server.URL()), open(t, server.URL())
	paused, err := first.Acquire(t.Context(), "first", 50*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	active, err := second.Await(t.Context(), "second", time.Hour, nil)
	if err != nil || active.Term() <= paused.Term() {
		t.Fatalf("%v, %v", active, err)
	}
	if paused.Left() > 0 {
		t.Errorf("the paused holder believes in its lease for another %v", paused.Left())
	}
	if err := put(t, store.Fence(first, paused.Term()), "k", "paused"); !errors.Is(err, store.ErrFenced) {
		t.Errorf("a write: %v", err)
	}
	if err := paused.Renew(t.Context()); !errors.Is(err, store.ErrFenced) {
		t.Errorf("a renewal: %v", err)
	}
	if err := paused.Release(t.Context()); err != nil {
		t.Errorf("a release: %v", err)
	}
	if err := put(t, store.Fence(second, active.Term()), "k", "active"); err != nil {
		t.Error(err)
	}
	if _, err := first.Acquire(t.Context(), "first", time.Hour); errs.ReasonOf(err) != redis.ReasonHeld {
		t.Errorf("the lease of the second: %v", err)
	}
	if err := active.Renew(t.Context()); err != nil {
		t.Errorf("the active one renews: %v", err)
	}
}

func TestAReleasedLeaseIsFreeAtOnce(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := open(t, server.URL())
	l, err := s.Acquire(t.Context(), "first", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Release(t.Context()); err != nil || l.Left() > 0 {
		t.Errorf("%v, %v left", err, l.Left())
	}
	if _, err := s.Acquire(t.Context(), "second", time.Hour); err != nil {
		t.Error(err)
	}
}

// A restart of Redis that took longer than the lease costs nobody the lease, if
// nobody else took it.
func TestALeaseThatNobodyTookIsRenewed(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := open(t, server.URL())
	l, err := s.Acquire(t.Context(), "first", time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	server.Kill()
	server.Up(t)
	if err := l.Renew(t.Context()); err != nil {
		t.Error(err)
	}
	if err := put(t, store.Fence(s, l.Term()), "k", "v"); err != nil {
		t.Error(err)
	}
}

// A scheduler that takes no lease raises the term all the same, and ends it.
func TestATermRaisedByAnotherEndsTheLease(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := open(t, server.URL())
	l, err := s.Acquire(t.Context(), "first", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if term, err := store.RaiseTerm(t.Context(), s); err != nil || term != l.Term()+1 {
		t.Fatal(term, err)
	}
	if err := l.Renew(t.Context()); !errors.Is(err, store.ErrFenced) || l.Left() > 0 {
		t.Errorf("%v, %v left", err, l.Left())
	}
}

// A standby learns who is active, each one once, and is it when that one goes.
func TestWhoeverWaitsLearnsWhoHoldsTheLease(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := open(t, server.URL())
	first, err := s.Acquire(t.Context(), "first:7420", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	told, done := make(chan string, 8), make(chan error)
	other := open(t, server.URL())
	go func() {
		l, err := other.Await(context.Background(), "third", time.Hour, func(holder string) { told <- holder })
		if err == nil && l.Term() != first.Term()+2 {
			t.Errorf("term %d after %d", l.Term(), first.Term())
		}
		done <- err
	}()
	if got := <-told; got != "first:7420" {
		t.Errorf("the holder is %q", got)
	}
	second, err := s.Seize(t.Context(), "second:7420", time.Hour)
	if err != nil || second.Term() != first.Term()+1 {
		t.Fatal(second, err)
	}
	if err := first.Renew(t.Context()); !errors.Is(err, store.ErrFenced) {
		t.Errorf("whom it was taken from renews: %v", err)
	}
	if got := <-told; got != "second:7420" {
		t.Errorf("the holder is %q", got)
	}
	if err := second.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
