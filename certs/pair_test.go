package certs_test

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/droverhq/drover/certs"
)

// made returns what WritePair takes.
func made(t *testing.T, ca *certs.CA, name string) (store func(dir string) error, serial string) {
	t.Helper()
	key := p256(t)
	cert, serial, err := ca.Issue(certs.IssueRequest{Name: name, Role: certs.RoleWorker, Public: key.Public()})
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := ca.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	return func(dir string) error { return certs.WritePair(dir, key, cert, bundle) }, serial
}

func load(t *testing.T, dir string) string {
	t.Helper()
	p, err := tls.LoadX509KeyPair(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	return certs.Serial(p.Leaf)
}

func TestThePairReplacesTheOneBefore(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	dir := filepath.Join(t.TempDir(), "w")
	if !certs.Missing(dir) {
		t.Error("no folder is no missing pair")
	}
	for range 3 {
		store, serial := made(t, ca, "w")
		if err := store(dir); err != nil {
			t.Fatal(err)
		}
		if got := load(t, dir); got != serial || certs.Missing(dir) {
			t.Errorf("serial %s, want %s", got, serial)
		}
		// A key lives no longer than its certificate is served.
		if folders, err := filepath.Glob(filepath.Join(dir, "pair-*")); err != nil || len(folders) != 1 {
			t.Errorf("folders %v, %v", folders, err)
		}
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("folder %v, %v", info.Mode(), err)
	}
}

// TestAReaderNeverSeesHalfAPair while another goroutine replaces it all the time.
func TestAReaderNeverSeesHalfAPair(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	dir := filepath.Join(t.TempDir(), "w")
	a, _ := made(t, ca, "w")
	b, _ := made(t, ca, "w")
	if err := a(dir); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		var err error
		for i := range 60 {
			if err = []func(string) error{a, b}[i%2](dir); err != nil {
				break
			}
		}
		done <- err
	}()
	for reads := 0; ; reads++ {
		source(t, dir) // fails the test on half a pair
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d reads", reads)
			return
		default:
		}
	}
}

// TestACrashAtAnyStepLeavesAWholePair: whatever one rename away from the end
// looks like, the folder still serves the old pair.
func TestACrashAtAnyStepLeavesAWholePair(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	dir := filepath.Join(t.TempDir(), "w")
	first, serial := made(t, ca, "w")
	if err := first(dir); err != nil {
		t.Fatal(err)
	}
	// What a crash leaves: a folder that nothing names, a link not yet in place.
	if err := os.Mkdir(filepath.Join(dir, "pair-123"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "pair-123", "tls.key"), "half")
	if err := os.Symlink("pair-123", filepath.Join(dir, ".link-current")); err != nil {
		t.Fatal(err)
	}
	if got := load(t, dir); got != serial {
		t.Errorf("serial %s, want %s", got, serial)
	}
	second, serial := made(t, ca, "w")
	if err := second(dir); err != nil {
		t.Fatal(err)
	}
	if got := load(t, dir); got != serial {
		t.Errorf("serial %s, want %s", got, serial)
	}
	if _, err := os.Stat(filepath.Join(dir, "pair-123")); err == nil {
		t.Error("what the crash left is still there")
	}
}

// TestPlainFilesOfAnOperatorAreTakenOver, and folders of theirs left alone.
func TestPlainFilesOfAnOperatorAreTakenOver(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	from := folder(t, ca, certs.IssueRequest{Name: "w", Role: certs.RoleWorker})
	dir := t.TempDir()
	for _, f := range []string{"tls.crt", "tls.key", "ca.crt"} {
		write(t, filepath.Join(dir, f), read(t, filepath.Join(from, f)))
	}
	theirs := filepath.Join(dir, "pair-of-shoes")
	if err := os.Mkdir(theirs, 0o700); err != nil {
		t.Fatal(err)
	}
	s := source(t, dir)
	store, serial := made(t, ca, "w")
	if err := store(dir); err != nil {
		t.Fatal(err)
	}
	s.Reload()
	if got := certs.Serial(s.Leaf()); got != serial {
		t.Errorf("serial %s, want %s", got, serial)
	}
	if _, err := os.Stat(theirs); err != nil {
		t.Errorf("a folder that is not ours: %v", err)
	}
	info, err := os.Stat(filepath.Join(dir, "tls.key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key %v, %v", info.Mode(), err)
	}
}

// TestAPairThatCannotWorkIsNotStored over one that does.
func TestAPairThatCannotWorkIsNotStored(t *testing.T) {
	t.Parallel()
	ca, other := newCA(t), newCA(t)
	key := p256(t)
	cert, _, err := ca.Issue(certs.IssueRequest{Name: "w", Role: certs.RoleWorker, Public: key.Public()})
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := ca.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := other.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	dir := folder(t, ca, certs.IssueRequest{Name: "w", Role: certs.RoleWorker})
	before := load(t, dir)
	for what, err := range map[string]error{
		"another key":     certs.WritePair(dir, p256(t), cert, bundle),
		"no certificate":  certs.WritePair(dir, key, nil, bundle),
		"a CA's":          certs.WritePair(dir, key, bundle, bundle),
		"no bundle":       certs.WritePair(dir, key, cert, nil),
		"another CA":      certs.WritePair(dir, key, cert, foreign),
		"leaf as a CA":    certs.WritePair(dir, key, cert, cert),
		"garbage between": certs.WritePair(dir, key, cert, append([]byte("x"), bundle...)),
	} {
		if err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got := load(t, dir); got != before {
		t.Error("the pair changed")
	}
	if got := read(t, filepath.Join(dir, "ca.crt")); got != string(bundle) {
		t.Error("the bundle changed")
	}
}

// TestACopiedFolderWorks: people copy certificate folders to other machines.
func TestACopiedFolderWorks(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	dir := folder(t, ca, certs.IssueRequest{Name: "w", Role: certs.RoleWorker, TTL: time.Hour})
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(to, "tls.key"), 0o600); err != nil { // CopyFS gives everybody the right to read
		t.Fatal(err)
	}
	if load(t, to) != load(t, dir) {
		t.Error("another pair")
	}
	source(t, to)
}
