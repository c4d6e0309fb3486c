package certs_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/droverhq/drover/certs"
)

func p256(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestALeafCarriesExactlyOneIdentity for every role, with the usage of its side.
func TestALeafCarriesExactlyOneIdentity(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	for _, role := range certs.Roles() {
		t.Run(string(role), func(t *testing.T) {
			t.Parallel()
			data, serial, err := ca.Issue(certs.IssueRequest{
				Name: "x.y-z_" + string(role), Role: role, Public: p256(t).Public(), Hosts: []string{"host.example", "10.0.0.1", "::1"},
			})
			if err != nil {
				t.Fatal(err)
			}
			c := parse(t, data)
			if len(c.URIs) != 1 || c.URIs[0].String() != "spiffe://test/"+string(role)+"/x.y-z_"+string(role) {
				t.Errorf("URI names %v", c.URIs)
			}
			server := role == certs.RoleScheduler || role == certs.RoleWorker
			if got := slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth); got != server {
				t.Errorf("server usage %v", got)
			}
			if !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth) || c.IsCA || c.KeyUsage != x509.KeyUsageDigitalSignature {
				t.Errorf("usages %v %v, CA %v", c.ExtKeyUsage, c.KeyUsage, c.IsCA)
			}
			if got := len(c.DNSNames) == 1 && len(c.IPAddresses) == 2; got != server {
				t.Errorf("hosts %v %v", c.DNSNames, c.IPAddresses)
			}
			if serial != certs.Serial(c) {
				t.Errorf("serial %s, %s in the certificate", serial, certs.Serial(c))
			}
			if id, err := certs.Identify(c); err != nil || id != (certs.ID{Cluster: "test", Role: role, Name: "x.y-z_" + string(role)}) {
				t.Errorf("identity %v, %v", id, err)
			}
		})
	}
}

func TestIssueRefusesWhatIsNoIdentity(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	good := certs.IssueRequest{Name: "a", Role: certs.RoleAdmin, Public: p256(t).Public()}
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		what   string
		change func(*certs.IssueRequest)
	}{
		{"no name", func(r *certs.IssueRequest) { r.Name = "" }},
		{"a path", func(r *certs.IssueRequest) { r.Name = "a/b" }},
		{"another identity", func(r *certs.IssueRequest) { r.Name = "a?x#y" }},
		{"a long name", func(r *certs.IssueRequest) { r.Name = strings.Repeat("a", 64) }},
		{"no role", func(r *certs.IssueRequest) { r.Role = "" }},
		{"an unknown role", func(r *certs.IssueRequest) { r.Role = "root" }},
		{"a negative lifetime", func(r *certs.IssueRequest) { r.TTL = -1 }},
		{"no key", func(r *certs.IssueRequest) { r.Public = nil }},
		{"a small key", func(r *certs.IssueRequest) { r.Public = small.Public() }},
		{"a time after the CA's", func(r *certs.IssueRequest) { r.Now = time.Now().Add(2 * certs.CAValidity) }},
	}
	for _, c := range cases {
		r := good
		c.change(&r)
		if _, _, err := ca.Issue(r); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	if list, err := ca.List(); err != nil || len(list) != 0 {
		t.Errorf("refused requests left %d certificates, %v", len(list), err)
	}
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good.Public = public
	if _, _, err := ca.Issue(good); err != nil {
		t.Errorf("Ed25519: %v", err)
	}
}

// TestNoLeafOutlivesItsCA: nobody would accept it any more.
func TestNoLeafOutlivesItsCA(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	bundle, err := ca.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	data, _, err := ca.Issue(certs.IssueRequest{Name: "a", Role: certs.RoleAdmin, Public: p256(t).Public(), TTL: 2 * certs.CAValidity})
	if err != nil {
		t.Fatal(err)
	}
	if got, most := parse(t, data).NotAfter, parse(t, bundle).NotAfter; got.After(most) {
		t.Errorf("good until %v, its CA until %v", got, most)
	}
}

