package certs

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"slices"
	"time"

	"github.com/droverhq/drover/plugins/durable"
)

const (
	// crlFile is the name of the signed list in the CA's and in any certificate folder.
	crlFile = "crl.pem"
	crlType = "X509 CRL" // RFC 7468, 6
	// maxCRL is the size of the largest list that is written or taken, in bytes:
	// some 80,000 certificates. It travels in one message, of 8 MiB at most.
	maxCRL = 4 << 20
)

// signedList is a certificate revocation list (RFC 5280, 5) as it lies in a file:
// the list, and the links by which those trust its signature who know the CA before a
// rotation only. Its number grows with every change.
type signedList struct {
	pem   []byte
	crl   *x509.RevocationList
	links []*x509.Certificate
}

func isSigned(data []byte) bool { return bytes.Contains(data, []byte("-----BEGIN "+crlType)) }

func parseCRL(data []byte) (*signedList, error) {
	if len(data) > maxCRL {
		return nil, fmt.Errorf("it has %d bytes, more than %d", len(data), maxCRL)
	}
	block, rest := pem.Decode(data)
	if block == nil || block.Type != crlType {
		return nil, errors.New("it does not begin with a PEM revocation list")
	}
	crl, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse the revocation list: %w", err)
	}
	if crl.Number == nil {
		return nil, errors.New("the revocation list has no number")
	}
	l := &signedList{pem: data, crl: crl}
	if len(bytes.TrimSpace(rest)) > 0 {
		if l.links, err = parseCerts(rest); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// signedBy tells whether one of the CAs signed the list, directly or through a link.
func (l *signedList) signedBy(cas []*x509.Certificate) bool {
	for _, ca := range cas {
		if l.crl.CheckSignatureFrom(ca) == nil {
			return true
		}
		for _, link := range l.links {
			if link.CheckSignatureFrom(ca) == nil && l.crl.CheckSignatureFrom(link) == nil {
				return true
			}
		}
	}
	return false
}

func (l *signedList) serials() map[string]bool {
	out := make(map[string]bool, len(l.crl.RevokedCertificateEntries))
	for _, e := range l.crl.RevokedCertificateEntries {
		out[hex.EncodeToString(e.SerialNumber.Bytes())] = true
	}
	return out
}

// newerThan is true also when there is no other.
func (l *signedList) newerThan(other *signedList) bool {
	return other == nil || l.crl.Number.Cmp(other.crl.Number) > 0
}

// ErrNotSigned says that the CA cannot sign the list of what is revoked: it has expired,
// or the list is too large.
var ErrNotSigned = errors.New("sign the revocation list")

// SignRevoked brings the signed list up to date: with what the list of earlier
// versions revoked, and with a signature of the CA's present key. It writes nothing
// when there is nothing to change. After an ErrNotSigned the lists are as before, and
// can be read.
func (ca *CA) SignRevoked() error {
	unlock, err := lockFolder(ca.dir)
	if err != nil {
		return fmt.Errorf("sign the revocation list: %w", err)
	}
	defer unlock()
	return ca.signRevoked(nil)
}

// signRevoked adds serials to the signed list, under the folder's lock.
func (ca *CA) signRevoked(more []string) error {
	const op = "sign the revocation list: %w"
	a, err := ca.load()
	if err != nil {
		return err
	}
	old, err := ca.readCRL()
	if err != nil {
		return fmt.Errorf(op, err)
	}
	earlier, err := readRevoked(ca.file(revokedFile))
	if err != nil {
		return fmt.Errorf(op, err)
	}
	for s := range earlier {
		more = append(more, s)
	}
	now := time.Now()
	template := &x509.RevocationList{Number: big.NewInt(now.UnixMilli()), ThisUpdate: now, NextUpdate: a.cert.NotAfter}
	current := true
	if old != nil {
		// The number is the time, so that a CA that was restored from a backup numbers
		// on above the lists that it has forgotten.
		if next := new(big.Int).Add(old.crl.Number, big.NewInt(1)); next.Cmp(template.Number) > 0 {
			template.Number = next
		}
		current = old.crl.CheckSignatureFrom(a.cert) == nil
		template.RevokedCertificateEntries = old.crl.RevokedCertificateEntries
	}
	over, err := ca.overAt(now)
	if err != nil {
		return fmt.Errorf(op, err)
	}
	entries := slices.DeleteFunc(slices.Clone(template.RevokedCertificateEntries), over)
	listed := make(map[string]bool, len(entries))
	for _, e := range entries {
		listed[e.SerialNumber.Text(16)] = true
	}
	for _, s := range more {
		e := x509.RevocationListEntry{RevocationTime: now}
		var ok bool
		if e.SerialNumber, ok = new(big.Int).SetString(s, 16); !ok || over(e) {
			continue
		}
		if number := e.SerialNumber.Text(16); !listed[number] {
			listed[number], current = true, false
			entries = append(entries, e)
		}
	}
	if current {
		return nil
	}
	template.RevokedCertificateEntries = entries
	return ca.writeCRL(template, a)
}

// overAt returns a test for entries of certificates that everybody has long refused
// without a list.
func (ca *CA) overAt(now time.Time) (func(x509.RevocationListEntry) bool, error) {
	ix, err := ca.index()
	if err != nil {
		return nil, err
	}
	return func(e x509.RevocationListEntry) bool {
		c, ok := ix.files[hex.EncodeToString(e.SerialNumber.Bytes())+".pem"]
		return ok && c.over(now)
	}, nil
}

func (ca *CA) writeCRL(template *x509.RevocationList, a *authority) error {
	der, err := x509.CreateRevocationList(rand.Reader, template, a.cert, a.key)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotSigned, err)
	}
	data := append(pem.EncodeToMemory(&pem.Block{Type: crlType, Bytes: der}), encodeCerts(a.chain)...)
	if len(data) > maxCRL {
		return fmt.Errorf("%w: with %d certificates it would have %d bytes, at most %d: certificates leave it when they have been expired "+
			"for as long as they were good (90 days at most); sooner helps only a new CA", ErrNotSigned, len(template.RevokedCertificateEntries), len(data), maxCRL)
	}
	// Replaced whole: a Source never reads half a list. And twice: nothing else knows
	// what is revoked (P22).
	if err := writeFile(durable.Copy(ca.RevokedFile()), data, 0o644); err != nil {
		return err
	}
	return writeFile(ca.RevokedFile(), data, 0o644)
}

