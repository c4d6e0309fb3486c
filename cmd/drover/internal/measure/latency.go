package measure

import (
	"context"
	"fmt"
	"time"
)

// Sampler takes one sample or more of how long something takes.
type Sampler func(context.Context) ([]time.Duration, error)

// Latency is how long something takes with drover and by other means, in turns.
// The ratios are drover's to the other's in the same round.
type Latency struct {
	What     string    `json:"what"` // one_job, process, line
	Job      string    `json:"job"`
	Drover   Quantiles `json:"drover"`
	Against  string    `json:"against"` // fork_wait, ssh, pipe
	Other    Quantiles `json:"other"`
	RatioP50 Spread    `json:"ratio_p50"`
	RatioP95 Spread    `json:"ratio_p95"`
	RatioP99 Spread    `json:"ratio_p99"`
}

// InTurns takes samples of both, one by one in turns, so that what disturbs the
// machine disturbs both. Each round lasts until both have had Slice.
func InTurns(ctx context.Context, l Latency, drover, other Sampler, p Plan) (Latency, error) {
	var allDrover, allOther []time.Duration
	var p50, p95, p99 []float64
	for range p.Rounds {
		ours, theirs, err := oneRound(ctx, drover, other, 2*p.Slice)
		if err != nil {
			return Latency{}, fmt.Errorf("measure %s of %s: %w", l.What, l.Job, err)
		}
		a, b := NewQuantiles(ours), NewQuantiles(theirs)
		p50, p95, p99 = append(p50, a.P50/b.P50), append(p95, a.P95/b.P95), append(p99, a.P99/b.P99)
		allDrover, allOther = append(allDrover, ours...), append(allOther, theirs...)
	}
	l.Drover, l.Other = NewQuantiles(allDrover), NewQuantiles(allOther)
	l.RatioP50, l.RatioP95, l.RatioP99 = spread(p50), spread(p95), spread(p99)
	return l, nil
}

func oneRound(ctx context.Context, drover, other Sampler, d time.Duration) (ours, theirs []time.Duration, err error) {
	for begin := time.Now(); len(ours) == 0 || time.Since(begin) < d; {
		a, err := drover(ctx)
		if err != nil {
			return nil, nil, err
		}
		b, err := other(ctx)
		if err != nil {
			return nil, nil, err
		}
		ours, theirs = append(ours, a...), append(theirs, b...)
	}
	return ours, theirs, nil
}

// Timed samples a call as a whole.
func Timed(f func(context.Context) error) Sampler {
	return func(ctx context.Context) ([]time.Duration, error) {
		begin := time.Now()
		err := f(ctx)
		return []time.Duration{time.Since(begin)}, err
	}
}
