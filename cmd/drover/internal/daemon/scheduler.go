// Package daemon wires the parts of drover into the two daemons: which part
// needs which, what starts before what, and what stops first.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/core/auth"
	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/lifecycle"
	"github.com/droverhq/drover/core/rpc"
	"github.com/droverhq/drover/core/scheduler"
	"github.com/droverhq/drover/core/standby"
	"github.com/droverhq/drover/core/store/redis"
	"github.com/droverhq/drover/plugins/durable"
	"github.com/droverhq/drover/plugins/footprint"
	"github.com/droverhq/drover/plugins/ownership"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// SchedulerOptions are the settings of the scheduler daemon.
type SchedulerOptions struct {
	Listen    string
	Advertise string // told by those that stand by; "" derives it from Listen
	Store     string // "" or embedded: in Data; "memory:" forgets; a URL of core/store/redis
	Data      string
	Certs     string
	CA        string // folder of the CA; "" when this scheduler does not hold it
	Lease     time.Duration
	Heartbeat time.Duration
	Retention scheduler.Retention // of job records
	Budget    scheduler.Budget    // of what live jobs hold
	// Standby makes it wait until no other scheduler is active on the same store,
	// and stand by again when another has taken over.
	Standby bool
	// Takeover is how long the active scheduler may be silent before another takes
	// over.
	Takeover time.Duration
	Getenv   func(string) string // for the password of the store
	Version  string              // of this program, for the log
}

// addressFile in the data folder tells where the scheduler listens, for
// listeners on port 0.
const addressFile = "address"

// Bounds of Takeover: a shorter one ends schedulers that are merely busy.
const (
	DefaultTakeover = 3 * time.Second
	leastTakeover   = time.Second
)

func (o *SchedulerOptions) check() error {
	const op = "start the scheduler"
	if err := scheduler.CheckLease(op, o.Lease, o.Heartbeat); err != nil {
		return err
	}
	switch {
	case o.Standby && !redis.IsURL(o.Store):
		return errs.Field(op, "--standby", "STANDBY_STORE", "it needs a store that two schedulers can reach, and --store is %s", ShownStore(o.Store)).
			WithHint("keep the records in Redis: --store redis://HOST/0; see \"drover help stores\"")
	case o.Takeover < leastTakeover:
		return errs.Field(op, "--takeover", "TAKEOVER", "%v is less than %v", o.Takeover, leastTakeover)
	default:
		return nil
	}
}

// schedulerDaemon is what one process keeps over all its turns as the active
// scheduler.
type schedulerDaemon struct {
	SchedulerOptions
	log         *slog.Logger
	source      *certs.Source
	connections *rpc.Connections
	ca          *certs.CA
	port        *rpc.Port
	address     string // that others are told
}

// Scheduler runs the scheduler daemon until ctx ends.
func Scheduler(ctx context.Context, o SchedulerOptions, log *slog.Logger) (err error) {
	if err := o.check(); err != nil {
		return err
	}
	if err := o.Retention.Validate(); err != nil {
		return err
	}
	if err := dataFolder(o.Data); err != nil {
		return err
	}
	d := &schedulerDaemon{SchedulerOptions: o, log: log}
	if d.source, d.ca, err = schedulerCerts(o, log); err != nil {
		return err
	}
	d.connections = rpc.NewConnections(d.source, log)
	if d.port, err = rpc.Listen(o.Listen); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.port.Close()) }()
	if d.address, err = advertised(o.Advertise, d.port.Address()); err != nil {
		return err
	}
	run := d.onShared
	if !redis.IsURL(o.Store) {
		run = d.alone
	}
	var g lifecycle.Group
	g.Stage(map[string]lifecycle.Runner{"certificates": d.source, "connections": d.connections, "memory": resting(log)})
	g.Stage(map[string]lifecycle.Runner{"scheduler": lifecycle.Func(run)})
	err = g.Run(ctx)
	log.Info("scheduler is down")
	return err
}

