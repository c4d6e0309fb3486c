package main

import (
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/droverhq/drover/cmd/drover/internal/daemon"
)

func newStore(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use: "store", Short: "Move or mend a scheduler's records",
		Args: cobra.ArbitraryArgs, RunE: group,
	}
	cmd.AddCommand(newStoreCopy(e), newStoreSalvage(e), newStoreAccept(e))
	return cmd
}

func newStoreAccept(e *env) *cobra.Command {
	var newCA bool
	cmd := &cobra.Command{
		Use: "accept PLACE", Short: "Go on with records that are an older copy or have lost writes", Args: exactly("PLACE"),
		Long: "PLACE is the data folder of a scheduler or the URL of a Redis. A scheduler does not start on a Redis that\n" +
			"does not hold any more what it had acknowledged (STORE_LOST_WRITES): an older copy, a replica that lagged\n" +
			"behind, an empty one. On an older copy that a worker recognizes it starts no job (OLD_RECORDS). Put the\n" +
			"newest records in use, if there are any. Otherwise accept what is there: jobs that it shows as queued may\n" +
			"run a second time, and so may those that a client submits again. Jobs that it does not know stay with\n" +
			"their workers: \"drover workers show\" lists them. No scheduler may be active on it.",
		Example: "  drover store accept redis://redis.example.org/0\n  drover store accept /var/lib/drover/scheduler",
		RunE: func(cmd *cobra.Command, args []string) error {
			log := slog.New(slog.NewTextHandler(e.stderr, &slog.HandlerOptions{Level: slog.LevelError}))
			if err := daemon.AcceptStore(cmd.Context(), args[0], newCA, e.getenv, log); err != nil {
				return err
			}
			fmt.Fprintf(e.stderr, "%s is accepted as it is; start the schedulers\n", daemon.ShownStore(args[0]))
			return nil
		},
	}
	cmd.Flags().BoolVar(&newCA, "new-ca", false, "let it belong to the next cluster that uses it, because the CA of its own was made anew")
	return cmd
}

func newStoreSalvage(e *env) *cobra.Command {
	return &cobra.Command{
		Use: "salvage FOLDER", Short: "Go on without the records behind a damage", Args: exactly("FOLDER"),
		Long: "A scheduler whose log is damaged at its end does not start (STORE_DAMAGED). When there is no backup to\n" +
			"restore, salvage ends the log in FOLDER, the scheduler's data folder, where it can be read, and keeps\n" +
			"the damaged one beside it. What was behind is forgotten: jobs that were accepted, ends, stops, request\n" +
			"ids. A job that a client submits again may run a second time.",
		Example: "  drover store salvage /var/lib/drover/scheduler",
		RunE: func(cmd *cobra.Command, args []string) error {
			log := slog.New(slog.NewTextHandler(e.stderr, &slog.HandlerOptions{Level: slog.LevelError}))
			done, records, err := daemon.SalvageStore(cmd.Context(), args[0], log)
			if err != nil {
				return err
			}
			fmt.Fprintf(e.stderr, "%d records are left; %d bytes or more of acknowledged ones are lost\n", records, done.Lost)
			if done.Kept != "" {
				fmt.Fprintf(e.stderr, "the damaged log is %s\n", done.Kept)
			}
			return nil
		},
	}
}

func newStoreCopy(e *env) *cobra.Command {
	return &cobra.Command{
		Use: "copy FROM TO", Short: "Copy all records into an empty store", Args: exactly("FROM", "TO"),
		Long: "FROM and TO are each the data folder of a scheduler or the URL of a Redis (\"drover help stores\").\n" +
			"End the scheduler first: what it does after the copy was begun is not in it. Afterwards start one\n" +
			"on TO only; two schedulers that go on from the same records would both believe to be in charge.",
		Example: "  drover store copy /var/lib/drover/scheduler redis://redis.example.org/0",
		RunE: func(cmd *cobra.Command, args []string) error {
			log := slog.New(slog.NewTextHandler(e.stderr, &slog.HandlerOptions{Level: slog.LevelError}))
			n, err := daemon.CopyStore(cmd.Context(), args[0], args[1], e.getenv, log)
			if err != nil {
				return err
			}
			fmt.Fprintf(e.stderr, "%d records are in %s\n", n, daemon.ShownStore(args[1]))
			return nil
		},
	}
}

// storeFlag registers --store.
func storeFlag(f *pflag.FlagSet, to *string, usage string) {
	*to = "embedded"
	f.Var((*storeSetting)(to), "store", usage)
}

// storeSetting is a flag that does not tell the password of a URL when it is
// shown, as by --print-config.
type storeSetting string

// String implements pflag.Value.
func (s *storeSetting) String() string { return daemon.ShownStore(string(*s)) }

// Set implements pflag.Value.
func (s *storeSetting) Set(text string) error {
	*s = storeSetting(text)
	return nil
}

// Type implements pflag.Value.
func (s *storeSetting) Type() string { return "string" }

const topicStore = `The scheduler keeps its records in one of these (--store):

  embedded            in its data folder; the default
  redis://HOST/DB     in a Redis (or Valkey) server, version 7 or later
  rediss://HOST/DB    the same over TLS
  redis+unix:///PATH  the same over a socket
  memory:             nowhere: all is forgotten when the scheduler ends

The whole of a URL is redis://USER:PASSWORD@HOST:PORT/DB?NAME=VALUE&... with

  prefix         of all keys, so that clusters can share a server (drover)
  password_file  file with the password; read for each new connection
  ca, cert, key  files for rediss://: whom to trust (else the system's
                 authorities), and the scheduler's own certificate
  timeout        of a connection, a read, a write (5s)
  patience       how long to try again while Redis is away (30s)
  pool           most connections (16)
  db             number of the database, of a redis+unix:// URL (0)

Without a password in the URL or a password_file it comes from the file that
DROVER_REDIS_PASSWORD_FILE names, or from DROVER_REDIS_PASSWORD. Prefer these:
a command line can be seen by every user of the machine.

Redis must run with appendonly yes, appendfsync always and maxmemory-policy
noeviction, or it loses acknowledged jobs; the scheduler looks at its start and
says so in its log. Only the newest scheduler can write: an older one that is
still there ends at its next write.`
