package journal

import (
	"github.com/droverhq/drover/core/job"
)

// ref is where a frame lies.
type ref struct{ off, n int64 }

// entry holds the frames of one attempt by Kind - KindIntent; zero n is none.
type entry struct {
	refs [KindAcked - KindIntent + 1]ref
}

// index knows which frames are live, so that compaction copies bytes and no
// second copy of the records is kept in memory.
type index struct {
	fence, floor job.Fence
	epoch        uint64
	fenceAt      ref
	lease        *Lease
	life         job.Life
	attempts     map[job.Key]*entry
}

func newIndex() index { return index{attempts: make(map[job.Key]*entry)} }

// add notes a frame and returns how many bytes died by it.
func (x *index) add(r *Record, at ref) (dead int64) {
	if x.fence.Less(r.Fence) {
		x.fence = r.Fence
	}
	if x.floor.Less(r.Floor) {
		x.floor = r.Floor
	}
	x.epoch = max(x.epoch, r.Epoch)
	switch r.Kind {
	case KindFence:
		dead, x.fenceAt = x.fenceAt.n, at
		if r.Lease != nil {
			x.lease = r.Lease
		}
		if r.Life != (job.Life{}) {
			x.life = r.Life
		}
		return dead
	case KindForgotten:
		// Compaction writes the floor anew; this frame is dead once it was read.
		dead = at.n
		if e := x.attempts[r.Key]; e != nil {
			dead += e.drop(KindIntent, KindAcked)
			delete(x.attempts, r.Key)
		}
		return dead
	}
	e := x.attempts[r.Key]
	if e == nil {
		e = &entry{}
		x.attempts[r.Key] = e
	}
	if r.Kind == KindDone {
		// A refined report needs a new acknowledgement.
		dead = e.drop(KindAcked, KindAcked)
		if !r.Done.Open {
			// The final report says all that the records before it said.
			dead += e.drop(KindIntent, KindExited)
		}
	}
	slot := &e.refs[r.Kind-KindIntent]
	dead += slot.n
	*slot = at
	return dead
}

// drop forgets the frames of the kinds from..to and returns their bytes.
func (e *entry) drop(from, to Kind) (dead int64) {
	for k := from; k <= to; k++ {
		dead += e.refs[k-KindIntent].n
		e.refs[k-KindIntent] = ref{}
	}
	return dead
}

// State is what a journal said when it was opened.
type State struct {
	Fence    job.Fence // highest fence seen
	Floor    job.Fence // highest fence of a forgotten attempt
	Epoch    uint64    // how often the worker has begun
	Lease    *Lease    // nil: it never mattered
	Life     job.Life  // of the scheduler that commanded last; zero: not known
	Attempts []Attempt // in the order in which they were first recorded
}

// Attempt is what the records of one attempt add up to.
type Attempt struct {
	Key     job.Key
	Fence   job.Fence
	Intent  *Intent  // nil: a tombstone, or refused before the intent
	Started *Started // nil: no process was confirmed
	Stop    *Stop    // nil: no stop
	Exit    *Exit    // nil: no exit was observed
	Done    *Done    // nil: not terminal
	Acked   bool
	// StopFirst tells that the stop was on disk before the exit (P9).
	StopFirst bool
}

// Replay returns what records add up to, as Open does for those of a file. It
// is for simulations and tests that keep records in memory.
func Replay(records []Record) *State {
	f := newFold()
	for i := range records {
		f.add(&records[i])
	}
	return f.state()
}

// fold sums up records in order.
type fold struct {
	st       State
	attempts map[job.Key]*Attempt
	order    []*Attempt
}

func newFold() *fold { return &fold{attempts: make(map[job.Key]*Attempt)} }

func (f *fold) add(r *Record) {
	if f.st.Fence.Less(r.Fence) {
		f.st.Fence = r.Fence
	}
	if f.st.Floor.Less(r.Floor) {
		f.st.Floor = r.Floor
	}
	f.st.Epoch = max(f.st.Epoch, r.Epoch)
	if r.Kind == KindFence {
		if r.Lease != nil {
			f.st.Lease = r.Lease
		}
		if r.Life != (job.Life{}) {
			f.st.Life = r.Life
		}
		return
	}
	a := f.attempts[r.Key]
	if r.Kind == KindForgotten {
		if a != nil {
			a.Key = job.Key{}
			delete(f.attempts, r.Key)
		}
		return
	}
	if a == nil {
		a = &Attempt{Key: r.Key}
		f.attempts[r.Key] = a
		f.order = append(f.order, a)
	}
	if a.Fence.Less(r.Fence) {
		a.Fence = r.Fence
	}
	switch r.Kind {
	case KindIntent:
		a.Intent = r.Intent
	case KindStarted:
		a.Started = r.Started
	case KindStop:
		a.Stop = r.Stop
		a.StopFirst = a.StopFirst || a.Exit == nil
	case KindExited:
		a.Exit = r.Exit
	case KindDone:
		a.Done, a.Acked = r.Done, false
	case KindAcked:
		a.Acked = true
	}
}

func (f *fold) state() *State {
	for _, a := range f.order {
		if a.Key != (job.Key{}) {
			f.st.Attempts = append(f.st.Attempts, *a)
		}
	}
	return &f.st
}
