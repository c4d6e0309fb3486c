package certs_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/droverhq/drover/certs"
)

// revokedList revokes a name and returns the signed list.
func revokedList(t *testing.T, ca *certs.CA, name string) (list []byte, serial string) {
	t.Helper()
	serials, err := ca.Revoke(name)
	if err != nil {
		t.Fatal(err)
	}
	return []byte(read(t, ca.RevokedFile())), serials[0]
}

// TestP22_ListIsPassedOn_ItIsTakenOnceAndKept: also by the next process of the folder.
func TestP22_ListIsPassedOn_ItIsTakenOnceAndKept(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	dir := folder(t, ca, certs.IssueRequest{Name: "w1", Role: certs.RoleWorker})
	worker, admin := source(t, dir), pair(t, ca, certs.RoleAdmin, "alice")
	folder(t, ca, certs.IssueRequest{Name: "bob", Role: certs.RoleAdmin})
	first, bob := revokedList(t, ca, "bob")
	second, alice := revokedList(t, ca, "alice")
	changed := worker.Changed()
	if err := worker.TakeRevocations(second); err != nil {
		t.Fatal(err)
	}
	<-changed
	if !worker.Revoked(alice) || !worker.Revoked(bob) {
		t.Error("the list is not in force")
	}
	if err := meet(t, worker, admin); err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("a revoked admin: %v", err)
	}
	if err := worker.TakeRevocations(first); err != nil || !worker.Revoked(alice) {
		t.Errorf("an older list replaced a newer one: %v", err)
	}
	if got := read(t, filepath.Join(dir, "crl.pem")); got != string(second) {
		t.Error("the folder does not hold the newest list")
	}
	if again := source(t, dir); !again.Revoked(alice) || !bytes.Equal(again.Revocations(), second) {
		t.Error("the next process does not know it")
	}
	write(t, filepath.Join(dir, "crl.pem"), string(first))
	if worker.Reload(); !worker.Revoked(alice) {
		t.Error("an older file replaced a newer list")
	}
}

