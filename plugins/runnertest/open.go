package runnertest

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/droverhq/drover/plugins/runner"
	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// InProcess serves r in this process. All plugins opened share r, and nothing
// closes it: a runner of processes waits for every child of its process, so
// there is one, and the test binary starts no others.
func InProcess(r runner.Runner) func(testing.TB, Options) *Plugin {
	return func(t testing.TB, o Options) *Plugin {
		t.Helper()
		dir := t.TempDir()
		ended := make(chan struct{})
		server, err := runner.NewServer(shared{r}, runner.ServerConfig{
			Journal: filepath.Join(dir, runner.JournalName), Idle: o.Idle, Stop: sync.OnceFunc(func() { close(ended) }),
		})
		if err != nil {
			t.Fatal(err)
		}
		listener := bufconn.Listen(1 << 20)
		g := grpc.NewServer()
		runnerv1.RegisterRunnerServiceServer(g, server)
		served := make(chan error, 1)
		go func() { served <- g.Serve(listener) }()
		conn, err := grpc.NewClient("passthrough:runner", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := conn.Close(); err != nil {
				t.Error(err)
			}
			g.Stop()
			if err := <-served; err != nil {
				t.Error(err)
			}
			if err := server.Close(); err != nil {
				t.Error(err)
			}
		})
		return &Plugin{Client: runnerv1.NewRunnerServiceClient(conn), Dir: dir, PID: os.Getpid(), Ended: ended}
	}
}

// shared keeps a server from closing a runner that others use too.
type shared struct{ runner.Runner }

// Close leaves the runner open.
func (shared) Close() error { return nil }

// Launched starts the plugin binary at path as a worker does.
func Launched(path string) func(testing.TB, Options) *Plugin {
	return func(t testing.TB, o Options) *Plugin {
		t.Helper()
		p, err := launch(t, path, runner.Protocol, o)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
}

// launch starts a plugin for a worker that speaks the given protocol version.
func launch(t testing.TB, path string, protocol uint, o Options) (*Plugin, error) {
	t.Helper()
	// Not t.TempDir: its path grows with the name of the test, a socket's is short.
	dir, err := os.MkdirTemp("", "drover-rt-") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	argv := append(slices.Clone(o.By), path)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = []string{
		runner.DirVariable + "=" + dir, runner.IdleVar + "=" + o.Idle.String(),
		plugin.EnvUnixSocketDir + "=" + dir, "PATH=" + os.Getenv("PATH"),
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	handshake := runner.Handshake()
	handshake.ProtocolVersion = protocol
	client := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig: handshake, Plugins: plugin.PluginSet{runner.PluginName: &runner.GRPCPlugin{}},
		Cmd: cmd, SkipHostEnv: true, AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC}, Logger: hclog.NewNullLogger(),
	})
	t.Cleanup(func() {
		client.Kill()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	conn, err := client.Client()
	if err != nil {
		return nil, err
	}
	raw, err := conn.Dispense(runner.PluginName)
	if err != nil {
		return nil, err
	}
	pid := client.ReattachConfig().Pid
	return &Plugin{Client: raw.(runnerv1.RunnerServiceClient), Dir: dir, PID: pid, Ended: processEnd(t, pid)}, nil
}

// processEnd is closed when a process has ended, see pidfd_open(2).
func processEnd(t testing.TB, pid int) <-chan struct{} {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	ended, watched := make(chan struct{}), make(chan struct{})
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(watched)
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(stop), Events: unix.POLLIN}}
		for {
			if _, err := unix.Poll(fds, -1); err != nil {
				continue // a signal
			}
			if fds[0].Revents != 0 {
				close(ended)
			}
			return
		}
	}()
	t.Cleanup(func() {
		if _, err := unix.Write(stop, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
			t.Error(err)
		}
		<-watched
		_ = unix.Close(fd)
		_ = unix.Close(stop)
	})
	return ended
}
