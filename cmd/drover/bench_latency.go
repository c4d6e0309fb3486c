package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"github.com/droverhq/drover/cmd/drover/internal/client"
	"github.com/droverhq/drover/cmd/drover/internal/follow"
	"github.com/droverhq/drover/cmd/drover/internal/measure"
	"github.com/droverhq/drover/cmd/drover/internal/peers"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// Lines of one job of the line measurement: slow enough that each is alone on
// its way.
const (
	lineCount = 100
	lineEvery = 5 * time.Millisecond
)

// latencies is the result of "bench latency".
type latencies struct {
	Results []measure.Latency `json:"results"`
}

func (b *benchFlags) latency(ctx context.Context, e *env) (f figures, err error) {
	err = b.besideSSH(ctx, e, func(t *testbed, ssh *peers.SSH) (err error) {
		runs, err := latencyRuns(t, ssh)
		if err != nil {
			return err
		}
		out := latencies{}
		var rows [][]string
		for _, r := range runs {
			fmt.Fprintf(e.stderr, "Measuring %s of %s beside %s: %d rounds of %v.\n", r.What, r.Job, r.Against, b.rounds, 2*b.slice)
			l, err := measure.InTurns(ctx, r.Latency, r.drover, r.other, b.plan(t))
			if err != nil {
				return err
			}
			out.Results = append(out.Results, l)
			rows = append(rows, latencyRow(l))
		}
		f = table(out,
			[]string{"WHAT", "JOB", "ms: P50", "P95", "P99", "AGAINST", "P50", "P95", "P99", "RATIO P50", "RANGE", "RATIO P95", "RANGE"}, rows)
		return nil
	})
	return f, err
}

func latencyRow(l measure.Latency) []string {
	row := []string{l.What, l.Job}
	row = append(row, quantileCells(l.Drover)...)
	row = append(append(row, l.Against), quantileCells(l.Other)...)
	for _, s := range []measure.Spread{l.RatioP50, l.RatioP95} {
		row = append(row, fmt.Sprintf("%.2f", s.Median), fmt.Sprintf("%.2f-%.2f", s.Min, s.Max))
	}
	return row
}

func quantileCells(q measure.Quantiles) []string {
	var out []string
	for _, micros := range []float64{q.P50, q.P95, q.P99} {
		out = append(out, fmt.Sprintf("%.2f", micros/1000))
	}
	return out
}

// latencyRun is one row before it is measured.
type latencyRun struct {
	measure.Latency
	drover, other measure.Sampler
}

func latencyRuns(t *testbed, ssh *peers.SSH) ([]latencyRun, error) {
	var runs []latencyRun
	for _, w := range t.workloads {
		runs = append(runs, latencyRun{
			measure.Latency{What: "one_job", Job: w.Name, Against: "fork_wait"},
			measure.Timed(func(ctx context.Context) error { return t.oneJob(ctx, w) }),
			measure.Timed(func(context.Context) error { return w.Bare.Once() }),
		})
	}
	lines, err := t.lineRuns(ssh)
	if ssh == nil || err != nil {
		return append(runs, lines...), err
	}
	for _, w := range t.workloads {
		runs = append(runs, latencyRun{
			measure.Latency{What: "process", Job: w.Name, Against: "ssh"},
			measure.Timed(func(ctx context.Context) error {
				return t.process(ctx, "run", "--command", w.Command, w.Path)
			}),
			measure.Timed(func(ctx context.Context) error { return quietRun(ssh.Command(ctx, w.Bare.Command()...)) }),
		})
	}
	return append(runs, lines...), nil
}

// oneJob is what a program does that wants one result: start, and wait.
func (t *testbed) oneJob(ctx context.Context, w measure.Workload) error {
	j, err := benchJobs{t.client}.Run(ctx, &droverv1.StartJobRequest{Command: w.Command, Path: w.Path})
	if err != nil {
		return err
	}
	return succeeded(j)
}

func succeeded(j *droverv1.Job) error {
	if j.GetState() != droverv1.JobState_JOB_STATE_SUCCEEDED {
		return fmt.Errorf("job %s ended %s: %s", j.GetJobId(), j.GetState(), j.GetMessage())
	}
	return nil
}

