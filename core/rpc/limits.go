package rpc

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/core/errs"
)

// Bounds of connections that others make. Three eighths of the descriptors are never
// theirs: they are for what a daemon opens itself, such as files, pipes and connections
// to workers.
const (
	mostNewcomers   = 4096
	mostOfOne       = 1024
	mostIdentified  = 1 << 20
	fewestNewcomers = 8
	fewestOfOne     = 8
	mostGuests      = 128         // each holds some 50 KiB
	refusedEvery    = time.Minute // between two lines of the log
)

// connectionLimits are the bounds of one port.
type connectionLimits struct {
	newcomers  int // connections without an identity, also those that have none yet
	ofAddress  int // of them, those of one network
	identified int // connections with an identity
	ofIdentity int // of them, those of one
	guests     int // newcomers whose handshake is over, without a certificate
}

// limitsFor divides the descriptors that a process may have.
func limitsFor(descriptors uint64) connectionLimits {
	part := func(divisor uint64, least, most int) int {
		return max(least, int(min(descriptors/divisor, uint64(most)))) //nolint:gosec // most is an int
	}
	newcomers := part(8, fewestNewcomers, mostNewcomers)
	identified := part(2, fewestOfOne, mostIdentified)
	return connectionLimits{newcomers, newcomers / 2, identified, max(fewestOfOne, min(identified/2, mostOfOne)), min(newcomers, mostGuests)}
}

// descriptorLimit is how many descriptors the process may have. Go has raised it to
// what is allowed at most, and gives children what was there before.
func descriptorLimit() uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return math.MaxInt64
	}
	return limit.Cur
}

// connectionLimiter bounds the connections to one port. Newcomers never keep each other
// out: when there are too many, one that has waited for long or says nothing goes.
// It may be used concurrently.
type connectionLimiter struct {
	limits connectionLimits

	mu         sync.Mutex // guards the fields below, and those of incoming
	log        *slog.Logger
	newcomers  map[netip.Addr]map[*incoming]struct{}
	strangers  int                    // all newcomers
	guests     map[*incoming]struct{} // those of stageGuest
	identities map[certs.ID]int
	identified int
	logged     time.Time
}

func newConnectionLimiter(limits connectionLimits) *connectionLimiter {
	return &connectionLimiter{
		limits: limits, log: slog.New(slog.DiscardHandler),
		newcomers: map[netip.Addr]map[*incoming]struct{}{}, guests: map[*incoming]struct{}{}, identities: map[certs.ID]int{},
	}
}

// logTo says where refusals are told.
func (l *connectionLimiter) logTo(log *slog.Logger) {
	if log == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.log = log
}

// stage is how far a connection has come.
type stage uint8

const (
	stageSilent   stage = iota // nothing was heard of it
	stageWaiting               // it has begun to speak, and waits for its turn
	stageGreeting              // its handshake is under way
	stageGuest                 // it has no identity
	stageKnown                 // it has an identity
	stageClosed
)

// incoming is a connection that somebody else made.
type incoming struct {
	*net.TCPConn
	limiter *connectionLimiter
	network netip.Addr
	since   time.Time

	// Guarded by limiter.mu.
	stage stage
	turn  time.Time // when stageGreeting began
	busy  bool      // of stageGuest: it has a call open
	token bool      // of stageGuest: it has shown a good one
	id    certs.ID  // of stageKnown
}

// admit takes a connection in, perhaps in the place of another one.
func (l *connectionLimiter) admit(conn *net.TCPConn) *incoming {
	c := &incoming{TCPConn: conn, limiter: l, network: network(conn.RemoteAddr()), since: time.Now()}
	if raw, err := conn.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			if whole, err := firstRecord(int(fd)); whole && err == nil {
				c.stage = stageWaiting
			}
		})
	}
	l.mu.Lock()
	var gone *incoming
	switch of := l.newcomers[c.network]; {
	case len(of) >= l.limits.ofAddress:
		gone = worst(of, c.since)
	case l.strangers >= l.limits.newcomers:
		gone = worst(l.largest(), c.since)
	}
	if gone != nil {
		l.leave(gone)
	}
	if l.newcomers[c.network] == nil {
		l.newcomers[c.network] = map[*incoming]struct{}{}
	}
	l.newcomers[c.network][c] = struct{}{}
	l.strangers++
	l.mu.Unlock()
	if gone != nil {
		_ = gone.TCPConn.Close() // nobody is told: the other side sees it
	}
	return c
}

