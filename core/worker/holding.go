package worker

import (
	"context"
	"sync"

	"github.com/droverhq/drover/core/job"
)

// holding is what an attempt holds in the world: lanes, group, script, folder.
// Everything that takes time with it runs in order, one at a time, in a
// goroutine that lives only while there is something to do: a job that just
// runs has none. So a group is never given back while it is being killed.
type holding struct {
	key    job.Key
	group  Group
	pin    *Pin
	folder bool   // it has files of its own
	oom    uint64 // kills of the group before this attempt
	plain  bool   // a cgroup (v2) without limits, and no files: nothing that takes long
	alone  bool   // once its group is empty, nobody has anything of it

	mu     sync.Mutex // guards all below
	start  *prepared  // until the process exists
	again  *Holding   // of an earlier life: start can be made of it
	unborn bool       // resumed before its process had begun
	queue  []func(context.Context)
	active bool               // a goroutine works on the queue
	cancel context.CancelFunc // of what runs now
	termed uint32             // by stops that a harder one overtook
	shot   bool               // the group was stopped: it is removed and not used again
	sealed bool               // the output is finished
	stdout job.Stream
	stderr job.Stream
}

// do queues f behind what runs. An urgent one cancels what runs first.
func (h *holding) do(ctx context.Context, tasks *sync.WaitGroup, urgent bool, f func(context.Context)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.queue = append(h.queue, f)
	if !h.active {
		h.active = true
		tasks.Go(func() { h.work(ctx) })
		return
	}
	if urgent && h.cancel != nil {
		h.cancel()
	}
}

// work does what is queued until nothing is.
func (h *holding) work(parent context.Context) {
	for {
		f, ctx, cancel := h.next(parent)
		if f == nil {
			return
		}
		f(ctx)
		cancel()
	}
}

func (h *holding) next(parent context.Context) (func(context.Context), context.Context, context.CancelFunc) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.queue) == 0 {
		h.active, h.queue, h.cancel = false, nil, nil
		return nil, nil, nil
	}
	f := h.queue[0]
	h.queue = h.queue[1:]
	ctx, cancel := context.WithCancel(parent)
	h.cancel = cancel
	return f, ctx, cancel
}

// busy tells whether something works with it.
func (h *holding) busy() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.active
}

// light tells whether giving all back takes no time.
func (h *holding) light() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.plain && h.sealed && !h.active && !h.shot
}

// killed remembers that the group was stopped.
func (h *holding) killed() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.shot = true
}

// launch returns what the plugin needs; nil once the process exists.
func (h *holding) launch() *prepared {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.start
}

// underway forgets it: arguments and environment are no use any more.
func (h *holding) underway() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.start, h.again = nil, nil
}

// reopened returns once what an earlier life left of a start.
func (h *holding) reopened() *Holding {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.again
	h.again = nil
	return r
}

// rebuilt takes a start that was made again.
func (h *holding) rebuilt(p *prepared) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.start = p
}

// born notes that the process has begun, or never will; true the first time.
func (h *holding) born() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	was := h.unborn
	h.unborn = false
	return was
}

// seal remembers the finished streams.
func (h *holding) seal(stdout, stderr job.Stream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sealed, h.stdout, h.stderr = true, stdout, stderr
}

func (h *holding) streams() (stdout, stderr job.Stream, sealed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.stdout, h.stderr, h.sealed
}
