package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/droverhq/drover/cmd/drover/internal/client"
	"github.com/droverhq/drover/cmd/drover/internal/problem"
	"github.com/droverhq/drover/cmd/drover/internal/render"
	"github.com/droverhq/drover/cmd/drover/internal/term"
	"github.com/droverhq/drover/core/errs"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// live are the states of jobs that have not ended.
var live = []droverv1.JobState{
	droverv1.JobState_JOB_STATE_QUEUED, droverv1.JobState_JOB_STATE_DISPATCHED,
	droverv1.JobState_JOB_STATE_RUNNING, droverv1.JobState_JOB_STATE_STOPPING,
}

// maxPage is how many items are asked for at once, and how many jobs are removed by
// one request: as many as a scheduler takes. It makes pages of long items shorter.
const maxPage = 1000

// jobsOptions are the flags of jobs and ps.
type jobsOptions struct {
	output
	states []string
	worker string
	labels pairs
	since  moment
	limit  int
	watch  bool
}

func newJobs(e *env) *cobra.Command {
	o := &jobsOptions{}
	cmd := &cobra.Command{
		Use: "jobs [ls]", Aliases: []string{"job"}, Short: "List jobs, newest first",
		Example: "  drover jobs --state running,queued\n  drover jobs --worker w1 --since 1h -o json",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return group(cmd, args)
			}
			return o.run(cmd.Context(), e)
		},
	}
	o.register(e, cmd)
	cmd.AddCommand(newJobsList(e), newJobsAdopt(e), newJobsRemove(e))
	return cmd
}

func newJobsList(e *env) *cobra.Command {
	o := &jobsOptions{}
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List jobs, newest first", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), e) },
	}
	o.register(e, cmd)
	return cmd
}

func newPs(e *env) *cobra.Command {
	o := &jobsOptions{states: []string{"running"}}
	cmd := &cobra.Command{
		Use: "ps", Short: "List jobs that run", Args: exactly(), Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), e) },
	}
	o.register(e, cmd)
	return cmd
}

func (o *jobsOptions) register(e *env, cmd *cobra.Command) {
	o.output.register(cmd)
	f := cmd.Flags()
	f.StringSliceVarP(&o.states, "state", "s", o.states, "only jobs in this `state`, such as running or failed; repeatable")
	f.StringVarP(&o.worker, "worker", "w", "", "only jobs on this worker, by `id or name`")
	f.VarP(&o.labels, "label", "l", "only jobs with this label; repeatable")
	f.Var(&o.since, "since", "only jobs submitted since, such as 10m or 2026-01-31")
	f.IntVarP(&o.limit, "limit", "n", 100, "at most this many; 0 is all")
	f.BoolVar(&o.watch, "watch", false, "go on and show every change")
	completeFlag(cmd, "state", fixed(stateNames()...))
	completeFlag(cmd, "worker", e.completeWorkers)
}

// stateNames are the states as they are typed.
func stateNames() []string {
	var names []string
	for s := droverv1.JobState_JOB_STATE_QUEUED; s <= droverv1.JobState_JOB_STATE_LOST; s++ {
		names = append(names, strings.ToLower(render.JobState(s)))
	}
	return names
}

// query reads the flags.
func (o *jobsOptions) query(e *env) (*droverv1.ListJobsRequest, error) {
	q := &droverv1.ListJobsRequest{WorkerId: o.worker, Labels: o.labels, Since: o.since.proto(e.now())}
	for _, name := range o.states {
		i := slices.Index(stateNames(), strings.ToLower(name))
		if i < 0 {
			return nil, errs.Field("list jobs", "--state", "USAGE", "%q is none of %s", name, strings.Join(stateNames(), ", "))
		}
		q.States = append(q.States, droverv1.JobState_JOB_STATE_QUEUED+droverv1.JobState(i))
	}
	if o.limit < 0 {
		return nil, errs.Field("list jobs", "--limit", "USAGE", "%d is negative", o.limit)
	}
	return q, nil
}

