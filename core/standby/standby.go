// Package standby lets one of several schedulers act at a time: each waits for
// a lease, acts while it lasts, and stands by again once it is lost.
package standby

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/store"
	"github.com/droverhq/drover/plugins/failpoint"
)

// ErrLost is in every error of a lease that is lost: another scheduler has it,
// or may have it.
var ErrLost = errors.New("the lease of the active scheduler is lost")

// releaseTimeout bounds the return of a lease that nobody needs to wait for: it
// ends by itself.
const releaseTimeout = 2 * time.Second

// Lease is the right to act for a time. Left may be called concurrently.
type Lease interface {
	// Renew makes it last its whole time again; store.ErrFenced tells that
	// another has taken it, and store.ErrLostWrites that its store is an older
	// copy: both for good.
	Renew(ctx context.Context) error
	// Left is for how long it surely lasts, by the monotonic clock (P14).
	Left() time.Duration
	// Release gives it back.
	Release(ctx context.Context) error
}

// Policy says how a lease is held.
type Policy struct {
	TTL time.Duration // of the lease, which is renewed three times in it
	// Outlive goes on when the lease has run out, until another has taken it. It
	// is for a scheduler that nobody stands by for.
	Outlive bool
}

// Config says how to take turns.
type Config struct {
	Policy
	// Await returns once this scheduler has the lease.
	Await func(ctx context.Context) (Lease, error)
	// Act is the scheduler. It returns soon after its context has ended.
	Act func(ctx context.Context, l Lease) error
	Log *slog.Logger
}

// Run stands by and acts in turn until ctx ends or something fails that waiting
// does not mend.
func Run(ctx context.Context, c Config) error {
	for {
		l, err := c.Await(ctx)
		switch {
		case err == nil && ctx.Err() != nil:
			release(ctx, l)
			return nil //nolint:nilerr // there is no error in this case
		case ctx.Err() != nil:
			return nil //nolint:nilerr // it was told to end
		case errs.KindOf(err) == errs.Unavailable:
			continue // the store is away, has said so, and may come back
		case err != nil:
			return err
		}
		failpoint.At(failpoint.StandbyLeaseTaken)
		if !c.Outlive && l.Left() <= 0 {
			c.Log.Warn("slept until the lease was over, standing by")
			release(ctx, l)
			continue
		}
		began := time.Now()
		err = Hold(ctx, l, c.Policy, func(ctx context.Context) error { return c.Act(ctx, l) })
		if !errors.Is(err, ErrLost) || errors.Is(err, store.ErrLostWrites) || ctx.Err() != nil {
			return err
		}
		c.Log.Error("no longer the active scheduler, standing by", "after", time.Since(began).Round(time.Millisecond), "error", err)
	}
}

// Hold runs act and keeps the lease meanwhile. When the lease is lost the
// context of act ends, with that as its cause, and so does Hold, with an ErrLost.
// Otherwise the lease is given back after act.
func Hold(ctx context.Context, l Lease, p Policy, act func(context.Context) error) error {
	acting, end := context.WithCancelCause(ctx)
	defer end(nil)
	// A scheduler that is told to end keeps the lease until it has ended.
	keeping, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	kept := make(chan error, 1)
	go func() {
		err := keep(keeping, l, p)
		end(err)
		kept <- err
	}()
	err := act(acting)
	stop()
	switch lost := <-kept; {
	case lost != nil:
		return lost
	case errors.Is(err, store.ErrFenced): // a write has told before the renewal could
		return lose(err)
	}
	release(ctx, l)
	return err
}

// keep renews the lease until ctx ends, which is no error, or it is lost.
func keep(ctx context.Context, l Lease, p Policy) error {
	for {
		wait := p.TTL / 3
		if !p.Outlive {
			wait = min(wait, l.Left())
		}
		if !sleep(ctx, wait) {
			return nil
		}
		// One that ran out is not renewed, though nobody may have taken it: between
		// its end and now this scheduler could not know.
		if !p.Outlive && l.Left() <= 0 {
			return lose(errors.New("this scheduler was not awake to renew it"))
		}
		err := renew(ctx, l, p)
		if err == nil {
			failpoint.At(failpoint.StandbyLeaseRenewed)
		}
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // it was told to end
		case errors.Is(err, store.ErrFenced), errors.Is(err, store.ErrLostWrites):
			return lose(err)
		case !p.Outlive && l.Left() <= 0:
			return lose(fmt.Errorf("renew it in time: %w", err))
		}
	}
}

func renew(ctx context.Context, l Lease, p Policy) error {
	if !p.Outlive {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, l.Left())
		defer cancel()
	}
	return l.Renew(ctx)
}

func lose(why error) error { return fmt.Errorf("%w: %w", ErrLost, why) }

func release(ctx context.Context, l Lease) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	_ = l.Release(ctx) // one that stays ends by itself
}

// Awake is nil while a lease lasts. Whoever was frozen asks it before doing
// anything for others: its clocks went on while it did not.
func Awake(l Lease) error {
	if l.Left() > 0 {
		return nil
	}
	return Refusal("", nil)
}

// ReasonStandby is the reason of every refusal of a scheduler that is not
// active. What was asked was not begun.
const ReasonStandby = "STANDBY"

// Refusal is what a scheduler that is not active answers; active is the address
// of the one that is, "" when that is not known; trouble is what is wrong with the
// store, if anything.
func Refusal(active string, trouble error) error {
	why := "it stands by, and no other is known to be active"
	switch {
	case trouble != nil:
		why = "it stands by, and cannot know who is active: " + trouble.Error()
	case active != "":
		why = "it stands by; the active one is at " + active
	}
	return errs.E("ask the scheduler", errs.Unavailable, ReasonStandby, errors.New(why)).
		WithHint("name all schedulers, such as --address HOST1:7420,HOST2:7420")
}

// sleep waits, or returns false when ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
