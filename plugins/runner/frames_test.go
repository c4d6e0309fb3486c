package runner

import (
	"net"
	"path/filepath"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// overheard keeps what is written to the connections that it accepts.
type overheard struct {
	net.Listener
	mu   sync.Mutex
	said []byte
}

func (o *overheard) Accept() (net.Conn, error) {
	c, err := o.Listener.Accept()
	return &overheardConn{c, o}, err
}

type overheardConn struct {
	net.Conn
	by *overheard
}

func (c *overheardConn) Write(p []byte) (int, error) {
	c.by.mu.Lock()
	c.by.said = append(c.by.said, p...)
	c.by.mu.Unlock()
	return c.Conn.Write(p)
}

// kinds counts HTTP/2 frames by type (RFC 9113, 4.1).
func kinds(said []byte) map[byte]int {
	count := map[byte]int{}
	for len(said) >= 9 {
		count[said[3]]++
		said = said[min(len(said), 9+int(said[0])<<16+int(said[1])<<8+int(said[2])):]
	}
	return count
}

// TestAPluginDoesNotMeasureItsConnection: each ping would wake the worker and the
// plugin once more.
func TestAPluginDoesNotMeasureItsConnection(t *testing.T) {
	t.Parallel()
	listen, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	impl, err := NewServer(&scripted{}, ServerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	o, srv := &overheard{Listener: listen}, grpc.NewServer(serverOptions()...)
	runnerv1.RegisterRunnerServiceServer(srv, impl)
	var wait sync.WaitGroup
	wait.Go(func() { _ = srv.Serve(o) })
	conn, err := grpc.NewClient("unix:"+listen.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithInitialWindowSize(window))
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if _, err := runnerv1.NewRunnerServiceClient(conn).GetInfo(t.Context(), &runnerv1.GetInfoRequest{}); err != nil {
			t.Error(err)
		}
	}
	_ = conn.Close()
	srv.Stop()
	wait.Wait()
	_ = impl.Close()
	const data, ping = 0, 6
	if got := kinds(o.said); got[data] != 10 || got[ping] != 0 {
		t.Errorf("frames by type: %v, want 10 of data and no ping", got)
	}
}
