package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/droverhq/drover/cmd/drover/internal/client"
	"github.com/droverhq/drover/cmd/drover/internal/dev"
	"github.com/droverhq/drover/cmd/drover/internal/measure"
	"github.com/droverhq/drover/cmd/drover/internal/peers"
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
	peers    []string
	unary    bool
}

func newBench(e *env) *cobra.Command {
	var b benchFlags
	cmd := &cobra.Command{
		Use: "bench", Short: "Measure this machine: drover beside the bare limit", Args: cobra.ArbitraryArgs,
		Long: "bench starts a cluster of its own on this machine, with mutual TLS, durable records and output\n" +
			"kept, and measures it in turns with the bare limit: fork, exec and wait of the same program.\n" +
			"The ratio of the two says more than either figure. Without a part it measures jobs.\n\n" +
			"--peer measures other programs in the same rounds: " + strings.Join(peers.Names(), ", ") + ",\n" +
			"or auto for those that are installed. What they need they are given in a temporary folder.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return group(cmd, args)
			}
			return b.part(b.jobs).run(cmd.Context(), e, &b.output)
		},
	}
	f := cmd.PersistentFlags()
	f.IntVar(&b.rounds, "rounds", 5, "how many rounds; figures are their medians")
	f.DurationVar(&b.slice, "slice", 2*time.Second, "how long each half of a round lasts")
	f.IntVar(&b.inFlight, "in-flight", 256, "how many jobs are under way at once")
	f.StringSliceVar(&b.peers, "peer", nil, "other programs to compare with: "+strings.Join(peers.Names(), ", ")+" or auto")
	completeFlag(cmd, "peer", fixed(append(peers.Names(), peerAuto)...))
	f.BoolVar(&b.unary, "unary", false, "submit each job and wait for it with calls of its own, instead of as \"drover run --array\" does")
	b.register(cmd)
	cmd.AddCommand(
		newBenchAll(e, &b),
		b.command(e, "spawn", "Measure the bare limit alone", b.spawn),
		b.command(e, "jobs", "Measure short jobs per second", b.jobs),
		newBenchStream(e, &b), newBenchMemory(e),
		b.command(e, "latency", "Measure how long one job, one command line and one line of output take", b.latency),
		newBenchScale(e), newBenchCrowd(e),
	)
	return cmd
}

// part is one of the measurements.
type part struct {
	check   func() error // looks at the flags before anything is started
	measure func(context.Context, *env) (figures, error)
}

// figures are what a part has measured: a document for programs and tables for
// people.
type figures struct {
	document any
	sheets   []render.Sheet
}

func table(document any, header []string, rows [][]string) figures {
	return figures{document, []render.Sheet{{Header: header, Rows: rows}}}
}

func (p part) run(ctx context.Context, e *env, o *output) error {
	printer, err := o.printer(e)
	if err != nil {
		return err
	}
	if err := p.check(); err != nil {
		return err
	}
	ctx, stop := e.untilSignal(ctx)
	defer stop()
	got, err := p.measure(ctx, e)
	if got.document != nil { // also of a measurement that was not completed
		err = errors.Join(err, render.Sheets(printer, got.document, got.sheets...))
	}
	return err
}

func (b *benchFlags) part(measure func(context.Context, *env) (figures, error)) part {
	return part{b.check, measure}
}

func (b *benchFlags) command(e *env, name, short string, measure func(context.Context, *env) (figures, error)) *cobra.Command {
	cmd := &cobra.Command{
		Use: name, Short: short, Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error { return b.part(measure).run(cmd.Context(), e, &b.output) },
	}
	b.register(cmd)
	return cmd
}

