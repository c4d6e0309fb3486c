// Package auth turns a peer's certificate into an identity and decides by one
// table which role may call which RPC.
package auth

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/core/errs"
)

// Identity is who calls, as its certificate says.
type Identity struct {
	certs.ID
	Serial   string // hex
	Lineage  string // see certs.Lineage
	NotAfter time.Time
}

type contextKey struct{}

// NewContext returns a context that carries an identity.
func NewContext(ctx context.Context, id Identity) context.Context {
	return context.WithValue(ctx, contextKey{}, id)
}

// FromContext returns the identity that the interceptors put there.
func FromContext(ctx context.Context) (Identity, bool) {
	id, ok := ctx.Value(contextKey{}).(Identity)
	return id, ok
}

// fromPeer reads the identity of a gRPC peer. The chain was verified by TLS.
func fromPeer(ctx context.Context) (Identity, bool, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Identity{}, false, nil
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return Identity{}, false, nil
	}
	leaf := info.State.PeerCertificates[0]
	id, err := certs.Identify(leaf)
	if err != nil {
		return Identity{}, false, fmt.Errorf("certificate refused: %w", err)
	}
	return Identity{ID: id, Serial: certs.Serial(leaf), Lineage: certs.Lineage(leaf), NotAfter: leaf.NotAfter}, true, nil
}

// Authorize decides on one call. An RPC without a row is denied; a row with
// Anyone needs no identity.
func (t Table) Authorize(ctx context.Context, method string) (context.Context, error) {
	roles, ok := t[method]
	if !ok {
		return nil, errs.E("call "+short(method), errs.Denied, "NO_SUCH_CALL", fmt.Errorf("no role may call it"))
	}
	id, known, err := fromPeer(ctx)
	if err != nil {
		return nil, errs.E("call "+short(method), errs.Unauthenticated, "CERTIFICATE", err)
	}
	if !known {
		if slices.Contains(roles, Anyone) {
			return ctx, nil
		}
		e := errs.E("call "+short(method), errs.Unauthenticated, "NO_CERTIFICATE", fmt.Errorf("no client certificate was shown"))
		return nil, e.WithHint("give a certificate folder with --certs or DROVER_CERTS")
	}
	if !slices.Contains(roles, id.Role) && !slices.Contains(roles, Anyone) && !slices.Contains(roles, AnyRole) {
		e := errs.E("call "+short(method), errs.Denied, "ROLE",
			fmt.Errorf("%s %q may not; it takes one of: %s", id.Role, id.Name, join(roles)))
		return nil, e.WithHint("ask an admin for a certificate with another role")
	}
	return NewContext(ctx, id), nil
}

func short(method string) string { return method[strings.LastIndexByte(method, '/')+1:] }

func join(roles []certs.Role) string {
	names := make([]string, len(roles))
	for i, r := range roles {
		names[i] = string(r)
	}
	return strings.Join(names, ", ")
}
