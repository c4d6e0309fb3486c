package client_test

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/cmd/drover/internal/client"
	"github.com/droverhq/drover/cmd/drover/internal/problem"
	"github.com/droverhq/drover/core/errs"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// scheduler answers one call.
type scheduler struct {
	droverv1.UnimplementedSchedulerServiceServer
	droverv1.UnimplementedCertificateServiceServer
}

func (scheduler) ListWorkers(context.Context, *droverv1.ListWorkersRequest) (*droverv1.ListWorkersResponse, error) {
	return &droverv1.ListWorkersResponse{}, nil
}

func (scheduler) ListScripts(ctx context.Context, _ *droverv1.ListScriptsRequest) (*droverv1.ListScriptsResponse, error) {
	<-ctx.Done()
	return nil, status.FromContextError(ctx.Err()).Err()
}

func (scheduler) Join(context.Context, *droverv1.JoinRequest) (*droverv1.JoinResponse, error) {
	return &droverv1.JoinResponse{}, nil
}

func newCA(t *testing.T, cluster string) *certs.CA {
	t.Helper()
	ca, err := certs.Init(filepath.Join(t.TempDir(), "ca"), cluster)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func pair(t *testing.T, ca *certs.CA, role certs.Role, name string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	if err := ca.IssuePair(dir, certs.IssueRequest{Name: name, Role: role}); err != nil {
		t.Fatal(err)
	}
	return dir
}

// serve runs a scheduler with the certificate in dir and returns its address.
func serve(t *testing.T, dir string, revoked ...string) string {
	t.Helper()
	address, _ := serveAt(t, "127.0.0.1:0", dir, revoked...)
	return address
}

// serveAt is serve at an address; stop ends the scheduler early.
func serveAt(t *testing.T, at, dir string, revoked ...string) (address string, stop func()) {
	t.Helper()
	source, err := certs.NewSource(dir, slog.New(slog.DiscardHandler), revoked...)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(source.ServerConfig())))
	droverv1.RegisterSchedulerServiceServer(s, scheduler{})
	droverv1.RegisterCertificateServiceServer(s, scheduler{})
	healthv1.RegisterHealthServer(s, health.NewServer())
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	stop = sync.OnceFunc(func() {
		s.Stop()
		<-done
	})
	t.Cleanup(stop)
	return l.Addr().String(), stop
}

// call makes one call and explains its error.
func call(t *testing.T, target client.Target) error {
	t.Helper()
	c, err := client.Dial(target, "test")
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.ListWorkers(t.Context(), &droverv1.ListWorkersRequest{})
	return c.Explain("list workers", err)
}

func TestACallGetsThrough(t *testing.T) {
	t.Parallel()
	ca := newCA(t, "test")
	address, admin := serve(t, pair(t, ca, certs.RoleScheduler, "s")), pair(t, ca, certs.RoleAdmin, "a")
	c, err := client.Dial(client.Target{Address: address, Certs: admin}, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Reached() {
		t.Error("connected before the first call")
	}
	if _, err := c.ListWorkers(t.Context(), &droverv1.ListWorkersRequest{}); err != nil || !c.Reached() {
		t.Errorf("reached %v, %v", c.Reached(), err)
	}
	_, err = c.GetJob(t.Context(), &droverv1.GetJobRequest{})
	if got := c.Explain("show job", err); problem.CodeOf(got) != problem.Failed || !strings.HasPrefix(got.Error(), "show job: ") {
		t.Errorf("%v", got)
	}
	if c.Explain("x", nil) != nil {
		t.Error("no error became one")
	}
}

// closedPort returns an address where nobody listens.
func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// plaintext returns the address of a server that speaks no TLS.
func plaintext(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write([]byte("HTTP/1.0 400 Bad Request\r\n\r\n"))
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l.Addr().String()
}

// TestWhyAConnectionFails: one line says why, the exit code which class.
func TestWhyAConnectionFails(t *testing.T) {
	t.Parallel()
	ca, foreign := newCA(t, "test"), newCA(t, "test")
	sched := pair(t, ca, certs.RoleScheduler, "s")
	admin := pair(t, ca, certs.RoleAdmin, "a")
	expired := filepath.Join(t.TempDir(), "old")
	if err := ca.IssuePair(expired, certs.IssueRequest{Name: "old", Role: certs.RoleAdmin, Now: time.Now().Add(-48 * time.Hour), TTL: time.Hour}); err != nil {
		t.Fatal(err)
	}
	revoked := pair(t, ca, certs.RoleAdmin, "gone")
	if _, err := ca.Revoke("gone"); err != nil {
		t.Fatal(err)
	}
	address := serve(t, sched, ca.RevokedFile())
	cases := []struct {
		name   string
		target client.Target
		want   string
		code   problem.Code
	}{
		{"nobody listens", client.Target{Address: closedPort(t), Certs: admin}, ": connection refused", 5},
		{"nobody listens, no certificate", client.Target{Address: closedPort(t)}, ": connection refused", 5},
		{"no such host", client.Target{Address: "nowhere.invalid:1", Certs: admin}, "nowhere.invalid", 5},
		{"no TLS", client.Target{Address: plaintext(t), Certs: admin}, "does not speak TLS", 4},
		{"no certificate", client.Target{Address: address}, "there is no certificate", 4},
		{"no folder", client.Target{Address: address, Certs: "/none"}, "/none", 4},
		{"foreign certificate", client.Target{Address: address, Certs: pair(t, foreign, certs.RoleAdmin, "a")}, "was signed by another CA", 4},
		{"expired", client.Target{Address: address, Certs: expired}, "spiffe://test/admin/old expired on", 4},
		{"revoked", client.Target{Address: address, Certs: revoked}, "it was revoked", 4},
		{"a worker instead", client.Target{Address: serve(t, pair(t, ca, certs.RoleWorker, "w")), Certs: admin}, "spiffe://test/worker/w", 4},
		{"no port", client.Target{Address: "host", Certs: admin}, `"host" is not HOST:PORT`, 2},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			err := call(t, c.target)
			if err == nil || !strings.Contains(err.Error(), c.want) || problem.CodeOf(err) != c.code {
				t.Errorf("%v (exit %d), want %q (exit %d)", err, problem.CodeOf(err), c.want, c.code)
			}
		})
	}
}

