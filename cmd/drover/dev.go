package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/droverhq/drover/cmd/drover/internal/client"
	"github.com/droverhq/drover/cmd/drover/internal/dev"
	"github.com/droverhq/drover/cmd/drover/internal/render"
	"github.com/droverhq/drover/core/errs"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// devReady bounds how long a dev cluster may take to start or stop.
const devReady = 60 * time.Second

// devFlags choose the dev cluster.
type devFlags struct {
	dev.Options
	reset, detach bool
}

func newDev(e *env) *cobra.Command {
	var d devFlags
	cmd := &cobra.Command{
		Use: "dev", Short: "Run a whole cluster on this machine", Args: cobra.ArbitraryArgs,
		Long: "dev runs a scheduler and workers as processes of their own on this machine, with mutual TLS,\n" +
			"the three runners and the example scripts. Certificates are made on the way. Other drover commands\n" +
			"find the cluster by themselves. On a half-dead cluster it brings back what is missing.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return group(cmd, args)
			}
			return runDev(cmd.Context(), e, d)
		},
	}
	f := cmd.PersistentFlags()
	f.StringVar(&d.Dir, "data", "", "data `folder`; empty: your own dev cluster")
	local := cmd.Flags()
	local.IntVar(&d.Workers, "workers", 0, "how many workers; 0: as before, or 1")
	local.BoolVar(&d.Memory, "memory", false, "keep the scheduler's records in memory only")
	local.StringVar(&d.Scripts, "scripts", "", "script `folder`, remembered; empty: as before, or examples/scripts beside the binary")
	local.BoolVar(&d.reset, "reset", false, "forget everything first")
	local.BoolVar(&d.detach, "detach", false, "return when the cluster is ready and leave it running")
	cmd.AddCommand(newDevStop(e, &d), newDevStatus(e, &d))
	return cmd
}

func openDev(d *devFlags) (*dev.Cluster, error) {
	var err error
	if d.Dir == "" {
		if d.Dir, err = dev.DefaultDir(); err != nil {
			return nil, err
		}
	}
	if d.Dir, err = filepath.Abs(d.Dir); err != nil {
		return nil, fmt.Errorf("find the data folder: %w", err)
	}
	if d.Scripts != "" {
		if d.Scripts, err = filepath.Abs(d.Scripts); err != nil {
			return nil, fmt.Errorf("find the script folder: %w", err)
		}
	}
	if d.Binary, err = os.Executable(); err != nil {
		return nil, fmt.Errorf("find the drover binary: %w", err)
	}
	if d.Workers < 0 {
		return nil, errs.Field("start the dev cluster", "workers", "WORKERS", "%d is negative", d.Workers)
	}
	return dev.Open(d.Options)
}

func runDev(ctx context.Context, e *env, d devFlags) error {
	c, err := openDev(&d)
	if err != nil {
		return err
	}
	if d.reset {
		if err := c.Reset(); err != nil {
			return err
		}
	}
	if err := c.Validate(); err != nil {
		return err
	}
	ctx, stop := e.untilSignal(ctx)
	defer stop()
	start, cancel := context.WithTimeout(ctx, devReady)
	defer cancel()
	r, err := c.Up(start, probeDev)
	if err != nil && !d.detach {
		return errors.Join(err, quietDown(context.WithoutCancel(ctx), c))
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(e.stderr, "The dev cluster is up: scheduler at %s, %d worker(s), mutual TLS.\n", r.Address, c.Workers)
	fmt.Fprintf(e.stderr, "Scripts: %s\n", r.Scripts)
	if d.Dir != mustDefault() {
		fmt.Fprintf(e.stderr, "For other commands: export DROVER_ADDRESS=%s DROVER_CERTS=%s\n", r.Address, r.Certs)
	}
	if d.detach {
		return nil
	}
	fmt.Fprintln(e.stderr, "Try: drover run count.sh 3, drover workers, drover jobs. Ctrl-C stops the cluster.")
	<-ctx.Done()
	fmt.Fprintln(e.stderr, "Stopping the cluster.")
	return downDev(context.WithoutCancel(ctx), e, c)
}

// mustDefault is the user's own cluster, or "" when there is no home.
func mustDefault() string {
	dir, err := dev.DefaultDir()
	if err != nil {
		return ""
	}
	return dir
}

func downDev(ctx context.Context, e *env, c *dev.Cluster) error {
	ctx, cancel := context.WithTimeout(ctx, devReady)
	defer cancel()
	n, err := c.Down(ctx, probeDev)
	if err != nil {
		return err
	}
	if n == 0 {
		fmt.Fprintln(e.stderr, "No dev cluster was running.")
		return nil
	}
	fmt.Fprintf(e.stderr, "The dev cluster is down: %d processes ended.\n", n)
	return nil
}

// probeDev counts the workers that can take jobs, and that have told which
// scripts they have if there are any.
func probeDev(ctx context.Context, r dev.Running) (int, error) {
	scripts := uint32(0)
	if holdsFiles(r.Scripts) {
		scripts = 1
	}
	return readyWorkers(ctx, r.Address, r.Certs, scripts)
}

// holdsFiles tells whether there is a file in a folder or below it.
func holdsFiles(dir string) bool {
	return errors.Is(filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			return fs.ErrExist
		}
		return nil
	}), fs.ErrExist)
}

