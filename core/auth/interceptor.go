package auth

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"

	"github.com/droverhq/drover/core/errs"
)

// Revocations tells which serials are revoked now. certs.Source is one.
type Revocations interface {
	Revoked(serial string) bool
}

// Guard authorizes every call of a server by one table. It looks at a call when
// it begins; core/rpc closes the connections of identities that end later.
type Guard struct {
	Table       Table
	Revocations Revocations
	// Status turns errors into what goes over the wire.
	Status func(error) error
}

// Stream guards calls. None of their messages has been read.
func (g *Guard) Stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	ctx, err := g.admit(stream.Context(), info.FullMethod)
	if err != nil {
		return g.Status(err)
	}
	return next(srv, &guarded{stream, ctx})
}

// admit also refuses an identity that has ended since its connection was made (P22).
func (g *Guard) admit(ctx context.Context, method string) (context.Context, error) {
	ctx, err := g.Table.Authorize(ctx, method)
	if err != nil {
		return nil, err
	}
	id, ok := FromContext(ctx)
	switch {
	case ok && g.Revocations.Revoked(id.Serial):
		return nil, ended("REVOKED", fmt.Errorf("that of %s %q was revoked", id.Role, id.Name))
	case ok && time.Now().After(id.NotAfter):
		return nil, ended("EXPIRED", fmt.Errorf("that of %s %q expired on %s", id.Role, id.Name, id.NotAfter.UTC().Format(time.RFC3339)))
	}
	return ctx, nil
}

func ended(reason string, err error) error {
	return errs.E("check the certificate", errs.Unauthenticated, reason, err).WithHint("ask an admin for a new one")
}

type guarded struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // the shape of grpc.ServerStream asks for it
}

// Context implements grpc.ServerStream.
func (g *guarded) Context() context.Context { return g.ctx }
