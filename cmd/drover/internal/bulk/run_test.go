package bulk_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/droverhq/drover/cmd/drover/internal/bulk"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// cluster runs jobs whose command says for how long and how they end: "1s 0".
// A job whose path is "refused" is not accepted.
type cluster struct {
	mu       sync.Mutex // guards the fields below
	byID     map[string]*clusterJob
	requests map[string]string // request id -> id
	streams  []*stream
	frames   []int // sizes
	most     int   // jobs that were under way at once
	breaks   int   // calls that fail before one succeeds
	noStream bool
	made     int
	kills    int
	budget   int       // how many jobs may live at once; 0 is any number
	full     time.Time // until then there is no room for any
	putOff   int       // jobs that there was no room for
}

type clusterJob struct {
	id    string
	end   *droverv1.JobEnd // nil while it lives
	timer *time.Timer
}

func newCluster() *cluster {
	return &cluster{byID: map[string]*clusterJob{}, requests: map[string]string{}}
}

var errBroken = errors.New("broken")

// StartJobs implements bulk.API.
func (c *cluster) StartJobs(_ context.Context, r *droverv1.StartJobsRequest, _ ...grpc.CallOption) (*droverv1.StartJobsResponse, error) {
	time.Sleep(time.Millisecond) // a round trip
	c.mu.Lock()
	defer c.mu.Unlock()
	c.frames = append(c.frames, len(r.GetJobs()))
	out := &droverv1.StartJobsResponse{}
	for _, q := range r.GetJobs() {
		if q.GetPath() == "refused" {
			out.Results = append(out.Results, &droverv1.StartJobsResult{Kind: &droverv1.StartJobsResult_Error{Error: &droverv1.StartJobsError{Message: "no: never"}}})
			continue
		}
		id, known := c.requests[q.GetRequestId()]
		if !known && (time.Now().Before(c.full) || c.budget > 0 && c.live() >= c.budget) {
			c.putOff++
			out.Results = append(out.Results, &droverv1.StartJobsResult{Kind: &droverv1.StartJobsResult_Error{Error: &droverv1.StartJobsError{
				Code: uint32(codes.ResourceExhausted), Reason: "BYTES_EXHAUSTED", Message: "no room",
			}}})
			continue
		}
		if !known {
			id = c.begin(q)
			c.requests[q.GetRequestId()] = id
		}
		out.Results = append(out.Results, &droverv1.StartJobsResult{Kind: &droverv1.StartJobsResult_JobId{JobId: id}})
	}
	if c.breaks > 0 { // the answer is lost, not the request
		c.breaks--
		return nil, errBroken
	}
	return out, nil
}

// begin starts a job; c.mu is held.
func (c *cluster) begin(q *droverv1.StartJobRequest) string {
	c.made++
	j := &clusterJob{id: fmt.Sprintf("id-%d", c.made)}
	c.byID[j.id] = j
	length, code, _ := strings.Cut(q.GetCommand(), " ")
	d, _ := time.ParseDuration(length)
	state := droverv1.JobState_JOB_STATE_SUCCEEDED
	if code != "0" {
		state = droverv1.JobState_JOB_STATE_FAILED
	}
	j.timer = time.AfterFunc(d, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.finish(j, state)
	})
	c.most = max(c.most, c.live())
	return j.id
}

func (c *cluster) live() (n int) {
	for _, j := range c.byID {
		if j.end == nil {
			n++
		}
	}
	return n
}

func (c *cluster) finish(j *clusterJob, state droverv1.JobState) {
	if j.end != nil {
		return
	}
	j.end = &droverv1.JobEnd{JobId: j.id, State: state}
	for _, s := range c.streams {
		if s.asked[j.id] {
			s.out <- j.end
		}
	}
}

// StopJob implements bulk.API.
func (c *cluster) StopJob(_ context.Context, r *droverv1.StopJobRequest, _ ...grpc.CallOption) (*droverv1.StopJobResponse, error) {
	time.Sleep(time.Millisecond)
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.GetGrace() != nil {
		c.kills++
	}
	j := c.byID[r.GetJobId()]
	if j.end == nil && j.timer.Stop() {
		c.finish(j, droverv1.JobState_JOB_STATE_STOPPED)
	}
	return &droverv1.StopJobResponse{}, nil
}

// stream is one WaitJobs.
type stream struct {
	grpc.ClientStream
	c     *cluster
	ctx   context.Context //nolint:containedctx // as that of every stream
	asked map[string]bool
	out   chan *droverv1.JobEnd
	cut   chan struct{}
}

