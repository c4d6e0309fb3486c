package rpc

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/core/auth"
	"github.com/droverhq/drover/core/errs"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
	"github.com/droverhq/drover/test/rawh2"
)

// nobody is TLS without a certificate.
func nobody(source *certs.Source) *tls.Config {
	c := source.ClientConfig(certs.RoleScheduler, "")
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &tls.Certificate{}, nil }
	return c
}

// served runs a server until the test ends.
func served(t *testing.T, source *certs.Source) *Server {
	t.Helper()
	server, err := NewServer("127.0.0.1:0", ServerConfig{TLS: source.ServerConfig(), Table: auth.SchedulerTable(), Revocations: source})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return server
}

// TestP21_WatchesOfTheHealthAreFew, and the list of services is nobody's.
func TestP21_WatchesOfTheHealthAreFew(t *testing.T) {
	t.Parallel()
	source, viewer := handshakePair(t)
	server := served(t, source)
	conn, err := Dial(server.Address(), viewer.ClientConfig(certs.RoleScheduler, ""))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := healthv1.NewHealthClient(conn)
	if _, err := client.List(patient(t), &healthv1.HealthListRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("List: %v", err)
	}
	open := 0
	for range 40 {
		w, err := client.Watch(patient(t), &healthv1.HealthCheckRequest{})
		if err == nil {
			_, err = w.Recv()
		}
		switch status.Code(err) {
		case codes.OK:
			open++
		case codes.ResourceExhausted:
		default:
			t.Errorf("a watch: %v", err)
		}
	}
	if open != 16 {
		t.Errorf("%d watches are open", open)
	}
}

// TestP21_HalfSentRequestsHoldUpTheirSenderOnly: other identities read theirs.
func TestP21_HalfSentRequestsHoldUpTheirSenderOnly(t *testing.T) {
	t.Parallel()
	l := newRequestLimiter()
	eve, ann := certs.ID{Name: "eve"}, certs.ID{Name: "ann"}
	var stuck []*requests
	for range readsOfOne {
		r, err := l.begin(eve)
		if err != nil || l.await(t.Context(), r) != nil {
			t.Fatal(err)
		}
		stuck = append(stuck, r)
	}
	mine, err := l.begin(eve)
	if err != nil {
		t.Fatal(err)
	}
	soon, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := l.await(soon, mine); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("one more of hers: %v", err)
	}
	l.reads = readsOfAll // of others
	r, err := l.begin(ann)
	if err != nil || l.await(t.Context(), r) != nil {
		t.Error("another identity waits")
	}
	l.read(r)
	l.end(ann, r, false)
	got := make(chan error, 1)
	go func() { got <- l.await(t.Context(), mine) }()
	l.mu.Lock()
	l.reads = readsOfOne
	l.mu.Unlock()
	l.read(stuck[0])
	if err := <-got; err != nil {
		t.Errorf("when one has come whole: %v", err)
	}
	for range unreadOfOne {
		if _, err = l.begin(eve); err != nil {
			break
		}
	}
	if err == nil || l.of[eve].unread != unreadOfOne {
		t.Errorf("%d are unread, %v", l.of[eve].unread, err)
	}
	if l.of[ann] != nil {
		t.Error("somebody who has no call is kept")
	}
}

// TestP21_ARefusedCallIsAnsweredBeforeItsRequestHasCome, with what it would be told
// otherwise: by the role, and for want of one.
func TestP21_ARefusedCallIsAnsweredBeforeItsRequestHasCome(t *testing.T) {
	t.Parallel()
	source, viewer := handshakePair(t)
	server := served(t, source)
	for name, c := range map[string]struct {
		conn func() (*rawh2.Conn, error)
		want string
	}{
		"viewer": {func() (*rawh2.Conn, error) {
			return rawh2.Dial(server.Address(), viewer.ClientConfig(certs.RoleScheduler, ""))
		}, "7 "},
		"nobody": {func() (*rawh2.Conn, error) {
			return rawh2.Dial(server.Address(), nobody(source))
		}, "16 "},
	} {
		conn, err := c.conn()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		stream, err := conn.Open(droverv1.SchedulerService_StartJob_FullMethodName)
		if err != nil {
			t.Fatal(err)
		}
		for ctx := patient(t); conn.Status(stream) == "" && ctx.Err() == nil; {
			time.Sleep(time.Millisecond)
		}
		if got := conn.Status(stream); len(got) < 4 || got[:len(c.want)] != c.want {
			t.Errorf("%s is told %q", name, got)
		}
	}
}

