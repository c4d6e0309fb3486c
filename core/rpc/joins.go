package rpc

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/droverhq/drover/core/errs"
)

// Bounds of what callers without a certificate do to the CA.
const (
	joinsAtOnce = 4
	// Refused tokens of one address: so many at once, then one in so long.
	refusalsOfOne = 10
	refusalEvery  = 6 * time.Second
	// Refused tokens in all. Beyond them only addresses that had none are heard.
	refusalsOfAll  = 100
	refusalsPerSec = 10
	// addressesKept bounds the memory for addresses that had a token refused.
	addressesKept = 10_000
)

// joinLimiter lets few callers join at once, and those who come with tokens that are no
// good only now and then. It may be used concurrently.
type joinLimiter struct {
	slots chan struct{}

	mu  sync.Mutex // guards the fields below
	all *rate.Limiter
	of  map[netip.Addr]*rate.Limiter // of addresses that had a token refused
}

func newJoinLimiter() *joinLimiter {
	return &joinLimiter{
		slots: make(chan struct{}, joinsAtOnce),
		all:   rate.NewLimiter(refusalsPerSec, refusalsOfAll), of: map[netip.Addr]*rate.Limiter{},
	}
}

// enter waits for a slot, unless the address has had too many tokens refused. leave is
// to be called at the end.
func (l *joinLimiter) enter(ctx context.Context, from netip.Addr) (leave func(), err error) {
	if !l.may(from, time.Now()) {
		return nil, errs.E("join", errs.Exhausted, "TOO_MANY_REFUSED", fmt.Errorf("too many tokens were refused")).
			WithHint("wait a minute, and copy the token whole")
	}
	select {
	case l.slots <- struct{}{}:
		return func() { <-l.slots }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *joinLimiter) may(from netip.Addr, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	of, failed := l.of[from]
	return !failed || of.TokensAt(now) >= 1 && l.all.TokensAt(now) >= 1
}

// refused counts a token that was no good.
func (l *joinLimiter) refused(from netip.Addr, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	of := l.of[from]
	if of == nil {
		l.makeRoom(now)
		of = rate.NewLimiter(rate.Every(refusalEvery), refusalsOfOne)
		l.of[from] = of
	}
	of.AllowN(now, 1)
	l.all.AllowN(now, 1)
}

// makeRoom forgets addresses whose refusals are long ago, or all of them when there
// are none of those; l.mu is held.
func (l *joinLimiter) makeRoom(now time.Time) {
	if len(l.of) < addressesKept {
		return
	}
	for from, of := range l.of {
		if of.TokensAt(now) >= refusalsOfOne {
			delete(l.of, from)
		}
	}
	if len(l.of) >= addressesKept {
		clear(l.of)
	}
}

// network is what counts as one address: a host, or a network of IPv6, all of which
// one host may have.
func network(a net.Addr) netip.Addr {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	if ip.Is4() {
		return ip
	}
	prefix, err := ip.Prefix(64)
	if err != nil {
		return ip
	}
	return prefix.Addr()
}
