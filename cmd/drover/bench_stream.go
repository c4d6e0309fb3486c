package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/droverhq/drover/cmd/drover/internal/client"
	"github.com/droverhq/drover/cmd/drover/internal/measure"
	"github.com/droverhq/drover/cmd/drover/internal/peers"
	"github.com/droverhq/drover/cmd/drover/internal/render"
	"github.com/droverhq/drover/core/errs"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// streamFlags say how much output is carried, and to how many.
type streamFlags struct {
	*benchFlags
	size      size
	lines     int
	followers []int
}

func newBenchStream(e *env, b *benchFlags) *cobra.Command {
	s := streamFlags{benchFlags: b, size: 1 << 30}
	cmd := &cobra.Command{
		Use: "stream", Short: "Measure how fast output comes, and what many followers cost", Args: exactly(),
		Long: "stream lets a job write bytes that cannot be compressed, follows them as they are written and reads\n" +
			"them again when the job has ended, in turns with the same bytes through a plain pipe and, with\n" +
			"--peer ssh, through ssh. Every byte is compared. Then a job that computes and prints lines runs in\n" +
			"turns with no follower and with many, each on a connection of its own: how much do they slow it?",
		Example: "  drover bench stream --peer ssh\n  drover bench stream --size 64M --followers 1,100 -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return part{s.check, s.measure}.run(cmd.Context(), e, &b.output)
		},
	}
	s.register(cmd)
	b.register(cmd)
	return cmd
}

// register registers the flags that only this part has.
func (s *streamFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.Var(&s.size, "size", "how many bytes the job writes")
	f.IntVar(&s.lines, "lines", 2000, "how many lines the followed job writes, about a millisecond of work each; 0 leaves this part out")
	f.IntSliceVar(&s.followers, "followers", []int{1, 100}, "how many follow it, beside none")
}

// streamed is the result of "bench stream".
type streamed struct {
	Transfers []measure.Transfer `json:"transfers"`
	Followers []measure.Followed `json:"followers"`
}

func (s *streamFlags) check() error {
	const op = "measure stream"
	switch {
	case s.size < 1:
		return errs.Field(op, "--size", "SIZE", "less than one byte")
	case s.lines < 0:
		return errs.Field(op, "--lines", "LINES", "%d is less than 0", s.lines)
	case len(s.followers) == 0 || slices.Min(s.followers) < 1:
		return errs.Field(op, "--followers", "FOLLOWERS", "%v is not one number above 0 or more", s.followers)
	}
	return s.benchFlags.check()
}

func (s *streamFlags) measure(ctx context.Context, e *env) (f figures, err error) {
	err = s.besideSSH(ctx, e, func(t *testbed, ssh *peers.SSH) (err error) {
		var out streamed
		if out.Transfers, err = s.transfers(ctx, e, t, ssh); err != nil {
			return err
		}
		if out.Followers, err = s.follow(ctx, e, t); err != nil {
			return err
		}
		f = figures{out, []render.Sheet{transferSheet(out.Transfers)}}
		if len(out.Followers) > 0 {
			f.sheets = append(f.sheets, followedSheet(out.Followers))
		}
		return nil
	})
	return f, err
}

func (s *streamFlags) transfers(ctx context.Context, e *env, t *testbed, ssh *peers.SSH) ([]measure.Transfer, error) {
	pattern, err := measure.NewPattern(int64(s.size))
	if err != nil {
		return nil, err
	}
	file := filepath.Join(t.dir, "pattern")
	if err := pattern.WriteFile(file); err != nil {
		return nil, err
	}
	cat, err := exec.LookPath("cat")
	if err != nil {
		return nil, fmt.Errorf("find what writes the bytes: %w", err)
	}
	w := writer{testbed: t, argv: []string{cat, file}, sha256: pattern.SHA256}
	ways, err := w.ways(ssh)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(e.stderr, "Measuring %s by %d ways: a round to warm up and %d rounds.\n", render.Size(uint64(s.size)), len(ways), s.rounds)
	return measure.Carry(ctx, measure.StreamPlan{Rounds: s.rounds, Pattern: pattern, Ways: ways, After: w.remove})
}

