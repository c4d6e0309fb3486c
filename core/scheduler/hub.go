package scheduler

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
)

// Bounds of watching (P16): how far a watcher may fall behind before it misses
// changes, and how many there may be.
const (
	watchBuffer = 1024
	maxWatchers = 4096
)

// Change is one durable change; exactly one field beside Missed is set, or
// Missed alone.
type Change struct {
	Job    *job.Job
	Worker *registry.Worker
	Missed uint64 // changes that were dropped before this one
}

// hub hands committed state to readers: views of live jobs and workers, and
// changes to watchers. A slow watcher misses changes; it never slows the loop.
type hub struct {
	mu       sync.RWMutex // guards the fields below
	jobs     map[job.ID]*job.Job
	workers  map[job.WorkerID]*registry.Worker
	names    map[string]job.WorkerID
	online   int                  // workers that have a lease
	running  map[job.WorkerID]int // live attempts among jobs
	watchers map[*watcher]struct{}
	waiters  map[job.ID][]chan job.Job
	groups   map[job.ID][]*group // who gathers the ends of many
}

type watcher struct {
	job    job.ID // zero: everything
	out    chan Change
	missed atomic.Uint64
}

func newHub() *hub {
	return &hub{
		jobs: map[job.ID]*job.Job{}, workers: map[job.WorkerID]*registry.Worker{},
		names: map[string]job.WorkerID{}, running: map[job.WorkerID]int{},
		watchers: map[*watcher]struct{}{}, waiters: map[job.ID][]chan job.Job{},
		groups: map[job.ID][]*group{},
	}
}

// publish makes committed effects visible.
func (h *hub) publish(effects []Effect) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range effects {
		switch e := &effects[i]; {
		case e.Put != nil:
			h.count(h.jobs[e.Put.ID], -1)
			h.count(e.Put, 1)
			h.jobs[e.Put.ID] = e.Put
			if e.Drop {
				delete(h.jobs, e.Put.ID)
				for _, w := range h.waiters[e.Put.ID] {
					w <- *e.Put // has room for its one value
				}
				delete(h.waiters, e.Put.ID)
				for _, g := range h.groups[e.Put.ID] {
					g.ended(End{ID: e.Put.ID, Job: endOf(e.Put)})
				}
				delete(h.groups, e.Put.ID)
			}
			if len(h.watchers) > 0 {
				h.tell(e.Put.ID, Change{Job: light(e.Put)})
			}
		case e.Worker != nil:
			h.countWorker(h.workers[e.Worker.ID], -1)
			h.countWorker(e.Worker, 1)
			h.workers[e.Worker.ID] = e.Worker
			h.names[e.Worker.Name] = e.Worker.ID
			h.tell(job.ID{}, Change{Worker: e.Worker})
		case e.Gone != nil:
			h.remove(*e.Gone)
		}
	}
}

// light returns a job as watchers get it: many changes may wait for a slow watcher,
// and must not hold all that was asked for.
func light(j *job.Job) *job.Job {
	if j.Spec.Bytes() <= job.MaxSummary {
		return j
	}
	short := j.Summary()
	return &short
}

// count keeps account of the live attempts of each worker; h.mu is held.
func (h *hub) count(j *job.Job, n int) {
	if j == nil || !j.State.Live() {
		return
	}
	if h.running[j.Worker] += n; h.running[j.Worker] == 0 {
		delete(h.running, j.Worker)
	}
}

// countWorker keeps account of the workers that have a lease; h.mu is held.
func (h *hub) countWorker(w *registry.Worker, n int) {
	if w != nil && w.State.Leased() {
		h.online += n
	}
}

// countOnline is how many workers have a lease.
func (h *hub) countOnline() int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.online
}

func (h *hub) remove(id job.WorkerID) {
	w := h.workers[id]
	if w != nil && h.names[w.Name] == id {
		delete(h.names, w.Name)
	}
	h.countWorker(w, -1)
	delete(h.workers, id)
}

// tell offers a change to the watchers; h.mu is held.
func (h *hub) tell(id job.ID, c Change) {
	for w := range h.watchers {
		if w.job != (job.ID{}) && w.job != id {
			continue
		}
		select {
		case w.out <- c:
		default:
			w.missed.Add(1)
		}
	}
}

