// Package client finds a scheduler, connects to it with mutual TLS and tells
// in plain words why that did not work.
package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/cmd/drover/internal/problem"
	"github.com/droverhq/drover/core/errs"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// Bounds of a connection.
const (
	dialTimeout = 5 * time.Second
	// CallTimeout bounds calls that answer at once; waits have no bound.
	CallTimeout = 30 * time.Second
	// A dead connection is noticed within keepaliveTime + keepaliveTimeout. The
	// scheduler allows pings this often.
	keepaliveTime    = 30 * time.Second
	keepaliveTimeout = 10 * time.Second
)

// Client is a connection to a scheduler. It may be used concurrently.
type Client struct {
	droverv1.SchedulerServiceClient
	Certificates droverv1.CertificateServiceClient

	address string
	conn    *grpc.ClientConn
	watch   *transport
	reason  func(error) string // why a handshake was refused; "" for other errors
}

// Dial prepares a connection; the first call makes it.
func Dial(t Target, version string) (*Client, error) {
	if t.Certs == "" {
		return nil, noCerts(t.Address)
	}
	source, err := certs.NewSource(t.Certs, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, badCerts(t, err)
	}
	return connect(t.Address, source.ClientConfig(certs.RoleScheduler, ""), source.Explain, version)
}

// DialToJoin prepares a connection without a certificate of one's own: the
// scheduler must belong to the CA that the pin of a join token names.
func DialToJoin(address, pin, version string) (*Client, error) {
	return connect(address, certs.JoinConfig(pin), certs.Explain, version)
}

func connect(address string, config *tls.Config, reason func(error) string, version string) (*Client, error) {
	if _, _, err := net.SplitHostPort(address); err != nil {
		return nil, errs.E("connect to the scheduler", errs.Invalid, "ADDRESS", fmt.Errorf("%q is not HOST:PORT", address))
	}
	w := &transport{}
	conn, err := grpc.NewClient(
		"passthrough:///"+address,
		grpc.WithTransportCredentials(&watched{credentials.NewTLS(config), w}),
		grpc.WithContextDialer(w.dial),
		grpc.WithUserAgent("drover/"+version),
		grpc.WithDisableServiceConfig(),
		grpc.WithConnectParams(grpc.ConnectParams{
			MinConnectTimeout: dialTimeout,
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.WithInitialWindowSize(1<<20), grpc.WithInitialConnWindowSize(4<<20),
	)
	if err != nil {
		return nil, errs.E("connect to the scheduler", errs.Invalid, "ADDRESS", err)
	}
	return &Client{droverv1.NewSchedulerServiceClient(conn), droverv1.NewCertificateServiceClient(conn), address, conn, w, reason}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Reached tells whether the scheduler has ever been connected to.
func (c *Client) Reached() bool {
	c.watch.mu.Lock()
	defer c.watch.mu.Unlock()
	return c.watch.reached
}

// Explain turns the error of a call into one for people. op is what was tried,
// for errors that do not say it themselves.
func (c *Client) Explain(op string, err error) error {
	if err == nil || problem.Reported(err) {
		return problem.FromStatus(op, err)
	}
	st, ok := problem.Status(err)
	if !ok {
		return err
	}
	if st.Code() == codes.DeadlineExceeded {
		return c.unreachable(errors.New("no answer in time"))
	}
	if st.Code() != codes.Unavailable {
		return problem.FromStatus(op, err)
	}
	c.watch.mu.Lock()
	dial, handshake := c.watch.dialErr, c.watch.handshakeErr
	c.watch.mu.Unlock()
	why := c.reason(handshake)
	if why == "" {
		why = c.reason(err)
	}
	switch {
	case dial != nil:
		return c.unreachable(cause(dial))
	case why != "":
		return errs.E("connect to the scheduler at "+c.address, errs.Unauthenticated, "CERTIFICATE", errors.New(why)).
			WithHint(`"drover context ls" shows which certificate is used; --certs and DROVER_CERTS give another`)
	case handshake != nil:
		return c.unreachable(cause(handshake))
	default:
		return c.unreachable(errors.New(strings.TrimPrefix(st.Message(), "error reading from server: ")))
	}
}

func (c *Client) unreachable(why error) error { return unreachable(c.address, why) }

func unreachable(address string, why error) error {
	return errs.E("cannot reach the scheduler at "+address, errs.Unavailable, "UNREACHABLE", why).
		WithHint(`start one with "drover dev", or set DROVER_ADDRESS`)
}

// noCerts says what is missing most: a scheduler, or a certificate for it.
func noCerts(address string) error {
	conn, err := net.DialTimeout("tcp", address, dialTimeout)
	if err != nil {
		return unreachable(address, cause(err))
	}
	_ = conn.Close()
	return errs.E("connect to the scheduler at "+address, errs.Unauthenticated, "NO_CERTIFICATE", errors.New("there is no certificate")).
		WithHint("give its folder with --certs or DROVER_CERTS; an admin makes one with \"drover certs issue\"")
}

func badCerts(t Target, err error) error {
	e := errs.E("connect to the scheduler at "+t.Address, errs.Unauthenticated, "CERTIFICATE", err)
	if errors.Is(err, fs.ErrNotExist) {
		return e.WithHint("--certs, DROVER_CERTS or the context must name a folder with tls.crt, tls.key and ca.crt")
	}
	return e
}

// cause is the last word of a network error: "connection refused".
func cause(err error) error {
	for next := errors.Unwrap(err); next != nil; next = errors.Unwrap(next) {
		var dns *net.DNSError
		if errors.As(err, &dns) {
			return fmt.Errorf("%s: %s", dns.Name, dns.Err)
		}
		err = next
	}
	return err
}

// transport remembers why the last connection was not made: gRPC keeps the
// words of these errors, not the errors.
type transport struct {
	mu           sync.Mutex // guards the fields below
	dialErr      error
	handshakeErr error
	reached      bool
}

func (w *transport) dial(ctx context.Context, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	w.mu.Lock()
	w.dialErr = err
	w.mu.Unlock()
	return conn, err
}

// watched are credentials that tell a transport about handshakes.
type watched struct {
	credentials.TransportCredentials
	to *transport
}

// ClientHandshake implements credentials.TransportCredentials.
func (c *watched) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	secure, info, err := c.TransportCredentials.ClientHandshake(ctx, authority, conn)
	c.to.mu.Lock()
	c.to.handshakeErr = err
	c.to.reached = c.to.reached || err == nil
	c.to.mu.Unlock()
	if err != nil {
		return nil, nil, err
	}
	return newAlerted(secure), info, nil
}

// Clone implements credentials.TransportCredentials.
func (c *watched) Clone() credentials.TransportCredentials {
	return &watched{c.TransportCredentials.Clone(), c.to}
}
