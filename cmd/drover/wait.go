package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/droverhq/drover/cmd/drover/internal/client"
	"github.com/droverhq/drover/cmd/drover/internal/problem"
	"github.com/droverhq/drover/cmd/drover/internal/render"
	"github.com/droverhq/drover/cmd/drover/internal/term"
	"github.com/droverhq/drover/core/errs"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

func newWait(e *env) *cobra.Command {
	var o output
	var timeout duration
	cmd := &cobra.Command{
		Use: "wait JOB...", Short: "Wait for jobs and exit with their exit code", Args: atLeast("JOB"),
		Long: "Wait until every job has ended and exit with the job's code, of several with the first\n" +
			"that is not 0. Ctrl-C ends the wait and leaves the jobs alone.",
		ValidArgsFunction: e.completeJobs(live...),
		RunE: func(cmd *cobra.Command, args []string) error {
			return aroundJob(e.wait(cmd.Context(), &o, &timeout, args))
		},
	}
	o.register(cmd)
	cmd.Flags().Var(&timeout, "timeout", "wait no longer than this (exit code 124)")
	return cmd
}

func (e *env) wait(ctx context.Context, o *output, timeout *duration, ids []string) error {
	p, err := o.printer(e)
	if err != nil {
		return err
	}
	limited := ctx
	if timeout.given {
		late := errs.E("wait", errs.Timeout, "WAIT_TIMEOUT", fmt.Errorf("not ended after %v: %s", timeout, strings.Join(ids, ", ")))
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeoutCause(ctx, timeout.value, problem.WithCode(late, problem.TimedOut))
		defer cancel()
	}
	return e.withClient(func(c *client.Client) error {
		var jobs []render.Job
		var failure error
		for _, id := range ids {
			j, err := e.outcome(ctx, limited, c, id)
			if limited.Err() != nil && err != nil {
				return context.Cause(limited)
			}
			if err != nil {
				return err
			}
			v := render.NewJob(j)
			if o.text() {
				fmt.Fprintln(e.stdout, term.Line(ended(v)))
			}
			jobs = append(jobs, v)
			if failure == nil {
				failure = verdict(j)
			}
		}
		if o.text() {
			return failure
		}
		err := render.List(p, nil, jobs)
		if len(jobs) == 1 {
			err = render.One(p, jobs[0], nil)
		}
		return errors.Join(err, failure)
	})
}

// outcome waits for the end of a job. One that has ended is told, however little time
// there was to wait.
func (e *env) outcome(ctx, limited context.Context, c *client.Client, id string) (*droverv1.Job, error) {
	j, err := e.getJob(ctx, c, id, false)
	if err != nil || terminal(j.GetState()) {
		return j, err
	}
	return e.getJob(limited, c, id, true)
}

// ended is the end of a job in one line.
func ended(j render.Job) string {
	line := render.ShortID(j.JobID) + " " + j.State
	if r := j.Result(); r != "" {
		line += " " + r
	}
	return line
}
