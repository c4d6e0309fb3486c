package rpc_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/core/auth"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
	"github.com/droverhq/drover/core/rpc"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// within is how long an end of five seconds may take on a loaded machine.
const within = 15 * time.Second

// guarded is a scheduler whose connections are watched. Its calls wait until
// their context ends.
type guarded struct {
	address string
	dir     string // certificates
	began   chan string
	ended   chan string
}

func startGuarded(t *testing.T, ca *certs.CA) *guarded {
	t.Helper()
	g := &guarded{dir: filepath.Join(t.TempDir(), "server"), began: make(chan string, 8), ended: make(chan string, 8)}
	if err := ca.IssuePair(g.dir, certs.IssueRequest{Name: "server", Role: certs.RoleScheduler}); err != nil {
		t.Fatal(err)
	}
	source, err := certs.NewSource(g.dir, slog.New(slog.DiscardHandler), ca.RevokedFile())
	if err != nil {
		t.Fatal(err)
	}
	connections := rpc.NewConnections(source, slog.New(slog.DiscardHandler))
	server, err := rpc.NewServer("127.0.0.1:0", rpc.ServerConfig{
		TLS: source.ServerConfig(), Table: auth.SchedulerTable(), Revocations: source, Connections: connections,
	})
	if err != nil {
		t.Fatal(err)
	}
	server.Registrar().RegisterService(g.service(), struct{}{})
	together(t, server.Run, source.Run, connections.Run)
	g.address = server.Address()
	return g
}

func (g *guarded) service() *grpc.ServiceDesc {
	wait := func(ctx context.Context, what string) error {
		g.began <- what
		<-ctx.Done()
		g.ended <- what
		return ctx.Err()
	}
	return &grpc.ServiceDesc{
		ServiceName: droverv1.SchedulerService_ServiceDesc.ServiceName, HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{StreamName: "WatchEvents", ServerStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
			return wait(s.Context(), "stream")
		}}},
		Methods: []grpc.MethodDesc{{MethodName: "GetJob", Handler: func(_ any, ctx context.Context, in func(any) error, guard grpc.UnaryServerInterceptor) (any, error) {
			if err := in(&emptypb.Empty{}); err != nil {
				return nil, err
			}
			return guard(ctx, &emptypb.Empty{}, &grpc.UnaryServerInfo{FullMethod: droverv1.SchedulerService_GetJob_FullMethodName},
				func(ctx context.Context, _ any) (any, error) { return nil, wait(ctx, "call") })
		}}},
	}
}

// together runs parts until the test ends.
func together(t *testing.T, parts ...func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, len(parts))
	for _, run := range parts {
		go func() { done <- run(ctx) }()
	}
	t.Cleanup(func() {
		cancel()
		for range parts {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
}

// TestP22_IdentityEnds_ItsStreamsAndWaitingCallsEnd: whatever ends it, and a new
// connection is refused with the reason.
func TestP22_IdentityEnds_ItsStreamsAndWaitingCallsEnd(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		ttl time.Duration
		end func(t *testing.T, ca, other *certs.CA, g *guarded)
		why string
	}{
		"revoked": {time.Hour, func(t *testing.T, _, other *certs.CA, g *guarded) {
			serial := issuedTo(t, other, "eve")
			if err := os.WriteFile(filepath.Join(g.dir, "revoked"), []byte(serial+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "revoked"},
		"expired": {20 * time.Second, func(*testing.T, *certs.CA, *certs.CA, *guarded) {}, "expired"},
		"CA not trusted any more": {time.Hour, func(t *testing.T, ca, _ *certs.CA, g *guarded) {
			trust(t, g.dir, ca)
		}, "another CA"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ca, other := walkCA(t), walkCA(t)
			g := startGuarded(t, ca)
			trust(t, g.dir, ca, other)
			dir := filepath.Join(t.TempDir(), "eve")
			if err := other.IssuePair(dir, certs.IssueRequest{Name: "eve", Role: certs.RoleViewer, TTL: c.ttl}); err != nil {
				t.Fatal(err)
			}
			trust(t, dir, ca)
			conn := g.dial(t, dir)
			call, stream := make(chan error, 1), make(chan error, 1)
			eventually(t, "the first call begins", func() bool { // once the server has read its CAs
				go func() {
					call <- conn.Invoke(t.Context(), droverv1.SchedulerService_GetJob_FullMethodName, &emptypb.Empty{}, &emptypb.Empty{})
				}()
				select {
				case <-g.began:
					return true
				case <-call:
					return false
				}
			})
			go func() { stream <- watch(t.Context(), conn) }()
			<-g.began
			c.end(t, ca, other, g)
			began := time.Now()
			for what, err := range map[string]error{"call": <-call, "stream": <-stream} {
				if code := status.Code(err); code != codes.Unavailable {
					t.Errorf("the %s ended with %v", what, err)
				}
			}
			<-g.ended
			<-g.ended
			if took := time.Since(began); took > within+c.ttl%time.Hour {
				t.Errorf("it took %v", took)
			}
			source, err := certs.NewSource(dir, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "a new connection is refused", func() bool { // a write may meet the end before the alert is read
				why := source.Explain(watch(t.Context(), g.dial(t, dir)))
				return strings.Contains(why, c.why)
			})
		})
	}
}

func (g *guarded) dial(t *testing.T, dir string) *grpc.ClientConn {
	t.Helper()
	source, err := certs.NewSource(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := rpc.Dial(g.address, source.ClientConfig(certs.RoleScheduler, ""))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func watch(ctx context.Context, conn *grpc.ClientConn) error {
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, droverv1.SchedulerService_WatchEvents_FullMethodName)
	if err != nil {
		return err
	}
	_ = s.SendMsg(&emptypb.Empty{}) // RecvMsg tells why
	return s.RecvMsg(&emptypb.Empty{})
}

// trust makes a folder trust these CAs and no others.
func trust(t *testing.T, dir string, cas ...*certs.CA) {
	t.Helper()
	var all []byte
	for _, ca := range cas {
		bundle, err := ca.Bundle()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, bundle...)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), all, 0o600); err != nil {
		t.Fatal(err)
	}
}

func issuedTo(t *testing.T, ca *certs.CA, name string) string {
	t.Helper()
	all, err := ca.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		if c.ID.Name == name {
			return c.Serial
		}
	}
	t.Fatalf("nothing was issued to %s", name)
	return ""
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not yet: %s", what)
		}
	}
}

