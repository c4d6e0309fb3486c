package rpc_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/core/auth"
	"github.com/droverhq/drover/core/rpc"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// permitted is the table of the contract, written out a second time on purpose.
// "nobody" is a caller without a certificate.
var permitted = map[string]string{
	"SchedulerService/RegisterWorker":   "worker",
	"SchedulerService/DeregisterWorker": "worker",
	"SchedulerService/Heartbeat":        "worker",
	"SchedulerService/StartJob":         "admin operator submitter",
	"SchedulerService/StartJobs":        "admin operator submitter",
	"SchedulerService/WaitJobs":         "admin operator submitter viewer",
	"SchedulerService/StopJob":          "admin operator submitter",
	"SchedulerService/GetJob":           "admin operator submitter viewer",
	"SchedulerService/ListJobs":         "admin operator submitter viewer",
	"SchedulerService/StreamOutput":     "admin operator submitter viewer",
	"SchedulerService/ListWorkers":      "admin operator submitter viewer",
	"SchedulerService/GetWorker":        "admin operator submitter viewer",
	"SchedulerService/DrainWorker":      "admin operator",
	"SchedulerService/RemoveWorker":     "admin",
	"SchedulerService/RemoveJobs":       "admin operator",
	"SchedulerService/ListScripts":      "admin operator submitter viewer",
	"SchedulerService/WatchEvents":      "admin operator submitter viewer",
	"SchedulerService/AdoptJob":         "admin",
	"SchedulerService/Backup":           "admin",
	"CertificateService/Join":           "nobody scheduler worker admin operator submitter viewer",
	"CertificateService/Renew":          "scheduler worker admin operator submitter viewer",
	"WorkerService/StartJob":            "scheduler",
	"WorkerService/StopJob":             "scheduler",
	"WorkerService/GetJob":              "scheduler admin",
	"WorkerService/StreamOutput":        "scheduler admin",
	"WorkerService/Session":             "scheduler",
}

// reached counts the calls that got past the guard.
type reached struct {
	mu    sync.Mutex // guards calls
	calls map[string]int
}

func (r *reached) take(method string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.calls[method]
	delete(r.calls, method)
	return n
}

func (r *reached) note(method string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls[method]++
}

// counting is a service whose every method only counts. Its methods and streams
// are those of the real description, so that a new one is walked by itself.
func counting(d grpc.ServiceDesc, r *reached) grpc.ServiceDesc {
	out := grpc.ServiceDesc{ServiceName: d.ServiceName, HandlerType: (*any)(nil)}
	for _, m := range d.Methods {
		full := "/" + d.ServiceName + "/" + m.MethodName
		out.Methods = append(out.Methods, grpc.MethodDesc{MethodName: m.MethodName, Handler: func(_ any, ctx context.Context, _ func(any) error, guard grpc.UnaryServerInterceptor) (any, error) {
			return guard(ctx, &emptypb.Empty{}, &grpc.UnaryServerInfo{FullMethod: full}, func(context.Context, any) (any, error) {
				r.note(full)
				return &emptypb.Empty{}, nil
			})
		}})
	}
	for _, s := range d.Streams {
		full := "/" + d.ServiceName + "/" + s.StreamName
		s.Handler = func(any, grpc.ServerStream) error {
			r.note(full)
			return nil
		}
		out.Streams = append(out.Streams, s)
	}
	return out
}

// walked is one server of the walk.
type walked struct {
	name     string
	services []grpc.ServiceDesc
	reached  *reached
	address  string
	role     certs.Role
}