// WaitJobs implements bulk.API.
func (c *cluster) WaitJobs(ctx context.Context, _ ...grpc.CallOption) (grpc.BidiStreamingClient[droverv1.WaitJobsRequest, droverv1.WaitJobsResponse], error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.noStream {
		return nil, errBroken
	}
	s := &stream{c: c, ctx: ctx, asked: map[string]bool{}, out: make(chan *droverv1.JobEnd, 100_000), cut: make(chan struct{})}
	c.streams = append(c.streams, s)
	return s, nil
}

// cut breaks every stream.
func (c *cluster) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.streams {
		close(s.cut)
	}
	c.streams = nil
}

func (s *stream) Header() (metadata.MD, error) { return metadata.MD{}, nil }

func (s *stream) Send(r *droverv1.WaitJobsRequest) error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	for _, id := range r.GetJobIds() {
		s.asked[id] = true
		if j := s.c.byID[id]; j == nil {
			s.out <- &droverv1.JobEnd{JobId: id}
		} else if j.end != nil {
			s.out <- j.end
		}
	}
	return nil
}

func (s *stream) Recv() (*droverv1.WaitJobsResponse, error) {
	select {
	case e := <-s.out:
		return &droverv1.WaitJobsResponse{Ends: []*droverv1.JobEnd{e}}, nil
	case <-s.cut:
		return nil, io.EOF
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	}
}

// config runs n jobs of one command.
func config(c *cluster, n int, command string) bulk.Config {
	return bulk.Config{
		API: c, Total: n, MaxFail: -1, Transient: func(err error) bool { return errors.Is(err, errBroken) || errors.Is(err, io.EOF) },
		Patience: time.Minute,
		Request: func(i int) *droverv1.StartJobRequest {
			return &droverv1.StartJobRequest{Command: command, RequestId: fmt.Sprint(i)}
		},
	}
}

// bubble runs f with a clock of its own.
func bubble(t *testing.T, f func(t *testing.T, c *cluster)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { f(t, newCluster()) })
}

func want(t *testing.T, got bulk.Counts, err error, want bulk.Counts) {
	t.Helper()
	if err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
}

func TestAllAreRunAndNoMoreAtOnceThanAsked(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		r := config(c, 2500, "1s 0")
		r.Parallel = 300
		var ids []string
		r.Started = func(i int, id string) {
			if i != len(ids) {
				t.Errorf("job %d is told of in place %d", i, len(ids))
			}
			ids = append(ids, id)
		}
		got, err := bulk.Run(t.Context(), r)
		want(t, got, err, bulk.Counts{Total: 2500, Succeeded: 2500})
		if c.most != 300 || len(ids) != 2500 || c.made != 2500 {
			t.Errorf("at most %d at once, %d told of, %d made", c.most, len(ids), c.made)
		}
	})
}

func TestFramesAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		got, err := bulk.Run(t.Context(), config(c, 3000, "1s 0"))
		want(t, got, err, bulk.Counts{Total: 3000, Succeeded: 3000})
		if slices.Max(c.frames) != 1000 {
			t.Errorf("frames of %d jobs", slices.Max(c.frames))
		}
		big := config(newCluster(), 10, "1s 0")
		big.Request = func(i int) *droverv1.StartJobRequest {
			return &droverv1.StartJobRequest{Command: "1s 0", Stdin: make([]byte, 1<<20), RequestId: fmt.Sprint(i)}
		}
		c2 := newCluster()
		big.API = c2
		got, err = bulk.Run(t.Context(), big)
		want(t, got, err, bulk.Counts{Total: 10, Succeeded: 10})
		if slices.Max(c2.frames) > 4 {
			t.Errorf("a frame of %d MiB", slices.Max(c2.frames))
		}
	})
}

// P1: what was lost of an answer is asked for again, and nothing is made twice.
func TestABrokenAnswerMakesNothingTwice(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.breaks = 3
		got, err := bulk.Run(t.Context(), config(c, 100, "1s 0"))
		want(t, got, err, bulk.Counts{Total: 100, Succeeded: 100})
		if c.made != 100 {
			t.Errorf("%d jobs were made", c.made)
		}
	})
}

func TestABrokenStreamLosesNoEnd(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		r := config(c, 1000, "1s 0")
		r.Parallel = 100
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 15 {
				time.Sleep(700 * time.Millisecond)
				c.cut()
			}
		}()
		got, err := bulk.Run(t.Context(), r)
		want(t, got, err, bulk.Counts{Total: 1000, Succeeded: 1000})
		<-done
	})
}

func TestASchedulerThatStaysAwayIsGivenUp(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		r := config(c, 10, "10h 0")
		time.AfterFunc(time.Hour, func() {
			c.mu.Lock()
			c.noStream = true
			c.mu.Unlock()
			c.cut()
		})
		begin := time.Now()
		got, err := bulk.Run(t.Context(), r)
		if !errors.Is(err, errBroken) || got.Running != 10 {
			t.Errorf("%+v, %v", got, err)
		}
		if d := time.Since(begin); d < time.Hour+time.Minute || d > time.Hour+2*time.Minute {
			t.Errorf("given up after %v", d)
		}
		for _, j := range c.byID {
			j.timer.Stop()
		}
	})
}

