package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// IssueRequest says what certificate is wanted.
type IssueRequest struct {
	Name   string           // 1 to 63 letters, digits, dots, dashes, underscores
	Role   Role             // what it may do
	TTL    time.Duration    // how long it is good; 0 is LeafValidity
	Hosts  []string         // DNS names and addresses; only servers carry them
	Public crypto.PublicKey // the key that it is for
	Now    time.Time        // zero is the present
}

// Issue signs one leaf with exactly one URI SAN and returns it as PEM with its
// serial in hex. A copy is on disk in issued/ before it is returned, so that
// nothing is ever valid that Revoke does not know.
func (ca *CA) Issue(r IssueRequest) (cert []byte, serial string, err error) {
	unlock, err := lockFolder(ca.dir)
	if err != nil {
		return nil, "", fmt.Errorf("issue a certificate: %w", err)
	}
	defer unlock()
	return ca.issue(r)
}

// issue is Issue under the lock.
func (ca *CA) issue(r IssueRequest) (cert []byte, serial string, err error) {
	template, err := ca.template(r)
	if err != nil {
		return nil, "", fmt.Errorf("issue a certificate: %w", err)
	}
	a, err := ca.load()
	if err != nil {
		return nil, "", err
	}
	if template.NotBefore.After(a.cert.NotAfter) {
		return nil, "", fmt.Errorf("issue a certificate: the CA expired on %s; rotate it", day(a.cert.NotAfter))
	}
	if template.NotAfter.After(a.cert.NotAfter) {
		template.NotAfter = a.cert.NotAfter // nobody would accept it for longer
	}
	leaf, err := sign(template, a.cert, r.Public, a.key)
	if err != nil {
		return nil, "", err
	}
	serial, cert = Serial(leaf), encodeCert(leaf.Raw)
	if err := writeFile(ca.issuedFile(serial), cert, 0o600); err != nil {
		return nil, "", err
	}
	// Peers that know only the CA before a rotation trust the leaf through the link.
	return append(cert, encodeCerts(a.chain)...), serial, nil
}

func (ca *CA) issuedFile(serial string) string {
	return filepath.Join(ca.dir, "issued", serial+".pem")
}

// template turns a request into what is to be signed.
func (ca *CA) template(r IssueRequest) (*x509.Certificate, error) {
	if err := CheckName(r.Name); err != nil {
		return nil, err
	}
	if _, err := ParseRole(string(r.Role)); err != nil {
		return nil, err
	}
	if err := checkKey(r.Public); err != nil {
		return nil, err
	}
	if r.TTL < 0 {
		return nil, fmt.Errorf("a lifetime of %v is not above 0", r.TTL)
	}
	if r.TTL == 0 {
		r.TTL = LeafValidity
	}
	if r.Now.IsZero() {
		r.Now = time.Now()
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	id := ID{Cluster: ca.cluster, Role: r.Role, Name: r.Name}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{Organization: []string{"drover"}, CommonName: r.Name},
		URIs: []*url.URL{id.URI()}, NotBefore: r.Now.Add(-backdate), NotAfter: r.Now.Add(r.TTL),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if !r.Role.server() {
		return t, nil
	}
	t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	for _, h := range r.Hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	return t, nil
}

// checkKey refuses keys that are too weak to stand for an identity.
func checkKey(public crypto.PublicKey) error {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		if k.Curve.Params().BitSize >= 256 {
			return nil
		}
	case ed25519.PublicKey:
		return nil
	case *rsa.PublicKey:
		if k.N.BitLen() >= 2048 {
			return nil
		}
	}
	return fmt.Errorf("a key of type %T and its size is not good enough; use ECDSA P-256, Ed25519 or RSA of 2048 bits or more", public)
}

// IssuePair makes a key and a certificate for it in dir, beside ca.crt. The
// new pair appears whole or not at all (see WritePair).
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

// RenewFor signs a fresh certificate of an identity that the caller has proved
// over TLS; of the CSR only the key counts. An identity whose every certificate
// is revoked gets none, also when the revocation overtook the call.
func (ca *CA) RenewFor(id ID, csr []byte, hosts []string, now time.Time) (cert, bundle []byte, err error) {
	public, err := csrKey(csr)
	if err != nil {
		return nil, nil, err
	}
	if id.Cluster != ca.cluster {
		return nil, nil, fmt.Errorf("renew: %s is not of the cluster %s", id, ca.cluster)
	}
	unlock, err := lockFolder(ca.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("renew: %w", err)
	}
	defer unlock()
	inForce, err := ca.inForce(id, now)
	if err != nil {
		return nil, nil, err
	}
	if !inForce {
		return nil, nil, fmt.Errorf("renew: no certificate of %s is in force here; ask an admin for a new one", id)
	}
	return ca.issueWithBundle(IssueRequest{Name: id.Name, Role: id.Role, Public: public, Now: now, Hosts: hosts})
}

func (ca *CA) issueWithBundle(r IssueRequest) (cert, bundle []byte, err error) {
	if cert, _, err = ca.issue(r); err != nil {
		return nil, nil, err
	}
	bundle, err = ca.Bundle()
	return cert, bundle, err
}

// csrKey takes the key, and nothing else, from a certificate request.
func csrKey(der []byte) (crypto.PublicKey, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("read the certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("check the certificate request: %w", err)
	}
	if err := checkKey(csr.PublicKey); err != nil {
		return nil, fmt.Errorf("check the certificate request: %w", err)
	}
	return csr.PublicKey, nil
}

// Issued is one certificate that the CA signed.
type Issued struct {
	ID        ID
	Serial    string // hex
	NotBefore time.Time
	NotAfter  time.Time
	Revoked   bool

	cert *x509.Certificate
}

// InForce tells whether peers accept the certificate at a time.
func (i Issued) InForce(now time.Time) bool {
	return !i.Revoked && !now.Before(i.NotBefore) && !now.After(i.NotAfter)
}

// List returns what was issued, newest first.
func (ca *CA) List() ([]Issued, error) {
	files, err := filepath.Glob(filepath.Join(ca.dir, "issued", "*.pem"))
	if err != nil {
		return nil, fmt.Errorf("list certificates: %w", err)
	}
	revoked, err := readRevoked(ca.RevokedFile())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list certificates: %w", err)
	}
	out := make([]Issued, 0, len(files))
	for _, f := range files {
		cs, err := readCerts(f)
		if err != nil {
			return nil, fmt.Errorf("list certificates: %w", err)
		}
		id, err := Identify(cs[0])
		if err != nil {
			return nil, fmt.Errorf("list certificates: %s: %w", f, err)
		}
		serial := Serial(cs[0])
		out = append(out, Issued{id, serial, cs[0].NotBefore, cs[0].NotAfter, revoked[serial], cs[0]})
	}
	slices.SortFunc(out, func(a, b Issued) int {
		if c := b.NotBefore.Compare(a.NotBefore); c != 0 {
			return c
		}
		return strings.Compare(a.Serial, b.Serial)
	})
	return out, nil
}

// inForce tells whether an identity has a certificate that peers accept.
func (ca *CA) inForce(id ID, now time.Time) (bool, error) {
	all, err := ca.List()
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(all, func(i Issued) bool { return i.ID == id && i.InForce(now) }), nil
}

func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }
