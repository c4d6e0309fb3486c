package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Validity of what the CA signs.
const (
	CAValidity   = 10 * 365 * 24 * time.Hour
	LeafValidity = 90 * 24 * time.Hour
	// backdate covers clocks that are a little behind.
	backdate = 5 * time.Minute
)

// CA signs certificates. Its folder holds ca.crt, ca.key (0600), issued/ (one
// PEM per serial), tokens/ and revoked. It may be used concurrently, also by
// several processes.
type CA struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Init makes a CA for a cluster in dir. It never overwrites one.
func Init(dir, cluster string) (*CA, error) {
	if err := CheckName(cluster); err != nil {
		return nil, fmt.Errorf("make the CA: cluster: %w", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "ca.key")); err == nil {
		return nil, fmt.Errorf("make the CA: %s holds one already: %w", dir, fs.ErrExist)
	}
	for _, d := range []string{dir, filepath.Join(dir, "issued"), filepath.Join(dir, "tokens")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("make the CA: %w", err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the CA key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{Organization: []string{"drover"}, CommonName: cluster},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(CAValidity),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign the CA: %w", err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	if err := writeFile(filepath.Join(dir, "ca.crt"), encodeCert(der), 0o644); err != nil {
		return nil, err
	}
	// The key comes last: a folder with a key is a whole CA.
	if err := writeFile(filepath.Join(dir, "ca.key"), keyPEM, 0o600); err != nil {
		return nil, err
	}
	return OpenCA(dir)
}

// OpenCA opens the CA in dir. A missing one is fs.ErrNotExist.
func OpenCA(dir string) (*CA, error) {
	keyPEM, err := os.ReadFile(filepath.Join(dir, "ca.key"))
	if err != nil {
		return nil, fmt.Errorf("open the CA: %w", err)
	}
	block, _ := pem.Decode(keyPEM)
	if block == nil {
		return nil, fmt.Errorf("open the CA: %s holds no PEM key", filepath.Join(dir, "ca.key"))
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("open the CA: read its key: %w", err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("open the CA: its key is a %T, not ECDSA", parsed)
	}
	all, err := readCerts(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, err
	}
	for _, c := range all {
		if key.PublicKey.Equal(c.PublicKey) {
			return &CA{dir: dir, cert: c, key: key}, nil
		}
	}
	return nil, fmt.Errorf("open the CA: no certificate in %s belongs to its key", filepath.Join(dir, "ca.crt"))
}

// Cluster is the name of the cluster.
func (ca *CA) Cluster() string { return ca.cert.Subject.CommonName }

// Bundle returns every CA certificate to trust, PEM: during a rotation the old
// one stays in ca.crt beside the new one.
func (ca *CA) Bundle() ([]byte, error) {
	data, err := os.ReadFile(filepath.Join(ca.dir, "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("read the CA certificates: %w", err)
	}
	return data, nil
}

// pin is the sha256 of the CA's public key, which tokens carry.
func (ca *CA) pin() string { return pinOf(ca.cert) }

func pinOf(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// IssueRequest says what certificate is wanted.
type IssueRequest struct {
	Name   string
	Role   Role
	TTL    time.Duration // 0 is LeafValidity
	Hosts  []string      // DNS names and addresses of servers
	Public crypto.PublicKey
	Now    time.Time // zero is the present
}

// Issue signs one leaf with exactly one URI SAN and returns it as PEM with its
// serial in hex. A copy is kept in issued/.
func (ca *CA) Issue(r IssueRequest) (cert []byte, serial string, err error) {
	id := ID{Cluster: ca.Cluster(), Role: r.Role, Name: r.Name}
	if err := CheckName(r.Name); err != nil {
		return nil, "", fmt.Errorf("issue a certificate: %w", err)
	}
	if _, err := ParseRole(string(r.Role)); err != nil {
		return nil, "", fmt.Errorf("issue a certificate: %w", err)
	}
	if r.TTL == 0 {
		r.TTL = LeafValidity
	}
	if r.Now.IsZero() {
		r.Now = time.Now()
	}
	number, err := newSerial()
	if err != nil {
		return nil, "", err
	}
	template := &x509.Certificate{
		SerialNumber: number, Subject: pkix.Name{Organization: []string{"drover"}, CommonName: r.Name},
		URIs: []*url.URL{id.URI()}, NotBefore: r.Now.Add(-backdate), NotAfter: r.Now.Add(r.TTL),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if r.Role.server() {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		for _, h := range r.Hosts {
			if ip := net.ParseIP(h); ip != nil {
				template.IPAddresses = append(template.IPAddresses, ip)
			} else {
				template.DNSNames = append(template.DNSNames, h)
			}
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, r.Public, ca.key)
	if err != nil {
		return nil, "", fmt.Errorf("sign the certificate of %s: %w", id, err)
	}
	serial, cert = hex.EncodeToString(number.Bytes()), encodeCert(der)
	if err := writeFile(filepath.Join(ca.dir, "issued", serial+".pem"), cert, 0o600); err != nil {
		return nil, "", err
	}
	return cert, serial, nil
}

// IssuePair makes a key and a certificate for it in dir, beside ca.crt. The
// pair appears whole: it lies in a folder of its own that a link names.
func (ca *CA) IssuePair(dir string, r IssueRequest) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	r.Public = key.Public()
	cert, _, err := ca.Issue(r)
	if err != nil {
		return err
	}
	bundle, err := ca.Bundle()
	if err != nil {
		return err
	}
	return WritePair(dir, key, cert, bundle)
}

// WritePair stores key, certificate and CA bundle in dir. Key and certificate
// are one file each, and a Source keeps its old pair while the two do not fit,
// so a reader between the renames is never served half a pair.
func WritePair(dir string, key *ecdsa.PrivateKey, cert, bundle []byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the certificate folder: %w", err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(dir, "ca.crt"), bundle, 0o644); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(dir, "tls.key"), keyPEM, 0o600); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, "tls.crt"), cert, 0o644)
}

// Issued is one certificate that the CA signed.
type Issued struct {
	ID        ID
	Serial    string
	NotBefore time.Time
	NotAfter  time.Time
	Revoked   bool
}

// List returns what was issued, newest first.
func (ca *CA) List() ([]Issued, error) {
	files, err := filepath.Glob(filepath.Join(ca.dir, "issued", "*.pem"))
	if err != nil {
		return nil, fmt.Errorf("list certificates: %w", err)
	}
	revoked, err := readRevoked(ca.RevokedFile())
	if err != nil {
		return nil, err
	}
	var out []Issued
	for _, f := range files {
		cs, err := readCerts(f)
		if err != nil {
			return nil, err
		}
		id, err := Identify(cs[0])
		if err != nil {
			return nil, fmt.Errorf("list certificates: %s: %w", f, err)
		}
		serial := strings.TrimSuffix(filepath.Base(f), ".pem")
		out = append(out, Issued{id, serial, cs[0].NotBefore, cs[0].NotAfter, revoked[serial]})
	}
	slices.SortFunc(out, func(a, b Issued) int { return b.NotBefore.Compare(a.NotBefore) })
	return out, nil
}

// RevokedFile names the list of revoked serials that a Source watches.
func (ca *CA) RevokedFile() string { return filepath.Join(ca.dir, "revoked") }

// Revoke revokes one serial, or every certificate of a name, and returns the
// serials. Nothing found is fs.ErrNotExist.
func (ca *CA) Revoke(nameOrSerial string) ([]string, error) {
	all, err := ca.List()
	if err != nil {
		return nil, err
	}
	var serials []string
	for _, c := range all {
		if (c.Serial == strings.ToLower(nameOrSerial) || c.ID.Name == nameOrSerial) && !c.Revoked {
			serials = append(serials, c.Serial)
		}
	}
	if len(serials) == 0 {
		return nil, fmt.Errorf("revoke: no certificate has the name or serial %q: %w", nameOrSerial, fs.ErrNotExist)
	}
	f, err := os.OpenFile(ca.RevokedFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("revoke: %w", err)
	}
	_, errWrite := f.WriteString(strings.Join(serials, "\n") + "\n")
	return serials, errors.Join(errWrite, f.Sync(), f.Close())
}

// newSerial returns a positive number of 127 random bits (RFC 5280, 4.1.2.2).
func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make a serial: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}