func startWalked(t *testing.T, ca *certs.CA, role certs.Role, table auth.Table, services ...grpc.ServiceDesc) *walked {
	t.Helper()
	w := &walked{name: string(role), services: services, reached: &reached{calls: map[string]int{}}, role: role}
	source := walkSource(t, ca, role, "server-"+string(role), time.Now(), 0)
	server, err := rpc.NewServer("127.0.0.1:0", rpc.ServerConfig{TLS: source.ServerConfig(), Table: table, Revocations: source})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range services {
		d = counting(d, w.reached)
		server.Registrar().RegisterService(&d, struct{}{})
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	w.address = server.Address()
	return w
}

func walkSource(t *testing.T, ca *certs.CA, role certs.Role, name string, now time.Time, ttl time.Duration) *certs.Source {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	if err := ca.IssuePair(dir, certs.IssueRequest{Name: name, Role: role, Now: now, TTL: ttl, Hosts: []string{"127.0.0.1"}}); err != nil {
		t.Fatal(err)
	}
	s, err := certs.NewSource(dir, slog.New(slog.DiscardHandler), ca.RevokedFile())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// call makes one call of either kind and returns its status.
func (w *walked) call(t *testing.T, conn *grpc.ClientConn, service, method string, stream *grpc.StreamDesc) *status.Status {
	t.Helper()
	full := "/" + service + "/" + method
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	var err error
	if stream == nil {
		err = conn.Invoke(ctx, full, &emptypb.Empty{}, &emptypb.Empty{})
	} else {
		var s grpc.ClientStream
		if s, err = conn.NewStream(ctx, stream, full); err == nil {
			_ = s.SendMsg(&emptypb.Empty{}) // Recv tells why
			_ = s.CloseSend()
			err = s.RecvMsg(&emptypb.Empty{})
			if err != nil && err.Error() == "EOF" {
				err = nil
			}
		}
	}
	return status.Convert(err)
}

// each calls every method that the server has.
func (w *walked) each(f func(service, method string, stream *grpc.StreamDesc)) {
	for _, d := range w.services {
		for _, m := range d.Methods {
			f(d.ServiceName, m.MethodName, nil)
		}
		for _, s := range d.Streams {
			f(d.ServiceName, s.StreamName, &s)
		}
	}
}

// TestEveryCallIsGuardedByItsRow: the table of docs/security.md. Whoever may call gets to
// the handler; who may not gets one line that says why, and no effect.
func TestEveryCallIsGuardedByItsRow(t *testing.T) {
	t.Parallel()
	ca := walkCA(t)
	servers := []*walked{
		startWalked(t, ca, certs.RoleScheduler, auth.SchedulerTable(), droverv1.SchedulerService_ServiceDesc, droverv1.CertificateService_ServiceDesc),
		startWalked(t, ca, certs.RoleWorker, auth.WorkerTable(), droverv1.WorkerService_ServiceDesc),
	}
	rows := 0
	for _, w := range servers {
		w.each(func(string, string, *grpc.StreamDesc) { rows++ })
		for _, caller := range []string{"nobody", "scheduler", "worker", "admin", "operator", "submitter", "viewer"} {
			conn := w.dialAs(t, ca, caller)
			w.each(func(service, method string, stream *grpc.StreamDesc) {
				row := strings.TrimPrefix(service, "drover.v1.") + "/" + method
				roles, ok := permitted[row]
				if !ok {
					t.Errorf("%s has no row", row)
				}
				st := w.call(t, conn, service, method, stream)
				got := w.reached.take("/" + service + "/" + method)
				if slices.Contains(strings.Fields(roles), caller) {
					if st.Code() != codes.OK || got != 1 {
						t.Errorf("%s by %s: %v, handled %d times", row, caller, st, got)
					}
					return
				}
				checkRefusal(t, row+" by "+caller, caller, st, got)
			})
		}
	}
	if rows != len(permitted) {
		t.Errorf("%d methods, %d rows", rows, len(permitted))
	}
}

func checkRefusal(t *testing.T, what, caller string, st *status.Status, handled int) {
	t.Helper()
	want := codes.PermissionDenied
	if caller == "nobody" {
		want = codes.Unauthenticated
	}
	if st.Code() != want || handled != 0 {
		t.Errorf("%s: %v, handled %d times; want %v", what, st, handled, want)
	}
	if st.Message() == "" || strings.Contains(st.Message(), "\n") {
		t.Errorf("%s: the reason %q is not one line", what, st.Message())
	}
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == "drover" && info.GetReason() != "" {
			return
		}
	}
	t.Errorf("%s: no reason for programs in %v", what, st.Details())
}

func walkCA(t *testing.T) *certs.CA {
	t.Helper()
	ca, err := certs.Init(filepath.Join(t.TempDir(), "ca"), "walk")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func (w *walked) dialAs(t *testing.T, ca *certs.CA, caller string) *grpc.ClientConn {
	t.Helper()
	config := walkSource(t, ca, certs.RoleAdmin, "config", time.Now(), 0).ClientConfig(w.role, "")
	if caller == "nobody" {
		config.GetClientCertificate = nil
	} else {
		config = walkSource(t, ca, certs.Role(caller), "the-"+caller, time.Now(), 0).ClientConfig(w.role, "")
	}
	conn, err := rpc.Dial(w.address, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// TestBadCertificatesReachNoHandler, whatever their role.
func TestBadCertificatesReachNoHandler(t *testing.T) {
	t.Parallel()
	ca, foreign := walkCA(t), walkCA(t)
	w := startWalked(t, ca, certs.RoleScheduler, auth.SchedulerTable(), droverv1.SchedulerService_ServiceDesc)
	revoked := walkSource(t, ca, certs.RoleAdmin, "gone", time.Now(), 0)
	if _, err := ca.Revoke("gone"); err != nil {
		t.Fatal(err)
	}
	// The server trusts its own CA only: a client of another one that would
	// trust everybody must still be refused.
	trusting := walkSource(t, foreign, certs.RoleAdmin, "a", time.Now(), 0).ClientConfig(certs.RoleScheduler, "")
	trusting.VerifyConnection = nil
	expired := walkSource(t, ca, certs.RoleAdmin, "old", time.Now().Add(-48*time.Hour), time.Hour).ClientConfig(certs.RoleScheduler, "")
	fresh := startWalked(t, ca, certs.RoleScheduler, auth.SchedulerTable(), droverv1.SchedulerService_ServiceDesc) // knows the revocation
	for name, dial := range map[string]func() (*grpc.ClientConn, error){
		"foreign": func() (*grpc.ClientConn, error) { return rpc.Dial(w.address, trusting) },
		"expired": func() (*grpc.ClientConn, error) { return rpc.Dial(w.address, expired) },
		"revoked": func() (*grpc.ClientConn, error) {
			return rpc.Dial(fresh.address, revoked.ClientConfig(certs.RoleScheduler, ""))
		},
		"plaintext": func() (*grpc.ClientConn, error) {
			return grpc.NewClient("passthrough:///"+w.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := dial()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			server := w
			if name == "revoked" {
				server = fresh
			}
			server.each(func(service, method string, stream *grpc.StreamDesc) {
				st := server.call(t, conn, service, method, stream)
				if st.Code() != codes.Unavailable || server.reached.take("/"+service+"/"+method) != 0 {
					t.Errorf("%s: %v", method, st)
				}
			})
		})
	}
}
