package scheduler

import (
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
)

// offer makes a worker with a runner "bash" and scripts.
func (d *desk) offer(name string, slots int, labels map[string]string, scripts ...string) job.WorkerID {
	d.t.Helper()
	reg := registration(name, slots)
	reg.Labels, reg.Commands = labels, []string{"date"}
	reg.Runners = []job.RunnerInfo{{Name: "bash", State: "ready", Commands: []string{"bash"}}}
	id := d.ask(Event{Register: &Register{Registration: reg, Fresh: workerID(name)}}).Worker.ID
	d.hello(id, "boot")
	index := job.ScriptIndex{Generation: 1}
	for _, s := range scripts {
		index.Scripts = append(index.Scripts, job.ScriptInfo{Path: s, Folder: "scripts"})
	}
	d.frame(id, Up{Scripts: &index})
	return id
}

func TestWhereAJobGoes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		spec job.Spec
		want string // worker, or the reason of the wait
		text string // of the reason
	}{
		{"the least loaded", job.Spec{Command: "date"}, "big", ""},
		{"by name", job.Spec{Command: "date", Worker: "small"}, "small", ""},
		{"by id", job.Spec{Command: "date", Worker: workerID("small").String()}, "small", ""},
		{"by labels", job.Spec{Command: "date", Labels: map[string]string{"disk": "ssd"}}, "small", ""},
		{"by script", job.Spec{Command: "bash", Path: "only-big.sh"}, "big", ""},
		{"by script and its folder", job.Spec{Command: "bash", Path: "scripts/only-small.sh"}, "small", ""},
		{"by the ending of the script", job.Spec{Path: "only-small.sh"}, "small", ""},
		{"no labels", job.Spec{Command: "date", Labels: map[string]string{"disk": "tape", "a": "b"}}, job.ReasonNoLabels, "no online worker has the labels a=b,disk=tape"},
		{"no runner", job.Spec{Command: "perl", Path: "x.pl", QueueTimeout: time.Hour}, job.ReasonNoRunner, `no online worker that fits can run the command "perl"`},
		{"no script", job.Spec{Command: "bash", Path: "none.sh", QueueTimeout: time.Hour}, job.ReasonNoScript, `no online worker that fits has the script "none.sh"`},
		{"full", job.Spec{Command: "date", Worker: "full"}, job.ReasonNoSlot, `the worker "full" is full`},
		{"offline", job.Spec{Command: "date", Worker: "off", QueueTimeout: time.Hour}, job.ReasonWorkerOffline, `the worker "off" is offline`},
		{"draining", job.Spec{Command: "date", Worker: "drained", QueueTimeout: time.Hour}, job.ReasonWorkerDrained, `the worker "drained" is draining`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			d.offer("off", 9, nil)
			d.pass(testLease)
			d.offer("small", 2, map[string]string{"disk": "ssd"}, "only-small.sh")
			d.offer("big", 4, map[string]string{"disk": "hdd"}, "only-big.sh")
			d.offer("full", 1, nil)
			d.submit(job.Spec{Command: "date", Worker: "full"})
			d.submit(job.Spec{Command: "date", Worker: "small"}) // 1 of 2
			d.submit(job.Spec{Command: "date", Worker: "big"})   // 1 of 4
			drained := d.offer("drained", 9, nil)
			d.ask(Event{Drain: &Drain{ID: drained, Drain: true}})
			j := d.job(d.submit(c.spec))
			if c.text == "" {
				if j.State != job.Dispatched || j.WorkerName != c.want {
					t.Errorf("%v on %q (%s: %s), want %q", j.State, j.WorkerName, j.Reason, j.Message, c.want)
				}
				return
			}
			if j.State != job.Queued || j.Reason != c.want || j.Message != c.text {
				t.Errorf("%v, %s, %q; want %s, %q", j.State, j.Reason, j.Message, c.want, c.text)
			}
		})
	}
}

func TestWhatWaitingWillHardlyMendIsRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		spec   job.Spec
		kind   errs.Kind
		reason string
		text   string
	}{
		{"unknown worker", job.Spec{Command: "date", Worker: "nobody"}, errs.NotFound, "WORKER_UNKNOWN", `worker_id: find worker: there is no worker "nobody"`},
		{"unknown worker, with time", job.Spec{Command: "date", Worker: "nobody", QueueTimeout: time.Hour}, errs.NotFound, "WORKER_UNKNOWN", "worker_id"},
		{"offline worker", job.Spec{Command: "date", Worker: "off"}, errs.Precondition, "WORKER_OFFLINE", `"off" is offline`},
		{"draining worker", job.Spec{Command: "date", Worker: "drained"}, errs.Precondition, "WORKER_DRAINED", `"drained" is draining`},
		{"no such script", job.Spec{Command: "bash", Path: "none.sh"}, errs.NotFound, "SCRIPT_NOT_FOUND", `path: no online worker that fits has the script "none.sh"`},
		{"no such command", job.Spec{Command: "perl"}, errs.Invalid, "COMMAND_UNKNOWN", `command: no online worker that fits can run the command "perl"`},
		{"labels of a named worker", job.Spec{Command: "date", Worker: "on", Labels: map[string]string{"a": "b"}}, errs.Invalid, "LABELS", `labels: the worker "on"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			d.offer("off", 9, nil)
			d.pass(testLease)
			d.offer("on", 1, nil)
			d.ask(Event{Drain: &Drain{ID: d.offer("drained", 1, nil), Drain: true}})
			r := d.ask(Event{Submit: &Submit{ID: d.id(), Spec: c.spec, RequestID: "r", Time: d.now}})
			if errs.KindOf(r.Err) != c.kind || errs.ReasonOf(r.Err) != c.reason || !strings.Contains(r.Err.Error(), c.text) {
				t.Errorf("%v (%v, %s)", r.Err, errs.KindOf(r.Err), errs.ReasonOf(r.Err))
			}
			d.wantKinds("refusal")
			if len(d.m.jobs)+len(d.m.requests)+len(d.m.queue.classes) != 0 {
				t.Errorf("the refusal left something behind")
			}
		})
	}
}

func TestTheQueueGoesByPriorityThenAge(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		old := d.submit(plain())
		low := d.submit(job.Spec{Command: "sleep", Priority: -1})
		young := d.submit(plain())
		high := d.submit(job.Spec{Command: "other", Priority: 7}) // another class, the same queue
		d.worker("w", 1)
		for _, id := range []job.ID{high, old, young, low} {
			d.want(id, job.Dispatched, "")
			d.report(d.exits(id, 0))
		}
	})
}

func TestEachJobOfAClassLearnsWhyItWaits(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		a, b := d.submit(plain()), d.submit(plain())
		d.want(a, job.Queued, job.ReasonNoWorker)
		d.want(b, job.Queued, job.ReasonNoWorker)
		w := d.worker("w", 1)
		d.want(a, job.Dispatched, "")
		d.want(b, job.Queued, job.ReasonNoSlot)
		d.ask(Event{Drain: &Drain{ID: w, Drain: true}})
		d.want(b, job.Queued, job.ReasonWorkerDrained)
		d.pass(testLease)
		d.want(b, job.Queued, job.ReasonNoWorker)
	})
}

func TestWhatLeavesMakesRoom(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		event func(d *desk, w job.WorkerID, first job.ID)
	}{
		{"an end", func(d *desk, _ job.WorkerID, first job.ID) { d.report(d.exits(first, 0)) }},
		{"a worker that does not leave after all", func(d *desk, w job.WorkerID, first job.ID) {
			d.ask(Event{Heartbeat: &Heartbeat{ID: w, Leaving: true}})
			d.report(d.exits(first, 0))
			d.ask(Event{Heartbeat: &Heartbeat{ID: w}})
		}},
		{"a drain that is over", func(d *desk, w job.WorkerID, first job.ID) {
			d.ask(Event{Drain: &Drain{ID: w, Drain: true}})
			d.report(d.exits(first, 0))
			d.ask(Event{Drain: &Drain{ID: w}})
		}},
		{"another worker", func(d *desk, _ job.WorkerID, _ job.ID) { d.worker("x", 1) }},
		{"a worker that comes back", func(d *desk, w job.WorkerID, first job.ID) {
			d.report(d.exits(first, 0))
			if d.m.jobs[first] != nil {
				d.t.Fatalf("it lives")
			}
			d.pass(testLease)
			d.beat(w)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			w := d.worker("w", 1)
			first, second := d.submit(plain()), d.submit(plain())
			d.want(second, job.Queued, job.ReasonNoSlot)
			c.event(d, w, first)
			d.want(second, job.Dispatched, "")
		})
	}
}

func TestRemovingAnIdleWorkerTellsTheJobsThatWaitForIt(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		w := d.worker("w", 1)
		d.ask(Event{Deregister: &w})
		id := d.submit(job.Spec{Command: "sleep", Worker: "w", QueueTimeout: time.Hour})
		d.want(id, job.Queued, job.ReasonWorkerOffline)
		d.ask(Event{Remove: &w})
		d.want(id, job.Queued, job.ReasonWorkerGone)
	})
}

func TestAJobThatWaitsTooLongIsRejected(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		id := d.submit(job.Spec{Command: "sleep", QueueTimeout: time.Minute, Retry: job.Retry{Max: 9, OnLost: true}})
		placed := d.submit(job.Spec{Command: "other", QueueTimeout: time.Minute})
		d.pass(time.Minute - 1)
		d.want(id, job.Queued, job.ReasonNoWorker)
		w := d.register("w", 1)
		d.want(id, job.Queued, job.ReasonConnecting)
		d.hello(w, "boot")
		d.want(id, job.Dispatched, "") // just in time
		d.want(placed, job.Queued, job.ReasonNoSlot)
		d.pass(1)
		d.want(placed, job.Rejected, job.ReasonQueueTimeout)
		if m := d.job(placed).Message; m != "it waited 1m0s for a worker: every worker that fits is full" {
			t.Errorf("it says %q", m)
		}
		d.want(id, job.Dispatched, "")
	})
}

func TestADrainStopsWhatOutlastsIt(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		id := d.running(plain())
		w := d.job(id).Worker
		if r := d.ask(Event{Drain: &Drain{ID: w, Drain: true, Reason: "disk", After: 5 * time.Second}}); r.Worker.State != registry.Draining {
			t.Errorf("it is %v", r.Worker.State)
		}
		d.pass(5*time.Second - 1)
		d.want(id, job.Running, "")
		d.pass(1)
		d.want(id, job.Stopping, job.ReasonDrain)
		d.wantKinds("STOPPING", "stop/1")
	})
}

// TestDrainDeadline_SchedulerRestarts_BeginsAgain: it ended with the scheduler, and jobs ran
// on that an operator had ordered to be stopped.
func TestDrainDeadline_SchedulerRestarts_BeginsAgain(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		id := d.running(plain())
		w := d.job(id).Worker
		running := d.says(id, job.Running)
		d.ask(Event{Drain: &Drain{ID: w, Drain: true, After: time.Minute}})
		d.pass(time.Minute - 1)
		d.restart()
		d.register("w", 1)
		d.hello(w, "boot", running)
		for left := time.Minute - 1; left > 0; left -= min(left, time.Second) {
			d.pass(min(left, time.Second))
			d.beat(w)
		}
		d.want(id, job.Running, "")
		d.pass(1)
		d.want(id, job.Stopping, job.ReasonDrain)
	})
}

func TestADrainThatIsTakenBackStopsNothing(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		id := d.running(plain())
		w := d.job(id).Worker
		d.ask(Event{Drain: &Drain{ID: w, Drain: true, After: 5 * time.Second}})
		d.ask(Event{Drain: &Drain{ID: w}})
		d.pass(5 * time.Second)
		d.want(id, job.Running, "")
		if r := d.ask(Event{Drain: &Drain{ID: uuid.New(), Drain: true}}); errs.KindOf(r.Err) != errs.NotFound {
			t.Errorf("a drain of nobody: %v", r.Err)
		}
	})
}

// A deadline that nobody takes away would let the loop spin for ever.
func TestTheDeadlineOfADrainGoesWithItsWorker(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		w := d.worker("w", 1)
		d.ask(Event{Drain: &Drain{ID: w, Drain: true, After: time.Minute}})
		d.ask(Event{Deregister: &w})
		d.ask(Event{Remove: &w})
		d.pass(time.Hour)
		if next := d.m.NextDeadline(); !next.IsZero() {
			t.Errorf("the next deadline is %v", next)
		}
	})
}

func TestSecretsAreKeptNoLongerThanNeeded(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		end  func(d *desk, id job.ID)
	}{
		{"ended", func(d *desk, id job.ID) {
			d.worker("w", 1)
			d.report(d.exits(id, 0))
		}},
		{"stopped while it waited", func(d *desk, id job.ID) { d.stop(id) }},
		{"rejected by its time", func(d *desk, _ job.ID) { d.pass(time.Minute) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			id := d.submit(job.Spec{
				Command: "sleep", QueueTimeout: time.Minute, Stdin: []byte("in"), Secrets: map[string][]byte{"KEY": []byte("hush")},
			})
			c.end(d, id)
			j := d.job(id)
			if value, named := j.Spec.Secrets["KEY"]; !j.State.Terminal() || !named || value != nil || j.Spec.Stdin != nil {
				t.Errorf("%v with %q and %q", j.State, j.Spec.Secrets, j.Spec.Stdin)
			}
			if j.StdinBytes != 2 {
				t.Errorf("it had %d bytes of standard input", j.StdinBytes)
			}
		})
	}
}