// TestP21_ConnectionsOfOneIdentityAreFew, and it can connect again when one closes. It
// is told why it cannot.
func TestP21_ConnectionsOfOneIdentityAreFew(t *testing.T) {
	t.Parallel()
	source, viewer := handshakePair(t)
	server := served(t, source)
	limiter := server.listen.port.limiter
	limiter.mu.Lock()
	limiter.limits.ofIdentity = 2
	limiter.mu.Unlock()
	connect := func() *grpc.ClientConn {
		conn, err := Dial(server.Address(), viewer.ClientConfig(certs.RoleScheduler, ""))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	first, second, third := connect(), connect(), connect()
	for _, conn := range []*grpc.ClientConn{first, second} {
		if err := check(t.Context(), conn, longEnough); err != nil {
			t.Error(err)
		}
	}
	_, err := healthv1.NewHealthClient(third).Check(t.Context(), &healthv1.HealthCheckRequest{})
	if why := Refused(status.Convert(err).Message()); status.Code(err) != codes.Unavailable || !strings.HasPrefix(why, "OVERLOADED: ") || !strings.HasSuffix(why, " has 2 connections open already") {
		t.Errorf("one more: %v; it was told %q", err, why)
	}
	first.Close()
	for ctx := patient(t); err != nil && ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
		_, err = healthv1.NewHealthClient(third).Check(ctx, &healthv1.HealthCheckRequest{}, grpc.WaitForReady(true))
	}
	if err != nil {
		t.Errorf("when one has closed: %v", err)
	}
}

// TestP21_NewcomersGoWhenThereAreTooMany: those that say nothing first, then the oldest;
// those of one network before others; and none that has an identity.
func TestP21_NewcomersGoWhenThereAreTooMany(t *testing.T) {
	t.Parallel()
	l := newConnectionLimiter(connectionLimits{newcomers: 4, ofAddress: 3, identified: 2, ofIdentity: 1, guests: 1})
	meet := func(say bool) *incoming {
		caller, raw := pipe(t)
		if say {
			if _, err := caller.Write([]byte{22, 3, 1, 0, 1, 1}); err != nil {
				t.Fatal(err)
			}
			if err := spoken(raw.(*net.TCPConn)); err != nil { //nolint:forcetypeassert // pipe makes it
				t.Fatal(err)
			}
		}
		return l.admit(raw.(*net.TCPConn)) //nolint:forcetypeassert // pipe makes it
	}
	spoke, silent, greets := meet(true), meet(false), meet(true)
	greets.reach(stageGreeting)
	fourth := meet(true)
	for name, c := range map[string]struct {
		conn *incoming
		want stage
	}{
		"spoke": {spoke, stageWaiting}, "silent": {silent, stageClosed}, "greets": {greets, stageGreeting}, "fourth": {fourth, stageWaiting},
	} {
		if c.conn.stage != c.want {
			t.Errorf("%s is at stage %d", name, c.conn.stage)
		}
	}
	meet(true)
	if spoke.stage != stageClosed || greets.stage != stageGreeting {
		t.Errorf("the oldest that waits is at stage %d, one whose turn it is at %d", spoke.stage, greets.stage)
	}
	greets.visit()
	fourth.visit() // one guest at a time
	if greets.stage != stageClosed || len(l.guests) != 1 {
		t.Errorf("a guest is at stage %d", greets.stage)
	}
	fourth.Close()
	fourth.Close()
	if l.strangers != 1 || len(l.guests) != 0 {
		t.Errorf("%d newcomers and %d guests are counted", l.strangers, len(l.guests))
	}
}

