package daemon

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/droverhq/drover/certs"
)

// TestP22_ListCannotBeSigned_TheSchedulerStarts: it says so, and knows what is revoked.
// A list that cannot be read keeps it from starting.
func TestP22_ListCannotBeSigned_TheSchedulerStarts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	o := SchedulerOptions{CA: filepath.Join(dir, "ca"), Certs: filepath.Join(dir, "s")}
	ca, err := certs.Init(o.CA, "test")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	if err := errors.Join(ca.Rotate(now.Add(-certs.CAValidity-time.Hour)), ca.Retire(now)); err != nil {
		t.Fatal(err) // the CA expired an hour ago
	}
	if err := ca.IssuePair(o.Certs, certs.IssueRequest{Name: "s", Role: certs.RoleScheduler, Now: now.Add(-2 * time.Hour)}); err != nil {
		t.Fatal(err)
	}
	text := ca.RevokedFiles()[1]
	var log bytes.Buffer
	start := func(list string) (*certs.Source, error) {
		t.Helper()
		if err := os.WriteFile(text, []byte(list), 0o600); err != nil {
			t.Fatal(err)
		}
		source, _, err := schedulerCerts(o, slog.New(slog.NewTextHandler(&log, nil)))
		return source, err
	}
	source, err := start("00ff\n")
	if err != nil || !source.Revoked("ff") {
		t.Fatalf("the scheduler does not start, or does not know what is revoked: %v", err)
	}
	if s := log.String(); !strings.Contains(s, "level=ERROR") || !strings.Contains(s, text) {
		t.Errorf("the log says %q", s)
	}
	if _, err := start("what is this\n"); err == nil {
		t.Error("a list that cannot be read did not matter")
	}
}
