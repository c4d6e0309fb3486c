package rpc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/core/auth"
	"github.com/droverhq/drover/core/errs"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// CertificateServer serves drover.v1.CertificateService from a CA.
type CertificateServer struct {
	droverv1.UnimplementedCertificateServiceServer
	ca *certs.CA // nil: this scheduler does not hold the CA
}

// NewCertificateServer returns the service; without a CA every call is refused
// with the reason.
func NewCertificateServer(ca *certs.CA) *CertificateServer { return &CertificateServer{ca: ca} }

// Join implements the service.
func (s *CertificateServer) Join(_ context.Context, r *droverv1.JoinRequest) (*droverv1.JoinResponse, error) {
	const op = "join"
	if err := s.ready(op); err != nil {
		return nil, err
	}
	if err := certs.CheckName(r.GetName()); err != nil {
		return nil, errs.Field(op, "name", "NAME", "%w", err)
	}
	taken, err := s.taken(r.GetName())
	if err != nil {
		return nil, errs.E(op, errs.Internal, "CA", err)
	}
	if taken {
		return nil, errs.E(op, errs.Exists, "NAME_TAKEN", fmt.Errorf("a worker named %q has a certificate", r.GetName())).
			WithHint("choose another --name, or revoke that one first")
	}
	cert, bundle, err := s.ca.Redeem(r.GetToken(), r.GetName(), r.GetCsr(), time.Now())
	switch {
	case errors.Is(err, certs.ErrToken):
		return nil, errs.E(op, errs.Unauthenticated, "TOKEN", err).WithHint(`ask for a new one: "drover certs token"`)
	case err != nil:
		return nil, errs.E(op, errs.Invalid, "CSR", err)
	}
	return &droverv1.JoinResponse{Certificate: cert, Ca: bundle}, nil
}

// taken tells whether a valid worker certificate of that name is about.
func (s *CertificateServer) taken(name string) (bool, error) {
	issued, err := s.ca.List()
	if err != nil {
		return false, err
	}
	now := time.Now()
	for _, c := range issued {
		if c.ID.Role == certs.RoleWorker && c.ID.Name == name && !c.Revoked && now.Before(c.NotAfter) {
			return true, nil
		}
	}
	return false, nil
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
	var hosts []string
	if id.Role == certs.RoleWorker {
		hosts = []string{id.Name}
	}
	cert, bundle, err := s.ca.RenewFor(id.ID, r.GetCsr(), hosts, time.Now())
	if err != nil {
		return nil, errs.E(op, errs.Invalid, "CSR", err)
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
