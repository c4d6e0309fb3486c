package rpc

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/worker"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// callTimeout bounds a membership call: a heartbeat that hangs is a lost one.
const callTimeout = 5 * time.Second

// Membership is a worker's way to its scheduler. It implements
// worker.Scheduler and renews certificates.
type Membership struct {
	scheduler droverv1.SchedulerServiceClient
	certs     droverv1.CertificateServiceClient
}

// NewMembership speaks over an open connection.
func NewMembership(conn grpc.ClientConnInterface) *Membership {
	return &Membership{droverv1.NewSchedulerServiceClient(conn), droverv1.NewCertificateServiceClient(conn)}
}

// Register implements worker.Scheduler.
func (m *Membership) Register(ctx context.Context, r worker.Registration) (worker.Registered, error) {
	const op = "register with the scheduler"
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	req := &droverv1.RegisterWorkerRequest{
		Address: r.Address, Labels: r.Labels, Slots: uint32(r.Slots), BootId: r.BootID, Version: r.Version,
		Runners: runnersToProto(r.Runners), Commands: r.Commands, InstanceId: r.InstanceID,
		Uploads: r.Uploads,
		Lapses:  r.Lapses,
	}
	if r.WorkerID != (job.WorkerID{}) {
		req.WorkerId = r.WorkerID.String()
	}
	got, err := m.scheduler.RegisterWorker(ctx, req)
	if err != nil {
		return worker.Registered{}, FromStatus(op, err)
	}
	id, err := parseID(op, "worker_id", got.GetWorkerId())
	return worker.Registered{
		WorkerID: id, Term: got.GetTerm(), Lease: durationOf(got.GetLease()), Heartbeat: durationOf(got.GetHeartbeatInterval()),
	}, err
}

// Heartbeat implements worker.Scheduler.
func (m *Membership) Heartbeat(ctx context.Context, b worker.Beat) (worker.Renewal, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	got, err := m.scheduler.Heartbeat(ctx, &droverv1.HeartbeatRequest{
		WorkerId: b.WorkerID.String(), Running: uint32(b.Running), Conditions: conditionsToProto(b.Conditions), Draining: b.Draining,
		Lapses: b.Lapses,
	})
	return worker.Renewal{
		Term: got.GetTerm(), Lease: durationOf(got.GetLease()), Heartbeat: durationOf(got.GetHeartbeatInterval()),
	}, FromStatus("send heartbeat", err)
}

// Deregister implements worker.Scheduler.
func (m *Membership) Deregister(ctx context.Context, id job.WorkerID) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := m.scheduler.DeregisterWorker(ctx, &droverv1.DeregisterWorkerRequest{WorkerId: id.String()})
	return FromStatus("deregister", err)
}

// Renew trades a certificate request for a fresh certificate.
func (m *Membership) Renew(ctx context.Context, csr []byte) (cert, bundle []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	got, err := m.certs.Renew(ctx, &droverv1.RenewRequest{Csr: csr})
	if err != nil {
		return nil, nil, FromStatus("renew the certificate", err)
	}
	return got.GetCertificate(), got.GetCa(), nil
}
