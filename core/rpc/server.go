// Package rpc is where drover meets gRPC: every server, client and converter,
// and the one place where errors become statuses.
package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/droverhq/drover/core/auth"
	"github.com/droverhq/drover/core/errs"
)

// Limits of a connection.
const (
	maxHeaders = 16 << 10
	// maxStreams is of one connection. A scheduler comes to a worker for all its
	// clients, with one connection.
	maxStreams = 2048
	window     = 4 << 20 // of a connection
	// requestWindow is what a caller may send of a request that is not being read yet.
	requestWindow = 64 << 10
	// What a client that does not read its stream holds: the other side sends no more.
	streamWindow = 1 << 20
	stopGrace    = 2 * time.Second
	// A connection whose other side is silent, though nothing was reset, is given
	// up when a ping stays without an answer. Who dials asks, as soon as gRPC lets
	// it; who listens only when no question came: a scheduler has a silent connection
	// to each worker, and each ping costs it a fourth of what a heartbeat does.
	pingEvery  = 10 * time.Second
	pingIdle   = 15 * time.Second // at the side that listens
	pingAnswer = 5 * time.Second
	// A scheduler has two connections to each worker, most of them silent: what
	// a connection holds while it is silent is what many workers cost. TLS has a
	// buffer of what it has decrypted, so that gRPC needs none to read from; the
	// write buffer is held only while there is something to write.
	readBuffer = 0
)

// Server is a gRPC server over mutual TLS whose every call is authorized.
type Server struct {
	grpc       *grpc.Server
	services   registrar
	listen     *share
	health     *health.Server
	handshakes *Handshakes

	revocations auth.Revocations
}

// ServerConfig says whom a server serves.
type ServerConfig struct {
	TLS         *tls.Config
	Table       auth.Table
	Revocations auth.Revocations
	// Connections watches those of the server; nil: nobody does.
	Connections *Connections
	// Log is told when connections are refused; nil: nobody is.
	Log *slog.Logger
	// May is asked before each call that is allowed; its error is the answer.
	// nil: always.
	May func() error
}

// NewServer listens on address. A port in use is a Precondition error that
// names it. Register services on Registrar before Run.
func NewServer(address string, c ServerConfig) (*Server, error) {
	port, err := Listen(address)
	if err != nil {
		return nil, err
	}
	s := port.newServer(c).healthy()
	s.listen.last = true
	return s, nil
}

func (p *Port) newServer(c ServerConfig) *Server {
	guard := &auth.Guard{Table: c.Table, Revocations: c.Revocations, Status: ToStatus}
	gate := gate{c.May}
	crowds := newCrowds()
	requests := newRequestLimiter()
	handshakes := c.Connections.NewHandshakes()
	s := grpc.NewServer(
		grpc.Creds(handshakes.Credentials(c.TLS)),
		grpc.ForceServerCodecV2(Codec()),
		grpc.ChainStreamInterceptor(oneCall, guard.Stream, gate.stream, crowds.stream, requests.stream, statusStream),
		grpc.UnknownServiceHandler(gate.unknown),
		grpc.MaxRecvMsgSize(MaxMessage), grpc.MaxSendMsgSize(MaxMessage),
		grpc.MaxConcurrentStreams(maxStreams), grpc.MaxHeaderListSize(maxHeaders),
		grpc.InitialWindowSize(requestWindow), grpc.InitialConnWindowSize(window),
		grpc.ReadBufferSize(readBuffer), grpc.WriteBufferSize(writeBuffer), experimental.BufferPool(&loans{}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingIdle, Timeout: pingAnswer}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
	)
	p.limiter.logTo(c.Log)
	return &Server{
		grpc: s, services: registrar{s, crowds.unary}, listen: p.share(), handshakes: handshakes, revocations: c.Revocations,
	}
}

// Serving makes a server for as long as it runs; the port stays. Register
// services on Registrar before Run. A port has one server at a time.
func (p *Port) Serving(c ServerConfig) *Server { return p.newServer(c).healthy() }

