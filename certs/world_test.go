package certs_test

import (
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/droverhq/drover/certs"
)

// patience bounds waits for what the contract promises within 5 s.
const patience = 5 * time.Second

func newCA(t *testing.T) *certs.CA {
	t.Helper()
	ca, err := certs.Init(filepath.Join(t.TempDir(), "ca"), "test")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// folder issues a pair into a folder of its own.
func folder(t *testing.T, ca *certs.CA, r certs.IssueRequest) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), r.Name)
	if err := ca.IssuePair(dir, r); err != nil {
		t.Fatal(err)
	}
	return dir
}

func pair(t *testing.T, ca *certs.CA, role certs.Role, name string) *certs.Source {
	t.Helper()
	return source(t, folder(t, ca, certs.IssueRequest{Name: name, Role: role}), ca.RevokedFile())
}

func source(t *testing.T, dir string, revoked ...string) *certs.Source {
	t.Helper()
	s, err := certs.NewSource(dir, slog.New(slog.DiscardHandler), revoked...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// run follows a source's files for the time of the test.
func run(t *testing.T, s *certs.Source) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- s.Run(t.Context()) }()
	t.Cleanup(func() { <-done })
}

func csr(t *testing.T) []byte {
	t.Helper()
	_, der, err := certs.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func parse(t *testing.T, certPEM []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(certPEM)
	if block == nil {
		t.Fatalf("not PEM: %q", certPEM)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// wait waits for a channel to close, as long as the contract allows.
func wait(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		t.Fatalf("%s: nothing within %v", what, patience)
	}
}
