package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/droverhq/drover/cmd/drover/internal/client"
)

func newAttach(e *env) *cobra.Command {
	a := &attendance{}
	cmd := &cobra.Command{
		Use: "attach JOB", Short: "Attend a job as if it had been started here", Args: exactly("JOB"),
		Long: "Attend a job as \"drover run\" does: its output comes on the same file descriptors, Ctrl-C\n" +
			"stops it, and drover exits with its exit code. To watch only, use \"drover logs -f\".",
		ValidArgsFunction: first(e.completeJobs(live...)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return aroundJob(a.attach(cmd.Context(), e, args[0]))
		},
	}
	a.register(cmd)
	cmd.Flags().BoolVar(&a.fresh, "new", false, "only what is printed from now on")
	return cmd
}

func (a *attendance) attach(ctx context.Context, e *env, ref string) error {
	return e.withClient(func(c *client.Client) error {
		j, err := getOnce(ctx, c, ref)
		if err != nil {
			return err
		}
		id := func(context.Context) (string, error) { return j.GetJobId(), nil }
		return a.attend(ctx, e, c, id, j.GetSpec().GetRetry().GetMaxRetries() > 0)
	})
}
