package client

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/rpc"
)

// refusals makes the error of a call final when its connection is refused because of
// a certificate: one that was revoked, or has expired, is not taken by trying again.
type refusals struct {
	address string
	watch   *transport
	reason  func(error) string
}

// final returns err, or what it means. gRPC has one code for all that befalls
// connections.
func (r *refusals) final(err error) error {
	if status.Code(err) != codes.Unavailable {
		return err
	}
	if why := r.why(err); why != "" {
		return rpc.ToStatus(distrusted(r.address, why))
	}
	return err
}

// why is the reason of a refusal; "" when there was none.
func (r *refusals) why(err error) string {
	dial, handshake, _ := r.watch.last()
	if dial != nil {
		return ""
	}
	if why := r.reason(handshake); why != "" {
		return why
	}
	return r.reason(err)
}

func distrusted(address, why string) error {
	return errs.E("connect to the scheduler at "+address, errs.Unauthenticated, "CERTIFICATE", errors.New(why)).
		WithHint(`"drover context ls" shows which certificate is used; --certs and DROVER_CERTS give another`)
}

func (r *refusals) unary(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return r.final(call(ctx, method, req, reply, conn, opts...))
}

func (r *refusals) stream(ctx context.Context, d *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := open(ctx, d, conn, method, opts...)
	if err != nil {
		return nil, r.final(err)
	}
	return &refusable{s, r}, nil
}

// refusable is a stream whose end may be a refusal.
type refusable struct {
	grpc.ClientStream
	refusals *refusals
}

// RecvMsg implements grpc.ClientStream.
func (s *refusable) RecvMsg(m any) error { return s.refusals.final(s.ClientStream.RecvMsg(m)) }
