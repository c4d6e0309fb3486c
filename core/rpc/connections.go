package rpc

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/droverhq/drover/certs"
)

// recheckEvery is how often open connections are compared with the clock.
const recheckEvery = time.Second

// longestRest is the longest time between two looks at all of them: the clock may
// be set.
const longestRest = time.Minute

// Connections knows every connection of a daemon, accepted and dialled, whose
// other side has a certificate. It closes those that would not be admitted now:
// that ends streams and calls that wait alike (P22). It may be used concurrently.
type Connections struct {
	source *certs.Source
	log    *slog.Logger

	mu   sync.Mutex // guards the fields below
	open map[*secured]*certs.Peer
	due  time.Time // when a certificate of theirs ends; zero: some were never looked at
}

// NewConnections judges connections by what a Source holds. Run it.
func NewConnections(source *certs.Source, log *slog.Logger) *Connections {
	return &Connections{source: source, log: log, open: map[*secured]*certs.Peer{}}
}

// Run closes connections until ctx ends: at each change of certificates, CAs or
// revocations, and when a certificate expires.
func (c *Connections) Run(ctx context.Context) error {
	tick := time.NewTicker(recheckEvery)
	defer tick.Stop()
	for {
		changed := c.source.Changed()
		c.recheck(time.Now())
		for wait := true; wait; {
			select {
			case <-ctx.Done():
				return nil
			case <-changed:
				wait = false
			case <-tick.C:
				wait = !c.isDue(time.Now())
			}
		}
	}
}

func (c *Connections) isDue(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.open) > 0 && now.After(c.due)
}

// recheck closes what would not be admitted now.
func (c *Connections) recheck(now time.Time) {
	c.mu.Lock()
	open := maps.Clone(c.open)
	c.due = now.Add(longestRest)
	c.mu.Unlock()
	due := now.Add(longestRest)
	for conn, peer := range open {
		if err := peer.Check(now); err != nil {
			c.remove(conn)
			c.log.Info("closing a connection that would not be admitted now", "peer", peer.ID().String(),
				"address", conn.RemoteAddr().String(), "error", err)
			conn.cut()
			continue
		}
		if peer.Until().Before(due) {
			due = peer.Until()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if due.Before(c.due) {
		c.due = due
	}
}

// add takes a connection whose handshake is over; it removes itself when it closes.
func (c *Connections) add(conn *secured, info credentials.AuthInfo, peer *certs.Peer) {
	state, ok := info.(credentials.TLSInfo)
	if !ok || !peer.Met(state.State) {
		return
	}
	conn.closed = func() { c.remove(conn) }
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[conn] = peer
	c.due = time.Time{}
}

func (c *Connections) remove(conn *secured) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, conn)
}