func (b *benchFlags) check() error {
	const op = "measure"
	switch {
	case b.rounds < 1:
		return errs.Field(op, "--rounds", "ROUNDS", "%d is less than 1", b.rounds)
	case b.slice < 10*time.Millisecond:
		return errs.Field(op, "--slice", "SLICE", "%v is less than 10ms", b.slice)
	case b.inFlight < 1:
		return errs.Field(op, "--in-flight", "IN_FLIGHT", "%d is less than 1", b.inFlight)
	}
	return b.choosePeers()
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

func (b *benchFlags) spawn(ctx context.Context, _ *env) (f figures, err error) {
	dir, err := os.MkdirTemp("", "drover-bench-")
	if err != nil {
		return f, fmt.Errorf("make a folder to measure in: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	workloads, err := measure.Workloads(dir, "")
	if err != nil {
		return f, err
	}
	out := limits{map[string]float64{}}
	var rows [][]string
	for _, w := range workloads {
		rate, err := measure.Limit(ctx, w, measure.Plan{Rounds: b.rounds, Slice: b.slice})
		if err != nil {
			return f, err
		}
		out.Limit[w.Name] = rate
		rows = append(rows, []string{w.Name, fmt.Sprintf("%.0f", rate)})
	}
	return table(out, []string{"PROGRAM", "LIMIT/S"}, rows), nil
}

func (b *benchFlags) jobs(ctx context.Context, e *env) (f figures, err error) {
	err = b.onCluster(ctx, func(t *testbed) (err error) {
		others, err := b.startPeers(ctx, t.dir)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, closePeers(others)) }()
		out := compared{limits: limits{map[string]float64{}}}
		var rows [][]string
		for _, w := range t.workloads {
			fmt.Fprintf(e.stderr, "Measuring %s: %d rounds of %d x %v.\n", w.Name, b.rounds, 2+len(others), b.slice)
			plan := b.plan(t)
			for _, o := range others {
				plan.Peers = append(plan.Peers, o)
			}
			r, err := measure.Compare(ctx, b.benchClient(t.client), w, plan)
			if err != nil {
				return err
			}
			out.Limit[w.Name] = r.LimitPerS
			out.Results = append(out.Results, r)
			rows = append(rows, benchRows(r)...)
		}
		f = table(out,
			[]string{"PROGRAM", "BY", "JOBS/S", "LIMIT/S", "RATIO", "RANGE", "CPU us/JOB: SCHEDULER", "WORKER", "PLUGINS", "CLIENT"}, rows)
		return nil
	})
	return f, err
}

func (b *benchFlags) plan(t *testbed) measure.Plan {
	return measure.Plan{Rounds: b.rounds, Slice: b.slice, InFlight: b.inFlight, Processes: t.processes}
}

func benchRows(r measure.Result) [][]string {
	row := []string{
		r.Job, "drover", fmt.Sprintf("%.0f", r.JobsPerS), fmt.Sprintf("%.0f", r.LimitPerS), fmt.Sprintf("%.2f", r.Ratio),
		fmt.Sprintf("%.2f-%.2f", r.RatioMin, r.RatioMax),
	}
	for _, process := range []string{"scheduler", "worker", "plugin", "client"} {
		row = append(row, fmt.Sprintf("%.0f", r.CPUMicrosJob[process]))
	}
	rows := [][]string{row}
	for _, p := range r.Peers {
		rows = append(rows, []string{r.Job, p.Peer, fmt.Sprintf("%.0f", p.JobsPerS), fmt.Sprintf("%.0f", r.LimitPerS), fmt.Sprintf("%.2f", p.Ratio)})
	}
	return rows
}

// testbed is a cluster that exists only to be measured.
type testbed struct {
	client    *client.Client
	workloads []measure.Workload
	processes map[string][]int // role -> pids
	dir       string           // for files of the measurement
	scripts   string           // the cluster's script folder
	address   string
	certs     string
}

// command is a run of drover as a whole process.
func (t *testbed) command(ctx context.Context, args ...string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find drover: %w", err)
	}
	return exec.CommandContext(ctx, self, append([]string{"--address", t.address, "--certs", t.certs}, args...)...), nil
}

// onCluster measures on a cluster that exists only for it.
func (b *benchFlags) onCluster(ctx context.Context, f func(*testbed) error) (err error) {
	dir, err := os.MkdirTemp("", "drover-bench-")
	if err != nil {
		return fmt.Errorf("make a folder to measure in: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	t := &testbed{dir: dir, scripts: filepath.Join(dir, "scripts")}
	if err := os.Mkdir(t.scripts, 0o755); err != nil {
		return fmt.Errorf("make a folder to measure in: %w", err)
	}
	if t.workloads, err = measure.Workloads(t.scripts, "line.sh"); err != nil {
		return err
	}
	cluster, err := openDev(&devFlags{Options: dev.Options{Dir: filepath.Join(dir, "cluster"), Scratch: true, Workers: 1, Scripts: t.scripts}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, quietDown(context.WithoutCancel(ctx), cluster)) }()
	up, cancel := context.WithTimeout(ctx, devReady)
	defer cancel()
	running, err := cluster.Up(up, probeDev)
	if err != nil {
		return err
	}
	t.address, t.certs = running.Address, running.Certs
	if t.client, err = client.Dial(client.Target{Address: t.address, Certs: t.certs}, version); err != nil {
		return err
	}
	defer t.client.Close()
	if running, err = cluster.Status(); err != nil {
		return err
	}
	t.processes = map[string][]int{"client": {os.Getpid()}}
	for _, p := range running.Processes {
		t.processes[p.Role] = append(t.processes[p.Role], p.PID)
	}
	return f(t)
}

func quietDown(ctx context.Context, c *dev.Cluster) error {
	ctx, cancel := context.WithTimeout(ctx, devReady)
	defer cancel()
	_, err := c.Down(ctx, probeDev)
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
