package output

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/core/job"
)

// Small returns c with files so small that a few kilobytes roll them over.
func (c Config) Small() Config {
	c.sizes = sizes{shared: 48 << 10, private: 8 << 10, chunk: 16 << 10, move: 4 << 10}
	return c
}

// WithFault returns c with a disk that fails as the function says, by step:
// "segment" (make one), "index" (write an entry), "move" (splice).
func (c Config) WithFault(f func(step string) error) Config {
	c.fault = f
	return c
}

// Abandon closes descriptors and does nothing else, as the kernel does for a
// process that was killed. Run must have returned.
func (s *Store) Abandon() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, l := range s.free {
		l.close()
	}
	for _, a := range s.attempts {
		if a.lane != nil {
			a.lane.close()
		}
	}
	for _, seg := range s.segments {
		seg.close()
	}
	_ = unix.Close(s.epoll)
	_ = unix.Close(s.wake)
}

// NudgeQuota changes the quota, as more room for the same worker would.
func (s *Store) NudgeQuota(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.quota = n
}

// Leaving tells whether an attempt is being taken from the mover.
func (s *Store) Leaving(key job.Key) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.attempts[key]
	return a != nil && a.streams[0].rest != nil
}

// Retain makes a pass of retention.
func (s *Store) Retain(ctx context.Context) { s.retain(ctx) }

// Total is how many bytes count against the quota.
func (s *Store) Total() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

// WithPace returns c in which so many followers gather for a time.
func (c Config) WithPace(pace func(followers int) time.Duration) Config {
	c.pace = pace
	return c
}

// GatherTime is the pace of a store that is not told another.
var GatherTime = gatherTime
