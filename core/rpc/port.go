package rpc

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/lifecycle"
)

// Port is an address that is listened on while servers on it come and go: who
// connects in between waits.
type Port struct {
	listen  *net.TCPListener
	limiter *connectionLimiter
}

// Listen listens on address. A port that stays in use is a Precondition error that
// names it.
func Listen(address string) (*Port, error) {
	const op = "listen on "
	var listen net.Listener
	err := lifecycle.Inherit(syscall.EADDRINUSE, func() (err error) {
		listen, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		return nil, errs.E(op+address, errs.Precondition, "LISTEN", err).
			WithHint("another process may use the port; choose one with --listen")
	}
	tcp, ok := listen.(*net.TCPListener)
	if !ok {
		return nil, errs.E(op+address, errs.Internal, "LISTEN", fmt.Errorf("it is a %T", listen))
	}
	deferAccept(tcp)
	return &Port{tcp, newConnectionLimiter(limitsFor(descriptorLimit()))}, nil
}

// deferAccept leaves callers that say nothing to the kernel (tcp(7), TCP_DEFER_ACCEPT):
// they cost no descriptor. Without it they are hung up on as soon as there are many.
func deferAccept(listen *net.TCPListener) {
	raw, err := listen.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, int(firstByte.Seconds()))
	})
}

// Address is what is listened on.
func (p *Port) Address() string { return p.listen.Addr().String() }

// Close stops to listen.
func (p *Port) Close() error {
	if err := p.listen.Close(); err != nil {
		return fmt.Errorf("close %s: %w", p.Address(), err)
	}
	return nil
}

// share is the port for one server: closing it leaves the port open.
func (p *Port) share() *share { return &share{port: p, closed: make(chan struct{})} }

type share struct {
	port   *Port
	last   bool // the port is closed with it
	once   sync.Once
	closed chan struct{}
}

// Accept implements net.Listener.
func (s *share) Accept() (net.Conn, error) {
	for {
		select {
		case <-s.closed:
			return nil, net.ErrClosed
		default:
		}
		conn, err := s.port.listen.AcceptTCP()
		if err == nil {
			setUserTimeout(conn)
			return s.port.limiter.admit(conn), nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, err
		}
		// Set by Close of this share, or of the one before, which has ended.
		if err := s.port.listen.SetDeadline(time.Time{}); err != nil {
			return nil, fmt.Errorf("accept: %w", err)
		}
	}
}

// Close implements net.Listener. It wakes Accept.
func (s *share) Close() (err error) {
	s.once.Do(func() {
		close(s.closed)
		if s.last {
			err = s.port.Close()
			return
		}
		err = s.port.listen.SetDeadline(time.Unix(1, 0))
	})
	return err
}

// Addr implements net.Listener.
func (s *share) Addr() net.Addr { return s.port.listen.Addr() }
