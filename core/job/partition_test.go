package job_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/droverhq/drover/core/job"
)

func TestPartitionWaitIsSpelledOut(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ lease, grace, want time.Duration }{
		{10 * time.Second, 0, 21 * time.Second},
		{10 * time.Second, 10 * time.Second, 32 * time.Second},
		{time.Minute, time.Hour, 61*66*time.Second + 10*time.Second},
	} {
		if got := job.PartitionWait(c.lease, c.grace); got != c.want {
			t.Errorf("lease %v and grace %v: %v, want %v", c.lease, c.grace, got, c.want)
		}
	}
}

// TestP4NoClockRateBreaksTheWait: a worker whose clock goes slow by up to 4.7 %,
// and a scheduler whose clock is fast by as much, still leave 5 s for the kill.
func TestP4NoClockRateBreaksTheWait(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		lease := time.Duration(rapid.Int64Range(int64(time.Second), int64(time.Hour)).Draw(t, "lease"))
		grace := time.Duration(rapid.Int64Range(0, int64(job.MaxPartitionGrace)).Draw(t, "grace"))
		worker := rapid.Float64Range(0.953, 1.047).Draw(t, "worker")
		scheduler := rapid.Float64Range(0.953, 1.047).Draw(t, "scheduler")
		killed := float64(lease+grace) / worker
		settled := float64(job.PartitionWait(lease, grace)) / scheduler
		if settled < killed+float64(5*time.Second) {
			t.Fatalf("killed after %v, given up after %v", time.Duration(killed), time.Duration(settled))
		}
	})
}

// TestP1EqualRequestsKeepTheirHash: what the scheduler hashes must not change for
// requests that say nothing of partitions.
func TestP1EqualRequestsKeepTheirHash(t *testing.T) {
	t.Parallel()
	data, err := json.Marshal(job.Spec{})
	if err != nil || strings.Contains(string(data), "OnPartition") {
		t.Errorf("%s, %v", data, err)
	}
}
