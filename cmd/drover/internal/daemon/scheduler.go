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
	"github.com/droverhq/drover/plugins/footprint"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// SchedulerOptions are the settings of the scheduler daemon.
type SchedulerOptions struct {
	Listen    string
	Store     string // "" or embedded: in Data; "memory:" forgets; a URL of core/store/redis
	Data      string
	Certs     string
	CA        string // folder of the CA; "" when this scheduler does not hold it
	Lease     time.Duration
	Heartbeat time.Duration
	Getenv    func(string) string // for the password of the store
}

// addressFile in the data folder tells where the scheduler listens, for
// listeners on port 0.
const addressFile = "address"

// Scheduler runs the scheduler daemon until ctx ends.
func Scheduler(ctx context.Context, o SchedulerOptions, log *slog.Logger) (err error) {
	if o.Heartbeat <= 0 || o.Lease < 2*o.Heartbeat {
		return errs.Field("start the scheduler", "lease", "LEASE", "%v is not at least two heartbeats of %v", o.Lease, o.Heartbeat)
	}
	if err := dataFolder(o.Data); err != nil {
		return err
	}
	source, ca, err := schedulerCerts(o, log)
	if err != nil {
		return err
	}
	db, err := openStore(ctx, o.Store, o.Data, o.Getenv, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	workers := rpc.NewConnector(source)
	defer func() { err = errors.Join(err, workers.Close()) }()
	s, err := scheduler.New(ctx, scheduler.Config{
		Store: db, Connector: workers, Lease: o.Lease, Heartbeat: o.Heartbeat, Log: log,
	})
	if err != nil {
		return err
	}
	server, err := rpc.NewServer(o.Listen, source.ServerConfig(), auth.SchedulerTable(), source)
	if err != nil {
		return err
	}
	droverv1.RegisterSchedulerServiceServer(server.Registrar(), rpc.NewSchedulerServer(s, workers))
	droverv1.RegisterCertificateServiceServer(server.Registrar(), rpc.NewCertificateServer(ca))
	address := filepath.Join(o.Data, addressFile)
	if err := writeWhole(address, server.Address()+"\n"); err != nil {
		return errs.E("tell the address", errs.Precondition, "DATA_FOLDER", err)
	}
	log.Info("scheduler is up", "address", server.Address(), "term", s.Term(), "cluster", source.ID().Cluster)
	var g lifecycle.Group
	g.Stage(map[string]lifecycle.Runner{"certificates": source, "memory": resting(log)})
	g.Stage(map[string]lifecycle.Runner{"scheduler": s})
	g.Stage(map[string]lifecycle.Runner{"server": server})
	err = g.Run(ctx)
	log.Info("scheduler is down")
	return err
}

// resting gives back memory whenever the daemon has nothing to do.
func resting(log *slog.Logger) lifecycle.Runner {
	return lifecycle.Func(func(ctx context.Context) error {
		footprint.Keep(ctx, log)
		<-ctx.Done()
		return nil
	})
}

// writeWhole replaces a file: a reader sees the old one, none, or the whole.
func writeWhole(path, text string) error {
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func dataFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return errs.E("open the data folder", errs.Precondition, "DATA_FOLDER", err).
			WithHint("choose another one with --data")
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
			return nil, nil, errs.E("open the CA", errs.Precondition, "CA", err).WithHint("make one with \"drover certs init\"")
		}
		revoked = append(revoked, ca.RevokedFile())
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
		return nil, errs.E(op, errs.Precondition, "CERTIFICATE", err)
	}
	if got := source.ID().Role; got != role {
		return nil, errs.E(op, errs.Precondition, "ROLE", fmt.Errorf("the certificate in %s is of a %s, not of a %s", dir, got, role))
	}
	return source, nil
}
