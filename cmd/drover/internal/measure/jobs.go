package measure

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// Jobs is the part of the scheduler's client that the measurement uses.
type Jobs interface {
	// Run accepts one job and returns it when it is terminal.
	Run(ctx context.Context, r *droverv1.StartJobRequest) (*droverv1.Job, error)
}

// Keeper is a client that keeps many jobs under way by itself, as one that
// submits in frames does.
type Keeper interface {
	// Keep runs jobs of one request, inFlight at once, and starts none after d.
	// It returns how many succeeded.
	Keep(ctx context.Context, r *droverv1.StartJobRequest, inFlight int, d time.Duration) (int, error)
}

// Result is one row: drover's rate beside the limit taken in the same rounds.
type Result struct {
	Job          string             `json:"job"`
	InFlight     int                `json:"in_flight"`
	JobsPerS     float64            `json:"jobs_per_s"`
	LimitPerS    float64            `json:"limit_per_s"`
	Ratio        float64            `json:"ratio"` // median of the rounds' own ratios
	RatioMin     float64            `json:"ratio_min"`
	RatioMax     float64            `json:"ratio_max"`
	CPUMicrosJob map[string]float64 `json:"cpu_us_per_job"`
	Peers        []PeerResult       `json:"peers,omitempty"`
}

// Plan says what to measure.
type Plan struct {
	Rounds    int
	Slice     time.Duration    // length of each half of a round
	InFlight  int              // jobs at once
	Processes map[string][]int // name -> pids, for CPU per job
	Peers     []Peer           // others that run the same command in each round
}

// Limit measures the limit alone: the median of the rounds.
func Limit(ctx context.Context, w Workload, p Plan) (float64, error) {
	var limits []float64
	for range p.Rounds {
		limit, err := w.Bare.Rate(ctx, p.Slice)
		if err != nil {
			return 0, err
		}
		limits = append(limits, limit)
	}
	return median(limits), nil
}

// Compare measures the limit and drover in turns.
func Compare(ctx context.Context, jobs Jobs, w Workload, p Plan) (Result, error) {
	var rates, limits, ratios []float64
	total := 0
	others := make([]contest, len(p.Peers))
	used := map[string]time.Duration{}
	for range p.Rounds {
		limit, err := w.Bare.Rate(ctx, p.Slice)
		if err != nil {
			return Result{}, err
		}
		rate, n, err := p.used(used, func() (float64, int, error) { return rate(ctx, jobs, w, p) })
		if err != nil {
			return Result{}, err
		}
		total += n
		rates, limits, ratios = append(rates, rate), append(limits, limit), append(ratios, rate/limit)
		for i, peer := range p.Peers {
			if err := others[i].round(ctx, peer, w.Bare.Command(), p.Slice, limit, rate); err != nil {
				return Result{}, err
			}
		}
	}
	cpu := map[string]float64{}
	for name, t := range used {
		cpu[name] = float64(t.Microseconds()) / float64(total)
	}
	return Result{
		Job: w.Name, InFlight: p.InFlight, JobsPerS: median(rates), LimitPerS: median(limits),
		Ratio: median(ratios), RatioMin: slices.Min(ratios), RatioMax: slices.Max(ratios), CPUMicrosJob: cpu,
		Peers: peerResults(p.Peers, others),
	}, nil
}

// used adds the processor time that the processes take while f runs, and not
// what the same processes do in the bare half of a round.
func (p Plan) used(sum map[string]time.Duration, f func() (float64, int, error)) (float64, int, error) {
	before, err := cpuTimes(p.Processes)
	if err != nil {
		return 0, 0, err
	}
	rate, n, err := f()
	if err != nil {
		return 0, 0, err
	}
	after, err := cpuTimes(p.Processes)
	for name, t := range after {
		sum[name] += t - before[name]
	}
	return rate, n, err
}

// rate keeps InFlight jobs going for about one slice.
func rate(ctx context.Context, jobs Jobs, w Workload, p Plan) (float64, int, error) {
	if k, ok := jobs.(Keeper); ok {
		begin := time.Now()
		n, err := k.Keep(ctx, &droverv1.StartJobRequest{Command: w.Command, Path: w.Path}, p.InFlight, p.Slice)
		return float64(n) / time.Since(begin).Seconds(), n, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		count atomic.Int64
		wait  sync.WaitGroup
		begin = time.Now()
	)
	for range p.InFlight {
		wait.Go(func() {
			for time.Since(begin) < p.Slice && ctx.Err() == nil {
				j, err := jobs.Run(ctx, &droverv1.StartJobRequest{Command: w.Command, Path: w.Path})
				if err == nil && j.GetState() != droverv1.JobState_JOB_STATE_SUCCEEDED {
					err = fmt.Errorf("job %s ended %s: %s", j.GetJobId(), j.GetState(), j.GetMessage())
				}
				if err != nil {
					cancel(err)
					return
				}
				count.Add(1)
			}
		})
	}
	wait.Wait()
	n := int(count.Load())
	return float64(n) / time.Since(begin).Seconds(), n, context.Cause(ctx)
}

func median(xs []float64) float64 {
	s := slices.Sorted(slices.Values(xs))
	return s[len(s)/2]
}

// cpuTimes reads user and system time of processes, without their children
// (proc(5), fields 14 and 15 of stat, in clock ticks of 10 ms).
func cpuTimes(processes map[string][]int) (map[string]time.Duration, error) {
	out := make(map[string]time.Duration, len(processes))
	for name, pids := range processes {
		for _, pid := range pids {
			t, err := cpuTime(pid)
			if err != nil {
				return nil, fmt.Errorf("read processor time of %s: %w", name, err)
			}
			out[name] += t
		}
	}
	return out, nil
}

func cpuTime(pid int) (time.Duration, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	// The command name may hold spaces and brackets: count from the last one.
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	user, errUser := strconv.Atoi(fields[11])
	system, errSystem := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond, cmp.Or(errUser, errSystem)
}
