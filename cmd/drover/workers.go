package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/droverhq/drover/cmd/drover/internal/client"
	"github.com/droverhq/drover/cmd/drover/internal/problem"
	"github.com/droverhq/drover/cmd/drover/internal/render"
	"github.com/droverhq/drover/cmd/drover/internal/term"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// workersOptions are the flags of workers.
type workersOptions struct {
	output
	labels pairs
	watch  bool
}

func newWorkers(e *env) *cobra.Command {
	o := &workersOptions{}
	cmd := &cobra.Command{
		Use: "workers [ls]", Short: "List, show and drain workers", Args: cobra.ArbitraryArgs,
		Long: "List workers. The RUNNING column is jobs over slots; a worker that is OFFLINE has let its\nlease run out, and its jobs are unreachable, not lost.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return group(cmd, args)
			}
			return o.run(cmd.Context(), e)
		},
	}
	o.register(cmd)
	cmd.AddCommand(newWorkersList(e), newWorkersShow(e), newWorkersDrain(e), newWorkersUndrain(e), newWorkersRemove(e))
	return cmd
}

func newWorkersList(e *env) *cobra.Command {
	o := &workersOptions{}
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List workers", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), e) },
	}
	o.register(cmd)
	return cmd
}

func (o *workersOptions) register(cmd *cobra.Command) {
	o.output.register(cmd)
	f := cmd.Flags()
	f.VarP(&o.labels, "label", "l", "only workers with this label; repeatable")
	f.BoolVar(&o.watch, "watch", false, "go on and show every change")
}

func (o *workersOptions) run(ctx context.Context, e *env) error {
	p, err := o.printer(e)
	if err != nil {
		return err
	}
	return e.withClient(func(c *client.Client) error {
		workers, err := listWorkers(ctx, c, o.labels)
		if err != nil {
			return err
		}
		if o.watch {
			return o.watchWorkers(ctx, e, c, p, workers)
		}
		return render.List(p, render.WorkerHeader(p.Format), render.Workers(workers))
	})
}

func (o *workersOptions) watchWorkers(ctx context.Context, e *env, c *client.Client, p *render.Printer, workers []*droverv1.Worker) error {
	if err := watchUsage("workers", p.Format); err != nil {
		return err
	}
	b, err := newBoard(p, render.WorkerHeader(p.Format), render.Workers(workers))
	if err != nil {
		return err
	}
	show := func(w *droverv1.Worker) error {
		w = proto.CloneOf(w)
		row := render.NewWorker(w)
		w.LeaseExpires = nil // renewed all the time; no change to speak of
		return b.show(e.now(), w, row)
	}
	again := func() error {
		workers, err := listWorkers(ctx, c, o.labels)
		for _, w := range workers {
			if err := show(w); err != nil {
				return err
			}
		}
		return err
	}
	for _, w := range workers {
		if err := show(w); err != nil {
			return err
		}
	}
	return e.watch(ctx, c, again, func(ev *droverv1.WatchEventsResponse) error {
		if w := ev.GetWorker(); w != nil && hasLabels(w.GetLabels(), o.labels) {
			return show(w)
		}
		return nil
	})
}

// listWorkers collects all pages.
func listWorkers(ctx context.Context, c *client.Client, labels map[string]string) ([]*droverv1.Worker, error) {
	var all []*droverv1.Worker
	q := &droverv1.ListWorkersRequest{PageSize: maxPage, Labels: labels}
	for {
		one, cancel := call(ctx)
		page, err := c.ListWorkers(one, q)
		cancel()
		if err != nil {
			return nil, c.Explain("list workers", err)
		}
		all = append(all, page.GetWorkers()...)
		if q.PageToken = page.GetNextPageToken(); q.PageToken == "" {
			return all, nil
		}
	}
}