// largest returns the newcomers of the network that has most of them; l.mu is held.
func (l *connectionLimiter) largest() map[*incoming]struct{} {
	var most map[*incoming]struct{}
	for _, of := range l.newcomers {
		if len(of) > len(most) {
			most = of
		}
	}
	return most
}

// worst finds who goes first: the oldest of those that say nothing or let others wait;
// then of those whose turn has not come, for they have the least patience left; last
// those with a good token, whom a certificate is made for.
func worst(of map[*incoming]struct{}, now time.Time) (out *incoming) {
	least := math.MaxInt
	for c := range of {
		rank := 2
		switch {
		case c.stage == stageSilent, c.stage == stageGreeting && now.Sub(c.turn) > handshakeTurn, c.stage == stageGuest && !c.busy && !c.token:
			rank = 0
		case c.token:
			rank = 3
		case c.stage == stageWaiting:
			rank = 1
		}
		if rank < least || rank == least && c.since.Before(out.since) {
			least, out = rank, c
		}
	}
	return out
}

// leave stops counting a connection; l.mu is held.
func (l *connectionLimiter) leave(c *incoming) {
	switch c.stage {
	case stageClosed:
		return
	case stageKnown:
		l.identified--
		if l.identities[c.id]--; l.identities[c.id] == 0 {
			delete(l.identities, c.id)
		}
	default:
		l.forget(c)
	}
	c.stage = stageClosed
}

// forget takes a newcomer off the list; l.mu is held.
func (l *connectionLimiter) forget(c *incoming) {
	of := l.newcomers[c.network]
	if delete(of, c); len(of) == 0 {
		delete(l.newcomers, c.network)
	}
	delete(l.guests, c)
	l.strangers--
}

// Close implements net.Conn.
func (c *incoming) Close() error {
	c.limiter.mu.Lock()
	c.limiter.leave(c)
	c.limiter.mu.Unlock()
	return c.TCPConn.Close()
}

// reach notes how far a newcomer has come.
func (c *incoming) reach(s stage) {
	c.limiter.mu.Lock()
	defer c.limiter.mu.Unlock()
	if c.stage == stageClosed {
		return
	}
	if c.stage = s; s == stageGreeting {
		c.turn = time.Now()
	}
}

// visit makes a connection one without an identity, perhaps in the place of another.
func (c *incoming) visit() {
	l := c.limiter
	l.mu.Lock()
	var gone *incoming
	if c.stage != stageClosed {
		if len(l.guests) >= l.limits.guests {
			gone = worst(l.guests, time.Now())
			l.leave(gone)
		}
		c.stage = stageGuest
		l.guests[c] = struct{}{}
	}
	l.mu.Unlock()
	if gone != nil {
		_ = gone.TCPConn.Close()
	}
}

// occupy notes whether a guest has a call open, and returns false when it has one
// already.
func (c *incoming) occupy(busy bool) bool {
	c.limiter.mu.Lock()
	defer c.limiter.mu.Unlock()
	if busy && c.busy {
		return false
	}
	c.busy = busy
	return true
}

// trust notes that a guest has shown a good token.
func (c *incoming) trust() {
	c.limiter.mu.Lock()
	defer c.limiter.mu.Unlock()
	c.token = true
}

// identify makes a connection one of an identity, unless there are too many of those.
func (c *incoming) identify(leaf *x509.Certificate) error {
	id, err := certs.Identify(leaf)
	if err != nil {
		return err // TLS has refused it
	}
	l := c.limiter
	l.mu.Lock()
	err = l.identify(c, id)
	log := l.log
	if err == nil || time.Since(l.logged) < refusedEvery {
		log = nil
	} else {
		l.logged = time.Now()
	}
	l.mu.Unlock()
	if log != nil && !errors.Is(err, net.ErrClosed) {
		log.Warn("connections are refused", "error", err)
	}
	return err
}

func (l *connectionLimiter) identify(c *incoming, id certs.ID) error {
	const op = "connect"
	switch {
	case c.stage == stageClosed:
		return net.ErrClosed
	case l.identities[id] >= l.limits.ofIdentity:
		return errs.E(op, errs.Exhausted, "OVERLOADED", fmt.Errorf("%s has %d connections open already", id, l.identities[id]))
	case l.identified >= l.limits.identified:
		return errs.E(op, errs.Exhausted, "OVERLOADED", fmt.Errorf("%d connections are open already; raise the limit of open files (ulimit -n)", l.identified))
	}
	l.forget(c)
	c.stage, c.id = stageKnown, id
	l.identified++
	l.identities[id]++
	return nil
}
