// Package lifecycle starts and stops the parts of a daemon in order: siblings
// together, dependencies after what needs them.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Runner is a part that lives until its context ends.
type Runner interface {
	// Run returns nil after the context ended in good order.
	Run(ctx context.Context) error
}

// Func makes a function a Runner.
type Func func(ctx context.Context) error

// Run calls f.
func (f Func) Run(ctx context.Context) error { return f(ctx) }

type part struct {
	name string
	run  Runner
}

// Group runs stages of parts. Stages start in the order in which they were
// added and stop in the reverse order: the last stage added is stopped first
// and waited for before the one below it is told to stop. The zero value is
// ready. A Group is built by one goroutine and run once.
type Group struct {
	stages [][]part
}

// Stage adds parts that stop together. Names appear in errors.
func (g *Group) Stage(parts map[string]Runner) {
	stage := make([]part, 0, len(parts))
	for name, r := range parts {
		stage = append(stage, part{name, r})
	}
	g.stages = append(g.stages, stage)
}

// Run starts every part and blocks until ctx ends or one part returns; then it
// stops the stages from the last to the first. It returns the errors of all
// parts, each with its name. A part that returns nil while ctx lives counts as
// an error: daemons' parts do not end by themselves.
func (g *Group) Run(ctx context.Context) error {
	var (
		failed  = make(chan struct{})
		once    sync.Once
		mu      sync.Mutex // guards errs
		errs    []error
		cancels = make([]context.CancelFunc, len(g.stages))
		waits   = make([]sync.WaitGroup, len(g.stages))
	)
	for i, stage := range g.stages {
		stageCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		cancels[i] = cancel
		for _, p := range stage {
			waits[i].Go(func() {
				err := p.run.Run(stageCtx)
				if err == nil && stageCtx.Err() == nil {
					err = errors.New("ended by itself")
				}
				if err != nil && !errors.Is(err, context.Canceled) {
					mu.Lock()
					errs = append(errs, fmt.Errorf("%s: %w", p.name, err))
					mu.Unlock()
				}
				once.Do(func() { close(failed) })
			})
		}
	}
	select {
	case <-ctx.Done():
	case <-failed:
	}
	for i := len(g.stages) - 1; i >= 0; i-- {
		cancels[i]()
		waits[i].Wait()
	}
	return errors.Join(errs...)
}