func TestListShowsNewestFirst(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	now := time.Now().Add(-time.Hour)
	for i, name := range []string{"first", "second", "third"} {
		folder(t, ca, certs.IssueRequest{Name: name, Role: certs.RoleViewer, TTL: 2 * time.Hour, Now: now.Add(time.Duration(i) * time.Minute)})
	}
	list, err := ca.List()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range list {
		names = append(names, c.ID.Name)
	}
	if want := []string{"third", "second", "first"}; !slices.Equal(names, want) {
		t.Errorf("%v, want %v", names, want)
	}
	if c := list[0]; !c.InForce(time.Now()) || c.InForce(time.Now().Add(3*time.Hour)) || c.InForce(now.Add(-time.Hour)) {
		t.Errorf("in force from %v to %v", c.NotBefore, c.NotAfter)
	}
}

func TestListNamesADamagedRecord(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "ca")
	ca, err := certs.Init(dir, "test")
	if err != nil {
		t.Fatal(err)
	}
	bad := filepath.Join(dir, "issued", "00.pem")
	write(t, bad, "garbage")
	if _, err := ca.List(); err == nil || !strings.Contains(err.Error(), bad) {
		t.Errorf("got %v", err)
	}
}

// TestRenewalOfARevokedIdentityIsRefused, also when the revocation comes
// between the check of the caller and the signature.
func TestRenewalOfARevokedIdentityIsRefused(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	s := pair(t, ca, certs.RoleWorker, "w1")
	renew := func(id certs.ID) error {
		_, _, err := ca.RenewFor(id, certs.Serial(s.Leaf()), csr(t), nil, time.Now().Add(certs.LeafValidity/2))
		return err
	}
	if err := renew(s.ID()); err != nil {
		t.Fatal(err)
	}
	if got, err := ca.Revoke("w1"); err != nil || len(got) != 2 {
		t.Fatalf("revoked %v, %v", got, err)
	}
	if err := renew(s.ID()); err == nil || !strings.Contains(err.Error(), "ask an admin") {
		t.Errorf("got %v", err)
	}
	if err := renew(certs.ID{Cluster: "test", Role: certs.RoleAdmin, Name: "w1"}); err == nil {
		t.Error("a role that was never issued was renewed")
	}
	if err := renew(certs.ID{Cluster: "other", Role: certs.RoleWorker, Name: "w1"}); err == nil {
		t.Error("an identity of another cluster was renewed")
	}
}

func TestOpenCASaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	fresh := func(t *testing.T) string {
		t.Helper()
		dir := filepath.Join(t.TempDir(), "ca")
		if _, err := certs.Init(dir, "test"); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	cases := []struct {
		name   string
		damage func(t *testing.T, dir string) error
		want   string
	}{
		{"open key", func(_ *testing.T, dir string) error { return os.Chmod(filepath.Join(dir, "ca.key"), 0o644) }, "chmod 600"},
		{"no PEM", func(_ *testing.T, dir string) error {
			return os.WriteFile(filepath.Join(dir, "ca.key"), []byte("x"), 0o600)
		}, "no PEM key"},
		{"another key", func(t *testing.T, dir string) error {
			return os.Rename(filepath.Join(fresh(t), "ca.key"), filepath.Join(dir, "ca.key"))
		}, "same backup"},
		{"no certificate", func(_ *testing.T, dir string) error { return os.Remove(filepath.Join(dir, "ca.crt")) }, "ca.crt"},
		{"cut certificate", func(_ *testing.T, dir string) error {
			return os.Truncate(filepath.Join(dir, "ca.crt"), 100)
		}, "ca.crt"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := fresh(t)
			if err := c.damage(t, dir); err != nil {
				t.Fatal(err)
			}
			if _, err := certs.OpenCA(dir); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestInitRefusesAFolderThatOthersMayWriteTo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := certs.Init(dir, "test"); err == nil || !strings.Contains(err.Error(), "chmod go-w") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "ca.key")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a key was made")
	}
}

// TestTwoInitsMakeOneCA: the certificate of one and the key of another would be
// no CA at all.
func TestTwoInitsMakeOneCA(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "ca")
	results := make(chan error, 4)
	for range cap(results) {
		go func() {
			_, err := certs.Init(dir, "test")
			results <- err
		}()
	}
	won := 0
	for range cap(results) {
		if err := <-results; err == nil {
			won++
		} else if !errors.Is(err, fs.ErrExist) {
			t.Error(err)
		}
	}
	if _, err := certs.OpenCA(dir); won != 1 || err != nil {
		t.Errorf("%d winners, %v", won, err)
	}
}