func (o *jobsOptions) run(ctx context.Context, e *env) error {
	p, err := o.printer(e)
	if err != nil {
		return err
	}
	q, err := o.query(e)
	if err != nil {
		return err
	}
	return e.withClient(func(c *client.Client) error {
		jobs, more, err := listJobs(ctx, c, q, o.limit)
		if err != nil {
			return err
		}
		if o.watch {
			return watchJobs(ctx, e, c, p, q, o.limit, jobs)
		}
		if err := render.List(p, render.JobHeader(p.Format), render.Jobs(jobs)); err != nil {
			return err
		}
		if more && o.text() {
			fmt.Fprintf(e.stderr, "hint: there are older ones; --limit 0 lists all\n")
		}
		return nil
	})
}

// listJobs collects pages up to a limit, 0 is all, and tells whether there is
// more.
func listJobs(ctx context.Context, c *client.Client, q *droverv1.ListJobsRequest, limit int) ([]*droverv1.Job, bool, error) {
	var all []*droverv1.Job
	for {
		q.PageSize = maxPage
		if limit > 0 {
			q.PageSize = uint32(min(maxPage, limit-len(all)))
		}
		one, cancel := call(ctx)
		page, err := c.ListJobs(one, q)
		cancel()
		if err != nil {
			return nil, false, c.Explain("list jobs", err)
		}
		all = append(all, page.GetJobs()...)
		q.PageToken = page.GetNextPageToken()
		if full := limit > 0 && len(all) >= limit; q.PageToken == "" || full {
			return all, q.PageToken != "", nil
		}
	}
}

func newJobsAdopt(e *env) *cobra.Command {
	var worker string
	cmd := &cobra.Command{
		Use: "adopt JOB...", Short: "Make records of jobs that only a worker knows", Args: atLeast("JOB"),
		Long: "Make records of jobs that a worker has and the scheduler does not know, because its records are an older\n" +
			"copy or have lost writes (\"drover workers show\" lists them). From then on they are followed as any other\n" +
			"job. Who asked for them, their arguments, limits and retry policy are not known, and they are not tried\n" +
			"again. Admins only.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.each(args, func(c *client.Client, id string) error {
				ctx, cancel := call(cmd.Context())
				defer cancel()
				answer, err := c.AdoptJob(ctx, &droverv1.AdoptJobRequest{JobId: id, WorkerId: worker})
				if err != nil {
					return c.Explain("adopt the job", err)
				}
				j := render.NewJob(answer.GetJob())
				fmt.Fprintf(e.stdout, "adopted %s on %s: %s\n", render.ShortID(j.JobID), term.Line(j.WorkerName), j.State)
				return nil
			})
		},
	}
	cmd.Flags().StringVarP(&worker, "worker", "w", "", "the worker that is meant, by `id or name`, when several have the job")
	completeFlag(cmd, "worker", e.completeWorkers)
	return cmd
}

func newJobsRemove(e *env) *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use: "rm JOB...", Short: "Forget jobs that have ended, and their output", Args: atLeast("JOB"),
		ValidArgsFunction: e.completeJobs(droverv1.JobState_JOB_STATE_SUCCEEDED, droverv1.JobState_JOB_STATE_FAILED,
			droverv1.JobState_JOB_STATE_STOPPED, droverv1.JobState_JOB_STATE_REJECTED, droverv1.JobState_JOB_STATE_LOST),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(c *client.Client) error {
				for ids := range slices.Chunk(args, maxPage) {
					if err := removeJobs(cmd.Context(), c, ids); err != nil {
						return err
					}
					for _, id := range ids {
						if o.quiet {
							fmt.Fprintln(e.stdout, id)
							continue
						}
						fmt.Fprintf(e.stdout, "removed %s\n", id)
					}
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVarP(&o.quiet, "quiet", "q", false, "print ids only")
	return cmd
}

func removeJobs(ctx context.Context, c *client.Client, ids []string) error {
	ctx, cancel := call(ctx)
	defer cancel()
	if _, err := c.RemoveJobs(ctx, &droverv1.RemoveJobsRequest{JobIds: ids}); err != nil {
		return c.Explain("remove jobs", err)
	}
	return nil
}

// watchUsage is the mistake of a watch that cannot be one document.
func watchUsage(verb string, f render.Format) error {
	if f == render.JSON || f == render.YAML {
		return problem.UsageError(verb, "--watch never ends, %s is one document", f).WithHint("give -o jsonl: one object per change")
	}
	return nil
}
