package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/droverhq/drover/cmd/drover/internal/client"
	"github.com/droverhq/drover/cmd/drover/internal/problem"
	"github.com/droverhq/drover/core/errs"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// rerunOptions are the flags of rerun.
type rerunOptions struct {
	attendance
	detach  bool
	worker  string
	any     bool
	secrets []string
	stdin   string
}

func newRerun(e *env) *cobra.Command {
	o := &rerunOptions{}
	cmd := &cobra.Command{
		Use: "rerun JOB", Short: "Ask for the same job once more", Args: exactly("JOB"),
		Long: "Ask for the same job once more, with the script as it is now, and attend it as \"drover run\"\n" +
			"does. Secrets and standard input are not kept with a job: give them again. Neither are\n" +
			"scripts that were sent with --upload: use \"drover run --upload\" for them.",
		ValidArgsFunction: first(e.completeJobs()),
		RunE: func(cmd *cobra.Command, args []string) error {
			return aroundJob(o.run(cmd.Context(), e, args[0]))
		},
	}
	o.attendance.register(cmd)
	f := cmd.Flags()
	f.BoolVarP(&o.detach, "detach", "d", false, "do not wait; print the job's id only")
	f.StringVarP(&o.worker, "worker", "w", "", "worker to run on this time, by `id or name`")
	f.BoolVar(&o.any, "any", false, "run on any worker that can, whatever was asked for before")
	f.StringArrayVar(&o.secrets, "secret", nil, "`NAME=@FILE`")
	f.StringVar(&o.stdin, "stdin", "", "`file` for standard input, - for your own")
	completeFlag(cmd, "worker", e.completeWorkers)
	return cmd
}

func (o *rerunOptions) run(ctx context.Context, e *env, ref string) error {
	if o.any && o.worker != "" {
		return problem.UsageError("rerun", "--any and --worker exclude one another")
	}
	return e.withClient(func(c *client.Client) error {
		j, err := getOnce(ctx, c, ref)
		if err != nil {
			return err
		}
		if j.GetSpec().GetUploadSha256() != "" {
			return errs.E("rerun", errs.Invalid, "USAGE", fmt.Errorf("the script %q was sent with the job and is not kept", j.GetPath())).
				WithHint("send it again with \"drover run --upload FILE\"")
		}
		q := requestOf(j.GetSpec())
		if o.any || o.worker != "" {
			q.WorkerId = o.worker
		}
		if q.Secrets, err = readSecrets(e, "rerun", o.secrets); err != nil {
			return err
		}
		if err := sameSecrets(j.GetSpec(), q.GetSecrets()); err != nil {
			return err
		}
		if j.GetStdinBytes() > 0 && o.stdin == "" {
			return errs.E("rerun", errs.Invalid, "USAGE", fmt.Errorf("the job had %d bytes of standard input, which are not kept", j.GetStdinBytes())).
				WithHint("give it again with --stdin FILE; --stdin /dev/null is none")
		}
		if q.Stdin, err = readStdin(e, o.stdin); err != nil {
			return err
		}
		return o.start(ctx, e, c, q, o.detach)
	})
}

// requestOf asks for what a spec asked for, as a new request.
func requestOf(s *droverv1.JobSpec) *droverv1.StartJobRequest {
	return &droverv1.StartJobRequest{
		WorkerId: s.GetWorkerId(), Path: s.GetPath(), Command: s.GetCommand(), Args: s.GetArgs(), Env: s.GetEnv(), Labels: s.GetLabels(),
		Timeout: s.GetTimeout(), IdleTimeout: s.GetIdleTimeout(), QueueTimeout: s.GetQueueTimeout(), Grace: s.GetGrace(),
		Linger: s.GetLinger(), DetachChildren: s.GetDetachChildren(), Limits: s.GetLimits(), Workdir: s.GetWorkdir(),
		User: s.GetUser(), Name: s.GetName(), Priority: s.GetPriority(), Retry: s.GetRetry(),
		OutputPolicy: s.GetOutputPolicy(), OutputLimit: s.GetOutputLimit(), RequestId: uuid.NewString(),
		OnPartition: s.GetOnPartition(),
	}
}

// sameSecrets makes sure that no job runs without a secret it had.
func sameSecrets(s *droverv1.JobSpec, given map[string][]byte) error {
	var missing []string
	for _, name := range slices.Sorted(maps.Keys(s.GetSecrets())) {
		if _, ok := given[name]; !ok {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return errs.E("rerun", errs.Invalid, "USAGE", fmt.Errorf("the job had the secrets %s, which are not kept", strings.Join(missing, ", "))).
		WithHint("give them again, such as --secret %s=@FILE", missing[0])
}
