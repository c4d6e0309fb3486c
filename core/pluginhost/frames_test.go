package pluginhost

import (
	"context"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// overheard is a connection that keeps what is written to it.
type overheard struct {
	net.Conn
	mu   sync.Mutex
	said []byte
}

func (o *overheard) Write(p []byte) (int, error) {
	o.mu.Lock()
	o.said = append(o.said, p...)
	o.mu.Unlock()
	return o.Conn.Write(p)
}

// preface is how many bytes a client begins with (RFC 9113, 3.4).
const preface = 24

// kinds counts HTTP/2 frames by type (RFC 9113, 4.1).
func kinds(said []byte) map[byte]int {
	count := map[byte]int{}
	for len(said) >= 9 {
		count[said[3]]++
		said = said[min(len(said), 9+int(said[0])<<16+int(said[1])<<8+int(said[2])):]
	}
	return count
}

// healthy answers what go-plugin asks plugins for.
type healthy struct {
	healthv1.UnimplementedHealthServer
}

func (healthy) Check(context.Context, *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error) {
	return &healthv1.HealthCheckResponse{Status: healthv1.HealthCheckResponse_SERVING}, nil
}

// TestAHostDoesNotMeasureItsConnections: each ping would wake the worker and the
// plugin once more.
func TestAHostDoesNotMeasureItsConnections(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	listen, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(grpc.InitialWindowSize(window))
	healthv1.RegisterHealthServer(srv, healthy{})
	var wait sync.WaitGroup
	wait.Go(func() { _ = srv.Serve(listen) })
	o := &overheard{}
	conn, err := grpc.NewClient("passthrough:plugin", append(dialOptions(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			o.Conn, err = d.DialContext(ctx, "unix", path)
			return o, err
		}))...)
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if _, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil {
			t.Error(err)
		}
	}
	_ = conn.Close()
	srv.Stop()
	wait.Wait()
	o.mu.Lock()
	defer o.mu.Unlock()
	const data, ping = 0, 6
	if got := kinds(o.said[preface:]); got[data] != 10 || got[ping] != 0 {
		t.Errorf("frames by type: %v, want 10 of data and no ping", got)
	}
}
