package measure

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"time"
)

// Way is one way for the bytes of a job to come to its client.
type Way struct {
	What      string           // live, finished
	By        string           // drover, ssh, pipe
	Processes map[string][]int // name -> pids, for CPU per MiB
	// Run makes the bytes and copies them to out.
	Run func(ctx context.Context, out io.Writer) error
}

// StreamPlan says how much is carried how often.
type StreamPlan struct {
	Rounds  int
	Pattern *Pattern
	Ways    []Way                       // the first is what the others are compared with
	After   func(context.Context) error // cleans up after each round, not timed; may be nil
}

// Transfer is how fast bytes came by one way.
type Transfer struct {
	What         string             `json:"what"`
	By           string             `json:"by"`
	Bytes        int64              `json:"bytes"`
	SHA256       string             `json:"sha256"`         // of what came
	MBPerS       Spread             `json:"mb_per_s"`       // 10^6 bytes
	FirstIsX     *Spread            `json:"live_is_x"`      // rate of the first way in the same round, divided by this one's
	CPUMicrosMiB map[string]float64 `json:"cpu_us_per_mib"` // by process
	rates        []float64
	used         map[string]time.Duration
}

// Carry takes each way once per round. The round before the first one is not
// counted: it fills caches, and what comes is summed. In the others every byte
// is compared with what was written, which costs the client less.
func Carry(ctx context.Context, p StreamPlan) ([]Transfer, error) {
	out := make([]Transfer, len(p.Ways))
	for i, w := range p.Ways {
		out[i] = Transfer{What: w.What, By: w.By, Bytes: p.Pattern.Bytes, SHA256: p.Pattern.SHA256, used: map[string]time.Duration{}}
	}
	for round := range p.Rounds + 1 {
		for i, w := range p.Ways {
			if err := out[i].take(ctx, w, p.Pattern, round > 0); err != nil {
				return nil, fmt.Errorf("carry %d bytes %s by %s: %w", p.Pattern.Bytes, w.What, w.By, err)
			}
		}
		if p.After == nil {
			continue
		}
		if err := p.After(ctx); err != nil {
			return nil, err
		}
	}
	for i := range out {
		out[i].conclude(&out[0], p)
	}
	return out, nil
}

func (t *Transfer) take(ctx context.Context, w Way, pattern *Pattern, counts bool) error {
	a := &arrival{pattern: pattern}
	if !counts {
		a.sum = sha256.New()
	}
	before, err := cpuTimes(w.Processes)
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := w.Run(ctx, a); err != nil {
		return err
	}
	took := time.Since(begin)
	if err := a.complete(); err != nil || !counts {
		return err
	}
	after, err := cpuTimes(w.Processes)
	for name, d := range after {
		t.used[name] += d - before[name]
	}
	t.rates = append(t.rates, float64(pattern.Bytes)/1e6/took.Seconds())
	return err
}

func (t *Transfer) conclude(first *Transfer, p StreamPlan) {
	t.MBPerS = spread(t.rates)
	t.CPUMicrosMiB = make(map[string]float64, len(t.used))
	mib := float64(p.Pattern.Bytes) / (1 << 20) * float64(p.Rounds)
	for name, d := range t.used {
		t.CPUMicrosMiB[name] = float64(d.Microseconds()) / mib
	}
	if t == first {
		return
	}
	ratios := make([]float64, p.Rounds)
	for i := range ratios {
		ratios[i] = first.rates[i] / t.rates[i]
	}
	s := spread(ratios)
	t.FirstIsX = &s
}
