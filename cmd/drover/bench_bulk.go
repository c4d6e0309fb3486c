package main

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/google/uuid"

	"github.com/droverhq/drover/cmd/drover/internal/bulk"
	"github.com/droverhq/drover/cmd/drover/internal/client"
	"github.com/droverhq/drover/cmd/drover/internal/measure"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// benchBulk runs jobs for a measurement as "drover run --array" does: submitted
// in frames, each with a request id of its own, their ends learnt on one stream.
type benchBulk struct{ benchJobs }

// Keep implements measure.Keeper.
func (r benchBulk) Keep(ctx context.Context, q *droverv1.StartJobRequest, inFlight int, d time.Duration) (int, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	enough := make(chan bulk.Order, 1)
	defer time.AfterFunc(d, func() { enough <- bulk.Order{} }).Stop()
	batch := uuid.NewString() + "/"
	counts, err := bulk.Run(ctx, bulk.Config{
		API: r.c, Total: math.MaxInt, Parallel: inFlight, MaxFail: -1, Orders: enough,
		Request: func(i int) *droverv1.StartJobRequest {
			return &droverv1.StartJobRequest{Command: q.GetCommand(), Path: q.GetPath(), RequestId: batch + strconv.Itoa(i)}
		},
		Failed: func(_ int, id string, e *droverv1.JobEnd, refused *droverv1.StartJobsError) {
			cancel(fmt.Errorf("job %s ended %s: %s%s", id, e.GetState(), e.GetMessage(), refused.GetMessage()))
		},
		Transient: func(error) bool { return false },
	})
	return counts.Succeeded, explainMany(r.c, err)
}

// benchClient is what submits the jobs of a measurement.
func (b *benchFlags) benchClient(c *client.Client) measure.Jobs {
	if b.unary {
		return benchJobs{c}
	}
	return benchBulk{benchJobs{c}}
}
