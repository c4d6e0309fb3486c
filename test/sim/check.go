package sim

import (
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/scheduler"
	"github.com/droverhq/drover/core/worker"
)

// checker holds the truth and compares everything with it.
type checker struct {
	w       *World
	clients map[job.ID]*client
	names   map[job.ID]string
	truths  map[job.Key]*truth
	stopped map[job.ID]bool // a stop was acknowledged
	fences  map[int]job.Fence
	excused map[job.Key]bool         // given up while its worker slept, or with its worker
	asked   map[job.WorkerID]bool    // workers that an operator asked to remove
	orders  map[order]int            // how often each was sent
	made    map[job.Key]job.WorkerID // where each attempt was dispatched to
}

// order names an order to start.
type order struct {
	key   job.Key
	fence job.Fence
}

func orderOf(o *job.StartOrder) order { return order{o.Key, o.Fence} }

// truth is what really happened to one attempt.
type truth struct {
	host   *host
	begins int
	ended  bool
	code   int32
	signal string
	ours   bool // a stop of drover ended it
}

func newChecker(w *World) *checker {
	return &checker{
		w: w, clients: map[job.ID]*client{}, names: map[job.ID]string{}, truths: map[job.Key]*truth{},
		stopped: map[job.ID]bool{}, fences: map[int]job.Fence{}, excused: map[job.Key]bool{},
		asked: map[job.WorkerID]bool{}, orders: map[order]int{}, made: map[job.Key]job.WorkerID{},
	}
}

func (c *checker) label(k job.Key) string {
	return c.names[k.Job] + "/" + string(rune('0'+k.Attempt%10))
}

// accepted notes an acknowledged submit (P1).
func (c *checker) accepted(cl *client) {
	c.clients[cl.id] = cl
	if _, ok := c.w.sched.records().jobs[cl.id]; !ok {
		c.w.fail("P1: job %s of %s was acknowledged and is not on disk", cl.id, cl.name())
	}
}

// stopDurable notes an acknowledged stop (P9).
func (c *checker) stopDurable(id job.ID) {
	c.stopped[id] = true
	if s := c.w.sched.records().jobs[id].State; s != job.Stopping && !s.Terminal() {
		c.w.fail("P9: the stop of %s was acknowledged in state %s", c.names[id], s)
	}
}

// began notes a fork and returns how the process will behave (P2, P5).
func (c *checker) began(h *host, key job.Key) Job {
	t := c.truths[key]
	if t == nil {
		t = &truth{host: h}
		c.truths[key] = t
	}
	t.begins++
	if t.begins > 1 {
		c.w.fail("P2: %s was started twice, the second time on %s", c.label(key), h.name)
	}
	for k, other := range c.truths {
		if k.Job == key.Job && k.Attempt != key.Attempt && !c.excused[k] && !c.excused[key] {
			if p := other.host.procs[k]; p != nil && p.main {
				c.w.fail("P5: %s begins while %s runs", c.label(key), c.label(k))
			}
		}
	}
	j := c.w.sched.records().jobs[key.Job]
	if j.State.Terminal() && j.Attempt == key.Attempt && !c.excused[key] {
		c.w.fail("%s begins after the job is %s", c.label(key), j.State)
	}
	return c.jobOf(j)
}

func (c *checker) jobOf(j job.Job) Job {
	for i := range c.w.plan.Jobs {
		if "r"+string(rune('A'+i)) == j.RequestID {
			return c.w.plan.Jobs[i]
		}
	}
	return Job{Duration: probeTime} // a probe
}

func (c *checker) exited(p *process) {
	if t := c.truths[p.key]; t != nil && !t.ended {
		t.ended, t.code, t.signal, t.ours = true, p.code, p.signal, p.signal != ""
	}
}

// committed looks at every change of a job's record.
func (c *checker) committed(before, after job.Job) {
	c.names[after.ID] = after.RequestID
	c.w.log("%s: %s -> %s %s attempt %d %s", after.RequestID, before.State, after.State, after.Reason, after.Attempt, after.Message)
	c.attempts(before, after)
	switch {
	case before.ID == uuid.Nil, before.State == after.State && before.Attempt == after.Attempt:
	case before.State.Terminal():
		c.w.fail("%s was %s and became %s", after.RequestID, before.State, after.State)
	case requeued(before, after):
		c.w.result.Happened["requeued, for its order was not sent"]++
		if t := c.truths[keyOf(before)]; t != nil {
			c.w.fail("P2: %s is requeued as unsent, and it has begun", c.label(keyOf(before)))
		}
	case after.State == job.Queued: // a retry
		c.retried(before, after)
	case !reachable(before.State, after.State):
		c.w.fail("%s: %s -> %s is not legal", after.RequestID, before.State, after.State)
	}
	if after.Attempt < before.Attempt && !requeued(before, after) || before.Fence != (job.Fence{}) && after.Fence.Less(before.Fence) {
		c.w.fail("%s: attempt %d fence %v after attempt %d fence %v", after.RequestID, after.Attempt, after.Fence, before.Attempt, before.Fence)
	}
	if after.State.Terminal() && !before.State.Terminal() {
		c.ended(after)
	}
}

