package certs_test

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/plugins/ownership"
)

// TestWhatOtherUsersCouldReadOrChangeIsRefused: keys as ssh does, and every file and
// folder that decides whom to trust.
func TestWhatOtherUsersCouldReadOrChangeIsRefused(t *testing.T) {
	t.Parallel()
	openPair := func(t *testing.T) (string, func() error) {
		dir := folder(t, newCA(t), certs.IssueRequest{Name: "w", Role: certs.RoleWorker})
		return dir, func() error {
			_, err := certs.NewSource(dir, slog.New(slog.DiscardHandler))
			return err
		}
	}
	openCA := func(t *testing.T) (string, func() error) {
		dir := filepath.Join(t.TempDir(), "ca")
		if _, err := certs.Init(dir, "test"); err != nil {
			t.Fatal(err)
		}
		return dir, func() error { _, err := certs.OpenCA(dir); return err }
	}
	for _, c := range []struct {
		open func(*testing.T) (string, func() error)
		file string
		mode os.FileMode
		want string
	}{
		{openPair, "tls.key", 0o640, "chmod 600"},
		{openPair, "tls.key", 0o604, "chmod 600"},
		{openPair, "tls.key", 0o620, "chmod 600"},
		{openPair, "tls.crt", 0o664, "chmod go-w"},
		{openPair, "ca.crt", 0o646, "chmod go-w"},
		{openPair, ".", 0o770, "chmod go-w"},
		{openPair, ".", 0o777 | os.ModeSticky, "chmod go-w"},
		{openPair, "..", 0o777, "chmod go-w"},
		{openCA, "ca.key", 0o640, "chmod 600"},
		{openCA, "ca.crt", 0o666, "chmod go-w"},
		{openCA, "tokens", 0o770, "chmod go-w"},
		{openCA, "issued", 0o707, "chmod go-w"},
		{openCA, ".", 0o777, "chmod go-w"},
	} {
		t.Run(c.file+" "+c.mode.String(), func(t *testing.T) {
			t.Parallel()
			dir, open := c.open(t)
			if err := open(); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, c.file)
			if err := os.Chmod(path, c.mode); err != nil {
				t.Fatal(err)
			}
			if err := open(); !errors.Is(err, ownership.ErrExposed) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("mode %v: %v", c.mode, err)
			}
			if os.Geteuid() != 0 {
				return
			}
			if err := errors.Join(os.Chmod(path, c.mode&^0o077), os.Chown(path, 65534, -1)); err != nil {
				t.Fatal(err)
			}
			if err := open(); !errors.Is(err, ownership.ErrExposed) || !strings.Contains(err.Error(), "belongs to user 65534") {
				t.Errorf("of another user: %v", err)
			}
		})
	}
}

// TestAKeyThatBecomesReadableIsNotReloaded: the daemon goes on with the pair it has,
// and says why.
func TestAKeyThatBecomesReadableIsNotReloaded(t *testing.T) {
	t.Parallel()
	dir := folder(t, newCA(t), certs.IssueRequest{Name: "w", Role: certs.RoleWorker})
	var log bytes.Buffer
	s, err := certs.NewSource(dir, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "tls.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.Reload()
	if s.ID().Name != "w" || !strings.Contains(log.String(), "chmod 600") {
		t.Errorf("%v, log: %s", s.ID(), log.String())
	}
}