func readyWorkers(ctx context.Context, address, certs string, scripts uint32) (int, error) {
	t, err := client.Resolve(client.Flags{Address: address, Certs: certs}, func(string) string { return "" })
	if err != nil {
		return 0, err
	}
	c, err := client.Dial(t, version)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	list, err := c.ListWorkers(ctx, &droverv1.ListWorkersRequest{PageSize: 1000})
	if err != nil {
		return 0, err
	}
	ready := 0
	for _, w := range list.GetWorkers() {
		if w.GetState() == droverv1.WorkerState_WORKER_STATE_ONLINE && runnersReady(w) && w.GetScripts() >= scripts {
			ready++
		}
	}
	return ready, nil
}

func runnersReady(w *droverv1.Worker) bool {
	for _, r := range w.GetRunners() {
		if r.GetState() == "starting" {
			return false
		}
	}
	return len(w.GetRunners()) > 0
}

func newDevStop(e *env, d *devFlags) *cobra.Command {
	return &cobra.Command{
		Use: "stop", Short: "End the dev cluster and every process it started", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := openDev(d)
			if err != nil {
				return err
			}
			return downDev(cmd.Context(), e, c)
		},
	}
}

// devStatus is what "drover dev status -o json" prints.
type devStatus struct {
	Address   string       `json:"address"`
	Certs     string       `json:"certs"`
	Processes []devProcess `json:"processes"`
}

type devProcess struct {
	Role string `json:"role"`
	Name string `json:"name"`
	PID  int    `json:"pid"`
}

func newDevStatus(e *env, d *devFlags) *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use: "status", Short: "List the processes of the dev cluster", Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			c, err := openDev(d)
			if err != nil {
				return err
			}
			r, err := c.Status()
			if err != nil {
				return err
			}
			if len(r.Processes) == 0 && o.text() {
				return errs.E("show the dev cluster", errs.NotFound, "NOT_RUNNING", errors.New("it does not run")).
					WithHint(`start it with "drover dev"`)
			}
			s := devStatus{Address: r.Address, Certs: r.Certs, Processes: []devProcess{}}
			for _, p := range r.Processes {
				s.Processes = append(s.Processes, devProcess{p.Role, p.Name, p.PID})
			}
			p, err := o.printer(e)
			if err != nil {
				return err
			}
			return printDevStatus(p, s)
		},
	}
	o.register(cmd)
	return cmd
}

func printDevStatus(p *render.Printer, s devStatus) error {
	return render.One(p, s, func() []render.Field {
		fields := []render.Field{{Name: "address", Value: s.Address}, {Name: "certs", Value: s.Certs}}
		for _, q := range s.Processes {
			fields = append(fields, render.Field{Name: q.Role, Value: fmt.Sprintf("%s (pid %d)", q.Name, q.PID)})
		}
		return fields
	})
}

// Cells implements render.Row.
func (s devStatus) Cells(*render.Printer) []string { return []string{s.Address} }

// Key implements render.Row.
func (s devStatus) Key() string { return s.Address }

// Label implements render.Row.
func (s devStatus) Label() string { return s.Address }
