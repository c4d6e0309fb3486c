package rpc

import (
	"bufio"
	"context"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/core/auth"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
	"github.com/droverhq/drover/core/scheduler"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// SchedulerServer serves drover.v1.SchedulerService for one scheduler.
type SchedulerServer struct {
	droverv1.UnimplementedSchedulerServiceServer
	scheduler *scheduler.Scheduler
	workers   *Connector
	windows   windows
}

// NewSchedulerServer returns the service. workers forwards reads of output.
func NewSchedulerServer(s *scheduler.Scheduler, workers *Connector) *SchedulerServer {
	return &SchedulerServer{scheduler: s, workers: workers}
}

// caller is who asks; the guard has put the identity into the context.
func caller(ctx context.Context) scheduler.Caller {
	id, _ := auth.FromContext(ctx)
	return scheduler.Caller{Name: id.Name, Role: string(id.Role), Lineage: id.Lineage}
}

// StartJob implements the service.
func (s *SchedulerServer) StartJob(ctx context.Context, r *droverv1.StartJobRequest) (*droverv1.StartJobResponse, error) {
	spec, err := specFromRequest(r)
	if err != nil {
		return nil, err
	}
	id, err := s.scheduler.StartJob(ctx, caller(ctx), spec, r.GetRequestId())
	if err != nil {
		return nil, err
	}
	return &droverv1.StartJobResponse{JobId: id.String()}, nil
}

// StopJob implements the service.
func (s *SchedulerServer) StopJob(ctx context.Context, r *droverv1.StopJobRequest) (*droverv1.StopJobResponse, error) {
	j, err := s.scheduler.StopJob(ctx, caller(ctx), r.GetJobId(), optionalDuration(r.GetGrace()), r.GetWait())
	if err != nil {
		return nil, err
	}
	return &droverv1.StopJobResponse{Job: wholeToProto(&j)}, nil
}

// GetJob implements the service.
func (s *SchedulerServer) GetJob(ctx context.Context, r *droverv1.GetJobRequest) (*droverv1.GetJobResponse, error) {
	j, err := s.scheduler.Job(ctx, caller(ctx), r.GetJobId(), r.GetWait())
	if err != nil {
		return nil, err
	}
	return &droverv1.GetJobResponse{Job: wholeToProto(&j)}, nil
}

// ListJobs implements the service.
func (s *SchedulerServer) ListJobs(ctx context.Context, r *droverv1.ListJobsRequest) (*droverv1.ListJobsResponse, error) {
	q := scheduler.JobQuery{
		PageSize: int(r.GetPageSize()), PageToken: r.GetPageToken(), Worker: r.GetWorkerId(),
		Labels: r.GetLabels(), Since: timeOf(r.GetSince()),
	}
	for _, p := range r.GetStates() {
		st, err := stateFromProto(p)
		if err != nil {
			return nil, err
		}
		q.States = append(q.States, st)
	}
	var jobs page[*droverv1.Job]
	next, err := s.scheduler.Jobs(ctx, caller(ctx), q, func(j *job.Job) bool { return jobs.add(summaryToProto(j)) })
	if err != nil {
		return nil, err
	}
	return &droverv1.ListJobsResponse{NextPageToken: next, Jobs: jobs.items}, nil
}

// RemoveJobs implements the service.
func (s *SchedulerServer) RemoveJobs(ctx context.Context, r *droverv1.RemoveJobsRequest) (*droverv1.RemoveJobsResponse, error) {
	if err := s.scheduler.RemoveJobs(ctx, caller(ctx), r.GetJobIds()); err != nil {
		return nil, err
	}
	return &droverv1.RemoveJobsResponse{}, nil
}

// RegisterWorker implements the service.
func (s *SchedulerServer) RegisterWorker(ctx context.Context, r *droverv1.RegisterWorkerRequest) (*droverv1.RegisterWorkerResponse, error) {
	reg := registry.Registration{
		Address: r.GetAddress(), Labels: r.GetLabels(), Slots: int(r.GetSlots()), BootID: r.GetBootId(),
		InstanceID: r.GetInstanceId(), Version: r.GetVersion(), Runners: runnersFromProto(r.GetRunners()), Commands: r.GetCommands(),
		Uploads: r.GetUploads(),
		Lapses:  r.GetLapses(),
	}
	if r.GetWorkerId() != "" {
		id, err := parseID("register worker", "worker_id", r.GetWorkerId())
		if err != nil {
			return nil, err
		}
		reg.ID = id
	}
	got, err := s.scheduler.Register(ctx, caller(ctx), reg)
	if err != nil {
		return nil, err
	}
	return &droverv1.RegisterWorkerResponse{
		WorkerId: got.Worker.ID.String(), Term: got.Term,
		Lease: durationpb.New(got.Lease), HeartbeatInterval: durationpb.New(got.Heartbeat),
	}, nil
}

// Heartbeat implements the service.
func (s *SchedulerServer) Heartbeat(ctx context.Context, r *droverv1.HeartbeatRequest) (*droverv1.HeartbeatResponse, error) {
	id, err := parseID("renew lease", "worker_id", r.GetWorkerId())
	if err != nil {
		return nil, err
	}
	got, err := s.scheduler.Heartbeat(ctx, caller(ctx), scheduler.Heartbeat{
		ID: id, Leaving: r.GetDraining(), Conditions: conditionsFromProto(r.GetConditions()), Lapses: r.GetLapses(),
	})
	if err != nil {
		return nil, err
	}
	return &droverv1.HeartbeatResponse{
		Term: got.Term, Lease: durationpb.New(got.Lease), HeartbeatInterval: durationpb.New(got.Heartbeat),
	}, nil
}

// DeregisterWorker implements the service.
func (s *SchedulerServer) DeregisterWorker(ctx context.Context, r *droverv1.DeregisterWorkerRequest) (*droverv1.DeregisterWorkerResponse, error) {
	id, err := parseID("deregister worker", "worker_id", r.GetWorkerId())
	if err != nil {
		return nil, err
	}
	if err := s.scheduler.Deregister(ctx, caller(ctx), id); err != nil {
		return nil, err
	}
	return &droverv1.DeregisterWorkerResponse{}, nil
}

// ListWorkers implements the service.
func (s *SchedulerServer) ListWorkers(ctx context.Context, r *droverv1.ListWorkersRequest) (*droverv1.ListWorkersResponse, error) {
	var workers page[*droverv1.Worker]
	next, err := s.scheduler.Workers(ctx, r.GetLabels(), int(r.GetPageSize()), r.GetPageToken(), func(w *registry.Worker) bool {
		return workers.add(workerToProto(w))
	})
	if err != nil {
		return nil, err
	}
	return &droverv1.ListWorkersResponse{NextPageToken: next, Workers: workers.items}, nil
}

// GetWorker implements the service.
func (s *SchedulerServer) GetWorker(ctx context.Context, r *droverv1.GetWorkerRequest) (*droverv1.GetWorkerResponse, error) {
	w, err := s.scheduler.Worker(ctx, r.GetWorkerId())
	if err != nil {
		return nil, err
	}
	answer := &droverv1.GetWorkerResponse{Worker: workerToProto(&w)}
	if caller(ctx).Role != string(certs.RoleSubmitter) { // who may not know of the jobs of others
		answer.Unrecorded = unrecordedToProto(&w)
	}
	return answer, nil
}

// AdoptJob implements the service.
func (s *SchedulerServer) AdoptJob(ctx context.Context, r *droverv1.AdoptJobRequest) (*droverv1.AdoptJobResponse, error) {
	j, err := s.scheduler.Adopt(ctx, caller(ctx), r.GetJobId(), r.GetWorkerId())
	if err != nil {
		return nil, err
	}
	return &droverv1.AdoptJobResponse{Job: wholeToProto(&j)}, nil
}

// DrainWorker implements the service.
func (s *SchedulerServer) DrainWorker(ctx context.Context, r *droverv1.DrainWorkerRequest) (*droverv1.DrainWorkerResponse, error) {
	w, err := s.scheduler.Drain(ctx, r.GetWorkerId(), scheduler.Drain{
		Drain: !r.GetUndrain(), Reason: r.GetReason(), After: durationOf(r.GetDeadline()),
	})
	if err != nil {
		return nil, err
	}
	return &droverv1.DrainWorkerResponse{Worker: workerToProto(&w)}, nil
}

// RemoveWorker implements the service.
func (s *SchedulerServer) RemoveWorker(ctx context.Context, r *droverv1.RemoveWorkerRequest) (*droverv1.RemoveWorkerResponse, error) {
	if err := s.scheduler.RemoveWorker(ctx, caller(ctx), r.GetWorkerId()); err != nil {
		return nil, err
	}
	return &droverv1.RemoveWorkerResponse{}, nil
}

// ListScripts implements the service.
func (s *SchedulerServer) ListScripts(ctx context.Context, r *droverv1.ListScriptsRequest) (*droverv1.ListScriptsResponse, error) {
	var scripts page[*droverv1.Script]
	next, err := s.scheduler.Scripts(ctx, r.GetWorkerId(), int(r.GetPageSize()), r.GetPageToken(), func(x *scheduler.Script) bool {
		p := scriptToProto(&x.ScriptInfo)
		for _, id := range x.Workers {
			p.WorkerIds = append(p.WorkerIds, id.String())
		}
		return scripts.add(p)
	})
	if err != nil {
		return nil, err
	}
	return &droverv1.ListScriptsResponse{NextPageToken: next, Scripts: scripts.items}, nil
}

// WatchEvents implements the service.
func (s *SchedulerServer) WatchEvents(r *droverv1.WatchEventsRequest, stream grpc.ServerStreamingServer[droverv1.WatchEventsResponse]) error {
	ctx := stream.Context()
	return s.scheduler.Watch(ctx, caller(ctx), r.GetJobId(), r.GetSnapshot(), func() {
		// Who lists what there is after this has missed nothing.
		_ = stream.SendHeader(nil) // a stream that has ended shows when something is sent
	}, func(c scheduler.Change) error {
		ev := &droverv1.WatchEventsResponse{Time: timestamppb.Now()}
		switch {
		case c.Job != nil:
			ev.Kind = &droverv1.WatchEventsResponse_Job{Job: summaryToProto(c.Job)}
		case c.Worker != nil:
			ev.Kind = &droverv1.WatchEventsResponse_Worker{Worker: workerToProto(c.Worker)}
		default:
			ev.Kind = &droverv1.WatchEventsResponse_Lagged{Lagged: &droverv1.WatchLagged{Missed: c.Missed}}
		}
		return stream.Send(ev)
	})
}

// backupPart is the size of one frame of a backup.
const backupPart = 256 << 10

// Backup implements the service.
func (s *SchedulerServer) Backup(_ *droverv1.BackupRequest, stream grpc.ServerStreamingServer[droverv1.BackupResponse]) error {
	ctx := stream.Context()
	out := bufio.NewWriterSize(backupStream{stream}, backupPart)
	if err := s.scheduler.Backup(ctx, caller(ctx), out); err != nil {
		return err
	}
	return out.Flush()
}

// backupStream writes frames.
type backupStream struct {
	stream grpc.ServerStreamingServer[droverv1.BackupResponse]
}

// Write implements io.Writer.
func (b backupStream) Write(p []byte) (int, error) {
	if err := b.stream.Send(&droverv1.BackupResponse{Data: p}); err != nil {
		return 0, err
	}
	return len(p), nil
}
