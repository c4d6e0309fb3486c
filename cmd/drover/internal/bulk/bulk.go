// Package bulk runs many jobs for one client: it submits them in frames, keeps
// a bounded number under way, learns their ends on one stream, and stops the
// rest when it is told to or when too many fail.
package bulk

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// API is the part of the scheduler's client that is used here.
type API interface {
	StartJobs(context.Context, *droverv1.StartJobsRequest, ...grpc.CallOption) (*droverv1.StartJobsResponse, error)
	WaitJobs(context.Context, ...grpc.CallOption) (grpc.BidiStreamingClient[droverv1.WaitJobsRequest, droverv1.WaitJobsResponse], error)
	StopJob(context.Context, *droverv1.StopJobRequest, ...grpc.CallOption) (*droverv1.StopJobResponse, error)
}

// DefaultParallel is how many jobs are under way at once unless asked otherwise:
// enough to keep a cluster busy, and little beside what a scheduler takes.
const DefaultParallel = 4096

// Order asks a run to end early.
type Order struct {
	// Stop also stops the jobs that are under way; without it only nothing new
	// is submitted.
	Stop  bool
	Grace *durationpb.Duration // nil: the jobs' own
}

// Config says what to run.
type Config struct {
	API      API
	Total    int                                   // how many jobs
	Request  func(i int) *droverv1.StartJobRequest // makes the ith; its request_id must be stable
	Parallel int                                   // at the most under way at once; 0 is DefaultParallel
	// MaxFail is how many may fail before the rest is stopped; below 0 is any
	// number.
	MaxFail int
	Orders  <-chan Order // may be nil
	// Detach submits all and waits for none.
	Detach bool
	// Started is told of every accepted job, Failed of every one that did not
	// succeed and was not stopped by this run, both by one goroutine. A job that
	// was refused has no JobEnd, one that was removed no state. May be nil.
	Started func(i int, id string)
	Failed  func(i int, id string, e *droverv1.JobEnd, refused *droverv1.StartJobsError)
	// Tick is called every Every with the counts so far. May be nil.
	Tick  func(Counts)
	Every time.Duration // 0 is an hour
	// Transient tells whether a call is worth another try, which is made for the
	// time of Patience.
	Transient func(error) bool
	Patience  time.Duration
}

// Counts is how far a run has come. Every job is in exactly one of the first
// five, or waits to be submitted.
type Counts struct {
	Running   int // submitted and not ended
	Succeeded int
	Failed    int // ended in another way than with exit code 0
	Stopped   int // by this run
	Refused   int // not accepted by the scheduler
	Total     int
	Stopping  bool // nothing new is submitted
}

// Ended is how many jobs have come to their end, or were refused.
func (c Counts) Ended() int { return c.Succeeded + c.Failed + c.Stopped + c.Refused }

// Left is how many jobs were not submitted.
func (c Counts) Left() int { return c.Total - c.Ended() - c.Running }

// Bounds of frames and waits.
const (
	jobsPerFrame  = 1000
	bytesPerFrame = 4 << 20 // beside what the last job adds
	callTimeout   = 30 * time.Second
	firstWait     = 50 * time.Millisecond
	lastWait      = 2 * time.Second
	stopsAtOnce   = 16
)

// RefusedError says that the scheduler accepts none of the jobs, and why not the
// first.
type RefusedError struct{ Refusal *droverv1.StartJobsError }

// Error implements error.
func (e *RefusedError) Error() string { return e.Refusal.GetMessage() }
