package certs

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"os"
	"time"
)

// RenewAt is when a certificate should be renewed: at half of its life, moved
// by up to a tenth of it so that a fleet does not renew at once. jitter is in
// [0, 1).
func RenewAt(c *x509.Certificate, jitter float64) time.Time {
	life := c.NotAfter.Sub(c.NotBefore)
	return c.NotBefore.Add(life/2 + time.Duration(float64(life)*0.1*jitter))
}

// NewRequest makes a key and a certificate request for it. The names in a
// request are ignored by drover's CA, so it carries none.
func NewRequest() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate request: %w", err)
	}
	return key, csr, nil
}

// Renewer keeps the pair of a Source fresh.
type Renewer struct {
	Source *Source
	// Renew trades a certificate request for a certificate and the CA bundle.
	Renew func(ctx context.Context, csr []byte) (cert, bundle []byte, err error)
	Log   *slog.Logger
}

// Run renews at half of the certificate's life until ctx ends. A failing
// renewal is tried again after a minute.
func (r *Renewer) Run(ctx context.Context) error {
	jitter := mathrand.Float64()
	for {
		wait := time.Until(RenewAt(r.Source.Leaf(), jitter))
		timer := time.NewTimer(max(wait, 0))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		if err := r.Now(ctx); err != nil {
			r.Log.Warn("certificate renewal is tried again in a minute", "error", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(time.Minute):
			}
		}
	}
}

// Now renews at once.
func (r *Renewer) Now(ctx context.Context) error {
	key, csr, err := NewRequest()
	if err != nil {
		return err
	}
	cert, bundle, err := r.Renew(ctx, csr)
	if err != nil {
		return fmt.Errorf("renew the certificate: %w", err)
	}
	if err := WritePair(r.Source.dir, key, cert, bundle); err != nil {
		return err
	}
	r.Source.Reload()
	return nil
}

// Missing tells whether dir holds no pair at all, which is a matter of joining
// rather than of a damaged file.
func Missing(dir string) bool {
	_, err := os.Stat(dir + "/tls.crt")
	return os.IsNotExist(err)
}
