package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/droverhq/drover/cmd/drover/internal/client"
	"github.com/droverhq/drover/cmd/drover/internal/problem"
	"github.com/droverhq/drover/cmd/drover/internal/render"
	"github.com/droverhq/drover/cmd/drover/internal/term"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// completeFor bounds how long a shell waits for a Tab.
const completeFor = 2 * time.Second

// completer offers words for an argument or the value of a flag.
type completer = cobra.CompletionFunc

func newCompletion(e *env) *cobra.Command {
	shells := []string{"bash", "zsh", "fish"}
	return &cobra.Command{
		Use: "completion bash|zsh|fish", Short: "Print the completion script of a shell", Args: exactly("SHELL"), ValidArgs: shells,
		Long: "Print the completion script of a shell. It completes verbs and flags, and the names of jobs,\nworkers and scripts as they are now.",
		Example: "  source <(drover completion bash)                       # this shell; add it to ~/.bashrc\n" +
			"  drover completion zsh >\"${fpath[1]}/_drover\"\n  drover completion fish >~/.config/fish/completions/drover.fish",
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(e.stdout, true)
			case "zsh":
				return root.GenZshCompletion(e.stdout)
			case "fish":
				return root.GenFishCompletion(e.stdout, true)
			default:
				return problem.UsageError(verb(cmd), "shell %q is none of %s", args[0], strings.Join(shells, ", "))
			}
		},
	}
}

// completeFlag registers a completer. That a flag exists is a matter of the
// program, not of its input.
func completeFlag(cmd *cobra.Command, flag string, f completer) {
	if err := cmd.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic("unreachable: " + err.Error())
	}
}

// fixed offers words that never change.
func fixed(words ...string) completer {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}

// first offers words for the first argument only.
func first(f completer) completer {
	return func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return f(cmd, args, begun)
	}
}

// ask offers what the scheduler knows; without one, nothing.
func (e *env) ask(f func(context.Context, *client.Client) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(context.Background(), completeFor)
	defer cancel()
	var words []string
	err := e.withClient(func(c *client.Client) error {
		var err error
		words, err = f(ctx, c)
		return err
	})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveError
	}
	return words, cobra.ShellCompDirectiveNoFileComp
}

// completeJobs offers jobs of some states, or of all.
func (e *env) completeJobs(states ...droverv1.JobState) completer {
	return func(_ *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		return e.ask(func(ctx context.Context, c *client.Client) ([]string, error) {
			page, err := c.ListJobs(ctx, &droverv1.ListJobsRequest{States: states, PageSize: 100})
			var words []string
			for _, j := range page.GetJobs() {
				id := j.GetJobId()
				if !strings.HasPrefix(id, begun) || begun == "" {
					id = render.ShortID(id)
				}
				if slices.Contains(args, id) {
					continue
				}
				words = append(words, described(id, render.JobState(j.GetState())+" "+render.Cut(render.NewJob(j).What(), 40)))
			}
			return words, err
		})
	}
}

func (e *env) completeWorkers(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return e.ask(func(ctx context.Context, c *client.Client) ([]string, error) {
		workers, err := listWorkers(ctx, c, nil)
		var words []string
		for _, w := range render.Workers(workers) {
			if !slices.Contains(args, w.Name) {
				words = append(words, described(w.Name, strings.TrimSpace(w.State+" "+render.Labels(w.Labels))))
			}
		}
		return words, err
	})
}

func (e *env) completeScripts(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return e.ask(func(ctx context.Context, c *client.Client) ([]string, error) {
		scripts, err := listScripts(ctx, c, "")
		var words []string
		for _, s := range scripts {
			if word := described(s.GetPath(), s.GetFolder()); !slices.Contains(words, word) {
				words = append(words, word)
			}
		}
		return words, err
	})
}

func (e *env) completeContexts(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	all, err := client.LoadContexts(client.ConfigFile(e.getenv))
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveError
	}
	var words []string
	for _, name := range all.Names() {
		words = append(words, described(name, all.Contexts[name].Address))
	}
	return words, cobra.ShellCompDirectiveNoFileComp
}

// described is a word with what a shell shows beside it.
func described(word, about string) string {
	return fmt.Sprintf("%s\t%s", term.Line(word), term.Line(about))
}
