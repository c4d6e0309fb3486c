package output

import (
	"cmp"
	"context"
	"os"
	"slices"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

// Retention says how long the bytes of ended attempts are kept. A field that is
// zero sets no limit. Whatever they are, sizes and sums stay until Remove, and so do
// the bytes of what runs, and of what the scheduler does not know to have ended.
type Retention struct {
	For       time.Duration // since the end
	FailedFor time.Duration // the same, of attempts that are FAILED, LOST or REJECTED
	Count     int           // ended attempts with output; the oldest go first
}

// Validate refuses limits that are negative, by the names of their settings.
func (r *Retention) Validate() error {
	const op = "start the worker"
	switch {
	case r.For < 0:
		return errs.Field(op, "keep-output-for", "NEGATIVE", "%v is negative", r.For)
	case r.FailedFor < 0:
		return errs.Field(op, "keep-failed-output-for", "NEGATIVE", "%v is negative", r.FailedFor)
	case r.Count < 0:
		return errs.Field(op, "keep-outputs", "NEGATIVE", "%d is negative", r.Count)
	}
	return nil
}

// Pace of retention.
const (
	retainOften  = time.Second // between two passes, at the least
	retainRarely = time.Minute // at the most
	countRarely  = 10 * time.Second
	ageSaved     = 10 * time.Minute
	givenAtOnce  = 64 // attempts, between which others have their turn
)

// every is how often there is a pass: what goes by age stays for a quarter of it
// more at the most.
func (r *Retention) every() time.Duration {
	d := retainRarely
	if r.Count > 0 {
		d = countRarely
	}
	for _, limit := range []time.Duration{r.For, r.FailedFor} {
		if limit > 0 {
			d = min(d, limit/4)
		}
	}
	return max(d, retainOften)
}

func (r *Retention) limits() bool { return r.For > 0 || r.FailedFor > 0 || r.Count > 0 }

// reason says why bytes were given back.
type reason uint8

// The reasons; zero is a ring that gave its head back while its job ran. They
// are on disk.
const (
	byRing reason = iota
	byAge
	byCount
	byQuota
	lastReason
)

// String is what a gap says.
func (r reason) String() string {
	switch r {
	case byAge:
		return "RETENTION_AGE"
	case byCount:
		return "RETENTION_COUNT"
	case byQuota:
		return "RETENTION_QUOTA"
	default:
		return "RETENTION"
	}
}

// ended is an attempt that retention may choose.
type ended struct {
	key    job.Key
	age    time.Duration // since the end
	failed bool
}

// choose says what goes, and why: who is too old, then the oldest of those that
// are too many. It is a pure function; the order of all does not matter.
func (r *Retention) choose(all []ended) map[job.Key]reason {
	out := map[job.Key]reason{}
	var kept []ended
	for _, e := range all {
		limit := r.For
		if e.failed {
			limit = r.FailedFor
		}
		if limit > 0 && e.age >= limit {
			out[e.key] = byAge
			continue
		}
		kept = append(kept, e)
	}
	if r.Count == 0 || len(kept) <= r.Count {
		return out
	}
	slices.SortFunc(kept, func(x, y ended) int {
		return cmp.Or(cmp.Compare(x.age, y.age), compareKeys(y.key, x.key))
	})
	for _, e := range kept[r.Count:] {
		out[e.key] = byCount
	}
	return out
}

// Settled tells how an attempt ended, and whether the scheduler knows: until it
// does, the bytes stay whatever Retention and quota say.
func (s *Store) Settled(key job.Key, acked, failed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.attempts[key]; a != nil {
		a.acked, a.failed = acked, failed
		if acked {
			s.tried = 0 // now there may be something to give back
		}
	}
}

// retainLoop makes passes until ctx ends.
func (s *Store) retainLoop(ctx context.Context) {
	every := s.config.Retention.every()
	timer := time.NewTicker(every)
	defer timer.Stop()
	for unsaved := time.Duration(0); ; unsaved += every {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if unsaved >= ageSaved {
			s.saveAge()
			unsaved = 0
		}
		s.retain(ctx)
		s.mu.Lock()
		s.reclaim()
		s.mu.Unlock()
	}
}

func (s *Store) saveAge() {
	if err := s.age.save(); err != nil {
		s.config.Log.Warn("age of output not noted", "error", err)
	}
}

// retain gives back what Retention does not keep.
func (s *Store) retain(ctx context.Context) {
	rules := &s.config.Retention
	if !rules.limits() {
		return
	}
	chosen := rules.choose(s.candidates())
	if len(chosen) == 0 {
		return
	}
	keys := make([]job.Key, 0, len(chosen))
	for key := range chosen {
		keys = append(keys, key)
	}
	for some := range slices.Chunk(keys, givenAtOnce) {
		if ctx.Err() != nil {
			return
		}
		s.mu.Lock()
		for _, key := range some {
			if a := s.attempts[key]; a != nil && a.mayGo() {
				s.give(a, chosen[key])
			}
		}
		s.mu.Unlock()
	}
	s.config.Log.Info("old output given back", "attempts", len(chosen))
}

// candidates lists what may be given back.
func (s *Store) candidates() (all []ended) {
	now := s.age.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, a := range s.attempts {
		if a.mayGo() && a.hasBytes() {
			all = append(all, ended{key, now - a.ended, a.failed})
		}
	}
	return all
}

// mayGo tells whether the bytes of an attempt may be given back; Store.mu is held.
func (a *attempt) mayGo() bool { return a.finished && a.acked && a.given == 0 }

func (a *attempt) hasBytes() bool {
	for _, st := range a.streams {
		if slices.ContainsFunc(st.extents, func(e extent) bool { return e.length > 0 }) {
			return true
		}
	}
	return false
}

// give gives the bytes of an attempt back; the index will say so. s.mu is held.
func (s *Store) give(a *attempt, why reason) {
	a.given = why
	s.empty(a)
	s.given = append(s.given, a)
	s.wakeUp()
}

// spend lets the mover remove the bytes of a segment that only its index is
// needed of; s.mu is held.
func (s *Store) spend(seg *segment) {
	seg.spent = true
	seg.mark() // until that is done
	s.total -= int64(seg.size)
	s.spent = append(s.spent, seg)
	s.wakeUp()
}

// giveBack writes down what was given back, and removes the bytes. Only the mover
// calls it. A kill in between costs nothing: the next life of the worker finds the
// bytes and gives them back again.
func (s *Store) giveBack() {
	s.leaveShared()
	s.mu.Lock()
	given, spent := s.given, s.spent
	s.given, s.spent = nil, nil
	s.mu.Unlock()
	for _, a := range given {
		if err := s.writeGiven(a); err != nil {
			s.config.Log.Warn("output given back, but not noted", "job", a.key.Job, "error", err)
		}
	}
	for _, seg := range spent {
		s.removeBytes(seg)
	}
}

// leaveShared lets go of the segment that small outputs go to, once nobody needs a byte
// in it: its bytes count, and a quota may be less than a segment. Only the mover may:
// nothing is on its way into it then.
func (s *Store) leaveShared() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if seg := s.shared; seg != nil && seg.refs == seg.marks+1 && seg.size >= s.config.sizes.private {
		s.shared = nil
		s.unref(seg)
	}
}

