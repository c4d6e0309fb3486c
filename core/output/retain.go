package output

import (
	"cmp"
	"slices"

	"github.com/droverhq/drover/core/job"
)

// reclaim gives bytes back, oldest first, until the total is within the quota:
// first what rings do not guarantee any more, then whole finished attempts of
// any policy but Keep. s.mu is held. The ring is a floor, not a ceiling: while
// there is room nothing is given back.
func (s *Store) reclaim() {
	if s.total <= s.quota {
		return
	}
	var heads []*stream
	var done []*attempt
	for _, a := range s.attempts {
		if a.opts.Policy == job.Keep {
			continue
		}
		if a.finished {
			done = append(done, a)
		}
		heads = append(heads, a.streams[0], a.streams[1])
	}
	slices.SortFunc(heads, func(x, y *stream) int { return compareAge(x.owner, y.owner) })
	for _, st := range heads {
		if s.total <= s.quota {
			return
		}
		s.trim(st)
	}
	slices.SortFunc(done, compareAge)
	for _, a := range done {
		if s.total <= s.quota {
			return
		}
		s.empty(a)
	}
}

// compareAge orders attempts by the time-sorted ids of their jobs.
func compareAge(x, y *attempt) int {
	return cmp.Or(slices.Compare(x.key.Job[:], y.key.Job[:]), cmp.Compare(x.key.Attempt, y.key.Attempt))
}

// trim gives back the chunks of a ring that lie wholly before what it
// guarantees and that the sum has passed.
func (s *Store) trim(st *stream) {
	if st.size <= st.owner.opts.Limit {
		return
	}
	floor := st.size - st.owner.opts.Limit
	if st.hash != nil && st.hash.mu.TryLock() {
		floor = min(floor, st.hash.at)
		st.hash.mu.Unlock()
	} else if st.hash != nil {
		return // it reads right now; next time
	}
	kept := st.extents[:0:0]
	for _, e := range st.extents {
		if e.length > 0 && e.off+e.length <= floor && s.total > s.quota {
			s.unref(e.seg)
			continue
		}
		kept = append(kept, e)
	}
	st.extents = kept
}

// empty gives back all bytes of a finished attempt. Its sizes and sums stay.
func (s *Store) empty(a *attempt) {
	for _, st := range a.streams {
		kept := st.extents[:0:0]
		for _, e := range st.extents {
			if e.length > 0 {
				s.unref(e.seg)
				continue
			}
			kept = append(kept, e)
		}
		st.extents = kept
	}
}
