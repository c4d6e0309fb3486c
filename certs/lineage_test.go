package certs_test

import (
	"crypto/x509"
	"errors"
	"io/fs"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/droverhq/drover/certs"
)

// TestRenewalKeepsTheLifeThatWasChosen, however often it is renewed, and who it is.
func TestRenewalKeepsTheLifeThatWasChosen(t *testing.T) {
	t.Parallel()
	for _, ttl := range []time.Duration{20 * time.Second, 2 * time.Minute, 30 * 24 * time.Hour, certs.LeafValidity, 365 * 24 * time.Hour} {
		ca := newCA(t)
		begin := time.Now()
		cert, serial, err := ca.Issue(certs.IssueRequest{Name: "a", Role: certs.RoleSubmitter, TTL: ttl, Public: p256(t).Public(), Now: begin})
		if err != nil {
			t.Fatal(err)
		}
		lineage := certs.Lineage(parse(t, cert))
		if lineage == "" {
			t.Error("no lineage")
		}
		for n := range 4 {
			begin = begin.Add(ttl / 2)
			cert, _, err := ca.RenewFor(certs.ID{Cluster: "test", Role: certs.RoleSubmitter, Name: "a"}, serial, csr(t), nil, begin)
			if err != nil {
				t.Fatal(err)
			}
			leaf := parse(t, cert)
			if life := leaf.NotAfter.Sub(begin); life > ttl || life < ttl-2*time.Second {
				t.Errorf("renewal %d of %v is good for %v", n, ttl, life)
			}
			if certs.Lineage(leaf) != lineage {
				t.Errorf("renewal %d has another lineage", n)
			}
			serial = certs.Serial(leaf)
		}
	}
}

// TestRenewalAfterARotationHasTheWholeLifeAgain: what the end of a CA cuts short is
// not what was chosen. A copy that does not tell what was chosen means its life.
func TestRenewalAfterARotationHasTheWholeLifeAgain(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	dir := filepath.Join(t.TempDir(), "ca")
	ca, err := certs.Init(dir, "test")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Truncate(time.Second)
	if err := errors.Join(ca.Rotate(now.Add(10*day-certs.CAValidity)), ca.Retire(now)); err != nil {
		t.Fatal(err) // 10 days are left
	}
	s := source(t, folder(t, ca, certs.IssueRequest{Name: "w1", Role: certs.RoleWorker, Now: now.Add(-85 * day)}))
	again := func(ca *certs.CA, serial string, want time.Duration) string {
		t.Helper()
		pem, _, err := ca.RenewFor(s.ID(), serial, csr(t), nil, now)
		if err != nil {
			t.Fatal(err)
		}
		cert := parse(t, pem)
		if got := cert.NotAfter.Sub(now); got != want {
			t.Errorf("the renewal is good for %v, not for %v", got, want)
		}
		return certs.Serial(cert)
	}
	short := again(ca, certs.Serial(s.Leaf()), 10*day)
	if err := ca.Rotate(now); err != nil {
		t.Fatal(err)
	}
	again(ca, short, 90*day)
	text := regexp.MustCompile(`(?m)^[A-Z][a-z]+: .*\n`).ReplaceAllString(read(t, filepath.Join(dir, "issued", short+".pem")), "")
	write(t, filepath.Join(dir, "issued", short+".pem"), text)
	fresh, err := certs.OpenCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	again(fresh, short, 10*day)
}

// TestWhatIsIssuedToEndIsNotRenewed: not by its owner, and no daemon tries.
func TestWhatIsIssuedToEndIsNotRenewed(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	s := source(t, folder(t, ca, certs.IssueRequest{Name: "a", Role: certs.RoleSubmitter, NoRenew: true}))
	if certs.Renewable(s.Leaf()) {
		t.Error("it does not say that it ends")
	}
	_, _, err := ca.RenewFor(s.ID(), certs.Serial(s.Leaf()), csr(t), nil, time.Now().Add(certs.LeafValidity/2))
	if !errors.Is(err, certs.ErrNoRenew) {
		t.Errorf("got %v", err)
	}
}

// TestRenewalNeedsTheCertificateItself: that another one of the identity is in force
// does not help one that was revoked.
func TestRenewalNeedsTheCertificateItself(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	stolen := pair(t, ca, certs.RoleWorker, "w")
	pair(t, ca, certs.RoleWorker, "w")
	serial := certs.Serial(stolen.Leaf())
	if _, err := ca.Revoke(serial); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ca.RenewFor(stolen.ID(), serial, csr(t), nil, time.Now().Add(certs.LeafValidity/2)); err == nil {
		t.Error("it was renewed")
	}
}

// TestANameBelongsToOneRole while it is in force.
func TestANameBelongsToOneRole(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	issue := func(name string, role certs.Role) error {
		return ca.IssuePair(filepath.Join(t.TempDir(), "x"), certs.IssueRequest{Name: name, Role: role})
	}
	if err := issue("root", certs.RoleAdmin); err != nil {
		t.Fatal(err)
	}
	for _, role := range certs.Roles() {
		err := issue("root", role)
		if taken := (*certs.NameTakenError)(nil); role != certs.RoleAdmin && (!errors.As(err, &taken) || !errors.Is(err, fs.ErrExist)) {
			t.Errorf("%s: %v", role, err)
		}
	}
	if _, err := ca.Revoke("root"); err != nil {
		t.Fatal(err)
	}
	if err := issue("root", certs.RoleSubmitter); err != nil {
		t.Errorf("after the revocation: %v", err)
	}
}

// TestANameThatIsUsedAgainAfterARevocationIsSomebodyElse; a further certificate of
// the same person is not.
func TestANameThatIsUsedAgainAfterARevocationIsSomebodyElse(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	issue := func() string { return certs.Lineage(pair(t, ca, certs.RoleSubmitter, "a").Leaf()) }
	first := issue()
	if second := issue(); second != first {
		t.Errorf("the second certificate of a person is of %q, the first of %q", second, first)
	}
	if _, err := ca.Revoke("a"); err != nil {
		t.Fatal(err)
	}
	if next := issue(); next == first || next == "" {
		t.Errorf("after the revocation it is %q, was %q", next, first)
	}
}

// TestAnIdentityIsWrittenInOneWay: what another reader may take for somebody else is
// nobody.
func TestAnIdentityIsWrittenInOneWay(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"spiffe://user@prod/admin/root", "spiffe://user:pw@prod/admin/root", "spiffe://prod/admin/root?", "spiffe://prod/admin/root?x=1",
		"spiffe://prod/admin/root#x", "spiffe://prod/%61dmin/root", "spiffe://prod/admin/r%6fot", "spiffe://prod:1/admin/root",
		"spiffe:prod/admin/root", "spiffe://prod//admin/root", "spiffe://prod/admin/root/", "spiffe://@prod/admin/root", "SPIFFE://prod/admin/root ",
	} {
		u, err := url.Parse(s)
		if err != nil {
			continue // no certificate with it can be read
		}
		if id, err := certs.Identify(&x509.Certificate{URIs: []*url.URL{u}}); err == nil {
			t.Errorf("%s is %v", s, id)
		} else if strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %q", s, err)
		}
	}
}
