package certs_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/droverhq/drover/certs"
)

func newCA(t *testing.T) *certs.CA {
	t.Helper()
	ca, err := certs.Init(filepath.Join(t.TempDir(), "ca"), "test")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func pair(t *testing.T, ca *certs.CA, role certs.Role, name string) *certs.Source {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	if err := ca.IssuePair(dir, certs.IssueRequest{Name: name, Role: role}); err != nil {
		t.Fatal(err)
	}
	return source(t, dir, ca.RevokedFile())
}

func source(t *testing.T, dir string, revoked ...string) *certs.Source {
	t.Helper()
	s, err := certs.NewSource(dir, slog.New(slog.DiscardHandler), revoked...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// handshake runs TLS between two configurations over a real connection and
// returns what each side saw.
func handshake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer c.Close()
		err = c.(*tls.Conn).HandshakeContext(t.Context())
		if err == nil {
			_, err = c.Write([]byte("x"))
		}
		done <- err
	}()
	c, clientErr := tls.Dial("tcp", l.Addr().String(), client)
	if clientErr == nil {
		defer c.Close()
		// TLS 1.3: the server's verdict on the client arrives with the first read.
		_, clientErr = c.Read(make([]byte, 1))
	}
	return <-done, clientErr
}

func TestIssuedPairsTrustEachOther(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	sched, admin := pair(t, ca, certs.RoleScheduler, "s1"), pair(t, ca, certs.RoleAdmin, "alice")
	if serverErr, clientErr := handshake(t, sched.ServerConfig(), admin.ClientConfig(certs.RoleScheduler, "")); serverErr != nil || clientErr != nil {
		t.Fatalf("server %v, client %v", serverErr, clientErr)
	}
	if got := admin.ID().String(); got != "spiffe://test/admin/alice" {
		t.Errorf("identity %s", got)
	}
}

func TestTheServerIsKnownByRoleAndName(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	worker, sched := pair(t, ca, certs.RoleWorker, "w1"), pair(t, ca, certs.RoleScheduler, "s1")
	if _, err := handshake(t, worker.ServerConfig(), sched.ClientConfig(certs.RoleScheduler, "")); err == nil {
		t.Error("a worker passed for a scheduler")
	}
	if _, err := handshake(t, worker.ServerConfig(), sched.ClientConfig(certs.RoleWorker, "w2")); err == nil || !strings.Contains(err.Error(), "w2") {
		t.Errorf("w1 passed for w2: %v", err)
	}
	if s, c := handshake(t, worker.ServerConfig(), sched.ClientConfig(certs.RoleWorker, "w1")); s != nil || c != nil {
		t.Errorf("the right worker was refused: %v, %v", s, c)
	}
	admin := pair(t, ca, certs.RoleAdmin, "a")
	if _, err := handshake(t, admin.ServerConfig(), sched.ClientConfig(certs.RoleAdmin, "")); err == nil {
		t.Error("a client certificate served as a server")
	}
}

// leaf makes a certificate by hand, to break one rule at a time.
func leaf(t *testing.T, dir string, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	caPair, err := tls.LoadX509KeyPair(filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id := certs.ID{Cluster: "test", Role: certs.RoleAdmin, Name: "eve"}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(7), URIs: []*url.URL{id.URI()}, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	change(c)
	der, err := x509.CreateCertificate(rand.Reader, c, caPair.Leaf, key.Public(), caPair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestBrokenClientCertificatesAreRefused(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "ca")
	ca, err := certs.Init(dir, "test")
	if err != nil {
		t.Fatal(err)
	}
	sched := pair(t, ca, certs.RoleScheduler, "s1")
	two := func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }
	cases := []struct {
		name   string
		change func(*x509.Certificate)
		want   string
	}{
		{"expired", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, "expired"},
		{"not yet valid", func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }, "not yet valid"},
		{"no URI name", func(c *x509.Certificate) { c.URIs = nil }, "0 URI names"},
		{"two URI names", two, "2 URI names"},
		{"CA certificate", func(c *x509.Certificate) { c.IsCA = true }, "CA certificate"},
		{"server usage only", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, "usage"},
		{"unknown role", func(c *x509.Certificate) { c.URIs[0].Path = "/root/eve" }, "role"},
		{"other cluster", func(c *x509.Certificate) { c.URIs[0].Host = "prod" }, "cluster"},
		{"query in the name", func(c *x509.Certificate) { c.URIs[0].RawQuery = "x=1" }, "not spiffe"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			client := &tls.Config{
				MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, //nolint:gosec // the client's view is not the test
				Certificates: []tls.Certificate{leaf(t, dir, c.change)},
			}
			serverErr, clientErr := handshake(t, sched.ServerConfig(), client)
			if serverErr == nil || clientErr == nil || !strings.Contains(serverErr.Error(), c.want) {
				t.Errorf("server: %v, client: %v, want %q", serverErr, clientErr, c.want)
			}
		})
	}
}

