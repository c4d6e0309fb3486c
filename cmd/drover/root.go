package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/droverhq/drover/cmd/drover/internal/config"
	"github.com/droverhq/drover/cmd/drover/internal/problem"
	"github.com/droverhq/drover/cmd/drover/internal/render"
	"github.com/droverhq/drover/core/errs"
)

// globalFlags are the names of the flags that every verb takes. They are no
// settings of a daemon.
var globalFlags = []string{"address", "context", "no-color"}

// Groups of the help text.
const (
	groupJobs    = "jobs"
	groupCluster = "cluster"
	groupSetup   = "setup"
)

// entry is a verb before its command is made.
type entry struct {
	name, group string
	make        func(*env) *cobra.Command
}

// verbs are the verbs below the root.
func verbs() []entry {
	return []entry{
		{"run", groupJobs, newRun},
		{"exec", groupJobs, newExec},
		{"stop", groupJobs, newStop},
		{"status", groupJobs, newStatus},
		{"why", groupJobs, newWhy},
		{"wait", groupJobs, newWait},
		{"attach", groupJobs, newAttach},
		{"logs", groupJobs, newLogs},
		{"jobs", groupJobs, newJobs},
		{"ps", groupJobs, newPs},
		{"rerun", groupJobs, newRerun},
		{"dev", groupCluster, newDev},
		{"scheduler", groupCluster, newScheduler},
		{"worker", groupCluster, newWorkerVerb},
		{"workers", groupCluster, newWorkers},
		{"scripts", groupCluster, newScripts},
		{"plugin", groupCluster, newPlugin},
		{"certs", groupSetup, newCerts},
		{"context", groupSetup, newContext},
		{"store", groupSetup, newStore},
		{"bench", groupSetup, newBench},
		{"chaos", groupSetup, newChaos},
		{"version", groupSetup, newVersion},
		{"completion", groupSetup, newCompletion},
	}
}

// needed are the verbs that a command line can be about: the one that it names,
// or all. Making the flags of all verbs takes as long as a round trip to the
// scheduler.
func needed(args []string) []entry {
	all := verbs()
	if i := slices.IndexFunc(all, func(v entry) bool { return v.name == firstWord(args) }); i >= 0 {
		return all[i : i+1]
	}
	return all
}

// firstWord is the first argument after the global flags; "" when there is none
// or another flag comes first.
func firstWord(args []string) string {
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		name, _, whole := strings.Cut(strings.TrimPrefix(args[0], "--"), "=")
		switch {
		case name == "no-color", whole && isTarget(name):
			args = args[1:]
		case isTarget(name) && len(args) > 1:
			args = args[2:]
		default:
			return ""
		}
	}
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

// isTarget tells whether a global flag has a value: those that find the scheduler.
func isTarget(flag string) bool {
	return slices.Contains([]string{"address", "certs", "context"}, flag)
}

