package measure

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"

	"github.com/droverhq/drover/cmd/drover/internal/crowd"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// Farm is a scheduler process with a crowd of simulated workers.
type Farm interface {
	// Client is a connection that lasts over restarts of the scheduler.
	Client() droverv1.SchedulerServiceClient
	// Scheduler is the pid of its process.
	Scheduler() int
	// Restart kills the scheduler with kill -9 and starts it again.
	Restart(context.Context) error
	// Crowd tells how the workers are.
	Crowd() (crowd.Counts, error)
	// Begin lets the workers look for their scheduler.
	Begin() error
	// Release lets the jobs end that hold.
	Release() error
}

// ScalePlan says how much.
type ScalePlan struct {
	Workers int
	Steady  time.Duration // how long the idle cluster is watched
	Queued  int           // jobs that wait while submits are timed
	More    int           // jobs that run through after the queue has emptied
	Samples int           // of submits
	Clients int           // calls at once where a rate is wanted
	Log     func(format string, args ...any)
}

// Scale is how a scheduler did with a number of workers.
type Scale struct {
	Workers int     `json:"workers"`
	JoinS   float64 `json:"join_s"`                      // until all were online
	JoinCPU float64 `json:"scheduler_cpu_us_per_joined"` // of the scheduler, per worker

	SteadyS   float64 `json:"steady_s"`
	Cores     float64 `json:"scheduler_cores"`   // while nothing but heartbeats happened
	PSS       uint64  `json:"scheduler_pss"`     // bytes, at its end
	Beats     float64 `json:"heartbeats_per_s"`  // answered
	BeatCPU   float64 `json:"cpu_us_per_beat"`   // of the scheduler
	Missed    int64   `json:"heartbeats_missed"` // in the steady time
	Offline   int64   `json:"false_offline"`     // in all but the restart
	WatchLost uint64  `json:"watch_missed"`      // changes that the watcher was too slow for

	SubmitIdle   Quantiles `json:"submit_idle"`
	Queued       int       `json:"queued"`
	QueuePerS    float64   `json:"queue_jobs_per_s"` // while the queue was filled
	SubmitQueued Quantiles `json:"submit_queued"`    // one at a time, with the queue full
	PSSQueued    uint64    `json:"scheduler_pss_queued"`

	ListWorkersMS float64 `json:"list_workers_ms"` // all of them, page by page
	ListJobsMS    float64 `json:"list_jobs_ms"`    // the first page
	WatchMS       float64 `json:"watch_ms"`        // until a watcher has the present state of everything

	RestartS   float64 `json:"restart_s"`   // until the new process answers
	ReconnectS float64 `json:"reconnect_s"` // from kill -9 until all workers are online with a session
	ReturnCPU  float64 `json:"scheduler_cpu_us_per_returned"`

	Finished int     `json:"finished"`
	JobsPerS float64 `json:"jobs_per_s"`               // from the release to the last end
	JobCPU   float64 `json:"scheduler_cpu_us_per_job"` // in the same time
	Wrong    int     `json:"not_succeeded"`            // of the finished
	PSSEnd   uint64  `json:"scheduler_pss_end"`
}

// scaling is one measurement.
type scaling struct {
	Farm
	ScalePlan
	out     Scale
	offline atomic.Int64
	missed  atomic.Uint64
	events  atomic.Int64 // that the watcher has read
	calm    atomic.Bool  // workers have no reason to be offline
}

// pss is the memory of the scheduler in bytes.
func (s *scaling) pss() (uint64, error) {
	m, err := readPSS(s.Scheduler())
	if err != nil {
		return 0, fmt.Errorf("read the scheduler's memory: %w", err)
	}
	return uint64(m.PSSKB) << 10, nil
}

