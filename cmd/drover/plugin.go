package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/droverhq/drover/cmd/drover/internal/client"
	"github.com/droverhq/drover/cmd/drover/internal/problem"
	"github.com/droverhq/drover/cmd/drover/internal/render"
	"github.com/droverhq/drover/cmd/drover/internal/term"
	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/pluginhost"
)

func newPlugin(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use: "plugin", Aliases: []string{"plugins"}, Short: "List and install runner plugins", Args: cobra.ArbitraryArgs, RunE: group,
		Long: "List the runner plugins of workers, and install, verify, remove and test them in a plugin\n" +
			"folder of this machine. A worker notices a change of its folder by itself.",
	}
	cmd.AddCommand(newPluginList(e), newPluginInstall(e), newPluginVerify(e), newPluginRemove(e), newPluginTest(e))
	return cmd
}

// dirFlag registers --dir; without it f gets the default.
func (e *env) dirFlag(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "dir", "", "plugin `folder` (DROVER_PLUGINS)")
}

func (e *env) pluginsIn(dir string) string {
	if dir == "" {
		return e.pluginFolder()
	}
	return dir
}

func newPluginList(e *env) *cobra.Command {
	var o output
	var dir string
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the runners of every worker, or with --dir the plugins of a folder", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := o.printer(e)
			if err != nil {
				return err
			}
			if dir != "" {
				return listFolder(p, dir)
			}
			return e.withClient(func(c *client.Client) error {
				workers, err := listWorkers(cmd.Context(), c, nil)
				if err != nil {
					return err
				}
				return render.List(p, render.RunnerHeader(p.Format), render.Runners(render.Workers(workers)))
			})
		},
	}
	o.register(cmd)
	e.dirFlag(cmd, &dir)
	return cmd
}

// pluginFile is a plugin of a folder as JSON shows it.
type pluginFile struct {
	Name       string   `json:"name"`
	Version    string   `json:"version"`
	Protocol   int      `json:"protocol"`
	SHA256     string   `json:"sha256"`
	Commands   []string `json:"commands"`
	Extensions []string `json:"extensions"`
	State      string   `json:"state"` // ok or refused
	Message    string   `json:"message"`
}

func newPluginFile(name string, m pluginhost.Manifest, err error) pluginFile {
	f := pluginFile{name, m.Version, m.Protocol, m.SHA256, m.Commands, m.Extensions, "ok", ""}
	if f.Commands == nil {
		f.Commands = []string{}
	}
	if f.Extensions == nil {
		f.Extensions = []string{}
	}
	if err != nil {
		f.State, f.Message = "refused", err.Error()
	}
	return f
}

// Key implements render.Row.
func (f pluginFile) Key() string { return f.Name }

// Label implements render.Row.
func (f pluginFile) Label() string { return f.Name }

// Cells implements render.Row.
func (f pluginFile) Cells(p *render.Printer) []string {
	colour := term.Green
	if f.State != "ok" {
		colour = term.Red
	}
	sum := f.SHA256
	if p.Format != render.Wide {
		sum = render.Cut(sum, 13)
	}
	commands := strings.Join(f.Commands, ",")
	return []string{term.Line(f.Name), term.Line(f.Version), p.Palette.Paint(colour, f.State), term.Line(sum), term.Line(commands), term.Line(f.Message)}
}

func listFolder(p *render.Printer, dir string) error {
	found, err := pluginhost.List(dir)
	if err != nil {
		return err
	}
	files := make([]pluginFile, len(found))
	for i, f := range found {
		files[i] = newPluginFile(f.Name, f.Manifest, f.Err)
	}
	return render.List(p, []string{"PLUGIN", "VERSION", "STATE", "SHA256", "COMMANDS", "MESSAGE"}, files)
}

