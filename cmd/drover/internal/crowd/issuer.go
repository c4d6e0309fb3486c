package crowd

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"path/filepath"
	"time"

	"github.com/droverhq/drover/certs"
)

// issuer makes the certificates of simulated workers as certs.CA does, but keeps
// no list of them on disk, and all have one key: thousands are made, and what is
// measured is not that.
type issuer struct {
	ca    tls.Certificate
	id    certs.ID // of the CA's cluster
	key   crypto.Signer
	roots *x509.CertPool
}

func newIssuer(dir string) (*issuer, error) {
	ca, err := certs.OpenCA(dir)
	if err != nil {
		return nil, err
	}
	i := &issuer{id: certs.ID{Cluster: ca.Cluster(), Role: certs.RoleWorker}, roots: x509.NewCertPool()}
	if i.ca, err = tls.LoadX509KeyPair(filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")); err != nil {
		return nil, fmt.Errorf("read the CA: %w", err)
	}
	if i.key, _, err = certs.NewRequest(); err != nil {
		return nil, err
	}
	i.roots.AddCert(i.ca.Leaf)
	return i, nil
}

// issue makes the certificate of one worker.
func (i *issuer) issue(number int, name string) (*tls.Certificate, error) {
	id := i.id
	id.Name = name
	template := &x509.Certificate{
		SerialNumber: big.NewInt(int64(number) + 1), URIs: []*url.URL{id.URI()}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, i.ca.Leaf, i.key.Public(), i.ca.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("issue the certificate of %s: %w", name, err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read the certificate of %s: %w", name, err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, i.ca.Certificate[0]}, PrivateKey: i.key, Leaf: leaf}, nil
}
