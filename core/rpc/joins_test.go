package rpc

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/peer"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/core/auth"
	"github.com/droverhq/drover/core/errs"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

func from(address string) context.Context {
	return peer.NewContext(context.Background(), &peer.Peer{Addr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(address))})
}

// TestP21_TokensThatAreNoGood_AreHeardNowAndThen: from one address, and in all; who comes
// from another one, or comes later, joins.
func TestP21_TokensThatAreNoGood_AreHeardNowAndThen(t *testing.T) {
	t.Parallel()
	ca, err := certs.Init(filepath.Join(t.TempDir(), "ca"), "test")
	if err != nil {
		t.Fatal(err)
	}
	token, err := ca.NewToken(certs.TokenRequest{Uses: 2})
	if err != nil {
		t.Fatal(err)
	}
	s := NewCertificateServer(ca)
	join := func(address, token, name string) string {
		_, csr, err := certs.NewRequest()
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.Join(from(address), &droverv1.JoinRequest{Token: token, Name: name, Csr: csr})
		return errs.ReasonOf(err)
	}
	for i := range refusalsOfOne {
		if got := join("192.0.2.1:1", "nonsense", "w"); got != "TOKEN" {
			t.Errorf("try %d: %s", i+1, got)
		}
	}
	if got := join("192.0.2.1:2", token, "w"); got != "TOO_MANY_REFUSED" {
		t.Errorf("one more from there: %q", got)
	}
	if got := join("[::ffff:192.0.2.2]:1", token, "w1"); got != "" {
		t.Errorf("from another address: %s", got)
	}
	if got := join("192.0.2.2:1", token, "w1"); got != "NAME_TAKEN" {
		t.Errorf("a name that is taken: %s", got)
	}
	now := time.Now()
	one, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.3")
	if !s.joins.may(one, now.Add(refusalEvery)) {
		t.Error("it is never heard again")
	}
	for i := range byte(refusalsOfAll) {
		s.joins.refused(netip.AddrFrom4([4]byte{198, 51, 100, i}), now)
	}
	if s.joins.may(netip.MustParseAddr("198.51.100.1"), now) || !s.joins.may(other, now) {
		t.Error("many addresses are heard each on their own, or hold up those that did nothing")
	}
	if len(s.joins.slots) != 0 {
		t.Errorf("%d slots are taken", len(s.joins.slots))
	}
	for i := range 3 * addressesKept {
		s.joins.refused(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), now)
	}
	if n := len(s.joins.of); n > addressesKept {
		t.Errorf("%d addresses are kept", n)
	}
}

// TestP21_AHostOfIPv6_IsOneAddress, though it has a whole network.
func TestP21_AHostOfIPv6_IsOneAddress(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"[2001:db8::1]:1", "[2001:db8::ffff:1]:2", true},
		{"[2001:db8::1]:1", "[2001:db8:0:1::1]:1", false},
		{"[fe80::1%eth0]:1", "[fe80::2%eth1]:1", true},
		{"192.0.2.1:1", "[::ffff:192.0.2.1]:2", true},
		{"192.0.2.1:1", "192.0.2.2:1", false},
	} {
		a, b := callerNetwork(from(c.a)), callerNetwork(from(c.b))
		if (a == b) != c.same || !a.IsValid() {
			t.Errorf("%s is %v, %s is %v", c.a, a, c.b, b)
		}
	}
}

// TestP21_ARenewalThatNobodyNeeds_IsRefusedWithTheTime, and
// so is a second one at the same time.
func TestP21_ARenewalThatNobodyNeeds_IsRefusedWithTheTime(t *testing.T) {
	t.Parallel()
	ca, err := certs.Init(filepath.Join(t.TempDir(), "ca"), "test")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "v")
	if err := ca.IssuePair(dir, certs.IssueRequest{Name: "v", Role: certs.RoleViewer}); err != nil {
		t.Fatal(err)
	}
	source, err := certs.NewSource(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s := NewCertificateServer(ca)
	ctx := auth.NewContext(t.Context(), auth.Identity{ID: source.ID(), Serial: certs.Serial(source.Leaf())})
	_, err = s.Renew(ctx, &droverv1.RenewRequest{})
	if errs.KindOf(err) != errs.Precondition || errs.ReasonOf(err) != "TOO_SOON" {
		t.Errorf("got %v", err)
	}
	leave, err := s.renewals.enter(source.ID())
	if err != nil {
		t.Fatal(err)
	}
	defer leave()
	if _, err = s.Renew(ctx, &droverv1.RenewRequest{}); errs.KindOf(err) != errs.Exhausted {
		t.Errorf("a second one at the same time: %v", err)
	}
}