func TestForeignCAIsRefusedOnBothSides(t *testing.T) {
	t.Parallel()
	ours, theirs := newCA(t), newCA(t)
	sched, eve := pair(t, ours, certs.RoleScheduler, "s1"), pair(t, theirs, certs.RoleAdmin, "eve")
	if _, err := handshake(t, sched.ServerConfig(), eve.ClientConfig(certs.RoleScheduler, "")); err == nil {
		t.Error("a client trusted a foreign scheduler")
	}
	blind := eve.ClientConfig(certs.RoleScheduler, "")
	blind.VerifyConnection = nil
	if err, _ := handshake(t, sched.ServerConfig(), blind); err == nil {
		t.Error("the scheduler trusted a foreign client")
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	sched := pair(t, ca, certs.RoleScheduler, "s1")
	old := pair(t, ca, certs.RoleAdmin, "a").ClientConfig(certs.RoleScheduler, "")
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if _, err := handshake(t, sched.ServerConfig(), old); err == nil {
		t.Error("TLS 1.2 was accepted")
	}
}

func TestRevocationTakesEffect(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	sched, admin := pair(t, ca, certs.RoleScheduler, "s1"), pair(t, ca, certs.RoleAdmin, "alice")
	changed := sched.Changed()
	serials, err := ca.Revoke("alice")
	if err != nil || len(serials) != 1 {
		t.Fatalf("revoked %v, %v", serials, err)
	}
	sched.Reload()
	<-changed
	if !sched.Revoked(serials[0]) {
		t.Error("the scheduler does not know of the revocation")
	}
	if err, _ := handshake(t, sched.ServerConfig(), admin.ClientConfig(certs.RoleScheduler, "")); err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("a revoked certificate passed: %v", err)
	}
	if _, err := ca.Revoke("nobody"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("revoke of nobody: %v", err)
	}
	list, err := ca.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		if c.Revoked != (c.ID.Name == "alice") {
			t.Errorf("%s: revoked %v", c.ID, c.Revoked)
		}
	}
}

