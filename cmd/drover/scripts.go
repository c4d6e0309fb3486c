package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/droverhq/drover/cmd/drover/internal/client"
	"github.com/droverhq/drover/cmd/drover/internal/render"
	"github.com/droverhq/drover/core/errs"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// scriptsOptions are the flags of scripts.
type scriptsOptions struct {
	output
	worker string
}

func newScripts(e *env) *cobra.Command {
	o := &scriptsOptions{}
	cmd := &cobra.Command{
		Use: "scripts [ls]", Aliases: []string{"script"}, Short: "List the scripts that workers publish", Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return group(cmd, args)
			}
			return o.run(cmd.Context(), e)
		},
	}
	o.register(e, cmd)
	cmd.AddCommand(newScriptsList(e), newScriptsShow(e))
	return cmd
}

func newScriptsList(e *env) *cobra.Command {
	o := &scriptsOptions{}
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the scripts that workers publish", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), e) },
	}
	o.register(e, cmd)
	return cmd
}

func (o *scriptsOptions) register(e *env, cmd *cobra.Command) {
	o.output.register(cmd)
	cmd.Flags().StringVarP(&o.worker, "worker", "w", "", "only scripts of this worker, by `id or name`")
	completeFlag(cmd, "worker", e.completeWorkers)
}

func (o *scriptsOptions) run(ctx context.Context, e *env) error {
	p, err := o.printer(e)
	if err != nil {
		return err
	}
	return e.withClient(func(c *client.Client) error {
		scripts, err := viewScripts(ctx, c, o.worker, "")
		if err != nil {
			return err
		}
		return render.List(p, render.ScriptHeader(p.Format), scripts)
	})
}

func newScriptsShow(e *env) *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use: "show SCRIPT", Short: "Show every version of a script and who has it", Args: exactly("SCRIPT"),
		ValidArgsFunction: first(e.completeScripts),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := o.printer(e)
			if err != nil {
				return err
			}
			return e.withClient(func(c *client.Client) error { return showScript(cmd.Context(), c, p, args[0]) })
		},
	}
	o.register(cmd)
	return cmd
}

func showScript(ctx context.Context, c *client.Client, p *render.Printer, path string) error {
	found, err := viewScripts(ctx, c, "", path)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return errs.E("show the script", errs.NotFound, "SCRIPT_NOT_FOUND", fmt.Errorf("no worker has the script %q", path)).
			WithHint(`"drover scripts" lists what there is`)
	}
	if p.Quiet || p.Format != render.Table && p.Format != render.Wide {
		return render.List(p, nil, found)
	}
	for i, s := range found {
		if i > 0 {
			fmt.Fprintln(p.Out)
		}
		if err := render.WriteFields(p.Out, s.Details(p)); err != nil {
			return err
		}
	}
	return nil
}

// viewScripts lists scripts with the names of their workers, all or those of
// one path, with or without its folder in front.
func viewScripts(ctx context.Context, c *client.Client, worker, path string) ([]render.Script, error) {
	scripts, err := listScripts(ctx, c, worker)
	if err != nil {
		return nil, err
	}
	workers, err := listWorkers(ctx, c, nil)
	if err != nil {
		return nil, err
	}
	names := render.WorkerNames(workers)
	out := []render.Script{}
	for _, s := range scripts {
		if path == "" || s.GetPath() == path || s.GetFolder()+"/"+s.GetPath() == path {
			out = append(out, render.NewScript(s, names))
		}
	}
	return out, nil
}

// listScripts collects all pages.
func listScripts(ctx context.Context, c *client.Client, worker string) ([]*droverv1.Script, error) {
	var all []*droverv1.Script
	q := &droverv1.ListScriptsRequest{PageSize: maxPage, WorkerId: worker}
	for {
		one, cancel := call(ctx)
		page, err := c.ListScripts(one, q)
		cancel()
		if err != nil {
			return nil, c.Explain("list scripts", err)
		}
		all = append(all, page.GetScripts()...)
		if q.PageToken = page.GetNextPageToken(); q.PageToken == "" {
			return all, nil
		}
	}
}
