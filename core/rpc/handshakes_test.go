package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/core/auth"
)

// longEnough is for waits that end by themselves when all is well.
const longEnough = 60 * time.Second

func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), longEnough)
	t.Cleanup(cancel)
	return ctx
}

// queued waits until n handshakes wait for their turn.
func (h *Handshakes) queued(t *testing.T, n int) {
	t.Helper()
	for ctx := patient(t); ; {
		h.mu.Lock()
		got := len(h.waiting)
		h.mu.Unlock()
		if got == n {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("%d wait, not %d", got, n)
		}
		time.Sleep(time.Millisecond)
	}
}

// TestTheNewestHandshakeGoesFirst, and those that have given up not at all.
func TestTheNewestHandshakeGoesFirst(t *testing.T) {
	t.Parallel()
	h := newHandshakes(1)
	h.free = 0 // one goes on, and takes its time
	came := make(chan int, 3)
	var wait sync.WaitGroup
	second, giveUp := context.WithCancel(t.Context())
	defer giveUp()
	for i, ctx := range []context.Context{t.Context(), second, t.Context()} {
		wait.Go(func() {
			leave, err := h.begin(ctx)
			if err != nil {
				return
			}
			came <- i
			leave()
		})
		h.queued(t, i+1)
		if i == 1 {
			giveUp()
		}
	}
	for ctx := patient(t); ; { // until the second has noticed
		h.mu.Lock()
		gone := h.waiting[1].gone
		h.mu.Unlock()
		if gone || ctx.Err() != nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	h.next()
	wait.Wait()
	if first, last := <-came, <-came; first != 2 || last != 0 || len(came) > 0 || h.free != 1 {
		t.Errorf("%d came before %d, %d came later, %d are free", first, last, len(came), h.free)
	}
}

// TestASlowHandshakeHoldsUpNobody: its turn ends before it does.
func TestASlowHandshakeHoldsUpNobody(t *testing.T) {
	t.Parallel()
	h := newHandshakes(1)
	slow, err := h.begin(patient(t))
	if err != nil {
		t.Fatal(err)
	}
	other, err := h.begin(patient(t))
	if err != nil {
		t.Fatal(err)
	}
	slow()
	other()
	if h.free != 1 {
		t.Errorf("%d are free", h.free)
	}
}

// TestAClosedLineLetsNobodyIn, who waits nor who comes.
func TestAClosedLineLetsNobodyIn(t *testing.T) {
	t.Parallel()
	h := newHandshakes(1)
	h.free = 0
	waited := make(chan error, 1)
	go func() {
		_, err := h.begin(t.Context())
		waited <- err
	}()
	h.queued(t, 1)
	h.Close()
	_, err := h.begin(t.Context())
	for _, err := range []error{<-waited, err} {
		if !errors.Is(err, errHandshakesClosed) {
			t.Errorf("got %v", err)
		}
	}
}

// pipe is both ends of a TCP connection.
func pipe(t *testing.T) (caller, raw net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if caller, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if raw, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { caller.Close(); raw.Close() })
	return caller, raw
}

// TestWhoHasHungUpIsNotShakenHandsWith, though its first words are still there.
func TestWhoHasHungUpIsNotShakenHandsWith(t *testing.T) {
	t.Parallel()
	h := newHandshakes(1)
	caller, raw := pipe(t)
	if _, err := caller.Write([]byte{22, 3, 1, 0, 1, 1}); err != nil {
		t.Fatal(err)
	}
	leave, err := h.admit(raw)
	if err != nil {
		t.Fatal(err)
	}
	leave()
	caller.Close()
	for ctx := patient(t); ctx.Err() == nil; {
		if leave, err = h.admit(raw); err != nil {
			break
		}
		leave() // the end of the connection is still on its way
	}
	if !errors.Is(err, io.EOF) || h.free != 1 || len(h.callers) != 0 {
		t.Errorf("%v, %d are free, %d are inside", err, h.free, len(h.callers))
	}
}

func handshakePair(t *testing.T) (server, client *certs.Source) {
	t.Helper()
	ca, err := certs.Init(filepath.Join(t.TempDir(), "ca"), "hands")
	if err != nil {
		t.Fatal(err)
	}
	source := func(role certs.Role) *certs.Source {
		dir := filepath.Join(t.TempDir(), string(role))
		if err := ca.IssuePair(dir, certs.IssueRequest{Name: string(role), Role: role, Hosts: []string{"127.0.0.1"}}); err != nil {
			t.Fatal(err)
		}
		s, err := certs.NewSource(dir, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	return source(certs.RoleScheduler), source(certs.RoleViewer)
}

// TestASilentCallerHoldsUpNothing: neither who comes after it, nor the end of the
// server.
func TestASilentCallerHoldsUpNothing(t *testing.T) {
	t.Parallel()
	source, viewer := handshakePair(t)
	server, err := NewServer("127.0.0.1:0", ServerConfig{TLS: source.ServerConfig(), Table: auth.SchedulerTable(), Revocations: source})
	if err != nil {
		t.Fatal(err)
	}
	server.handshakes.free = 1
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	for range 3 {
		silent, err := net.Dial("tcp", server.Address())
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
	}
	conn, err := Dial(server.Address(), viewer.ClientConfig(certs.RoleScheduler, ""))
	if err != nil {
		t.Fatal(err)
	}
	if err := check(t.Context(), conn, longEnough); err != nil {
		t.Error(err)
	}
	conn.Close()
	stop()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-patient(t).Done():
		t.Error("the server waits for callers that say nothing")
	}
}

// TestOnlySoManyHandshakesGoOnAtOnce, and all of a crowd get through.
func TestOnlySoManyHandshakesGoOnAtOnce(t *testing.T) {
	t.Parallel()
	const crowd, most = 40, 2
	source, viewer := handshakePair(t)
	var now, peak atomic.Int64
	config := source.ServerConfig()
	choose := config.GetConfigForClient
	config.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		c, err := choose(h)
		verify := c.VerifyConnection
		c.VerifyConnection = func(s tls.ConnectionState) error {
			defer now.Add(-1)
			return verify(s)
		}
		for n := now.Add(1); ; {
			if old := peak.Load(); n <= old || peak.CompareAndSwap(old, n) {
				return c, err
			}
		}
	}
	server, err := NewServer("127.0.0.1:0", ServerConfig{TLS: config, Table: auth.SchedulerTable(), Revocations: source})
	if err != nil {
		t.Fatal(err)
	}
	server.handshakes.free = most
	server.handshakes.turn = longEnough
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	var wait sync.WaitGroup
	for range crowd {
		wait.Go(func() {
			conn, err := Dial(server.Address(), viewer.ClientConfig(certs.RoleScheduler, ""))
			if err == nil {
				err = errors.Join(check(t.Context(), conn, longEnough), conn.Close())
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if p := peak.Load(); p > most {
		t.Errorf("%d went on at once", p)
	}
}
