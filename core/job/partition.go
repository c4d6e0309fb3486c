package job

import "time"

// Bounds of what P4 (c) waits for.
const (
	// MaxPartitionGrace is the longest grace of a job with StopItself: the
	// scheduler cannot settle it before the grace is over.
	MaxPartitionGrace = time.Hour
	// partitionMargin is for what no clock rate explains: the worker's delay
	// until it acts, and the kill itself.
	partitionMargin = 10 * time.Second
)

// PartitionWait is how long after the last contact with a worker its attempts with
// StopItself have surely ended. The worker counts the lease from the moment
// when it asked for it, which is before its scheduler heard of that; then it
// stops them with their grace. A tenth is for clocks that do not run alike
// (docs/adr/0018).
func PartitionWait(lease, grace time.Duration) time.Duration {
	own := lease + grace
	return own + own/10 + partitionMargin
}
