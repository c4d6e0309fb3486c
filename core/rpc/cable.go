package rpc

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"
	"syscall"

	"google.golang.org/grpc/credentials"
)

// writeBuffer is how much gRPC gathers before it writes, in bytes. It holds the
// memory only while there is something to write.
const writeBuffer = 64 << 10

// Sizes of what passes below TLS.
const (
	recordBytes = 16 << 10 // the most that TLS encrypts in one piece
	cableBytes  = writeBuffer + writeBuffer/recordBytes*64
)

// Credentials are mutual TLS for a connection that may carry much. crypto/tls
// makes a system call for each record of 16 KiB, in both directions, and each
// may wake the other side; here many records pass with one call.
func Credentials(config *tls.Config) credentials.TransportCredentials {
	return NewHandshakes().Credentials(config)
}

// cabled puts a cable between TLS and the connection.
type cabled struct {
	credentials.TransportCredentials
	buffers    *sync.Pool // of *[]byte with cableBytes
	handshakes *Handshakes
}

// ClientHandshake implements credentials.TransportCredentials.
func (c *cabled) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	leave, err := c.handshakes.begin(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(ctx, handshakePatience)
	defer cancel()
	w := &cable{Conn: raw, buffers: c.buffers}
	conn, info, err := c.TransportCredentials.ClientHandshake(ctx, authority, w)
	if err != nil {
		return nil, nil, err
	}
	return &secured{Conn: conn, cable: w}, info, nil
}

// ServerHandshake implements credentials.TransportCredentials.
func (c *cabled) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	leave, err := c.handshakes.admit(raw)
	if err != nil {
		return nil, nil, err
	}
	defer leave()
	w := &cable{Conn: raw, buffers: c.buffers}
	conn, info, err := c.TransportCredentials.ServerHandshake(w)
	if err != nil {
		return nil, nil, err
	}
	return &secured{Conn: conn, cable: w}, info, nil
}

// Clone implements credentials.TransportCredentials.
func (c *cabled) Clone() credentials.TransportCredentials {
	return &cabled{c.TransportCredentials.Clone(), c.buffers, c.handshakes}
}

var _ syscall.Conn = (*secured)(nil)

// secured is a connection above TLS that knows the cable below. One goroutine
// writes at a time, and one reads.
type secured struct {
	net.Conn
	cable   *cable
	flushes atomic.Bool // TLS does not know that a write is still under way
}

// Write implements net.Conn.
func (s *secured) Write(p []byte) (int, error) {
	if len(p) <= recordBytes {
		return s.Conn.Write(p)
	}
	s.flushes.Store(true)
	defer s.flushes.Store(false)
	s.cable.hold()
	n, err := s.Conn.Write(p)
	if errFlush := s.cable.flush(); err == nil {
		err = errFlush
	}
	return n, err
}

// Close implements net.Conn. As TLS does, it ends a write that is under way and
// does not wait for it with a farewell: the other side may not be reading.
func (s *secured) Close() error {
	if s.flushes.Load() {
		return s.cable.Conn.Close()
	}
	return s.Conn.Close()
}

// SyscallConn implements syscall.Conn, which gRPC sets options of TCP with.
func (s *secured) SyscallConn() (syscall.RawConn, error) { return s.cable.SyscallConn() }

// cable is a connection below TLS.
type cable struct {
	net.Conn
	buffers *sync.Pool

	// The reader's own.
	ahead *[]byte // bytes that were read ahead; nil when there are none
	rest  []byte  // of them, what has not been asked for yet
	more  bool    // the last read left something

	mu   sync.Mutex // guards the fields below, and keeps records in order
	held *[]byte    // records that wait to be written together; nil: they do not
}

func (c *cable) buffer() *[]byte {
	if b, ok := c.buffers.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, cableBytes)
	return &b
}

// Read implements net.Conn. It reads ahead only where a read has left something
// behind: a connection that is silent holds no buffer.
func (c *cable) Read(p []byte) (int, error) {
	if c.ahead == nil && !c.more {
		n, err := c.Conn.Read(p)
		c.more = n == len(p) && n >= recordBytes
		return n, err
	}
	if c.ahead == nil {
		b := c.buffer()
		n, err := c.Conn.Read(*b)
		c.more = n == len(*b)
		if n <= 0 {
			c.buffers.Put(b)
			return n, err
		}
		c.ahead, c.rest = b, (*b)[:n] // an error comes again
	}
	n := copy(p, c.rest)
	if c.rest = c.rest[n:]; len(c.rest) == 0 {
		c.buffers.Put(c.ahead)
		c.ahead, c.rest = nil, nil
	}
	return n, nil
}

// hold lets records wait until flush.
func (c *cable) hold() {
	b := c.buffer()
	*b = (*b)[:0]
	c.mu.Lock()
	c.held = b
	c.mu.Unlock()
}

// Write implements net.Conn. TLS calls it with one record at a time; an alert
// may come between those of a large write.
func (c *cable) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held == nil {
		return c.Conn.Write(p)
	}
	if len(*c.held)+len(p) > cableBytes {
		if err := c.writeHeld(); err != nil {
			return 0, err
		}
	}
	*c.held = append(*c.held, p...)
	return len(p), nil
}

func (c *cable) writeHeld() error {
	_, err := c.Conn.Write(*c.held)
	*c.held = (*c.held)[:0]
	return err
}

// flush writes what waits.
func (c *cable) flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.writeHeld()
	b := c.held
	c.held = nil
	*b = (*b)[:cap(*b)]
	c.buffers.Put(b)
	return err
}

// SyscallConn implements syscall.Conn.
func (c *cable) SyscallConn() (syscall.RawConn, error) {
	raw, ok := c.Conn.(syscall.Conn)
	if !ok {
		return nil, syscall.EINVAL
	}
	return raw.SyscallConn()
}
