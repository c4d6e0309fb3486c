package rpc

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"google.golang.org/grpc/peer"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/core/auth"
	"github.com/droverhq/drover/core/errs"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// CertificateServer serves drover.v1.CertificateService from a CA.
type CertificateServer struct {
	droverv1.UnimplementedCertificateServiceServer
	ca       *certs.CA // nil: this scheduler does not hold the CA
	joins    *joinLimiter
	renewals *crowd
}

// NewCertificateServer returns the service; without a CA every call is refused
// with the reason.
func NewCertificateServer(ca *certs.CA) *CertificateServer {
	return &CertificateServer{ca: ca, joins: newJoinLimiter(), renewals: newCrowd("renewals", 64, 1)}
}

// Join implements the service. Callers have no certificate: what they send is looked
// at only when their token is good.
func (s *CertificateServer) Join(ctx context.Context, r *droverv1.JoinRequest) (*droverv1.JoinResponse, error) {
	const op = "join"
	if err := s.ready(op); err != nil {
		return nil, err
	}
	from := callerNetwork(ctx)
	leave, err := s.joins.enter(ctx, from)
	if err != nil {
		return nil, err
	}
	defer leave()
	cert, bundle, err := s.redeem(ctx, r)
	taken := (*certs.NameTakenError)(nil)
	switch {
	case errors.Is(err, certs.ErrToken):
		s.joins.refused(from, time.Now())
		return nil, errs.E(op, errs.Unauthenticated, "TOKEN", err).WithHint(`ask for a new one: "drover certs token"`)
	case errors.Is(err, certs.ErrName):
		return nil, errs.Field(op, "name", "NAME", "%w", err)
	case errors.As(err, &taken):
		return nil, errs.E(op, errs.Exists, "NAME_TAKEN", taken).
			WithHint("choose another --name, or revoke that one first")
	case errors.Is(err, certs.ErrCSR):
		return nil, errs.Field(op, "csr", "CSR", "%w", err)
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		return nil, errs.E(op, errs.Canceled, "", err)
	case err != nil:
		return nil, errs.E(op, errs.Internal, "CA", err)
	}
	return &droverv1.JoinResponse{Certificate: cert, Ca: bundle}, nil
}

// redeem makes sure of the token first: the connection of one who has a good one makes
// room for nobody while the certificate is made and sent.
func (s *CertificateServer) redeem(ctx context.Context, r *droverv1.JoinRequest) (cert, bundle []byte, err error) {
	if err := s.ca.CheckToken(r.GetToken(), time.Now()); err != nil {
		return nil, nil, err
	}
	if g, ok := guestOf(ctx); ok {
		g.conn.trust()
	}
	return s.ca.Redeem(ctx, r.GetToken(), r.GetName(), r.GetCsr(), time.Now())
}

// callerNetwork is where a call comes from.
func callerNetwork(ctx context.Context) netip.Addr {
	if p, ok := peer.FromContext(ctx); ok {
		return network(p.Addr)
	}
	return netip.Addr{}
}

// Renew implements the service: the identity is the one of the caller's
// certificate, whatever the request asks for.
func (s *CertificateServer) Renew(ctx context.Context, r *droverv1.RenewRequest) (*droverv1.RenewResponse, error) {
	const op = "renew"
	if err := s.ready(op); err != nil {
		return nil, err
	}
	id, ok := auth.FromContext(ctx)
	if !ok {
		return nil, errs.E(op, errs.Unauthenticated, "NO_CERTIFICATE", nil)
	}
	leave, err := s.renewals.enter(id.ID)
	if err != nil {
		return nil, err
	}
	defer leave()
	var hosts []string
	if id.Role == certs.RoleWorker {
		hosts = []string{id.Name}
	}
	cert, bundle, err := s.ca.RenewFor(id.ID, id.Serial, r.GetCsr(), hosts, time.Now())
	early := (*certs.TooSoonError)(nil)
	switch {
	case errors.As(err, &early):
		return nil, errs.E(op, errs.Precondition, "TOO_SOON", early)
	case errors.Is(err, certs.ErrNoRenew):
		return nil, errs.E(op, errs.Denied, "NO_RENEW", err)
	case errors.Is(err, certs.ErrCSR):
		return nil, errs.Field(op, "csr", "CSR", "%w", err)
	case err != nil:
		return nil, errs.E(op, errs.Precondition, "CA", err)
	}
	return &droverv1.RenewResponse{Certificate: cert, Ca: bundle}, nil
}

func (s *CertificateServer) ready(op string) error {
	if s.ca != nil {
		return nil
	}
	return errs.E(op, errs.Precondition, "NO_CA", errors.New("this scheduler does not hold the CA")).
		WithHint(`start it with --ca DIR, or issue certificates with "drover certs issue"`)
}