func newPluginInstall(e *env) *cobra.Command {
	var dir, sum, version string
	cmd := &cobra.Command{
		Use: "install FILE|DIR|URL|NAME", Short: "Copy plugins into the plugin folder, with their checksums", Args: exactly("FILE"),
		Long: "Copy a plugin, or every drover-runner-* of a folder, into the plugin folder and write its\n" +
			"manifest. A worker that watches the folder starts it, tries it with a canary, and then gives\n" +
			"it the new jobs; running jobs stay with the version they have. When the canary fails the\n" +
			"version before stays in service, and \"drover plugin ls\" says why.\n\n" +
			"The version that was replaced is kept. With --version, NAME is a plugin, and that version\n" +
			"of it is installed again.",
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := e.pluginsIn(dir)
			if version == "" {
				return e.installPlugins(cmd.Context(), dir, args[0], sum)
			}
			m, err := pluginhost.InstallKept(dir, args[0], version, sum)
			if err == nil {
				e.installed(dir, m)
			}
			return err
		},
	}
	e.dirFlag(cmd, &dir)
	cmd.Flags().StringVar(&sum, "sha256", "", "checksum that the file must have; needed with a URL")
	cmd.Flags().StringVar(&version, "version", "", "install this `version` again, which was there before")
	return cmd
}

func (e *env) installed(dir string, m pluginhost.Manifest) {
	fmt.Fprintf(e.stdout, "installed %s %s in %s: sha256 %s\n", m.Name, m.Version, dir, m.SHA256)
}

func (e *env) installPlugins(ctx context.Context, dir, from, sum string) error {
	files := []string{from}
	switch {
	case strings.HasPrefix(from, "https://") || strings.HasPrefix(from, "http://"):
		file, err := download(ctx, from, sum)
		if err != nil {
			return err
		}
		defer file.remove()
		files = []string{file.path}
	case isFolder(from):
		if sum != "" {
			return problem.UsageError("plugin install", "--sha256 is of one file, %s is a folder", from)
		}
		found, err := pluginhost.Programs(from)
		if err != nil {
			return err
		}
		files = found
		if len(files) == 0 {
			return errs.E("install plugins", errs.NotFound, "PLUGIN_FILE", fmt.Errorf("there is no drover-runner-* in %s", from))
		}
	}
	for _, f := range files {
		m, err := pluginhost.Install(dir, f, sum)
		if err != nil {
			return err
		}
		e.installed(dir, m)
	}
	return nil
}

func newPluginVerify(e *env) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "verify [NAME]", Short: "Check plugins as a worker does before it runs them", Args: between(0, 1, "NAME"),
		RunE: func(_ *cobra.Command, args []string) error {
			dir := e.pluginsIn(dir)
			if len(args) == 1 {
				m, err := pluginhost.Verify(dir, args[0])
				return e.verified(args[0], m, err)
			}
			found, err := pluginhost.List(dir)
			if err != nil {
				return err
			}
			var failure error
			for _, f := range found {
				if err := e.verified(f.Name, f.Manifest, f.Err); err != nil {
					problem.Print(e.stderr, err)
					failure = problem.CodeOf(err)
				}
			}
			return failure
		},
	}
	e.dirFlag(cmd, &dir)
	return cmd
}

func (e *env) verified(name string, m pluginhost.Manifest, err error) error {
	if err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "%s %s is as it was installed: sha256 %s\n", name, m.Version, m.SHA256)
	return nil
}

func newPluginRemove(e *env) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "remove NAME", Aliases: []string{"rm"}, Short: "Take a plugin out of the plugin folder", Args: exactly("NAME"),
		Long: "Take a plugin out of the plugin folder. Its jobs run to their end.",
		RunE: func(_ *cobra.Command, args []string) error {
			if err := pluginhost.Remove(e.pluginsIn(dir), args[0]); err != nil {
				return err
			}
			fmt.Fprintf(e.stdout, "removed %s from %s\n", args[0], e.pluginsIn(dir))
			return nil
		},
	}
	e.dirFlag(cmd, &dir)
	return cmd
}
