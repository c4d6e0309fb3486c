package certs_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/droverhq/drover/certs"
)

func newToken(t *testing.T, ca *certs.CA, r certs.TokenRequest) string {
	t.Helper()
	token, err := ca.NewToken(r)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// TestP21_AJoinWhoseAnswerWasLost_GetsTheSameCertificateAgain: with the same key and name,
// before the token expires. Nobody else gets anything for it.
func TestP21_AJoinWhoseAnswerWasLost_GetsTheSameCertificateAgain(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	now := time.Now()
	token := newToken(t, ca, certs.TokenRequest{TTL: time.Hour, Now: now})
	request := csr(t)
	results := make(chan string, 8)
	var wait sync.WaitGroup
	for range cap(results) {
		wait.Go(func() {
			cert, bundle, err := ca.Redeem(t.Context(), token, "w1", request, now)
			if err != nil || len(bundle) == 0 {
				t.Errorf("%v, a bundle of %d bytes", err, len(bundle))
			}
			results <- string(cert)
		})
	}
	wait.Wait()
	first := <-results
	for range cap(results) - 1 {
		if again := <-results; again != first {
			t.Error("another certificate was issued")
		}
	}
	refused := func(what, name string, request []byte, at time.Time) {
		t.Helper()
		if _, _, err := ca.Redeem(t.Context(), token, name, request, at); !errors.Is(err, certs.ErrToken) {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("another key", "w1", csr(t), now)
	refused("another name", "w2", request, now)
	refused("a token that has expired", "w1", request, now.Add(time.Hour))
	if err := ca.CheckToken(token, now.Add(time.Hour)); !errors.Is(err, certs.ErrToken) {
		t.Errorf("the token has expired: %v", err)
	}
	if _, err := ca.Revoke("w1"); err != nil {
		t.Fatal(err)
	}
	refused("a certificate that was revoked", "w1", request, now)
	newToken(t, ca, certs.TokenRequest{Now: now.Add(2 * time.Hour)})
	if files, err := filepath.Glob(filepath.Join(filepath.Dir(ca.BundleFile()), "tokens", "*")); err != nil || len(files) != 1 {
		t.Errorf("of the token that has expired these are left: %q, %v", files, err)
	}
}

// TestP21_ACallerThatHasGone_UsesNoTokenUp: nobody would take the certificate.
func TestP21_ACallerThatHasGone_UsesNoTokenUp(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	token := newToken(t, ca, certs.TokenRequest{})
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := ca.Redeem(gone, token, "w1", csr(t), time.Now()); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if _, _, err := ca.Redeem(t.Context(), token, "w1", csr(t), time.Now()); err != nil {
		t.Errorf("the token was used up: %v", err)
	}
}

// TestACAThatDiedWhileSomebodyJoined_OwesItsKeyACertificate: a use that is gone without a
// certificate is still the key's, and nobody else's.
func TestACAThatDiedWhileSomebodyJoined_OwesItsKeyACertificate(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	now := time.Now()
	token := newToken(t, ca, certs.TokenRequest{TTL: 1000 * time.Hour * 24})
	request := csr(t)
	redeem := func(request []byte, at time.Time) (serial string, err error) {
		cert, _, err := ca.Redeem(t.Context(), token, "w1", request, at)
		if err != nil {
			return "", err
		}
		return certs.Serial(parse(t, cert)), nil
	}
	first, err := redeem(request, now)
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(filepath.Dir(ca.BundleFile()), "issued", first+".pem")
	if err := os.Remove(copied); err != nil { // as if it had not come into its place
		t.Fatal(err)
	}
	if _, err := redeem(csr(t), now); !errors.Is(err, certs.ErrToken) {
		t.Errorf("another key: %v", err)
	}
	if _, err := redeem(request, now.Add(certs.LeafValidity+time.Hour)); !errors.Is(err, certs.ErrToken) {
		t.Errorf("after the life of the certificate: %v", err)
	}
	second, err := redeem(request, now)
	if err != nil || second == first {
		t.Errorf("%s, %v", second, err)
	}
	if third, err := redeem(request, now); err != nil || third != second {
		t.Errorf("%s, %v", third, err)
	}
}

// TestAJoinIsAskedForAgainWithTheSameKey: until it has its answer.
func TestAJoinIsAskedForAgainWithTheSameKey(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	token := newToken(t, ca, certs.TokenRequest{})
	dir := filepath.Join(t.TempDir(), "joined")
	start := func() *certs.Joining {
		j, err := certs.StartJoin(dir)
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
	if err := start().Refused(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder of a join that was refused: %v", err)
	}
	lost, _, err := ca.Redeem(t.Context(), token, "w1", start().CSR, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(dir, "join.key")
	if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key: %v, %v", info, err)
	}
	j := start()
	cert, bundle, err := ca.Redeem(t.Context(), token, "w1", j.CSR, time.Now())
	if err != nil || string(cert) != string(lost) {
		t.Fatalf("it gets another certificate: %v", err)
	}
	if err := j.Finish(cert, bundle); err != nil {
		t.Fatal(err)
	}
	if s := source(t, dir); s.ID().Name != "w1" {
		t.Errorf("joined as %v", s.ID())
	}
	if _, err := os.Stat(key); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the key is still beside the pair: %v", err)
	}
	write(t, key, "garbage")
	if err := os.Chmod(key, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := certs.StartJoin(dir); err == nil {
		t.Error("a key that cannot be read was replaced")
	}
}
