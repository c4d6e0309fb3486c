package scheduler

import (
	"testing"
	"time"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
)

// TestAJobForAWorkerThatHasJustCome: between its registration and its first list
// of scripts nobody knows whether a worker has one. The job waits for the list
// instead of being refused.
func TestAJobForAWorkerThatHasJustCome(t *testing.T) {
	t.Parallel()
	m := NewMachine(1, DefaultLease)
	now := time.Unix(1_000_000, 0)
	wid := job.WorkerID{1}
	step := func(ev Event) []Effect { return append([]Effect(nil), m.Step(now, &ev)...) }
	step(Event{Register: &Register{Fresh: wid, Registration: registry.Registration{
		Name: "w1", Address: "w1:1", Slots: 1, BootID: "b", InstanceID: "i",
		Runners: []job.RunnerInfo{{Name: "bash", State: "ready", Commands: []string{"bash"}}},
	}}})
	ask := func(n byte, path string) (job.Job, error) {
		for _, e := range step(Event{Reply: 1, Submit: &Submit{ID: job.ID{n}, Spec: job.Spec{Command: "bash", Path: path}, Time: now}}) {
			if e.Result != nil {
				return e.Result.Job, e.Result.Err
			}
		}
		t.Fatal("no answer")
		return job.Job{}, nil
	}
	j, err := ask(1, "a.sh")
	if err != nil || j.State != job.Queued || j.Reason != job.ReasonConnecting || j.Message == "" {
		t.Fatalf("before the list: %+v, %v", j, err)
	}
	step(Event{Up: &UpEvent{Worker: wid, Link: 1, Opened: true}})
	index := job.ScriptIndex{Scripts: []job.ScriptInfo{{Path: "a.sh", Folder: "s"}}}
	var placed bool
	for _, e := range step(Event{Up: &UpEvent{Worker: wid, Link: 1, Up: Up{Hello: &Hello{BootID: "b", Complete: true}, Scripts: &index}}}) {
		placed = placed || e.Put != nil && e.Put.ID == job.ID{1} && e.Put.State == job.Dispatched
	}
	if !placed {
		t.Error("it was not placed when the list came")
	}
	if _, err := ask(2, "missing.sh"); err == nil {
		t.Error("a script that is nowhere is accepted once all have told")
	}
}
