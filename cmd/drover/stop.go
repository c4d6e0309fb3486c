package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/droverhq/drover/cmd/drover/internal/client"
	"github.com/droverhq/drover/cmd/drover/internal/problem"
	"github.com/droverhq/drover/cmd/drover/internal/render"
	"github.com/droverhq/drover/cmd/drover/internal/term"
	"github.com/droverhq/drover/core/errs"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// stopOptions are the flags of stop.
type stopOptions struct {
	output
	grace  duration
	kill   bool
	all    bool
	labels pairs
	worker string
}

// stopsAtOnce bounds the stops in flight.
const stopsAtOnce = 16

func newStop(e *env) *cobra.Command {
	o := &stopOptions{}
	cmd := &cobra.Command{
		Use:   "stop JOB... | stop --all [--label k=v]...",
		Short: "Stop jobs and every process they started",
		Long: "Stop jobs and every process they started: SIGTERM, then SIGKILL after the grace time.\n" +
			"Answers when no process is left, with what it took.",
		Example:           "  drover stop 1a2b3c4d\n  drover stop --all --label team=red --grace 2s",
		ValidArgsFunction: e.completeJobs(live...),
		Args:              func(cmd *cobra.Command, args []string) error { return o.check(cmd, args) },
		RunE:              func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), e, args) },
	}
	o.register(cmd)
	f := cmd.Flags()
	f.Var(&o.grace, "grace", "time between SIGTERM and SIGKILL (default: the job's own)")
	f.BoolVar(&o.kill, "kill", false, "SIGKILL at once; the same as --grace 0")
	f.BoolVar(&o.all, "all", false, "all jobs that live")
	f.VarP(&o.labels, "label", "l", "with --all: only jobs with this label; repeatable")
	f.StringVarP(&o.worker, "worker", "w", "", "with --all: only jobs on this worker, by `id or name`")
	completeFlag(cmd, "worker", e.completeWorkers)
	return cmd
}

func (o *stopOptions) check(cmd *cobra.Command, args []string) error {
	switch {
	case o.all && len(args) > 0:
		return problem.UsageError(verb(cmd), "--all and JOB exclude one another")
	case !o.all && (len(o.labels) > 0 || o.worker != ""):
		return problem.UsageError(verb(cmd), "--label and --worker need --all")
	case !o.all && len(args) == 0:
		return problem.UsageError(verb(cmd), "JOB is missing")
	case o.kill && o.grace.given && o.grace.value != 0:
		return problem.UsageError(verb(cmd), "--kill and --grace exclude one another")
	default:
		return nil
	}
}

func (o *stopOptions) run(ctx context.Context, e *env, ids []string) error {
	p, err := o.printer(e)
	if err != nil {
		return err
	}
	return e.withClient(func(c *client.Client) error {
		if o.all {
			if ids, err = o.matching(ctx, c); err != nil {
				return err
			}
		}
		grace := o.grace.proto()
		if o.kill {
			grace = durationpb.New(0)
		}
		jobs, failure := e.stopAll(ctx, c, ids, grace)
		if o.text() {
			for _, j := range jobs {
				fmt.Fprintln(e.stdout, term.Line(stopped(j)))
			}
			if len(ids) == 0 {
				fmt.Fprintln(e.stderr, "drover: no job matches")
			}
			return failure
		}
		return errors.Join(render.List(p, render.JobHeader(p.Format), render.Jobs(jobs)), failure)
	})
}

// matching lists the live jobs that --all means.
func (o *stopOptions) matching(ctx context.Context, c *client.Client) ([]string, error) {
	jobs, _, err := listJobs(ctx, c, &droverv1.ListJobsRequest{States: live, Labels: o.labels, WorkerId: o.worker}, 0)
	ids := make([]string, len(jobs))
	for i, j := range jobs {
		ids[i] = j.GetJobId()
	}
	return ids, err
}

// stopAll stops several jobs at once and returns those that ended, in order.
// Errors are printed as they are found; the last one's code stays.
func (e *env) stopAll(ctx context.Context, c *client.Client, ids []string, grace *durationpb.Duration) ([]*droverv1.Job, error) {
	jobs, failures := make([]*droverv1.Job, len(ids)), make([]error, len(ids))
	slots := make(chan struct{}, stopsAtOnce)
	var wg sync.WaitGroup
	for i, id := range ids {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			jobs[i], failures[i] = e.stopOne(ctx, c, id, grace)
		})
	}
	wg.Wait()
	var ended []*droverv1.Job
	var failure error
	for i := range ids {
		if failures[i] == nil {
			ended = append(ended, jobs[i])
			continue
		}
		problem.Print(e.stderr, failures[i])
		failure = problem.CodeOf(failures[i])
	}
	return ended, failure
}

// lookAgain is how often a stop that takes its time is looked at.
const lookAgain = 2 * time.Second

// stopOne stops a job and waits until no process of it is left, or until it is
// known why that does not happen.
func (e *env) stopOne(ctx context.Context, c *client.Client, id string, grace *durationpb.Duration) (*droverv1.Job, error) {
	one, cancel := call(ctx)
	answer, err := c.StopJob(one, &droverv1.StopJobRequest{JobId: id, Grace: grace})
	cancel()
	if err != nil {
		return nil, c.Explain("stop the job", err)
	}
	j := answer.GetJob()
	for !terminal(j.GetState()) {
		if err := stuck(j); err != nil {
			return nil, err
		}
		one, cancel := context.WithTimeout(ctx, lookAgain)
		if answer, err := c.GetJob(one, &droverv1.GetJobRequest{JobId: j.GetJobId(), Wait: true}); err == nil {
			cancel()
			return answer.GetJob(), nil
		}
		cancel()
		if j, err = e.getJob(ctx, c, j.GetJobId(), false); err != nil {
			return nil, err
		}
	}
	return j, nil
}

// stuck tells why a stop that is durable does not come to its end (P9).
func stuck(j *droverv1.Job) error {
	op, short := "stop the job", render.ShortID(j.GetJobId())
	switch {
	case j.GetReason() == "UNKILLABLE":
		return errs.E(op, errs.Precondition, "UNKILLABLE", fmt.Errorf("%s has processes that cannot be killed: %s", short, j.GetMessage())).
			WithHint("its worker %s takes no new jobs until they are gone", j.GetWorkerName())
	case !j.GetReachable() && j.GetWorkerId() != "":
		return errs.E(op, errs.Unavailable, "WORKER_OFFLINE", fmt.Errorf("the stop of %s is recorded, but its worker %s cannot be reached", short, j.GetWorkerName())).
			WithHint("it is carried out when the worker is back")
	default:
		return nil
	}
}

// stopped says in one line how a job ended that was to be stopped.
func stopped(j *droverv1.Job) string {
	v := render.NewJob(j)
	id := render.ShortID(v.JobID)
	switch {
	case j.GetState() != droverv1.JobState_JOB_STATE_STOPPED:
		line := fmt.Sprintf("%s had ended: %s", id, v.State)
		if v.Result() != "" {
			line += ", exit " + v.Result()
		}
		return line
	case v.StopProof == nil && (len(v.Attempts) == 0 || v.WorkerName != ""):
		return fmt.Sprintf("stopped %s before it ran", id)
	case v.StopProof == nil:
		return fmt.Sprintf("stopped %s, which waited for its next attempt after attempt %d", id, v.Attempt)
	default:
		return fmt.Sprintf("stopped %s on %s: %s", id, term.Line(v.WorkerName), v.StopProof)
	}
}
