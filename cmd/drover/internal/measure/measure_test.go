package measure_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/droverhq/drover/cmd/drover/internal/measure"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// instant is a cluster whose jobs end at once.
type instant struct {
	runs  atomic.Int64
	state droverv1.JobState
	err   error
}

func (i *instant) Run(context.Context, *droverv1.StartJobRequest) (*droverv1.Job, error) {
	i.runs.Add(1)
	return &droverv1.Job{JobId: "j", State: i.state, Message: "exit code 1"}, i.err
}

func workload(t *testing.T) measure.Workload {
	t.Helper()
	w, err := measure.Workloads(t.TempDir(), "line.sh")
	if err != nil {
		t.Fatal(err)
	}
	return w[0]
}

func TestCompareTakesLimitAndRateInTurns(t *testing.T) {
	t.Parallel()
	c := &instant{state: droverv1.JobState_JOB_STATE_SUCCEEDED}
	r, err := measure.Compare(t.Context(), c, workload(t), measure.Plan{
		Rounds: 3, Slice: 20 * time.Millisecond, InFlight: 2, Processes: map[string][]int{"client": {os.Getpid()}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.Job != "true" || r.InFlight != 2 || r.LimitPerS <= 0 || r.JobsPerS <= 0 || c.runs.Load() == 0 {
		t.Errorf("result %+v", r)
	}
	if r.RatioMin > r.Ratio || r.Ratio > r.RatioMax {
		t.Errorf("the median %v is not between %v and %v", r.Ratio, r.RatioMin, r.RatioMax)
	}
	if _, ok := r.CPUMicrosJob["client"]; !ok {
		t.Error("no processor time of the client")
	}
}

func TestAFailingJobOrCallEndsTheMeasurement(t *testing.T) {
	t.Parallel()
	plan := measure.Plan{Rounds: 1, Slice: 10 * time.Millisecond, InFlight: 1}
	failed := &instant{state: droverv1.JobState_JOB_STATE_FAILED}
	if _, err := measure.Compare(t.Context(), failed, workload(t), plan); err == nil || !strings.Contains(err.Error(), "exit code 1") {
		t.Errorf("failed job: %v", err)
	}
	broken := &instant{err: errors.New("no cluster")}
	if _, err := measure.Compare(t.Context(), broken, workload(t), plan); err == nil || !strings.Contains(err.Error(), "no cluster") {
		t.Errorf("broken call: %v", err)
	}
}

func TestSpawnerReportsWhatItCannotStart(t *testing.T) {
	t.Parallel()
	if _, err := (measure.Spawner{Path: "/nowhere/x", Argv: []string{"x"}}).Rate(t.Context(), time.Millisecond); err == nil {
		t.Error("no error for a missing executable")
	}
	if _, err := (measure.Spawner{Path: "/bin/false", Argv: []string{"false"}}).Rate(t.Context(), time.Millisecond); err == nil {
		t.Error("no error for a failing command")
	}
}

// keeper is a client that keeps jobs under way by itself.
type keeper struct {
	instant
	inFlight int
}

func (k *keeper) Keep(_ context.Context, _ *droverv1.StartJobRequest, inFlight int, d time.Duration) (int, error) {
	k.inFlight = inFlight
	time.Sleep(d)
	return 1000, k.err
}

func TestAClientThatKeepsJobsUnderWayIsLeftToIt(t *testing.T) {
	t.Parallel()
	k := &keeper{}
	plan := measure.Plan{Rounds: 1, Slice: 10 * time.Millisecond, InFlight: 7}
	r, err := measure.Compare(t.Context(), k, workload(t), plan)
	if err != nil || r.JobsPerS <= 0 || r.JobsPerS > 100_000 || k.inFlight != 7 || k.runs.Load() != 0 {
		t.Errorf("%+v, %v; %d at once, %d single runs", r, err, k.inFlight, k.runs.Load())
	}
	k.err = errors.New("no cluster")
	if _, err := measure.Compare(t.Context(), k, workload(t), plan); err == nil {
		t.Error("its error is lost")
	}
}