// reachable tells whether one round may take a job from one state to another:
// its steps in between need not be records of their own.
func reachable(from, to job.State) bool {
	if from.CanBecome(to) {
		return true
	}
	for s := job.None; s <= job.Lost; s++ {
		if s != from && !s.Terminal() && from.CanBecome(s) && s > from && reachable(s, to) {
			return true
		}
	}
	return false
}

// retried looks at an attempt that its policy gave up (P5).
func (c *checker) retried(before, after job.Job) {
	if before.Attempt > before.Spec.Retry.Max {
		c.w.fail("P5: %s is retried after attempt %d of %d", after.RequestID, before.Attempt, before.Spec.Retry.Max+1)
	}
	if c.stopped[after.ID] {
		c.w.fail("P9: %s was stopped and is retried", after.RequestID)
	}
	key := keyOf(before)
	if c.partitioned(key, after.Message) || c.removed(key, before.Worker, after.Message) {
		return
	}
	c.notRunning(key, "it is retried")
}

// ended compares a terminal state with the truth (P4, P6, P9).
func (c *checker) ended(j job.Job) {
	c.w.result.Ends[j.State.String()]++
	key := keyOf(j)
	t := c.truths[key]
	r := &j.Result
	switch j.State {
	case job.Succeeded, job.Failed:
		c.outcome(j, key, t, r)
	case job.Stopped:
		if !c.excused[key] { // it was stopped while it waited for the next attempt
			c.nothing(key, "it is STOPPED")
		}
		if j.Reason == job.ReasonPartition {
			c.w.result.Happened["stopped in a partition"]++
		}
	case job.Rejected:
		if t != nil && t.begins > 0 {
			c.w.fail("%s is REJECTED (%s) and was started", c.label(key), j.Reason)
		}
	case job.Lost:
		if c.partitioned(key, j.Reason) || c.removed(key, j.Worker, j.Reason) {
			return
		}
		c.notRunning(key, "it is LOST")
		if j.Reason == "" {
			c.w.fail("P4: %s is LOST without a reason", c.label(key))
		}
		if !slices.ContainsFunc(c.w.hosts, func(h *host) bool { return h.id == j.Worker && h.hurt() }) {
			c.w.fail("P7: %s is LOST though nothing was killed but its plugin", c.label(key))
		}
	}
}

// outcome compares a result with what the process really did (P6).
func (c *checker) outcome(j job.Job, key job.Key, t *truth, r *job.Report) {
	if r.ExitCode == nil && r.Signal == "" {
		switch j.Reason {
		case job.ReasonSpawn, job.ReasonTimeout:
			// It never was, or its limit ended it before its exit was seen.
		default:
			c.w.fail("P6: %s is %s (%s) without a result", c.label(key), j.State, j.Reason)
		}
		return
	}
	switch {
	case t == nil || !t.ended:
		c.w.fail("P6: %s ended with %v %q and never ran to an end", c.label(key), r.ExitCode, r.Signal)
	case r.Evidence == job.NoEvidence:
		c.w.fail("P6: %s has a result without evidence", c.label(key))
	case r.Signal != t.signal, r.ExitCode != nil && *r.ExitCode != t.code:
		c.w.fail("P6: %s is reported as %v %q and ended with %d %q", c.label(key), r.ExitCode, r.Signal, t.code, t.signal)
	case t.ours && j.Reason == job.ReasonSignal:
		c.w.fail("P9: %s was ended by its stop and is reported as %s by itself", c.label(key), t.signal)
	case j.State == job.Succeeded && t.code != 0:
		c.w.fail("P6: %s SUCCEEDED with %d", c.label(key), t.code)
	}
	if !j.Spec.DetachChildren {
		c.nothing(key, "it has ended")
	}
}

