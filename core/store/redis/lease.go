package redis

import (
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/store"
)

const opLease = "take the lease of the active scheduler"

// awaitPoll is about how often a lease is asked for that another holds: it
// bounds how long it stays free after its holder released it.
const awaitPoll = 200 * time.Millisecond

// ReasonHeld is the reason of Acquire's error while another holds the lease.
const ReasonHeld = "LEASE_HELD"

// Lease is the right to be the active scheduler for a time. Taking it raises the
// term, so that nothing an earlier holder writes through store.Fence arrives any
// more, even if that one was paused and does not know.
type Lease struct {
	store  *Store
	holder string // a random text, a blank, a name for people
	ttl    time.Duration
	term   uint64
	until  atomic.Int64 // as awake tells it
}

// Acquire takes the lease for ttl and raises the term in one step. While another
// holds it, the error is Precondition, reason ReasonHeld. name is for people.
func (s *Store) Acquire(ctx context.Context, name string, ttl time.Duration) (*Lease, error) {
	l, _, err := s.acquire(ctx, name, ttl, false)
	return l, err
}

// Seize takes the lease from whoever holds it. That one is fenced.
func (s *Store) Seize(ctx context.Context, name string, ttl time.Duration) (*Lease, error) {
	l, _, err := s.acquire(ctx, name, ttl, true)
	return l, err
}

// Await takes the lease as soon as its holder has released it or let it run out.
// waiting, which may be nil, is told each other holder's name once.
func (s *Store) Await(ctx context.Context, name string, ttl time.Duration, waiting func(holder string)) (*Lease, error) {
	told := ""
	for {
		l, held, err := s.acquire(ctx, name, ttl, false)
		if errs.ReasonOf(err) != ReasonHeld {
			return l, err
		}
		if waiting != nil && held.by != told {
			told = held.by
			waiting(held.name())
		}
		// A holder may release it earlier than its time ends. Nobody waits longer
		// than that time, and those that wait together do not ask together.
		timer := time.NewTimer(max(shortestWait, min(held.left, awaitPoll/2+rand.N(awaitPoll))))
		select {
		case <-timer.C:
		case <-s.done:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// holding is what another's lease looks like.
type holding struct {
	by   string // as in Lease.holder
	left time.Duration
}

// name is the part of the holder that is for people.
func (h holding) name() string {
	_, name, _ := strings.Cut(h.by, " ")
	return name
}

func (s *Store) acquire(ctx context.Context, name string, ttl time.Duration, seize bool) (*Lease, holding, error) {
	l := &Lease{store: s, holder: crand.Text() + " " + name, ttl: ttl}
	// A try whose answer never came is not another's: who waited for it would tell
	// everybody that the active scheduler is itself.
	if before := s.unsure.Load(); before != nil && strings.HasSuffix(*before, " "+name) {
		l.holder = *before
	}
	for {
		term, err := store.Term(ctx, s)
		if err != nil {
			return nil, holding{}, err
		}
		var until time.Duration
		out, err := s.run(ctx, opLease, s.scripts.acquire, func() []any {
			until = awake() + ttl // from before it is asked for: never too late
			epoch, writes := s.watermark.args()
			return []any{l.holder, ttl.Milliseconds(), store.TermKey(), termMark(term), store.EncodeTerm(term + 1), flag(seize), epoch, writes}
		})
		if err != nil {
			// Redis may have given it all the same, or give it when it wakes.
			s.unsure.Store(&l.holder)
			return nil, holding{}, err
		}
		word, rest, err := s.answer(opLease, out)
		switch {
		case err != nil:
			return nil, holding{}, err
		case word == "OK":
			s.unsure.Store(nil)
			l.term = term + 1
			l.until.Store(int64(until))
			return l, holding{}, nil
		case word == "TERM": // raised in between, also by a try whose answer got lost
		case word == "HELD":
			h := held(rest)
			return nil, h, heldBy(opLease, rest)
		default:
			return nil, holding{}, fmt.Errorf("%s: Redis answered %v", opLease, out)
		}
	}
}

// held reads whose lease it is.
func held(answer []any) (h holding) {
	if len(answer) == 2 {
		h.by, _ = answer[0].(string)
		ms, _ := answer[1].(int64)
		h.left = time.Duration(ms) * time.Millisecond
	}
	return h
}

func heldBy(op string, answer []any) error {
	h := held(answer)
	return errs.E(op, errs.Precondition, ReasonHeld, fmt.Errorf("%s holds it for another %v", h.name(), h.left))
}

// termMark is the guard of a term, as mark of common.lua makes it.
func termMark(term uint64) string {
	if term == 0 {
		return given(nil)
	}
	return given(store.EncodeTerm(term))
}

// awake is a clock that goes on while the machine sleeps, which the monotonic one of
// Go does not, and that nobody sets (P14).
func awake() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic("unreachable: a kernel without CLOCK_BOOTTIME: " + err.Error())
	}
	return time.Duration(t.Nano())
}

// Term is the term that taking the lease has raised. Write through
// store.Fence(s, l.Term()).
func (l *Lease) Term() uint64 { return l.term }

// Left is for how long the lease surely lasts; not above 0 when it may have
// ended. A holder then stops to act. It may be called concurrently.
func (l *Lease) Left() time.Duration { return time.Duration(l.until.Load()) - awake() }

// Renew makes the lease last its whole time again. When another has taken it,
// or raised the term, it is store.ErrFenced, for good. It is not called
// concurrently.
func (l *Lease) Renew(ctx context.Context) error {
	var until time.Duration
	out, err := l.store.run(ctx, "renew the lease", l.store.scripts.renew, func() []any {
		until = awake() + l.ttl
		epoch, writes := l.store.watermark.args()
		return []any{l.holder, l.ttl.Milliseconds(), store.TermKey(), store.EncodeTerm(l.term), epoch, writes}
	})
	if err != nil {
		return err
	}
	word, _, err := l.store.answer("renew the lease", out)
	switch {
	case err != nil: // its writes are gone
		l.until.Store(0)
		return err
	case word == "FENCED":
		l.until.Store(0)
		return store.ErrFenced
	case word != "OK":
		return fmt.Errorf("renew the lease: Redis answered %v", out)
	}
	l.until.Store(int64(until))
	return nil
}

// Release gives the lease back; one that another holds is left alone.
func (l *Lease) Release(ctx context.Context) error {
	l.until.Store(0)
	out, err := l.store.run(ctx, "release the lease", l.store.scripts.end, func() []any { return []any{l.holder} })
	if err == nil && out != "OK" {
		err = errors.New("release the lease: Redis gave no answer")
	}
	return err
}
