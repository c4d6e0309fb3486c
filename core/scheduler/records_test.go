package scheduler

import (
	"context"
	"encoding/json"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
	"github.com/droverhq/drover/core/store"
	"github.com/droverhq/drover/core/store/memory"
)

func jobID(n int) job.ID { return job.ID{14: byte(n >> 8), 15: byte(n)} }

// filled is a store with live jobs and as many that have ended.
func filled(t *testing.T, live int) store.Store {
	t.Helper()
	st := memory.New()
	var b store.Batch
	for n := range 2 * live {
		record, err := json.Marshal(job.Job{ID: jobID(n)})
		if err != nil {
			t.Fatal(err)
		}
		b.Put(idKey(prefixJob, jobID(n)), record)
		if n%2 == 0 {
			b.Put(idKey(prefixLive, jobID(n)), nil)
		}
	}
	if err := st.Apply(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	return st
}

// P15: every live job comes back, once and in its order, and no other.
func TestEveryLiveJobIsLoadedInOrder(t *testing.T) {
	t.Parallel()
	for _, live := range []int{0, 1, loaders + 1, loadAtOnce, 2*loadAtOnce + 1} {
		var got, want []job.ID
		for n := range live {
			want = append(want, jobID(2*n))
		}
		err := records{filled(t, live)}.load(t.Context(), func(registry.Worker) {}, func(jobs []*job.Job) {
			for _, j := range jobs {
				got = append(got, j.ID)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%d jobs: %s", live, d)
		}
	}
}

// A live job without its record is damage, not a job to forget.
func TestAMissingRecordIsAnError(t *testing.T) {
	t.Parallel()
	st := filled(t, 100)
	var b store.Batch
	b.Delete(idKey(prefixJob, jobID(50)))
	if err := st.Apply(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	err := records{st}.load(t.Context(), func(registry.Worker) {}, func([]*job.Job) {})
	if !errors.Is(err, store.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

// P3: the newer life of two on one store is the only one that writes.
func TestAnOlderLifeWritesNothing(t *testing.T) {
	t.Parallel()
	st := memory.New()
	older, err := New(t.Context(), Config{Store: st})
	if err != nil {
		t.Fatal(err)
	}
	newer, err := New(t.Context(), Config{Store: st})
	if err != nil || newer.Term() <= older.Term() {
		t.Fatalf("terms %d and %d, %v", older.Term(), newer.Term(), err)
	}
	apply := func(s *Scheduler) error {
		var b store.Batch
		b.Put([]byte("j"), nil)
		return s.config.Store.Apply(context.Background(), &b)
	}
	if err := apply(older); !errors.Is(err, store.ErrFenced) {
		t.Errorf("the older one: %v", err)
	}
	if err := apply(newer); err != nil {
		t.Errorf("the newer one: %v", err)
	}
}

// Of several records of one job in a round the last is written, once, with what
// finds a new job.
func TestARoundWritesAJobOnce(t *testing.T) {
	t.Parallel()
	first, second, other := job.Job{ID: jobID(1), RequestID: "r", State: job.Dispatched}, job.Job{ID: jobID(1), RequestID: "r", State: job.Running}, job.Job{ID: jobID(2), State: job.Queued}
	var b store.Batch
	err := putRound(&b, []Effect{
		{Put: &first, New: true}, {Put: &other, New: true}, {Send: &Send{}}, {Put: &second},
	})
	if err != nil {
		t.Fatal(err)
	}
	st := memory.New()
	if err := st.Apply(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	j, err := records{st}.job(t.Context(), jobID(1))
	if err != nil || j.State != job.Running {
		t.Errorf("%v, %v", j.State, err)
	}
	if a, err := (records{st}).accepted(t.Context(), requestKey("", "r")); err != nil || a == nil || a.Job != jobID(1) {
		t.Errorf("the request id finds %v, %v", a, err)
	}
	if want := 2*3 + 1; len(b.Ops) != want {
		t.Errorf("%d changes, want %d: record, mark and suffix of two jobs, one request id", len(b.Ops), want)
	}
}
