package rpc

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/droverhq/drover/certs"
)

// writeBuffer is how much gRPC gathers before it writes, in bytes. It holds the
// memory only while there is something to write.
const writeBuffer = 64 << 10

// Sizes of what passes below TLS.
const (
	recordBytes = 16 << 10                                 // the most that TLS encrypts in one piece
	sealedBytes = writeBuffer + writeBuffer/recordBytes*64 // what it makes of a buffer
	cableBytes  = 4 * sealedBytes
)

// moreWithin is how long a full buffer of gRPC waits for what comes after it. More
// nearly always comes at once: gRPC writes full buffers only in the middle of much.
const moreWithin = 5 * time.Millisecond

// Credentials are mutual TLS for a connection that may carry much. crypto/tls
// makes a system call for each record of 16 KiB, in both directions, and each
// may wake the other side; here many records pass with one call. Who sends much
// wakes the other side for 256 KiB at a time: a quarter less processor time at
// each end than with 64. Those who send little hold no memory for that.
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
	if d, ok := raw.(*dialled); ok {
		defer d.leave()
	} else {
		leave, err := c.handshakes.begin(ctx)
		if err != nil {
			return nil, nil, err
		}
		defer leave()
	}
	ctx, cancel := context.WithTimeout(ctx, handshakePatience)
	defer cancel()
	meet := c.handshakes.meet((*certs.Source).ExpectServer)
	w := &cable{Conn: raw, buffers: c.buffers}
	conn, info, err := c.TransportCredentials.ClientHandshake(ctx, authority, w)
	if err != nil {
		return nil, nil, err
	}
	s := &secured{Conn: conn, cable: w, ungreeted: true}
	meet(s, info)
	return s, info, nil
}

// ServerHandshake implements credentials.TransportCredentials.
func (c *cabled) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	leave, err := c.handshakes.admit(raw)
	if err != nil {
		return nil, nil, err
	}
	defer leave()
	meet := c.handshakes.meet((*certs.Source).ExpectClient)
	w := &cable{Conn: raw, buffers: c.buffers, handshake: greetingBytes}
	conn, info, err := c.TransportCredentials.ServerHandshake(w)
	if err != nil {
		return nil, nil, err
	}
	w.handshake = 0
	s := &secured{Conn: conn, cable: w}
	leaf, known := leafOf(info)
	counted, ok := raw.(*incoming)
	switch {
	case !known && ok:
		counted.visit()
		return newGuest(s), &guest{info, counted}, nil
	case !known:
		return newGuest(s), info, nil
	case ok:
		err = counted.identify(leaf)
	}
	if err != nil {
		leave() // nobody waits for its turn meanwhile
		sayRefused(s, err)
		return nil, nil, err
	}
	meet(s, info)
	return s, info, nil
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
	closed  func()      // called by Close; nil: nobody wants to know

	// ungreeted is the reader's own: it has dialled, and nothing has come yet.
	ungreeted bool
}

// Read implements net.Conn.
func (s *secured) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	if n > 0 && s.ungreeted {
		s.ungreeted = false
		if why := refusal(p[:n], s.Conn); why != nil {
			return 0, why
		}
	}
	return n, err
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
	if errFlush := s.cable.settle(len(p) == writeBuffer); err == nil {
		err = errFlush
	}
	return n, err
}

// Close implements net.Conn. As TLS does, it ends a write that is under way and
// does not wait for it with a farewell: the other side may not be reading.
func (s *secured) Close() error {
	if s.closed != nil {
		s.closed()
	}
	defer s.cable.stop()
	if s.flushes.Load() {
		return s.cable.Conn.Close()
	}
	return s.Conn.Close()
}

// cut ends the connection below TLS at once: a farewell would wait for a peer that
// does not read. gRPC meets the error and closes the rest.
func (s *secured) cut() { _ = s.cable.Conn.Close() } // fails when it is closed already

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
	// handshake is how many bytes may be read before the other side has proved who it
	// is; 0: it has.
	handshake int

	mu       sync.Mutex  // guards the fields below, and keeps records in order
	held     *[]byte     // records that wait to be written together; nil: there are none
	gathers  bool        // more are being made: nothing is written before settle
	timer    *time.Timer // writes what waits when no more comes; nil: it never did
	awaiting bool        // the timer runs
	stopped  bool
	err      error // of a write that nobody was told of
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
		if c.handshake > 0 {
			if c.handshake -= n; c.handshake <= 0 {
				return 0, errLongHandshake
			}
		}
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

// hold lets records wait until settle.
func (c *cable) hold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gathers = true
	if c.held == nil {
		c.held = c.buffer()
		*c.held = (*c.held)[:0]
	}
}

// Write implements net.Conn. TLS calls it with one record at a time; an alert
// may come between those of a large write.
func (c *cable) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	if c.held == nil {
		return c.Conn.Write(p)
	}
	if len(*c.held)+len(p) > cableBytes {
		if c.writeHeld(); c.err != nil {
			return 0, c.err
		}
	}
	*c.held = append(*c.held, p...)
	if !c.gathers {
		c.flush()
	}
	return len(p), c.err
}

// writeHeld writes what waits; c.mu is held.
func (c *cable) writeHeld() {
	if c.err == nil {
		_, c.err = c.Conn.Write(*c.held)
	}
	*c.held = (*c.held)[:0]
}

// flush writes what waits and gives its memory back; c.mu is held.
func (c *cable) flush() {
	c.writeHeld()
	b := c.held
	c.held = nil
	*b = (*b)[:cap(*b)]
	c.buffers.Put(b)
}

// settle ends hold. It writes what waits, unless more is on its way and there is
// room for it.
func (c *cable) settle(more bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gathers = false
	if more && len(*c.held)+sealedBytes <= cableBytes && !c.stopped {
		c.await()
		return c.err
	}
	c.flush()
	return c.err
}

// await makes sure that what waits is written also when no more comes; c.mu is
// held. The timer is not set again for each buffer: that would wake the poller.
func (c *cable) await() {
	switch {
	case c.awaiting:
		return
	case c.timer == nil:
		c.timer = time.AfterFunc(moreWithin, c.late)
	default:
		c.timer.Reset(moreWithin)
	}
	c.awaiting = true
}

// late writes what has waited for more, perhaps for a shorter time.
func (c *cable) late() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.awaiting = false
	if c.held != nil && !c.gathers { // settle is near otherwise
		c.flush()
	}
}

// stop ends the timer, and returns when it does nothing any more. The connection
// is closed.
func (c *cable) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = true
	if c.timer != nil {
		c.timer.Stop()
	}
	if c.held != nil && !c.gathers {
		c.flush()
	}
}

// SyscallConn implements syscall.Conn.
func (c *cable) SyscallConn() (syscall.RawConn, error) {
	raw, ok := c.Conn.(syscall.Conn)
	if !ok {
		return nil, syscall.EINVAL
	}
	return raw.SyscallConn()
}
