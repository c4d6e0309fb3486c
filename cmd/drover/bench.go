package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/droverhq/drover/cmd/drover/internal/client"
	"github.com/droverhq/drover/cmd/drover/internal/dev"
	"github.com/droverhq/drover/cmd/drover/internal/measure"
	"github.com/droverhq/drover/cmd/drover/internal/render"
	"github.com/droverhq/drover/core/errs"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// benchFlags say how long and how hard to measure.
type benchFlags struct {
	output
	rounds   int
	slice    time.Duration
	inFlight int
}

func newBench(e *env) *cobra.Command {
	var b benchFlags
	cmd := &cobra.Command{
		Use: "bench", Short: "Measure this machine: drover beside the bare limit", Args: cobra.ArbitraryArgs,
		Long: "bench starts a cluster of its own on this machine, with mutual TLS, durable records and output\n" +
			"kept, and measures it in turns with the bare limit: fork, exec and wait of the same program.\n" +
			"The ratio of the two says more than either figure. Without a part it measures jobs.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return group(cmd, args)
			}
			return b.jobs(cmd.Context(), e)
		},
	}
	f := cmd.PersistentFlags()
	f.IntVar(&b.rounds, "rounds", 5, "how many rounds; figures are their medians")
	f.DurationVar(&b.slice, "slice", 2*time.Second, "how long each half of a round lasts")
	f.IntVar(&b.inFlight, "in-flight", 256, "how many jobs are under way at once")
	b.register(cmd)
	cmd.AddCommand(
		b.part("spawn", "Measure the bare limit alone", func(ctx context.Context) error { return b.spawn(ctx, e) }),
		b.part("jobs", "Measure short jobs per second", func(ctx context.Context) error { return b.jobs(ctx, e) }),
		newBenchMemory(e),
	)
	return cmd
}

func (b *benchFlags) part(name, short string, run func(context.Context) error) *cobra.Command {
	cmd := &cobra.Command{
		Use: name, Short: short, Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error { return run(cmd.Context()) },
	}
	b.register(cmd)
	return cmd
}

// check looks at the flags before anything is started.
func (b *benchFlags) check(e *env) (*render.Printer, error) {
	const op = "measure"
	switch {
	case b.rounds < 1:
		return nil, errs.Field(op, "--rounds", "ROUNDS", "%d is less than 1", b.rounds)
	case b.slice < 10*time.Millisecond:
		return nil, errs.Field(op, "--slice", "SLICE", "%v is less than 10ms", b.slice)
	case b.inFlight < 1:
		return nil, errs.Field(op, "--in-flight", "IN_FLIGHT", "%d is less than 1", b.inFlight)
	}
	return b.printer(e)
}

// limits is the result of "bench spawn": the name of a workload and its limit.
type limits struct {
	Limit map[string]float64 `json:"limit"`
}

// compared is the result of "bench jobs".
type compared struct {
	limits
	Results []measure.Result `json:"results"`
}