// One of several schedulers that takes a certificate no more is left for the other;
// when that does not take it either, the error tells at once.
func TestARevokedCertificateFailsOverToTheOther(t *testing.T) {
	t.Parallel()
	ca := newCA(t, "test")
	sched, admin := pair(t, ca, certs.RoleScheduler, "s"), pair(t, ca, certs.RoleAdmin, "a")
	a, stopA := serveAt(t, "127.0.0.1:0", sched)
	b, stopB := serveAt(t, "127.0.0.1:0", sched)
	c, err := client.Dial(client.Target{Address: a + "," + b, Certs: admin}, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	list := func() error {
		_, err := c.ListWorkers(t.Context(), &droverv1.ListWorkersRequest{})
		return err
	}
	if err := list(); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Revoke("a"); err != nil {
		t.Fatal(err)
	}
	stopA()
	serveAt(t, a, sched, ca.RevokedFile())
	time.Sleep(100 * time.Millisecond) // the client learns that its connection is gone
	if err := list(); err != nil && status.Code(err) != codes.Unavailable {
		t.Errorf("the call that was refused: %v", err)
	}
	if err := list(); err != nil {
		t.Errorf("after that: %v", err)
	}
	stopB()
	serveAt(t, b, sched, ca.RevokedFile())
	for range 3 { // the first may meet the connection that is gone
		if err = list(); status.Code(err) == codes.Unauthenticated {
			break
		}
	}
	if got := c.Explain("list workers", err); problem.CodeOf(got) != problem.Denied || !strings.Contains(got.Error(), "it was revoked") {
		t.Errorf("%v (exit %d)", got, problem.CodeOf(got))
	}
}

func TestACallThatIsNotAnsweredIsUnreachable(t *testing.T) {
	t.Parallel()
	ca := newCA(t, "test")
	c, err := client.Dial(client.Target{
		Address: serve(t, pair(t, ca, certs.RoleScheduler, "s")), Certs: pair(t, ca, certs.RoleAdmin, "a"),
	}, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = c.ListScripts(ctx, &droverv1.ListScriptsRequest{})
	if got := c.Explain("x", err); errs.KindOf(got) != errs.Unavailable || !strings.Contains(got.Error(), "no answer in time") {
		t.Errorf("%v", got)
	}
	if got := c.Explain("x", status.Error(codes.Unavailable, "error reading from server: EOF")); !strings.Contains(got.Error(), "EOF") {
		t.Errorf("%v", got)
	}
}

// TestJoinTalksOnlyToThePinnedCA: a token's secret never reaches a stranger.
func TestJoinTalksOnlyToThePinnedCA(t *testing.T) {
	t.Parallel()
	ca, foreign := newCA(t, "test"), newCA(t, "test")
	address := serve(t, pair(t, ca, certs.RoleScheduler, "s"))
	join := func(from *certs.CA) error {
		text, err := from.NewToken(certs.TokenRequest{})
		if err != nil {
			t.Fatal(err)
		}
		token, err := certs.ParseToken(text)
		if err != nil {
			t.Fatal(err)
		}
		c, err := client.DialToJoin(address, token.Pin, "test")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, err = c.Certificates.Join(t.Context(), &droverv1.JoinRequest{Token: token.Secret})
		return c.Explain("join", err)
	}
	if err := join(ca); err != nil {
		t.Errorf("the right CA: %v", err)
	}
	if err := join(foreign); problem.CodeOf(err) != problem.Denied {
		t.Errorf("a foreign CA: %v", err)
	}
}
