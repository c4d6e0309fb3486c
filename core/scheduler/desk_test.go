package scheduler

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
	"github.com/droverhq/drover/core/store"
	"github.com/droverhq/drover/core/store/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testLease = 10 * time.Second

// tb is what *testing.T and *rapid.T have in common.
type tb interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// desk is a Machine with a clock that stands still and a store: what a
// Scheduler is without its loop and its links.
type desk struct {
	t       tb
	m       *Machine
	records records
	now     time.Time
	term    uint64
	reply   uint64
	last    []Effect // of the last step
	link    uint64
	seq     uint64
	ids     uint64
	look    func(ev *Event) // after each step, before its records are written
}

func newDesk(t tb) *desk {
	return &desk{
		t: t, m: NewMachine(1, testLease), records: records{memory.New()}, term: 1,
		now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
}

// step takes one event, writes the records and returns the effects.
func (d *desk) step(ev Event) []Effect {
	d.t.Helper()
	if ev.Up != nil {
		if err := d.records.ofFrame(context.Background(), d.m, ev.Up); err != nil {
			d.t.Fatalf("look up: %v", err)
		}
	}
	d.last = slices.Clone(d.m.Step(d.now, &ev))
	if d.look != nil {
		d.look(&ev)
	}
	var b store.Batch
	if err := putRound(&b, d.last); err != nil {
		d.t.Fatalf("record: %v", err)
	}
	if err := d.records.store.Apply(context.Background(), &b); err != nil {
		d.t.Fatalf("commit: %v", err)
	}
	d.m.Committed()
	return d.last
}

// ask is a step with somebody who waits for the answer.
func (d *desk) ask(ev Event) Result {
	d.t.Helper()
	d.reply++
	ev.Reply = d.reply
	for _, e := range d.step(ev) {
		if e.Result != nil && e.Result.To == d.reply {
			return *e.Result
		}
	}
	d.t.Fatalf("no answer")
	return Result{}
}

// pass lets time go by up to each deadline on its way, as the loop does.
func (d *desk) pass(by time.Duration) {
	d.t.Helper()
	end := d.now.Add(by)
	for range 1000 {
		next := d.m.NextDeadline()
		if d.now = end; !next.IsZero() && next.Before(end) {
			d.now = next
		}
		d.step(Event{Tick: true})
		if next = d.m.NextDeadline(); d.now.Equal(end) && (next.IsZero() || next.After(end)) {
			return
		}
	}
	d.t.Fatalf("deadlines without an end: the next is %v, it is %v", d.m.NextDeadline(), d.now)
}

// restart loads a new Machine from the store, as New does.
func (d *desk) restart() {
	d.t.Helper()
	d.term++
	d.m = NewMachine(d.term, testLease)
	if err := d.records.loadOwing(context.Background(), d.m.LoadOwing); err != nil {
		d.t.Fatalf("load: %v", err)
	}
	err := d.records.load(context.Background(), loadWorkersInto(d.m, d.now), func(jobs []*job.Job) {
		for _, j := range jobs {
			if j.State.Live() && j.UnreachableSince.IsZero() {
				j.UnreachableSince = d.now.Round(0)
			}
			d.m.LoadJob(d.now, *j)
		}
	})
	if err != nil {
		d.t.Fatalf("load: %v", err)
	}
}

// loadWorkersInto puts workers of the store into a Machine.
func loadWorkersInto(m *Machine, now time.Time) func(registry.Worker) {
	return func(w registry.Worker) { m.LoadWorker(now, w) }
}

// id is a job id that sorts after all before, as UUIDv7 does.
func (d *desk) id() job.ID {
	d.ids++
	id := job.ID{6: 0x70, 8: 0x80}
	binary.BigEndian.PutUint32(id[0:], uint32(d.ids))
	return id
}

func workerID(name string) job.WorkerID { return uuid.NewSHA1(uuid.NameSpaceURL, []byte(name)) }

// plain is a job that any worker of these tests can run.
func plain() job.Spec { return job.Spec{Command: "sleep"} }

func (d *desk) submit(s job.Spec) job.ID {
	d.t.Helper()
	r := d.ask(Event{Submit: &Submit{ID: d.id(), Spec: s, Caller: Caller{Name: "ann"}, Time: d.now}})
	if r.Err != nil {
		d.t.Fatalf("submit: %v", r.Err)
	}
	return r.Job.ID
}

func registration(name string, slots int) registry.Registration {
	return registry.Registration{
		Name: name, Address: name + ":1", Slots: slots, BootID: "boot", InstanceID: "one", Commands: []string{"*"},
	}
}

// register makes a worker ONLINE without a session.
func (d *desk) register(name string, slots int) job.WorkerID {
	d.t.Helper()
	r := d.ask(Event{Register: &Register{Registration: registration(name, slots), Fresh: workerID(name)}})
	if r.Err != nil {
		d.t.Fatalf("register: %v", r.Err)
	}
	return r.Worker.ID
}

// worker registers a worker and opens its session.
func (d *desk) worker(name string, slots int) job.WorkerID {
	d.t.Helper()
	id := d.register(name, slots)
	d.hello(id, "boot")
	return id
}

// hello opens a new session in which the worker knows the attempts reported.
func (d *desk) hello(w job.WorkerID, boot string, reports ...job.Report) []Effect {
	d.t.Helper()
	d.link++
	d.step(Event{Up: &UpEvent{Worker: w, Link: d.link, Opened: true}})
	return d.frame(w, Up{Hello: &Hello{BootID: boot, InstanceID: "one", Complete: true}, Reports: reports})
}

// cut ends the session of a worker.
func (d *desk) cut(w job.WorkerID) []Effect {
	d.t.Helper()
	return d.step(Event{Up: &UpEvent{Worker: w, Link: d.m.links[w].number, Closed: true}})
}

func (d *desk) frame(w job.WorkerID, up Up) []Effect {
	d.t.Helper()
	number := d.link
	if l := d.m.links[w]; l != nil {
		number = l.number
	}
	return d.step(Event{Up: &UpEvent{Worker: w, Link: number, Up: up}})
}

func (d *desk) beat(w job.WorkerID) Result {
	d.t.Helper()
	return d.ask(Event{Heartbeat: &Heartbeat{ID: w}})
}

// job is the record of a job.
func (d *desk) job(id job.ID) job.Job {
	d.t.Helper()
	j, err := d.records.job(context.Background(), id)
	if err != nil {
		d.t.Fatalf("read job: %v", err)
	}
	return *j
}

// says is the next report on the present attempt of a job.
func (d *desk) says(id job.ID, s job.State) job.Report {
	d.seq++
	return job.Report{Key: job.Key{Job: id, Attempt: d.job(id).Attempt}, Sequence: d.seq, State: s}
}

// exits is the report of an exit with a code.
func (d *desk) exits(id job.ID, code int32) job.Report {
	r := d.says(id, job.Succeeded)
	r.ExitCode, r.Evidence = &code, job.Wait
	if code != 0 {
		r.State, r.Reason = job.Failed, job.ReasonExitCode
	}
	return r
}

// report lets the worker of a job report.
func (d *desk) report(r job.Report) []Effect {
	d.t.Helper()
	return d.frame(d.job(r.Job).Worker, Up{Reports: []job.Report{r}})
}

func (d *desk) stop(id job.ID) Result {
	d.t.Helper()
	return d.ask(Event{Stop: &Stop{ID: id, Reason: job.ReasonUser}})
}

// want checks state and reason of a job's record.
func (d *desk) want(id job.ID, s job.State, reason string) {
	d.t.Helper()
	if j := d.job(id); j.State != s || j.Reason != reason {
		d.t.Errorf("job is %v (%s: %s), want %v (%s)", j.State, j.Reason, j.Message, s, reason)
	}
}

// running makes a job that runs on a worker of its own.
func (d *desk) running(s job.Spec) job.ID {
	d.t.Helper()
	d.worker("w", 1)
	id := d.submit(s)
	d.report(d.says(id, job.Running))
	d.want(id, job.Running, "")
	return id
}

// kinds names effects in short, for tables.
func kinds(effects []Effect) []string {
	var out []string
	for i := range effects {
		e := &effects[i]
		switch {
		case e.Put != nil:
			out = append(out, map[bool]string{true: "new "}[e.New]+e.Put.State.String())
		case e.Worker != nil:
			out = append(out, "worker "+e.Worker.State.String())
		case e.Gone != nil:
			out = append(out, "gone")
		case e.Owe != nil:
			out = append(out, "owe")
		case e.Forgot != nil:
			out = append(out, "forgot")
		case e.Send != nil:
			out = append(out, orders(&e.Send.Down)...)
		case e.Dial != nil:
			out = append(out, "dial")
		case e.Hang != nil:
			out = append(out, "hang")
		case e.Result != nil:
			out = append(out, map[bool]string{false: "answer", true: "refusal"}[e.Result.Err != nil])
		default:
			out = append(out, cmp.Or(e.Unexpected, fmt.Sprintf("%+v", *e)))
		}
	}
	return out
}

func orders(d *Down) []string {
	var out []string
	for _, o := range d.Starts {
		out = append(out, fmt.Sprintf("start/%d", o.Attempt))
	}
	for _, o := range d.Stops {
		out = append(out, fmt.Sprintf("stop/%d", o.Attempt))
	}
	for _, k := range d.Acks {
		out = append(out, fmt.Sprintf("ack/%d", k.Attempt))
	}
	for _, k := range d.Forgets {
		out = append(out, fmt.Sprintf("forget/%d", k.Attempt))
	}
	return out
}

func (d *desk) wantKinds(want ...string) {
	d.t.Helper()
	if got := kinds(d.last); !slices.Equal(got, want) {
		d.t.Errorf("effects %q, want %q", got, want)
	}
}

// desks runs f on a fresh desk.
func desks(t *testing.T, f func(t *testing.T, d *desk)) {
	t.Helper()
	t.Parallel()
	f(t, newDesk(t))
}
