package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/droverhq/drover/cmd/drover/internal/client"
	"github.com/droverhq/drover/cmd/drover/internal/follow"
	"github.com/droverhq/drover/cmd/drover/internal/problem"
	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/standby"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// runOptions are the flags of run and exec.
type runOptions struct {
	request
	attendance
	many
	command string
	detach  bool
	verb    string
}

func newRun(e *env) *cobra.Command {
	o := &runOptions{verb: "run"}
	cmd := &cobra.Command{
		Use:   "run [flags] SCRIPT [ARG...]",
		Short: "Run a script of a worker and stream its output",
		Long: "Run a script of a worker's script folders. Its output comes as if it ran here, on the\n" +
			"same file descriptors, and drover exits with its exit code. Ctrl-C stops it, twice kills\n" +
			"it, three times leaves it alone.\n\n" +
			"The extension tells what runs it (.sh: bash, .py: python); --command says it for others,\n" +
			"and runs a program itself when SCRIPT is \"\".\n\n" +
			"Exit codes: the job's own, 128+n when a signal ended it, 124 after a timeout, 125 when\n" +
			"drover failed, 126 when it was refused, 127 when there is no such script or command.\n\n" +
			manyHelp,
		Example: "  drover run count.sh 3\n  drover run --timeout 1m -e LANG=C hello.py --name World\n" +
			"  drover run -d --worker w1 count.sh 60\n  drover run --command ruby tools/report.rb\n  drover run --upload ./local.sh\n" +
			"  drover run --array 1-1000 render.sh frame-{}.png\n  ls *.wav | drover run --each - --parallel 8 --max-fail 5% encode.sh {}",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && o.command != "" {
				return nil
			}
			return atLeast("SCRIPT")(cmd, args)
		},
		ValidArgsFunction: first(e.completeScripts),
		RunE: func(cmd *cobra.Command, args []string) error {
			script := ""
			if len(args) > 0 {
				script, args = args[0], args[1:]
			}
			return aroundJob(o.run(cmd.Context(), e, o.command, script, args))
		},
	}
	o.register(e, cmd)
	cmd.Flags().BoolVar(&o.upload, "upload", false, "SCRIPT is a file of this machine; send it along (at most 1 MiB)")
	cmd.Flags().StringVarP(&o.command, "command", "c", "", "what runs the script: a runner or an interpreter that the worker's policy allows")
	return cmd
}

func newExec(e *env) *cobra.Command {
	o := &runOptions{verb: "exec"}
	cmd := &cobra.Command{
		Use:     "exec [flags] -- CMD [ARG...]",
		Short:   "Run a program that a worker's policy allows",
		Long:    "Run a program on a worker, without a script and without a shell between. The worker's\npolicy file says which programs may run. Otherwise like \"drover run\".\n\n" + manyHelp,
		Example: "  drover exec -- uname -a\n  drover exec --worker w1 --timeout 10s -- df -h",
		Args:    atLeast("CMD"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == "" {
				return problem.UsageError(verb(cmd), "CMD is empty")
			}
			return aroundJob(o.run(cmd.Context(), e, args[0], "", args[1:]))
		},
	}
	o.register(e, cmd)
	return cmd
}

func (o *runOptions) register(e *env, cmd *cobra.Command) {
	f := cmd.Flags()
	f.SetInterspersed(false) // what follows SCRIPT belongs to it
	f.SortFlags = false
	f.BoolVarP(&o.detach, "detach", "d", false, "do not wait; print the job's id only")
	o.attendance.register(cmd)
	o.many.register(cmd)
	o.request.register(e, cmd)
}

func (o *runOptions) run(ctx context.Context, e *env, command, script string, args []string) error {
	if err := o.many.check(o.verb, o, args); err != nil {
		return err
	}
	q, err := o.build(e, o.verb, command, script, args)
	if err != nil {
		return err
	}
	if o.many.wanted() {
		return o.runMany(ctx, e, q)
	}
	return e.withClient(func(c *client.Client) error {
		return o.start(ctx, e, c, q, o.detach)
	})
}

// start submits a request and, unless detached, stays with the job.
func (a *attendance) start(ctx context.Context, e *env, c *client.Client, q *droverv1.StartJobRequest, detach bool) error {
	if detach {
		id, err := e.submit(ctx, c, q)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(e.stdout, id); err != nil {
			return fmt.Errorf("print the job's id: %w", err)
		}
		return nil
	}
	return a.attend(ctx, e, c, func(ctx context.Context) (string, error) { return e.submit(ctx, c, q) }, q.GetRetry().GetMaxRetries() > 0)
}

// Bounds of a submission.
const (
	submitTimeout = 10 * time.Second // of one call
	submitFor     = time.Minute      // of all calls
	standbyFor    = 5 * time.Second  // of all calls to a scheduler that stands by
	submitSilent  = time.Second      // until it is told what is waited for
)

// submit sends a request until it is answered. P1: the request id makes that
// safe. A scheduler that was never reached is given up at once.
func (e *env) submit(ctx context.Context, c *client.Client, q *droverv1.StartJobRequest) (string, error) {
	begin, wait, told := e.now(), 50*time.Millisecond, false
	for {
		one, cancel := context.WithTimeout(ctx, submitTimeout)
		answer, err := c.StartJob(one, q)
		cancel()
		if err == nil {
			return answer.GetJobId(), nil
		}
		why, limit := c.Explain("submit the job", err), submitFor
		if errs.ReasonOf(why) == standby.ReasonStandby { // it may be about to take over
			limit = standbyFor
		}
		spent := e.now().Sub(begin)
		if !follow.Transient(err) || !c.Reached() || spent > limit {
			return "", hinted(why)
		}
		if !told && spent > submitSilent {
			told = true
			problem.Print(e.stderr, hinted(why))
			fmt.Fprintf(e.stderr, "drover: trying again for %v\n", limit)
		}
		if err := pause(ctx, wait); err != nil {
			return "", err
		}
		wait = min(wait*2, time.Second)
	}
}

// hinted adds what the scheduler cannot know: how the command line names things.
func hinted(err error) error {
	e, ok := err.(*errs.Error) //nolint:errorlint // only an error that came straight from a status
	if !ok || e.Hint != "" {
		return err
	}
	switch e.Reason {
	case "PATH_REFUSED":
		return e.WithHint(`paths are relative to a script folder of the worker, see "drover scripts"; --upload sends a file of this machine`)
	case "POLICY":
		return e.WithHint(`what a worker allows is listed by "drover workers show"`)
	default:
		return err
	}
}

// pause waits, or returns why it must not.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