// newRoot makes the command tree for one run: what args can be about.
func newRoot(e *env, args []string) *cobra.Command {
	root := &cobra.Command{
		Use: "drover", Short: "Run scripts and commands on other machines",
		Long: "drover runs scripts and commands on other machines and feels like running them here.\n\n" +
			"Start a cluster on this machine with \"drover dev\", then try \"drover run count.sh 3\".",
		SilenceUsage: true, SilenceErrors: true,
		Args: cobra.ArbitraryArgs, RunE: group, SuggestionsMinimumDistance: 2,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.SetIn(e.stdin)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	root.AddGroup(
		&cobra.Group{ID: groupJobs, Title: "Jobs:"},
		&cobra.Group{ID: groupCluster, Title: "Cluster:"},
		&cobra.Group{ID: groupSetup, Title: "Setting up:"},
	)
	e.globals(root)
	for _, v := range needed(args) {
		c := v.make(e)
		c.GroupID = v.group
		root.AddCommand(c)
	}
	root.AddCommand(helpTopics()...)
	root.SetHelpCommand(newHelp())
	root.SetFlagErrorFunc(flagError)
	addMan(root)
	root.SetArgs(args)
	return root
}

// globals registers the flags that find the scheduler.
func (e *env) globals(root *cobra.Command) {
	f := root.PersistentFlags()
	f.StringVar(&e.target.Address, "address", "", "scheduler as HOST:PORT; of several, with commas between, the active one is found (DROVER_ADDRESS)")
	f.StringVar(&e.target.Certs, "certs", "", "`folder` of your certificate: tls.crt, tls.key, ca.crt (DROVER_CERTS)")
	f.StringVar(&e.target.Context, "context", "", "`name` of a context (DROVER_CONTEXT); see \"drover context\"")
	f.BoolVar(&e.noColor, "no-color", false, "no colours (NO_COLOR)")
	completeFlag(root, "context", e.completeContexts)
}

// newWorkerVerb lets people who know "worker" as the name of the daemon type
// "drover worker ls".
func newWorkerVerb(e *env) *cobra.Command {
	c, ls := newWorker(e), newWorkersList(e)
	ls.Hidden = true
	c.AddCommand(ls)
	return c
}

// group is the RunE of a command that only has others below it.
func group(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	e := errs.E(verb(cmd), errs.Invalid, "USAGE", fmt.Errorf("there is no command %q", args[0]))
	if verb(cmd) == "" {
		e = errs.E(fmt.Sprintf("there is no command %q", args[0]), errs.Invalid, "", nil)
	}
	cmd.SuggestionsMinimumDistance = cmd.Root().SuggestionsMinimumDistance
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return e.WithHint("did you mean %q?", strings.TrimSpace(verb(cmd)+" "+near[0]))
	}
	return e.WithHint("see %q", strings.TrimSpace("drover "+verb(cmd))+" --help")
}

// verb is the path of a command without the program.
func verb(cmd *cobra.Command) string {
	_, rest, _ := strings.Cut(cmd.CommandPath(), " ")
	return rest
}

// flagError turns pflag's errors into usage errors.
func flagError(cmd *cobra.Command, err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return err
	}
	if bad := (*pflag.InvalidValueError)(nil); errors.As(err, &bad) {
		err = fmt.Errorf("--%s: %w", bad.GetFlag().Name, config.Mistake(bad.GetFlag(), bad.GetValue(), bad.Unwrap()))
	}
	return errs.E(strings.TrimSpace("read flags of "+cmd.CommandPath()), errs.Invalid, "USAGE", err).
		WithHint("see \"%s --help\"", cmd.CommandPath())
}

// exactly wants one argument per name.
func exactly(names ...string) cobra.PositionalArgs { return between(len(names), len(names), names...) }

// atLeast wants one argument per name and takes more of the last.
func atLeast(names ...string) cobra.PositionalArgs { return between(len(names), -1, names...) }

// between wants from least to most arguments; most -1 is any number.
func between(least, most int, names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return problem.UsageError(verb(cmd), "%s is missing", names[len(args)])
		case most >= 0 && len(args) > most:
			return problem.UsageError(verb(cmd), "there is one argument too many: %q", args[most])
		default:
			return nil
		}
	}
}

// output are the flags of verbs that list or show.
type output struct {
	format string
	quiet  bool
}

func (o *output) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&o.format, "output", "o", "", "output `format`: "+strings.Join(render.Formats(), ", "))
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print ids only")
	completeFlag(cmd, "output", fixed(render.Formats()...))
}

// printer makes the printer for standard output.
func (o *output) printer(e *env) (*render.Printer, error) {
	format, err := render.ParseFormat(o.format)
	if err != nil {
		return nil, err
	}
	return &render.Printer{Out: e.stdout, Format: format, Quiet: o.quiet, Palette: e.palette(e.stdout), Now: e.now()}, nil
}

// text tells whether people read the output.
func (o *output) text() bool {
	return !o.quiet && slices.Contains([]string{"", string(render.Table), string(render.Wide)}, o.format)
}
