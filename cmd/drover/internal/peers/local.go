package peers

import (
	"context"
	"os/exec"
	"strings"
)

// pool runs commands by a local program that reads one line per job.
type pool struct {
	name string
	argv []string // before the command
	// shell tells that it makes one line of the command for a shell.
	shell bool
}

// atOnce is how many jobs the local programs run at once, as many as the bare
// limit does.
const atOnce = "4"

func startXargs(context.Context, string) (Peer, error) {
	return &pool{"xargs", []string{"xargs", "-P" + atOnce, "-I{}"}, false}, nil
}

func startParallel(context.Context, string) (Peer, error) {
	return &pool{"parallel", []string{"parallel", "--will-cite", "-j" + atOnce, "-n0"}, true}, nil
}

// Name implements Peer.
func (p *pool) Name() string { return p.name }

// Run implements Peer.
func (p *pool) Run(ctx context.Context, argv []string, n int) error {
	if p.shell {
		argv = []string{quoted(argv)}
	}
	all := append(append([]string{}, p.argv...), argv...)
	cmd := exec.CommandContext(ctx, all[0], all[1:]...)
	cmd.Stdin = strings.NewReader(strings.Repeat("x\n", n))
	return run(cmd)
}

// Close implements Peer.
func (p *pool) Close() error { return nil }
