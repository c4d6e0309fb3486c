package certs_test

import (
	"context"
	"crypto/x509"
	"log/slog"
	"testing"
	"time"

	"github.com/droverhq/drover/certs"
)

func TestRenewalIsAtHalfLifeWithJitter(t *testing.T) {
	t.Parallel()
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	c := &x509.Certificate{NotBefore: begin.Add(-5 * time.Minute), NotAfter: begin.Add(100 * time.Hour)}
	if got := certs.RenewAt(c, 0).Sub(begin); got != 50*time.Hour {
		t.Errorf("without jitter after %v", got)
	}
	if got := certs.RenewAt(c, 0.999).Sub(begin); got < 59*time.Hour || got > 60*time.Hour {
		t.Errorf("with full jitter after %v", got)
	}
}

func TestRenewerReplacesThePairInPlace(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	s := source(t, folder(t, ca, certs.IssueRequest{Name: "w1", Role: certs.RoleWorker, Now: time.Now().Add(-certs.LeafValidity / 2)}))
	before := s.Leaf().SerialNumber
	r := &certs.Renewer{Source: s, Log: slog.New(slog.DiscardHandler), Renew: func(_ context.Context, csr []byte) (cert, bundle []byte, err error) {
		return ca.RenewFor(s.ID(), certs.Serial(s.Leaf()), csr, nil, time.Now())
	}}
	if err := r.Now(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.Leaf().SerialNumber.Cmp(before) == 0 || s.ID().Name != "w1" {
		t.Errorf("serial %v, identity %v", s.Leaf().SerialNumber, s.ID())
	}
}