// Refusing makes a server that answers every call that is allowed, also one for
// its health, with the error that c.May returns.
func (p *Port) Refusing(c ServerConfig) *Server { return p.newServer(c) }

// healthy adds the service that tells that this one serves.
func (s *Server) healthy() *Server {
	s.health = health.NewServer()
	healthv1.RegisterHealthServer(s.services, s.health)
	return s
}

// HealthOfRevocations is the service of grpc.health.v1 that is NOT_SERVING while a list
// of revoked certificates cannot be read.
const HealthOfRevocations = "drover.revocations"

// watchRevocations keeps HealthOfRevocations right until ctx ends.
func (s *Server) watchRevocations(ctx context.Context) {
	lists, ok := s.revocations.(interface{ Unread() error })
	if !ok || s.health == nil {
		return
	}
	tick := time.NewTicker(recheckEvery)
	defer tick.Stop()
	for {
		state := healthv1.HealthCheckResponse_SERVING
		if lists.Unread() != nil {
			state = healthv1.HealthCheckResponse_NOT_SERVING
		}
		s.health.SetServingStatus(HealthOfRevocations, state)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// gate asks whether a call may begin.
type gate struct{ may func() error }

func (g gate) ask() error {
	if g.may == nil {
		return nil
	}
	return ToStatus(g.may())
}

func (g gate) stream(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := g.ask(); err != nil {
		return err
	}
	return next(srv, stream)
}

// unknown is the handler of calls of services that are not registered.
func (g gate) unknown(any, grpc.ServerStream) error {
	return status.Error(codes.Unimplemented, "this server does not serve that")
}

// Registrar takes the services.
func (s *Server) Registrar() grpc.ServiceRegistrar { return s.services }

// Address is where the server listens.
func (s *Server) Address() string { return s.listen.Addr().String() }

// Run serves until ctx ends; then open calls get a moment to finish.
func (s *Server) Run(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- s.grpc.Serve(s.listen) }()
	watch, stopWatching := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { s.watchRevocations(watch) })
	defer watching.Wait()
	defer stopWatching()
	select {
	case err := <-done:
		if err == nil || errors.Is(err, grpc.ErrServerStopped) { // Cut
			<-ctx.Done()
			return nil
		}
		return fmt.Errorf("serve %s: %w", s.Address(), err)
	case <-ctx.Done():
	}
	if s.health != nil {
		s.health.Shutdown()
	}
	s.handshakes.Close()
	force := time.AfterFunc(stopGrace, s.grpc.Stop)
	s.grpc.GracefulStop()
	force.Stop()
	if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve %s: %w", s.Address(), err)
	}
	return nil
}

// Cut ends every call and connection at once. Run returns when ctx ends.
func (s *Server) Cut() {
	s.handshakes.Close()
	s.grpc.Stop()
}

// statusStream is the one place where errors of calls become statuses.
func statusStream(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	return ToStatus(next(srv, stream))
}

// Dial makes a lazy connection over mutual TLS.
func Dial(address string, tlsConfig *tls.Config) (*grpc.ClientConn, error) {
	return NewHandshakes().Dial(address, tlsConfig)
}

// Dial is the function Dial with these bounds, and perhaps other options.
func (h *Handshakes) Dial(address string, tlsConfig *tls.Config, more ...grpc.DialOption) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("passthrough:///"+address, append([]grpc.DialOption{
		grpc.WithTransportCredentials(h.Credentials(tlsConfig)),
		grpc.WithContextDialer(h.dial),
		grpc.WithDefaultCallOptions(
			grpc.ForceCodecV2(Codec()),
			grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage),
		),
		grpc.WithInitialWindowSize(streamWindow), grpc.WithInitialConnWindowSize(window),
		grpc.WithReadBufferSize(readBuffer), grpc.WithWriteBufferSize(writeBuffer), experimental.WithBufferPool(&loans{}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingEvery, Timeout: pingAnswer, PermitWithoutStream: true}),
		grpc.WithConnectParams(quickConnect()),
	}, more...)...)
	if err != nil {
		return nil, errs.E("dial "+address, errs.Invalid, "ADDRESS", err)
	}
	return conn, nil
}
