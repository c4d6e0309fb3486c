package certs_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/droverhq/drover/certs"
)

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

// TestARevocationCatchesAHandshakeThatIsUnderWay: what its chain was verified with
// does not hold any more when it ends.
func TestARevocationCatchesAHandshakeThatIsUnderWay(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	sched, admin := pair(t, ca, certs.RoleScheduler, "s1"), pair(t, ca, certs.RoleAdmin, "alice")
	config, err := sched.ServerConfig().GetConfigForClient(nil)
	if err != nil {
		t.Fatal(err)
	}
	chain := []*x509.Certificate{admin.Leaf()}
	verified := tls.ConnectionState{PeerCertificates: chain, VerifiedChains: [][]*x509.Certificate{chain}}
	if err := config.VerifyConnection(verified); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Revoke("alice"); err != nil {
		t.Fatal(err)
	}
	sched.Reload()
	if err := config.VerifyConnection(verified); err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("got %v", err)
	}
}
