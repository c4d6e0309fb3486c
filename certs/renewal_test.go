package certs_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/droverhq/drover/certs"
)

// renewal renews the certificate of a serial at a time and returns the serial of the
// new one.
func renewal(t *testing.T, ca *certs.CA, id certs.ID, serial string, at time.Time) (string, error) {
	t.Helper()
	cert, _, err := ca.RenewFor(id, serial, csr(t), nil, at)
	if err != nil {
		return "", err
	}
	return certs.Serial(parse(t, cert)), nil
}

func TestP21_RenewalInTheFirstThirdOfTheLife_IsRefusedWithTheTime(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	for _, ttl := range []time.Duration{2 * time.Minute, time.Hour, 90 * 24 * time.Hour} {
		issued := time.Now().Truncate(time.Second)
		s := source(t, folder(t, ca, certs.IssueRequest{Name: "v-" + ttl.String(), Role: certs.RoleViewer, TTL: ttl, Now: issued}))
		id, serial := s.ID(), certs.Serial(s.Leaf())
		for _, age := range []time.Duration{0, ttl/3 - time.Second} {
			_, err := renewal(t, ca, id, serial, issued.Add(age))
			early := (*certs.TooSoonError)(nil)
			if !errors.As(err, &early) || !early.Until.Equal(issued.Add(ttl/3)) || !strings.Contains(err.Error(), "UTC") {
				t.Errorf("one for %v that is %v old: %v", ttl, age, err)
			}
		}
		if at := certs.RenewAt(s.Leaf(), 0); at.Before(issued.Add(ttl/3)) || at.After(issued.Add(ttl/2)) {
			t.Errorf("one for %v is renewed by itself after %v", ttl, at.Sub(issued))
		}
		if _, err := renewal(t, ca, id, serial, issued.Add(ttl/3)); err != nil {
			t.Errorf("one for %v after a third of it: %v", ttl, err)
		}
	}
}

// TestP21_RenewalsOfOneCertificate_AreFew: an answer may be lost, or two, but nobody
// fills the folder; and whoever has the same identity by another certificate is not
// held up.
func TestP21_RenewalsOfOneCertificate_AreFew(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	issued := time.Now()
	mine := source(t, folder(t, ca, certs.IssueRequest{Name: "v", Role: certs.RoleViewer, Now: issued}))
	theirs := source(t, folder(t, ca, certs.IssueRequest{Name: "v", Role: certs.RoleViewer, Now: issued}))
	half := issued.Add(certs.LeafValidity / 2)
	early := (*certs.TooSoonError)(nil)
	for i := range 5 {
		if _, err := renewal(t, ca, mine.ID(), certs.Serial(mine.Leaf()), half); i < 3 && err != nil || i >= 3 && !errors.As(err, &early) {
			t.Errorf("renewal %d: %v", i+1, err)
		}
	}
	if _, err := renewal(t, ca, theirs.ID(), certs.Serial(theirs.Leaf()), half); err != nil {
		t.Errorf("another holder: %v", err)
	}
	if _, err := renewal(t, ca, mine.ID(), certs.Serial(mine.Leaf()), half.Add(certs.LeafValidity*2/5)); err != nil {
		t.Errorf("when those are not fresh any more: %v", err)
	}
}

// TestP21_CopiesOfCertificatesThatAreLongOver_AreRemoved, and others stay.
func TestP21_CopiesOfCertificatesThatAreLongOver_AreRemoved(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	now := time.Now()
	for name, at := range map[string]time.Duration{"long-over": -4 * time.Hour, "over": -90 * time.Minute, "good": 0} {
		folder(t, ca, certs.IssueRequest{Name: name, Role: certs.RoleViewer, TTL: time.Hour, Now: now.Add(at)})
	}
	folder(t, ca, certs.IssueRequest{Name: "next", Role: certs.RoleViewer})
	list, err := ca.List()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, c := range list {
		got[c.ID.Name] = true
	}
	if len(got) != 3 || got["long-over"] {
		t.Errorf("in the folder: %v", got)
	}
}

// TestP21_TheIndexSeesWhatOthersIssue: another process writes into the same folder, at
// any time.
func TestP21_TheIndexSeesWhatOthersIssue(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "ca")
	here, err := certs.Init(dir, "test")
	if err != nil {
		t.Fatal(err)
	}
	there, err := certs.OpenCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	long := time.Now().Add(-time.Hour)
	for i := range 50 {
		if i%2 == 0 { // the folder looks as if it had been left alone
			if err := os.Chtimes(filepath.Join(dir, "issued"), long, long); err != nil {
				t.Fatal(err)
			}
			if _, err := here.List(); err != nil {
				t.Fatal(err)
			}
		}
		if err := there.IssuePair(t.TempDir(), certs.IssueRequest{Name: "v", Role: certs.RoleViewer}); err != nil {
			t.Fatal(err)
		}
		if list, err := here.List(); err != nil || len(list) != i+1 {
			t.Fatalf("%d certificates are seen of %d, %v", len(list), i+1, err)
		}
	}
}
