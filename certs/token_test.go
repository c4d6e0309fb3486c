package certs_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
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
	var wait sync.WaitGroup
	results := make(chan error, 8)
	for range 8 {
		request := csr(t)
		wait.Go(func() {
			_, bundle, err := ca.Redeem(t.Context(), token.Secret, "w1", request, time.Now())
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
	redeem := func(printed, name string, at time.Time) error {
		token, err := certs.ParseToken(printed)
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = ca.Redeem(t.Context(), token.Secret, name, csr(t), at)
		return err
	}
	now := time.Now()
	late, err := ca.NewToken(certs.TokenRequest{TTL: time.Minute, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	if err := redeem(late, "w", now.Add(2*time.Minute)); !errors.Is(err, certs.ErrToken) || !strings.Contains(err.Error(), "expired") {
		t.Errorf("late: %v", err)
	}
	twice, err := ca.NewToken(certs.TokenRequest{Uses: 2})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, true, false} {
		if err := redeem(twice, fmt.Sprintf("w%d", i), now); (err == nil) != want {
			t.Errorf("use %d: %v", i+1, err)
		}
	}
	if _, err := ca.NewToken(certs.TokenRequest{Role: certs.RoleAdmin}); err == nil {
		t.Error("an admin token was made")
	}
}

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
	cert, _, err := ca.Redeem(t.Context(), token.Secret, "w1", der, time.Now())
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

func TestATakenNameUsesNoTokenUp(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	token, err := ca.NewToken(certs.TokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	folder(t, ca, certs.IssueRequest{Name: "w1", Role: certs.RoleWorker})
	folder(t, ca, certs.IssueRequest{Name: "w2", Role: certs.RoleViewer})
	if _, _, err := ca.Redeem(t.Context(), token, "w1", csr(t), time.Now()); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), `worker "w1"`) {
		t.Errorf("the name of a living worker: %v", err)
	}
	if _, _, err := ca.Redeem(t.Context(), token, "w2", csr(t), time.Now()); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), `viewer "w2"`) {
		t.Errorf("the name of a viewer: %v", err)
	}
	if _, err := ca.Revoke("worker/w1"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ca.Redeem(t.Context(), token, "w1", csr(t), time.Now()); err != nil {
		t.Errorf("a revoked name cannot be used again: %v", err)
	}
}

// TestBadRequestsUseNoTokenUp: a typing error must not cost the token.
func TestBadRequestsUseNoTokenUp(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	token, err := ca.NewToken(certs.TokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	weak, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	weakCSR, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, weak)
	if err != nil {
		t.Fatal(err)
	}
	forged := csr(t)
	forged[len(forged)-1] ^= 1
	for _, c := range []struct {
		what, name string
		csr        []byte
	}{
		{"bad name", "../w1", csr(t)},
		{"no name", "", csr(t)},
		{"no request", "w1", nil},
		{"garbage", "w1", []byte("garbage")},
		{"weak key", "w1", weakCSR},
		{"wrong signature", "w1", forged},
	} {
		if _, _, err := ca.Redeem(t.Context(), token, c.name, c.csr, time.Now()); err == nil || errors.Is(err, certs.ErrToken) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	if _, _, err := ca.Redeem(t.Context(), token, "w1", csr(t), time.Now()); err != nil {
		t.Errorf("the token was used up: %v", err)
	}
}

func TestTokensAreWholeOrRefused(t *testing.T) {
	t.Parallel()
	ca, other := newCA(t), newCA(t)
	printed, err := ca.NewToken(certs.TokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := other.NewToken(certs.TokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "drover1", "drover1.x", printed[:len(printed)-1], "drover2" + printed[7:], "drover1.." + strings.Repeat("0", 64), "drover1.x." + strings.Repeat("z", 64)} {
		if _, err := certs.ParseToken(bad); !errors.Is(err, certs.ErrToken) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for _, bad := range []string{"", "unknown", foreign, strings.Split(printed, ".")[1] + "x"} {
		if _, _, err := ca.Redeem(t.Context(), bad, "w1", csr(t), time.Now()); !errors.Is(err, certs.ErrToken) {
			t.Errorf("redeem %q: %v", bad, err)
		}
	}
	// The protocol sends tokens without their pin; whole ones are as good.
	if _, _, err := ca.Redeem(t.Context(), printed[:strings.LastIndexByte(printed, '.')], "w1", csr(t), time.Now()); err != nil {
		t.Errorf("without its pin: %v", err)
	}
}

func TestTheFolderGivesNoTokenAway(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "ca")
	ca, err := certs.Init(dir, "test")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	printed, err := ca.NewToken(certs.TokenRequest{TTL: time.Minute, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	tokens := func() []string {
		t.Helper()
		files, err := filepath.Glob(filepath.Join(dir, "tokens", "*"))
		if err != nil {
			t.Fatal(err)
		}
		return files
	}
	files := tokens()
	if len(files) != 1 {
		t.Fatalf("%d files", len(files))
	}
	if info, err := os.Stat(files[0]); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if secret := strings.Split(printed, ".")[1]; strings.Contains(files[0]+read(t, files[0]), secret) {
		t.Error("the secret is on disk")
	}
	if _, err := ca.NewToken(certs.TokenRequest{Now: now.Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	if left := tokens(); len(left) != 1 || left[0] == files[0] {
		t.Errorf("the expired token is still there: %v", left)
	}
}

func TestTokenRequestsAreChecked(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	for _, r := range []certs.TokenRequest{{Role: certs.RoleAdmin}, {Role: certs.RoleScheduler}, {TTL: -time.Second}, {Uses: -1}} {
		if _, err := ca.NewToken(r); err == nil {
			t.Errorf("%+v made a token", r)
		}
	}
}

func TestCheckPin(t *testing.T) {
	t.Parallel()
	ca, other := newCA(t), newCA(t)
	printed, err := ca.NewToken(certs.TokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	token, err := certs.ParseToken(printed)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		ca   *certs.CA
		good bool
	}{{ca, true}, {other, false}} {
		bundle, err := c.ca.Bundle()
		if err != nil {
			t.Fatal(err)
		}
		if err := certs.CheckPin(bundle, token.Pin); (err == nil) != c.good {
			t.Errorf("%v, want good %v", err, c.good)
		}
	}
	if err := certs.CheckPin([]byte("nothing"), token.Pin); !errors.Is(err, certs.ErrToken) {
		t.Errorf("an empty bundle: %v", err)
	}
}
