package certs_test

import (
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
