package worker

import (
	"context"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/plugins/failpoint"
)

const (
	preparers     = 8                      // goroutines that prepare orders
	ordersEach    = 8                      // orders of one round that one of them takes
	littleOutput  = 64 << 10               // bytes that are summed while the loop waits
	pollFirst     = 2 * time.Millisecond   // between two looks whether a group is empty
	pollLongest   = 200 * time.Millisecond // the same, after a while
	watchLongest  = 5 * time.Second        // the same, for detached children
	sealPatience  = 10 * time.Second       // for the writers of a group that is empty
	leftEvery     = 500 * time.Millisecond // between two looks why an output is not drained
	logSlowSealed = "output still has a writer although no process is left"
	logGivenUp    = "the end of a stopped job's output is dropped for want of room"
)

// hands carries out what takes time. Its methods return at once; results come
// back as events. Only the loop calls them.
type hands struct {
	log      *slog.Logger
	preparer *preparer
	output   Output
	groups   Groups
	scripts  Scripts
	runners  Launcher
	post     func(...Event)

	tasks *sync.WaitGroup
	slots chan struct{} // bounds preparations

	mu   sync.Mutex // guards held
	held map[job.Key]*holding
}

func (h *hands) get(key job.Key) *holding {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.held[key]
}

func (h *hands) set(x *holding) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held[x.key] = x
}

func (h *hands) drop(key job.Key) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.held, key)
}

// prepare takes the orders of one round and answers each with Prepared.
func (h *hands) prepare(ctx context.Context, orders []Prepare) {
	for some := range slices.Chunk(orders, ordersEach) {
		h.tasks.Go(func() {
			select {
			case h.slots <- struct{}{}:
				defer func() { <-h.slots }()
			case <-ctx.Done():
				return
			}
			done := make([]Event, 0, len(some))
			for _, e := range some {
				done = append(done, h.prepareOne(ctx, e))
			}
			h.post(done...)
		})
	}
}

func (h *hands) prepareOne(ctx context.Context, e Prepare) Prepared {
	p, err := h.preparer.prepare(ctx, e.Key, e.Spec)
	if err != nil {
		return Prepared{Key: e.Key, Refusal: err}
	}
	plain := !p.intent.Folder && p.group.Dir() != "" && e.Spec.Limits == (job.Limits{})
	h.set(&holding{
		key: e.Key, group: p.group, pin: p.pin, folder: p.intent.Folder, oom: p.oom, plain: plain, start: p,
		alone: p.group.Name() != "" && !e.Spec.DetachChildren,
	})
	failpoint.At(failpoint.WorkerPrepared)
	return Prepared{Key: e.Key, Intent: p.intent}
}

// startProcess hands the start to the plugin host, which queues it.
func (h *hands) startProcess(ctx context.Context, e StartProcess) {
	x := h.get(e.Key)
	if x == nil {
		return
	}
	if r := x.reopened(); r != nil {
		// It never was a process: nothing was lost with the pipes.
		h.output.Whole(e.Key)
		// Not earlier: until the plugins are there, no command has a runner.
		h.do(ctx, e.Key, false, func(_ context.Context, x *holding) {
			x.rebuilt(h.preparer.rebuild(*r, x))
			h.hand(x, e)
		})
		return
	}
	h.hand(x, e)
}

func (h *hands) hand(x *holding, e StartProcess) {
	p := x.launch()
	if p == nil {
		return
	}
	l := p.launch
	if e.Void {
		l = Launch{ID: l.ID}
	}
	if err := h.runners.Start(p.runner, l); err != nil {
		h.post(LaunchRefused{Key: e.Key, Err: err, Again: true})
	}
	failpoint.At(failpoint.WorkerStartHanded)
}

// underway notes that the process exists: it has opened the lanes.
func (h *hands) underway(e Underway) {
	if x := h.get(e.Key); x != nil {
		x.underway()
		h.noWriter(x)
	}
}

// noWriter tells the output of an attempt that was resumed without a process that
// there will be none any more that does not hold the lanes.
func (h *hands) noWriter(x *holding) {
	if x.born() {
		h.output.NoWriter(x.key)
	}
}