// removeBytes removes the file of a segment's bytes and keeps its index. Who
// reads it just now has it open.
func (s *Store) removeBytes(seg *segment) {
	e := entry{time: s.config.Now(), kind: kindSpent}
	err := s.announce(seg, e)
	_ = os.Remove(seg.path + ".seg")
	if isNoSpace(err) {
		err = s.announce(seg, e) // now there may be room
	}
	if err != nil {
		s.config.Log.Warn("segment given back, but not noted", "path", seg.path, "error", err)
	}
	seg.empty.Store(true)
	if seg.readers.Load() == 0 {
		_ = seg.data.Close()
	}
	s.mu.Lock()
	s.unmark(seg)
	s.mu.Unlock()
}

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
		if a.mayGo() {
			done = append(done, a)
		}
		heads = append(heads, a.streams[0], a.streams[1])
	}
	slices.SortFunc(heads, func(x, y *stream) int { return compareKeys(x.owner.key, y.owner.key) })
	for _, st := range heads {
		if s.total <= s.quota {
			return
		}
		s.trim(st)
	}
	slices.SortFunc(done, func(x, y *attempt) int { return compareKeys(x.key, y.key) })
	for _, a := range done {
		if s.total <= s.quota {
			return
		}
		s.give(a, byQuota)
	}
}

// compareKeys orders attempts by the time-sorted ids of their jobs.
func compareKeys(x, y job.Key) int {
	return cmp.Or(slices.Compare(x.Job[:], y.Job[:]), cmp.Compare(x.Attempt, y.Attempt))
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
	st.letGo(s, func(e extent) bool { return e.length > 0 && e.off+e.length <= floor && s.total > s.quota })
}

// empty gives back all bytes of a finished attempt. Its sizes and sums stay.
// s.mu is held.
func (s *Store) empty(a *attempt) {
	for _, st := range a.streams {
		st.letGo(s, func(e extent) bool { return e.length > 0 })
	}
}

// letGo drops the ranges of a stream that goes says; Store.mu is held.
func (st *stream) letGo(s *Store, goes func(extent) bool) {
	kept := st.extents[:0:0]
	for _, e := range st.extents {
		if goes(e) {
			s.letGoOf(e)
			continue
		}
		kept = append(kept, e)
	}
	st.extents = kept
}

// letGoOf lets go of what a range holds: its bytes, or a mark; s.mu is held.
func (s *Store) letGoOf(e extent) {
	if e.length > 0 {
		s.unref(e.seg)
		return
	}
	s.unmark(e.seg)
}
