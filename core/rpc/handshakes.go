package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"

	"github.com/droverhq/drover/certs"
)

// Bounds of handshakes.
const (
	// handshakesPerCore are under way at once: enough to keep a core busy while
	// most of them wait for the other side.
	handshakesPerCore = 16
	// handshakeTurn is how long one counts as under way. A peer that lets others
	// wait for longer does not hold them up: its handshake goes on beside them.
	handshakeTurn = time.Second
	// handshakeQueue is how long a connection waits for its turn. Who dialled has
	// given up before.
	handshakeQueue = 2 * handshakePatience
	// handshakePatience is how long who dials waits for the handshake. It may be
	// one of thousands that come back to a scheduler at once.
	handshakePatience = 30 * time.Second
	// firstByte is how long a caller may say nothing.
	firstByte = 2 * time.Second
	// greeting is how long a caller has from its turn to the end of its handshake and
	// to the first frame of HTTP/2. gRPC takes the deadline away after that.
	greeting = 10 * time.Second
)

// Handshakes lets a few TLS handshakes go on at once, of those that wait the
// newest first. All that are under way share the processors: when thousands are,
// none of them ends before its other side gives up, and the work of all is lost.
// Whoever came last has the most patience left, and is more likely a person. It
// may be used concurrently.
type Handshakes struct {
	turn        time.Duration
	connections *Connections // learns of every connection; nil: nobody does

	mu      sync.Mutex // guards the fields below
	free    int
	waiting []*place // the newest last; some have gone away
	callers map[net.Conn]struct{}
	closed  bool
}

// place is one in the line.
type place struct {
	came chan struct{} // closed when it is its turn, or nobody's any more
	gone bool          // guarded by Handshakes.mu
}

var errHandshakesClosed = errors.New("this server takes no connections any more")

// NewHandshakes is for all connections of one kind in a process.
func NewHandshakes() *Handshakes { return newHandshakes(handshakesPerCore * runtime.GOMAXPROCS(0)) }

func newHandshakes(most int) *Handshakes {
	return &Handshakes{turn: handshakeTurn, free: most, callers: map[net.Conn]struct{}{}}
}

// NewHandshakes is the function NewHandshakes for connections that are to be closed
// when they would not be admitted any more. c may be nil: then nobody closes them.
func (c *Connections) NewHandshakes() *Handshakes {
	h := NewHandshakes()
	h.connections = c
	return h
}

// meet begins to watch who a handshake is with. Call what it returns when the
// handshake is over.
func (h *Handshakes) meet(expect func(*certs.Source) *certs.Peer) func(*secured, credentials.AuthInfo) {
	if h.connections == nil {
		return func(*secured, credentials.AuthInfo) {}
	}
	peer := expect(h.connections.source)
	return func(s *secured, info credentials.AuthInfo) { h.connections.add(s, info, peer) }
}

// Credentials is the function Credentials with these bounds.
func (h *Handshakes) Credentials(config *tls.Config) credentials.TransportCredentials {
	return &cabled{credentials.NewTLS(config), &sync.Pool{}, h}
}

// Close hangs up on callers whose handshake has not ended, and on all that come:
// they would hold up the end of the server.
func (h *Handshakes) Close() {
	h.mu.Lock()
	callers, waiting := h.callers, h.waiting
	h.closed, h.callers, h.waiting = true, nil, nil
	h.mu.Unlock()
	for c := range callers {
		_ = c.Close()
	}
	for _, t := range waiting {
		close(t.came)
	}
}

// begin waits until a handshake may go on. leave is to be called at its end.
func (h *Handshakes) begin(ctx context.Context) (leave func(), err error) {
	t := &place{came: make(chan struct{})}
	h.mu.Lock()
	switch {
	case h.closed:
	case h.free > 0:
		h.free--
		close(t.came)
	default:
		h.waiting = append(h.waiting, t)
		h.mu.Unlock()
		select {
		case <-t.came:
		case <-ctx.Done():
		}
		h.mu.Lock()
	}
	defer h.mu.Unlock()
	if h.closed {
		return nil, errHandshakesClosed
	}
	select {
	case <-t.came:
		var once sync.Once
		give := func() { once.Do(h.next) }
		late := time.AfterFunc(h.turn, give)
		return func() { late.Stop(); give() }, nil
	default:
		t.gone = true
		return nil, ctx.Err()
	}
}

// next gives a place to the newest of those that wait.
func (h *Handshakes) next() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for n := len(h.waiting); n > 0; n = len(h.waiting) {
		t := h.waiting[n-1]
		h.waiting = h.waiting[:n-1]
		if !t.gone {
			close(t.came)
			return
		}
	}
	h.free++
}

// admit lets a caller in when it has begun to speak, is its turn, and it has not
// given up meanwhile. leave is to be called when the handshake has ended.
func (h *Handshakes) admit(raw net.Conn) (leave func(), err error) {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil, errHandshakesClosed
	}
	h.callers[raw] = struct{}{}
	h.mu.Unlock()
	end, err := h.queue(raw)
	if err != nil {
		h.left(raw)
		return nil, err
	}
	return func() { end(); h.left(raw) }, nil
}

func (h *Handshakes) left(raw net.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.callers, raw)
}

func (h *Handshakes) queue(raw net.Conn) (end func(), err error) {
	socket, ok := raw.(syscall.Conn)
	if ok {
		if err := raw.SetReadDeadline(time.Now().Add(firstByte)); err != nil {
			return nil, err
		}
		if err := spoken(socket); err != nil {
			return nil, err
		}
	}
	arrived(raw, stageWaiting)
	ctx, cancel := context.WithTimeout(context.Background(), handshakeQueue)
	defer cancel()
	if end, err = h.begin(ctx); err != nil {
		return nil, err
	}
	if ok && hungUp(socket) {
		end()
		return nil, io.EOF // gRPC says nothing about it
	}
	arrived(raw, stageGreeting)
	if err := raw.SetDeadline(time.Now().Add(greeting)); err != nil {
		end()
		return nil, err
	}
	return end, nil
}

// arrived notes how far a connection has come, if it is counted.
func arrived(raw net.Conn, s stage) {
	if c, ok := raw.(*incoming); ok {
		c.reach(s)
	}
}

// spoken waits until the first record of TLS is there to be read: whoever connects and
// says nothing, or stops in its first words, takes nobody's turn.
func spoken(c syscall.Conn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var whole bool
	err2 := raw.Read(func(fd uintptr) bool {
		whole, err = firstRecord(int(fd))
		return whole || err != nil
	})
	return errors.Join(err2, err)
}

// Of a record of TLS.
const (
	recordHead = 5
	// helloBytes is enough to see that somebody speaks: a hello is one record, and
	// mostly smaller.
	helloBytes = 4 << 10
)

// firstRecord tells whether the first record has come whole, without reading it.
func firstRecord(fd int) (bool, error) {
	head := make([]byte, recordHead)
	for {
		n, _, err := unix.Recvfrom(fd, head, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return false, nil
		case err != nil:
			return false, err
		case n == 0:
			return false, io.EOF
		case n < recordHead:
			return false, nil
		}
		there, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
		return there >= min(recordHead+int(head[3])<<8+int(head[4]), helloBytes), err
	}
}

// hungUp tells whether the other side has closed the connection. What it said
// before is still to be read then, so reading does not tell.
func hungUp(c syscall.Conn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	var info *unix.TCPInfo
	var errInfo error
	if err = raw.Control(func(fd uintptr) { info, errInfo = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); err != nil {
		return true
	}
	return errInfo == nil && info.State != unix.BPF_TCP_ESTABLISHED
}