// relaunch finds a plugin again; the rest of the preparation stands.
func (h *hands) relaunch(ctx context.Context, e Relaunch) {
	h.do(ctx, e.Key, false, func(ctx context.Context, x *holding) {
		p := x.launch()
		if p == nil {
			return
		}
		program, err := h.preparer.program(&p.intent.Spec)
		if err != nil {
			h.tell(ctx, LaunchRefused{Key: e.Key, Err: err})
			return
		}
		p.runner, p.intent.Runner, p.launch.Interpreter = program.runner, program.runner, program.interpreter
		h.tell(ctx, Prepared{Key: e.Key, Intent: p.intent})
	})
}

// settle waits for the children of a main process that is gone (P10).
func (h *hands) settle(ctx context.Context, e Settle) {
	if f, ok := h.settleNow(ctx, e); ok {
		h.post(Settled{Key: e.Key, Finished: &f})
		return
	}
	h.do(ctx, e.Key, false, func(ctx context.Context, x *holding) {
		h.noWriter(x)
		if e.Whole {
			h.output.Whole(e.Key)
		}
		linger := time.NewTimer(e.Linger)
		defer linger.Stop()
		drained, empty := h.await(ctx, x, e.StopRequest, linger.C)
		switch {
		case ctx.Err() != nil:
			// A stop took over, or the worker ends.
		case drained && empty:
			f := h.sealed(ctx, x, e.OOM, x.alone)
			h.tell(ctx, Settled{Key: e.Key, Finished: &f})
		case e.Detach:
			f := Finished{Key: e.Key}
			if drained || h.rest(ctx, x) {
				f = h.sealed(ctx, x, e.OOM, false)
			} else {
				f.Stdout.Size, f.Stderr.Size, _ = h.output.Sizes(e.Key)
			}
			f.Open = true
			h.tell(ctx, Settled{Key: e.Key, Finished: &f})
		default:
			h.tell(ctx, Settled{Key: e.Key, Left: true})
		}
	})
}

// settleNow does without a goroutine what most short jobs need: nobody writes any
// more, the group is empty, the output is small. It takes a few system calls.
func (h *hands) settleNow(ctx context.Context, e Settle) (Finished, bool) {
	x := h.get(e.Key)
	if x == nil || !x.plain || x.busy() {
		return Finished{}, false
	}
	select {
	case <-h.output.Drained(x.key):
	default:
		return Finished{}, false
	}
	if stdout, stderr, _ := h.output.Sizes(x.key); stdout+stderr > littleOutput {
		return Finished{}, false
	}
	if empty, err := x.group.Empty(e.StopRequest); err != nil || !empty {
		return Finished{}, false
	}
	f := h.seal(ctx, x, e.OOM, x.alone)
	return f, errs.ReasonOf(f.Err) != job.ReasonDiskFull // else it waits for room, elsewhere
}

// rest waits for output that nobody holds and that waits for room. It returns false when
// somebody holds a pipe.
func (h *hands) rest(ctx context.Context, x *holding) (drained bool) {
	if held, _ := h.output.Left(x.key); held {
		return false
	}
	return h.drained(ctx, x, 0, false)
}

// drained waits until all output of an attempt whose processes are gone is in segments.
// What waits for room is told, and awaited for as long as it takes, or given up after
// sealPatience. It returns false at the end of ctx, or when somebody outside of the
// attempt has held a pipe for longer than patience.
func (h *hands) drained(ctx context.Context, x *holding, patience time.Duration, giveUp bool) bool {
	done := h.output.Drained(x.key)
	look := time.NewTicker(leftEvery)
	defer look.Stop()
	for foreign, full := time.Duration(0), time.Duration(0); ; {
		select {
		case <-done:
			return true
		case <-ctx.Done():
			return false
		case <-look.C:
		}
		held, why := h.output.Left(x.key)
		switch {
		case held:
			if foreign += leftEvery; foreign >= patience {
				return false
			}
		case why != "":
			h.tell(ctx, Blocked{Key: x.key, Why: why})
			if full += leftEvery; giveUp && full >= sealPatience {
				h.log.Warn(logGivenUp, "job", x.key.Job, "attempt", x.key.Attempt, "reason", why)
				h.output.GiveUp(x.key)
			}
		}
	}
}