func (b *benchFlags) spawn(ctx context.Context, e *env) (err error) {
	p, err := b.check(e)
	if err != nil {
		return err
	}
	ctx, stop := e.untilSignal(ctx)
	defer stop()
	dir, err := os.MkdirTemp("", "drover-bench-")
	if err != nil {
		return fmt.Errorf("make a folder to measure in: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	workloads, err := measure.Workloads(dir, "")
	if err != nil {
		return err
	}
	out := limits{map[string]float64{}}
	var rows [][]string
	for _, w := range workloads {
		rate, err := measure.Limit(ctx, w, measure.Plan{Rounds: b.rounds, Slice: b.slice})
		if err != nil {
			return err
		}
		out.Limit[w.Name] = rate
		rows = append(rows, []string{w.Name, fmt.Sprintf("%.0f", rate)})
	}
	return render.Report(p, out, []string{"PROGRAM", "LIMIT/S"}, rows)
}

func (b *benchFlags) jobs(ctx context.Context, e *env) error {
	p, err := b.check(e)
	if err != nil {
		return err
	}
	ctx, stop := e.untilSignal(ctx)
	defer stop()
	return b.onCluster(ctx, func(c *client.Client, workloads []measure.Workload, processes map[string][]int) error {
		out := compared{limits: limits{map[string]float64{}}}
		var rows [][]string
		for _, w := range workloads {
			fmt.Fprintf(e.stderr, "Measuring %s: %d rounds of 2 x %v.\n", w.Name, b.rounds, b.slice)
			r, err := measure.Compare(ctx, benchJobs{c}, w, measure.Plan{
				Rounds: b.rounds, Slice: b.slice, InFlight: b.inFlight, Processes: processes,
			})
			if err != nil {
				return err
			}
			out.Limit[w.Name] = r.LimitPerS
			out.Results = append(out.Results, r)
			rows = append(rows, benchRow(r))
		}
		return render.Report(p, out,
			[]string{"PROGRAM", "JOBS/S", "LIMIT/S", "RATIO", "RANGE", "CPU us/JOB: SCHEDULER", "WORKER", "PLUGINS", "CLIENT"}, rows)
	})
}

func benchRow(r measure.Result) []string {
	row := []string{
		r.Job, fmt.Sprintf("%.0f", r.JobsPerS), fmt.Sprintf("%.0f", r.LimitPerS), fmt.Sprintf("%.2f", r.Ratio),
		fmt.Sprintf("%.2f-%.2f", r.RatioMin, r.RatioMax),
	}
	for _, process := range []string{"scheduler", "worker", "plugin", "client"} {
		row = append(row, fmt.Sprintf("%.0f", r.CPUMicrosJob[process]))
	}
	return row
}

// onCluster measures on a cluster that exists only for it.
func (b *benchFlags) onCluster(ctx context.Context, f func(*client.Client, []measure.Workload, map[string][]int) error) (err error) {
	dir, err := os.MkdirTemp("", "drover-bench-")
	if err != nil {
		return fmt.Errorf("make a folder to measure in: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	scripts := filepath.Join(dir, "scripts")
	if err := os.Mkdir(scripts, 0o755); err != nil {
		return fmt.Errorf("make a folder to measure in: %w", err)
	}
	workloads, err := measure.Workloads(scripts, "line.sh")
	if err != nil {
		return err
	}
	cluster, err := openDev(&devFlags{Options: dev.Options{Dir: filepath.Join(dir, "cluster"), Workers: 1, Scripts: scripts}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, quietDown(context.WithoutCancel(ctx), cluster)) }()
	up, cancel := context.WithTimeout(ctx, devReady)
	defer cancel()
	running, err := cluster.Up(up, probeDev(cluster))
	if err != nil {
		return err
	}
	c, err := client.Dial(client.Target{Address: running.Address, Certs: running.Certs}, version)
	if err != nil {
		return err
	}
	defer c.Close()
	if running, err = cluster.Status(); err != nil {
		return err
	}
	processes := map[string][]int{"client": {os.Getpid()}}
	for _, p := range running.Processes {
		processes[p.Role] = append(processes[p.Role], p.PID)
	}
	return f(c, workloads, processes)
}

func quietDown(ctx context.Context, c *dev.Cluster) error {
	ctx, cancel := context.WithTimeout(ctx, devReady)
	defer cancel()
	_, err := c.Down(ctx, probeDev(c))
	return err
}

// benchJobs runs jobs for a measurement as any client would.
type benchJobs struct{ c *client.Client }

// Run implements measure.Jobs.
func (r benchJobs) Run(ctx context.Context, q *droverv1.StartJobRequest) (*droverv1.Job, error) {
	q.RequestId = uuid.NewString()
	started, err := r.c.StartJob(ctx, q)
	if err != nil {
		return nil, r.c.Explain("start job", err)
	}
	got, err := r.c.GetJob(ctx, &droverv1.GetJobRequest{JobId: started.GetJobId(), Wait: true})
	if err != nil {
		return nil, r.c.Explain("wait for job", err)
	}
	return got.GetJob(), nil
}
