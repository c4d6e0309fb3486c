package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/core/auth"
	"github.com/droverhq/drover/core/cgroup"
	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/journal"
	"github.com/droverhq/drover/core/lifecycle"
	"github.com/droverhq/drover/core/output"
	"github.com/droverhq/drover/core/pluginhost"
	"github.com/droverhq/drover/core/rpc"
	"github.com/droverhq/drover/core/scripts"
	"github.com/droverhq/drover/core/worker"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// WorkerOptions are the settings of the worker daemon.
type WorkerOptions struct {
	Scheduler    string // HOST:PORT, or several with commas between
	Listen       string
	Advertise    string // "" derives it from Listen
	Name         string // "" is the certificate's; anything else must equal it
	Scripts      []string
	Plugins      string
	Labels       map[string]string
	Slots        int
	Policy       string
	Data         string
	Certs        string
	OutputQuota  int64
	Retention    output.Retention
	Cgroups      string        // "", v1 or none
	DrainTimeout time.Duration // at SIGTERM; negative waits for ever
	PluginIdle   time.Duration
	Version      string
}

// shutdownTimeout bounds the end of the plugins after the last job.
const shutdownTimeout = 10 * time.Second

// parts are what a worker daemon is made of.
type parts struct {
	source  *certs.Source
	journal *journal.Journal
	output  *output.Store
	scripts *scripts.Library
	groups  *cgroup.Manager
	host    *pluginhost.Host
	worker  *worker.Worker
	server  *rpc.Server
	conn    interface{ Close() error }
	renewer *certs.Renewer

	connections *rpc.Connections
}

// Worker runs the worker daemon. When ctx ends it drains and leaves for good;
// when now ends too it stops at once and leaves jobs to its next life.
func Worker(ctx, now context.Context, o WorkerOptions, log *slog.Logger) (err error) {
	if _, err := rpc.SplitAddresses(o.Scheduler); err != nil {
		return errs.Field("start the worker", "scheduler", "ADDRESS", "%q is not HOST:PORT, or several with commas between", o.Scheduler)
	}
	p, err := build(o, log)
	if p != nil {
		defer func() { err = errors.Join(err, p.close()) }()
	}
	if err != nil {
		return err
	}
	log.Info("worker is up", "address", p.server.Address(), "name", p.source.ID().Name, "cgroups", p.groups.Mode(), "version", o.Version)
	var g lifecycle.Group
	g.Stage(map[string]lifecycle.Runner{
		"certificates": p.source, "connections": p.connections, "output": p.output, "scripts": p.scripts, "plugins": p.host, "memory": resting(log),
	})
	g.Stage(map[string]lifecycle.Runner{"worker": p.worker, "renewal": p.renewer})
	g.Stage(map[string]lifecycle.Runner{"server": p.server})
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	done := make(chan error, 1)
	go func() { done <- g.Run(running) }()
	select {
	case err := <-done:
		return err
	case <-now.Done():
	case <-ctx.Done():
		if err := p.leave(now, o.DrainTimeout, log); err != nil && now.Err() == nil {
			log.Warn("not left in good order", "error", err)
		}
	}
	stop()
	err = <-done
	log.Info("worker is down")
	return err
}

// leave drains, deregisters and ends the plugins (P17), also when the scheduler is away
// or does not know the worker any more. Only what still runs keeps its plugin, for the
// next life of the worker.
func (p *parts) leave(ctx context.Context, deadline time.Duration, log *slog.Logger) error {
	log.Info("leaving", "drain_timeout", deadline)
	err := p.worker.Drain(ctx, deadline)
	if ctx.Err() != nil || p.worker.Counts().Live > 0 {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, shutdownTimeout)
	defer cancel()
	killed, hidden := p.groups.EndHidden(ctx, p.host.Processes())
	if killed > 0 {
		log.Warn("processes of stopped jobs had hidden and were killed", "processes", killed)
	}
	return errors.Join(err, hidden, p.host.Shutdown(ctx))
}

func (p *parts) close() error {
	var err error
	if p.host != nil {
		p.host.Close()
	}
	if p.output != nil {
		err = errors.Join(err, p.output.Close())
	}
	if p.groups != nil {
		err = errors.Join(err, p.groups.Close())
	}
	if p.journal != nil {
		err = errors.Join(err, p.journal.Close())
	}
	if p.conn != nil {
		err = errors.Join(err, p.conn.Close())
	}
	return err
}

