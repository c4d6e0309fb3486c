package certs_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/droverhq/drover/certs"
)

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