func TestFailuresAreToldAndCounted(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		r := config(c, 10, "")
		r.Request = func(i int) *droverv1.StartJobRequest {
			q := &droverv1.StartJobRequest{Command: fmt.Sprintf("1s %d", i%2), RequestId: fmt.Sprint(i)}
			if i == 4 {
				q.Path = "refused"
			}
			return q
		}
		told := map[int]string{}
		r.Failed = func(i int, _ string, e *droverv1.JobEnd, refused *droverv1.StartJobsError) {
			told[i] = e.GetState().String() + refused.GetMessage()
		}
		got, err := bulk.Run(t.Context(), r)
		want(t, got, err, bulk.Counts{Total: 10, Succeeded: 4, Failed: 5, Refused: 1})
		if len(told) != 6 || told[4] != "JOB_STATE_UNSPECIFIEDno: never" || told[9] != "JOB_STATE_FAILED" {
			t.Errorf("told %v", told)
		}
	})
}

func TestTooManyFailuresStopTheRest(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		r := config(c, 1000, "")
		r.Parallel, r.MaxFail = 10, 2
		r.Request = func(i int) *droverv1.StartJobRequest {
			command := "1h 0"
			if i < 3 {
				command = fmt.Sprintf("%dms 1", 100*(i+1))
			}
			return &droverv1.StartJobRequest{Command: command, RequestId: fmt.Sprint(i)}
		}
		begin := time.Now()
		got, err := bulk.Run(t.Context(), r)
		if err != nil || got.Failed != 3 || got.Stopped < 9 || got.Failed+got.Stopped+got.Left() != 1000 || c.live() != 0 {
			t.Errorf("%+v, %v; %d live", got, err, c.live())
		}
		if time.Since(begin) > time.Second {
			t.Errorf("it took %v", time.Since(begin))
		}
	})
}

// What there is no room for is submitted again when jobs end: it is neither lost nor
// a failure.
func TestJobsWithoutRoomAreSubmittedAgain(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.budget = 100
		r := config(c, 1000, "1s 0")
		r.MaxFail = 0
		r.Failed = func(i int, _ string, _ *droverv1.JobEnd, refused *droverv1.StartJobsError) {
			t.Errorf("job %d failed: %v", i, refused)
		}
		begin := time.Now()
		got, err := bulk.Run(t.Context(), r)
		want(t, got, err, bulk.Counts{Total: 1000, Succeeded: 1000})
		if d := time.Since(begin); c.made != 1000 || c.most != 100 || d > 20*time.Second {
			t.Errorf("%d made, at most %d at once, in %v", c.made, c.most, d)
		}
		if len(c.frames) > 1000 || c.putOff > 2500 {
			t.Errorf("%d frames, %d put off", len(c.frames), c.putOff)
		}
	})
}

// A run that finds no room at all waits for it, also when no job of its own can end.
func TestARunWaitsForRoom(t *testing.T) {
	t.Parallel()
	for name, detach := range map[string]bool{"attended": false, "detached": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				c.full = time.Now().Add(time.Minute)
				r := config(c, 1500, "1s 0")
				r.MaxFail, r.Detach = 0, detach
				begin, n := time.Now(), 0
				r.Started = func(i int, _ string) {
					if i != n {
						t.Errorf("job %d is told of in place %d", i, n)
					}
					n++
				}
				if got, err := bulk.Run(t.Context(), r); err != nil || got.Refused != 0 || n != 1500 || c.made != 1500 {
					t.Errorf("%+v, %v; %d told of, %d made", got, err, n, c.made)
				}
				if d := time.Since(begin); d < time.Minute || d > time.Minute+5*time.Second || len(c.frames) > 60 {
					t.Errorf("%d frames in %v", len(c.frames), d)
				}
				time.Sleep(time.Minute) // detached jobs end
			})
		})
	}
}

// The rest of a detached run is accepted as jobs end that nobody waits for.
func TestADetachedRunWaitsForRoomOfItsOwnJobs(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.budget = 100
		r := config(c, 1000, "1s 0")
		r.Detach = true
		if got, err := bulk.Run(t.Context(), r); err != nil || got.Refused != 0 || c.made != 1000 {
			t.Errorf("%+v, %v; %d made", got, err, c.made)
		}
		if len(c.frames) > 300 {
			t.Errorf("%d frames", len(c.frames))
		}
		time.Sleep(time.Minute)
	})
}

