package main

import (
	"math"
	"testing"

	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// A code that has no room in a byte became 0 when its upper bytes were cut off: a
// failed job looked like one that succeeded.
func TestP6NoExitCodeIsCutToZero(t *testing.T) {
	t.Parallel()
	for code, want := range map[int32]int{0: 0, 1: 1, 255: 255, 256: 255, -1: 255, 512: 255, math.MinInt32: 255} {
		j := &droverv1.Job{State: droverv1.JobState_JOB_STATE_FAILED, Reason: "EXIT_CODE", ExitCode: &code}
		if got := int(jobCode(j)); got != want {
			t.Errorf("%d: %d, want %d", code, got, want)
		}
	}
}

// A state that only a newer scheduler knows is none of those that this one does.
func TestAStateOfALaterVersionIsNamedByItsNumber(t *testing.T) {
	t.Parallel()
	j := &droverv1.Job{State: 261}
	if code := jobCode(j); code == 0 || terminal(j.GetState()) {
		t.Errorf("code %d, terminal %v", code, terminal(j.GetState()))
	}
	if got := verbOf(j.GetState()); got != "ended as 261" {
		t.Error(got)
	}
}
