package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/cmd/drover/internal/client"
	"github.com/droverhq/drover/cmd/drover/internal/crowd"
	"github.com/droverhq/drover/cmd/drover/internal/measure"
	"github.com/droverhq/drover/cmd/drover/internal/plot"
	"github.com/droverhq/drover/cmd/drover/internal/render"
	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/scheduler"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// scaleFlags say how large.
type scaleFlags struct {
	output
	workers []int
	lease   time.Duration
	plan    measure.ScalePlan
	svg     string
}

func newBenchScale(e *env) *cobra.Command {
	var s scaleFlags
	cmd := &cobra.Command{
		Use: "scale", Short: "Measure one scheduler with many simulated workers", Args: exactly(),
		Long: "scale starts a scheduler and simulated workers, with certificates, registrations, heartbeats and\n" +
			"sessions of their own but nothing to run. They join, stay silent, get a job each with many more\n" +
			"queued behind, lose their scheduler by kill -9, and then run everything.",
		Example: "  drover bench scale --workers 10,100,1000,9900 --queued 100000 --svg scale.svg",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return part{s.check, s.measure}.run(cmd.Context(), e, &s.output)
		},
	}
	f := cmd.Flags()
	f.IntSliceVar(&s.workers, "workers", []int{10, 100, 1000}, "how many workers; several numbers make several measurements")
	f.DurationVar(&s.lease, "lease", scheduler.DefaultLease, "lease of the workers, as of \"drover scheduler\"")
	f.DurationVar(&s.plan.Steady, "steady", 10*time.Second, "how long the silent cluster is watched")
	f.IntVar(&s.plan.Queued, "queued", 10_000, "how many jobs wait while submits are timed")
	f.IntVar(&s.plan.More, "more", 0, "how many jobs run through after the queue has emptied")
	f.IntVar(&s.plan.Samples, "samples", 500, "how many submits are timed")
	f.StringVar(&s.svg, "svg", "", "also draw the growth into this `file`")
	s.register(cmd)
	return cmd
}

func (s *scaleFlags) check() error {
	const op = "measure scale"
	switch {
	case len(s.workers) == 0 || slices.Min(s.workers) < 1:
		return errs.Field(op, "--workers", "WORKERS", "%v is not one number above 0 or more", s.workers)
	case s.plan.Queued < 0 || s.plan.More < 0 || s.plan.Samples < 1:
		return errs.Field(op, "--queued, --more, --samples", "JOBS", "a number is too small")
	}
	if err := scheduler.CheckLease(op, s.lease, scheduler.DefaultHeartbeat); err != nil {
		return err
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("read the limit of open files: %w", err)
	}
	// The scheduler has two connections to each worker.
	if most := slices.Max(s.workers); uint64(2*most+spareFiles) > limit.Max {
		return errs.Field(op, "--workers", "OPEN_FILES", "%d workers need %d open files in the scheduler, the limit here is %d", most, 2*most+spareFiles, limit.Max).
			WithHint("raise it with ulimit -Hn, or measure at most %d workers", (limit.Max-spareFiles)/2)
	}
	return nil
}

// spareFiles are what a daemon has open beside its connections.
const spareFiles = 200

