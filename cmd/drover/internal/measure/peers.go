package measure

import (
	"context"
	"fmt"
	"time"
)

// Peer is another program that runs commands.
type Peer interface {
	Name() string
	// Run runs a command n times and returns when the last has ended.
	Run(ctx context.Context, argv []string, n int) error
}

// PeerResult is what another program did in the same rounds.
type PeerResult struct {
	Peer      string  `json:"peer"`
	JobsPerS  float64 `json:"jobs_per_s"`
	Ratio     float64 `json:"ratio"`       // to the bare limit
	DroverIsX Spread  `json:"drover_is_x"` // drover's rate, divided by this one's
}

// contest is the rounds of one peer.
type contest struct {
	expected             float64 // jobs per second
	rates, ratios, ahead []float64
}

// minBatch is how many jobs a peer runs before its rate is known.
const minBatch = 16

// round lets a peer run about as many jobs as it does in one slice: these
// programs take a number of jobs, not a time.
func (c *contest) round(ctx context.Context, peer Peer, argv []string, slice time.Duration, limit, drover float64) error {
	for range 2 { // the first warms it up
		if len(c.rates) > 0 {
			break
		}
		var err error
		if c.expected, err = batchRate(ctx, peer, argv, minBatch); err != nil {
			return err
		}
	}
	rate, err := batchRate(ctx, peer, argv, max(minBatch, int(c.expected*slice.Seconds())))
	if err != nil {
		return err
	}
	c.expected = rate
	c.rates = append(c.rates, rate)
	c.ratios, c.ahead = append(c.ratios, rate/limit), append(c.ahead, drover/rate)
	return nil
}

func batchRate(ctx context.Context, peer Peer, argv []string, n int) (float64, error) {
	begin := time.Now()
	if err := peer.Run(ctx, argv, n); err != nil {
		return 0, fmt.Errorf("run %d jobs with %s: %w", n, peer.Name(), err)
	}
	return float64(n) / time.Since(begin).Seconds(), nil
}

func peerResults(peers []Peer, rounds []contest) []PeerResult {
	var out []PeerResult
	for i, c := range rounds {
		out = append(out, PeerResult{
			Peer: peers[i].Name(), JobsPerS: median(c.rates), Ratio: median(c.ratios), DroverIsX: spread(c.ahead),
		})
	}
	return out
}
