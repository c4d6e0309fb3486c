package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/droverhq/drover/cmd/drover/internal/chaos"
	"github.com/droverhq/drover/cmd/drover/internal/client"
	"github.com/droverhq/drover/cmd/drover/internal/dev"
	"github.com/droverhq/drover/cmd/drover/internal/render"
	"github.com/droverhq/drover/core/errs"
)

// chaosFlags say how much chaos.
type chaosFlags struct {
	output
	chaos.Options
	minutes float64
}

func newChaos(e *env) *cobra.Command {
	var c chaosFlags
	cmd := &cobra.Command{
		Use: "chaos", Short: "Kill daemons of a cluster of its own and settle accounts", Args: exactly(),
		Long: "chaos starts a cluster of its own on this machine, keeps jobs running on it, and kills its\n" +
			"scheduler, workers and runner plugins with kill -9, again and again. The jobs write down the truth\n" +
			"about themselves. At the end every result and every byte of output is compared with it.\n" +
			"It ends with 1 when a promise was broken, and then keeps the cluster's folder.",
		RunE: func(cmd *cobra.Command, _ []string) error { return c.run(cmd.Context(), e) },
	}
	f := cmd.Flags()
	f.Float64Var(&c.minutes, "minutes", 1, "how long daemons are killed")
	f.Uint64Var(&c.Seed, "seed", 0, "of the choices; 0 draws one")
	f.IntVar(&c.Kills, "kills", 0, "end after so many kills; 0 goes by the time")
	f.IntVar(&c.Workers, "workers", 3, "how many workers")
	f.IntVar(&c.Jobs, "jobs", 24, "how many jobs are under way at all times")
	c.register(cmd)
	return cmd
}

// check looks at the flags before anything is started.
func (c *chaosFlags) check(e *env) (*render.Printer, error) {
	const op = "start chaos"
	switch {
	case c.minutes <= 0:
		return nil, errs.Field(op, "--minutes", "MINUTES", "%v is not above 0", c.minutes)
	case c.Kills < 0:
		return nil, errs.Field(op, "--kills", "KILLS", "%d is negative", c.Kills)
	case c.Workers < 1:
		return nil, errs.Field(op, "--workers", "WORKERS", "%d is less than 1", c.Workers)
	case c.Jobs < 1:
		return nil, errs.Field(op, "--jobs", "JOBS", "%d is less than 1", c.Jobs)
	}
	c.For = time.Duration(c.minutes * float64(time.Minute))
	if c.Seed == 0 {
		c.Seed = rand.Uint64N(1 << 32)
	}
	return c.printer(e)
}

func (c *chaosFlags) run(ctx context.Context, e *env) (err error) {
	p, err := c.check(e)
	if err != nil {
		return err
	}
	ctx, stop := e.untilSignal(ctx)
	defer stop()
	dir, err := os.MkdirTemp("", "drover-chaos-")
	if err != nil {
		return fmt.Errorf("make a folder for the cluster: %w", err)
	}
	fmt.Fprintf(e.stderr, "Killing for %v: seed %d, %d workers, %d jobs at a time, in %s.\n", c.For, c.Seed, c.Workers, c.Jobs, dir)
	ledger, err := c.attack(ctx, e, dir)
	if err != nil {
		return fmt.Errorf("%w\nthe cluster's folder is kept: %s", err, dir)
	}
	if err := c.report(p, &ledger); err != nil {
		return err
	}
	if !ledger.Good() {
		return errs.E("keep every promise", errs.Internal, "CHAOS", fmt.Errorf("%d were broken", max(1, len(ledger.Broken)))).
			WithHint("the cluster's folder is kept, with the logs: %s", dir)
	}
	return os.RemoveAll(dir)
}

// attack runs the cluster for as long as it is attacked.
func (c *chaosFlags) attack(ctx context.Context, e *env, dir string) (ledger chaos.Ledger, err error) {
	scripts, err := chaos.Prepare(dir)
	if err != nil {
		return ledger, err
	}
	cluster, err := openDev(&devFlags{Options: dev.Options{Dir: filepath.Join(dir, "cluster"), Scratch: true, Workers: c.Workers, Scripts: scripts}})
	if err != nil {
		return ledger, err
	}
	defer func() { err = errors.Join(err, quietDown(context.WithoutCancel(ctx), cluster)) }()
	up, cancel := context.WithTimeout(ctx, devReady)
	defer cancel()
	running, err := cluster.Up(up, probeDev)
	if err != nil {
		return ledger, err
	}
	api, err := client.Dial(client.Target{Address: running.Address, Certs: running.Certs}, version)
	if err != nil {
		return ledger, err
	}
	defer api.Close()
	return chaos.Run(ctx, c.Options, cluster, api, dir, func(format string, args ...any) {
		fmt.Fprintf(e.stderr, "broken: "+format+"\n", args...)
	})
}

// report prints the ledger.
func (c *chaosFlags) report(p *render.Printer, l *chaos.Ledger) error {
	l.Seed = c.Seed
	rows := [][]string{
		{"killed", fmt.Sprintf("scheduler %d, workers %d, plugins %d, in %v", l.Killed["scheduler"], l.Killed["worker"], l.Killed["plugin"], l.Took)},
		{"under way", fmt.Sprintf("at least %d jobs at every kill", l.MinUnderWay)},
		{"submitted", fmt.Sprintf("%d = finished %d + failed %d + stopped %d + lost %d + live %d",
			l.Submitted, l.Finished, l.Failed, l.Stopped, l.Lost, l.Live)},
		{"bytes", fmt.Sprintf("%d read, %d missing, %d changed", l.BytesRead, l.BytesMissing, l.BytesChanged)},
		{"false codes", fmt.Sprint(l.FalseCodes)},
		{"double starts", fmt.Sprint(l.DoubleStarts)},
		{"processes left", fmt.Sprint(l.Processes)},
	}
	return render.Report(p, l, []string{"LEDGER", ""}, rows)
}