func TestABadNewPairKeepsTheOldOne(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	dir := filepath.Join(t.TempDir(), "s1")
	if err := ca.IssuePair(dir, certs.IssueRequest{Name: "s1", Role: certs.RoleScheduler}); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	s, err := certs.NewSource(dir, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	before := s.Leaf()
	if err := os.WriteFile(filepath.Join(dir, "tls.crt"), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Reload()
	if s.Leaf() != before || !strings.Contains(log.String(), "keeping the old certificate") {
		t.Errorf("garbage was taken, or nobody was told: %s", log.String())
	}
	if err := ca.IssuePair(dir, certs.IssueRequest{Name: "s1", Role: certs.RoleScheduler}); err != nil {
		t.Fatal(err)
	}
	s.Reload()
	if s.Leaf() == before {
		t.Error("the good new pair was not taken")
	}
}

func TestSourceNamesTheFileAtFault(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := certs.NewSource(dir, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("got %v", err)
	}
	if !certs.Missing(dir) {
		t.Error("an empty folder has a pair")
	}
}

func csr(t *testing.T) []byte {
	t.Helper()
	_, der, err := certs.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestTokenIsGoodOnceForOneWorker(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	printed, err := ca.NewToken(certs.TokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	token, err := certs.ParseToken(printed + "\n")
	if err != nil {
		t.Fatal(err)
	}
	request := csr(t)
	var wait sync.WaitGroup
	results := make(chan error, 8)
	for range 8 {
		wait.Go(func() {
			_, bundle, err := ca.Redeem(token.Secret, "w1", request, time.Now())
			if err == nil {
				err = certs.CheckPin(bundle, token.Pin)
			}
			results <- err
		})
	}
	wait.Wait()
	won := 0
	for range 8 {
		if err := <-results; err == nil {
			won++
		} else if !errors.Is(err, certs.ErrToken) {
			t.Error(err)
		}
	}
	if won != 1 {
		t.Errorf("%d of 8 simultaneous redeems won, want 1", won)
	}
}

func TestTokenExpiresAndCounts(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	redeem := func(printed string, at time.Time) error {
		token, err := certs.ParseToken(printed)
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = ca.Redeem(token.Secret, "w1", csr(t), at)
		return err
	}
	now := time.Now()
	late, err := ca.NewToken(certs.TokenRequest{TTL: time.Minute, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	if err := redeem(late, now.Add(2*time.Minute)); !errors.Is(err, certs.ErrToken) || !strings.Contains(err.Error(), "expired") {
		t.Errorf("late: %v", err)
	}
	twice, err := ca.NewToken(certs.TokenRequest{Uses: 2})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, true, false} {
		if err := redeem(twice, now); (err == nil) != want {
			t.Errorf("use %d: %v", i+1, err)
		}
	}
	if _, err := ca.NewToken(certs.TokenRequest{Role: certs.RoleAdmin}); err == nil {
		t.Error("an admin token was made")
	}
}

// TestRedeemIgnoresWhatTheRequestAsksFor: the scheduler issues exactly one
// worker certificate with its own name, whatever the request says.
func TestRedeemIgnoresWhatTheRequestAsksFor(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	printed, err := ca.NewToken(certs.TokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	token, _ := certs.ParseToken(printed)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	evil := certs.ID{Cluster: "test", Role: certs.RoleAdmin, Name: "root"}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		URIs: []*url.URL{evil.URI()}, DNSNames: []string{"scheduler"}, IPAddresses: []net.IP{net.IPv4(1, 2, 3, 4)},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, _, err := ca.Redeem(token.Secret, "w1", der, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(cert)
	parsed, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	id, err := certs.Identify(parsed)
	if err != nil || id.Role != certs.RoleWorker || id.Name != "w1" {
		t.Errorf("identity %v, %v", id, err)
	}
	if len(parsed.IPAddresses) != 0 || len(parsed.DNSNames) != 1 || parsed.DNSNames[0] != "w1" {
		t.Errorf("names %v %v come from the request", parsed.DNSNames, parsed.IPAddresses)
	}
}

func TestJoinConfigChecksThePinBeforeTheSecretIsSent(t *testing.T) {
	t.Parallel()
	ca, stranger := newCA(t), newCA(t)
	printed, err := ca.NewToken(certs.TokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	token, _ := certs.ParseToken(printed)
	good, bad := pair(t, ca, certs.RoleScheduler, "s1"), pair(t, stranger, certs.RoleScheduler, "s1")
	if s, c := handshake(t, good.ServerConfig(), certs.JoinConfig(token.Pin)); s != nil || c != nil {
		t.Errorf("the right scheduler was refused: %v, %v", s, c)
	}
	if _, err := handshake(t, bad.ServerConfig(), certs.JoinConfig(token.Pin)); err == nil {
		t.Error("a stranger would have got the token")
	}
	worker := pair(t, ca, certs.RoleWorker, "w1")
	if _, err := handshake(t, worker.ServerConfig(), certs.JoinConfig(token.Pin)); err == nil {
		t.Error("a worker passed for the scheduler")
	}
}

func TestInitNeverOverwrites(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "ca")
	if _, err := certs.Init(dir, "one"); err != nil {
		t.Fatal(err)
	}
	if _, err := certs.Init(dir, "two"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("got %v", err)
	}
	if ca, err := certs.OpenCA(dir); err != nil || ca.Cluster() != "one" {
		t.Errorf("the first CA is gone: %v", err)
	}
	if _, err := certs.OpenCA(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing CA: %v", err)
	}
	for _, bad := range []string{"", "a b", "x/y", "-x", strings.Repeat("x", 64)} {
		if _, err := certs.Init(filepath.Join(t.TempDir(), "ca"), bad); err == nil {
			t.Errorf("cluster name %q was taken", bad)
		}
	}
}

func TestKeysAreForTheOwnerOnly(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "ca")
	ca, err := certs.Init(dir, "test")
	if err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(t.TempDir(), "alice")
	if err := ca.IssuePair(own, certs.IssueRequest{Name: "alice", Role: certs.RoleAdmin}); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{filepath.Join(dir, "ca.key"), filepath.Join(own, "tls.key")} {
		info, err := os.Stat(f)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, info.Mode(), err)
		}
	}
}

func TestRenewalIsAtHalfLifeWithJitter(t *testing.T) {
	t.Parallel()
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	c := &x509.Certificate{NotBefore: begin, NotAfter: begin.Add(100 * time.Hour)}
	if got := certs.RenewAt(c, 0).Sub(begin); got != 50*time.Hour {
		t.Errorf("without jitter after %v", got)
	}
	if got := certs.RenewAt(c, 0.999).Sub(begin); got < 59*time.Hour || got > 60*time.Hour {
		t.Errorf("with full jitter after %v", got)
	}
}

func TestRenewerReplacesThePairInPlace(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	s := pair(t, ca, certs.RoleWorker, "w1")
	before := s.Leaf().SerialNumber
	r := &certs.Renewer{Source: s, Log: slog.New(slog.DiscardHandler), Renew: func(_ context.Context, csr []byte) (cert, bundle []byte, err error) {
		return ca.RenewFor(s.ID(), csr, nil, time.Now())
	}}
	if err := r.Now(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.Leaf().SerialNumber.Cmp(before) == 0 || s.ID().Name != "w1" {
		t.Errorf("serial %v, identity %v", s.Leaf().SerialNumber, s.ID())
	}
	if _, _, err := ca.RenewFor(certs.ID{Cluster: "other", Role: certs.RoleWorker, Name: "w1"}, csr(t), nil, time.Now()); err == nil {
		t.Error("an identity of another cluster was renewed")
	}
}
