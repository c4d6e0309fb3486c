package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/core/auth"
	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/rpc"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// fake is a scheduler whose jobs are played by Go functions, behind the real
// server: mutual TLS, the RPC table, errors as statuses.
type fake struct {
	droverv1.UnimplementedSchedulerServiceServer

	address string
	dir     string // of certificates: admin, viewer, stranger

	mu       sync.Mutex // guards the fields below
	changed  *sync.Cond
	jobs     []*fakeJob
	requests map[string]string
	workers  []*droverv1.Worker
	scripts  []*droverv1.Script
	calls    map[string]int
	failNext map[string]int // calls by method that fail before one succeeds
	drains   []*droverv1.DrainWorkerRequest
	refusal  error // of every call; nil is none

	playing sync.WaitGroup // scenarios
}

// fakeJob is one job and what it has written.
type fakeJob struct {
	f       *fake
	job     *droverv1.Job
	request *droverv1.StartJobRequest
	out     map[uint32]*[2]fakeStream // by attempt
	stops   []*droverv1.StopJobRequest
	readers int
	waiters int // who has asked for its end
	breaks  int // bytes after which a connection breaks; 0 never
}

type fakeStream struct {
	data  []byte
	gap   uint64 // bytes from the beginning that are gone
	ended bool
	sum   string
}

// startFake serves until the test ends. keep holds files: certificates.
func startFake(t testing.TB, dir string) *fake {
	f := &fake{
		dir: dir, requests: map[string]string{}, calls: map[string]int{}, failNext: map[string]int{},
		workers: fakeWorkers(), scripts: fakeScripts(),
	}
	f.changed = sync.NewCond(&f.mu)
	ca, err := certs.Init(filepath.Join(dir, "ca"), "test")
	if err != nil {
		t.Fatal(err)
	}
	for name, role := range map[string]certs.Role{"scheduler": certs.RoleScheduler, "admin": certs.RoleAdmin, "viewer": certs.RoleViewer} {
		if err := ca.IssuePair(filepath.Join(dir, name), certs.IssueRequest{Name: name, Role: role}); err != nil {
			t.Fatal(err)
		}
	}
	if err := ca.IssuePair(filepath.Join(dir, "aged"), certs.IssueRequest{Name: "admin", Role: certs.RoleAdmin, Now: time.Now().Add(-certs.LeafValidity / 2)}); err != nil {
		t.Fatal(err)
	}
	stranger, err := certs.Init(filepath.Join(dir, "other"), "test")
	if err != nil {
		t.Fatal(err)
	}
	if err := stranger.IssuePair(filepath.Join(dir, "stranger"), certs.IssueRequest{Name: "admin", Role: certs.RoleAdmin}); err != nil {
		t.Fatal(err)
	}
	source, err := certs.NewSource(filepath.Join(dir, "scheduler"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	server, err := rpc.NewServer("127.0.0.1:0", rpc.ServerConfig{TLS: source.ServerConfig(), Table: auth.SchedulerTable(), Revocations: source})
	if err != nil {
		t.Fatal(err)
	}
	droverv1.RegisterSchedulerServiceServer(server.Registrar(), f)
	droverv1.RegisterCertificateServiceServer(server.Registrar(), rpc.NewCertificateServer(ca))
	f.address = server.Address()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := server.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		f.mu.Lock()
		for _, j := range f.jobs { // whatever still runs ends now
			j.end(droverv1.JobState_JOB_STATE_LOST, "TEST_OVER")
		}
		f.mu.Unlock()
		wg.Wait()
		f.playing.Wait()
	})
	return f
}