func (t *testbed) process(ctx context.Context, args ...string) error {
	cmd, err := t.command(ctx, args...)
	if err != nil {
		return err
	}
	return quietRun(cmd)
}

// quietRun runs a command whose output is of no interest.
func quietRun(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", cmd.Path, err, out)
	}
	return nil
}

// lineRuns compare the age of lines with those that come by a plain pipe, and
// by ssh.
func (t *testbed) lineRuns(ssh *peers.SSH) ([]latencyRun, error) {
	python, err := exec.LookPath("python3")
	if err != nil {
		return nil, fmt.Errorf("find what writes the lines: %w", err)
	}
	script := filepath.Join(t.dir, "lines.py")
	if err := os.WriteFile(script, []byte(measure.LineScript), 0o600); err != nil {
		return nil, fmt.Errorf("write the bench script: %w", err)
	}
	command := func(args []string) []string { return append([]string{python, script}, args...) }
	drover := measure.Lines(lineCount, lineEvery, func(ctx context.Context, args []string, out io.Writer) error {
		argv := command(args)
		return t.follow(ctx, &droverv1.StartJobRequest{Command: argv[0], Args: argv[1:]}, out)
	})
	runs := []latencyRun{{
		measure.Latency{What: "line", Job: "python", Against: "pipe"},
		drover,
		measure.Lines(lineCount, lineEvery, func(ctx context.Context, args []string, out io.Writer) error {
			argv := command(args)
			return piped(exec.CommandContext(ctx, argv[0], argv[1:]...), out)
		}),
	}}
	if ssh != nil {
		runs = append(runs, latencyRun{
			measure.Latency{What: "line", Job: "python", Against: "ssh"},
			drover,
			measure.Lines(lineCount, lineEvery, func(ctx context.Context, args []string, out io.Writer) error {
				return piped(ssh.Command(ctx, command(args)...), out)
			}),
		})
	}
	return runs, nil
}

// pipeBuffer is what is read from a pipe at once: more than it holds.
const pipeBuffer = 256 << 10

// piped runs a command whose output is read as it comes.
func piped(cmd *exec.Cmd, out io.Writer) error {
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("%s: %w", cmd.Path, err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", cmd.Path, err)
	}
	_, errCopy := io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{pipe}, make([]byte, pipeBuffer))
	if err := errors.Join(errCopy, cmd.Wait()); err != nil {
		return fmt.Errorf("%s: %w", cmd.Path, err)
	}
	return nil
}

// follow runs a job and copies its standard output as it comes.
func (t *testbed) follow(ctx context.Context, q *droverv1.StartJobRequest, out io.Writer) error {
	q.RequestId = uuid.NewString()
	started, err := t.client.StartJob(ctx, q)
	if err != nil {
		return t.client.Explain("start job", err)
	}
	return followJob(ctx, t.client, started.GetJobId(), out)
}

// followJob copies the standard output of a job that ends well.
func followJob(ctx context.Context, c *client.Client, id string, out io.Writer) error {
	job := func(ctx context.Context, wait bool) (*droverv1.Job, error) {
		got, err := c.GetJob(ctx, &droverv1.GetJobRequest{JobId: id, Wait: wait})
		return got.GetJob(), c.Explain("get job", err)
	}
	sum, err := follow.Run(ctx, follow.Config{
		Opener:  c,
		Request: &droverv1.StreamOutputRequest{JobId: id, Stream: droverv1.Stream_STREAM_STDOUT, Follow: true},
		Sink:    writerSink{out}, Eager: true, Patience: time.Minute,
		Finished: func(ctx context.Context) (bool, error) {
			j, err := job(ctx, false)
			return terminal(j.GetState()), err
		},
	})
	if err != nil {
		return c.Explain("read output", err)
	}
	for _, m := range sum.Missing {
		return fmt.Errorf("follow job %s: %s", id, m)
	}
	j, err := job(ctx, true)
	if err != nil {
		return err
	}
	return succeeded(j)
}

// writerSink is a follow.Sink for one stream.
type writerSink struct{ out io.Writer }

// Write implements follow.Sink.
func (s writerSink) Write(_ droverv1.Stream, _ time.Time, data []byte) error {
	_, err := s.out.Write(data)
	return err
}