// partitioned looks at an attempt that ended with a partition (P4 c). Only a
// worker that runs can stop anything: what one that is dead or frozen has left
// is excused, and must be gone soon after it is back.
func (c *checker) partitioned(key job.Key, why string) bool {
	if !strings.Contains(why, job.ReasonPartition) {
		return false
	}
	c.w.result.Happened["given up after a partition"]++
	if t := c.truths[key]; t != nil && t.host.asleep() {
		c.excused[key] = true
		return true
	}
	c.notRunning(key, "it was given up after a partition")
	return true
}

// removed looks at an attempt that ended because an operator removed its worker (P4 d).
// It may still run: wantStop checks that it is stopped once the worker is back.
func (c *checker) removed(key job.Key, w job.WorkerID, why string) bool {
	if !strings.Contains(why, job.ReasonWorkerGone) {
		return false
	}
	if !c.asked[w] {
		c.w.fail("P4: %s is given up with its worker, and nobody asked to remove that", c.label(key))
	}
	c.w.result.Happened["given up with its worker"]++
	c.excused[key] = true
	return true
}

// requeued reports whether a job is back in the queue because its order was not sent.
func requeued(before, after job.Job) bool {
	return before.State == job.Dispatched && after.State == job.Queued && after.Attempt == before.Attempt-1
}

// requeued wants each job requeued, or placed anew, whose only order was not sent.
func (c *checker) requeued(starts []job.StartOrder) {
	for i := range starts {
		o := &starts[i]
		j := c.w.sched.disk.jobs[o.Job]
		if c.w.sched.real == nil && c.orders[orderOf(o)] == 1 && j.State == job.Dispatched && j.Fence == o.Fence {
			c.w.fail("%s is still dispatched to %s, though its order was not sent", c.label(o.Key), j.WorkerName)
		}
	}
}

// stopOrdered wants a stop order to have the grace that the client gave, also after a
// restart of the scheduler. The deadline of a drain takes it away.
func (c *checker) stopOrdered(o job.StopOrder) {
	j := c.w.sched.records().jobs[o.Job]
	asked := c.jobOf(j).StopIn
	if o.Reason != job.ReasonUser || o.Grace != nil && *o.Grace == asked || o.Grace == nil && j.StopGrace == nil {
		return
	}
	c.w.fail("P9: the stop order of %s has the grace %v, the client gave %v", c.label(o.Key), o.Grace, asked)
}

// attempts wants a record to keep every attempt, with its worker.
func (c *checker) attempts(before, after job.Job) {
	all := after.Attempts()
	for i := range all {
		key := job.Key{Job: after.ID, Attempt: all[i].Number}
		switch {
		case all[i].Number != uint32(i+1):
			c.w.fail("%s: attempt %d is recorded in the place of attempt %d", after.RequestID, all[i].Number, i+1)
		case after.State == job.Dispatched && i == len(all)-1:
			c.made[key] = after.Worker
		case all[i].Worker != c.made[key]:
			c.w.fail("the record of %s has the worker %s, it was dispatched to %s", c.label(key), all[i].Worker, c.made[key])
		}
	}
	if len(all) != int(after.Attempt) {
		c.w.fail("the record of %s has %d attempts of %d", after.RequestID, len(all), after.Attempt)
	}
	for i := range before.Past {
		was, is := before.Past[i], after.Past[i]
		if was.Stdout.SHA256 == "" {
			was.Stdout = is.Stdout // sealed later
		}
		if is != was {
			c.w.fail("%s: attempt %d was %+v and became %+v", after.RequestID, i+1, was, is)
		}
	}
}

// recorded compares each attempt that began with the record, long after its end.
func (c *checker) recorded() {
	for _, key := range sortedKeys(c.truths) {
		t := c.truths[key]
		j := c.w.sched.records().jobs[key.Job]
		a, ok := j.AttemptOf(key.Attempt)
		switch {
		case !ok:
			c.w.fail("%s began, and the record has no such attempt", c.label(key))
		case a.WorkerName != t.host.name || !t.host.ids[a.Worker]:
			c.w.fail("%s began on %s, and the record has the worker %q (%s)", c.label(key), t.host.name, a.WorkerName, a.Worker)
		case a.ExitCode != nil && (*a.ExitCode != t.code || a.End.IsZero()):
			c.w.fail("P6: the record of %s has the code %d and the end %v; it ended with %d", c.label(key), *a.ExitCode, a.End, t.code)
		case a.ExitCode == nil:
		case j.Spec.DetachChildren && (t.host.rebooted || c.asked[a.Worker]):
			// Sealed when the journal was lost, or by a worker that had another id by then.
		case a.Stdout != sealed(key): // P8: whatever held it
			c.w.fail("P8: the record of %s has the output %+v, it was %+v", c.label(key), a.Stdout, sealed(key))
		}
	}
}