// writer is a job that writes the bytes of a measurement, and the same command
// without drover.
type writer struct {
	*testbed
	argv   []string
	sha256 string
	job    string // of this round
}

func (w *writer) ways(ssh *peers.SSH) ([]measure.Way, error) {
	out := []measure.Way{
		{What: "live", By: "drover", Processes: w.processes, Run: w.live},
		{What: "finished", By: "drover", Processes: w.processes, Run: w.finished},
		{What: "live", By: "pipe", Processes: map[string][]int{"client": w.processes["client"]}, Run: func(ctx context.Context, out io.Writer) error {
			return piped(exec.CommandContext(ctx, w.argv[0], w.argv[1:]...), out)
		}},
	}
	if ssh == nil {
		return out, nil
	}
	processes, err := ssh.Processes()
	if err != nil {
		return nil, err
	}
	processes["client"] = w.processes["client"]
	return append(out, measure.Way{What: "live", By: "ssh", Processes: processes, Run: func(ctx context.Context, out io.Writer) error {
		return piped(ssh.Command(ctx, w.argv...), out)
	}}), nil
}

// live follows a job from its start to its end.
func (w *writer) live(ctx context.Context, out io.Writer) error {
	started, err := w.client.StartJob(ctx, &droverv1.StartJobRequest{
		Command: w.argv[0], Args: w.argv[1:], RequestId: uuid.NewString(),
		// All of it, however far the reader is behind.
		OutputPolicy: droverv1.OutputPolicy_OUTPUT_POLICY_KEEP,
	})
	if err != nil {
		return w.client.Explain("start job", err)
	}
	w.job = started.GetJobId()
	return followJob(ctx, w.client, w.job, out)
}

// finished reads the same bytes again.
func (w *writer) finished(ctx context.Context, out io.Writer) error {
	if err := followJob(ctx, w.client, w.job, out); err != nil {
		return err
	}
	got, err := w.client.GetJob(ctx, &droverv1.GetJobRequest{JobId: w.job})
	if err != nil {
		return w.client.Explain("get job", err)
	}
	if sum := got.GetJob().GetStdout().GetSha256(); sum != w.sha256 {
		return fmt.Errorf("the job's record says that SHA-256 of its output is %q, not %s", sum, w.sha256)
	}
	return nil
}

// remove makes room for the next round.
func (w *writer) remove(ctx context.Context) error {
	_, err := w.client.RemoveJobs(ctx, &droverv1.RemoveJobsRequest{JobIds: []string{w.job}})
	return w.client.Explain("remove job", err)
}

// follow runs a job with more and more followers.
func (s *streamFlags) follow(ctx context.Context, e *env, t *testbed) ([]measure.Followed, error) {
	if s.lines == 0 {
		return nil, nil
	}
	python, err := exec.LookPath("python3")
	if err != nil {
		return nil, fmt.Errorf("find what writes the lines: %w", err)
	}
	script := filepath.Join(t.dir, "work.py")
	if err := os.WriteFile(script, []byte(measure.WorkScript), 0o600); err != nil {
		return nil, fmt.Errorf("write the bench script: %w", err)
	}
	a, err := newAudience(ctx, t, slices.Max(s.followers))
	if err != nil {
		return nil, err
	}
	defer a.close()
	fmt.Fprintf(e.stderr, "Measuring a job with %v followers: %d rounds.\n", append([]int{0}, s.followers...), s.rounds)
	request := &droverv1.StartJobRequest{Command: python, Args: []string{script, fmt.Sprint(s.lines)}}
	return measure.Follow(ctx, measure.FollowersPlan{
		Rounds: s.rounds, Followers: s.followers, Processes: t.processes,
		Run: func(ctx context.Context, followers int) (time.Duration, error) {
			return a.watch(ctx, request, followers, int64(s.lines)*measure.WorkLineBytes)
		},
	})
}

// audience is clients that follow the same job, each on a connection of its own.
type audience struct {
	*testbed
	clients []*client.Client
}