func (h *hub) job(id job.ID) (job.Job, bool) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if j := h.jobs[id]; j != nil {
		return *j, true
	}
	return job.Job{}, false
}

// await returns a channel that gets the job once it is terminal; ok is false
// when the job is not live.
func (h *hub) await(id job.ID) (done chan job.Job, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.jobs[id] == nil {
		return nil, false
	}
	done = make(chan job.Job, 1)
	h.waiters[id] = append(h.waiters[id], done)
	return done, true
}

// forget takes a waiter back that gave up.
func (h *hub) forget(id job.ID, done chan job.Job) {
	h.mu.Lock()
	defer h.mu.Unlock()
	kept := h.waiters[id][:0]
	for _, w := range h.waiters[id] {
		if w != done {
			kept = append(kept, w)
		}
	}
	if len(kept) == 0 {
		delete(h.waiters, id)
		return
	}
	h.waiters[id] = kept
}

// attend lets a group know of the ends of live jobs that it may see, and
// returns the other ids.
func (h *hub) attend(g *group, ids []job.ID, sees func(*job.Job) bool) (others []job.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, id := range ids {
		switch j := h.jobs[id]; {
		case j == nil || !sees(j):
			others = append(others, id)
		case g.expect(id):
			h.groups[id] = append(h.groups[id], g)
		}
	}
	return others
}

// leave takes a group back that gave up.
func (h *hub) leave(g *group) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, id := range g.leaving() {
		kept := slices.DeleteFunc(h.groups[id], func(o *group) bool { return o == g })
		if h.groups[id] = kept; len(kept) == 0 {
			delete(h.groups, id)
		}
	}
}

func (h *hub) allWorkers() []registry.Worker {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.viewWorkers()
}

// worker returns one by its id; named by its name.
func (h *hub) worker(id job.WorkerID) (registry.Worker, bool) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if w := h.workers[id]; w != nil {
		return h.viewWorker(w), true
	}
	return registry.Worker{}, false
}

func (h *hub) named(name string) (registry.Worker, bool) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if w := h.workers[h.names[name]]; w != nil {
		return h.viewWorker(w), true
	}
	return registry.Worker{}, false
}

func (h *hub) viewWorker(w *registry.Worker) registry.Worker {
	c := *w
	c.Running = h.running[c.ID]
	return c
}

// viewWorkers copies all workers; h.mu is held.
func (h *hub) viewWorkers() []registry.Worker {
	out := make([]registry.Worker, 0, len(h.workers))
	for _, w := range h.workers {
		out = append(out, h.viewWorker(w))
	}
	return out
}

// viewJobs copies the live jobs, or one if it is live; h.mu is held.
func (h *hub) viewJobs(id job.ID) []job.Job {
	if id != (job.ID{}) {
		if j := h.jobs[id]; j != nil {
			return []job.Job{*j}
		}
		return nil
	}
	out := make([]job.Job, 0, len(h.jobs))
	for _, j := range h.jobs {
		out = append(out, *j)
	}
	return out
}

// subscribe registers a watcher and returns the state at that moment: every
// later change, and no earlier one, comes to the watcher. A job that is asked
// for and not among the live ones is terminal or unknown, for good. w is nil when
// there are too many watchers.
func (h *hub) subscribe(id job.ID) (w *watcher, jobs []job.Job, workers []registry.Worker) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.watchers) >= maxWatchers {
		return nil, nil, nil
	}
	w = &watcher{job: id, out: make(chan Change, watchBuffer)}
	h.watchers[w] = struct{}{}
	if id == (job.ID{}) {
		workers = h.viewWorkers()
	}
	return w, h.viewJobs(id), workers
}

func (h *hub) unsubscribe(w *watcher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.watchers, w)
}

// follow yields what comes until the context ends.
func (w *watcher) follow(ctx context.Context, yield func(Change) error) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case c := <-w.out:
			if n := w.missed.Swap(0); n > 0 {
				if err := yield(Change{Missed: n}); err != nil {
					return err
				}
			}
			if err := yield(c); err != nil {
				return err
			}
		}
	}
}
