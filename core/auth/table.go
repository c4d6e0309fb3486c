package auth

import (
	"github.com/droverhq/drover/certs"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// Pseudo roles of the table.
const (
	Anyone  certs.Role = "anyone"   // also without a certificate
	AnyRole certs.Role = "any role" // every certificate of the cluster
)

// Table maps full RPC names to the roles that may call them. It is read only.
type Table map[string][]certs.Role

// SchedulerTable is the table of the scheduler's services.
func SchedulerTable() Table {
	const (
		worker, admin    = certs.RoleWorker, certs.RoleAdmin
		oper, subm, view = certs.RoleOperator, certs.RoleSubmitter, certs.RoleViewer
	)
	return Table{
		droverv1.SchedulerService_RegisterWorker_FullMethodName:   {worker},
		droverv1.SchedulerService_DeregisterWorker_FullMethodName: {worker},
		droverv1.SchedulerService_Heartbeat_FullMethodName:        {worker},
		droverv1.SchedulerService_StartJob_FullMethodName:         {admin, oper, subm},
		droverv1.SchedulerService_StartJobs_FullMethodName:        {admin, oper, subm},
		droverv1.SchedulerService_WaitJobs_FullMethodName:         {admin, oper, subm, view},
		droverv1.SchedulerService_StopJob_FullMethodName:          {admin, oper, subm},
		droverv1.SchedulerService_GetJob_FullMethodName:           {admin, oper, subm, view},
		droverv1.SchedulerService_ListJobs_FullMethodName:         {admin, oper, subm, view},
		droverv1.SchedulerService_StreamOutput_FullMethodName:     {admin, oper, subm, view},
		droverv1.SchedulerService_ListWorkers_FullMethodName:      {admin, oper, subm, view},
		droverv1.SchedulerService_GetWorker_FullMethodName:        {admin, oper, subm, view},
		droverv1.SchedulerService_DrainWorker_FullMethodName:      {admin, oper},
		droverv1.SchedulerService_RemoveWorker_FullMethodName:     {admin},
		droverv1.SchedulerService_AdoptJob_FullMethodName:         {admin},
		droverv1.SchedulerService_RemoveJobs_FullMethodName:       {admin, oper},
		droverv1.SchedulerService_ListScripts_FullMethodName:      {admin, oper, subm, view},
		droverv1.SchedulerService_WatchEvents_FullMethodName:      {admin, oper, subm, view},
		droverv1.SchedulerService_Backup_FullMethodName:           {admin},
		droverv1.CertificateService_Join_FullMethodName:           {Anyone},
		droverv1.CertificateService_Renew_FullMethodName:          {AnyRole},
		healthCheck: {AnyRole},
		healthWatch: {AnyRole},
	}
}

// WorkerTable is the table of a worker's services: schedulers only, and
// admins for what reads.
func WorkerTable() Table {
	const sched, admin = certs.RoleScheduler, certs.RoleAdmin
	return Table{
		droverv1.WorkerService_StartJob_FullMethodName:     {sched},
		droverv1.WorkerService_StopJob_FullMethodName:      {sched},
		droverv1.WorkerService_GetJob_FullMethodName:       {sched, admin},
		droverv1.WorkerService_StreamOutput_FullMethodName: {sched, admin},
		droverv1.WorkerService_Session_FullMethodName:      {sched},
		healthCheck: {AnyRole},
		healthWatch: {AnyRole},
	}
}

const (
	healthCheck = "/grpc.health.v1.Health/Check"
	healthWatch = "/grpc.health.v1.Health/Watch"
)
