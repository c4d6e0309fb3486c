package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// pollInterval bounds how long a new pair or a revocation stays unseen.
const pollInterval = 2 * time.Second

// Source serves the pair of a certificate folder (tls.crt, tls.key, ca.crt,
// revoked) to TLS and follows its changes. A bad new pair keeps the old one
// and warns. It may be used concurrently.
type Source struct {
	dir     string
	revoked []string // files
	log     *slog.Logger

	mu      sync.RWMutex // guards the fields below
	now     material
	stamp   string        // what the files looked like when read
	changed chan struct{} // closed and replaced when material changes
}

// material is one consistent state; it is never written after it was made.
type material struct {
	cert    *tls.Certificate
	leaf    *x509.Certificate
	id      ID
	roots   *x509.CertPool
	revoked map[string]bool
}

// NewSource reads the pair in dir. Extra files name further lists of revoked
// serials. The error says what is wrong with which file.
func NewSource(dir string, log *slog.Logger, revokedFiles ...string) (*Source, error) {
	s := &Source{
		dir: dir, log: log, revoked: append(revokedFiles, filepath.Join(dir, "revoked")),
		changed: make(chan struct{}),
	}
	s.stamp = s.look()
	m, err := s.read()
	if err != nil {
		return nil, err
	}
	s.now = m
	return s, nil
}

// Run follows the folder until ctx ends.
func (s *Source) Run(ctx context.Context) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.Reload()
		}
	}
}

// Reload looks at the files now.
func (s *Source) Reload() {
	stamp := s.look()
	s.mu.RLock()
	same := stamp == s.stamp
	s.mu.RUnlock()
	if same {
		return
	}
	m, err := s.read()
	s.mu.Lock()
	s.stamp = stamp
	if err == nil {
		s.now = m
		close(s.changed)
		s.changed = make(chan struct{})
	}
	s.mu.Unlock()
	if err != nil {
		s.log.Warn("keeping the old certificate", "folder", s.dir, "error", err)
		return
	}
	s.log.Info("certificates reloaded", "folder", s.dir, "expires", m.leaf.NotAfter)
}

// look sums up the files' identity and times.
func (s *Source) look() string {
	var out string
	for _, f := range append([]string{s.file("tls.crt"), s.file("tls.key"), s.file("ca.crt")}, s.revoked...) {
		if info, err := os.Stat(f); err == nil {
			out += fmt.Sprintf("%s %d %d;", f, info.ModTime().UnixNano(), info.Size())
		}
	}
	return out
}

func (s *Source) file(name string) string { return filepath.Join(s.dir, name) }

func (s *Source) read() (material, error) {
	pair, err := tls.LoadX509KeyPair(s.file("tls.crt"), s.file("tls.key"))
	if err != nil {
		return material{}, fmt.Errorf("read the certificate in %s: %w", s.dir, err)
	}
	id, err := Identify(pair.Leaf)
	if err != nil {
		return material{}, fmt.Errorf("use the certificate in %s: %w", s.dir, err)
	}
	cas, err := readCerts(s.file("ca.crt"))
	if err != nil {
		return material{}, err
	}
	m := material{cert: &pair, leaf: pair.Leaf, id: id, roots: x509.NewCertPool(), revoked: map[string]bool{}}
	for _, c := range cas {
		m.roots.AddCert(c)
		if id.Role == RoleScheduler && pair.Leaf.CheckSignatureFrom(c) == nil {
			pair.Certificate = append(pair.Certificate, c.Raw) // a joining worker checks its pin on it
		}
	}
	for _, f := range s.revoked {
		list, err := readRevoked(f)
		if err != nil {
			return material{}, err
		}
		for serial := range list {
			m.revoked[serial] = true
		}
	}
	return m, nil
}

func (s *Source) material() material {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.now
}

// ID is the identity that the source serves.
func (s *Source) ID() ID { return s.material().id }

// Leaf is the certificate that the source serves.
func (s *Source) Leaf() *x509.Certificate { return s.material().leaf }

// Changed returns a channel that is closed at the next change.
func (s *Source) Changed() <-chan struct{} {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.changed
}

// Revoked tells whether a serial (hex) is revoked.
func (s *Source) Revoked(serial string) bool { return s.material().revoked[serial] }

// ServerConfig is TLS for a listener: 1.3 only, no session tickets. A client
// certificate is verified whenever there is one; a caller without one gets as
// far as the RPC table, which denies everything but Join.
func (s *Source) ServerConfig() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		NextProtos:             []string{"h2"},
		ClientAuth:             tls.RequestClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return s.material().cert, nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return nil
			}
			_, err := s.verify(cs.PeerCertificates, x509.ExtKeyUsageClientAuth)
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
			return s.material().cert, nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return errors.New("the server showed no certificate")
			}
			id, err := s.verify(cs.PeerCertificates, x509.ExtKeyUsageServerAuth)
			if err != nil {
				return err
			}
			if id.Role != role || name != "" && id.Name != name {
				return fmt.Errorf("the server is %s, expected the %s %s", id, role, name)
			}
			return nil
		},
	}
}

// verify checks chain, validity, usage, revocation and identity of a peer.
func (s *Source) verify(chain []*x509.Certificate, usage x509.ExtKeyUsage) (ID, error) {
	m := s.material()
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	leaf := chain[0]
	if _, err := leaf.Verify(x509.VerifyOptions{
		Roots: m.roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{usage},
	}); err != nil {
		return ID{}, fmt.Errorf("certificate refused: %w", err)
	}
	id, err := Identify(leaf)
	if err != nil {
		return ID{}, fmt.Errorf("certificate refused: %w", err)
	}
	if id.Cluster != m.id.Cluster {
		return ID{}, fmt.Errorf("certificate refused: %s is of the cluster %s, not %s", id, id.Cluster, m.id.Cluster)
	}
	if m.revoked[hex.EncodeToString(leaf.SerialNumber.Bytes())] {
		return ID{}, fmt.Errorf("certificate refused: %s was revoked", id)
	}
	return id, nil
}

// JoinConfig is TLS for a first contact: the server must show a scheduler's
// certificate of the CA that the token pins; there is no own certificate yet.
func JoinConfig(pin string) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{"h2"},
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection checks the role; the pin is checked on the answer
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return errors.New("the server showed no certificate")
			}
			id, err := Identify(cs.PeerCertificates[0])
			if err != nil {
				return err
			}
			if id.Role != RoleScheduler {
				return fmt.Errorf("the server is %s, not a scheduler", id)
			}
			return pinned(cs.PeerCertificates, pin)
		},
	}
}

// pinned verifies the leaf against the pinned CA that the server sent along.
// Without it the secret of a token would reach whoever answers.
func pinned(chain []*x509.Certificate, pin string) error {
	for _, c := range chain[1:] {
		if !c.IsCA || pinOf(c) != pin {
			continue
		}
		roots := x509.NewCertPool()
		roots.AddCert(c)
		_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
		if err != nil {
			return fmt.Errorf("verify the scheduler: %w", err)
		}
		return nil
	}
	return fmt.Errorf("%w: the server's CA is not the one that the token names", ErrToken)
}
