package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/droverhq/drover/cmd/drover/internal/client"
	"github.com/droverhq/drover/cmd/drover/internal/problem"
	"github.com/droverhq/drover/cmd/drover/internal/render"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

func newStatus(e *env) *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use: "status JOB...", Short: "Show all about a job", Args: atLeast("JOB"),
		Long: "Show all about a job. A job is named by its id, or by any 4 or more hex digits at the\n" +
			"beginning or end that no other job has.",
		ValidArgsFunction: e.completeJobs(),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.status(cmd.Context(), &o, args)
		},
	}
	o.register(cmd)
	return cmd
}

// status shows one job as one document and several as a list. What is found is
// shown also when something is not.
func (e *env) status(ctx context.Context, o *output, ids []string) error {
	p, err := o.printer(e)
	if err != nil {
		return err
	}
	return e.withClient(func(c *client.Client) error {
		var jobs []render.Job
		var failure error
		for _, id := range ids {
			j, err := getOnce(ctx, c, id)
			if err != nil {
				problem.Print(e.stderr, err)
				failure = problem.CodeOf(err)
				continue
			}
			jobs = append(jobs, render.NewJob(j))
		}
		if err := showJobs(p, jobs, len(ids) == 1); err != nil {
			return err
		}
		return failure
	})
}

func showJobs(p *render.Printer, jobs []render.Job, alone bool) error {
	people := !p.Quiet && (p.Format == render.Table || p.Format == render.Wide)
	if !alone && !people {
		return render.List(p, nil, jobs)
	}
	for i, j := range jobs {
		if i > 0 {
			if _, err := fmt.Fprintln(p.Out); err != nil {
				return fmt.Errorf("print: %w", err)
			}
		}
		if err := render.One(p, j, func() []render.Field { return j.Details(p) }); err != nil {
			return err
		}
	}
	return nil
}

// getOnce asks for a job without patience.
func getOnce(ctx context.Context, c *client.Client, id string) (*droverv1.Job, error) {
	ctx, cancel := call(ctx)
	defer cancel()
	answer, err := c.GetJob(ctx, &droverv1.GetJobRequest{JobId: id})
	return answer.GetJob(), c.Explain("show the job", err)
}