// MeasureScale takes one farm through joining, silence, a full queue, a restart
// and many jobs.
func MeasureScale(ctx context.Context, f Farm, p ScalePlan) (Scale, error) {
	s := &scaling{Farm: f, ScalePlan: p, out: Scale{Workers: p.Workers, Queued: p.Queued}}
	watching, stop := context.WithCancel(ctx)
	var wait sync.WaitGroup
	wait.Go(func() { s.watch(watching) })
	defer wait.Wait()
	defer stop()
	for _, step := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"get ready", s.ready},
		{"join", s.join},
		{"stay silent", s.steady},
		{"fill the queue", s.fill},
		{"list and watch", s.list},
		{"restart", s.restart},
		{"run jobs", s.drain},
		{"look at the results", s.audit},
	} {
		begin := time.Now()
		if err := step.run(ctx); err != nil {
			return s.out, fmt.Errorf("%s with %d workers: %w", step.name, p.Workers, err)
		}
		p.Log("%d workers: %s: %.1f s, %d false OFFLINE so far", p.Workers, step.name, time.Since(begin).Seconds(), s.offline.Load())
	}
	s.out.Offline, s.out.WatchLost = s.offline.Load(), s.missed.Load()
	return s.out, nil
}

// watch notes workers that are said to be offline although they live.
func (s *scaling) watch(ctx context.Context) {
	for ctx.Err() == nil {
		stream, err := s.Client().WatchEvents(ctx, &droverv1.WatchEventsRequest{})
		for err == nil {
			var ev *droverv1.WatchEventsResponse
			if ev, err = stream.Recv(); err != nil {
				break
			}
			s.events.Add(1)
			if ev.GetWorker().GetState() == droverv1.WorkerState_WORKER_STATE_OFFLINE && s.calm.Load() {
				s.offline.Add(1)
			}
			s.missed.Add(ev.GetLagged().GetMissed())
		}
		pause(ctx, poll) // the scheduler is being restarted
	}
}

// calmDown begins to count workers that are said to be offline, once the watcher
// has read what was said before: it may be far behind.
func (s *scaling) calmDown(ctx context.Context) {
	for seen := int64(-1); ctx.Err() == nil && seen != s.events.Load(); pause(ctx, 5*poll) {
		seen = s.events.Load()
	}
	s.calm.Store(true)
}

// poll is how often a condition is looked at.
const poll = 100 * time.Millisecond

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// tell is how often it is said how far a long wait has come.
const tell = 10 * time.Second

// until waits for a condition. It may fail while the scheduler is down.
func (s *scaling) until(ctx context.Context, cond func() (bool, string)) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for told := time.Now(); ; {
		ok, state := cond()
		if ok {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("wait: %s: %w", state, ctx.Err())
		}
		if time.Since(told) >= tell {
			told = time.Now()
			s.Log("%d workers: so far %s", s.Workers, state)
		}
		pause(ctx, poll)
	}
}

// patience bounds every wait.
const patience = 10 * time.Minute

// online waits until the scheduler says of all workers that they are online and
// each has a session.
func (s *scaling) online(ctx context.Context) error {
	return s.until(ctx, func() (bool, string) {
		c, err := s.Crowd()
		if err != nil || c.Sessions < int64(s.Workers) {
			return false, fmt.Sprintf("%d sessions (%v)", c.Sessions, err)
		}
		n, err := s.countOnline(ctx)
		return n >= s.Workers, fmt.Sprintf("%d workers online (%v)", n, err)
	})
}

func (s *scaling) countOnline(ctx context.Context) (int, error) {
	n := 0
	err := s.pages(ctx, func(w *droverv1.Worker) {
		if w.GetState() == droverv1.WorkerState_WORKER_STATE_ONLINE {
			n++
		}
	})
	return n, err
}

func (s *scaling) pages(ctx context.Context, yield func(*droverv1.Worker)) error {
	q := &droverv1.ListWorkersRequest{PageSize: 1000}
	for {
		page, err := s.Client().ListWorkers(ctx, q)
		if err != nil {
			return fmt.Errorf("list workers: %w", err)
		}
		for _, w := range page.GetWorkers() {
			yield(w)
		}
		if q.PageToken = page.GetNextPageToken(); q.PageToken == "" {
			return nil
		}
	}
}

