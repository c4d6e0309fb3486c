package certs_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/certs"
)

// serials is a list of earlier versions with so many serials.
func serials(n int) string {
	var text strings.Builder
	for i := range n {
		text.WriteString(hex.EncodeToString(new(big.Int).Lsh(big.NewInt(int64(1<<20+i)), 100).Bytes()) + "\n")
	}
	return text.String()
}

// TestP22_ALargeListOfRevocations_IsSignedAndTaken: 30,000 certificates are more than a
// list once had room for. Before there is no room for more, that is said.
func TestP22_ALargeListOfRevocations_IsSignedAndTaken(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	worker := pair(t, ca, certs.RoleWorker, "w1")
	folder(t, ca, certs.IssueRequest{Name: "x", Role: certs.RoleAdmin})
	if _, err := ca.Revoke("x"); err != nil || ca.Crowded() != "" {
		t.Fatalf("%v; a list of one is crowded: %q", err, ca.Crowded())
	}
	write(t, ca.RevokedFiles()[1], serials(30_000))
	folder(t, ca, certs.IssueRequest{Name: "y", Role: certs.RoleAdmin})
	if _, err := ca.Revoke("y"); err != nil {
		t.Fatal(err)
	}
	list := read(t, ca.RevokedFile())
	if err := worker.TakeRevocations([]byte(list)); err != nil || !worker.Revoked(strings.Fields(serials(1))[0]) {
		t.Errorf("a list of %d bytes: %v", len(list), err)
	}
	if why := ca.Crowded(); !strings.Contains(why, "at most 4096") {
		t.Errorf("a list of %d bytes: %q", len(list), why)
	}
	write(t, ca.RevokedFiles()[1], serials(100_000))
	if err := ca.SignRevoked(); !errors.Is(err, certs.ErrNotSigned) || !strings.Contains(err.Error(), "100002 certificates") || read(t, ca.RevokedFile()) != list {
		t.Errorf("a list that is too large: %v", err)
	}
}

// TestIssuing_ReadsTheFolderOfIssuedCertificatesOnce: it may hold many thousands.
func TestIssuing_ReadsTheFolderOfIssuedCertificatesOnce(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	for i := range 3 {
		folder(t, ca, certs.IssueRequest{Name: fmt.Sprintf("w%d", i), Role: certs.RoleWorker})
	}
	token, err := ca.NewToken(certs.TokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	issued := filepath.Join(filepath.Dir(ca.BundleFile()), "issued")
	// Closes, too: equal events that follow each other are one.
	if _, err := unix.InotifyAddWatch(fd, issued, unix.IN_OPEN|unix.IN_CLOSE_NOWRITE|unix.IN_ONLYDIR); err != nil {
		t.Fatal(err)
	}
	const reads = 2 // the look at it, and the sync at the end
	for what, issue := range map[string]func() error{
		"issue": func() error { return ca.IssuePair(t.TempDir(), certs.IssueRequest{Name: "v", Role: certs.RoleViewer}) },
		"join": func() error {
			_, _, err := ca.Redeem(t.Context(), token, "joined", csr(t), time.Now())
			return err
		},
	} {
		if err := issue(); err != nil {
			t.Fatal(err)
		}
		if n := opened(t, fd); n > reads {
			t.Errorf("%s: the folder was opened %d times, want %d", what, n, reads)
		}
	}
}

// opened counts how often a folder itself was opened.
func opened(t *testing.T, fd int) (n int) {
	t.Helper()
	buffer := make([]byte, 64<<10)
	size, err := unix.Read(fd, buffer)
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; at < size; {
		ev := (*unix.InotifyEvent)(unsafe.Pointer(&buffer[at]))
		if ev.Len == 0 && ev.Mask&unix.IN_OPEN != 0 {
			n++
		}
		at += unix.SizeofInotifyEvent + int(ev.Len)
	}
	return n
}
