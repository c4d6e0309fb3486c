package rpc

import (
	"context"
	"net"
	"time"

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

// reach connects to a host. TCP does not probe whether it is still there: with
// the timeout that gRPC sets on its connections (TCP_USER_TIMEOUT, tcp(7)), one
// lost probe would end one that is idle.
func reach(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: reachTimeout, KeepAlive: -1}
	return d.DialContext(ctx, "tcp", address)
}