// await waits until nobody writes and no process is left, or until the time is
// up; nil waits for ever.
func (h *hands) await(ctx context.Context, x *holding, whom StopRequest, until <-chan time.Time) (drained, empty bool) {
	if _, _, sealed := x.streams(); !sealed {
		select {
		case <-h.output.Drained(x.key):
		case <-until:
			return false, false
		case <-ctx.Done():
			return false, false
		}
	}
	longest := pollLongest
	if until == nil {
		longest = watchLongest
	}
	for wait := pollFirst; ; wait = min(2*wait, longest) {
		empty, err := x.group.Empty(whom)
		if err == nil && empty {
			return true, true
		}
		pause := time.NewTimer(wait)
		select {
		case <-pause.C:
		case <-until:
			pause.Stop()
			return true, false
		case <-ctx.Done():
			pause.Stop()
			return true, false
		}
	}
}

// sealed is seal as soon as the disk has room for it.
func (h *hands) sealed(ctx context.Context, x *holding, oom, alone bool) Finished {
	for {
		f := h.seal(ctx, x, oom, alone)
		if errs.ReasonOf(f.Err) != job.ReasonDiskFull {
			return f
		}
		h.tell(ctx, Blocked{Key: x.key, Why: job.ReasonDiskFull})
		if sleep(ctx, leftEvery); ctx.Err() != nil {
			return f
		}
	}
}

// seal finishes the output and looks at the group's kills. alone tells that the
// group was found empty and was all there is of the attempt.
func (h *hands) seal(ctx context.Context, x *holding, oom, alone bool) Finished {
	f := Finished{Key: x.key}
	f.Stdout, f.Stderr, f.Err = h.output.Finish(ctx, x.key, alone)
	if f.Err != nil {
		f.Stdout.Size, f.Stderr.Size, _ = h.output.Sizes(x.key)
	} else {
		x.seal(f.Stdout, f.Stderr)
	}
	if oom {
		kills, err := x.group.OOMKills()
		f.OOM = err == nil && kills > x.oom
	}
	return f
}

// stopGroup ends every process (P9).
func (h *hands) stopGroup(ctx context.Context, e StopGroup) {
	h.do(ctx, e.Key, true, func(ctx context.Context, x *holding) {
		x.killed()
		failpoint.At(failpoint.WorkerStopBefore)
		proof, err := x.group.Stop(ctx, e.StopRequest)
		failpoint.At(failpoint.WorkerStopAfter)
		if ctx.Err() != nil {
			// A harder stop waits behind this one and will have the proof.
			x.termed = max(x.termed, proof.Termed)
			return
		}
		proof.Termed = max(proof.Termed, x.termed)
		h.tell(ctx, GroupStopped{Key: e.Key, Proof: proof, Err: err})
	})
}

// finish seals the output of an attempt without processes.
func (h *hands) finish(ctx context.Context, e Finish) {
	// A stop overtakes a Finish that waits for room.
	h.do(ctx, e.Key, e.GiveUp, func(ctx context.Context, x *holding) {
		h.noWriter(x)
		if e.Whole {
			h.output.Whole(e.Key)
		}
		if e.NoWriter {
			h.output.NoWriter(e.Key)
		}
		if !h.drained(ctx, x, sealPatience, e.GiveUp) {
			if ctx.Err() != nil {
				return
			}
			// P8: END only when nobody holds the stream. Somebody outside of the
			// attempt does; the report must not wait for it, and is amended later.
			h.log.Warn(logSlowSealed, "job", e.Key.Job, "attempt", e.Key.Attempt)
			f := Finished{Key: e.Key, Open: true}
			f.Stdout.Size, f.Stderr.Size, _ = h.output.Sizes(e.Key)
			h.tell(ctx, f)
			return
		}
		h.tell(ctx, h.sealed(ctx, x, e.OOM, false))
	})
}

// watch waits for the end of detached children.
func (h *hands) watch(ctx context.Context, e Watch) {
	h.do(ctx, e.Key, false, func(ctx context.Context, x *holding) {
		stdout, stderr, sealed := x.streams()
		if !sealed {
			select {
			case <-h.output.Drained(e.Key):
			case <-ctx.Done():
				return
			}
			f := h.sealed(ctx, x, false, false)
			stdout, stderr = f.Stdout, f.Stderr
		}
		if _, empty := h.await(ctx, x, e.StopRequest, nil); empty {
			h.tell(ctx, Emptied{Key: e.Key, Stdout: stdout, Stderr: stderr})
		}
	})
}

