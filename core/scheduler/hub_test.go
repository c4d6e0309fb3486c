package scheduler

import (
	"math/rand/v2"
	"testing"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
)

// TestWorkersAreShownWithTheAttemptsThatTheyHave: the hub keeps count with
// every change; it must come to what a look at all jobs comes to.
func TestWorkersAreShownWithTheAttemptsThatTheyHave(t *testing.T) {
	t.Parallel()
	h := newHub()
	workers := []job.WorkerID{{1}, {2}, {3}}
	for _, id := range workers {
		h.publish([]Effect{{Worker: &registry.Worker{ID: id, Name: string('a' + rune(id[0]))}}})
	}
	states := []job.State{job.Queued, job.Dispatched, job.Running, job.Stopping, job.Succeeded, job.Lost}
	for range 2000 {
		j := job.Job{ID: job.ID{byte(rand.IntN(20))}, State: states[rand.IntN(len(states))]}
		if j.State != job.Queued {
			j.Worker = workers[rand.IntN(len(workers))]
		}
		h.publish([]Effect{{Put: &j, Drop: j.State.Terminal()}})
		want := map[job.WorkerID]int{}
		for _, other := range h.jobs {
			if other.State.Live() {
				want[other.Worker]++
			}
		}
		for _, w := range h.allWorkers() {
			one, ok := h.worker(w.ID)
			if named, known := h.named(w.Name); !ok || !known || w.Running != want[w.ID] || one.Running != w.Running || named.ID != w.ID {
				t.Fatalf("worker %s has %d attempts, is shown with %d", w.Name, want[w.ID], w.Running)
			}
		}
	}
	h.publish([]Effect{{Gone: &workers[0]}})
	if _, ok := h.worker(workers[0]); ok {
		t.Error("a worker that is gone is shown by its id")
	}
	if _, ok := h.named("b"); ok {
		t.Error("a worker that is gone is shown by its name")
	}
}

// TestWorkersThatHaveALeaseAreCounted: their number sets the pace of heartbeats.
func TestWorkersThatHaveALeaseAreCounted(t *testing.T) {
	t.Parallel()
	h := newHub()
	states := []registry.State{registry.Online, registry.Draining, registry.Offline, registry.Deregistered}
	for range 500 {
		id := job.WorkerID{byte(rand.IntN(20))}
		if rand.IntN(5) == 0 {
			h.publish([]Effect{{Gone: &id}})
		} else {
			h.publish([]Effect{{Worker: &registry.Worker{ID: id, Name: id.String(), State: states[rand.IntN(len(states))]}}})
		}
		want := 0
		for _, w := range h.allWorkers() {
			if w.State == registry.Online || w.State == registry.Draining {
				want++
			}
		}
		if got := h.countOnline(); got != want {
			t.Fatalf("%d workers are counted, %d have a lease", got, want)
		}
	}
}