func fakeWorkers() []*droverv1.Worker {
	runners := []*droverv1.RunnerInfo{
		{Name: "bash", Version: "1.0", Sha256: strings.Repeat("b", 64), State: "ready", Jobs: 1, Commands: []string{"bash"}},
		{Name: "python", Version: "1.0", Sha256: strings.Repeat("c", 64), State: "refused", Commands: []string{"python", "python3"}, Message: "tampered"},
	}
	since := timestamppb.New(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	return []*droverv1.Worker{
		{
			WorkerId: "01900000-0000-7000-8000-0000000000a1", Name: "w1", Address: "10.0.0.1:7430", State: droverv1.WorkerState_WORKER_STATE_ONLINE,
			Labels: map[string]string{"zone": "a"}, Slots: 4, Running: 1, Runners: runners, Scripts: 2, Version: "v1", BootId: "boot",
			Commands: []string{"uname"}, LeaseExpires: since,
		},
		{
			WorkerId: "01900000-0000-7000-8000-0000000000a2", Name: "w2", Address: "10.0.0.2:7430", State: droverv1.WorkerState_WORKER_STATE_OFFLINE,
			Slots: 2, Conditions: []*droverv1.Condition{{Type: "DISK_LOW", Message: "3 % are free", Since: since}},
		},
	}
}

func fakeScripts() []*droverv1.Script {
	changed := timestamppb.New(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	return []*droverv1.Script{
		{Path: "hello.sh", Folder: "scripts", Sha256: strings.Repeat("a", 64), Size: 315, ModifyTime: changed, WorkerIds: []string{"01900000-0000-7000-8000-0000000000a1"}},
		{Path: "tools/report.py", Folder: "scripts", Sha256: strings.Repeat("d", 64), Size: 4096, ModifyTime: changed, WorkerIds: []string{"01900000-0000-7000-8000-0000000000a1", "01900000-0000-7000-8000-0000000000a2"}},
	}
}

// count notes a call, and fails it when the test asked for that.
func (f *fake) count(method string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[method]++
	if f.refusal != nil {
		return f.refusal
	}
	if f.failNext[method] > 0 {
		f.failNext[method]--
		return errs.E("serve", errs.Unavailable, "SHUTTING_DOWN", errors.New("it is shutting down"))
	}
	return nil
}

// find returns a job by id, prefix or suffix. The caller holds the lock.
func (f *fake) find(op, ref string) (*fakeJob, error) {
	for _, j := range f.jobs {
		if id := j.job.GetJobId(); strings.HasPrefix(id, ref) || strings.HasSuffix(id, ref) {
			return j, nil
		}
	}
	return nil, errs.E(op, errs.NotFound, "JOB_UNKNOWN", fmt.Errorf("there is no job %q", ref)).WithHint(`"drover jobs" lists them`)
}

// StartJob implements the service.
func (f *fake) StartJob(_ context.Context, r *droverv1.StartJobRequest) (*droverv1.StartJobResponse, error) {
	if err := f.count("StartJob"); err != nil {
		return nil, err
	}
	const op = "start job"
	switch {
	case strings.Contains(r.GetPath(), ".."):
		return nil, errs.Field(op, "path", "PATH_REFUSED", "%q leads out of the script folder with ..", r.GetPath())
	case r.GetPath() == "nosuch.sh":
		e := errs.Field(op, "path", "SCRIPT_NOT_FOUND", "no worker has the script %q", r.GetPath())
		e.Kind = errs.NotFound
		return nil, e
	case r.GetCommand() == "nosuch":
		return nil, errs.Field(op, "command", "COMMAND_UNKNOWN", "no worker can run %q", r.GetCommand())
	case r.GetWorkerId() == "w9":
		return nil, errs.E(op, errs.NotFound, "WORKER_UNKNOWN", fmt.Errorf("there is no worker %q", r.GetWorkerId()))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if id, ok := f.requests[r.GetRequestId()]; ok {
		return &droverv1.StartJobResponse{JobId: id}, nil
	}
	j := f.add(r)
	f.requests[r.GetRequestId()] = j.job.GetJobId()
	play := scenarios[r.GetPath()]
	if r.GetPath() == "" {
		play = scenarios[r.GetCommand()]
	}
	if play == nil {
		play = scenarios["hello.sh"]
	}
	f.playing.Go(func() { play(j) })
	return &droverv1.StartJobResponse{JobId: j.job.GetJobId()}, nil
}

// StartJobs implements the service by StartJob.
func (f *fake) StartJobs(ctx context.Context, r *droverv1.StartJobsRequest) (*droverv1.StartJobsResponse, error) {
	if err := f.count("StartJobs"); err != nil {
		return nil, err
	}
	out := &droverv1.StartJobsResponse{}
	for _, q := range r.GetJobs() {
		result := &droverv1.StartJobsResult{}
		one, err := f.StartJob(ctx, q)
		if e := (*errs.Error)(nil); errors.As(err, &e) {
			result.Kind = &droverv1.StartJobsResult_Error{Error: &droverv1.StartJobsError{
				Code: uint32(status.Code(rpc.ToStatus(err))), Reason: e.Reason, Message: e.Error(), Hint: e.Hint, Field: e.Field,
			}}
		} else {
			result.Kind = &droverv1.StartJobsResult_JobId{JobId: one.GetJobId()}
		}
		out.Results = append(out.Results, result)
	}
	return out, nil
}

// WaitJobs implements the service.
func (f *fake) WaitJobs(stream grpc.BidiStreamingServer[droverv1.WaitJobsRequest, droverv1.WaitJobsResponse]) error {
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	if err := f.count("WaitJobs"); err != nil {
		return err
	}
	var sending sync.Mutex
	for {
		r, err := stream.Recv()
		if err != nil {
			return nil //nolint:nilerr // the client has left
		}
		for _, id := range r.GetJobIds() {
			f.playing.Go(func() {
				got, err := f.GetJob(stream.Context(), &droverv1.GetJobRequest{JobId: id, Wait: true})
				if err != nil {
					return
				}
				j := got.GetJob()
				sending.Lock()
				defer sending.Unlock()
				_ = stream.Send(&droverv1.WaitJobsResponse{Ends: []*droverv1.JobEnd{{
					JobId: id, State: j.GetState(), Reason: j.GetReason(), Message: j.GetMessage(), ExitCode: j.ExitCode, Signal: j.GetSignal(),
				}}})
			})
		}
	}
}

// add makes the record of a job. The caller holds the lock.
func (f *fake) add(r *droverv1.StartJobRequest) *fakeJob {
	id := uuid.Must(uuid.NewV7()).String()
	j := &fakeJob{f: f, request: r, out: map[uint32]*[2]fakeStream{1: {}}, job: &droverv1.Job{
		JobId: id, Name: r.GetName(), State: droverv1.JobState_JOB_STATE_RUNNING, Attempt: 1, WorkerId: f.workers[0].GetWorkerId(),
		WorkerName: "w1", Command: r.GetCommand(), Path: r.GetPath(), Args: r.GetArgs(), Runner: "bash", RunnerVersion: "1.0",
		SubmitTime: timestamppb.Now(), StartTime: timestamppb.Now(), Reachable: true, Labels: r.GetLabels(), RequestedBy: "admin", Pid: 4242,
		Stdout: &droverv1.StreamInfo{}, Stderr: &droverv1.StreamInfo{}, Spec: specOf(r),
		StdinBytes: uint64(len(r.GetStdin())),
	}}
	f.jobs = append(f.jobs, j)
	f.changed.Broadcast()
	return j
}

// specOf is what the real scheduler shows of a request.
func specOf(r *droverv1.StartJobRequest) *droverv1.JobSpec {
	s := &droverv1.JobSpec{
		WorkerId: r.GetWorkerId(), Path: r.GetPath(), Command: r.GetCommand(), Args: r.GetArgs(), Env: r.GetEnv(), Labels: r.GetLabels(),
		Timeout: r.GetTimeout(), Grace: r.GetGrace(), Limits: r.GetLimits(), Retry: r.GetRetry(), Name: r.GetName(), Priority: r.GetPriority(),
	}
	for name := range r.GetSecrets() {
		if s.Secrets == nil {
			s.Secrets = map[string][]byte{}
		}
		s.Secrets[name] = nil
	}
	return s
}

// write adds output to the newest attempt.
func (j *fakeJob) write(stream int, data string) {
	j.f.mu.Lock()
	defer j.f.mu.Unlock()
	s := &j.out[j.job.GetAttempt()][stream]
	s.data = append(s.data, data...)
	j.f.changed.Broadcast()
}

// end makes the job terminal unless it is. The caller holds the lock.
func (j *fakeJob) end(state droverv1.JobState, reason string) {
	if terminal(j.job.GetState()) {
		return
	}
	j.close()
	j.job.State, j.job.Reason, j.job.EndTime, j.job.Pid = state, reason, timestamppb.Now(), 0
	j.f.changed.Broadcast()
}

// close ends the streams of the newest attempt. The caller holds the lock.
func (j *fakeJob) close() {
	for i, info := range []*droverv1.StreamInfo{j.job.GetStdout(), j.job.GetStderr()} {
		s := &j.out[j.job.GetAttempt()][i]
		sum := sha256.Sum256(s.data)
		if s.ended = true; s.sum == "" {
			s.sum = hex.EncodeToString(sum[:])
		}
		info.Size, info.Sha256 = uint64(len(s.data)), s.sum
	}
}

// exit ends the job with a code.
func (j *fakeJob) exit(code int32) {
	j.f.mu.Lock()
	defer j.f.mu.Unlock()
	j.job.ExitCode, j.job.Evidence = &code, droverv1.Evidence_EVIDENCE_WAIT
	state := droverv1.JobState_JOB_STATE_SUCCEEDED
	if code != 0 {
		state = droverv1.JobState_JOB_STATE_FAILED
		j.job.Message = fmt.Sprintf("exit code %d", code)
	}
	j.end(state, "EXIT_CODE")
}

// fails ends the job with a state that is not about its exit code.
func (j *fakeJob) fails(state droverv1.JobState, reason, message string) {
	j.f.mu.Lock()
	defer j.f.mu.Unlock()
	j.job.Message = message
	j.end(state, reason)
}

// awaitStops waits for the nth stop and returns its grace; nil is the default.
func (j *fakeJob) awaitStops(n int) *durationpb.Duration {
	j.f.mu.Lock()
	defer j.f.mu.Unlock()
	for len(j.stops) < n && !terminal(j.job.GetState()) {
		j.f.changed.Wait()
	}
	if len(j.stops) < n {
		return nil
	}
	return j.stops[n-1].GetGrace()
}

// over tells whether the job is terminal.
func (j *fakeJob) over() bool {
	j.f.mu.Lock()
	defer j.f.mu.Unlock()
	return terminal(j.job.GetState())
}

// stopped ends the job as stopped by a signal.
func (j *fakeJob) stopped(signal string) {
	j.f.mu.Lock()
	defer j.f.mu.Unlock()
	j.job.Signal, j.job.Evidence = signal, droverv1.Evidence_EVIDENCE_WAIT
	j.job.StopProof = &droverv1.StopProof{Method: "cgroup-kill", Termed: 4, Killed: 1, Took: durationpb.New(210 * time.Millisecond)}
	j.end(droverv1.JobState_JOB_STATE_STOPPED, "USER")
}

// StopJob implements the service.
func (f *fake) StopJob(ctx context.Context, r *droverv1.StopJobRequest) (*droverv1.StopJobResponse, error) {
	if err := f.count("StopJob"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	j, err := f.find("stop job", r.GetJobId())
	if err != nil {
		return nil, err
	}
	if !terminal(j.job.GetState()) {
		j.stops = append(j.stops, r)
		if j.job.GetState() == droverv1.JobState_JOB_STATE_RUNNING {
			j.job.State = droverv1.JobState_JOB_STATE_STOPPING
		}
		f.changed.Broadcast()
	}
	f.await(ctx, func() bool { return !r.GetWait() || terminal(j.job.GetState()) })
	return &droverv1.StopJobResponse{Job: proto.CloneOf(j.job)}, ctx.Err()
}

// await waits for a condition or the end of ctx. The caller holds the lock.
func (f *fake) await(ctx context.Context, ok func() bool) {
	stop := context.AfterFunc(ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.changed.Broadcast()
	})
	defer stop()
	for !ok() && ctx.Err() == nil {
		f.changed.Wait()
	}
}

// GetJob implements the service.
func (f *fake) GetJob(ctx context.Context, r *droverv1.GetJobRequest) (*droverv1.GetJobResponse, error) {
	if err := f.count("GetJob"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	j, err := f.find("get job", r.GetJobId())
	if err != nil {
		return nil, err
	}
	if r.GetWait() {
		j.waiters++
		f.changed.Broadcast()
	}
	f.await(ctx, func() bool { return !r.GetWait() || terminal(j.job.GetState()) })
	return &droverv1.GetJobResponse{Job: proto.CloneOf(j.job)}, ctx.Err()
}

// ListJobs implements the service; pages hold two jobs, to make the client turn them.
func (f *fake) ListJobs(_ context.Context, r *droverv1.ListJobsRequest) (*droverv1.ListJobsResponse, error) {
	if err := f.count("ListJobs"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	answer := &droverv1.ListJobsResponse{}
	begun := r.GetPageToken() == ""
	for _, j := range slices.Backward(f.jobs) {
		if !begun {
			begun = j.job.GetJobId() == r.GetPageToken()
			continue
		}
		if !selects(r, j.job) {
			continue
		}
		if len(answer.Jobs) == min(2, int(r.GetPageSize())) {
			answer.NextPageToken = answer.Jobs[len(answer.Jobs)-1].GetJobId()
			break
		}
		answer.Jobs = append(answer.Jobs, proto.CloneOf(j.job))
	}
	return answer, nil
}

// RemoveJobs implements the service.
func (f *fake) RemoveJobs(_ context.Context, r *droverv1.RemoveJobsRequest) (*droverv1.RemoveJobsResponse, error) {
	if err := f.count("RemoveJobs"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, ref := range r.GetJobIds() {
		j, err := f.find("remove jobs", ref)
		if err != nil {
			return nil, err
		}
		if !terminal(j.job.GetState()) {
			return nil, errs.E("remove jobs", errs.Precondition, "JOB_LIVE", errors.New("the job lives")).WithHint("stop it first")
		}
		f.jobs = slices.DeleteFunc(f.jobs, func(o *fakeJob) bool { return o == j })
	}
	return &droverv1.RemoveJobsResponse{}, nil
}

// ListWorkers implements the service, one worker a page.
func (f *fake) ListWorkers(_ context.Context, r *droverv1.ListWorkersRequest) (*droverv1.ListWorkersResponse, error) {
	if err := f.count("ListWorkers"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, w := range f.workers {
		if w.GetName() > r.GetPageToken() && hasLabels(w.GetLabels(), r.GetLabels()) {
			next := ""
			if i < len(f.workers)-1 {
				next = w.GetName()
			}
			return &droverv1.ListWorkersResponse{Workers: []*droverv1.Worker{proto.CloneOf(w)}, NextPageToken: next}, nil
		}
	}
	return &droverv1.ListWorkersResponse{}, nil
}

func (f *fake) worker(name string) (*droverv1.Worker, error) {
	for _, w := range f.workers {
		if w.GetName() == name || w.GetWorkerId() == name {
			return w, nil
		}
	}
	return nil, errs.E("find worker", errs.NotFound, "WORKER_UNKNOWN", fmt.Errorf("there is no worker %q", name))
}

// GetWorker implements the service.
func (f *fake) GetWorker(_ context.Context, r *droverv1.GetWorkerRequest) (*droverv1.GetWorkerResponse, error) {
	if err := f.count("GetWorker"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	w, err := f.worker(r.GetWorkerId())
	answer := &droverv1.GetWorkerResponse{Worker: proto.CloneOf(w)}
	if w.GetName() == "w2" {
		answer.Unrecorded = []*droverv1.UnrecordedAttempt{{Path: "tools/hello.sh", Report: &droverv1.AttemptReport{
			JobId: "01900000-0000-7000-8000-0000000000b1", Attempt: 2, State: droverv1.JobState_JOB_STATE_RUNNING, Runner: "bash", Pid: 4711,
			StartTime: timestamppb.New(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)),
		}}}
	}
	return answer, err
}

// AdoptJob implements the service; all jobs have a record.
func (f *fake) AdoptJob(_ context.Context, r *droverv1.AdoptJobRequest) (*droverv1.AdoptJobResponse, error) {
	if err := f.count("AdoptJob"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	j, err := f.find("adopt job", r.GetJobId())
	if err != nil {
		return nil, err
	}
	return &droverv1.AdoptJobResponse{Job: proto.CloneOf(j.job)}, nil
}

// DrainWorker implements the service.
func (f *fake) DrainWorker(_ context.Context, r *droverv1.DrainWorkerRequest) (*droverv1.DrainWorkerResponse, error) {
	if err := f.count("DrainWorker"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.drains = append(f.drains, r)
	w, err := f.worker(r.GetWorkerId())
	return &droverv1.DrainWorkerResponse{Worker: proto.CloneOf(w)}, err
}

// RemoveWorker implements the service.
func (f *fake) RemoveWorker(_ context.Context, r *droverv1.RemoveWorkerRequest) (*droverv1.RemoveWorkerResponse, error) {
	if err := f.count("RemoveWorker"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	w, err := f.worker(r.GetWorkerId())
	if err == nil && w.GetState() == droverv1.WorkerState_WORKER_STATE_ONLINE {
		err = errs.E("remove worker", errs.Precondition, "WORKER_ONLINE", fmt.Errorf("%q is ONLINE", w.GetName()))
	}
	return &droverv1.RemoveWorkerResponse{}, err
}

// ListScripts implements the service.
func (f *fake) ListScripts(_ context.Context, r *droverv1.ListScriptsRequest) (*droverv1.ListScriptsResponse, error) {
	if err := f.count("ListScripts"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	answer := &droverv1.ListScriptsResponse{}
	for _, s := range f.scripts {
		w, err := f.worker(r.GetWorkerId())
		if r.GetWorkerId() != "" && err != nil {
			return nil, err
		}
		if r.GetWorkerId() == "" || slices.Contains(s.GetWorkerIds(), w.GetWorkerId()) {
			answer.Scripts = append(answer.Scripts, s)
		}
	}
	return answer, nil
}

// WatchEvents implements the service: what is there, and every change.
func (f *fake) WatchEvents(_ *droverv1.WatchEventsRequest, stream grpc.ServerStreamingServer[droverv1.WatchEventsResponse]) error {
	if err := f.count("WatchEvents"); err != nil {
		return err
	}
	ctx := stream.Context()
	sent := map[string]proto.Message{}
	for ctx.Err() == nil {
		f.mu.Lock()
		var events []*droverv1.WatchEventsResponse
		f.await(ctx, func() bool { events = f.news(sent); return len(events) > 0 })
		f.mu.Unlock()
		for _, ev := range events {
			if err := stream.Send(ev); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// news lists what is not as it was sent last. The caller holds the lock.
func (f *fake) news(sent map[string]proto.Message) []*droverv1.WatchEventsResponse {
	var events []*droverv1.WatchEventsResponse
	for _, j := range f.jobs {
		if last := sent[j.job.GetJobId()]; last == nil || !proto.Equal(last, j.job) {
			now := proto.CloneOf(j.job)
			sent[now.GetJobId()] = now
			events = append(events, &droverv1.WatchEventsResponse{Kind: &droverv1.WatchEventsResponse_Job{Job: now}})
		}
	}
	for _, w := range f.workers {
		if last := sent[w.GetWorkerId()]; last == nil || !proto.Equal(last, w) {
			now := proto.CloneOf(w)
			sent[now.GetWorkerId()] = now
			events = append(events, &droverv1.WatchEventsResponse{Kind: &droverv1.WatchEventsResponse_Worker{Worker: now}})
		}
	}
	return events
}

// Backup implements the service: an answer that the client refuses.
func (f *fake) Backup(_ *droverv1.BackupRequest, _ grpc.ServerStreamingServer[droverv1.BackupResponse]) error {
	if err := f.count("Backup"); err != nil {
		return err
	}
	return errs.E("back up", errs.Precondition, "NO_STORE", errors.New("there are no records"))
}

// environment is what makes drover talk to the fake.
func (f *fake) environment(more map[string]string) map[string]string {
	env := map[string]string{"DROVER_ADDRESS": f.address, "DROVER_CERTS": filepath.Join(f.dir, "admin"), "HOME": f.dir}
	maps.Copy(env, more)
	return env
}
