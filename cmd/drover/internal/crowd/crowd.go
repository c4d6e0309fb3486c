// Package crowd is a great many simulated workers in one process. Their
// certificates, connections, registrations, heartbeats and sessions are real;
// only what they run is not.
package crowd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/rpc"
	"github.com/droverhq/drover/core/worker"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// Command is what jobs for simulated workers ask for. They succeed at once, or
// with Hold as their only argument when the crowd is released.
const (
	Command = "simulated"
	Hold    = "hold"
)

// Config says how many workers there are and of which cluster.
type Config struct {
	Scheduler string // address
	CA        string // folder of the CA
	First     int    // number of the first worker, for its name
	Count     int
	Slots     int // of each
}

// Counts tell how the crowd is.
type Counts struct {
	Ready    int64 `json:"ready"`    // workers that wait for Begin, or have begun
	Sessions int64 `json:"sessions"` // open now
	Opened   int64 `json:"opened"`   // in all
	Beats    int64 `json:"beats"`    // heartbeats that were answered
	Missed   int64 `json:"missed"`   // heartbeats that were not
	Started  int64 `json:"started"`  // attempts
	Acked    int64 `json:"acked"`    // final reports that the scheduler has recorded
}

// Crowd is the running workers.
type Crowd struct {
	config     Config
	issuer     *issuer
	handshakes *rpc.Handshakes // one line for all, as each process has
	begun      func()
	begin      <-chan struct{}
	byID       sync.Map // id of a worker -> *member
	counts     struct{ ready, sessions, opened, beats, missed, started, acked atomic.Int64 }
	mu         sync.Mutex // guards the fields below
	released   bool
	holding    []func() // ends the jobs that hold
}

// New makes a crowd; Run brings it to life.
func New(c Config) (*Crowd, error) {
	i, err := newIssuer(c.CA)
	if err != nil {
		return nil, err
	}
	begin := make(chan struct{})
	return &Crowd{
		config: c, issuer: i, handshakes: rpc.NewHandshakes(),
		begin: begin, begun: sync.OnceFunc(func() { close(begin) }),
	}, nil
}

// Begin lets the workers look for their scheduler, all at once.
func (c *Crowd) Begin() { c.begun() }

// Counts may be called at any time.
func (c *Crowd) Counts() Counts {
	n := &c.counts
	return Counts{
		Ready: n.ready.Load(), Sessions: n.sessions.Load(), Opened: n.opened.Load(), Beats: n.beats.Load(),
		Missed: n.missed.Load(), Started: n.started.Load(), Acked: n.acked.Load(),
	}
}

// Release lets the jobs end that hold, now and from now on.
func (c *Crowd) Release() {
	c.mu.Lock()
	holding := c.holding
	c.released, c.holding = true, nil
	c.mu.Unlock()
	for _, end := range holding {
		end()
	}
}

func (c *Crowd) whenReleased(end func()) {
	c.mu.Lock()
	if !c.released {
		c.holding = append(c.holding, end)
		end = func() {}
	}
	c.mu.Unlock()
	end()
}

// Run lets the workers live until ctx ends.
func (c *Crowd) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	byPort := map[int]*member{}
	defer func() {
		for _, m := range byPort {
			_ = m.listen.Close() // the server has closed it, if it was served
		}
	}()
	for i := range c.config.Count {
		m, err := c.member(c.config.First + i)
		if err != nil {
			return err
		}
		byPort[m.listen.Addr().(*net.TCPAddr).Port] = m
	}
	server := c.server(byPort)
	var wait sync.WaitGroup
	for _, m := range byPort {
		wait.Go(func() {
			if err := server.Serve(m.listen); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
				cancel(fmt.Errorf("serve %s: %w", m.name, err))
			}
		})
		wait.Go(func() {
			if err := m.live(ctx); err != nil {
				cancel(err)
			}
		})
	}
	c.counts.ready.Store(int64(len(byPort)))
	<-ctx.Done()
	c.handshakes.Close()
	server.Stop()
	wait.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// server is one for all workers, with the settings of rpc.NewServer. Which of
// them is called, and whose certificate is shown, goes by the port.
func (c *Crowd) server(byPort map[int]*member) *grpc.Server {
	config := &tls.Config{
		MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true, NextProtos: []string{"h2"},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: c.issuer.roots,
		GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			return byPort[h.Conn.LocalAddr().(*net.TCPAddr).Port].cert, nil
		},
	}
	s := grpc.NewServer(
		grpc.Creds(c.handshakes.Credentials(config)), grpc.ReadBufferSize(0),
		grpc.InitialWindowSize(1<<20), grpc.InitialConnWindowSize(4<<20),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 15 * time.Second, Timeout: 5 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
	)
	droverv1.RegisterWorkerServiceServer(s, &service{crowd: c})
	return s
}

// member is one simulated worker.
type member struct {
	crowd  *Crowd
	name   string
	listen net.Listener
	cert   *tls.Certificate
	board  board
}

func (c *Crowd) member(number int) (*member, error) {
	name := fmt.Sprintf("sim%05d", number)
	cert, err := c.issuer.issue(number, name)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for %s: %w", name, err)
	}
	return &member{crowd: c, name: name, listen: l, cert: cert, board: newBoard()}, nil
}

// longestPause is the longest pause after a registration that failed.
const longestPause = 2 * time.Second

// live registers and renews the lease, as core/worker does.
func (m *member) live(ctx context.Context) error {
	select {
	case <-m.crowd.begin:
	case <-ctx.Done():
		return nil
	}
	conn, err := m.crowd.handshakes.Dial(m.crowd.config.Scheduler, &tls.Config{
		MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true, NextProtos: []string{"h2"},
		RootCAs: m.crowd.issuer.roots, ServerName: "127.0.0.1",
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return m.cert, nil },
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	members := rpc.NewMembership(conn)
	reg := worker.Registration{
		Address: m.listen.Addr().String(), Labels: map[string]string{"simulated": "yes"}, Slots: m.crowd.config.Slots,
		BootID: "sim", InstanceID: m.name, Commands: []string{Command}, Version: "sim",
	}
	retry := worker.NewRhythm(longestPause)
	for ctx.Err() == nil {
		got, err := members.Register(ctx, reg)
		if err != nil {
			if kind := errs.KindOf(err); kind == errs.Denied || kind == errs.Invalid {
				return fmt.Errorf("register %s: %w", m.name, err)
			}
			sleep(ctx, retry.Next(0, err))
			continue
		}
		retry = worker.NewRhythm(longestPause)
		reg.WorkerID = got.WorkerID
		m.crowd.byID.Store(got.WorkerID.String(), m)
		rhythm := worker.NewRhythm(got.Heartbeat)
		for next := rhythm.Next(0, nil); sleep(ctx, next); {
			renewal, err := members.Heartbeat(ctx, worker.Beat{WorkerID: got.WorkerID, Running: m.board.running()})
			if errs.KindOf(err) == errs.NotFound {
				break
			}
			next = rhythm.Next(renewal.Heartbeat, err)
			if err != nil {
				m.crowd.counts.missed.Add(1)
				continue
			}
			m.crowd.counts.beats.Add(1)
		}
	}
	return nil
}

// sleep waits, or returns false when ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