// measure takes one size after the other. When one fails, the figures of those
// before it are kept.
func (s *scaleFlags) measure(ctx context.Context, e *env) (f figures, err error) {
	s.plan.Clients = 64
	s.plan.Log = func(format string, args ...any) { fmt.Fprintf(e.stderr, format+"\n", args...) }
	out := struct {
		Results []measure.Scale `json:"results"`
	}{}
	var rows [][]string
	for _, n := range s.workers {
		plan := s.plan
		plan.Workers = n
		var got measure.Scale
		if got, err = scaleOnce(ctx, plan, s.lease); err != nil {
			break
		}
		out.Results = append(out.Results, got)
		rows = append(rows, scaleRow(&got))
	}
	if len(rows) == 0 {
		return f, err
	}
	f = table(out, []string{
		"WORKERS", "JOIN s", "CORES", "PSS", "us/BEAT", "OFFLINE", "QUEUED", "SUBMIT ms: P50", "P99", "IDLE P99",
		"LIST ms", "WATCH ms", "RECONNECT s", "us/JOIN", "us/RETURN", "JOBS", "JOBS/S", "us/JOB", "WRONG",
	}, rows)
	if s.svg == "" {
		return f, err
	}
	if errWrite := os.WriteFile(s.svg, plot.Growth(scaleCurves(out.Results)), 0o644); errWrite != nil { //nolint:gosec // a picture for everybody
		err = errors.Join(err, fmt.Errorf("write the plot: %w", errWrite))
	}
	return f, err
}

func scaleRow(r *measure.Scale) []string {
	return []string{
		fmt.Sprint(r.Workers), fmt.Sprintf("%.1f", r.JoinS), fmt.Sprintf("%.2f", r.Cores), render.Size(r.PSS),
		fmt.Sprintf("%.0f", r.BeatCPU), fmt.Sprint(r.Offline), fmt.Sprint(r.Queued),
		fmt.Sprintf("%.2f", r.SubmitQueued.P50/1000), fmt.Sprintf("%.2f", r.SubmitQueued.P99/1000), fmt.Sprintf("%.2f", r.SubmitIdle.P99/1000),
		fmt.Sprintf("%.0f", r.ListWorkersMS), fmt.Sprintf("%.0f", r.WatchMS), fmt.Sprintf("%.1f", r.ReconnectS),
		fmt.Sprintf("%.0f", r.JoinCPU), fmt.Sprintf("%.0f", r.ReturnCPU),
		fmt.Sprint(r.Finished), fmt.Sprintf("%.0f", r.JobsPerS), fmt.Sprintf("%.0f", r.JobCPU), fmt.Sprint(r.Wrong),
	}
}

// scaleCurves are what grows with the workers, and what one of them and one job
// cost.
func scaleCurves(all []measure.Scale) []plot.Curve {
	curves := []plot.Curve{
		{Title: "scheduler, silent: cores busy"},
		{Title: "scheduler, silent: memory, MiB"},
		{Title: "per worker: memory of the scheduler, KiB"},
		{Title: "per heartbeat: scheduler's CPU time, us"},
		{Title: "per job: scheduler's CPU time, us"},
		{Title: "jobs per second, all workers"},
		{Title: "submit with a full queue: p99, ms"},
		{Title: "all workers back after kill -9, s"},
	}
	for _, r := range all {
		for i, y := range []float64{
			r.Cores, float64(r.PSS) / (1 << 20), float64(r.PSS) / (1 << 10) / float64(r.Workers), r.BeatCPU,
			r.JobCPU, r.JobsPerS, r.SubmitQueued.P99 / 1000, r.ReconnectS,
		} {
			curves[i].Points = append(curves[i].Points, plot.Point{X: float64(r.Workers), Y: y})
		}
	}
	return curves
}

