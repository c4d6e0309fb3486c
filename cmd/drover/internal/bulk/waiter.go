package bulk

import (
	"context"
	"slices"
	"sync"
	"time"

	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// idsPerFrame bounds a message of ids: they have 36 bytes.
const idsPerFrame = 10_000

// waiter learns the ends of jobs on one stream, and opens it again when it
// breaks: every id that has no answer is then asked for anew.
type waiter struct {
	api       API
	patience  time.Duration
	transient func(error) bool
	ends      chan []*droverv1.JobEnd

	mu      sync.Mutex // guards the fields below
	pending map[string]bool
	unsent  []string

	wake chan struct{}
}

func newWaiter(c *Config) *waiter {
	return &waiter{
		api: c.API, patience: c.Patience, transient: c.Transient, ends: make(chan []*droverv1.JobEnd),
		pending: map[string]bool{}, wake: make(chan struct{}, 1),
	}
}

// add waits for further jobs.
func (w *waiter) add(ids []string) {
	w.mu.Lock()
	for _, id := range ids {
		w.pending[id] = true
	}
	w.unsent = append(w.unsent, ids...)
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// again takes every id back that has no answer.
func (w *waiter) again() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unsent = w.unsent[:0]
	for id := range w.pending {
		w.unsent = append(w.unsent, id)
	}
}

func (w *waiter) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	ids := w.unsent
	w.unsent = nil
	return ids
}

// told notes answers and drops those that were given before.
func (w *waiter) told(ends []*droverv1.JobEnd) []*droverv1.JobEnd {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.DeleteFunc(ends, func(e *droverv1.JobEnd) bool {
		known := w.pending[e.GetJobId()]
		delete(w.pending, e.GetJobId())
		return !known
	})
}

// run hands ends over until ctx ends, or until no stream could be had for the
// time of the patience.
func (w *waiter) run(ctx context.Context) error {
	lost := time.Time{}
	for wait := firstWait; ; wait = min(2*wait, lastWait) {
		w.again()
		open, err := w.once(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if open || lost.IsZero() {
			wait, lost = firstWait, time.Now()
		}
		if !w.transient(err) || time.Since(lost) > w.patience {
			return err
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}

// once uses one stream; open tells that there was one.
func (w *waiter) once(ctx context.Context) (open bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	var sending sync.WaitGroup
	defer sending.Wait()
	defer cancel()
	stream, err := w.api.WaitJobs(ctx)
	if err != nil {
		return false, err
	}
	sending.Go(func() { w.send(ctx, stream) })
	header, _ := stream.Header() // comes at once; an error comes out of Recv as well
	open = header != nil
	for {
		r, err := stream.Recv()
		if err != nil {
			return open, err
		}
		select {
		case w.ends <- w.told(r.GetEnds()):
		case <-ctx.Done():
			return open, ctx.Err()
		}
	}
}

// send asks for what is added. An error of it comes out of Recv as well.
func (w *waiter) send(ctx context.Context, stream interface {
	Send(*droverv1.WaitJobsRequest) error
},
) {
	for {
		for ids := range slices.Chunk(w.take(), idsPerFrame) {
			if err := stream.Send(&droverv1.WaitJobsRequest{JobIds: ids}); err != nil {
				return
			}
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return
		}
	}
}

// pause waits, or returns why it must not.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