// ready waits until all workers are there, before any looks for the scheduler.
func (s *scaling) ready(ctx context.Context) error {
	return s.until(ctx, func() (bool, string) {
		c, err := s.Crowd()
		return c.Ready == int64(s.Workers), fmt.Sprintf("%d workers (%v)", c.Ready, err)
	})
}

func (s *scaling) join(ctx context.Context) error {
	before, err := s.cpu()
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := s.Begin(); err != nil {
		return err
	}
	if err := s.online(ctx); err != nil {
		return err
	}
	s.out.JoinS = time.Since(begin).Seconds()
	after, err := s.cpu()
	s.out.JoinCPU = float64((after - before).Microseconds()) / float64(s.Workers)
	s.calmDown(ctx)
	return err
}

// cpu is what the scheduler has used so far.
func (s *scaling) cpu() (time.Duration, error) {
	t, err := cpuTimes(map[string][]int{"scheduler": {s.Scheduler()}})
	return t["scheduler"], err
}

func (s *scaling) steady(ctx context.Context) error {
	before, err := s.cpu()
	if err != nil {
		return err
	}
	a, err := s.Crowd()
	if err != nil {
		return err
	}
	begin := time.Now()
	pause(ctx, s.Steady)
	took := time.Since(begin)
	after, errCPU := s.cpu()
	b, errCrowd := s.Crowd()
	s.out.PSS, err = s.pss()
	if err := errors.Join(errCPU, errCrowd, err, ctx.Err()); err != nil {
		return err
	}
	beats := float64(b.Beats - a.Beats)
	s.out.SteadyS, s.out.Cores = took.Seconds(), (after-before).Seconds()/took.Seconds()
	s.out.Beats, s.out.Missed = beats/took.Seconds(), b.Missed-a.Missed
	if beats > 0 {
		s.out.BeatCPU = float64((after - before).Microseconds()) / beats
	}
	return nil
}

// submit starts one job.
func (s *scaling) submit(ctx context.Context, hold bool) error {
	q := &droverv1.StartJobRequest{Command: crowd.Command, RequestId: uuid.NewString()}
	if hold {
		q.Args = []string{crowd.Hold}
	}
	if _, err := s.Client().StartJob(ctx, q, grpc.WaitForReady(true)); err != nil {
		return fmt.Errorf("start job: %w", err)
	}
	return nil
}

// submits starts n jobs, several at once.
func (s *scaling) submits(ctx context.Context, n int, hold bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var wait sync.WaitGroup
	for range s.Clients {
		wait.Go(func() {
			for next.Add(1) <= int64(n) && ctx.Err() == nil {
				if err := s.submit(ctx, hold); err != nil {
					cancel(err)
				}
			}
		})
	}
	wait.Wait()
	return context.Cause(ctx)
}

func (s *scaling) timed(ctx context.Context, n int, hold bool) (Quantiles, error) {
	samples := make([]time.Duration, 0, n)
	for range n {
		begin := time.Now()
		if err := s.submit(ctx, hold); err != nil {
			return Quantiles{}, err
		}
		samples = append(samples, time.Since(begin))
	}
	return NewQuantiles(samples), nil
}

// fill gives every worker a job that holds, and lets others wait behind them.
func (s *scaling) fill(ctx context.Context) error {
	var err error
	if s.out.SubmitIdle, err = s.timed(ctx, s.Samples, false); err != nil {
		return err
	}
	begin := time.Now()
	if err := s.submits(ctx, s.Workers+s.Queued, true); err != nil {
		return err
	}
	s.out.QueuePerS = float64(s.Workers+s.Queued) / time.Since(begin).Seconds()
	if s.out.SubmitQueued, err = s.timed(ctx, s.Samples, true); err != nil {
		return err
	}
	s.out.PSSQueued, err = s.pss()
	return err
}

