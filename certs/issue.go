package certs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"time"

	"github.com/droverhq/drover/plugins/durable"
)

// IssueRequest says what certificate is wanted.
type IssueRequest struct {
	Name   string           // 1 to 63 letters, digits, dots, dashes, underscores
	Role   Role             // what it may do
	TTL    time.Duration    // how long it is good; 0 is LeafValidity
	Hosts  []string         // DNS names and addresses; only servers carry them
	Public crypto.PublicKey // the key that it is for
	Now    time.Time        // zero is the present
	// NoRenew ends the identity with this certificate: it cannot be renewed.
	NoRenew bool

	renews  string  // serial of the certificate that it takes the place of
	lineage *string // that it belongs to; nil: it begins one
}

// notRenewable in the subject of a certificate says that it cannot be renewed.
const notRenewable = "no-renew"

// Renewable tells whether the CA may renew a certificate.
func Renewable(c *x509.Certificate) bool {
	return !slices.Contains(c.Subject.OrganizationalUnit, notRenewable)
}

// Lineage tells apart who had one name in turn: renewals keep it, and so does what is
// issued to an identity that has a certificate already; after a revocation another one
// begins. "" is that of certificates that earlier versions issued. It stands in the
// subject, as the attribute that X.520 has for this (6.2.9, serialNumber).
func Lineage(c *x509.Certificate) string { return c.Subject.SerialNumber }

// Issue signs one leaf with exactly one URI SAN and returns it as PEM with its
// serial in hex. A copy is on disk in issued/ before it is returned, so that
// nothing is ever valid that Revoke does not know. A name that is in force under
// another role is fs.ErrExist.
func (ca *CA) Issue(r IssueRequest) (cert []byte, serial string, err error) {
	made, err := ca.issueAnew(r, func(*ledger, issuance) error { return nil })
	return made.cert, made.serial, err
}

// errChanged says that a signature was made for a CA that has changed since.
var errChanged = errors.New("the CA was changed at this moment; try again")

// permit has the last word on a certificate that was signed, under the folder's lock.
type permit func(*ledger, issuance) error

// issueAnew is issue for who does not renew.
func (ca *CA) issueAnew(r IssueRequest, may permit) (issuance, error) {
	const tries = 10
	for n := 1; ; n++ {
		made, err := ca.issueOnce(r, may)
		if !errors.Is(err, errChanged) || n == tries {
			return made, err
		}
	}
}

func (ca *CA) issueOnce(r IssueRequest, may permit) (issuance, error) {
	if r.Now.IsZero() {
		r.Now = time.Now()
	}
	id := ID{Cluster: ca.cluster, Role: r.Role, Name: r.Name}
	before, err := ca.recent()
	if err != nil {
		return issuance{}, err
	}
	lineage, known := before.lineageOf(id, r.Now)
	if known {
		r.lineage = &lineage
	}
	return ca.issue(r, func(l *ledger, made issuance) error {
		if err := l.nameFree(id, r.Now); err != nil {
			return fmt.Errorf("issue a certificate: %w", err)
		}
		if now, still := l.lineageOf(id, r.Now); still != known || now != lineage { // it was revoked meanwhile, or has begun
			return fmt.Errorf("issue a certificate: %w", errChanged)
		}
		return may(l, made)
	})
}

// issuance is a certificate that was signed.
type issuance struct {
	cert   []byte // PEM, with the link that a rotation made
	serial string
	bundle []byte // every CA to trust
	leaf   *x509.Certificate
}

// issue is Issue where may, asked under the folder's lock, has the last word. The
// disk is waited for without the lock, for Join and Revoke need it, too: the copy is
// durable before it is in its place, and its place before anybody has the certificate.
func (ca *CA) issue(r IssueRequest, may permit) (issuance, error) {
	if r.TTL == 0 {
		r.TTL = LeafValidity
	}
	made, err := ca.signLeaf(r)
	if err != nil {
		return issuance{}, err
	}
	record, err := durable.Stage(ca.issuedFile(made.serial), encodeIssued(made.leaf.Raw, r.renews, r.TTL), 0o600)
	if err != nil {
		return issuance{}, err
	}
	defer record.Discard()
	if err := ca.enter(made, record, may); err != nil {
		return issuance{}, err
	}
	return made, durable.SyncFolder(ca.file("issued"))
}