// alone acts on a store that no other process can open.
func (d *schedulerDaemon) alone(ctx context.Context) (err error) {
	db, err := openStore(ctx, d.Store, d.Data, d.Getenv, d.log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return d.act(ctx, scheduler.Config{Store: db}, nil, func() {})
}

// act is one life of a scheduler. may is asked before each call. begin is called
// once all is loaded, before the first call is taken.
func (d *schedulerDaemon) act(ctx context.Context, c scheduler.Config, may func() error, begin func()) (err error) {
	workers := rpc.NewConnector(d.connections)
	defer func() { err = errors.Join(err, workers.Close()) }()
	if local, ok := c.Store.(interface{ Room() error }); ok {
		c.Room = local.Room
	}
	c.Connector, c.Lease, c.Heartbeat, c.Log = workers, d.Lease, d.Heartbeat, d.log
	c.Retention, c.Budget = d.Retention, d.Budget
	s, err := scheduler.New(ctx, c)
	if err != nil {
		return err
	}
	begin()
	server := d.port.Serving(d.serving(may))
	droverv1.RegisterSchedulerServiceServer(server.Registrar(), rpc.NewSchedulerServer(s, workers))
	droverv1.RegisterCertificateServiceServer(server.Registrar(), rpc.NewCertificateServer(d.ca))
	if err := d.tellAddress(); err != nil {
		return err
	}
	d.log.Info("scheduler is up", "address", d.port.Address(), "term", s.Term(), "cluster", d.source.ID().Cluster, "version", d.Version)
	// Who has lost its lease does not end calls in good order: it ends them.
	defer context.AfterFunc(ctx, func() {
		if errors.Is(context.Cause(ctx), standby.ErrLost) {
			server.Cut()
		}
	})()
	var g lifecycle.Group
	g.Stage(map[string]lifecycle.Runner{"scheduler": s})
	g.Stage(map[string]lifecycle.Runner{"server": server, "revocations": d.revocations(s)})
	return g.Run(ctx)
}

// revocations passes on what is revoked, now and at each change (P22).
func (d *schedulerDaemon) revocations(s *scheduler.Scheduler) lifecycle.Runner {
	return lifecycle.Func(func(ctx context.Context) error {
		for {
			changed := d.source.Changed()
			s.PassRevocations(d.source.Revocations())
			select {
			case <-ctx.Done():
				return nil
			case <-changed:
			}
		}
	})
}

func (d *schedulerDaemon) serving(may func() error) rpc.ServerConfig {
	return rpc.ServerConfig{
		TLS: d.source.ServerConfig(), Table: auth.SchedulerTable(), Revocations: d.source, Connections: d.connections, Log: d.log, May: may,
	}
}

// tellAddress writes where it listens.
func (d *schedulerDaemon) tellAddress() error {
	if err := durable.Write(filepath.Join(d.Data, addressFile), []byte(d.port.Address()+"\n"), 0o600); err != nil {
		return errs.E("tell the address", errs.Precondition, "DATA_FOLDER", err).WithHint("move away what lies there; the file is written at each start")
	}
	return nil
}

// resting gives back memory whenever the daemon has nothing to do, and lets it have
// some while it works.
func resting(log *slog.Logger) lifecycle.Runner {
	return lifecycle.Func(func(ctx context.Context) error {
		footprint.Keep(ctx, log)
		return nil
	})
}

func dataFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return errs.E("open the data folder", errs.Precondition, "DATA_FOLDER", err).
			WithHint("choose another one with --data")
	}
	if err := ownership.CheckFolder(dir); err != nil {
		return errs.E("open the data folder", errs.Precondition, "DATA_FOLDER", err)
	}
	probe := filepath.Join(dir, ".writable")
	if err := os.WriteFile(probe, nil, 0o600); err != nil {
		return errs.E("open the data folder", errs.Precondition, "DATA_FOLDER", err).
			WithHint("it must belong to the user that runs drover; choose another one with --data")
	}
	return os.Remove(probe)
}

func schedulerCerts(o SchedulerOptions, log *slog.Logger) (*certs.Source, *certs.CA, error) {
	var ca *certs.CA
	var revoked []string
	if o.CA != "" {
		var err error
		if ca, err = certs.OpenCA(o.CA); err != nil {
			return nil, nil, errs.E("open the CA", errs.Precondition, "CA", err).
				WithHint("restore it from a backup of the CA; a cluster that has none yet makes one with \"drover certs init\"")
		}
		revoked = ca.RevokedFiles()
		switch err := ca.SignRevoked(); {
		case errors.Is(err, certs.ErrNotSigned): // what is revoked is known here all the same
			log.Error("workers may not learn of all revoked certificates", "files", revoked, "error", err)
		case err != nil:
			return nil, nil, errs.E("open the CA", errs.Precondition, "CA", err).
				WithHint("restore the file from a backup of the CA; without its copy in issued/ a certificate can be revoked by its serial only")
		}
	}
	source, err := openCerts(o.Certs, certs.RoleScheduler, log, revoked...)
	return source, ca, err
}

// openCerts reads a daemon's pair and makes sure that it is of the right role.
func openCerts(dir string, role certs.Role, log *slog.Logger, revoked ...string) (*certs.Source, error) {
	const op = "open the certificates"
	source, err := certs.NewSource(dir, log, revoked...)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.E(op, errs.Precondition, "NO_CERTIFICATE", err).
			WithHint("make them with \"drover certs init\" and \"certs issue\", or join with \"drover certs join TOKEN\"; name the folder with --certs")
	}
	if err != nil {
		return nil, errs.E(op, errs.Precondition, "CERTIFICATE", err).
			WithHint("restore the file, or ask for a new pair with \"drover certs issue\" or \"certs join\"; a worker's crl.pem may be removed: the scheduler passes it on")
	}
	if got := source.ID().Role; got != role {
		return nil, errs.E(op, errs.Precondition, "ROLE", fmt.Errorf("the certificate in %s is of a %s, not of a %s", dir, got, role))
	}
	return source, nil
}
