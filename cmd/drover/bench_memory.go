package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/droverhq/drover/cmd/drover/internal/client"
	"github.com/droverhq/drover/cmd/drover/internal/dev"
	"github.com/droverhq/drover/cmd/drover/internal/measure"
	"github.com/droverhq/drover/core/errs"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// memoryFlags say how much memory to measure.
type memoryFlags struct {
	output
	jobs int
}

func newBenchMemory(e *env) *cobra.Command {
	var m memoryFlags
	cmd := &cobra.Command{
		Use: "memory", Short: "Measure what an idle cluster and each running job hold in memory", Args: exactly(),
		Long: "memory starts a cluster of its own (a scheduler, a worker, three plugins), waits until its memory has\n" +
			"come to rest and adds up the proportional set sizes. Then it runs jobs that only sleep, and divides\n" +
			"what the same processes have grown by. The jobs' own processes are not counted.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return part{m.check, m.measure}.run(cmd.Context(), e, &m.output)
		},
	}
	cmd.Flags().IntVar(&m.jobs, "jobs", 1000, "how many jobs run at once")
	m.register(cmd)
	return cmd
}

func (m *memoryFlags) check() error {
	if m.jobs < 1 {
		return errs.Field("measure", "--jobs", "JOBS", "%d is less than 1", m.jobs)
	}
	return nil
}

func (m *memoryFlags) measure(ctx context.Context, e *env) (f figures, err error) {
	dir, err := os.MkdirTemp("", "drover-bench-")
	if err != nil {
		return f, fmt.Errorf("make a folder to measure in: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	scripts := filepath.Join(dir, "scripts")
	if err := os.Mkdir(scripts, 0o755); err != nil {
		return f, fmt.Errorf("make a folder to measure in: %w", err)
	}
	cluster, err := openDev(&devFlags{Options: dev.Options{Dir: filepath.Join(dir, "cluster"), Scratch: true, Workers: 1, Scripts: scripts, Slots: m.jobs}})
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, quietDown(context.WithoutCancel(ctx), cluster)) }()
	result, err := m.weigh(ctx, e, cluster)
	if err != nil {
		return f, err
	}
	return table(result, []string{"PROCESS", "IDLE KB", "OF THAT OWN", "RUNNING KB", "OF THAT OWN"}, memoryRows(result)), nil
}

func (m *memoryFlags) weigh(ctx context.Context, e *env, cluster *dev.Cluster) (r measure.MemoryResult, err error) {
	up, cancel := context.WithTimeout(ctx, devReady)
	defer cancel()
	if _, err := cluster.Up(up, probeDev); err != nil {
		return r, err
	}
	running, err := cluster.Status()
	if err != nil {
		return r, err
	}
	var processes []measure.Process
	for _, p := range running.Processes {
		processes = append(processes, measure.Process{Role: p.Role, Name: p.Name, PID: p.PID})
	}
	fmt.Fprintln(e.stderr, "Measuring the idle cluster.")
	if r.Idle, err = measure.Settled(ctx, processes); err != nil {
		return r, err
	}
	c, err := client.Dial(client.Target{Address: running.Address, Certs: running.Certs}, version)
	if err != nil {
		return r, err
	}
	defer c.Close()
	fmt.Fprintf(e.stderr, "Measuring %d running jobs.\n", m.jobs)
	if err := sleepers(ctx, c, m.jobs); err != nil {
		return r, err
	}
	if r.Running, err = measure.Settled(ctx, processes); err != nil {
		return r, err
	}
	r.Jobs, r.PSSKBPerJob = m.jobs, measure.PerJob(r.Idle, r.Running, m.jobs)
	return r, nil
}

// submitters is how many calls are under way at once.
const submitters = 16

// sleepers starts jobs that sleep, and returns when all of them run.
func sleepers(ctx context.Context, c *client.Client, n int) error {
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		return fmt.Errorf("find sleep: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wait sync.WaitGroup
	for i := range submitters {
		wait.Go(func() {
			for job := i; job < n && ctx.Err() == nil; job += submitters {
				_, err := c.StartJob(ctx, &droverv1.StartJobRequest{Command: sleep, Args: []string{"3600"}, RequestId: uuid.NewString()})
				if err != nil {
					cancel(c.Explain("start job", err))
				}
			}
		})
	}
	wait.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return awaitRunning(ctx, c, n)
}

// awaitRunning asks until so many jobs run.
func awaitRunning(ctx context.Context, c *client.Client, n int) error {
	ctx, cancel := context.WithTimeout(ctx, devReady)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		running, err := countRunning(ctx, c)
		if err != nil || running >= n {
			return err
		}
		select {
		case <-ctx.Done():
			return errs.E("measure memory", errs.Timeout, "NOT_RUNNING", fmt.Errorf("%d of %d jobs run: %w", running, n, ctx.Err()))
		case <-tick.C:
		}
	}
}

func countRunning(ctx context.Context, c *client.Client) (n int, err error) {
	q := &droverv1.ListJobsRequest{PageSize: 1000, States: []droverv1.JobState{droverv1.JobState_JOB_STATE_RUNNING}}
	for {
		page, err := c.ListJobs(ctx, q)
		if err != nil {
			return 0, c.Explain("list jobs", err)
		}
		n += len(page.GetJobs())
		if q.PageToken = page.GetNextPageToken(); q.PageToken == "" {
			return n, nil
		}
	}
}

func memoryRows(r measure.MemoryResult) [][]string {
	kb := func(n int64) string { return fmt.Sprint(n) }
	var rows [][]string
	for i, p := range r.Idle.Processes {
		q := r.Running.Processes[i]
		rows = append(rows, []string{p.Role + " " + p.Name, kb(p.PSSKB), kb(p.AnonKB), kb(q.PSSKB), kb(q.AnonKB)})
	}
	return append(rows,
		[]string{"together", kb(r.Idle.PSSKB), "", kb(r.Running.PSSKB), ""},
		[]string{fmt.Sprintf("per job (%d)", r.Jobs), "", "", fmt.Sprintf("%.1f", r.PSSKBPerJob), ""})
}
