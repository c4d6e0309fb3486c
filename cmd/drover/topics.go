package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/droverhq/drover/core/errs"
)

// newHelp is "drover help [VERB|TOPIC]". Cobra's own ends with 0 for a topic
// that does not exist.
func newHelp() *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND|TOPIC]", Short: "Show help for a command or a topic",
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			parent, _, err := cmd.Root().Find(args)
			var words []string
			if err == nil {
				for _, c := range parent.Commands() {
					if c.IsAvailableCommand() || c.IsAdditionalHelpTopicCommand() {
						words = append(words, described(c.Name(), c.Short))
					}
				}
			}
			return words, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			found, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return errs.E("help", errs.NotFound, "TOPIC", fmt.Errorf("there is no command or topic %q", strings.Join(args, " "))).
					WithHint(`"drover help" lists them`)
			}
			found.InitDefaultHelpFlag()
			return found.Help()
		},
	}
}

// helpTopics are texts that belong to no single verb.
func helpTopics() []*cobra.Command {
	topic := func(name, short, long string) *cobra.Command {
		c := &cobra.Command{Use: name, Short: short, Long: long}
		c.SetHelpFunc(func(c *cobra.Command, _ []string) { fmt.Fprintln(c.OutOrStdout(), c.Long) })
		return c
	}
	return []*cobra.Command{
		topic("exit-codes", "What exit codes mean", topicExitCodes),
		topic("connection", "How the scheduler is found", topicConnection),
		topic("output-formats", "Tables, JSON and what scripts can rely on", topicFormats),
		topic("placement", "How a worker is chosen for a job", topicPlacement),
		topic("stores", "Where the scheduler keeps its records", topicStore),
	}
}

const topicExitCodes = `Exit codes of every command:

  0    done
  1    the operation went wrong
  2    usage: a mistake on the command line or in a request
  3    not found
  4    not authorized
  5    the scheduler cannot be reached

run, exec, attach, rerun and wait stand for a job and exit with its own code:

  n    the exit code of the job
  124  the job ran into --timeout or --idle-timeout
  125  drover failed before or around the job: the scheduler cannot be reached,
       the worker is unknown, the job was lost
  126  rejected by policy: a path that leads out of the script folder, a command
       that the worker's policy does not allow
  127  no such script or command
  128+n  signal n ended the job: 137 is SIGKILL, 143 is SIGTERM
  2    a mistake on the command line; nothing was asked of the scheduler

logs exits with 1 when bytes of the output cannot be had any more.`

const topicConnection = `The scheduler's address and your certificate are looked for, each for itself, in
this order:

  1. the flags --address, --certs, --context
  2. the environment: DROVER_ADDRESS, DROVER_CERTS, DROVER_CONTEXT
  3. the current context of ~/.config/drover/config.yaml ("drover context")
  4. the dev cluster, if one was started with "drover dev"

A certificate folder holds tls.crt, tls.key and ca.crt. An admin makes one with
"drover certs issue NAME --role ROLE". Every connection is TLS 1.3 with
certificates on both sides; there is no other way in.

Of several schedulers (drover scheduler --standby) give all addresses, with
commas between: HOST1:7420,HOST2:7420. The active one is found and followed.

"drover context ls" shows what is in use.`

const topicFormats = `-o chooses how a list or a thing is written:

  table  columns for people (the default); ids are cut to their last 8 digits
  wide   more columns, whole ids
  json   one JSON document: an array for lists, an object for one thing
  jsonl  one JSON object per line; for --watch
  yaml   the same as json, as YAML
  name   names or ids only, one per line; -q prints ids

The field names of json, jsonl and yaml are stable. Times are RFC 3339,
durations are seconds, exit_code is null while none was observed.

Results go to stdout, everything else to stderr. Colours are used on a terminal
only; NO_COLOR or --no-color turns them off. On a terminal, control characters
in a job's output are shown, not obeyed, unless --raw is given; output that is
piped is byte for byte what the job wrote.`

const topicPlacement = `A job runs on the worker that --worker names, or else on an online worker that
serves the command, publishes the script, has every label of --label and a free
slot; of several the one with the smallest share of its slots taken.

When none has a free slot the job waits: "drover why JOB" says what for, and
--queue-timeout bounds the wait. A script, command or worker that nobody knows
is refused at once, unless --queue-timeout says that it is worth waiting for.

A job that runs on a worker that cannot be reached is shown as UNREACHABLE. It
is not started anywhere else, because it may still run.`
