package sim_test

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/droverhq/drover/test/sim"
)

// seeds is how many plans are run: enough for every day, or DROVER_SIM_SEEDS.
func seeds(t *testing.T) uint64 {
	t.Helper()
	text := os.Getenv("DROVER_SIM_SEEDS")
	if text == "" {
		return 1000
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("DROVER_SIM_SEEDS: %v", err)
	}
	return n
}

// TestEveryPromiseUnderEveryFault runs random plans. DROVER_SIM_SEED=N runs one
// of them again, with its trace.
func TestEveryPromiseUnderEveryFault(t *testing.T) {
	t.Parallel()
	if text := os.Getenv("DROVER_SIM_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("DROVER_SIM_SEED: %v", err)
		}
		explain(t, seed)
		return
	}
	n := seeds(t)
	first := os.Getenv("DROVER_SIM_FIRST") != "" // one failure will do: a planted bug
	var (
		next     atomic.Uint64
		mu       sync.Mutex // guards the maps and the list
		ends     = map[string]int{}
		happened = map[string]int{}
		broken   []uint64
		wait     sync.WaitGroup
	)
	for range runtime.GOMAXPROCS(0) {
		wait.Go(func() {
			for seed := next.Add(1); seed <= n; seed = next.Add(1) {
				r := sim.Run(sim.NewPlan(seed))
				mu.Lock()
				for k, v := range r.Ends {
					ends[k] += v
				}
				for k, v := range r.Happened {
					happened[k] += v
				}
				if r.Violation != "" {
					broken = append(broken, seed)
				}
				stop := len(broken) >= 1 && first || len(broken) >= 5
				mu.Unlock()
				if stop {
					return
				}
			}
		})
	}
	wait.Wait()
	t.Logf("%d seeds, ends %v, faults %v", n, ends, happened)
	for _, seed := range broken {
		t.Errorf("seed %d: %s", seed, sim.Run(sim.NewPlan(seed)).Violation)
	}
	switch {
	case first:
		return
	case len(broken) > 0:
		explain(t, broken[0])
		return
	}
	for _, s := range []string{"SUCCEEDED", "FAILED", "STOPPED", "REJECTED", "LOST"} {
		if ends[s] == 0 {
			t.Errorf("no job ended %s: the plans are too tame", s)
		}
	}
	for _, k := range sim.Kinds() {
		if happened[string(k)] == 0 {
			t.Errorf("it never came to %q", k)
		}
	}
	for _, k := range []string{
		"given up after a partition", "stopped in a partition", "never forked, and started again", "given up with its worker",
		"reported after it was given up", "requeued, for its order was not sent", "retried elsewhere",
	} {
		if happened[k] == 0 {
			t.Errorf("no job was ever %s", k)
		}
	}
}

// explain prints the smallest plan that still fails, and its trace.
func explain(t *testing.T, seed uint64) {
	t.Helper()
	p := sim.NewPlan(seed)
	if sim.Run(p).Violation != "" {
		p = sim.Shrink(p)
	}
	p.Trace = true
	r := sim.Run(p)
	t.Logf("%s%s", p, strings.Join(r.Trace, "\n"))
	if r.Violation != "" {
		t.Errorf("seed %d, shrunk: %s", seed, r.Violation)
	}
}
