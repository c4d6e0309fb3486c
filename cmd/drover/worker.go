package main

import (
	"runtime"
	"time"

	"github.com/spf13/cobra"

	"github.com/droverhq/drover/cmd/drover/internal/daemon"
)

func newWorker(e *env) *cobra.Command {
	var (
		o       daemon.WorkerOptions
		d       daemonFlags
		quotaMB int64
	)
	cmd := &cobra.Command{
		Use: "worker", Short: "Run the worker daemon",
		Long: "The worker runs jobs: scripts of its script folders through runner plugins, and what its policy\n" +
			"file allows besides. At SIGTERM it takes nothing new, lets jobs finish for --drain-timeout, stops\n" +
			"the rest and leaves the cluster; a second SIGTERM ends it at once and leaves jobs to its next start.\n" +
			"Every flag can also be set by a key of the configuration file, or by the environment\n" +
			"variable DROVER_WORKER_ and the flag's name.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return group(cmd, args)
			}
			log, done, err := d.load(e, cmd, "DROVER_WORKER")
			if err != nil || done {
				return err
			}
			o.OutputQuota, o.Version = quotaMB<<20, version
			leave, now, stop := e.untilSignals(cmd.Context())
			defer stop()
			return daemon.Worker(leave, now, o, log)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Scheduler, "scheduler", "127.0.0.1:7420", "`address` of the scheduler; of several, with commas between, the active one is found")
	f.StringVar(&o.Listen, "listen", "127.0.0.1:7430", "`address` for the scheduler's calls")
	f.StringVar(&o.Advertise, "advertise", "", "`address` that the scheduler dials; empty: the one of --listen")
	f.StringVar(&o.Name, "name", "", "name of the worker; empty: the one of its certificate, which it must equal")
	f.StringArrayVar(&o.Scripts, "scripts", []string{place(e, "/etc/drover/scripts", "scripts")}, "script `folder`; can be repeated")
	f.StringVar(&o.Plugins, "plugins", place(e, "/usr/lib/drover/plugins", "plugins"), "`folder` of the runner plugins")
	f.StringToStringVar(&o.Labels, "label", nil, "label `K=V` that jobs can ask for; can be repeated")
	f.IntVar(&o.Slots, "slots", max(16, 4*runtime.NumCPU()), "how many jobs run at once")
	f.StringVar(&o.Policy, "policy", "", "policy `file`: which commands, users and environment names jobs may use")
	f.StringVar(&o.Data, "data", place(e, "/var/lib/drover/worker", "worker"), "data `folder`")
	f.StringVar(&o.Certs, "certs", place(e, "/etc/drover/certs", "certs"), "certificate `folder`: tls.crt, tls.key, ca.crt")
	f.Int64Var(&quotaMB, "output-quota", 0, "`MiB` of output to keep in all; 0: 8 GiB, or half of the free space if less")
	f.DurationVar(&o.Retention.For, "keep-output-for", 0, "how long the output of ended attempts is kept; 0s: as long as the scheduler keeps the record")
	f.DurationVar(&o.Retention.FailedFor, "keep-failed-output-for", 0, "the same, of attempts that are FAILED, LOST or REJECTED")
	f.IntVar(&o.Retention.Count, "keep-outputs", 0, "how many ended attempts have their output kept, the newest; 0: all")
	f.StringVar(&o.Cgroups, "cgroups", "", "limit the use of cgroups: v1, none; empty: the best there is")
	f.DurationVar(&o.DrainTimeout, "drain-timeout", 30*time.Second, "how long jobs may go on after SIGTERM; 0s stops them at once")
	f.DurationVar(&o.PluginIdle, "plugin-idle", 10*time.Minute, "how long a plugin without worker and jobs lives")
	d.register(cmd)
	return cmd
}
