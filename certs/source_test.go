package certs_test

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/droverhq/drover/certs"
)

func TestSourceNamesTheFileAtFault(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := certs.NewSource(dir, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("got %v", err)
	}
	if !certs.Missing(dir) {
		t.Error("an empty folder has a pair")
	}
}

// logged is a source that writes its log into a buffer that may be read
// concurrently.
func logged(t *testing.T, dir string, revoked ...string) (*certs.Source, *journal) {
	t.Helper()
	j := &journal{}
	s, err := certs.NewSource(dir, slog.New(slog.NewTextHandler(j, nil)), revoked...)
	if err != nil {
		t.Fatal(err)
	}
	return s, j
}

type journal struct {
	mu   sync.Mutex // guards text
	text strings.Builder
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) count(s string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Count(j.text.String(), s)
}

// TestEveryBadNewPairIsRefused and told once, however often it is looked at.
func TestEveryBadNewPairIsRefused(t *testing.T) {
	t.Parallel()
	ca, other := newCA(t), newCA(t)
	issue := func(r certs.IssueRequest, from *certs.CA) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			t.Helper()
			fresh := folder(t, from, r)
			for _, f := range []string{"tls.crt", "tls.key"} {
				write(t, filepath.Join(dir, f), read(t, filepath.Join(fresh, f)))
			}
		}
	}
	sched := certs.IssueRequest{Name: "s1", Role: certs.RoleScheduler}
	expired, early, name, role := sched, sched, sched, sched
	expired.Now, expired.TTL = time.Now().Add(-2*time.Hour), time.Hour
	early.Now = time.Now().Add(time.Hour)
	name.Name, role.Role = "s2", certs.RoleWorker
	cases := []struct {
		name   string
		change func(*testing.T, string)
		want   string
	}{
		{"garbage", func(t *testing.T, dir string) { write(t, filepath.Join(dir, "tls.crt"), "garbage") }, dirWord},
		{"empty key", func(t *testing.T, dir string) { write(t, filepath.Join(dir, "tls.key"), "") }, dirWord},
		{"no key", func(_ *testing.T, dir string) { os.Remove(filepath.Join(dir, "tls.key")) }, "tls.key"},
		{"key of another", func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, "tls.key"), read(t, filepath.Join(folder(t, ca, sched), "tls.key")))
		}, "private key does not match"},
		{"expired", issue(expired, ca), "expired on"},
		{"not yet valid", issue(early, ca), "not yet valid"},
		{"another name", issue(name, ca), "restart it"},
		{"another role", issue(role, forgetful(t, ca)), "restart it"},
		{"another CA", issue(sched, other), "none of the CA certificates"},
		{"no CAs", func(_ *testing.T, dir string) { os.Remove(filepath.Join(dir, "ca.crt")) }, "ca.crt"},
		{"empty CAs", func(t *testing.T, dir string) { write(t, filepath.Join(dir, "ca.crt"), "\n") }, "ca.crt"},
		{"a leaf as CA", func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, "ca.crt"), read(t, filepath.Join(dir, "tls.crt")))
		}, "not a CA"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := folder(t, ca, sched)
			s, log := logged(t, dir)
			before, changed := s.Leaf(), s.Changed()
			c.change(t, dir)
			for range 3 {
				s.Reload()
			}
			if s.Leaf() != before {
				t.Error("it was taken")
			}
			select {
			case <-changed:
				t.Error("a change was announced")
			default:
			}
			if n := log.count("keeping the old certificates"); n != 1 || log.count(c.want) == 0 {
				t.Errorf("warned %d times, want once with %q: %s", n, c.want, log.text.String())
			}
			if err := meet(t, s, pair(t, ca, certs.RoleAdmin, "a")); err != nil {
				t.Errorf("the old pair works no more: %v", err)
			}
			issue(sched, ca)(t, dir)
			write(t, filepath.Join(dir, "ca.crt"), bundle(t, ca))
			s.Reload()
			if s.Leaf() == before {
				t.Error("the good pair after it was not taken")
			}
		})
	}
}

const dirWord = "/tls."

func bundle(t *testing.T, ca *certs.CA) string {
	t.Helper()
	b, err := ca.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// forgetful is a CA with the key of another that knows nothing of what was issued.
func forgetful(t *testing.T, ca *certs.CA) *certs.CA {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ca")
	if err := os.CopyFS(dir, os.DirFS(filepath.Dir(ca.BundleFile()))); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.RemoveAll(filepath.Join(dir, "issued")), os.Mkdir(filepath.Join(dir, "issued"), 0o700), os.Chmod(filepath.Join(dir, "ca.key"), 0o600)); err != nil {
		t.Fatal(err)
	}
	again, err := certs.OpenCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	return again
}

