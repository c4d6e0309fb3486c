package job_test

import (
	"testing"

	"github.com/droverhq/drover/core/job"
)

// legal is the table of docs/contract.md, written out a second time on
// purpose: the code derives it, the test spells it.
var legal = map[job.State][]job.State{
	job.None:       {job.Queued},
	job.Queued:     {job.Dispatched, job.Stopped, job.Rejected},
	job.Dispatched: {job.Running, job.Rejected, job.Stopping, job.Failed, job.Succeeded, job.Lost},
	job.Running:    {job.Stopping, job.Succeeded, job.Failed, job.Lost},
	job.Stopping:   {job.Stopped, job.Succeeded, job.Failed, job.Lost},
}

func TestOnlyTheLegalSteps(t *testing.T) {
	t.Parallel()
	for from := job.None; from <= job.Lost; from++ {
		for to := job.None; to <= job.Lost; to++ {
			want := false
			for _, s := range legal[from] {
				want = want || s == to
			}
			if got := from.CanBecome(to); got != want {
				t.Errorf("%v -> %v: %v, want %v", from, to, got, want)
			}
		}
	}
}

func TestTerminalStatesHaveNoWayOut(t *testing.T) {
	t.Parallel()
	for s := job.None; s <= job.Lost; s++ {
		if s.Terminal() && s.Live() {
			t.Errorf("%v is terminal and live", s)
		}
		for to := job.None; s.Terminal() && to <= job.Lost; to++ {
			if s.CanBecome(to) {
				t.Errorf("%v -> %v", s, to)
			}
		}
	}
}

func TestFencesGrowWithTermThenCounter(t *testing.T) {
	t.Parallel()
	ordered := []job.Fence{{}, {Term: 1, Counter: 1}, {Term: 1, Counter: 9}, {Term: 2, Counter: 1}, {Term: 2, Counter: 2}}
	for i, f := range ordered {
		for k, g := range ordered {
			if f.Less(g) != (i < k) {
				t.Errorf("%v before %v: %v", f, g, f.Less(g))
			}
		}
	}
}
