package measure

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// WorkScript computes and says so: one line of 100 bytes after each of so many
// pieces of work, each of about a millisecond.
const WorkScript = `import hashlib, os, sys
data = bytes(1 << 20)
for i in range(int(sys.argv[1])):
    hashlib.sha256(data).digest()
    os.write(1, b"%099d\n" % i)
`

// WorkLineBytes is the length of each line of WorkScript.
const WorkLineBytes = 100

// FollowersPlan says how many follow.
type FollowersPlan struct {
	Rounds    int
	Followers []int // besides none, which each round begins with
	Processes map[string][]int
	// Run runs the same job with so many followers and returns how long the job
	// took. All of them must have seen all of it when it returns.
	Run func(ctx context.Context, followers int) (time.Duration, error)
}

// Followed is how long a job took while so many clients read its output.
type Followed struct {
	Followers int                `json:"followers"`
	JobMS     Spread             `json:"job_ms"`
	SlowedPct *Spread            `json:"slowed_percent"` // beside none in the same round
	CPUMillis map[string]float64 `json:"cpu_ms"`         // per run, by process
	times     []float64
	used      map[string]time.Duration
}

// Follow measures in rounds: no follower, then each number of them.
func Follow(ctx context.Context, p FollowersPlan) ([]Followed, error) {
	numbers := append([]int{0}, p.Followers...)
	out := make([]Followed, len(numbers))
	for i, n := range numbers {
		out[i] = Followed{Followers: n, used: map[string]time.Duration{}}
	}
	for range p.Rounds {
		for i := range out {
			if err := out[i].take(ctx, p); err != nil {
				return nil, fmt.Errorf("run a job with %d followers: %w", out[i].Followers, err)
			}
		}
	}
	for i := range out {
		out[i].conclude(&out[0])
	}
	return out, nil
}

func (f *Followed) take(ctx context.Context, p FollowersPlan) error {
	before, err := cpuTimes(p.Processes)
	if err != nil {
		return err
	}
	took, err := p.Run(ctx, f.Followers)
	if err != nil {
		return err
	}
	after, err := cpuTimes(p.Processes)
	for name, d := range after {
		f.used[name] += d - before[name]
	}
	f.times = append(f.times, float64(took.Microseconds())/1000)
	return err
}

func (f *Followed) conclude(none *Followed) {
	f.JobMS = spread(f.times)
	f.CPUMillis = make(map[string]float64, len(f.used))
	for name, d := range f.used {
		f.CPUMillis[name] = float64(d.Microseconds()) / 1000 / float64(len(f.times))
	}
	if f == none {
		return
	}
	slowed := slices.Clone(f.times)
	for i := range slowed {
		slowed[i] = 100 * (slowed[i]/none.times[i] - 1)
	}
	s := spread(slowed)
	f.SlowedPct = &s
}