func (s *scaling) list(ctx context.Context) error {
	var err error
	if s.out.ListWorkersMS, err = milliseconds(func() error { return s.pages(ctx, func(*droverv1.Worker) {}) }); err != nil {
		return err
	}
	if s.out.ListJobsMS, err = milliseconds(func() error {
		_, err := s.Client().ListJobs(ctx, &droverv1.ListJobsRequest{PageSize: 100})
		return err
	}); err != nil {
		return fmt.Errorf("list jobs: %w", err)
	}
	s.out.WatchMS, err = milliseconds(func() error { return s.snapshot(ctx) })
	return err
}

func milliseconds(f func() error) (float64, error) {
	begin := time.Now()
	err := f()
	return float64(time.Since(begin).Microseconds()) / 1000, err
}

// snapshot reads the present state of everything, as a watcher begins with.
func (s *scaling) snapshot(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.Client().WatchEvents(ctx, &droverv1.WatchEventsRequest{Snapshot: true})
	if err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	for workers := 0; workers < s.Workers; {
		ev, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("watch: %w", err)
		}
		if ev.GetWorker() != nil {
			workers++ // they come after the jobs
		}
	}
	return nil
}

func (s *scaling) restart(ctx context.Context) error {
	s.calm.Store(false)
	begin := time.Now()
	if err := s.Restart(ctx); err != nil {
		return err
	}
	if _, err := s.Client().ListWorkers(ctx, &droverv1.ListWorkersRequest{PageSize: 1}, grpc.WaitForReady(true)); err != nil {
		return fmt.Errorf("list workers: %w", err)
	}
	s.out.RestartS = time.Since(begin).Seconds()
	if err := s.online(ctx); err != nil {
		return err
	}
	s.out.ReconnectS = time.Since(begin).Seconds()
	used, err := s.cpu() // of the new process, with its start
	s.out.ReturnCPU = float64(used.Microseconds()) / float64(s.Workers)
	s.calmDown(ctx)
	return err
}

// drain lets the queue empty itself and more jobs run through.
func (s *scaling) drain(ctx context.Context) error {
	before, err := s.cpu()
	if err != nil {
		return err
	}
	a, err := s.Crowd()
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := s.Release(); err != nil {
		return err
	}
	if err := s.submits(ctx, s.More, false); err != nil {
		return err
	}
	s.out.Finished = s.Workers + s.Queued + 2*s.Samples + s.More
	var b crowd.Counts
	if err := s.until(ctx, func() (bool, string) {
		b, err = s.Crowd()
		return b.Acked >= int64(s.out.Finished), fmt.Sprintf("%d of %d jobs ended (%v)", b.Acked, s.out.Finished, err)
	}); err != nil {
		return err
	}
	n, took := float64(b.Acked-a.Acked), time.Since(begin)
	after, err := s.cpu()
	s.out.JobsPerS, s.out.JobCPU = n/took.Seconds(), float64((after-before).Microseconds())/n
	if err == nil {
		s.out.PSSEnd, err = s.pss()
	}
	return err
}

// audit counts jobs that did not succeed: none has a reason not to.
func (s *scaling) audit(ctx context.Context) error {
	q := &droverv1.ListJobsRequest{PageSize: 1000}
	seen := 0
	for {
		page, err := s.Client().ListJobs(ctx, q)
		if err != nil {
			return fmt.Errorf("list jobs: %w", err)
		}
		for _, j := range page.GetJobs() {
			if seen++; j.GetState() != droverv1.JobState_JOB_STATE_SUCCEEDED || j.GetAttempt() != 1 {
				s.out.Wrong++
			}
		}
		if q.PageToken = page.GetNextPageToken(); q.PageToken == "" {
			break
		}
	}
	if seen != s.out.Finished {
		return fmt.Errorf("%d jobs are recorded, %d were accepted", seen, s.out.Finished)
	}
	return nil
}