func newWorkersShow(e *env) *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use: "show WORKER", Short: "Show all about a worker",
		Long: "Show all about a worker. Jobs without a record are those that it has and the scheduler does not know:\n" +
			"the scheduler's records are an older copy that is in force, or have lost writes. Their results stay with\n" +
			"the worker until an admin decides.",
		Args: exactly("WORKER"), ValidArgsFunction: first(e.completeWorkers),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := o.printer(e)
			if err != nil {
				return err
			}
			return e.withClient(func(c *client.Client) error {
				ctx, cancel := call(cmd.Context())
				defer cancel()
				answer, err := c.GetWorker(ctx, &droverv1.GetWorkerRequest{WorkerId: args[0]})
				if err != nil {
					return c.Explain("show the worker", err)
				}
				w := render.NewWorkerWithJobs(answer)
				err = render.One(p, w, func() []render.Field { return w.Details(p) })
				if err != nil || !o.text() || len(w.Unrecorded) == 0 {
					return err
				}
				fmt.Fprintln(e.stdout, "\nJobs without a record:")
				fmt.Fprintf(e.stderr, "hint: \"drover stop JOB\" stops one, \"drover jobs adopt JOB\" makes a record of it, \"drover jobs rm JOB\" forgets it; admins only\n")
				return render.WriteTable(p.Out, render.UnrecordedHeader(), w.UnrecordedCells(p))
			})
		},
	}
	o.register(cmd)
	return cmd
}

func newWorkersDrain(e *env) *cobra.Command {
	var reason string
	var deadline duration
	cmd := &cobra.Command{
		Use: "drain WORKER...", Short: "Let workers take nothing new", Args: atLeast("WORKER"), ValidArgsFunction: e.completeWorkers,
		Long: "Let workers take nothing new. Jobs that run there go on, until the deadline if there is one.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.drain(cmd.Context(), args, "draining", func(name string) *droverv1.DrainWorkerRequest {
				return &droverv1.DrainWorkerRequest{WorkerId: name, Reason: reason, Deadline: deadline.proto()}
			})
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for people")
	cmd.Flags().Var(&deadline, "deadline", "stop jobs that still run after this time")
	return cmd
}

func newWorkersUndrain(e *env) *cobra.Command {
	return &cobra.Command{
		Use: "undrain WORKER...", Short: "Take workers back into service", Args: atLeast("WORKER"), ValidArgsFunction: e.completeWorkers,
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.drain(cmd.Context(), args, "in service again", func(name string) *droverv1.DrainWorkerRequest {
				return &droverv1.DrainWorkerRequest{WorkerId: name, Undrain: true}
			})
		},
	}
}

func (e *env) drain(ctx context.Context, names []string, now string, request func(name string) *droverv1.DrainWorkerRequest) error {
	return e.each(names, func(c *client.Client, name string) error {
		ctx, cancel := call(ctx)
		defer cancel()
		answer, err := c.DrainWorker(ctx, request(name))
		if err != nil {
			return c.Explain("drain the worker", err)
		}
		w := render.NewWorker(answer.GetWorker())
		fmt.Fprintf(e.stdout, "%s is %s, %d of %d slots taken\n", term.Line(w.Name), now, w.Running, w.Slots)
		return nil
	})
}

func newWorkersRemove(e *env) *cobra.Command {
	return &cobra.Command{
		Use: "rm WORKER...", Short: "Forget workers that are gone", Args: atLeast("WORKER"), ValidArgsFunction: e.completeWorkers,
		Long: "Forget workers that are OFFLINE or DEREGISTERED. Jobs that are still unreachable there\nbecome LOST by your word.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.each(args, func(c *client.Client, name string) error {
				ctx, cancel := call(cmd.Context())
				defer cancel()
				if _, err := c.RemoveWorker(ctx, &droverv1.RemoveWorkerRequest{WorkerId: name}); err != nil {
					return c.Explain("remove the worker", err)
				}
				fmt.Fprintf(e.stdout, "removed %s\n", name)
				return nil
			})
		},
	}
}

// each does something to several things, goes on after a failure, and ends
// with the code of the last one.
func (e *env) each(names []string, f func(*client.Client, string) error) error {
	return e.withClient(func(c *client.Client) error {
		var failure error
		for _, name := range names {
			if err := f(c, name); err != nil {
				problem.Print(e.stderr, err)
				failure = problem.CodeOf(err)
			}
		}
		return failure
	})
}
