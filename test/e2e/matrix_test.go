package e2e_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	grpccodes "google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/core/rpc"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
	"github.com/droverhq/drover/test/cluster"
)

// matrix says which identities may make a call: the table of docs/security.md. An
// error about what the call asks for is an admission.
var matrix = map[string]string{
	"SchedulerService/RegisterWorker":   "worker",
	"SchedulerService/DeregisterWorker": "worker",
	"SchedulerService/Heartbeat":        "worker",
	"SchedulerService/StartJob":         "submitter operator admin",
	"SchedulerService/StartJobs":        "submitter operator admin",
	"SchedulerService/StopJob":          "submitter operator admin",
	"SchedulerService/GetJob":           "viewer submitter operator admin",
	"SchedulerService/ListJobs":         "viewer submitter operator admin",
	"SchedulerService/StreamOutput":     "viewer submitter operator admin",
	"SchedulerService/WaitJobs":         "viewer submitter operator admin",
	"SchedulerService/WatchEvents":      "viewer submitter operator admin",
	"SchedulerService/ListWorkers":      "viewer submitter operator admin",
	"SchedulerService/GetWorker":        "viewer submitter operator admin",
	"SchedulerService/ListScripts":      "viewer submitter operator admin",
	"SchedulerService/DrainWorker":      "operator admin",
	"SchedulerService/RemoveJobs":       "operator admin",
	"SchedulerService/RemoveWorker":     "admin",
	"SchedulerService/AdoptJob":         "admin",
	"SchedulerService/Backup":           "admin",
	"CertificateService/Join":           "viewer submitter operator admin worker scheduler nobody",
	"CertificateService/Renew":          "viewer submitter operator admin worker scheduler",
	"WorkerService/StartJob":            "scheduler",
	"WorkerService/StopJob":             "scheduler",
	"WorkerService/Session":             "scheduler",
	"WorkerService/GetJob":              "admin scheduler",
	"WorkerService/StreamOutput":        "admin scheduler",
}

// TestEveryCallByEveryIdentity: real calls to a real scheduler and a real worker. What
// the services describe is walked, so that a new call needs a row.
func TestEveryCallByEveryIdentity(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, bin)
	c.Worker("w1", c.Scripts(c.Path("scripts"), map[string]string{"a.sh": "echo\n"}))
	folders := map[string]string{"nobody": ""}
	for _, role := range certs.Roles() {
		folders[string(role)] = c.Issue("the-"+string(role), role)
	}
	folders["foreign"], folders["expired"] = filepath.Join(t.TempDir(), "foreign"), filepath.Join(t.TempDir(), "expired")
	other, err := certs.Init(c.Path("other"), "test")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		other.IssuePair(folders["foreign"], certs.IssueRequest{Name: "the-admin", Role: certs.RoleAdmin}),
		c.CA.IssuePair(folders["expired"], certs.IssueRequest{Name: "old", Role: certs.RoleAdmin, Now: time.Now().Add(-time.Hour), TTL: time.Minute}),
	); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(folders["foreign"], "ca.crt"), slurpPath(t, c.CA.BundleFile()))
	folders["revoked"] = c.Issue("gone", certs.RoleAdmin)
	c.Must("certs", "revoke", "gone", "--ca", c.Path("ca"))
	worker := dialDirect(t, c, "w1", folders["revoked"])
	c.Eventually("the worker knows of the revocation", func() bool { return worker.refusal(t) != "" })
	rows := 0
	for _, server := range []struct {
		address  string
		role     certs.Role
		services []grpc.ServiceDesc
	}{
		{c.Address, certs.RoleScheduler, []grpc.ServiceDesc{droverv1.SchedulerService_ServiceDesc, droverv1.CertificateService_ServiceDesc}},
		{worker.worker, certs.RoleWorker, []grpc.ServiceDesc{droverv1.WorkerService_ServiceDesc}},
	} {
		for _, d := range server.services {
			rows += len(d.Methods) + len(d.Streams)
		}
		for who, dir := range folders {
			conn := dialAs(t, c, server.address, server.role, dir)
			for _, d := range server.services {
				for _, m := range d.Methods {
					judge(t, conn, d.ServiceName, m.MethodName, nil, who)
				}
				for i := range d.Streams {
					judge(t, conn, d.ServiceName, d.Streams[i].StreamName, &d.Streams[i], who)
				}
			}
		}
	}
	if rows != len(matrix) {
		t.Errorf("%d calls, %d rows", rows, len(matrix))
	}
}

func dialAs(t *testing.T, c *cluster.Cluster, address string, role certs.Role, dir string) *grpc.ClientConn {
	t.Helper()
	own := dir
	if dir == "" {
		own = c.Path("certs", "admin")
	}
	source, err := certs.NewSource(own, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	config := source.ClientConfig(role, "")
	if dir == "" {
		config.GetClientCertificate = nil
	}
	conn, err := rpc.Dial(address, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// judge makes one call with nothing in it and compares how it ends.
func judge(t *testing.T, conn *grpc.ClientConn, service, method string, stream *grpc.StreamDesc, who string) {
	t.Helper()
	row := strings.TrimPrefix(service, "drover.v1.") + "/" + method
	roles, ok := matrix[row]
	if !ok {
		t.Errorf("%s has no row", row)
	}
	want := "admitted"
	switch {
	case who == "foreign" || who == "expired" || who == "revoked":
		want = "no connection"
	case strings.Contains(" "+roles+" ", " "+who+" "):
	case who == "nobody":
		want = "no identity"
	default:
		want = "no right"
	}
	err := callEmpty(t, conn, "/"+service+"/"+method, stream)
	got := "admitted"
	switch grpcstatus.Code(err) {
	case grpccodes.PermissionDenied:
		got = "no right"
	case grpccodes.Unauthenticated:
		got = "no identity"
		if strings.Contains(err.Error(), "join token") { // the token was looked at
			got = "admitted"
		}
	case grpccodes.Unavailable:
		got = "no connection"
	}
	// A worker need not let somebody without a certificate in at all.
	shut := want == "no identity" && got == "no connection" && strings.HasPrefix(row, "WorkerService/")
	if got != want && !shut {
		t.Errorf("%s by %s: %s, want %s: %v", row, who, got, want, err)
	}
}

func callEmpty(t *testing.T, conn *grpc.ClientConn, method string, d *grpc.StreamDesc) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), cluster.Patience)
	defer cancel()
	if d == nil {
		return conn.Invoke(ctx, method, &emptypb.Empty{}, &emptypb.Empty{})
	}
	s, err := conn.NewStream(ctx, d, method)
	if err != nil {
		return err
	}
	if strings.HasSuffix(method, "/WatchEvents") { // it has nothing to say for now
		late := time.AfterFunc(2*time.Second, cancel)
		defer late.Stop()
	}
	_ = s.SendMsg(&emptypb.Empty{}) // RecvMsg tells why
	_ = s.CloseSend()
	if err := s.RecvMsg(&emptypb.Empty{}); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}
