package certs_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/droverhq/drover/certs"
)

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