// Crowded says how full the list of revoked certificates is; "" while there is room for
// four times as many.
func (ca *CA) Crowded() string {
	info, err := os.Stat(ca.RevokedFile())
	if err != nil || info.Size() < maxCRL/4 {
		return ""
	}
	return fmt.Sprintf("the list of revoked certificates has %d KiB, at most %d: certificates leave it when they have been expired for as long as "+
		"they were good (90 days at most); issue those that are soon revoked with a shorter --ttl", info.Size()>>10, maxCRL>>10)
}

// readCRL returns the signed list of the CA; nil: there is none yet.
func (ca *CA) readCRL() (*signedList, error) {
	var l *signedList
	_, err := durable.ReadTwice(ca.RevokedFile(), func(data []byte) (err error) {
		l, err = parseCRL(data)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // nothing was revoked yet
	}
	if err != nil {
		return nil, fmt.Errorf("read what is revoked: %w", err)
	}
	return l, nil
}

// Revocations returns the newest list of revoked certificates that a CA has signed,
// PEM, to be passed on; nil: there is none.
func (s *Source) Revocations() []byte {
	if l := s.material().newest; l != nil {
		return l.pem
	}
	return nil
}

// TakeRevocations takes a list that another process passed on: a CA of ca.crt must
// have signed it. One that is not newer than the one here changes nothing. It is in
// force when this returns, and lies in the folder for the next start unless there is
// an error.
func (s *Source) TakeRevocations(data []byte) error {
	const op = "take the list of revoked certificates"
	m := s.material()
	if m.newest != nil && bytes.Equal(m.newest.pem, data) {
		return nil
	}
	l, err := parseCRL(data)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if !l.signedBy(m.trust.cas) {
		return fmt.Errorf("%s: no CA of %s has signed it", op, s.file("ca.crt"))
	}
	if !s.receive(l) {
		return nil
	}
	s.Reload()
	if err := s.keepCRL(l); err != nil {
		return fmt.Errorf("%s: it is in force until a restart only: %w", op, err)
	}
	return nil
}

// receive notes a list for the next reload, if it is newer than any before.
func (s *Source) receive(l *signedList) bool {
	s.reading.Lock()
	defer s.reading.Unlock()
	if !l.newerThan(s.material().newest) || !l.newerThan(s.received) {
		return false
	}
	s.received = l
	return true
}

// keepCRL puts a list into the folder, unless a newer one is there.
func (s *Source) keepCRL(l *signedList) error {
	unlock, err := lockFolder(s.dir)
	if err != nil {
		return err
	}
	defer unlock()
	data, err := os.ReadFile(s.file(crlFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if old, err := parseCRL(data); err == nil && old.signedBy(s.material().trust.cas) && !l.newerThan(old) {
		return nil
	}
	return writeFile(s.file(crlFile), l.pem, 0o644)
}
