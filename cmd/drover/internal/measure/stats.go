package measure

import (
	"math"
	"slices"
	"time"
)

// Spread is a figure that was taken once per round.
type Spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// spread of at least one value.
func spread(xs []float64) Spread {
	return Spread{Median: median(xs), Min: slices.Min(xs), Max: slices.Max(xs)}
}

// Quantiles describe a set of samples, in microseconds.
type Quantiles struct {
	P50     float64 `json:"p50_us"`
	P95     float64 `json:"p95_us"`
	P99     float64 `json:"p99_us"`
	Max     float64 `json:"max_us"`
	Samples int     `json:"samples"`
}

// NewQuantiles sorts samples; none gives the zero value.
func NewQuantiles(samples []time.Duration) Quantiles {
	if len(samples) == 0 {
		return Quantiles{}
	}
	slices.Sort(samples)
	return Quantiles{
		P50: quantile(samples, 0.50), P95: quantile(samples, 0.95), P99: quantile(samples, 0.99),
		Max: quantile(samples, 1), Samples: len(samples),
	}
}

// quantile of sorted samples by the nearest rank: a value that was measured,
// not one between two.
func quantile(sorted []time.Duration, q float64) float64 {
	rank := int(math.Ceil(q * float64(len(sorted))))
	d := sorted[max(rank, 1)-1]
	return float64(d) / float64(time.Microsecond)
}
