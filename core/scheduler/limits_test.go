package scheduler

import (
	"math"
	"strings"
	"testing"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

// A limit of one byte was accepted and ended on the worker in the text of
// whatever system call met it first.
func TestLimitsThatNothingCanRunWithAreRefusedWithTheirField(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		limits job.Limits
		field  string // "" is accepted
	}{
		{name: "none"},
		{name: "one byte", limits: job.Limits{Memory: 1}, field: "limits.memory_bytes"},
		{name: "a byte less than 1 MiB", limits: job.Limits{Memory: 1<<20 - 1}, field: "limits.memory_bytes"},
		{name: "1 MiB", limits: job.Limits{Memory: 1 << 20}},
		{name: "all the memory there is", limits: job.Limits{Memory: math.MaxUint64}},
		{name: "the least of processors", limits: job.Limits{CPUMillis: 1}},
		{name: "one process", limits: job.Limits{Pids: 1}},
		{name: "as many processes as Linux has", limits: job.Limits{Pids: 1 << 22}},
		{name: "one process more than Linux has", limits: job.Limits{Pids: 1<<22 + 1}, field: "limits.pids"},
		{name: "the memory is wrong, the rest is not", limits: job.Limits{CPUMillis: 500, Memory: 4096, Pids: 10}, field: "limits.memory_bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			err := validate(&job.Spec{Command: "bash", Limits: c.limits}, "")
			if c.field == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if errs.KindOf(err) != errs.Invalid || errs.ReasonOf(err) != "OUT_OF_RANGE" || !strings.Contains(err.Error(), c.field) {
				t.Fatalf("%v of kind %v, want OUT_OF_RANGE of %s", err, errs.KindOf(err), c.field)
			}
		})
	}
}