// build makes the parts in the order in which they need one another. On an
// error the parts that exist are returned with it, to be closed.
func build(o WorkerOptions, log *slog.Logger) (*parts, error) {
	if err := o.Retention.Validate(); err != nil {
		return nil, err
	}
	// Plugins and jobs have working folders of their own: what they are told must be
	// found from there.
	for _, dir := range []*string{&o.Data, &o.Plugins} {
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return nil, errs.E("start the worker", errs.Internal, "FOLDER", err)
		}
		*dir = abs
	}
	if err := dataFolder(o.Data); err != nil {
		return nil, err
	}
	policy, err := worker.ReadPolicy(o.Policy)
	if err != nil {
		return nil, err
	}
	boot, err := worker.BootID()
	if err != nil {
		return nil, errs.E("start the worker", errs.Internal, "BOOT_ID", err)
	}
	p := &parts{}
	if p.source, err = openCerts(o.Certs, certs.RoleWorker, log); err != nil {
		return p, err
	}
	if name := p.source.ID().Name; o.Name != "" && o.Name != name {
		return p, errs.Field("start the worker", "name", "WORKER_NAME", "it is %q, but the certificate is of %q", o.Name, name)
	}
	var state *journal.State
	if p.journal, state, err = journal.Open(journal.Config{Path: filepath.Join(o.Data, "journal"), Boot: boot, Log: log}); err != nil {
		return p, err
	}
	feed := worker.NewFeed()
	if err := p.buildStores(o, feed, boot, log); err != nil {
		return p, err
	}
	return p, p.buildWorker(o, policy, state, feed, boot, log)
}

func (p *parts) buildStores(o WorkerOptions, feed *worker.Feed, boot string, log *slog.Logger) (err error) {
	if p.output, err = output.Open(output.Config{
		Dir: filepath.Join(o.Data, "output"), Quota: o.OutputQuota, Retention: o.Retention, Log: log,
		Exceeded: func(k job.Key, _ output.StreamID) { feed.OutputExceeded(k) },
	}); err != nil {
		return err
	}
	if p.scripts, err = scripts.New(scripts.Config{Folders: o.Scripts, Dir: filepath.Join(o.Data, "scripts"), Log: log}); err != nil {
		return err
	}
	if p.groups, err = cgroup.New(cgroup.Config{Name: "drover-" + p.source.ID().Name + dataTag(o.Data), Log: log, Force: o.Cgroups}); err != nil {
		return err
	}
	p.host, err = pluginhost.New(pluginhost.Config{
		Dir: o.Plugins, State: filepath.Join(o.Data, "plugins"), BootID: boot, Log: log,
		Events: worker.FeedEvents(feed), Idle: o.PluginIdle,
	})
	return err
}

// dataTag tells two workers of one host apart that have the same name: those
// of two clusters.
func dataTag(data string) string {
	h := uint32(2166136261) // FNV-1a
	for _, b := range []byte(data) {
		h = (h ^ uint32(b)) * 16777619
	}
	return fmt.Sprintf("-%08x", h)
}

func (p *parts) buildWorker(o WorkerOptions, policy worker.Policy, state *journal.State, feed *worker.Feed, boot string, log *slog.Logger) error {
	p.connections = rpc.NewConnections(p.source, log)
	conn, err := p.connections.NewHandshakes().DialScheduler(o.Scheduler, p.source.ClientConfig(certs.RoleScheduler, ""))
	if err != nil {
		return err
	}
	p.conn = conn
	members := rpc.NewMembership(conn)
	p.renewer = &certs.Renewer{Source: p.source, Renew: members.Renew, Log: log}
	if p.server, err = rpc.NewServer(o.Listen, rpc.ServerConfig{
		TLS: p.source.MutualConfig(), Table: auth.WorkerTable(), Revocations: p.source, Connections: p.connections, Log: log,
	}); err != nil {
		return err
	}
	address, err := advertised(o.Advertise, p.server.Address())
	if err != nil {
		return err
	}
	if p.worker, err = worker.New(worker.Config{
		Name: p.source.ID().Name, Data: o.Data, Address: address, Version: o.Version, Labels: o.Labels, Slots: o.Slots,
		Policy: policy, Journal: p.journal, State: state, Output: worker.BindOutput(p.output),
		Scripts: worker.BindScripts(p.scripts), Groups: worker.BindGroups(p.groups), Runners: worker.BindRunners(p.host),
		Feed: feed, Scheduler: members, Log: log, BootID: boot,
	}); err != nil {
		return err
	}
	droverv1.RegisterWorkerServiceServer(p.server.Registrar(), rpc.NewWorkerServer(p.worker, p.output, p.source, log))
	return nil
}

// advertised is where the scheduler dials the worker. A listener on all
// addresses is advertised by the host's name.
func advertised(wanted, listening string) (string, error) {
	if wanted != "" {
		return wanted, nil
	}
	host, port, err := net.SplitHostPort(listening)
	if err != nil {
		return "", errs.E("find the address to advertise", errs.Internal, "ADDRESS", err)
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsUnspecified() {
		return listening, nil
	}
	if host, err = os.Hostname(); err != nil {
		return "", errs.E("find the address to advertise", errs.Internal, "ADDRESS", err).WithHint("give it with --advertise")
	}
	return net.JoinHostPort(host, port), nil
}
