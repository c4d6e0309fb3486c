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
	"github.com/droverhq/drover/core/rpc"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// Bounds of a connection.
const (
	dialTimeout = 5 * time.Second
	// CallTimeout bounds calls that answer at once; waits have no bound.
	CallTimeout = 30 * time.Second
	// A dead connection is noticed within keepaliveTime + keepaliveTimeout, also
	// when the network swallows everything: a reader then goes on by itself. gRPC
	// takes no shorter time, and the scheduler allows pings this often.
	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 5 * time.Second
)

// Client is a connection to a scheduler, or to the active one of several. It may
// be used concurrently.
type Client struct {
	droverv1.SchedulerServiceClient
	Certificates droverv1.CertificateServiceClient

	address string // all of them, with commas between
	conn    rpc.Conn
	watches map[string]*transport // by address
	reason  func(error) string    // why a handshake was refused; "" for other errors
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

func connect(list string, config *tls.Config, reason func(error) string, version string) (*Client, error) {
	addresses, err := rpc.SplitAddresses(list)
	if err != nil {
		return nil, err
	}
	c := &Client{address: strings.Join(addresses, ","), reason: reason, watches: map[string]*transport{}}
	for _, a := range addresses {
		c.watches[a] = &transport{}
	}
	dial := func(address string) (*grpc.ClientConn, error) {
		return dial(address, config, &refusals{address, c.watches[address], reason}, version)
	}
	if len(addresses) > 1 {
		c.conn = rpc.NewSchedulers(rpc.SchedulersConfig{Addresses: addresses, Dial: dial, Why: c.why})
	} else if c.conn, err = dial(addresses[0]); err != nil {
		return nil, err
	}
	c.conn = textConn{c.conn}
	c.SchedulerServiceClient, c.Certificates = droverv1.NewSchedulerServiceClient(c.conn), droverv1.NewCertificateServiceClient(c.conn)
	return c, nil
}

func dial(address string, config *tls.Config, r *refusals, version string) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient(
		"passthrough:///"+address,
		grpc.WithTransportCredentials(&watched{rpc.Credentials(config), r.watch}),
		grpc.WithContextDialer(r.watch.dial),
		grpc.WithUserAgent("drover/"+version),
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(
			grpc.ForceCodecV2(rpc.Codec()), grpc.MaxCallRecvMsgSize(rpc.MaxMessage), grpc.MaxCallSendMsgSize(rpc.MaxMessage),
		),
		grpc.WithChainUnaryInterceptor(comeAgain, r.unary), grpc.WithChainStreamInterceptor(r.stream),
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
	return conn, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Reached tells whether a scheduler has ever been connected to.
func (c *Client) Reached() bool {
	for _, w := range c.watches {
		if _, _, reached := w.last(); reached {
			return true
		}
	}
	return false
}

// Explain turns the error of a call into one for people. op is what was tried,
// for errors that do not say it themselves.
func (c *Client) Explain(op string, err error) error {
	if err == nil {
		return nil
	}
	st, ok := problem.Status(err)
	switch {
	case !ok:
		return err
	case problem.Reported(err):
		return c.distrusted(problem.FromStatus(op, err))
	case st.Code() == codes.DeadlineExceeded && c.Reached():
		return errs.E("ask the scheduler at "+c.address, errs.Unavailable, "NO_ANSWER", errors.New("it is there, but gave no answer in time")).
			WithHint("its log says what it waits for; its store may be away or its disk full")
	case st.Code() == codes.DeadlineExceeded:
		return c.unreachable(errors.New("no answer in time"))
	case st.Code() != codes.Unavailable:
		return problem.FromStatus(op, err)
	case len(c.watches) > 1: // the search for the active one tells more
		return c.unreachable(errors.New(st.Message()))
	}
	return c.refused(c.address, err)
}

// distrusted makes an error of certificates of a search that found nobody because
// of them.
func (c *Client) distrusted(err error) error {
	if errs.ReasonOf(err) != rpc.ReasonNoActive {
		return err
	}
	for a, w := range c.watches {
		if _, handshake, _ := w.last(); c.reason(handshake) != "" {
			return c.refused(a, handshake)
		}
	}
	return err
}

// refused says why an address cannot be called.
func (c *Client) refused(address string, err error) error {
	if why := (&refusals{address, c.watches[address], c.reason}).why(err); why != "" {
		return distrusted(address, why)
	}
	if why := limited(err); why != "" {
		return errs.E("connect to the scheduler at "+address, errs.Exhausted, "OVERLOADED", errors.New(why)).
			WithHint("end processes that use the same certificate, or use one of your own; operations.md has the limits")
	}
	return unreachable(address, errors.New(c.why(address, err)))
}

// limited is what a scheduler said that refused a connection for a limit, or "".
func limited(err error) string {
	st, _ := problem.Status(err)
	return rpc.Refused(st.Message())
}

// why says in a few words why an address cannot be called.
func (c *Client) why(address string, err error) string {
	dial, handshake, _ := c.watches[address].last()
	switch {
	case dial != nil:
		return cause(dial).Error()
	case c.reason(handshake) != "":
		return c.reason(handshake)
	case handshake != nil:
		return cause(handshake).Error()
	}
	if why := limited(err); why != "" {
		return why
	}
	if st, ok := problem.Status(err); ok && st.Code() != codes.DeadlineExceeded {
		return strings.TrimPrefix(st.Message(), "error reading from server: ")
	}
	return "no answer in time"
}

func (c *Client) unreachable(why error) error { return unreachable(c.address, why) }

func unreachable(address string, why error) error {
	return errs.E("cannot reach the scheduler at "+address, errs.Unavailable, "UNREACHABLE", why).
		WithHint(`start one with "drover dev", or set DROVER_ADDRESS`)
}

// noCerts says what is missing most: a scheduler, or a certificate for it.
func noCerts(list string) error {
	addresses, err := rpc.SplitAddresses(list)
	if err != nil {
		return err
	}
	for _, address := range addresses {
		conn, errDial := net.DialTimeout("tcp", address, dialTimeout)
		if err = errDial; err == nil {
			_ = conn.Close()
			return errs.E("connect to the scheduler at "+address, errs.Unauthenticated, "NO_CERTIFICATE", errors.New("there is no certificate")).
				WithHint("give its folder with --certs or DROVER_CERTS; an admin makes one with \"drover certs issue\"")
		}
	}
	return unreachable(list, cause(err))
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

// last is why the last connection was not made, and whether any ever was.
func (w *transport) last() (dial, handshake error, reached bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dialErr, w.handshakeErr, w.reached
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
