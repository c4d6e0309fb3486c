package scheduler

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
	"github.com/droverhq/drover/core/store"
)

// slots of the workers of the property test; a worker keeps its own.
var propertySlots = map[string]int{"a": 1, "b": 2, "c": 3}

// court plays any events in any order to a Machine and judges every step by the
// invariants of the contract. Workers may lie: what they say decides what is
// true, never what is legal.
type court struct {
	*desk
	rt     *rapid.T
	twin   *Machine // gets the same events and must do the same
	states map[job.ID]job.Job
	fence  job.Fence // highest given
	all    []job.ID
}

func newCourt(rt *rapid.T) *court {
	c := &court{desk: newDesk(rt), rt: rt, twin: NewMachine(1, testLease), states: map[job.ID]job.Job{}}
	c.look = c.judge
	return c
}

// judge looks at what one step did, record by record.
func (c *court) judge(ev *Event) {
	twin := c.twin.Step(c.now, ev)
	if len(twin) != len(c.last) || len(twin) > 0 && !reflect.DeepEqual(twin, c.last) {
		c.rt.Fatalf("the same events, other effects:\n%v\n%v", kinds(c.last), kinds(twin))
	}
	answers := 0
	for i := range c.last {
		switch e := &c.last[i]; {
		case e.Put != nil:
			c.judgePut(ev, e)
		case e.Send != nil:
			c.judgeSend(&e.Send.Down)
		case e.Result != nil:
			answers++
		}
	}
	if want := min(ev.Reply, 1); uint64(answers) != want {
		c.rt.Fatalf("%d answers, want %d", answers, want)
	}
}

// judgePut looks at one record in the order of the records.
func (c *court) judgePut(ev *Event, e *Effect) {
	j, old := *e.Put, c.states[e.Put.ID]
	retried := old.State.Live() && j.State == job.Queued && j.Reason == reasonRetry && old.Attempt <= j.Spec.Retry.Max
	switch {
	case e.Amend && old.State == j.State && old.Attempt == j.Attempt: // more of what is known of its end
	case old.State.Terminal():
		c.rt.Fatalf("%v changed to %v", old.State, j.State)
	// A job is recorded as a whole: placed at once, it was never seen queued.
	case old.State == job.None && j.State == job.Dispatched:
	case old.State != j.State && !old.State.CanBecome(j.State) && !retried:
		c.rt.Fatalf("illegal: %v -> %v (%s)", old.State, j.State, j.Reason)
	case retried && old.State == job.Stopping && !ownStop(old.Reason):
		c.rt.Fatalf("a job that was stopped is retried")
	}
	placed := j.State == job.Dispatched && (old.State == job.None || old.State == job.Queued)
	switch {
	case placed && j.Attempt == old.Attempt+1:
		if !c.fence.Less(j.Fence) {
			c.rt.Fatalf("fence %v after %v (P3)", j.Fence, c.fence)
		}
		c.fence = j.Fence
	case j.Attempt != old.Attempt || placed:
		c.rt.Fatalf("attempt %d after %d while %v -> %v", j.Attempt, old.Attempt, old.State, j.State)
	case j.Fence != old.Fence:
		c.rt.Fatalf("the fence of an attempt changed")
	}
	if lost := j.State == job.Lost || retried; lost && ev.Up == nil && ev.Remove == nil {
		c.rt.Fatalf("an attempt ended without a word of its worker or an operator (P4)")
	}
	if e.Drop != j.State.Terminal() || e.New && old.State != job.None && old.State != job.Queued {
		c.rt.Fatalf("drop %v, new %v of %v", e.Drop, e.New, j.State)
	}
	if string(j.Spec.Secrets["KEY"]) != "" {
		c.rt.Fatalf("secrets in the record of a job that is %v", j.State)
	}
	c.states[j.ID] = j
}

// judgeSend checks that orders are about the present attempts. Records of the
// same step may come later, so the Machine is asked.
func (c *court) judgeSend(down *Down) {
	for _, o := range down.Starts {
		if e := c.m.jobs[o.Job]; e == nil || e.attempt() != o.Key || e.Fence != o.Fence || e.State != job.Dispatched {
			c.rt.Fatalf("a start of an attempt that is not the present one: %+v", o.Key)
		}
	}
	for _, o := range down.Stops {
		given := false
		for _, s := range c.m.strays {
			given = given || s[o.Key] != nil
		}
		if e := c.m.jobs[o.Job]; !given && (e == nil || e.attempt() != o.Key || e.State != job.Stopping) {
			c.rt.Fatalf("a stop of an attempt that is not stopping: %+v", o.Key)
		}
	}
}

