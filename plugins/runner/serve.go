package runner

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"github.com/droverhq/drover/plugins/footprint"
	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// Names that worker and plugin agree on before they speak gRPC.
const (
	PluginName  = "runner"             // of the one service a plugin dispenses
	CookieKey   = "DROVER_PLUGIN"      // the cookie tells a plugin that a worker started it
	CookieValue = "drover-runner"      // its value
	DirVariable = "DROVER_PLUGIN_DIR"  // 0700 folder for journal and log
	IdleVar     = "DROVER_PLUGIN_IDLE" // duration; see ServerConfig.Idle
	maxMessage  = 64 << 20             // bytes per frame, both ways
	window      = 1 << 20              // bytes on their way of a stream, and of the connection
	describe    = "--describe"         // prints Description and ends
	umask       = 0o022                // of jobs
	logName     = "plugin.log"         // in the folder
)

// Handshake is what worker and plugin must have in common.
func Handshake() plugin.HandshakeConfig {
	return plugin.HandshakeConfig{ProtocolVersion: Protocol, MagicCookieKey: CookieKey, MagicCookieValue: CookieValue}
}

// GRPCPlugin binds RunnerService to go-plugin. Impl is nil at the worker.
type GRPCPlugin struct {
	plugin.NetRPCUnsupportedPlugin
	Impl runnerv1.RunnerServiceServer
}

// GRPCServer registers the service in the plugin.
func (p *GRPCPlugin) GRPCServer(_ *plugin.GRPCBroker, s *grpc.Server) error {
	runnerv1.RegisterRunnerServiceServer(s, p.Impl)
	return nil
}

// GRPCClient returns a runnerv1.RunnerServiceClient at the worker.
func (p *GRPCPlugin) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	return runnerv1.NewRunnerServiceClient(c), nil
}

// Description is what "drover-runner-NAME --describe" prints as JSON, for the
// manifest beside an installed plugin.
type Description struct {
	Name        string   `json:"name"`
	Version     string   `json:"version"`
	Protocol    int      `json:"protocol"`
	Commands    []string `json:"commands"`
	Extensions  []string `json:"extensions"`
	Interpreter string   `json:"interpreter,omitempty"` // see Info
	Restricts   bool     `json:"restricts,omitempty"`   // see Info
}

// Serve is the main function of a plugin. It returns after the worker has
// shut the plugin down, or after it was idle for long enough.
func Serve(r Runner) {
	if err := serve(r, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "drover-runner-%s: %v\n", r.Info().Name, err)
		os.Exit(1)
	}
}

func serve(r Runner, args []string, stdout io.Writer) error {
	info := r.Info()
	if len(args) == 1 && (args[0] == describe || args[0] == "--version") {
		return json.NewEncoder(stdout).Encode(Description{
			Name: info.Name, Version: info.Version, Protocol: Protocol, Commands: commands(info), Extensions: info.Extensions,
			Interpreter: info.Interpreter, Restricts: info.Restricts,
		})
	}
	if os.Getenv(CookieKey) != CookieValue {
		return fmt.Errorf("this is a runner plugin and does nothing by itself\n" +
			"hint: install it with \"drover plugin install FILE\"; a worker starts it")
	}
	dir := os.Getenv(DirVariable)
	if dir == "" {
		return fmt.Errorf("%s is not set", DirVariable)
	}
	idle, err := idleTime(os.Getenv(IdleVar))
	if err != nil {
		return err
	}
	if err := handDown(); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(dir, logName), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	defer log.Close()
	return runPlugin(r, dir, idle, log)
}

func idleTime(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", IdleVar, err)
	}
	return d, nil
}

// serverOptions are those of every plugin's server.
func serverOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
		// Windows that are given need no measuring of the line: gRPC else sends a ping
		// with nearly every message that comes, which wakes both sides once more.
		grpc.InitialWindowSize(window), grpc.InitialConnWindowSize(window),
	}
}

func runPlugin(r Runner, dir string, idle time.Duration, logFile *os.File) error {
	var (
		mu  sync.Mutex // guards srv
		srv *grpc.Server
	)
	log := slog.New(slog.NewTextHandler(logFile, nil))
	impl, err := NewServer(r, ServerConfig{
		Journal: filepath.Join(dir, JournalName), Idle: idle,
		Log: log,
		Stop: func() {
			mu.Lock()
			defer mu.Unlock()
			if srv != nil {
				// Not GracefulStop: the worker's session stays open for ever.
				go srv.Stop()
			}
		},
	})
	if err != nil {
		return err
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	var wait sync.WaitGroup
	wait.Go(func() {
		for range term {
			impl.Drain()
		}
	})
	resting, end := context.WithCancel(context.Background())
	wait.Go(func() { footprint.Keep(resting, log) })
	detach := sync.OnceFunc(func() { detachFrom(logFile) })
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: Handshake(),
		Plugins:         plugin.PluginSet{PluginName: &GRPCPlugin{Impl: impl}},
		Logger:          hclog.NewNullLogger(),
		GRPCServer: func(opts []grpc.ServerOption) *grpc.Server {
			opts = append(append(opts, serverOptions()...),
				grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
					// The first call proves that the worker has read the
					// handshake: from now on its pipes may break.
					detach()
					return next(ctx, req)
				}))
			mu.Lock()
			defer mu.Unlock()
			srv = grpc.NewServer(opts...)
			return srv
		},
	})
	signal.Stop(term)
	close(term)
	end()
	wait.Wait()
	return impl.Close()
}

// detachFrom points fds 0 to 2 away from the worker's pipes: a worker that is
// gone must neither block nor kill the plugin that prints.
func detachFrom(log *os.File) {
	if null, err := syscall.Open(os.DevNull, syscall.O_RDONLY|syscall.O_CLOEXEC, 0); err == nil {
		_ = syscall.Dup3(null, 0, 0)
		_ = syscall.Close(null)
	}
	_ = syscall.Dup3(int(log.Fd()), 1, 0)
	_ = syscall.Dup3(int(log.Fd()), 2, 0)
}