// TestP21_AGuestWithAGoodToken_MakesRoomForNobody: a flood of others that are busy, too,
// does not take the certificate from it that it used its token for.
func TestP21_AGuestWithAGoodToken_MakesRoomForNobody(t *testing.T) {
	t.Parallel()
	l := newConnectionLimiter(connectionLimits{newcomers: 3, ofAddress: 3, guests: 2})
	meet := func() *incoming {
		_, raw := pipe(t)
		c := l.admit(raw.(*net.TCPConn)) //nolint:forcetypeassert // pipe makes it
		c.visit()
		c.occupy(true)
		return c
	}
	joins := meet()
	ca, err := certs.Init(filepath.Join(t.TempDir(), "ca"), "test")
	if err != nil {
		t.Fatal(err)
	}
	token, err := ca.NewToken(certs.TokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	ctx := peer.NewContext(t.Context(), &peer.Peer{Addr: &net.TCPAddr{}, AuthInfo: &guest{conn: joins}})
	if _, err := NewCertificateServer(ca).Join(ctx, &droverv1.JoinRequest{Token: token}); errs.ReasonOf(err) != "NAME" {
		t.Errorf("a good token without a name: %v", err)
	}
	joins.occupy(false) // the answer is on its way
	for range 5 {
		meet()
	}
	if joins.stage != stageGuest || len(l.guests) != 2 || l.strangers != 2 {
		t.Errorf("it is at stage %d, of %d guests and %d newcomers", joins.stage, len(l.guests), l.strangers)
	}
}

// TestP21_AGuestHasFewBytesFramesAndCalls, whatever they are.
func TestP21_AGuestHasFewBytesFramesAndCalls(t *testing.T) {
	t.Parallel()
	source, _ := handshakePair(t)
	server := served(t, source)
	for name, misuse := range map[string]func(*rawh2.Conn) error{
		"calls": func(c *rawh2.Conn) error {
			_, err := c.Open(droverv1.CertificateService_Join_FullMethodName)
			return err
		},
		"pings":    func(c *rawh2.Conn) error { return c.Ping() },
		"settings": func(c *rawh2.Conn) error { return c.Settings() },
		"resets":   func(c *rawh2.Conn) error { return c.Reset(droverv1.CertificateService_Join_FullMethodName) },
	} {
		conn, err := rawh2.Dial(server.Address(), nobody(source))
		if err != nil {
			t.Fatal(err)
		}
		for range 2000 {
			if misuse(conn) != nil {
				break
			}
		}
		select {
		case <-conn.Done():
		case <-patient(t).Done():
			t.Errorf("%s: the connection stays", name)
		}
		conn.Close()
	}
}

// TestP21_LimitsFollowTheDescriptors, and leave some for others.
func TestP21_LimitsFollowTheDescriptors(t *testing.T) {
	t.Parallel()
	for _, n := range []uint64{64, 256, 1024, 4096, 1 << 20, 1 << 62} {
		l := limitsFor(n)
		if n >= 256 && uint64(l.newcomers+l.identified) > n*5/8 || l.ofAddress > l.newcomers || l.ofIdentity > l.identified || l.guests > l.newcomers || l.ofAddress < 1 {
			t.Errorf("of %d descriptors: %+v", n, l)
		}
	}
}

// TestP21_AListOfRevocationsThatCannotBeRead_ShowsInTheHealth, until it can be read again.
func TestP21_AListOfRevocationsThatCannotBeRead_ShowsInTheHealth(t *testing.T) {
	t.Parallel()
	ca, err := certs.Init(filepath.Join(t.TempDir(), "ca"), "test")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "scheduler")
	if err := ca.IssuePair(dir, certs.IssueRequest{Name: "scheduler", Role: certs.RoleScheduler}); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	source, err := certs.NewSource(dir, slog.New(slog.NewTextHandler(&log, nil)), ca.RevokedFile())
	if err != nil {
		t.Fatal(err)
	}
	server := served(t, source)
	conn, err := Dial(server.Address(), source.ClientConfig(certs.RoleScheduler, ""))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	becomes := func(want healthv1.HealthCheckResponse_ServingStatus) {
		t.Helper()
		var got *healthv1.HealthCheckResponse
		var err error
		for ctx := patient(t); got.GetStatus() != want && ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
			got, err = healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{Service: HealthOfRevocations})
		}
		if got.GetStatus() != want {
			t.Errorf("the health is %v, %v; want %v", got, err, want)
		}
	}
	becomes(healthv1.HealthCheckResponse_SERVING)
	if err := os.Mkdir(ca.RevokedFile(), 0o700); err != nil {
		t.Fatal(err)
	}
	source.Reload()
	becomes(healthv1.HealthCheckResponse_NOT_SERVING)
	if !strings.Contains(log.String(), "level=ERROR") {
		t.Errorf("the log says %s", &log)
	}
	if err := os.Remove(ca.RevokedFile()); err != nil {
		t.Fatal(err)
	}
	source.Reload()
	becomes(healthv1.HealthCheckResponse_SERVING)
}
