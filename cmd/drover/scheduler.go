package main

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/droverhq/drover/cmd/drover/internal/config"
	"github.com/droverhq/drover/cmd/drover/internal/daemon"
	"github.com/droverhq/drover/core/scheduler"
	"github.com/droverhq/drover/core/telemetry"
)

// daemonFlags are the settings that both daemons have.
type daemonFlags struct {
	config      string
	printConfig bool
	logLevel    string
	logFormat   string
}

func (d *daemonFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&d.logLevel, "log-level", "info", "least level of log lines: debug, info, warn, error")
	f.StringVar(&d.logFormat, "log-format", "text", "form of log lines: text, json")
	f.StringVar(&d.config, "config", "", "configuration `file`, YAML; keys are the names of flags with _ for -")
	f.BoolVar(&d.printConfig, "print-config", false, "show every setting with where it comes from, and end")
}

// load fills the flags from environment and file. done tells that the settings
// were only to be shown.
func (d *daemonFlags) load(e *env, cmd *cobra.Command, prefix string) (log *slog.Logger, done bool, err error) {
	loader := config.New(prefix, append([]string{"config", "print-config"}, globalFlags...)...)
	origin, err := loader.Load(cmd.Flags(), d.config)
	if err != nil {
		return nil, false, err
	}
	if d.printConfig {
		return nil, true, config.Print(e.stdout, cmd.Flags(), origin)
	}
	log, err = telemetry.NewLogger(e.stderr, telemetry.Format(d.logFormat), d.logLevel)
	return log, false, err
}

// place is a folder's default: system-wide for root, else of the user.
func place(e *env, system string, user ...string) string {
	if os.Getuid() == 0 {
		return system
	}
	base := e.getenv("XDG_DATA_HOME")
	if base == "" {
		base = filepath.Join(e.getenv("HOME"), ".local", "share")
	}
	return filepath.Join(append([]string{base, "drover"}, user...)...)
}

func newScheduler(e *env) *cobra.Command {
	var (
		o = daemon.SchedulerOptions{Getenv: e.getenv, Version: version}
		d daemonFlags

		caller, live = size(scheduler.DefaultCallerBytes), size(scheduler.DefaultBytes)
	)
	cmd := &cobra.Command{
		Use: "scheduler", Short: "Run the scheduler daemon", Args: exactly(),
		Long: "The scheduler accepts jobs durably, places them on workers, and forwards stops and output.\n" +
			"Every flag can also be set by a key of the configuration file, or by the environment\n" +
			"variable DROVER_SCHEDULER_ and the flag's name.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, done, err := d.load(e, cmd, "DROVER_SCHEDULER")
			if err != nil || done {
				return err
			}
			o.Budget = scheduler.Budget{Caller: int64(caller), All: int64(live)}
			ctx, stop := e.untilSignal(cmd.Context())
			defer stop()
			return daemon.Scheduler(ctx, o, log)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Listen, "listen", "127.0.0.1:7420", "`address` for clients and workers")
	f.StringVar(&o.Advertise, "advertise", "", "`address` that a standby tells of this one; empty: the one of --listen")
	storeFlag(f, &o.Store, "where records are kept: embedded (in the data folder), memory: (nowhere), or the\n`URL` of a Redis: redis://, rediss:// (TLS), redis+unix://; see \"drover help stores\"")
	f.StringVar(&o.Data, "data", place(e, "/var/lib/drover/scheduler", "scheduler"), "data `folder`")
	f.StringVar(&o.Certs, "certs", place(e, "/etc/drover/certs", "certs"), "certificate `folder`: tls.crt, tls.key, ca.crt")
	f.StringVar(&o.CA, "ca", "", "`folder` of the CA, to let workers join and renew; empty: this scheduler does not")
	f.DurationVar(&o.Lease, "lease", scheduler.DefaultLease, "how long a worker is ONLINE without a heartbeat")
	f.DurationVar(&o.Heartbeat, "heartbeat", scheduler.DefaultHeartbeat, "how often workers send heartbeats")
	f.BoolVar(&o.Standby, "standby", false, "with a Redis: wait until no other scheduler is active, then take over")
	f.DurationVar(&o.Takeover, "takeover", daemon.DefaultTakeover, "with a Redis: how long this one may be silent before a standby takes over")
	f.DurationVar(&o.Retention.For, "keep-jobs-for", 30*24*time.Hour, "how long records of ended jobs are kept; 0s: for ever")
	f.DurationVar(&o.Retention.FailedFor, "keep-failed-for", 90*24*time.Hour, "the same, of jobs that are FAILED, LOST or REJECTED")
	f.IntVar(&o.Retention.Count, "keep-jobs", 1_000_000, "how many ended jobs are kept, the newest; 0: all")
	f.DurationVar(&o.Retention.Requests, "keep-requests-for", 24*time.Hour, "how long a request_id is recognized at least: its job is kept so long in any case")
	f.Var(&caller, "caller-bytes", "how many bytes of input, arguments and environment the live jobs of one caller may hold")
	f.Var(&live, "live-bytes", "the same, of all callers together; input is kept in the store, not in memory")
	d.register(cmd)
	cmd.AddCommand(newSchedulerBackup(e), newSchedulerRestore(e))
	return cmd
}

// untilSignal ends the context at the first SIGINT or SIGTERM.
func (e *env) untilSignal(ctx context.Context) (context.Context, func()) {
	first, _, stop := e.untilSignals(ctx)
	return first, stop
}

// untilSignals ends first at the first SIGINT or SIGTERM and second at the
// second.
func (e *env) untilSignals(ctx context.Context) (first, second context.Context, stop func()) {
	first, cancelFirst := context.WithCancel(ctx)
	second, cancelSecond := context.WithCancel(ctx)
	signals, release := e.notify(os.Interrupt, syscall.SIGTERM)
	finished := make(chan struct{})
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for _, cancel := range []context.CancelFunc{cancelFirst, cancelSecond} {
			select {
			case <-signals:
				cancel()
			case <-finished:
				return
			}
		}
	}()
	return first, second, func() {
		close(finished)
		<-gone
		release()
		cancelFirst()
		cancelSecond()
	}
}
