package peers

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// gearman is a job server with workers of its own. A worker serves one
// function, which is one command; they are started when a command is first run.
type gearman struct {
	dir    string
	port   int
	server *daemon
	served map[string]*served // by command line
}

type served struct {
	function string
	workers  []*daemon
}

// Clients wait for each job before they send the next: so many are under way.
const (
	gearmanWorkers = 4
	gearmanClients = 16
)

func startGearman(ctx context.Context, dir string) (Peer, error) {
	g := &gearman{dir: dir, served: map[string]*served{}}
	var err error
	if g.port, err = freePort(); err != nil {
		return nil, err
	}
	port := strconv.Itoa(g.port)
	if g.server, err = startDaemon(filepath.Join(dir, "gearmand.log"), "gearmand",
		"--listen", "127.0.0.1", "--port", port, "--log-file", "stderr", "--pid-file", filepath.Join(dir, "pid")); err != nil {
		return nil, err
	}
	if err := g.server.await(ctx, func() bool { return listens(g.port) }); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

// Name implements Peer.
func (g *gearman) Name() string { return "gearman" }

// Run implements Peer.
func (g *gearman) Run(ctx context.Context, argv []string, n int) error {
	s := g.served[quoted(argv)]
	if s == nil {
		s = &served{function: "f" + strconv.Itoa(len(g.served))}
		g.served[quoted(argv)] = s
	}
	for len(s.workers) < gearmanWorkers {
		// -w works, -f names the function; what follows -- is run once per job.
		d, err := startDaemon(filepath.Join(g.dir, "worker.log"), "gearman",
			append([]string{"-h", "127.0.0.1", "-p", strconv.Itoa(g.port), "-w", "-f", s.function, "--"}, argv...)...)
		if err != nil {
			return err
		}
		s.workers = append(s.workers, d)
	}
	return share(ctx, n, gearmanClients, func(ctx context.Context, n int) error {
		if n == 0 {
			return nil
		}
		// -n makes one job per line and waits for each.
		cmd := exec.CommandContext(ctx, "gearman", "-h", "127.0.0.1", "-p", strconv.Itoa(g.port), "-f", s.function, "-n")
		cmd.Stdin = strings.NewReader(strings.Repeat("x\n", n))
		if err := run(cmd); err != nil {
			return fmt.Errorf("run %d jobs: %w", n, err)
		}
		return nil
	})
}

// Close implements Peer.
func (g *gearman) Close() error {
	for _, s := range g.served {
		for _, w := range s.workers {
			w.stop()
		}
	}
	g.server.stop()
	return nil
}
