package rpc

import (
	"context"
	"net"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// How a connection is made. A host that does not answer is given up soon; one
// that does may have thousands to shake hands with first, and so may this
// process.
const (
	reachTimeout   = 5 * time.Second
	connectTimeout = reachTimeout + handshakeQueue
)

// quickConnect tries again soon: the other side is a daemon that restarts in
// well under a second, not a distant service. Callers that all lost it at the
// same moment come back spread over the time.
func quickConnect() grpc.ConnectParams {
	return grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.5, MaxDelay: 2 * time.Second},
		MinConnectTimeout: connectTimeout,
	}
}

// dialled is a connection that has its turn to shake hands: a listener does not wait
// for callers that say nothing.
type dialled struct {
	*net.TCPConn
	leave func()
}

// Close implements net.Conn.
func (d *dialled) Close() error {
	d.leave()
	return d.TCPConn.Close()
}

// dial connects to a host when it is its turn. TCP does not probe whether it is still
// there: with the timeout of setUserTimeout, one lost probe would end one that is idle.
func (h *Handshakes) dial(ctx context.Context, address string) (net.Conn, error) {
	leave, err := h.begin(ctx)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: reachTimeout, KeepAlive: -1}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		leave()
		return nil, err
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		leave()
		return conn, nil
	}
	setUserTimeout(tcp)
	return &dialled{tcp, leave}, nil
}

// setUserTimeout ends a connection whose other side acknowledges nothing (tcp(7),
// TCP_USER_TIMEOUT). gRPC sets it on connections of package net only. What fails here
// fails at the first write, too.
func setUserTimeout(conn *net.TCPConn) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(pingAnswer.Milliseconds()))
	})
}
