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

const reasonDenied = "STORE_DENIED"

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
			return err
		}
		if ended := s.usable(ctx); ended != nil {
			return ended
		}
		if !passing(err) {
			return final(op, err)
		}
		s.trouble.begun(err)
		if time.Since(began) > s.config.Patience {
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
func final(op string, err error) error {
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
	default:
		return errs.E(op, errs.Internal, "STORE", fmt.Errorf("ask it: %w", err))
	}
}

// trouble logs the begin and the end of a time without Redis, once each.
type trouble struct {
	log   *slog.Logger
	mu    sync.Mutex // guards since
	since time.Time
}

func (t *trouble) begun(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.since.IsZero() {
		t.since = time.Now()
		t.log.Error("the store cannot be reached, trying again", "error", err)
	}
}

func (t *trouble) over() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.since.IsZero() {
		t.log.Info("the store is back", "after", time.Since(t.since).Round(time.Millisecond))
		t.since = time.Time{}
	}
}

var _ store.Store = (*Store)(nil)