// check compares the Machine with its records between steps.
func (c *court) check() {
	running := map[job.WorkerID]int{}
	for id, e := range c.m.jobs {
		if e.State.Terminal() || !reflect.DeepEqual(c.states[id], e.Job) {
			c.rt.Fatalf("recorded %+v\nin memory %+v", c.states[id], e.Job)
		}
		if e.State.Live() {
			running[e.Worker]++
			continue
		}
		if e.Reason == "" || e.Message == "" {
			c.rt.Fatalf("a queued job without a reason")
		}
		if _, why := c.m.workers.Place(&e.Spec, e.triedOn()); !e.delayed && why != e.Reason {
			c.rt.Fatalf("a job waits for %q, it should for %q", e.Reason, why)
		}
		if queued := e.class != nil && slices.Contains(e.class.jobs, e); queued == e.delayed {
			c.rt.Fatalf("delayed %v, queued %v", e.delayed, queued)
		}
	}
	for _, w := range c.m.workers.All() {
		if n := running[w.ID]; w.Running != n+unplaced(c.m, w.ID) || n > w.Slots {
			c.rt.Fatalf("%s: %d attempts counted, %d placed, %d slots", w.Name, w.Running, running[w.ID], w.Slots)
		}
	}
	c.checkRebuilt()
}

// unplaced is how many attempts of a worker take a slot that the Machine has not placed there.
func unplaced(m *Machine, w job.WorkerID) int {
	n := len(m.strays[w])
	for _, u := range m.unrecorded[w] {
		n += slots(&u.report)
	}
	return n
}

// rebuild makes a Machine of the records.
func (c *court) rebuild(term uint64) *Machine {
	m := NewMachine(term, testLease)
	if err := c.records.load(context.Background(), loadWorkersInto(m, c.now), loadInto(m, c.now)); err != nil {
		c.rt.Fatalf("load: %v", err)
	}
	return m
}

// checkRebuilt: a Machine made of the records knows what this one knows (P15).
func (c *court) checkRebuilt() {
	got, want := c.rebuild(1), c.m
	c.checkInput(got)
	if got, want := c.requests(got), c.requests(want); !maps.Equal(got, want) {
		c.rt.Fatalf("request ids %v, want %v", got, want)
	}
	if !slices.Equal(got.Live(), want.Live()) {
		c.rt.Fatalf("jobs %v, want %v", got.Live(), want.Live())
	}
	for id, w := range want.jobs {
		g := got.jobs[id]
		if fmt.Sprintf("%+v", g.Job) != fmt.Sprintf("%+v", w.Job) || g.delayed != w.delayed || g.key != w.key {
			c.rt.Fatalf("rebuilt %+v\nin memory %+v", g, w)
		}
		if (g.class == nil) != (w.class == nil) || w.class != nil && g.class.key != w.class.key {
			c.rt.Fatalf("rebuilt in another place of the queue")
		}
		if w.State == job.Stopping && (g.stop.Key != w.stop.Key || g.stop.Reason != w.stop.Reason) {
			c.rt.Fatalf("rebuilt stop %+v, want %+v", g.stop, w.stop)
		}
	}
	for key, w := range want.queue.classes {
		if !slices.Equal(inOrder(got.queue.classes[key]), inOrder(w)) {
			c.rt.Fatalf("the queue of %q has another order", key)
		}
	}
	for _, w := range want.workers.All() {
		g, ok := got.workers.Get(w.ID)
		if !ok || g.Name != w.Name || g.Drain != w.Drain || got.drains[w.ID].IsZero() != (!w.Drain || w.DrainAfter == 0) || g.Running != w.Running-unplaced(want, w.ID) || g.Slots != w.Slots ||
			(g.State == registry.Deregistered) != (w.State == registry.Deregistered) {
			c.rt.Fatalf("rebuilt %+v, want %+v", g, w)
		}
	}
}

// requests is what a Machine knows of the request ids of live jobs, which must be what
// the store says of them.
func (c *court) requests(m *Machine) map[string]Accepted {
	out := map[string]Accepted{}
	for key, e := range m.requests {
		stored, err := c.records.accepted(context.Background(), key)
		if err != nil || stored == nil || stored.Job != e.ID {
			c.rt.Fatalf("request id %q stands for %v, in the store for %v, %v", key, e.ID, stored, err)
		}
		if out[key] = *m.earlier(key, stored); e.hash != [32]byte{} && *m.earlier(key, nil) != out[key] {
			c.rt.Fatalf("request id %q stands for another request before it is committed", key)
		}
	}
	return out
}

