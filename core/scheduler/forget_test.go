package scheduler

import (
	"slices"
	"testing"
	"time"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/store"
)

// remove removes the record of a job.
func (d *desk) remove(id job.ID) {
	d.t.Helper()
	d.step(Event{Forget: []job.Job{d.job(id)}})
}

// owedTo lists what a worker is still to forget.
func owedTo(t *testing.T, d *desk, w job.WorkerID) []job.Key {
	t.Helper()
	keys, err := d.records.owed(t.Context(), w, job.Key{})
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// forgets lists the attempts that the last step orders to be forgotten.
func (d *desk) forgets() (keys []job.Key) {
	for i := range d.last {
		if e := &d.last[i]; e.Send != nil {
			keys = append(keys, e.Send.Down.Forgets...)
		}
	}
	return keys
}

// TestRemovedJob_WorkerIsAway_ForgetsWhenItIsBack: over a restart of the scheduler, in
// each session until the worker confirms it, and each worker that had an attempt.
func TestRemovedJob_WorkerIsAway_ForgetsWhenItIsBack(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		names := map[job.WorkerID]string{d.worker("w", 1): "w", d.worker("other", 1): "other"}
		id := d.submit(job.Spec{Command: "sleep", Retry: job.Retry{Max: 1, OnFailure: true}})
		first := d.job(id).Worker
		d.report(d.exits(id, 7))
		d.pass(time.Minute)
		second := d.job(id).Worker
		d.report(d.exits(id, 0))
		if d.want(id, job.Succeeded, ""); first == second {
			t.Fatal("both attempts went to one worker")
		}
		d.cut(first)
		d.cut(second)
		d.remove(id)
		d.restart()
		for n, w := range []job.WorkerID{first, second} {
			attempt := job.Key{Job: id, Attempt: uint32(n + 1)}
			d.register(names[w], 1)
			for range 2 {
				if d.hello(w, "boot"); !slices.Equal(d.forgets(), []job.Key{attempt}) {
					t.Errorf("worker %d is told to forget %v", n+1, d.forgets())
				}
			}
			d.frame(w, Up{Forgotten: []job.Key{attempt}})
			if d.hello(w, "boot"); len(d.forgets()) > 0 || len(owedTo(t, d, w)) > 0 {
				t.Errorf("confirmed, and still %v", owedTo(t, d, w))
			}
		}
	})
}

// TestRemovedJob_AttemptStillRuns_IsStoppedAndForgotten: an attempt that was taken for
// lost, and whose job was removed, ran for ever: it belonged to no job that was known.
func TestRemovedJob_AttemptStillRuns_IsStoppedAndForgotten(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		id := d.running(job.Spec{Command: "sleep", Retry: job.Retry{Max: 1, OnLost: true}})
		w := d.job(id).Worker
		running := d.says(id, job.Running)
		d.cut(w)
		d.m.finish(d.m.jobs[id], job.Lost, job.ReasonNoProcess, "taken for lost")
		d.pass(0)
		d.stop(id)
		d.remove(id)
		d.restart()
		d.register("w", 1)
		if d.hello(w, "boot", running); !slices.Contains(kinds(d.last), "stop/1") {
			t.Fatalf("effects %q", kinds(d.last))
		}
		stopped := running
		stopped.Sequence, stopped.State, stopped.StopProof = running.Sequence+1, job.Stopped, &job.StopProof{Method: "x"}
		d.frame(w, Up{Reports: []job.Report{stopped}})
		if got, _ := d.m.workers.Get(w); !slices.Contains(kinds(d.last), "forget/1") || got.Running != 0 {
			t.Errorf("effects %q, %d slots are taken", kinds(d.last), got.Running)
		}
	})
}

// TestRemovedJobs_Many_ComeInPages: no more at once than the worker has confirmed.
func TestRemovedJobs_Many_ComeInPages(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		w := d.worker("w", 1)
		d.cut(w)
		var b store.Batch
		all := &Forget{Worker: w}
		for range 2*owedPage + 5 {
			all.Keys = append(all.Keys, job.Key{Job: d.id(), Attempt: 1})
		}
		if err := putEffect(&b, &Effect{Owe: all}); err != nil {
			t.Fatal(err)
		}
		if err := d.records.store.Apply(t.Context(), &b); err != nil {
			t.Fatal(err)
		}
		d.restart()
		d.register("w", 1)
		d.hello(w, "boot")
		var told []job.Key
		for pages := 0; len(d.forgets()) > 0; pages++ {
			page := d.forgets()
			if told = append(told, page...); pages > 3 || len(page) > owedPage {
				t.Fatalf("page %d has %d", pages, len(page))
			}
			if d.frame(w, Up{Forgotten: page[:len(page)/3]}); len(d.forgets()) > 0 {
				t.Fatal("the next page came before this one was confirmed")
			}
			d.frame(w, Up{Forgotten: page[len(page)/3:]})
		}
		if !slices.Equal(told, all.Keys) || len(owedTo(t, d, w)) > 0 {
			t.Errorf("told of %d of %d, %d are left", len(told), len(all.Keys), len(owedTo(t, d, w)))
		}
	})
}

// TestRemovedWorker_IsOwedNothing: what would never be confirmed is not kept.
func TestRemovedWorker_IsOwedNothing(t *testing.T) {
	desks(t, func(t *testing.T, d *desk) {
		w := d.worker("w", 1)
		before, after := d.submit(plain()), d.submit(plain())
		d.report(d.exits(before, 0))
		d.report(d.exits(after, 0))
		d.cut(w)
		d.remove(before)
		if len(owedTo(t, d, w)) != 1 {
			t.Errorf("owed %v", owedTo(t, d, w))
		}
		d.pass(2 * testLease)
		d.ask(Event{Remove: &w})
		d.remove(after)
		if len(owedTo(t, d, w)) != 0 {
			t.Errorf("owed %v", owedTo(t, d, w))
		}
	})
}
