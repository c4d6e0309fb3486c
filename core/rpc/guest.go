package rpc

import (
	"context"
	"crypto/x509"
	"errors"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/droverhq/drover/core/errs"
)

// What a connection without a certificate gets, in all. It is there to join.
const (
	guestLife = 10 * time.Second
	// A Join has 2 KiB in some ten frames.
	guestBytes  = 64 << 10
	guestFrames = 500
	guestCalls  = 64
	// greetingBytes is what the handshake of a caller may have. With more of them a
	// stranger could have many certificates checked.
	greetingBytes = 32 << 10
)

var (
	errLongHandshake = errors.New("the handshake has too many bytes")
	errGuest         = errors.New("too much was sent without a certificate")
)

// leafOf returns the certificate that a caller has proved.
func leafOf(info credentials.AuthInfo) (leaf *x509.Certificate, ok bool) {
	t, ok := info.(credentials.TLSInfo)
	if !ok || len(t.State.PeerCertificates) == 0 {
		return nil, false
	}
	return t.State.PeerCertificates[0], true
}

// guestConn is a connection without a certificate.
type guestConn struct {
	*secured
	end *time.Timer

	// The reader's own.
	left, frames, calls int
	head                []byte // of the frame that is being read
	body                int    // of it, bytes to come
}

func newGuest(s *secured) *guestConn {
	return &guestConn{
		secured: s, end: time.AfterFunc(guestLife, s.cut), // gRPC sees it
		left: guestBytes, frames: guestFrames, calls: guestCalls, body: len(http2.ClientPreface),
	}
}

// Read implements net.Conn.
func (c *guestConn) Read(p []byte) (int, error) {
	n, err := c.secured.Read(p)
	if !c.may(p[:n]) {
		return 0, errGuest
	}
	return n, err
}

// may counts bytes, frames and calls (RFC 9113, 4.1): gRPC would begin each call before
// the first of them is refused.
func (c *guestConn) may(p []byte) bool {
	c.left -= len(p)
	for len(p) > 0 {
		skip := min(c.body, len(p))
		c.body -= skip
		p = p[skip:]
		take := min(frameHead-len(c.head), len(p))
		c.head = append(c.head, p[:take]...)
		p = p[take:]
		if len(c.head) < frameHead {
			continue
		}
		c.body = int(c.head[0])<<16 | int(c.head[1])<<8 | int(c.head[2])
		if c.frames--; http2.FrameType(c.head[3]) == http2.FrameHeaders {
			c.calls--
		}
		c.head = c.head[:0]
	}
	return c.left >= 0 && c.frames >= 0 && c.calls >= 0
}

// frameHead is the size of what stands before each frame, in bytes.
const frameHead = 9

// Close implements net.Conn.
func (c *guestConn) Close() error {
	c.end.Stop()
	return c.secured.Close()
}

// guest stands in place of the identity of a connection that has none.
type guest struct {
	credentials.AuthInfo
	conn *incoming
}

// guestOf returns the guest that makes a call.
func guestOf(ctx context.Context) (*guest, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, false
	}
	g, ok := p.AuthInfo.(*guest)
	return g, ok
}

// oneCall is the interceptor that lets a guest have one call at a time.
func oneCall(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	g, ok := guestOf(stream.Context())
	if !ok {
		return next(srv, stream)
	}
	if !g.conn.occupy(true) {
		return ToStatus(errs.E("open the call", errs.Exhausted, "OVERLOADED", errors.New("without a certificate one call is open at a time")))
	}
	defer g.conn.occupy(false)
	return next(srv, stream)
}
