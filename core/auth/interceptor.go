package auth

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/droverhq/drover/core/errs"
)

// Revocations tells which serials are revoked now. certs.Source is one.
type Revocations interface {
	Revoked(serial string) bool
}

// Guard authorizes every call of a server by one table.
type Guard struct {
	Table       Table
	Revocations Revocations
	// Status turns errors into what goes over the wire.
	Status func(error) error
	// Recheck is how often open streams are compared with the revocations; 0
	// is two seconds.
	Recheck time.Duration
}

// Unary guards unary calls.
func (g *Guard) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	ctx, err := g.admit(ctx, info.FullMethod)
	if err != nil {
		return nil, g.Status(err)
	}
	return next(ctx, req)
}

// Stream guards streaming calls and cancels the context of those whose
// identity is revoked while they are open; every handler watches its context.
func (g *Guard) Stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	ctx, err := g.admit(stream.Context(), info.FullMethod)
	if err != nil {
		return g.Status(err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	id, known := FromContext(ctx)
	if !known {
		return next(srv, &guarded{stream, ctx})
	}
	every := g.Recheck
	if every == 0 {
		every = 2 * time.Second
	}
	stop := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() { g.watch(id, every, stop, cancel) })
	err = next(srv, &guarded{stream, ctx})
	close(stop)
	wait.Wait()
	if cause := context.Cause(ctx); err != nil && errs.ReasonOf(cause) == reasonRevoked {
		return g.Status(cause)
	}
	return err
}

// watch cancels a stream once its identity is revoked.
func (g *Guard) watch(id Identity, every time.Duration, stop <-chan struct{}, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
			if g.Revocations.Revoked(id.Serial) {
				cancel(revoked(id))
				return
			}
		}
	}
}

func (g *Guard) admit(ctx context.Context, method string) (context.Context, error) {
	ctx, err := g.Table.Authorize(ctx, method)
	if err != nil {
		return nil, err
	}
	if id, ok := FromContext(ctx); ok && g.Revocations.Revoked(id.Serial) {
		return nil, revoked(id)
	}
	return ctx, nil
}

const reasonRevoked = "REVOKED"

func revoked(id Identity) error {
	return errs.E("check the certificate", errs.Unauthenticated, reasonRevoked, fmt.Errorf("that of %s %q was revoked", id.Role, id.Name)).
		WithHint("ask an admin for a new one")
}

type guarded struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // the shape of grpc.ServerStream asks for it
}

// Context implements grpc.ServerStream.
func (g *guarded) Context() context.Context { return g.ctx }