// probeIdle answers with Quiet.
func (h *hands) probeIdle(e ProbeIdle) {
	last := h.output.LastWrite(e.Key)
	quiet := time.Duration(math.MaxInt64)
	if !last.IsZero() {
		quiet = max(0, time.Since(last))
	}
	h.post(Quiet{Key: e.Key, For: quiet})
}

// cleanup gives back all that an attempt holds: at once where that takes two
// system calls, which is after most short jobs.
func (h *hands) cleanup(ctx context.Context, e Cleanup) {
	if x := h.get(e.Key); x != nil && x.light() {
		h.giveUp(ctx, x)
		return
	}
	h.do(ctx, e.Key, false, h.giveUp)
}

func (h *hands) giveUp(ctx context.Context, x *holding) {
	if _, _, sealed := x.streams(); !sealed {
		h.preparer.giveBack(ctx, x.key)
	}
	if err := x.group.Release(); err != nil {
		h.log.Warn("cgroup not released", "job", x.key.Job, "attempt", x.key.Attempt, "error", err)
	}
	if x.pin != nil {
		x.pin.Release()
	}
	if x.folder {
		if err := h.preparer.folders.discard(attemptID(x.key)); err != nil {
			h.log.Warn("attempt folder not removed", "job", x.key.Job, "attempt", x.key.Attempt, "error", err)
		}
	}
	h.drop(x.key)
}

// removeOutput deletes the output of a forgotten attempt.
func (h *hands) removeOutput(e RemoveOutput) {
	h.tasks.Go(func() {
		if err := h.output.Remove(e.Key); err != nil && errs.KindOf(err) != errs.NotFound {
			h.log.Warn("output not removed", "job", e.Key.Job, "attempt", e.Key.Attempt, "error", err)
		}
	})
}

// do queues work with a holding; without one there is nothing to work with.
func (h *hands) do(ctx context.Context, key job.Key, urgent bool, f func(context.Context, *holding)) {
	if x := h.get(key); x != nil {
		x.do(ctx, h.tasks, urgent, func(ctx context.Context) { f(ctx, x) })
	}
}

// tell posts unless the work was cancelled: then somebody else will.
func (h *hands) tell(ctx context.Context, ev Event) {
	if ctx.Err() == nil {
		h.post(ev)
	}
}

// reopen takes up again what an attempt of an earlier life holds. What cannot
// be taken up is logged and replaced by something empty: the attempt must come
// to an end all the same.
func (h *hands) reopen(r Holding, boot string) {
	x := &holding{key: r.Key, group: noGroup{}, folder: r.Intent.Folder}
	in := r.Intent
	log := h.log.With("job", r.Key.Job, "attempt", r.Key.Attempt)
	o := outputOptions(&in.Spec, nil)
	o.Unborn = r.Alive && r.Held.PID == 0
	x.unborn = o.Unborn
	if err := h.output.Resume(r.Key, Lanes{in.Stdout, in.Stderr}, o); err != nil {
		log.Warn("output not resumed", "error", err)
	}
	if in.BootID != boot {
		h.output.NoWriter(r.Key)
		h.set(x)
		return
	}
	if g, err := h.groups.Reopen(in.Cgroup); err == nil {
		x.group = g
		// A group that cannot say counts from zero: a kill is then not missed.
		x.oom, _ = g.OOMKills()
	} else if errs.KindOf(err) != errs.NotFound {
		log.Warn("cgroup not reopened", "cgroup", in.Cgroup, "error", err)
		x.group = shutGroup{open: func() (Group, error) { return h.groups.Reopen(in.Cgroup) }}
	}
	switch {
	case in.Spec.Uploaded():
		x.pin = h.preparer.folders.existingPin(r.Held.ID, in.Script)
	case in.Script.Name != "":
		pin, err := h.scripts.PinGeneration(in.Script)
		if err != nil {
			log.Warn("script generation not pinned again", "script", in.Script.Name, "error", err)
		} else {
			x.pin = &pin
		}
	}
	if r.Alive && r.Held.PID == 0 {
		x.again = &r
	}
	h.set(x)
}

// hold is used by restarts to keep attempts in the order of the journal.
func (h *hands) hold(all []Holding, boot string) []Held {
	var alive []Held
	for _, r := range all {
		h.reopen(r, boot)
		if r.Alive {
			alive = append(alive, r.Held)
		}
	}
	return alive
}