// TestABadPairHoldsUpNoRevocation, nor does a bad list of one CA those of others.
func TestABadPairHoldsUpNoRevocation(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	dir := folder(t, ca, certs.IssueRequest{Name: "s1", Role: certs.RoleScheduler})
	s, log := logged(t, dir, ca.RevokedFile())
	folder(t, ca, certs.IssueRequest{Name: "alice", Role: certs.RoleAdmin})
	write(t, filepath.Join(dir, "tls.crt"), "garbage")
	write(t, filepath.Join(dir, "revoked"), "not a serial\n")
	serials, err := ca.Revoke("alice")
	if err != nil {
		t.Fatal(err)
	}
	s.Reload()
	if !s.Revoked(serials[0]) || !s.Revoked(strings.ToUpper(serials[0])) {
		t.Error("the revocation was held up")
	}
	if log.count("line 1") == 0 {
		t.Errorf("nobody was told of the bad list: %s", log.text.String())
	}
}

// TestNothingBecomesGoodByAnAccident: a list that vanishes goes on counting, an
// edited one does what it says.
func TestNothingBecomesGoodByAnAccident(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	dir := folder(t, ca, certs.IssueRequest{Name: "s1", Role: certs.RoleScheduler})
	own := filepath.Join(dir, "revoked")
	write(t, own, "# by hand\n\nAB:CD  mallory\nef\n")
	s, log := logged(t, dir)
	if !s.Revoked("abcd") || !s.Revoked("ef") || s.Revoked("01") {
		t.Error("the list was not read")
	}
	if err := os.Remove(own); err != nil {
		t.Fatal(err)
	}
	s.Reload()
	if !s.Revoked("abcd") || log.count("is gone") != 1 {
		t.Errorf("a lost list revived what it revoked: %s", log.text.String())
	}
	write(t, own, "ef\n")
	s.Reload()
	if s.Revoked("abcd") || !s.Revoked("ef") {
		t.Error("the edited list does not count")
	}
}

// TestRunFollowsTheFolder: a pair, a CA and a revocation are seen by themselves
// within the time that the contract gives.
func TestRunFollowsTheFolder(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	dir := folder(t, ca, certs.IssueRequest{Name: "s1", Role: certs.RoleScheduler})
	s := source(t, dir, ca.RevokedFile())
	run(t, s)
	changed := s.Changed()
	store := certs.IssueRequest{Name: "s1", Role: certs.RoleScheduler}
	if err := ca.IssuePair(dir, store); err != nil {
		t.Fatal(err)
	}
	wait(t, "new pair", changed)
	folder(t, ca, certs.IssueRequest{Name: "alice", Role: certs.RoleAdmin})
	changed = s.Changed()
	serials, err := ca.Revoke("alice")
	if err != nil {
		t.Fatal(err)
	}
	wait(t, "revocation", changed)
	if !s.Revoked(serials[0]) {
		t.Error("something else changed")
	}
}

// TestRunWorksWithoutFileEvents: they are only a hint.
func TestRunWorksWithoutFileEvents(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	dir := folder(t, ca, certs.IssueRequest{Name: "s1", Role: certs.RoleScheduler})
	list := filepath.Join(t.TempDir(), "later", "revoked") // its folder cannot be watched yet
	s, log := logged(t, dir, list)
	run(t, s)
	changed := s.Changed()
	if err := os.MkdirAll(filepath.Dir(list), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, list, "0123\n")
	wait(t, "revocation", changed)
	if !s.Revoked("0123") {
		t.Errorf("not revoked: %s", log.text.String())
	}
}

func TestAnExpiredPairIsServedWithAWarning(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	dir := folder(t, ca, certs.IssueRequest{Name: "a", Role: certs.RoleAdmin, Now: time.Now().Add(-48 * time.Hour), TTL: time.Hour})
	_, log := logged(t, dir)
	if log.count("expired on") != 1 {
		t.Errorf("nobody was told: %s", log.text.String())
	}
	write(t, filepath.Join(dir, "ca.crt"), bundle(t, newCA(t)))
	if _, log = logged(t, dir); log.count("level=WARN") != 1 {
		t.Errorf("%s", log.text.String())
	}
}

func TestABadListAtTheStartIsAnError(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	dir := folder(t, ca, certs.IssueRequest{Name: "s", Role: certs.RoleScheduler})
	write(t, filepath.Join(dir, "revoked"), "xyz\n")
	if _, err := certs.NewSource(dir, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("got %v", err)
	}
}