// TestP22_ListOfAStranger_IsRefused, and one that was changed on its way.
func TestP22_ListOfAStranger_IsRefused(t *testing.T) {
	t.Parallel()
	ca, other := newCA(t), newCA(t)
	worker := pair(t, ca, certs.RoleWorker, "w1")
	folder(t, other, certs.IssueRequest{Name: "x", Role: certs.RoleAdmin})
	foreign, _ := revokedList(t, other, "x")
	folder(t, ca, certs.IssueRequest{Name: "y", Role: certs.RoleAdmin})
	own, serial := revokedList(t, ca, "y")
	damaged := bytes.Replace(own, own[len(own)/2:len(own)/2+4], []byte("AAAA"), 1)
	for what, list := range map[string][]byte{
		"foreign": foreign, "damaged": damaged, "empty": {}, "unsigned": []byte(serial + "\n"), "cut off": own[:len(own)-40],
		"too large": append(bytes.Clone(own), make([]byte, 1<<20)...), "with a key": append(bytes.Clone(own), []byte(read(t, filepath.Join(filepath.Dir(ca.BundleFile()), "ca.key")))...),
	} {
		if err := worker.TakeRevocations(list); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if worker.Revoked(serial) || worker.Revocations() != nil {
		t.Error("something was taken")
	}
}

// TestP22_FolderCannotBeWritten_ListCountsUntilARestart: the error says so.
func TestP22_FolderCannotBeWritten_ListCountsUntilARestart(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	dir := folder(t, ca, certs.IssueRequest{Name: "w1", Role: certs.RoleWorker})
	worker := source(t, dir)
	if err := os.MkdirAll(filepath.Join(dir, "crl.pem", "x"), 0o700); err != nil { // no file can take its place
		t.Fatal(err)
	}
	folder(t, ca, certs.IssueRequest{Name: "y", Role: certs.RoleAdmin})
	list, serial := revokedList(t, ca, "y")
	if err := worker.TakeRevocations(list); err == nil || !strings.Contains(err.Error(), "until a restart") || !worker.Revoked(serial) {
		t.Errorf("%v, in force %v", err, worker.Revoked(serial))
	}
}

// TestP22_ListOfEarlierVersions_IsSigned: its serials count before and after.
func TestP22_ListOfEarlierVersions_IsSigned(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	old := pair(t, ca, certs.RoleAdmin, "old")
	text := ca.RevokedFiles()[1]
	serial := certs.Serial(old.Leaf())
	write(t, text, serial+" spiffe://test/admin/old 2026-01-01T00:00:00Z\n")
	if s := source(t, folder(t, ca, certs.IssueRequest{Name: "s", Role: certs.RoleScheduler}), ca.RevokedFiles()...); !s.Revoked(serial) || s.Revocations() != nil {
		t.Error("the old list is not read")
	}
	if err := ca.SignRevoked(); err != nil {
		t.Fatal(err)
	}
	signed := read(t, ca.RevokedFile())
	if err := ca.SignRevoked(); err != nil || read(t, ca.RevokedFile()) != signed {
		t.Errorf("a list that is up to date was signed again: %v", err)
	}
	worker := pair(t, ca, certs.RoleWorker, "w1")
	if err := worker.TakeRevocations([]byte(signed)); err != nil || !worker.Revoked(serial) {
		t.Errorf("%v", err)
	}
}

// TestP22_ListOfEarlierVersions_IsWrittenToo: a scheduler of such a version reads no
// other. What stands in it stays, but for certificates that are long over.
func TestP22_ListOfEarlierVersions_IsWrittenToo(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	text := ca.RevokedFiles()[1]
	long := time.Now().Add(-4 * time.Hour)
	over := source(t, folder(t, ca, certs.IssueRequest{Name: "over", Role: certs.RoleAdmin, TTL: time.Hour, Now: long}))
	write(t, text, certs.Serial(over.Leaf())+"\n# kept\n00ff by hand") // without a line's end
	bob, alice := pair(t, ca, certs.RoleAdmin, "bob"), pair(t, ca, certs.RoleAdmin, "alice")
	for _, name := range []string{"bob", "alice", "alice"} {
		if _, err := ca.Revoke(name); err != nil {
			t.Fatal(err)
		}
	}
	lines := strings.Split(strings.TrimSuffix(read(t, text), "\n"), "\n")
	want := []string{"# kept", "00ff by hand", certs.Serial(bob.Leaf()) + " " + bob.ID().String() + " 20", certs.Serial(alice.Leaf()) + " " + alice.ID().String() + " 20"}
	if len(lines) != len(want) {
		t.Fatalf("the list has the lines %q", lines)
	}
	for i, line := range lines {
		if !strings.HasPrefix(line, want[i]) {
			t.Errorf("line %d is %q, not %q", i+1, line, want[i])
		}
	}
	dir := folder(t, ca, certs.IssueRequest{Name: "s", Role: certs.RoleScheduler})
	for _, file := range ca.RevokedFiles() {
		if s := source(t, dir, file); !s.Revoked(certs.Serial(alice.Leaf())) || !s.Revoked(certs.Serial(bob.Leaf())) {
			t.Errorf("%s does not tell what was revoked", file)
		}
	}
	if err := os.Remove(text); err != nil { // as when only the signed list was written
		t.Fatal(err)
	}
	if _, err := ca.Revoke("bob"); err != nil || !strings.HasPrefix(read(t, text), certs.Serial(bob.Leaf())) {
		t.Errorf("revoked again, it is not added: %v", err)
	}
}

// TestP22_CAIsRotated_ListIsTrustedByAll: by those that know the old key only, too.
func TestP22_CAIsRotated_ListIsTrustedByAll(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	before := pair(t, ca, certs.RoleWorker, "before")
	folder(t, ca, certs.IssueRequest{Name: "x", Role: certs.RoleAdmin})
	_, serial := revokedList(t, ca, "x")
	if err := ca.Rotate(time.Now()); err != nil {
		t.Fatal(err)
	}
	list := []byte(read(t, ca.RevokedFile()))
	after := source(t, folder(t, ca, certs.IssueRequest{Name: "after", Role: certs.RoleWorker}))
	for _, w := range []*certs.Source{before, after} {
		if err := w.TakeRevocations(list); err != nil || !w.Revoked(serial) {
			t.Errorf("%s: %v", w.ID(), err)
		}
	}
	if _, err := ca.Revoke("before"); err != nil {
		t.Fatal(err)
	}
	if err := ca.Retire(time.Now()); err != nil {
		t.Fatal(err)
	}
	if s := source(t, folder(t, ca, certs.IssueRequest{Name: "later", Role: certs.RoleWorker}), ca.RevokedFile()); !s.Revoked(serial) || s.Revocations() == nil {
		t.Error("the list did not outlive the old CA")
	}
}

// TestP22_CAIsRestored_ItsNextListIsTaken: the numbers of lists that a backup does
// not know of are below it.
func TestP22_CAIsRestored_ItsNextListIsTaken(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	worker := pair(t, ca, certs.RoleWorker, "w1")
	for _, n := range []string{"x", "y", "z"} {
		folder(t, ca, certs.IssueRequest{Name: n, Role: certs.RoleAdmin})
	}
	copied := filepath.Join(t.TempDir(), "backup")
	if err := os.CopyFS(copied, os.DirFS(filepath.Dir(ca.BundleFile()))); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(copied, "ca.key"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"x", "y"} {
		list, _ := revokedList(t, ca, n)
		if err := worker.TakeRevocations(list); err != nil {
			t.Fatal(err)
		}
	}
	restored, err := certs.OpenCA(copied)
	if err != nil {
		t.Fatal(err)
	}
	list, serial := revokedList(t, restored, "z")
	if err := worker.TakeRevocations(list); err != nil || !worker.Revoked(serial) {
		t.Errorf("%v", err)
	}
}

// TestP22_RevocationListDamaged_TheSecondCopyTakesItsPlace: without its file the CA
// let everybody in again.
func TestP22_RevocationListDamaged_TheSecondCopyTakesItsPlace(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(path string) error{
		"empty": func(p string) error { return os.WriteFile(p, nil, 0o600) }, "missing": os.Remove,
		"garbage": func(p string) error { return os.WriteFile(p, []byte("\xa5"), 0o600) },
	} {
		dir := t.TempDir()
		ca, err := certs.Init(filepath.Join(dir, "ca"), "test")
		if err != nil {
			t.Fatal(err)
		}
		if err := ca.IssuePair(filepath.Join(dir, "v"), certs.IssueRequest{Name: "v", Role: certs.RoleViewer}); err != nil {
			t.Fatal(err)
		}
		if _, err := ca.Revoke("v"); err != nil {
			t.Fatal(err)
		}
		before, err := os.ReadFile(ca.RevokedFile())
		if err != nil {
			t.Fatal(err)
		}
		if err := damage(ca.RevokedFile()); err != nil {
			t.Fatal(err)
		}
		if err := ca.SignRevoked(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if after, err := os.ReadFile(ca.RevokedFile()); string(after) != string(before) || err != nil {
			t.Errorf("%s: the list is %q, %v", name, after, err)
		}
	}
}