func newAudience(ctx context.Context, t *testbed, n int) (*audience, error) {
	a := &audience{testbed: t}
	for range n {
		c, err := client.Dial(client.Target{Address: t.address, Certs: t.certs}, version)
		if err != nil {
			a.close()
			return nil, err
		}
		a.clients = append(a.clients, c)
		// The connection is made now and not while the job runs.
		if _, err := c.ListWorkers(ctx, &droverv1.ListWorkersRequest{PageSize: 1}); err != nil {
			a.close()
			return nil, c.Explain("list workers", err)
		}
	}
	return a, nil
}

func (a *audience) close() {
	for _, c := range a.clients {
		_ = c.Close() // nothing is under way on it
	}
}

// watch runs a job with followers, who must all see so many bytes, and returns
// how long the job took by the worker's clock.
func (a *audience) watch(ctx context.Context, q *droverv1.StartJobRequest, followers int, bytes int64) (time.Duration, error) {
	q.RequestId = uuid.NewString()
	started, err := a.client.StartJob(ctx, q)
	if err != nil {
		return 0, a.client.Explain("start job", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wait sync.WaitGroup
	for _, c := range a.clients[:followers] {
		wait.Go(func() {
			var n counter
			err := followJob(ctx, c, started.GetJobId(), &n)
			if err == nil && int64(n) != bytes {
				err = fmt.Errorf("%d of %d bytes came", n, bytes)
			}
			if err != nil {
				cancel(err)
			}
		})
	}
	got, err := a.client.GetJob(ctx, &droverv1.GetJobRequest{JobId: started.GetJobId(), Wait: true})
	wait.Wait()
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	if err != nil {
		return 0, a.client.Explain("wait for job", err)
	}
	j := got.GetJob()
	return j.GetEndTime().AsTime().Sub(j.GetStartTime().AsTime()), succeeded(j)
}

// counter is an io.Writer that counts.
type counter int64

// Write implements io.Writer.
func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

func transferSheet(all []measure.Transfer) render.Sheet {
	s := render.Sheet{Header: []string{"WHAT", "BY", "MB/S", "RANGE", "LIVE IS x", "RANGE", "CPU us/MiB: SCHEDULER", "WORKER", "PLUGINS", "CLIENT", "SSHD", "SSH"}}
	for _, t := range all {
		row := []string{t.What, t.By, fmt.Sprintf("%.0f", t.MBPerS.Median), fmt.Sprintf("%.0f-%.0f", t.MBPerS.Min, t.MBPerS.Max), "", ""}
		if x := t.FirstIsX; x != nil {
			row[4], row[5] = fmt.Sprintf("%.2f", x.Median), fmt.Sprintf("%.2f-%.2f", x.Min, x.Max)
		}
		s.Rows = append(s.Rows, append(row, cpuCells(t.CPUMicrosMiB, "%.0f", "scheduler", "worker", "plugin", "client", "sshd", "ssh")...))
	}
	return s
}

func followedSheet(all []measure.Followed) render.Sheet {
	s := render.Sheet{Header: []string{"FOLLOWERS", "JOB ms", "RANGE", "SLOWED %", "RANGE", "CPU ms: SCHEDULER", "WORKER", "PLUGINS", "CLIENTS"}}
	for _, f := range all {
		row := []string{fmt.Sprint(f.Followers), fmt.Sprintf("%.0f", f.JobMS.Median), fmt.Sprintf("%.0f-%.0f", f.JobMS.Min, f.JobMS.Max), "", ""}
		if x := f.SlowedPct; x != nil {
			row[3], row[4] = fmt.Sprintf("%.1f", x.Median), fmt.Sprintf("%.1f-%.1f", x.Min, x.Max)
		}
		s.Rows = append(s.Rows, append(row, cpuCells(f.CPUMillis, "%.0f", "scheduler", "worker", "plugin", "client")...))
	}
	return s
}

// cpuCells shows processor times by process; one that took no part is left empty.
func cpuCells(used map[string]float64, format string, names ...string) []string {
	out := make([]string, len(names))
	for i, name := range names {
		if v, ok := used[name]; ok {
			out[i] = fmt.Sprintf(format, v)
		}
	}
	return out
}