func keyOf(j job.Job) job.Key { return job.Key{Job: j.ID, Attempt: j.Attempt} }

// notRunning wants the main process of an attempt gone.
func (c *checker) notRunning(key job.Key, why string) {
	if t := c.truths[key]; t != nil {
		if p := t.host.procs[key]; p != nil && p.main {
			c.w.fail("%s runs though %s", c.label(key), why)
		}
	}
}

// nothing wants no process of an attempt.
func (c *checker) nothing(key job.Key, why string) {
	if t := c.truths[key]; t != nil {
		c.nothingLives(t.host, key, why)
	}
}

func (c *checker) nothingLives(h *host, key job.Key, why string) {
	if p := h.procs[key]; p != nil && p.alive() && (p.main || !p.job.Detach) {
		c.w.fail("P9: a process of %s lives though %s", c.label(key), why)
	}
}

// fence wants what a worker remembers to grow (P3). A power loss may take what
// was not synced.
func (c *checker) fence(h *host, f job.Fence) {
	if before := c.fences[h.n]; f.Term < before.Term {
		c.w.fail("P3: %s remembers fence %v after %v", h.name, f, before)
	}
	c.fences[h.n] = f
}

// converged looks at the world long after the last fault: nothing waits, runs or
// is remembered without need.
func (c *checker) converged() {
	if n := len(c.w.sched.records().live); n > 0 {
		for id := range c.w.sched.records().live {
			j := c.w.sched.records().jobs[id]
			c.w.fail("%s is still %s (%s %s), unreachable since %v", j.RequestID, j.State, j.Reason, j.Message, j.UnreachableSince)
		}
	}
	c.recorded()
	for i := range c.w.plan.Jobs {
		found := false
		for _, j := range c.w.sched.records().jobs {
			found = found || j.RequestID == "r"+string(rune('A'+i))
		}
		if !found {
			c.w.fail("the request %d was never accepted", i)
		}
	}
	for _, h := range c.w.hosts {
		if n := h.worker.m.Counts(); n != (worker.Counts{}) {
			c.w.fail("%s is left with %+v", h.name, n)
		}
		for _, p := range h.procs {
			if p.alive() {
				c.w.fail("%s: process %d of %s is left", h.name, p.pid, c.label(p.key))
			}
		}
		if p := h.plugin; p != nil && len(p.attempts)+len(p.log) > 0 {
			for key := range p.log {
				c.w.fail("%s: the plugin is left with %s", h.name, c.label(key))
			}
		}
		if len(h.graves) > 0 {
			c.w.fail("%s: %d journals of dead plugins are left", h.name, len(h.graves))
		}
	}
}

// probeTime is how long probes run.
const probeTime = 20 * time.Second

// probe fills every slot of the cluster at once: none may have leaked.
func (w *World) probe() {
	want := len(w.hosts) * w.plan.Slots
	var ids []job.ID
	for range want {
		w.sched.ask(scheduler.Event{Submit: &scheduler.Submit{
			ID: w.newID(), Caller: scheduler.Caller{Name: "probe", Role: "admin"}, Time: w.sched.instant(),
			Spec: job.Spec{Command: "job", Linger: time.Second},
		}}, func(r scheduler.Result) {
			if r.Err != nil {
				w.fail("a probe was refused: %v", r.Err)
			}
			ids = append(ids, r.Job.ID)
		})
	}
	w.run(w.now + probeTime/2)
	for _, id := range ids {
		if j := w.sched.disk.jobs[id]; j.State != job.Running && !j.State.Terminal() {
			w.fail("of %d slots not all can be used: a probe is %s (%s %s)", want, j.State, j.Reason, j.Message)
		}
	}
	if len(ids) != want {
		w.fail("%d probes of %d were answered", len(ids), want)
	}
}

// drain takes a worker out of placement for a while.
func (w *World) drain(h *host, f Fault) {
	set := func(on bool) {
		if h.id == uuid.Nil || !w.sched.serves() {
			return
		}
		ev := scheduler.Event{Drain: &scheduler.Drain{ID: h.id, Drain: on, Reason: "maintenance"}}
		if on && f.Point == AmidActs {
			ev.Drain.After = time.Second
		}
		w.sched.ask(ev, func(scheduler.Result) {})
	}
	set(true)
	w.after(f.For, func() { set(false) })
	w.at(faultyFor+time.Second, func() { set(false) })
}