func scaleOnce(ctx context.Context, plan measure.ScalePlan, lease time.Duration) (got measure.Scale, err error) {
	dir, err := os.MkdirTemp("", "drover-bench-")
	if err != nil {
		return got, fmt.Errorf("make a folder to measure in: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	f := &farm{dir: dir, lease: lease}
	defer f.close()
	if err := f.open(ctx, plan.Workers); err != nil {
		return got, err
	}
	got, err = measure.MeasureScale(ctx, f, plan)
	if err != nil {
		err = fmt.Errorf("%w; the scheduler's log ends with: %s", err, f.lastWords())
	}
	return got, err
}

// farm is a scheduler process and crowds of simulated workers, each a process.
type farm struct {
	dir       string
	lease     time.Duration
	address   string
	scheduler *exec.Cmd
	client    *client.Client
	crowds    []*crowdProcess
}

// crowdSize is how many workers one process simulates: each has three files
// open, and processes may have no more than 20,000 on many machines.
const crowdSize = 5000

func (f *farm) path(name string) string { return filepath.Join(f.dir, name) }

func (f *farm) open(ctx context.Context, workers int) error {
	ca, err := certs.Init(f.path("ca"), "bench")
	if err != nil {
		return err
	}
	for name, role := range map[string]certs.Role{"scheduler": certs.RoleScheduler, "admin": certs.RoleAdmin} {
		if err := ca.IssuePair(f.path(name), certs.IssueRequest{Name: name, Role: role, Hosts: []string{"127.0.0.1"}}); err != nil {
			return err
		}
	}
	if err := f.start(ctx, "127.0.0.1:0"); err != nil {
		return err
	}
	if f.client, err = client.Dial(client.Target{Address: f.address, Certs: f.path("admin")}, version); err != nil {
		return err
	}
	for first := 0; first < workers; first += crowdSize {
		c, err := startCrowd(f, first, min(crowdSize, workers-first))
		if err != nil {
			return err
		}
		f.crowds = append(f.crowds, c)
	}
	return nil
}

// lastWords are the end of the scheduler's log.
func (f *farm) lastWords() string {
	const most = 1000
	text, err := os.ReadFile(f.path("scheduler.log"))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(text[max(0, len(text)-most):]))
}

// start starts the scheduler and waits until it has told where it listens.
func (f *farm) start(ctx context.Context, listen string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find drover: %w", err)
	}
	addressFile := filepath.Join(f.path("data"), "address")
	if err := os.Remove(addressFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the old address: %w", err)
	}
	log, err := os.OpenFile(f.path("scheduler.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("make a log: %w", err)
	}
	defer log.Close()
	f.scheduler = exec.Command(self, "scheduler", "--listen", listen, "--data", f.path("data"), "--certs", f.path("scheduler"),
		"--lease", f.lease.String(), "--log-level", "warn")
	f.scheduler.Stdout, f.scheduler.Stderr = log, log
	f.scheduler.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := f.scheduler.Start(); err != nil {
		return fmt.Errorf("start the scheduler: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, devReady)
	defer cancel()
	for {
		if data, err := os.ReadFile(addressFile); err == nil && len(data) > 0 {
			f.address = strings.TrimSpace(string(data))
			return nil
		}
		select {
		case <-ctx.Done():
			text, _ := os.ReadFile(f.path("scheduler.log"))
			return fmt.Errorf("wait for the scheduler: %w: %s", ctx.Err(), text)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Client implements measure.Farm.
func (f *farm) Client() droverv1.SchedulerServiceClient { return f.client }

// Scheduler implements measure.Farm.
func (f *farm) Scheduler() int { return f.scheduler.Process.Pid }

// Restart implements measure.Farm.
func (f *farm) Restart(ctx context.Context) error {
	if err := f.scheduler.Process.Kill(); err != nil {
		return fmt.Errorf("kill the scheduler: %w", err)
	}
	_ = f.scheduler.Wait() // it was killed
	return f.start(ctx, f.address)
}

// Crowd implements measure.Farm.
func (f *farm) Crowd() (crowd.Counts, error) {
	var sum crowd.Counts
	for _, c := range f.crowds {
		n, err := c.latest()
		if err != nil {
			return sum, err
		}
		sum.Ready += n.Ready
		sum.Sessions, sum.Opened, sum.Beats = sum.Sessions+n.Sessions, sum.Opened+n.Opened, sum.Beats+n.Beats
		sum.Missed, sum.Started, sum.Acked = sum.Missed+n.Missed, sum.Started+n.Started, sum.Acked+n.Acked
	}
	return sum, nil
}

// Begin implements measure.Farm.
func (f *farm) Begin() error { return f.tell(crowdBegin) }

// Release implements measure.Farm.
func (f *farm) Release() error { return f.tell(crowdRelease) }

func (f *farm) tell(word string) error {
	for _, c := range f.crowds {
		if _, err := io.WriteString(c.stdin, word+"\n"); err != nil {
			return fmt.Errorf("tell the crowd: %w", err)
		}
	}
	return nil
}

func (f *farm) close() {
	for _, c := range f.crowds {
		c.close()
	}
	if f.client != nil {
		f.client.Close()
	}
	if f.scheduler != nil && f.scheduler.Process != nil {
		_ = f.scheduler.Process.Kill()
		_ = f.scheduler.Wait() // it was killed
	}
}

// crowdProcess is "drover bench crowd" as a child.
type crowdProcess struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	done  chan struct{}

	mu     sync.Mutex // guards the fields below
	counts crowd.Counts
	ended  bool
}

func startCrowd(f *farm, first, count int) (*crowdProcess, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find drover: %w", err)
	}
	c := &crowdProcess{done: make(chan struct{})}
	c.cmd = exec.Command(self, "bench", "crowd", "--scheduler", f.address, "--ca", f.path("ca"),
		"--first", fmt.Sprint(first), "--count", fmt.Sprint(count))
	// The machines of real workers have processors of their own. Those here are the
	// scheduler's as well: the memory of a simulation may cost more than its time.
	c.cmd.Env = append(os.Environ(), "GOGC=400")
	c.cmd.Stderr = os.Stderr
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start a crowd: %w", err)
	}
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start a crowd: %w", err)
	}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a crowd: %w", err)
	}
	go c.listen(stdout)
	return c, nil
}

// listen keeps what the crowd says last.
func (c *crowdProcess) listen(from io.Reader) {
	defer close(c.done)
	d := json.NewDecoder(bufio.NewReader(from))
	for {
		var n crowd.Counts
		err := d.Decode(&n)
		c.mu.Lock()
		if err == nil {
			c.counts = n
		} else {
			c.ended = true
		}
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (c *crowdProcess) latest() (crowd.Counts, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return crowd.Counts{}, errors.New("the simulated workers have ended")
	}
	return c.counts, nil
}

func (c *crowdProcess) close() {
	_ = c.stdin.Close() // it ends then
	<-c.done
	_ = c.cmd.Wait()
}

// What a crowd is told, in lines.
const (
	crowdBegin   = "begin"   // to look for the scheduler
	crowdRelease = "release" // held jobs end
)

// newBenchCrowd is the process of simulated workers. People have no use for it.
func newBenchCrowd(e *env) *cobra.Command {
	var config crowd.Config
	cmd := &cobra.Command{
		Use: "crowd", Short: "Be a crowd of simulated workers", Args: exactly(), Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error { return runCrowd(cmd.Context(), e, config) },
	}
	f := cmd.Flags()
	f.StringVar(&config.Scheduler, "scheduler", "", "address of the scheduler")
	f.StringVar(&config.CA, "ca", "", "`folder` of the CA")
	f.IntVar(&config.First, "first", 0, "number of the first worker")
	f.IntVar(&config.Count, "count", 1, "how many workers")
	f.IntVar(&config.Slots, "slots", 1, "of each worker")
	return cmd
}

// runCrowd lives until standard input ends, and says ten times a second how
// the crowd is.
func runCrowd(ctx context.Context, e *env, config crowd.Config) error {
	c, err := crowd.New(config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // ends with standard input
		defer cancel()
		for lines := bufio.NewScanner(e.stdin); lines.Scan(); {
			switch lines.Text() {
			case crowdBegin:
				c.Begin()
			case crowdRelease:
				c.Release()
			}
		}
	}()
	var wait sync.WaitGroup
	defer wait.Wait()
	wait.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for out := json.NewEncoder(e.stdout); ctx.Err() == nil; {
			if out.Encode(c.Counts()) != nil {
				cancel()
			}
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
		}
	})
	return c.Run(ctx)
}
