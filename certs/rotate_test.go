package certs_test

import (
	"crypto/tls"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/droverhq/drover/certs"
)

// meet lets two sources connect in both roles: the first is the server.
func meet(t *testing.T, server, client *certs.Source) error {
	t.Helper()
	s, c := handshake(t, server.ServerConfig(), client.ClientConfig(server.ID().Role, ""))
	return errors.Join(s, c)
}

func renew(t *testing.T, ca *certs.CA, s *certs.Source) {
	t.Helper()
	r := &certs.Renewer{Source: s, Renew: ca.RenewOwn(s)}
	if err := r.Now(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestRotationNeverParts: whoever renews first, before and after, everybody
// trusts everybody, until the old CA is retired.
func TestRotationNeverParts(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	schedDir := folder(t, ca, certs.IssueRequest{Name: "s", Role: certs.RoleScheduler})
	workerDir := folder(t, ca, certs.IssueRequest{Name: "w", Role: certs.RoleWorker})
	sched, worker, old := source(t, schedDir, ca.RevokedFile()), source(t, workerDir, ca.RevokedFile()), pair(t, ca, certs.RoleAdmin, "old")
	token, err := ca.NewToken(certs.TokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	pinned, err := certs.ParseToken(token)
	if err != nil {
		t.Fatal(err)
	}
	check := func(when string, sources ...*certs.Source) {
		t.Helper()
		for _, server := range []*certs.Source{sched, worker} {
			for _, client := range sources {
				if err := meet(t, server, client); err != nil {
					t.Errorf("%s: %s meets %s: %v", when, client.ID(), server.ID(), err)
				}
			}
		}
	}
	check("before", sched, worker, old)
	if err := ca.Rotate(time.Now()); err != nil {
		t.Fatal(err)
	}
	fresh := pair(t, ca, certs.RoleAdmin, "fresh")
	check("rotated", sched, worker, old, fresh)
	renew(t, ca, sched)
	check("the scheduler renewed", sched, worker, old, fresh)
	if s, c := handshake(t, sched.ServerConfig(), certs.JoinConfig(pinned.Pin)); s != nil || c != nil {
		t.Errorf("a token of before the rotation: %v, %v", s, c)
	}
	if _, _, err := ca.Redeem(t.Context(), token, "w2", csr(t), time.Now()); err != nil {
		t.Errorf("a token of before the rotation: %v", err)
	}
	renew(t, ca, worker)
	check("the worker renewed", sched, worker, old, fresh)
	if err := ca.Rotate(time.Now()); err == nil || !strings.Contains(err.Error(), "retire") {
		t.Errorf("a second rotation on top: %v", err)
	}
	if err := ca.Retire(time.Now()); err == nil || !strings.Contains(err.Error(), "admin/old") {
		t.Errorf("retired while in force: %v", err)
	}
	if _, err := ca.Revoke("old"); err != nil {
		t.Fatal(err)
	}
	revokeOld(t, ca, sched) // their certificates of before
	revokeOld(t, ca, worker)
	if err := ca.Retire(time.Now()); err != nil {
		t.Fatal(err)
	}
	bundle, err := ca.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	for dir, s := range map[string]*certs.Source{schedDir: sched, workerDir: worker} {
		write(t, filepath.Join(dir, "ca.crt"), string(bundle))
		s.Reload()
	}
	check("retired", sched, worker, fresh)
	if err := meet(t, sched, old); err == nil {
		t.Error("the retired CA is still trusted")
	}
}

// revokeOld revokes all certificates of an identity but the one in use.
func revokeOld(t *testing.T, ca *certs.CA, s *certs.Source) {
	t.Helper()
	list, err := ca.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		if c.ID != s.ID() || c.Serial == certs.Serial(s.Leaf()) {
			continue
		}
		if _, err := ca.Revoke(c.Serial); err != nil {
			t.Fatal(err)
		}
	}
}

// TestARunningCAFollowsARotation that another process makes.
func TestARunningCAFollowsARotation(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "ca")
	running, err := certs.Init(dir, "test")
	if err != nil {
		t.Fatal(err)
	}
	other, err := certs.OpenCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	before, err := running.NewToken(certs.TokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Rotate(time.Now()); err != nil {
		t.Fatal(err)
	}
	after, err := running.NewToken(certs.TokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if pin := func(s string) string { return s[strings.LastIndexByte(s, '.'):] }; pin(before) == pin(after) {
		t.Error("the running CA goes on with its old key")
	}
}

// TestAnInterruptedRotationLeavesAWholeCA: the key is written last.
func TestAnInterruptedRotationLeavesAWholeCA(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "ca")
	ca, err := certs.Init(dir, "test")
	if err != nil {
		t.Fatal(err)
	}
	key := read(t, filepath.Join(dir, "ca.key"))
	if err := ca.Rotate(time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.key"), []byte(key), 0o600); err != nil {
		t.Fatal(err)
	}
	if ca, err = certs.OpenCA(dir); err != nil {
		t.Fatal(err)
	}
	if err := meet(t, pair(t, ca, certs.RoleScheduler, "s"), pair(t, ca, certs.RoleAdmin, "a")); err != nil {
		t.Error(err)
	}
	if err := errors.Join(ca.Retire(time.Now()), ca.Rotate(time.Now())); err != nil {
		t.Errorf("it cannot be done again: %v", err)
	}
}

// TestEveryCAOfTheBundleIsTrusted: an operator may put several into ca.crt, and
// a running process follows.
func TestEveryCAOfTheBundleIsTrusted(t *testing.T) {
	t.Parallel()
	first, second := newCA(t), newCA(t)
	dir := folder(t, first, certs.IssueRequest{Name: "s", Role: certs.RoleScheduler})
	sched, admin := source(t, dir), pair(t, second, certs.RoleAdmin, "a")
	blind := admin.ClientConfig(certs.RoleScheduler, "")
	blind.VerifyConnection = func(tls.ConnectionState) error { return nil }
	if s, _ := handshake(t, sched.ServerConfig(), blind); s == nil {
		t.Error("trusted before it was told to")
	}
	more, err := second.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "ca.crt"), read(t, filepath.Join(dir, "ca.crt"))+string(more))
	sched.Reload()
	if s, c := handshake(t, sched.ServerConfig(), blind); s != nil || c != nil {
		t.Errorf("%v, %v", s, c)
	}
}
