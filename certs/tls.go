package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ServerConfig is TLS for a listener: 1.3 only, no session tickets. A client
// certificate is verified whenever there is one; a caller without one gets as
// far as the RPC table, which denies everything but Join. Each connection is
// judged by what the Source holds at that moment.
func (s *Source) ServerConfig() *tls.Config { return s.server(tls.VerifyClientCertIfGiven) }

// MutualConfig is ServerConfig for a listener that nobody joins at: a caller without
// a certificate gets no connection.
func (s *Source) MutualConfig() *tls.Config { return s.server(tls.RequireAndVerifyClientCert) }

func (s *Source) server(clients tls.ClientAuthType) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		NextProtos:             []string{"h2"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return s.forClient(clients), nil
		},
	}
}

// forClient is the configuration of one connection.
func (s *Source) forClient(clients tls.ClientAuthType) *tls.Config {
	m := s.material()
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		NextProtos:             []string{"h2"},
		Certificates:           []tls.Certificate{*m.pair.cert},
		// The chain is verified here, because only so the client is told "expired
		// certificate" or "unknown certificate authority" rather than "bad
		// certificate". In VerifyConnection it is verified again only when that has
		// not happened, or with what the Source does not hold any more.
		ClientAuth: clients,
		ClientCAs:  m.trust.pool,
		VerifyConnection: func(cs tls.ConnectionState) (err error) {
			switch {
			case len(cs.PeerCertificates) == 0:
			case len(cs.VerifiedChains) > 0 && s.material() == m:
				_, err = m.admit(cs.PeerCertificates, x509.ExtKeyUsageClientAuth)
			default:
				_, err = s.verify(cs.PeerCertificates, x509.ExtKeyUsageClientAuth)
			}
			return err
		},
	}
}

// ClientConfig is TLS for a dialer that expects a server of the given role
// and, when name is not "", of that name. The server is known by its identity
// in the certificate, not by its host name, so addresses may change.
func (s *Source) ClientConfig(role Role, name string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		NextProtos:             []string{"h2"},
		// Chain and identity are verified in VerifyConnection, which, unlike
		// VerifyPeerCertificate, also runs for resumed sessions.
		InsecureSkipVerify: true, //nolint:gosec // see above
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return s.material().pair.cert, nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return refuse(nil, "the server showed no certificate")
			}
			id, err := s.verify(cs.PeerCertificates, x509.ExtKeyUsageServerAuth)
			if err != nil {
				return err
			}
			return expect(id, role, name)
		},
	}
}

func expect(id ID, role Role, name string) error {
	if id.Role == role && (name == "" || id.Name == name) {
		return nil
	}
	wanted := string(role)
	if name != "" {
		wanted += " " + name
	}
	return refuse(nil, "the server is %s, not the %s; is the address right?", id, wanted)
}

// RefusedError says why a peer's certificate is not accepted, in one line.
type RefusedError struct {
	Why string
	Err error // cause; may be nil
}

const refusedPrefix = "certificate refused: "

// Error returns the reason.
func (e *RefusedError) Error() string { return refusedPrefix + e.Why }

// Unwrap returns the cause.
func (e *RefusedError) Unwrap() error { return e.Err }

func refuse(err error, format string, args ...any) error {
	return &RefusedError{fmt.Sprintf(format, args...), err}
}

// verify checks chain, validity, usage, revocation and identity of a peer.
func (s *Source) verify(chain []*x509.Certificate, usage x509.ExtKeyUsage) (ID, error) {
	m := s.material()
	if err := checkChain(chain, m.trust.pool, usage, time.Now()); err != nil {
		return ID{}, err
	}
	return m.admit(chain, usage)
}

// admit checks all but chain and validity.
func (m *material) admit(chain []*x509.Certificate, usage x509.ExtKeyUsage) (ID, error) {
	id, err := checkLeaf(chain[0], usage)
	if err != nil {
		return ID{}, err
	}
	if own := m.pair.id.Cluster; id.Cluster != own {
		return ID{}, refuse(nil, "%s is of the cluster %s, not %s", id, id.Cluster, own)
	}
	for _, c := range chain {
		if m.revoked[Serial(c)] {
			return ID{}, refuse(nil, "%s was revoked; ask an admin for a new one", id)
		}
	}
	return id, nil
}

// checkChain verifies a chain up to a root.
func checkChain(chain []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage, now time.Time) error {
	if _, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: poolOf(chain[1:]), KeyUsages: []x509.ExtKeyUsage{usage}, CurrentTime: now,
	}); err != nil {
		return refuse(err, "%s", reason(chain[0], err))
	}
	return nil
}

// checkLeaf verifies the leaf's own form.
func checkLeaf(leaf *x509.Certificate, usage x509.ExtKeyUsage) (ID, error) {
	id, err := Identify(leaf)
	if err != nil {
		return ID{}, refuse(err, "%v", err)
	}
	// x509 lets a leaf without any usage, or with "any", pass for all of them.
	if !slices.Contains(leaf.ExtKeyUsage, usage) {
		return ID{}, refuse(nil, "%s has not the usage of a %s", id, side(usage))
	}
	return id, nil
}

func side(usage x509.ExtKeyUsage) string {
	if usage == x509.ExtKeyUsageServerAuth {
		return "server"
	}
	return "client"
}

// reason puts an error of x509 into words for people.
func reason(leaf *x509.Certificate, err error) string {
	who := "it"
	if id, errIdentity := Identify(leaf); errIdentity == nil {
		who = id.String()
	}
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && invalid.Cert != nil:
		return who + " " + outOfTime(invalid.Cert)
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		return who + " has another usage: a client's certificate is no server's"
	case errors.As(err, &unknown):
		return fmt.Sprintf("%s was signed by another CA (%q)", who, leaf.Issuer.CommonName)
	default:
		return fmt.Sprintf("%s: %v", who, err)
	}
}

// outOfTime tells on which side of its validity a certificate is refused.
func outOfTime(c *x509.Certificate) string {
	if time.Now().Before(c.NotBefore) {
		return fmt.Sprintf("is not yet valid before %s; compare the clocks of both machines", day(c.NotBefore))
	}
	return fmt.Sprintf("expired on %s; renew it or ask an admin for a new one", day(c.NotAfter))
}

// JoinConfig is TLS for a first contact: the server must show a scheduler's
// certificate of the CA that the token pins; there is no own certificate yet.
func JoinConfig(pin string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		NextProtos:             []string{"h2"},
		InsecureSkipVerify:     true, //nolint:gosec // VerifyConnection checks chain, role and pin
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return refuse(nil, "the server showed no certificate")
			}
			id, err := pinned(cs.PeerCertificates, pin)
			if err != nil {
				return err
			}
			return expect(id, RoleScheduler, "")
		},
	}
}

// pinned verifies a chain against the pinned CA that the server sent along.
// Without it the secret of a token would reach whoever answers.
func pinned(chain []*x509.Certificate, pin string) (ID, error) {
	for _, c := range chain[1:] {
		if c.IsCA && pinOf(c) == pin {
			if err := checkChain(chain, poolOf([]*x509.Certificate{c}), x509.ExtKeyUsageServerAuth, time.Now()); err != nil {
				return ID{}, err
			}
			return checkLeaf(chain[0], x509.ExtKeyUsageServerAuth)
		}
	}
	return ID{}, refuse(ErrToken, "the server's CA is not the one that the token names; is the address right, and the token of this cluster?")
}
