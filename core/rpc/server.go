// Package rpc is where drover meets gRPC: every server, client and converter,
// and the one place where errors become statuses.
package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"github.com/droverhq/drover/core/auth"
	"github.com/droverhq/drover/core/errs"
)

// Limits of a connection.
const (
	maxMessage     = 8 << 20 // bytes; a request has 2 MiB at the most
	maxStreams     = 16384
	window         = 4 << 20
	stopGrace      = 2 * time.Second
	pingEvery      = 5 * time.Second
	pingAnswer     = 5 * time.Second
	connectTimeout = 5 * time.Second
)

// Server is a gRPC server over mutual TLS whose every call is authorized.
type Server struct {
	grpc   *grpc.Server
	listen net.Listener
	health *health.Server
}

// NewServer listens on address. A port in use is a Precondition error that
// names it. Register services on Registrar before Run.
func NewServer(address string, tlsConfig *tls.Config, table auth.Table, revocations auth.Revocations) (*Server, error) {
	listen, err := net.Listen("tcp", address)
	if err != nil {
		return nil, errs.E("listen on "+address, errs.Precondition, "LISTEN", err).
			WithHint("another process may use the port; choose one with --listen")
	}
	guard := &auth.Guard{Table: table, Revocations: revocations, Status: ToStatus}
	s := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(tlsConfig)),
		grpc.ForceServerCodecV2(frameCodec{encoding.GetCodecV2(proto.Name)}),
		grpc.ChainUnaryInterceptor(guard.Unary, statusUnary),
		grpc.ChainStreamInterceptor(guard.Stream, statusStream),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.InitialWindowSize(window), grpc.InitialConnWindowSize(window),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingEvery, Timeout: pingAnswer}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
	)
	h := health.NewServer()
	healthv1.RegisterHealthServer(s, h)
	return &Server{grpc: s, listen: listen, health: h}, nil
}

// Registrar takes the services.
func (s *Server) Registrar() grpc.ServiceRegistrar { return s.grpc }

// Address is where the server listens.
func (s *Server) Address() string { return s.listen.Addr().String() }

// Run serves until ctx ends; then open calls get a moment to finish.
func (s *Server) Run(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- s.grpc.Serve(s.listen) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve %s: %w", s.Address(), err)
	case <-ctx.Done():
	}
	s.health.Shutdown()
	force := time.AfterFunc(stopGrace, s.grpc.Stop)
	s.grpc.GracefulStop()
	force.Stop()
	if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve %s: %w", s.Address(), err)
	}
	return nil
}

// statusUnary is the one place where errors of unary calls become statuses.
func statusUnary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	resp, err := next(ctx, req)
	return resp, ToStatus(err)
}

func statusStream(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	return ToStatus(next(srv, stream))
}

// Dial makes a lazy connection over mutual TLS.
func Dial(address string, tlsConfig *tls.Config) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)),
		grpc.WithDefaultCallOptions(
			grpc.ForceCodecV2(frameCodec{encoding.GetCodecV2(proto.Name)}),
			grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage),
		),
		grpc.WithInitialWindowSize(window), grpc.WithInitialConnWindowSize(window),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingEvery, Timeout: pingAnswer, PermitWithoutStream: true}),
		grpc.WithConnectParams(quickConnect()),
	)
	if err != nil {
		return nil, errs.E("dial "+address, errs.Invalid, "ADDRESS", err)
	}
	return conn, nil
}
