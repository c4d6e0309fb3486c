package scheduler

import (
	"context"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
)

// keep gathers all that a list hands out.
func keep[T any](to *[]T) func(*T) bool {
	return func(v *T) bool {
		*to = append(*to, *v)
		return true
	}
}

func jobsOf(ctx context.Context, s *Scheduler, by Caller, q JobQuery) (all []job.Job, next string, err error) {
	next, err = s.Jobs(ctx, by, q, keep(&all))
	return all, next, err
}

func workersOf(ctx context.Context, s *Scheduler, labels map[string]string, size int, token string) (all []registry.Worker, next string, err error) {
	next, err = s.Workers(ctx, labels, size, token, keep(&all))
	return all, next, err
}

func scriptsOf(ctx context.Context, s *Scheduler, worker string, size int, token string) (all []Script, next string, err error) {
	next, err = s.Scripts(ctx, worker, size, token, keep(&all))
	return all, next, err
}