// TestP22_ExpiredCertificate_NextCallIsRefused also where nothing has closed its
// connection yet.
func TestP22_ExpiredCertificate_NextCallIsRefused(t *testing.T) {
	t.Parallel()
	ca := walkCA(t)
	w := startWalked(t, ca, certs.RoleScheduler, auth.SchedulerTable(), droverv1.SchedulerService_ServiceDesc)
	source := walkSource(t, ca, certs.RoleViewer, "eve", time.Now(), 3*time.Second)
	conn, err := rpc.Dial(w.address, source.ClientConfig(certs.RoleScheduler, ""))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	service := droverv1.SchedulerService_ServiceDesc.ServiceName
	if st := w.call(t, conn, service, "ListWorkers", nil); st.Code() != codes.OK {
		t.Fatal(st)
	}
	eventually(t, "calls are refused", func() bool {
		st := w.call(t, conn, service, "ListWorkers", nil)
		if late := time.Since(source.Leaf().NotAfter); st.Code() == codes.OK && late > 0 {
			// It may have begun before.
			return w.call(t, conn, service, "ListWorkers", nil).Code() != codes.OK
		}
		if st.Code() == codes.OK {
			return false
		}
		if st.Code() != codes.Unauthenticated || !strings.Contains(st.Message(), "expired") {
			t.Errorf("refused with %v", st)
		}
		return true
	})
}

// talkative is a worker that reports all the time.
type talkative struct {
	droverv1.UnimplementedWorkerServiceServer
	sent atomic.Uint64
}

// Session implements the service.
func (w *talkative) Session(stream grpc.BidiStreamingServer[droverv1.SessionRequest, droverv1.SessionResponse]) error {
	for stream.Context().Err() == nil {
		if err := stream.Send(&droverv1.SessionResponse{}); err != nil {
			return err
		}
		w.sent.Add(1)
	}
	return stream.Context().Err()
}

// TestP22_RevokedWorker_ItsSessionEnds: the scheduler has dialled it, and takes
// nothing from it any more.
func TestP22_RevokedWorker_ItsSessionEnds(t *testing.T) {
	t.Parallel()
	ca := walkCA(t)
	source := walkSource(t, ca, certs.RoleScheduler, "server", time.Now(), 0)
	connections := rpc.NewConnections(source, slog.New(slog.DiscardHandler))
	workers := rpc.NewConnector(connections)
	defer workers.Close()
	own := walkSource(t, ca, certs.RoleWorker, "w", time.Now(), 0)
	server, err := rpc.NewServer("127.0.0.1:0", rpc.ServerConfig{TLS: own.ServerConfig(), Table: auth.WorkerTable(), Revocations: own})
	if err != nil {
		t.Fatal(err)
	}
	droverv1.RegisterWorkerServiceServer(server.Registrar(), &talkative{})
	together(t, server.Run, connections.Run)
	link, err := workers.Connect(t.Context(), registry.Worker{
		ID: uuid.New(), Name: "w", Address: server.Address(),
	}, 1, job.History{})
	if err != nil {
		t.Fatal(err)
	}
	defer link.Close()
	for range 100 {
		if _, err := link.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ca.Revoke("w"); err != nil {
		t.Fatal(err)
	}
	source.Reload() // as Run does
	if _, err := link.Recv(); err == nil || !strings.Contains(err.Error(), "was revoked") && !errors.Is(err, context.Canceled) && !strings.Contains(err.Error(), "closed") {
		t.Errorf("the next frame: %v", err)
	}
	if _, err := workers.Connect(t.Context(), registry.Worker{
		ID: uuid.New(), Name: "w", Address: server.Address(),
	}, 1, job.History{}); err == nil || !strings.Contains(err.Error(), "was revoked") {
		t.Errorf("the next session: %v", err)
	}
}