// checkInput: the store holds the input of exactly those jobs that may need it, no
// job holds it in memory, and what is counted is what there is.
func (c *court) checkInput(rebuilt *Machine) {
	if a, b := &c.m.account, &rebuilt.account; a.all != b.all || !maps.Equal(a.of, b.of) {
		c.rt.Fatalf("counted bytes %+v, rebuilt %+v", a, b)
	}
	held := map[job.ID]bool{}
	for p, err := range c.records.store.Scan(context.Background(), store.Prefix([]byte{prefixInput})) {
		if err != nil {
			c.rt.Fatalf("%v", err)
		}
		held[job.ID(p.Key[1:])] = true
	}
	sum := int64(0)
	for id, e := range c.m.jobs {
		if len(e.Spec.Stdin) > 0 || len(e.Spec.Upload) > 0 || string(e.Spec.Secrets["KEY"]) != "" {
			c.rt.Fatalf("the input of %s is in memory", id)
		}
		if held[id] != (e.Input > 0) || e.Input > 0 && e.Input != int64(len("hush")) {
			c.rt.Fatalf("job %s (%v) needs %d bytes of input; in the store: %v", id, e.State, e.Input, held[id])
		}
		if !held[id] && (e.State == job.Queued || e.Attempt <= e.Spec.Retry.Max || e.Result.Sequence == 0) {
			c.rt.Fatalf("the input of %s is gone, which is %v in attempt %d of %d", id, e.State, e.Attempt, e.Spec.Retry.Max+1)
		}
		delete(held, id)
		sum += e.Input + e.Spec.Bytes()
	}
	if len(held) > 0 || sum != c.m.account.all {
		c.rt.Fatalf("inputs without a job: %v; %d bytes are counted of %d", held, c.m.account.all, sum)
	}
}

// loadInto takes up live jobs as they are recorded.
func loadInto(m *Machine, now time.Time) func([]*job.Job) {
	return func(jobs []*job.Job) {
		for _, j := range jobs {
			m.LoadJob(now, *j)
		}
	}
}

// inOrder is the order in which the jobs of a class will leave it.
func inOrder(q *class) []job.ID {
	jobs := slices.Clone(q.jobs)
	slices.SortFunc(jobs, func(a, b *entry) int {
		return cmp.Or(int(b.Spec.Priority-a.Spec.Priority), slices.Compare(a.ID[:], b.ID[:]))
	})
	ids := make([]job.ID, len(jobs))
	for i, e := range jobs {
		ids[i] = e.ID
	}
	return ids
}

func (c *court) name(rt *rapid.T) string {
	return rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "worker")
}

func (c *court) jobOf(rt *rapid.T) job.ID {
	if len(c.all) == 0 {
		rt.Skip("no job yet")
	}
	return rapid.SampledFrom(c.all).Draw(rt, "job")
}

func (c *court) submitAny(rt *rapid.T) {
	s := job.Spec{
		Worker:       rapid.SampledFrom([]string{"", "", "", "a", "b"}).Draw(rt, "where"),
		Command:      rapid.SampledFrom([]string{"sleep", "date", "nothing"}).Draw(rt, "command"),
		Priority:     rapid.Int32Range(-1, 1).Draw(rt, "priority"),
		QueueTimeout: rapid.SampledFrom([]time.Duration{0, time.Second, time.Hour}).Draw(rt, "queue timeout"),
		Retry: job.Retry{
			Max: rapid.Uint32Range(0, 2).Draw(rt, "retries"), OnLost: rapid.Bool().Draw(rt, "on lost"),
			OnFailure: rapid.Bool().Draw(rt, "on failure"), Backoff: rapid.SampledFrom([]time.Duration{0, time.Second}).Draw(rt, "backoff"),
		},
		Secrets: map[string][]byte{"KEY": []byte("hush")},
	}
	request := rapid.SampledFrom([]string{"", "r1", "r2", "r3"}).Draw(rt, "request")
	var earlier *Accepted
	if request != "" {
		var err error
		if earlier, err = c.records.accepted(context.Background(), requestKey("ann", request)); err != nil {
			rt.Fatalf("look up: %v", err)
		}
	}
	id := c.id()
	r := c.ask(Event{Submit: &Submit{ID: id, Spec: s, Caller: Caller{Name: "ann"}, RequestID: request, Time: c.now, Earlier: earlier}})
	switch {
	case earlier != nil && r.Err == nil && r.Job.ID != earlier.Job:
		rt.Fatalf("the request id stands for %v and was accepted as %v (P1)", earlier.Job, r.Job.ID)
	case r.Err == nil && r.Job.ID == id:
		c.all = append(c.all, id)
	}
}

