package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/store"
)

// The wait between two tries doubles from shortest to longest.
const (
	shortestWait = 20 * time.Millisecond
	longestWait  = time.Second
)

const (
	reasonDenied  = "STORE_DENIED"
	reasonDamaged = "STORE_DAMAGED"
)

// try calls f until Redis has answered it, for as long as the store's patience
// lasts. f must be safe to be repeated.
func (s *Store) try(ctx context.Context, op string, f func(context.Context) error) error {
	began := time.Now()
	for wait := shortestWait; ; wait = min(2*wait, longestWait) {
		if err := s.usable(ctx); err != nil {
			return err
		}
		err := f(ctx)
		if err == nil || errors.Is(err, goredis.Nil) {
			s.trouble.over()
			if op == opWrite {
				s.full.over()
			}
			return err
		}
		if ended := s.usable(ctx); ended != nil {
			return ended
		}
		waits := s.config.Await && op == opWrite && refused(err)
		switch {
		case waits:
			s.full.begun(err)
		case !passing(err):
			return s.final(ctx, op, err)
		default:
			s.trouble.begun(err)
		}
		if !waits && time.Since(began) > s.config.Patience {
			return errs.E(op, errs.Unavailable, "STORE_UNREACHABLE", fmt.Errorf("reach %s: %w", s.config.Address, err)).
				WithHint("is Redis up, and may this machine reach it?")
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-s.done:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// refused tells whether Redis is there and takes no writes: it is full, cannot write
// its files, or is a replica.
func refused(err error) bool {
	var answer goredis.Error
	if !errors.As(err, &answer) {
		return false
	}
	word, _, _ := strings.Cut(answer.Error(), " ")
	return slices.Contains([]string{"OOM", "READONLY", "MISCONF", "NOREPLICAS"}, word)
}

// passing tells whether an error may go away by itself.
func passing(err error) bool {
	var (
		answer goredis.Error
		trust  *tls.CertificateVerificationError
		ours   *errs.Error
	)
	switch {
	case errors.As(err, &ours), errors.As(err, &trust):
		return false
	case !errors.As(err, &answer):
		return true // no answer: the network, or a server that is gone
	}
	word, _, _ := strings.Cut(answer.Error(), " ")
	return slices.Contains([]string{
		"LOADING", "BUSY", "MASTERDOWN", "READONLY", "MISCONF", "NOREPLICAS", "CLUSTERDOWN", "TRYAGAIN", "UNBLOCKED",
	}, word) || strings.Contains(answer.Error(), "max number of clients")
}

// final classifies what does not go away.
func (s *Store) final(ctx context.Context, op string, err error) error {
	var ours *errs.Error
	switch {
	case errors.As(err, &ours):
		return err
	case goredis.IsAuthError(err), goredis.IsPermissionError(err):
		return errs.E(op, errs.Precondition, reasonDenied, fmt.Errorf("it refuses: %w", err)).
			WithHint("see the user and the password of the store, and what its ACL allows: docs/operations.md")
	case goredis.IsOOMError(err):
		return errs.E(op, errs.Exhausted, "STORE_FULL", fmt.Errorf("it refuses: %w", err)).
			WithHint("give Redis more memory (maxmemory), or remove old jobs")
	case strings.HasPrefix(err.Error(), "WRONGTYPE"):
		return errs.E(op, errs.Precondition, reasonDamaged, s.mistyped(ctx, err)).
			WithHint("another program uses this name: give drover a prefix or a database of its own, or remove the key")
	case strings.HasPrefix(err.Error(), "DAMAGED "):
		return errs.E(op, errs.Precondition, reasonDamaged, errors.New(strings.TrimPrefix(err.Error(), "DAMAGED "))).
			WithHint("something else than drover has changed it; restore a backup")
	default:
		return errs.E(op, errs.Internal, "STORE", fmt.Errorf("ask it: %w", err))
	}
}

// mistyped names the key that is not what it should be.
func (s *Store) mistyped(ctx context.Context, err error) error {
	for i, want := range []string{"zset", "hash", "hash", "zset", "string", "hash"} {
		if got, err := s.client.Type(ctx, s.keys[i]).Result(); err == nil && got != "none" && got != want {
			return fmt.Errorf("the key %s is a %s and not a %s", s.keys[i], got, want)
		}
	}
	return fmt.Errorf("a key of another type: %w", err)
}

// trouble logs the begin and the end of a time in which Redis does not do what it
// should, once each.
type trouble struct {
	log         *slog.Logger
	begins, end string     // what is logged
	mu          sync.Mutex // guards what follows
	since       time.Time
	why         error
}

func (t *trouble) begun(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.why = err
	if t.since.IsZero() {
		t.since = time.Now()
		t.log.Error(t.begins, "error", err)
	}
}

func (t *trouble) over() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.since.IsZero() {
		t.log.Info(t.end, "after", time.Since(t.since).Round(time.Millisecond))
		t.since, t.why = time.Time{}, nil
	}
}

// lasting is for how long there is trouble; 0 when there is none.
func (t *trouble) lasting() (time.Duration, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.since.IsZero() {
		return 0, nil
	}
	return time.Since(t.since), t.why
}

var _ store.Store = (*Store)(nil)
