package certs

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"time"
)

const (
	// retryInterval is the shortest time between two renewals of a certificate that
	// is good for more than ten minutes.
	retryInterval = time.Minute
	// napInterval bounds one sleep: validity is wall-clock time, which a timer
	// does not follow when the clock is set or the machine was suspended.
	napInterval = 10 * time.Minute
)

// RenewAt is when a certificate should be renewed: at half of its life, moved
// by up to a tenth of it so that a fleet does not renew at once. jitter is in
// [0, 1).
func RenewAt(c *x509.Certificate, jitter float64) time.Time {
	begin, life := lifeOf(c)
	return begin.Add(life/2 + time.Duration(float64(life)*0.1*jitter))
}

// renewableAt is from when on the CA renews a certificate: after a third of its life.
// Half of it is left then, and more, to those whose renewal at half of it was lost.
func renewableAt(c *x509.Certificate) time.Time {
	begin, life := lifeOf(c)
	return begin.Add(life / 3)
}

// lifeOf returns when a certificate was issued, and for how long. One of a minute would
// be due at once if what it is dated back counted as life.
func lifeOf(c *x509.Certificate) (begin time.Time, life time.Duration) {
	begin = c.NotBefore.Add(backdate)
	if begin.After(c.NotAfter) {
		begin = c.NotBefore
	}
	return begin, c.NotAfter.Sub(begin)
}

// NeedsRenewal tells whether that time has come.
func NeedsRenewal(c *x509.Certificate, now time.Time, jitter float64) bool {
	return !now.Before(RenewAt(c, jitter))
}

// NewRequest makes a key and a certificate request for it. The names in a
// request are ignored by drover's CA, so it carries none.
func NewRequest() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	csr, err := requestFor(key)
	return key, csr, err
}

func requestFor(key *ecdsa.PrivateKey) ([]byte, error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate request: %w", err)
	}
	return csr, nil
}

// RenewFunc trades a certificate request for a certificate and the CA bundle,
// both PEM.
type RenewFunc func(ctx context.Context, csr []byte) (cert, bundle []byte, err error)

// RenewOwn is the RenewFunc of a process that holds the CA itself, such as the
// scheduler: a fresh certificate of the identity and for the hosts of s.
func (ca *CA) RenewOwn(s *Source) RenewFunc {
	return func(_ context.Context, csr []byte) (cert, bundle []byte, err error) {
		leaf := s.Leaf()
		hosts := leaf.DNSNames
		for _, ip := range leaf.IPAddresses {
			hosts = append(hosts[:len(hosts):len(hosts)], ip.String())
		}
		return ca.RenewFor(s.ID(), Serial(leaf), csr, hosts, time.Now())
	}
}

// Renewer keeps the pair of a Source fresh. New connections use the new pair;
// open ones, and their streams, are left alone.
type Renewer struct {
	Source *Source
	Renew  RenewFunc
	Log    *slog.Logger
}

// Run renews at half of the certificate's life until ctx ends. A failing
// renewal is tried again after a minute. A certificate that was issued to end is left
// alone.
func (r *Renewer) Run(ctx context.Context) error {
	jitter := mathrand.Float64()
	for {
		changed := r.Source.Changed()
		leaf := r.Source.Leaf()
		wait := min(time.Until(RenewAt(leaf, jitter)), napInterval)
		switch {
		case !Renewable(leaf):
			wait = napInterval // until somebody puts another one there
		case NeedsRenewal(leaf, time.Now(), jitter):
			r.tryRenew(ctx)
			// Also after a success: a CA whose clock is behind may issue what
			// is due again at once.
			_, life := lifeOf(leaf)
			wait, changed = min(retryInterval, life/10), nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-changed: // somebody put another certificate there
			timer.Stop()
		case <-timer.C:
		}
	}
}

func (r *Renewer) tryRenew(ctx context.Context) {
	if err := r.Now(ctx); err != nil && ctx.Err() == nil {
		r.Log.Warn("certificate not renewed, retrying", "expires", r.Source.Leaf().NotAfter, "error", err)
	}
}

// Now renews at once. An answer that is no good leaves the old pair in place.
func (r *Renewer) Now(ctx context.Context) error {
	key, csr, err := NewRequest()
	if err != nil {
		return err
	}
	cert, bundle, err := r.Renew(ctx, csr)
	if err != nil {
		return fmt.Errorf("renew the certificate: %w", err)
	}
	chain, err := parseCerts(cert)
	if err != nil {
		return fmt.Errorf("renew the certificate: the answer: %w", err)
	}
	id, err := Identify(chain[0])
	if err != nil {
		return fmt.Errorf("renew the certificate: the answer: %w", err)
	}
	if id != r.Source.ID() {
		return fmt.Errorf("renew the certificate: the answer is of %s, not of %s", id, r.Source.ID())
	}
	if err := WritePair(r.Source.dir, key, cert, bundle); err != nil {
		return err
	}
	r.Source.Reload()
	if Serial(r.Source.Leaf()) != Serial(chain[0]) {
		return errors.New("renew the certificate: the new one is not usable; the log says why")
	}
	return nil
}
