package scheduler

import (
	"time"

	"github.com/droverhq/drover/core/errs"
)

// Heartbeats of many workers.
const (
	// beatsPerSecond is how many heartbeats all workers together are asked for,
	// where leases allow it: what they cost the scheduler then hardly grows with
	// the number of workers.
	beatsPerSecond = 500
	// beatsPerLease is how many each worker is asked for at least while its lease
	// lasts: two that are lost in a row do not end it.
	beatsPerLease = 3
)

// pace is how often each of so many workers shall renew its lease. every is what
// it is for a few; it is never asked for more often.
func pace(every, lease time.Duration, workers int) time.Duration {
	return max(every, min(time.Duration(workers)*time.Second/beatsPerSecond, lease/beatsPerLease))
}

// CheckLease refuses a lease that one late heartbeat would end, with an Invalid error
// about the field lease. op is what was asked for.
func CheckLease(op string, lease, heartbeat time.Duration) error {
	if heartbeat <= 0 || lease < 2*heartbeat {
		return errs.Field(op, "lease", "LEASE", "%v is not at least two heartbeats of %v", lease, heartbeat)
	}
	return nil
}