// enter puts the copy of a certificate into its place, unless may forbids it.
func (ca *CA) enter(made issuance, record *durable.Staged, may permit) error {
	unlock, err := lockFolder(ca.dir)
	if err != nil {
		return fmt.Errorf("issue a certificate: %w", err)
	}
	defer unlock()
	switch bundle, err := ca.Bundle(); {
	case err != nil:
		return err
	case !bytes.Equal(bundle, made.bundle):
		return fmt.Errorf("issue a certificate: %w", errChanged)
	}
	l, err := ca.ledger()
	if err != nil {
		return err
	}
	if err := ca.prune(l, time.Now()); err != nil {
		return err
	}
	if err := may(l, made); err != nil {
		return err
	}
	return commit(record)
}

// signLeaf signs what was asked for; nobody knows of it yet.
func (ca *CA) signLeaf(r IssueRequest) (issuance, error) {
	template, err := ca.template(r)
	if err != nil {
		return issuance{}, fmt.Errorf("issue a certificate: %w", err)
	}
	bundle, err := ca.Bundle()
	if err != nil {
		return issuance{}, err
	}
	a, err := ca.load()
	if err != nil {
		return issuance{}, err
	}
	if template.NotBefore.After(a.cert.NotAfter) {
		return issuance{}, fmt.Errorf("issue a certificate: the CA expired on %s; rotate it", day(a.cert.NotAfter))
	}
	if template.NotAfter.After(a.cert.NotAfter) {
		template.NotAfter = a.cert.NotAfter // nobody would accept it for longer
	}
	leaf, err := sign(template, a.cert, r.Public, a.key)
	if err != nil {
		return issuance{}, err
	}
	// Peers that know only the CA before a rotation trust the leaf through the link.
	return issuance{append(encodeCert(leaf.Raw), encodeCerts(a.chain)...), Serial(leaf), bundle, leaf}, nil
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
	if r.Now.IsZero() {
		r.Now = time.Now()
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	id := ID{Cluster: ca.cluster, Role: r.Role, Name: r.Name}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: r.subject(serial),
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

func (r *IssueRequest) subject(serial *big.Int) pkix.Name {
	n := pkix.Name{Organization: []string{"drover"}, CommonName: r.Name, SerialNumber: hex.EncodeToString(serial.Bytes())}
	if r.lineage != nil {
		n.SerialNumber = *r.lineage
	}
	if r.NoRenew {
		n.OrganizationalUnit = []string{notRenewable}
	}
	return n
}

// checkKey refuses keys that are too weak to stand for an identity, and those that
// cost whoever checks their signatures much: the work for RSA grows with the square
// of the key, and with the exponent.
func checkKey(public crypto.PublicKey) error {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() {
			return nil
		}
	case ed25519.PublicKey:
		return nil
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); 2048 <= bits && bits <= 4096 && k.E <= 65537 {
			return nil
		}
	}
	return fmt.Errorf("a key of type %T and its size is not accepted; use ECDSA P-256 or P-384, Ed25519, or RSA of 2048 to 4096 bits with an exponent up to 65537", public)
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

// TooSoonError is the refusal of a renewal that nobody needs yet.
type TooSoonError struct {
	ID    ID
	Until time.Time // it may be renewed from then on
}

// Error implements error.
func (e *TooSoonError) Error() string {
	return fmt.Sprintf("the certificate of %s is fresh; it can be renewed from %s on", e.ID, day(e.Until))
}

// Bounds of renewals.
const (
	// freshOnes is how many renewals of one certificate may be in the first third of
	// their life: one whose answer was lost is made again.
	freshOnes = 3
	// mostInForce is how many certificates an identity may have by renewing.
	mostInForce = 1000
)

// ErrNoRenew is the refusal to renew a certificate that was issued to end.
var ErrNoRenew = errors.New("it was issued as one that is not renewed; ask an admin for a new one")

// RenewFor signs a fresh certificate of an identity that the caller has proved
// over TLS with the certificate of a serial; of the CSR only the key counts. It lasts
// as long as was asked for the one before, which may have been cut short by the end of
// its CA. A certificate that is revoked gets none, also when the revocation overtook the
// call. Before a third of its life is over, one that the present key of the CA signed is
// not renewed: that is a *TooSoonError.
func (ca *CA) RenewFor(id ID, serial string, csr []byte, hosts []string, now time.Time) (cert, bundle []byte, err error) {
	if id.Cluster != ca.cluster {
		return nil, nil, fmt.Errorf("renew: %s is not of the cluster %s", id, ca.cluster)
	}
	l, err := ca.ledger()
	if err != nil {
		return nil, nil, err
	}
	before, err := ca.mayRenew(l, id, serial, now)
	if err != nil {
		return nil, nil, err
	}
	public, err := csrKey(csr)
	if err != nil {
		return nil, nil, err
	}
	lineage := Lineage(before.cert)
	made, err := ca.issue(IssueRequest{Name: id.Name, Role: id.Role, TTL: before.lifeAskedFor(), Public: public, Now: now, Hosts: hosts, renews: serial, lineage: &lineage},
		func(l *ledger, _ issuance) error {
			_, err := ca.mayRenew(l, id, serial, now)
			return err
		})
	return made.cert, made.bundle, err
}

// mayRenew returns the certificate of a serial, unless an identity may not have a
// fresh one for it.
func (ca *CA) mayRenew(l *ledger, id ID, serial string, now time.Time) (Issued, error) {
	all := l.inForce(id, now)
	i := slices.IndexFunc(all, func(c Issued) bool { return c.Serial == serial })
	switch {
	case i < 0:
		return Issued{}, fmt.Errorf("renew: the certificate of %s is not in force here; ask an admin for a new one", id)
	case !Renewable(all[i].cert):
		return Issued{}, fmt.Errorf("renew: the certificate of %s: %w", id, ErrNoRenew)
	}
	a, err := ca.load()
	if err != nil {
		return Issued{}, err
	}
	var fresh []time.Time // until when its renewals are
	for _, c := range all {
		switch until := renewableAt(c.cert); {
		case !now.Before(until):
		case !bytes.Equal(c.cert.AuthorityKeyId, a.cert.SubjectKeyId): // of before a rotation
		case c.Serial == serial:
			return Issued{}, &TooSoonError{id, until}
		case c.renews == serial:
			fresh = append(fresh, until)
		}
	}
	if len(fresh) >= freshOnes {
		return Issued{}, &TooSoonError{id, slices.MinFunc(fresh, time.Time.Compare)}
	}
	if len(all) >= mostInForce {
		return Issued{}, fmt.Errorf("renew: %s has %d certificates in force; revoke those that are not used", id, len(all))
	}
	return all[i], nil
}

// maxCSR is the size of the largest certificate request that is looked at, in bytes.
// That of an RSA key of 4096 bits has 1.5 KiB.
const maxCSR = 16 << 10

// ErrCSR is the refusal of a certificate request.
var ErrCSR = errors.New("certificate request refused")

// csrKey takes the key, and nothing else, from a certificate request. The key is
// looked at before anything is computed with it.
func csrKey(der []byte) (crypto.PublicKey, error) {
	if len(der) > maxCSR {
		return nil, fmt.Errorf("%w: it has %d bytes, more than %d", ErrCSR, len(der), maxCSR)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCSR, err)
	}
	if err := checkKey(csr.PublicKey); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCSR, err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCSR, err)
	}
	return csr.PublicKey, nil
}

func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }
