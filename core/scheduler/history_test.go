package scheduler

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
	"github.com/droverhq/drover/core/store"
	"github.com/droverhq/drover/core/store/backup"
	"github.com/droverhq/drover/core/store/memory"
)

// copyOf is a copy of the records, as cp makes one.
func copyOf(t *testing.T, from store.Store) store.Store {
	t.Helper()
	to := memory.New()
	if _, err := backup.Copy(t.Context(), from, to); err != nil {
		t.Fatal(err)
	}
	return to
}

// TestP3_OlderCopyOfTheRecords_StartsNothing: a term says how often records were started
// on. A copy that was put back had the same one at its first start, or a higher one, and
// started again what had run.
func TestP3_OlderCopyOfTheRecords_StartsNothing(t *testing.T) {
	t.Parallel()
	for name, starts := range map[string]int{"as often started": 1, "less often": 0, "more often": 3} {
		t.Run(name, func(t *testing.T) {
			story(t, func(t *testing.T, w *world) {
				p := w.join("w1", 2)
				first, second := w.run(args("run=1h")), w.run(args("run=1h"))
				w.wait(first, job.Running)
				w.wait(second, job.Running)
				ran := w.run(args("run=1s"))
				old := copyOf(t, w.store)
				w.restart() // the newer records live on
				time.Sleep(time.Second)
				if _, err := w.s.StopJob(w.ctx, admin(), first.String(), nil, false); err != nil {
					t.Fatal(err)
				}
				w.wait(ran, job.Succeeded)
				if err := w.end(); err != nil {
					t.Fatal(err)
				}
				newer := w.store
				w.store = old
				w.begin()
				for range starts {
					w.restart()
				}
				time.Sleep(time.Minute)
				_, err := w.s.StartJob(w.ctx, admin(), job.Spec{Command: "sleep"}, "")
				wantErr(t, err, errs.Precondition, job.ReasonOldRecords)
				if got := w.worker("w1"); got.Trouble.Type != registry.OldRecords {
					t.Errorf("the worker has the condition %+v", got.Trouble)
				}
				if n := strings.Count(w.log.String(), "these records are older"); n < 1 || n > 1+starts {
					t.Errorf("it is logged %d times in %d lives:\n%s", n, 1+starts, w.log)
				}
				if strings.Contains(w.log.String(), "refuses this scheduler") {
					t.Errorf("it is told in two ways:\n%s", w.log)
				}
				if n := p.started(ran) + p.started(first) + p.started(second); n != 3 {
					t.Errorf("%d processes were made (P2)", n)
				}
				if err := w.end(); err != nil {
					t.Fatal(err)
				}
				// The newer records are put back.
				w.store = newer
				w.begin()
				w.wait(w.run(args("run=1s")), job.Succeeded)
				if err := w.end(); err != nil {
					t.Fatal(err)
				}
				// Or an operator lets the older ones be in force.
				w.store = old
				if err := SetTerm(context.Background(), old, w.s.Term()+10); err != nil {
					t.Fatal(err)
				}
				w.begin()
				w.wait(w.run(args("run=1s")), job.Succeeded)
			})
		})
	}
}

// TestP3_OneWorkerKnowsNewerRecords_NothingIsStartedAnywhere: the copy has the lower term. A
// worker that the newer records never commanded cannot tell, and is given nothing, also
// by a later life that the other worker does not reach. An operator's word ends that.
func TestP3_OneWorkerKnowsNewerRecords_NothingIsStartedAnywhere(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		knows, naive := w.join("w1", 1), w.join("w2", 1)
		naive.cut()
		time.Sleep(time.Minute)
		first := w.run(args())
		w.wait(first, job.Running)
		queued := w.run(args("run=1s"))
		old := copyOf(t, w.store)
		w.restart()
		w.restart()
		time.Sleep(time.Minute)
		if _, err := w.s.StopJob(w.ctx, admin(), first.String(), nil, true); err != nil {
			t.Fatal(err)
		}
		w.wait(queued, job.Succeeded)
		if err := w.end(); err != nil {
			t.Fatal(err)
		}
		w.store = old
		w.begin()
		time.Sleep(time.Minute)
		naive.heal()
		time.Sleep(time.Minute)
		if n := naive.started(queued); n > 0 || w.job(queued).Reason != job.ReasonOldRecords {
			t.Errorf("%d processes were made; the job: %+v", n, w.job(queued))
		}
		knows.cut()
		w.restart()
		time.Sleep(time.Minute)
		if n := naive.started(queued); n > 0 {
			t.Errorf("%d processes were made by the next life", n)
		}
		if err := w.end(); err != nil {
			t.Fatal(err)
		}
		if err := SetTerm(w.ctx, old, w.s.Term()+1000); err != nil {
			t.Fatal(err)
		}
		w.begin()
		w.wait(queued, job.Succeeded)
	})
}

// TestP21_AWorkerThatMakesUpALife_StopsNobody: only a life that was made with the secret
// of the records says that they are old.
func TestP21_AWorkerThatMakesUpALife_StopsNobody(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		liar, p := w.join("liar", 1), w.join("w1", 1)
		liar.cut()
		liar.mu.Lock()
		liar.life = job.NewLife(99, []byte("a guess"))
		liar.mu.Unlock()
		liar.heal()
		time.Sleep(time.Minute)
		id := w.run(args("run=1s"))
		w.wait(id, job.Succeeded)
		if p.started(id) != 1 {
			t.Error("it ran elsewhere")
		}
	})
}

// TestAHistoryIsKeptWithTheRecords, and only so much of it.
func TestAHistoryIsKeptWithTheRecords(t *testing.T) {
	t.Parallel()
	r := records{memory.New()}
	var first history
	for n := range uint64(job.MaxLives + 10) {
		h, err := r.begin(t.Context(), n+1)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			first = h
		}
		if last := h.Last(); last.Term != n+1 || !last.Genuine(first.secret) || !h.Holds(last) {
			t.Fatalf("the life %v of %d", &last, n+1)
		}
	}
	h, err := r.history(t.Context())
	if err != nil || len(h.Lives) != job.MaxLives || !h.Holds(first.Last()) {
		t.Errorf("%d lives, %v", len(h.Lives), err)
	}
	other := job.NewLife(h.Last().Term, first.secret)
	if h.Holds(other) || !other.Genuine(first.secret) || other.Genuine([]byte("x")) {
		t.Errorf("another life of the same term")
	}
	if h.Decided = other.Term + 1; !h.Holds(other) {
		t.Error("it is not overruled")
	}
	if _, err := job.DecodeLives(make([]byte, 23)); err == nil || errors.Is(err, store.ErrNotFound) {
		t.Error("half a life is taken")
	}
}