// A refusal for good counts as one beside jobs that there is no room for.
func TestARefusalIsNoLackOfRoom(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.full = time.Now().Add(time.Second)
		r := config(c, 10, "")
		r.Request = func(i int) *droverv1.StartJobRequest {
			q := &droverv1.StartJobRequest{Command: "1s 0", RequestId: fmt.Sprint(i)}
			if i%5 == 0 {
				q.Path = "refused"
			}
			return q
		}
		got, err := bulk.Run(t.Context(), r)
		want(t, got, err, bulk.Counts{Total: 10, Succeeded: 8, Refused: 2})
	})
}

// Neither the end of the context nor an order is held up by a wait for room.
func TestAWaitForRoomCanBeEnded(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.full = time.Now().Add(time.Hour)
		why := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		begin := time.Now()
		time.AfterFunc(10*time.Second, func() { cancel(why) })
		if got, err := bulk.Run(ctx, config(c, 10, "1h 0")); !errors.Is(err, why) || got.Running != 0 || got.Left() != 10 {
			t.Errorf("%+v, %v", got, err)
		}
		orders := make(chan bulk.Order, 1)
		r := config(c, 10, "1h 0")
		r.Orders = orders
		time.AfterFunc(10*time.Second, func() { orders <- bulk.Order{Stop: true} })
		got, err := bulk.Run(t.Context(), r)
		want(t, got, err, bulk.Counts{Total: 10, Stopping: true})
		if d := time.Since(begin); d > 21*time.Second {
			t.Errorf("it took %v", d)
		}
	})
}

func TestNothingIsStartedAfterARefusalOfAll(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		r := config(c, 5000, "1s 0")
		r.Request = func(int) *droverv1.StartJobRequest { return &droverv1.StartJobRequest{Path: "refused"} }
		_, err := bulk.Run(t.Context(), r)
		var refused *bulk.RefusedError
		if !errors.As(err, &refused) || err.Error() != "no: never" || len(c.frames) != 1 {
			t.Errorf("%v; %d frames", err, len(c.frames))
		}
	})
}

func TestAnOrderStopsAndASecondKills(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		r := config(c, 1000, "1h 0")
		orders := make(chan bulk.Order)
		r.Parallel, r.Orders = 50, orders
		go func() {
			time.Sleep(time.Second)
			orders <- bulk.Order{Stop: true}
			orders <- bulk.Order{Stop: true, Grace: durationpb.New(0)}
		}()
		got, err := bulk.Run(t.Context(), r)
		want(t, got, err, bulk.Counts{Total: 1000, Stopped: 50, Stopping: true})
		if c.kills == 0 || c.live() != 0 {
			t.Errorf("%d kills, %d live", c.kills, c.live())
		}
	})
}

func TestAnOrderWithoutStopLetsJobsEnd(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		r := config(c, 1000, "1m 0")
		orders := make(chan bulk.Order, 1)
		r.Parallel, r.Orders = 50, orders
		time.AfterFunc(time.Second, func() { orders <- bulk.Order{} })
		got, err := bulk.Run(t.Context(), r)
		want(t, got, err, bulk.Counts{Total: 1000, Succeeded: 50, Stopping: true})
	})
}

func TestDetachedJobsAreNotWaitedFor(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		r := config(c, 2500, "1h 0")
		r.Detach, r.Parallel = true, 10
		begin, n := time.Now(), 0
		r.Started = func(int, string) { n++ }
		if _, err := bulk.Run(t.Context(), r); err != nil || n != 2500 || c.made != 2500 {
			t.Errorf("%d told of, %d made, %v", n, c.made, err)
		}
		if time.Since(begin) > time.Second || len(c.streams) != 0 {
			t.Errorf("it took %v; %d streams", time.Since(begin), len(c.streams))
		}
		for _, j := range c.byID {
			j.timer.Stop()
		}
	})
}

func TestTheEndOfTheContextEndsARun(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		why := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(why) })
		got, err := bulk.Run(ctx, config(c, 10, "1h 0"))
		if !errors.Is(err, why) || got.Running != 10 {
			t.Errorf("%+v, %v", got, err)
		}
		for _, j := range c.byID {
			j.timer.Stop()
		}
	})
}

func TestTicksTellHowFarItIs(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		r := config(c, 10, "1s 0")
		r.Parallel, r.Every = 1, time.Second
		var ended []int
		r.Tick = func(n bulk.Counts) { ended = append(ended, n.Ended()) }
		got, err := bulk.Run(t.Context(), r)
		want(t, got, err, bulk.Counts{Total: 10, Succeeded: 10})
		if len(ended) != 10 || !slices.IsSorted(ended) || ended[9] != 9 {
			t.Errorf("ticks %v", ended)
		}
	})
}
