package registry

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/droverhq/drover/core/job"
)

// lookAtAll places a job as Place must, the slow way.
func lookAtAll(r *Registry, s *job.Spec) (name, reason string) {
	var best *entry
	nearest := fits
	for _, e := range r.byID {
		if e.State == Deregistered {
			continue
		}
		switch why := e.fit(s); {
		case why != fits:
			nearest = max(nearest, why)
		case best == nil || lessLoaded(e, best):
			best = e
		}
	}
	switch {
	case best != nil:
		return best.Name, ""
	case nearest > isOffline:
		return "", nearest.String()
	default:
		return "", job.ReasonNoWorker
	}
}

// TestPlaceDecidesAsIfItLookedAtEveryWorker: whatever happens to the workers,
// the views know it.
func TestPlaceDecidesAsIfItLookedAtEveryWorker(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(0, 0)
		r := New(10 * time.Second)
		id := func() job.WorkerID { return job.WorkerID{byte(rapid.IntRange(1, 8).Draw(t, "worker"))} }
		specs := make([]job.Spec, 12)
		for i := range specs {
			specs[i] = job.Spec{
				Command:      rapid.SampledFrom([]string{"bash", "date"}).Draw(t, "command"),
				Path:         rapid.SampledFrom([]string{"", "a.sh", "f/a.sh"}).Draw(t, "path"),
				UploadSHA256: rapid.SampledFrom([]string{"", "x"}).Draw(t, "upload"),
				Labels:       rapid.SampledFrom([]map[string]string{nil, {"os": "linux"}, {"os": "linux", "gpu": "1"}}).Draw(t, "labels"),
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"register": func(t *rapid.T) {
				w := id()
				reg := Registration{ID: w, Name: fmt.Sprint(w[0]), Address: "a:1", Slots: rapid.IntRange(1, 3).Draw(t, "slots"), Commands: []string{"date"}}
				if rapid.Bool().Draw(t, "linux") {
					reg.Labels = map[string]string{"os": "linux"}
				}
				reg.Runners = []job.RunnerInfo{{Name: "bash", Commands: []string{"bash"}, State: "ready"}}
				reg.Uploads = rapid.Bool().Draw(t, "uploads")
				reg.InstanceID = rapid.SampledFrom([]string{"x", "y"}).Draw(t, "instance")
				_, _ = r.Register(now, reg, w)
			},
			"load":       func(t *rapid.T) { w := id(); r.Remove(w); r.Load(Worker{ID: w, Name: fmt.Sprint(w[0]), Slots: 1}) },
			"beat":       func(t *rapid.T) { _, _, _ = r.Heartbeat(now, id(), rapid.Bool().Draw(t, "leaving"), 0, nil) },
			"deregister": func(*rapid.T) { _, _ = r.Deregister(id()) },
			"drain":      func(t *rapid.T) { _, _ = r.SetDrain(id(), rapid.Bool().Draw(t, "drain"), "", 0) },
			"remove":     func(*rapid.T) { r.Remove(id()) },
			"occupy":     func(t *rapid.T) { r.Occupy(id(), rapid.SampledFrom([]int{1, -1}).Draw(t, "n")) },
			"command":    func(t *rapid.T) { r.SetCommanded(id(), rapid.IntRange(0, 3).Draw(t, "commanded") > 0) },
			"scripts": func(t *rapid.T) {
				x := job.ScriptIndex{}
				if rapid.Bool().Draw(t, "published") {
					x.Scripts = []job.ScriptInfo{{Path: "a.sh", Folder: "f"}}
				}
				r.SetScripts(id(), x)
			},
			"runners": func(t *rapid.T) {
				r.SetRunners(id(), []job.RunnerInfo{{Name: "bash", Commands: []string{"bash"}, State: rapid.SampledFrom([]string{"ready", "starting"}).Draw(t, "state")}})
			},
			"time": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(1, 6).Draw(t, "seconds")) * time.Second)
				due := map[string]bool{}
				for _, w := range r.All() {
					due[w.Name] = (w.State == Online || w.State == Draining) && !now.Before(w.LeaseEnd)
				}
				for _, w := range r.Expire(now) {
					if !due[w.Name] {
						t.Fatalf("%s expired before its time", w.Name)
					}
					delete(due, w.Name)
				}
				for name, missed := range due {
					if missed {
						t.Fatalf("%s did not expire", name)
					}
				}
			},
			"": func(t *rapid.T) {
				for i := range specs {
					w, reason := r.Place(&specs[i], job.WorkerID{})
					if name, why := lookAtAll(r, &specs[i]); w.Name != name || reason != why {
						t.Fatalf("%+v goes to %q (%s), should to %q (%s)", specs[i], w.Name, reason, name, why)
					}
				}
				for _, w := range r.All() {
					if (w.State == Online || w.State == Draining) && (r.NextExpiry().IsZero() || r.NextExpiry().After(w.LeaseEnd)) {
						t.Fatalf("the lease of %s would run out unseen", w.Name)
					}
				}
			},
		})
	})
}

// TestManyPlacementsAreNotKept: labels are the clients' to choose.
func TestManyPlacementsAreNotKept(t *testing.T) {
	t.Parallel()
	r := New(time.Second)
	r.Load(Worker{ID: job.WorkerID{1}, Name: "w", Slots: 1})
	for i := range 3 * maxViews {
		r.Place(&job.Spec{Command: "date", Labels: map[string]string{"n": fmt.Sprint(i)}}, job.WorkerID{})
	}
	if len(r.views) > maxViews {
		t.Errorf("%d placements are kept", len(r.views))
	}
}

// TestNumbersOfWorkersAreUsedAgain: the tables do not grow with workers that
// come and go.
func TestNumbersOfWorkersAreUsedAgain(t *testing.T) {
	t.Parallel()
	r := New(time.Second)
	for i := range 100 {
		r.Load(Worker{ID: job.WorkerID{byte(i + 1)}, Name: fmt.Sprint(i), Slots: 1})
		r.Remove(job.WorkerID{byte(i + 1)})
	}
	if r.slots != 1 {
		t.Errorf("%d numbers for one worker at a time", r.slots)
	}
}
