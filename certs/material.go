package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"time"
)

// material is one consistent state of a Source. It is never written after it
// was made.
type material struct {
	pair    *pair
	trust   *trust
	lists   map[string]*list // by file
	revoked map[string]bool  // all lists together
	newest  *signedList      // of those that a CA in trust has signed; nil: there is none
}

type pair struct {
	crt, key []byte // as read
	cert     *tls.Certificate
	id       ID
}

func (p *pair) leaf() *x509.Certificate { return p.cert.Leaf }

type trust struct {
	raw  []byte
	cas  []*x509.Certificate
	pool *x509.CertPool
}

type list struct {
	raw     []byte
	serials map[string]bool
	signed  *signedList // nil: it is an unsigned one
}

// equal compares by identity: build keeps the parts that did not change.
func (m *material) equal(old *material) bool {
	return m.pair == old.pair && m.trust == old.trust && maps.Equal(m.lists, old.lists)
}

// build makes the next state from the files and the old state, and says what
// in the files is no good. Without an old state (nil) it has nothing to fall back
// on and returns nil when a part is unusable, that problem first. It is pure but
// for what its arguments hold.
func build(dir string, l contents, old *material, now time.Time) (*material, []error) {
	var problems []error
	m := &material{lists: map[string]*list{}, revoked: map[string]bool{}}
	if old != nil {
		m.pair, m.trust = old.pair, old.trust
	}
	if t, err := buildTrust(l.ca, m.trust); err == nil {
		m.trust = t
	} else {
		problems = append(problems, err)
	}
	if m.trust != nil {
		p, err := buildPair(dir, l, old, m.trust, now)
		if p != nil {
			m.pair = p
		}
		if err != nil {
			problems = append(problems, err)
		}
	}
	if m.trust == nil || m.pair == nil {
		return nil, problems
	}
	for _, f := range l.lists {
		err := m.addList(f, old)
		if err != nil && m.lists[f.path] == nil && old == nil {
			return nil, []error{err}
		}
		if err != nil {
			problems = append(problems, err)
		}
	}
	return m, problems
}

func buildTrust(f file, old *trust) (*trust, error) {
	if f.err != nil {
		return nil, fmt.Errorf("read the CA certificates: %w", f.err)
	}
	if old != nil && bytes.Equal(old.raw, f.data) {
		return old, nil
	}
	cas, err := parseBundle(f.data)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", f.path, err)
	}
	return &trust{f.data, cas, poolOf(cas)}, nil
}

// buildPair returns the pair to serve, if any, and what is wrong with the one in
// the files.
func buildPair(dir string, l contents, old *material, t *trust, now time.Time) (*pair, error) {
	for _, f := range []file{l.crt, l.key} {
		if f.err != nil {
			return nil, fmt.Errorf("read the certificate: %w", f.err)
		}
	}
	same := old != nil && bytes.Equal(old.pair.crt, l.crt.data) && bytes.Equal(old.pair.key, l.key.data)
	if same && old.trust == t {
		return old.pair, nil
	}
	if _, err := parseCerts(l.crt.data); err != nil {
		return nil, fmt.Errorf("read %s: %w", l.crt.path, err)
	}
	cert, err := tls.X509KeyPair(l.crt.data, l.key.data)
	if err != nil {
		return nil, fmt.Errorf("use %s: %w", l.key.path, err)
	}
	id, err := Identify(cert.Leaf)
	if err != nil {
		return nil, fmt.Errorf("use the certificate in %s: %w", dir, err)
	}
	chain, err := parseCerts(l.crt.data)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", l.crt.path, err)
	}
	p := &pair{l.crt.data, l.key.data, &cert, id}
	problem := inspect(dir, chain, t, now)
	if old != nil && !same {
		if id != old.pair.id {
			return nil, fmt.Errorf("the certificate in %s is of %s, this process is %s: restart it to change who it is", dir, id, old.pair.id)
		}
		if problem != nil {
			return nil, problem
		}
	}
	if id.Role == RoleScheduler {
		showCAs(p, chain, t)
	}
	if same {
		problem = nil // said when it was new
	}
	return p, problem
}

// inspect finds what peers would refuse.
func inspect(dir string, chain []*x509.Certificate, t *trust, now time.Time) error {
	switch leaf := chain[0]; {
	case now.After(leaf.NotAfter):
		return fmt.Errorf("the certificate in %s expired on %s: ask for a new one", dir, day(leaf.NotAfter))
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("the certificate in %s is not yet valid before %s: is the clock right?", dir, day(leaf.NotBefore))
	}
	if err := signedBy(chain, t.cas); err != nil {
		return fmt.Errorf("the certificate in %s: %w", dir, err)
	}
	return nil
}

// showCAs lets a scheduler send its CAs along: a joining worker, which has none
// yet, checks the pin of its token on them.
func showCAs(p *pair, chain []*x509.Certificate, t *trust) {
	for _, ca := range t.cas {
		if signedBy(chain, []*x509.Certificate{ca}) == nil {
			p.cert.Certificate = append(p.cert.Certificate, ca.Raw)
		}
	}
}

// addList takes a list of revoked certificates. A list that vanished or cannot
// be read any more goes on counting: nothing becomes good again by an accident.
func (m *material) addList(f file, old *material) error {
	var before *list
	if old != nil {
		before = old.lists[f.path]
	}
	next, err := buildList(f, before)
	if err != nil {
		err = &listError{err}
	}
	if next == nil {
		return err
	}
	m.lists[f.path] = next
	maps.Copy(m.revoked, next.serials)
	switch {
	case next.signed == nil:
	case !next.signed.signedBy(m.trust.cas):
		// Who writes to the folder is trusted, so it counts; but it is not passed on.
		if err == nil && next != before {
			err = fmt.Errorf("%s: no CA of ca.crt has signed it; it counts, but a list with a signature will not know of it", f.path)
		}
	case next.signed.newerThan(m.newest):
		m.newest = next.signed
	}
	return err
}

// listError is about a list of revoked certificates.
type listError struct{ error }

// Unwrap returns the cause.
func (e *listError) Unwrap() error { return e.error }

func buildList(f file, before *list) (*list, error) {
	switch {
	case f.missing() && before == nil:
		return nil, nil //nolint:nilnil // no list, which is usual
	case f.missing():
		return before, fmt.Errorf("%s is gone: what it revoked stays revoked until a restart", f.path)
	case f.err != nil:
		return before, fmt.Errorf("read revoked serials: %w", f.err)
	case before != nil && bytes.Equal(before.raw, f.data):
		return before, nil
	}
	if !isSigned(f.data) {
		serials, err := parseRevoked(f.data)
		if err != nil {
			return before, fmt.Errorf("read %s: %w", f.path, err)
		}
		return &list{f.data, serials, nil}, nil
	}
	l, err := parseCRL(f.data)
	if err != nil {
		return before, fmt.Errorf("read %s: %w", f.path, err)
	}
	if before != nil && before.signed != nil && !l.newerThan(before.signed) {
		return before, fmt.Errorf("%s is older than the list before it, which stays in force", f.path)
	}
	return &list{f.data, l.serials(), l}, nil
}
