package crowd

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// attempt names one, as the protocol does.
type attempt struct {
	job    string
	number uint32
}

// board is what a worker knows of its attempts: those that run, and those whose
// end was not acknowledged. It is kept over sessions.
type board struct {
	mu      *sync.Mutex // guards the fields below
	reports map[attempt]*droverv1.AttemptReport
	changed map[attempt]bool
	wake    chan struct{}
}

func newBoard() board {
	return board{mu: &sync.Mutex{}, reports: map[attempt]*droverv1.AttemptReport{}, changed: map[attempt]bool{}, wake: make(chan struct{}, 1)}
}

func (b *board) running() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, r := range b.reports {
		if r.GetState() == droverv1.JobState_JOB_STATE_RUNNING {
			n++
		}
	}
	return n
}

// put records a report and tells the session of it.
func (b *board) put(a attempt, r *droverv1.AttemptReport) {
	b.mu.Lock()
	b.reports[a] = r
	b.changed[a] = true
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// has tells whether an attempt is known; it is reported again then.
func (b *board) has(a attempt) bool {
	b.mu.Lock()
	r := b.reports[a]
	b.mu.Unlock()
	if r != nil {
		b.put(a, r)
	}
	return r != nil
}

// forget drops acknowledged ends.
func (b *board) forget(a attempt) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.reports[a]
	if r == nil || r.GetState() == droverv1.JobState_JOB_STATE_RUNNING {
		return false
	}
	delete(b.reports, a)
	delete(b.changed, a)
	return true
}

// take returns what has changed, or all that there is.
func (b *board) take(all bool) []*droverv1.AttemptReport {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []*droverv1.AttemptReport
	for a, r := range b.reports {
		if !all && len(b.changed) == 0 {
			break
		}
		if all || b.changed[a] {
			out = append(out, r)
		}
		delete(b.changed, a)
	}
	return out
}

// service is the worker's side of the protocol, for all members.
type service struct {
	droverv1.UnimplementedWorkerServiceServer
	crowd *Crowd
}

// Session implements the service.
func (s *service) Session(stream grpc.BidiStreamingServer[droverv1.SessionRequest, droverv1.SessionResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	found, ok := s.crowd.byID.Load(first.GetHello().GetWorkerId())
	if !ok {
		return status.Error(codes.FailedPrecondition, "this is another worker")
	}
	m := found.(*member)
	s.crowd.counts.opened.Add(1)
	s.crowd.counts.sessions.Add(1)
	defer s.crowd.counts.sessions.Add(-1)
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	// Recv ends only when this call has returned.
	go func() {
		defer cancel()
		for {
			f, err := stream.Recv()
			if err != nil {
				return
			}
			m.obey(f)
		}
	}()
	up := &droverv1.SessionResponse{
		Hello:   &droverv1.WorkerHello{BootId: "sim", InstanceId: m.name, Complete: true},
		Reports: m.board.take(true), Scripts: &droverv1.ScriptIndex{}, Runners: &droverv1.RunnerIndex{},
	}
	for {
		if up.Hello != nil || len(up.GetReports()) > 0 {
			if err := stream.Send(up); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.board.wake:
		}
		up = &droverv1.SessionResponse{Reports: m.board.take(false)}
	}
}

// obey takes a frame of the scheduler.
func (m *member) obey(f *droverv1.SessionRequest) {
	for _, o := range f.GetStarts() {
		if a := (attempt{o.GetJobId(), o.GetAttempt()}); !m.board.has(a) {
			m.crowd.counts.started.Add(1)
			m.start(a, o.GetSpec().GetArgs())
		}
	}
	for _, o := range f.GetStops() {
		a := attempt{o.GetJobId(), o.GetAttempt()}
		m.board.put(a, ended(a, droverv1.JobState_JOB_STATE_STOPPED))
	}
	for _, k := range f.GetAcks() {
		if m.board.forget(attempt{k.GetJobId(), k.GetAttempt()}) {
			m.crowd.counts.acked.Add(1)
		}
	}
	for _, k := range f.GetForgets() {
		m.board.forget(attempt{k.GetJobId(), k.GetAttempt()})
	}
}

// start is the runner.
func (m *member) start(a attempt, args []string) {
	done := ended(a, droverv1.JobState_JOB_STATE_SUCCEEDED)
	if len(args) == 0 || args[0] != Hold {
		m.board.put(a, done)
		return
	}
	m.board.put(a, &droverv1.AttemptReport{
		JobId: a.job, Attempt: a.number, Sequence: 1, State: droverv1.JobState_JOB_STATE_RUNNING, StartTime: timestamppb.Now(),
	})
	m.crowd.whenReleased(func() { m.board.put(a, done) })
}

func ended(a attempt, s droverv1.JobState) *droverv1.AttemptReport {
	code := int32(0)
	now := timestamppb.New(time.Now())
	return &droverv1.AttemptReport{
		JobId: a.job, Attempt: a.number, Sequence: 2, State: s, ExitCode: &code,
		Evidence: droverv1.Evidence_EVIDENCE_WAIT, StartTime: now, EndTime: now,
	}
}