// claim is anything that a worker could say of a job.
func (c *court) claim(rt *rapid.T, id job.ID) job.Report {
	c.seq++
	r := job.Report{
		Key:      job.Key{Job: id, Attempt: c.states[id].Attempt},
		Sequence: c.seq, State: job.State(rapid.Uint8Range(uint8(job.Dispatched), uint8(job.Lost)).Draw(rt, "says")),
		Reason: rapid.SampledFrom([]string{"", job.ReasonTimeout, job.ReasonDrain}).Draw(rt, "reason"),
	}
	switch rapid.IntRange(0, 9).Draw(rt, "slip") {
	case 0:
		r.Attempt--
	case 1:
		r.Attempt++
	case 2:
		r.Sequence = rapid.Uint64Range(0, c.seq).Draw(rt, "sequence")
	}
	return r
}

func (c *court) helloAny(rt *rapid.T) {
	w := workerID(c.name(rt))
	var reports []job.Report
	for _, id := range c.m.Live() {
		if e := c.m.jobs[id]; e.Worker == w && rapid.Bool().Draw(rt, "known") {
			reports = append(reports, c.claim(rt, id))
		}
	}
	c.hello(w, rapid.SampledFrom([]string{"boot", "boot", "other"}).Draw(rt, "boot"), reports...)
}

func TestNoOrderOfEventsBreaksTheContract(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		c := newCourt(rt)
		register := func(name string) {
			r := registration(name, propertySlots[name])
			r.Commands = map[string][]string{"a": {"sleep"}, "b": {"date"}, "c": {"*"}}[name][:1]
			if name == "c" {
				r.Commands = []string{"sleep", "date"}
			}
			c.ask(Event{Register: &Register{Registration: r, Fresh: workerID(name)}})
		}
		rt.Repeat(map[string]func(*rapid.T){
			"":         func(*rapid.T) { c.check() },
			"submit":   c.submitAny,
			"submit 2": c.submitAny,
			"stop":     func(rt *rapid.T) { c.stop(c.jobOf(rt)) },
			"register": func(rt *rapid.T) { register(c.name(rt)) },
			"arrive": func(rt *rapid.T) {
				name := c.name(rt)
				register(name)
				c.hello(workerID(name), "boot")
			},
			"heartbeat": func(rt *rapid.T) {
				c.ask(Event{Heartbeat: &Heartbeat{ID: workerID(c.name(rt)), Leaving: rapid.IntRange(0, 4).Draw(rt, "leaving") == 0}})
			},
			"deregister": func(rt *rapid.T) {
				w := workerID(c.name(rt))
				c.ask(Event{Deregister: &w})
			},
			"remove": func(rt *rapid.T) {
				w := workerID(c.name(rt))
				c.ask(Event{Remove: &w})
			},
			"drain": func(rt *rapid.T) {
				c.ask(Event{Drain: &Drain{
					ID: workerID(c.name(rt)), Drain: rapid.Bool().Draw(rt, "on"),
					After: rapid.SampledFrom([]time.Duration{0, time.Second}).Draw(rt, "after"),
				}})
			},
			"report": func(rt *rapid.T) {
				id := c.jobOf(rt)
				c.frame(c.states[id].Worker, Up{Reports: []job.Report{c.claim(rt, id)}})
			},
			"impostor": func(rt *rapid.T) {
				c.frame(workerID(c.name(rt)), Up{Reports: []job.Report{c.claim(rt, c.jobOf(rt))}})
			},
			"hello": c.helloAny,
			"cut": func(rt *rapid.T) {
				w := workerID(c.name(rt))
				if l := c.m.links[w]; l != nil {
					c.step(Event{Up: &UpEvent{Worker: w, Link: l.number, Closed: true}})
				}
			},
			"time": func(rt *rapid.T) {
				c.pass(rapid.SampledFrom([]time.Duration{0, time.Second, testLease}).Draw(rt, "by"))
			},
			"restart": func(*rapid.T) {
				c.term++
				c.m, c.twin = c.rebuild(c.term), c.rebuild(c.term)
				register("a") // until a worker speaks, reasons are those of the life before
			},
		})
		c.checkLiveIndex()
	})
}

// checkLiveIndex: the marks of live jobs are exactly those of the Machine.
func (c *court) checkLiveIndex() {
	var marked []job.ID
	for p, err := range c.records.store.Scan(context.Background(), store.Prefix([]byte{prefixLive})) {
		if err != nil {
			c.rt.Fatalf("scan: %v", err)
		}
		marked = append(marked, job.ID(p.Key[1:]))
	}
	if !slices.Equal(marked, c.m.Live()) {
		c.rt.Fatalf("marked %v, live %v", marked, c.m.Live())
	}
}
