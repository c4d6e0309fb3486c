package bulk

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// frame is one StartJobs call and its answer.
type frame struct {
	indexes []int // of the jobs
	jobs    []*droverv1.StartJobRequest
	results []*droverv1.StartJobsResult
	err     error
}

// run is one Run. One goroutine owns it.
type run struct {
	*Config
	counts  Counts
	next    int            // the first job that was never submitted
	again   []int          // jobs before next that the scheduler had no room for, in order
	window  int            // how many jobs the next frame may have
	wait    time.Duration  // how long the next pause is
	pause   *time.Timer    // nothing is submitted until it fires or a job ends; may be nil
	live    map[string]int // id -> index of jobs under way
	flight  bool           // a frame is under way
	frames  chan frame
	waiter  *waiter
	stopped map[string]bool // jobs that this run has stopped
	order   Order           // the last one
	owned   sync.WaitGroup  // every goroutine of the run
}

// Run runs the jobs and returns when all that were submitted have ended. The
// counts are valid also with an error: jobs may then still be under way.
func Run(ctx context.Context, c Config) (Counts, error) {
	if c.Parallel == 0 {
		c.Parallel = DefaultParallel
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &run{
		Config: &c, live: map[string]int{}, stopped: map[string]bool{}, counts: Counts{Total: c.Total},
		frames: make(chan frame, 1), waiter: newWaiter(&c), window: jobsPerFrame, wait: firstWait,
	}
	defer r.resume()
	defer r.owned.Wait()
	defer cancel()
	lost := make(chan error, 1)
	if !c.Detach {
		r.owned.Go(func() { lost <- r.waiter.run(ctx) })
	}
	tick := time.NewTicker(cmp.Or(c.Every, time.Hour))
	defer tick.Stop()
	for {
		r.submit(ctx)
		if !r.flight && len(r.live) == 0 && (len(r.again) == 0 || r.counts.Stopping) {
			return r.counts, nil
		}
		select {
		case f := <-r.frames:
			if err := r.answered(ctx, &f); err != nil {
				return r.counts, err
			}
		case ends := <-r.waiter.ends:
			for _, e := range ends {
				r.ended(ctx, e)
			}
		case <-r.paused():
			r.resume()
		case o := <-c.Orders:
			r.obey(ctx, o)
		case err := <-lost:
			return r.counts, err
		case <-tick.C:
			if c.Tick != nil {
				c.Tick(r.counts)
			}
		case <-ctx.Done():
			return r.counts, context.Cause(ctx)
		}
	}
}

// submit sends the next frame when there is room for it. One is under way at a
// time: what ends meanwhile makes room for the next, so frames grow with the
// load.
func (r *run) submit(ctx context.Context) {
	room := min(r.Parallel-len(r.live), r.Total-r.next+len(r.again), r.window)
	if r.flight || r.pause != nil || r.counts.Stopping || room < 1 {
		return
	}
	var f frame
	for size := 0; len(f.jobs) < room && size < bytesPerFrame; {
		i := r.take()
		q := r.Request(i)
		f.indexes, f.jobs = append(f.indexes, i), append(f.jobs, q)
		size += proto.Size(q)
	}
	r.flight = true
	r.counts.Running += len(f.jobs)
	r.owned.Go(func() {
		f.results, f.err = r.start(ctx, f.jobs)
		r.frames <- f // has room: one frame is under way
	})
}

// take returns the job to submit next.
func (r *run) take() int {
	if len(r.again) > 0 {
		i := r.again[0]
		r.again = r.again[1:]
		return i
	}
	r.next++
	return r.next - 1
}

// putOff tells whether there was only no room for a job: its request had no effect
// and may be made again.
func putOff(r *droverv1.StartJobsResult) bool {
	return codes.Code(r.GetError().GetCode()) == codes.ResourceExhausted
}

// pace decides when the next frame is sent, and how large it is at the most. After
// one that there was no room for it is as large as what was accepted, and follows a
// pause; frames that are taken whole let it grow again.
func (r *run) pace(accepted int, back []int) {
	if accepted > 0 {
		r.wait = firstWait
	}
	if len(back) == 0 {
		r.window = min(2*r.window, jobsPerFrame)
		return
	}
	r.again = append(back, r.again...)
	r.window = max(accepted, 1)
	r.pause = time.NewTimer(r.wait)
	r.wait = min(2*r.wait, lastWait)
}

// paused is what a pause ends with; nil when there is none.
func (r *run) paused() <-chan time.Time {
	if r.pause == nil {
		return nil
	}
	return r.pause.C
}

// resume ends a pause.
func (r *run) resume() {
	if r.pause != nil {
		r.pause.Stop()
		r.pause = nil
	}
}

// start sends a frame until it is answered. P1: the request ids make that safe.
func (c *Config) start(ctx context.Context, jobs []*droverv1.StartJobRequest) ([]*droverv1.StartJobsResult, error) {
	var results []*droverv1.StartJobsResult
	err := c.persist(ctx, func(ctx context.Context) error {
		answer, err := c.API.StartJobs(ctx, &droverv1.StartJobsRequest{Jobs: jobs})
		results = answer.GetResults()
		return err
	})
	if err == nil && len(results) != len(jobs) {
		return nil, fmt.Errorf("submit %d jobs: the scheduler answered for %d", len(jobs), len(results))
	}
	return results, err
}

// persist makes a call, which must be idempotent, until it is answered.
func (c *Config) persist(ctx context.Context, call func(context.Context) error) error {
	for begin, wait := time.Now(), firstWait; ; wait = min(2*wait, lastWait) {
		one, cancel := context.WithTimeout(ctx, callTimeout)
		err := call(one)
		cancel()
		if err == nil || ctx.Err() != nil || !c.Transient(err) || time.Since(begin) > c.Patience {
			return err
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}

// answered takes the answer to a frame.
func (r *run) answered(ctx context.Context, f *frame) error {
	r.flight = false
	if f.err != nil {
		return f.err
	}
	open := func(r *droverv1.StartJobsResult) bool { return r.GetJobId() != "" || putOff(r) }
	if r.counts.Running == len(f.jobs) && r.counts.Ended() == 0 && !slices.ContainsFunc(f.results, open) {
		// They differ little: what is wrong with the first is wrong with all.
		r.counts.Running, r.counts.Refused = 0, len(f.jobs)
		return &RefusedError{f.results[0].GetError()}
	}
	var ids []string
	var back []int
	for k, result := range f.results {
		i, id := f.indexes[k], result.GetJobId()
		if putOff(result) {
			r.counts.Running--
			back = append(back, i)
			continue
		}
		if id == "" {
			r.counts.Running--
			r.counts.Refused++
			r.tell(i, "", nil, result.GetError())
			continue
		}
		if r.Started != nil {
			r.Started(i, id)
		}
		ids = append(ids, id)
		if !r.Detach {
			r.live[id] = i
		}
	}
	r.pace(len(ids), back)
	if r.Detach {
		return nil
	}
	r.waiter.add(ids)
	if r.order.Stop {
		r.stop(ctx, ids)
	}
	r.judge(ctx)
	return nil
}

func (r *run) tell(i int, id string, e *droverv1.JobEnd, refused *droverv1.StartJobsError) {
	if r.Failed != nil {
		r.Failed(i, id, e, refused)
	}
}

// ended takes the end of a job.
func (r *run) ended(ctx context.Context, e *droverv1.JobEnd) {
	id := e.GetJobId()
	i, ok := r.live[id]
	if !ok {
		return
	}
	delete(r.live, id)
	r.resume() // it may have made room
	r.counts.Running--
	switch state := e.GetState(); {
	case state == droverv1.JobState_JOB_STATE_SUCCEEDED:
		r.counts.Succeeded++
	case state == droverv1.JobState_JOB_STATE_STOPPED && r.stopped[id]:
		r.counts.Stopped++
	default:
		r.counts.Failed++
		r.tell(i, id, e, nil)
	}
	delete(r.stopped, id)
	r.judge(ctx)
}

// judge stops the rest when too many have failed.
func (r *run) judge(ctx context.Context) {
	if r.MaxFail >= 0 && r.counts.Failed+r.counts.Refused > r.MaxFail && !r.counts.Stopping {
		r.obey(ctx, Order{Stop: true})
	}
}

// obey ends the run early.
func (r *run) obey(ctx context.Context, o Order) {
	r.counts.Stopping, r.order = true, o
	if o.Stop {
		// The newest first: those wait in the queue, and need not begin to be stopped.
		ids := slices.SortedFunc(maps.Keys(r.live), func(a, b string) int { return cmp.Compare(r.live[b], r.live[a]) })
		r.stop(ctx, ids)
	}
}

// stop stops jobs while the run goes on, which learns their ends as those of
// others. What cannot be stopped is seen there, too.
func (r *run) stop(ctx context.Context, ids []string) {
	for _, id := range ids {
		r.stopped[id] = true
	}
	grace := r.order.Grace
	for part := range min(stopsAtOnce, len(ids)) {
		r.owned.Go(func() {
			for i := part; i < len(ids) && ctx.Err() == nil; i += stopsAtOnce {
				_ = r.persist(ctx, func(ctx context.Context) error {
					_, err := r.API.StopJob(ctx, &droverv1.StopJobRequest{JobId: ids[i], Grace: grace})
					return err
				})
			}
		})
	}
}
