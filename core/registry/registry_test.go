package registry_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
)

const lease = 10 * time.Second

func at(s int) time.Time { return time.Unix(1_000_000, 0).Add(time.Duration(s) * time.Second) }

func id(n byte) job.WorkerID { return job.WorkerID{15: n} }

// worker is a registration that can run anything without a script, and bash
// scripts.
func worker(name string, slots int) registry.Registration {
	return registry.Registration{
		Name: name, Address: name + ":1", Slots: slots, BootID: "boot", InstanceID: name + "-1", Commands: []string{"*"},
		Runners: []job.RunnerInfo{{Name: "bash", State: "ready", Commands: []string{"bash"}}},
	}
}

func join(t *testing.T, r *registry.Registry, n byte, reg registry.Registration, scripts ...string) registry.Worker {
	t.Helper()
	w, err := r.Register(at(0), reg, id(n))
	if err != nil {
		t.Fatal(err)
	}
	x := job.ScriptIndex{}
	for _, s := range scripts {
		folder, path, _ := strings.Cut(s, ":")
		x.Scripts = append(x.Scripts, job.ScriptInfo{Folder: folder, Path: path})
	}
	r.SetScripts(w.ID, x)
	return w
}

func TestWhoMayRegister(t *testing.T) {
	t.Parallel()
	restarted := worker("w1", 2)
	restarted.ID, restarted.InstanceID, restarted.Address = id(1), "w1-2", "w1:2"
	second := worker("w1", 2)
	second.InstanceID = "other"
	stranger := worker("w2", 2)
	stranger.ID = id(1)
	same := worker("w1", 4)
	for name, c := range map[string]struct {
		when   int
		reg    registry.Registration
		reason string // of the refusal
	}{
		"the same process again":            {1, same, ""},
		"the same worker after a restart":   {1, restarted, ""},
		"a second process of that name":     {1, second, "NAME_TAKEN"},
		"one after the lease of the first":  {11, second, ""},
		"another name with the id of one":   {1, stranger, "WORKER_NAME"},
		"without slots":                     {1, registry.Registration{Name: "w3", Address: "a:1"}, "SLOTS"},
		"without an address":                {1, registry.Registration{Name: "w3", Slots: 1}, "ADDRESS"},
		"an id that nobody knows, new name": {1, registry.Registration{ID: id(9), Name: "w3", Address: "a:1", Slots: 1}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := registry.New(lease)
			join(t, r, 1, worker("w1", 2))
			w, err := r.Register(at(c.when), c.reg, id(7))
			if errs.ReasonOf(err) != c.reason || (err == nil) != (c.reason == "") {
				t.Fatalf("%v, want %q", err, c.reason)
			}
			if err != nil {
				if got := r.All(); len(got) != 1 || got[0].Address != "w1:1" {
					t.Errorf("a refusal changed %+v", got)
				}
				return
			}
			if c.reg.Name == "w1" && w.ID != id(1) || w.State != registry.Online || w.Address != c.reg.Address {
				t.Errorf("registered as %+v", w)
			}
		})
	}
}

func TestLeases(t *testing.T) {
	t.Parallel()
	r := registry.New(lease)
	w := join(t, r, 1, worker("w1", 1))
	if got := r.NextExpiry(); !got.Equal(at(10)) {
		t.Errorf("the lease ends at %v", got)
	}
	if gone := r.Expire(at(9)); len(gone) != 0 {
		t.Errorf("expired early: %v", gone)
	}
	if _, changed, err := r.Heartbeat(at(9), w.ID, false, 0, nil); changed || err != nil {
		t.Errorf("a heartbeat changed %v, %v", changed, err)
	}
	if gone := r.Expire(at(18)); len(gone) != 0 {
		t.Errorf("expired though renewed: %v", gone)
	}
	gone := r.Expire(at(19))
	if len(gone) != 1 || gone[0].State != registry.Offline || !r.NextExpiry().IsZero() {
		t.Errorf("expired: %+v, next %v", gone, r.NextExpiry())
	}
	got, changed, err := r.Heartbeat(at(20), w.ID, false, 0, []job.Condition{{Type: "DISK_LOW", Message: "m"}})
	if err != nil || !changed || got.State != registry.Online || len(got.Conditions) != 1 {
		t.Errorf("back: %+v, %v, %v", got, changed, err)
	}
	if _, _, err := r.Heartbeat(at(20), id(9), false, 0, nil); errs.KindOf(err) != errs.NotFound {
		t.Errorf("a heartbeat of nobody: %v", err)
	}
}

func TestDrainLeaveAndGoodbye(t *testing.T) {
	t.Parallel()
	r := registry.New(lease)
	w := join(t, r, 1, worker("w1", 1))
	state := func() registry.State { got, _ := r.Get(w.ID); return got.State }
	if got, err := r.SetDrain(w.ID, true, "repair", 0); err != nil || got.State != registry.Draining || got.DrainReason != "repair" {
		t.Errorf("drained: %+v, %v", got, err)
	}
	again := worker("w1", 1)
	again.ID, again.InstanceID = w.ID, "w1-2"
	if got, err := r.Register(at(1), again, id(2)); err != nil || got.State != registry.Draining {
		t.Errorf("a restart ended the drain: %+v, %v", got, err)
	}
	if _, err := r.SetDrain(w.ID, false, "", 0); err != nil || state() != registry.Online {
		t.Errorf("resumed: %v, %v", state(), err)
	}
	if got, _, err := r.Heartbeat(at(2), w.ID, true, 0, nil); err != nil || got.State != registry.Draining {
		t.Errorf("leaving: %+v, %v", got, err)
	}
	if got, err := r.Deregister(w.ID); err != nil || got.State != registry.Deregistered {
		t.Errorf("deregistered: %+v, %v", got, err)
	}
	if _, _, err := r.Heartbeat(at(3), w.ID, false, 0, nil); errs.KindOf(err) != errs.NotFound {
		t.Errorf("a heartbeat after the goodbye: %v", err)
	}
	if gone := r.Expire(at(100)); len(gone) != 0 || state() != registry.Deregistered {
		t.Errorf("the lease of one that has left ran out: %v", gone)
	}
	for name, err := range map[string]error{
		"drain":      func() error { _, err := r.SetDrain(id(9), true, "", 0); return err }(),
		"deregister": func() error { _, err := r.Deregister(id(9)); return err }(),
		"find":       func() error { _, err := r.Find("nobody"); return err }(),
	} {
		if errs.ReasonOf(err) != "WORKER_UNKNOWN" {
			t.Errorf("%s of nobody: %v", name, err)
		}
	}
}

func TestPlacement(t *testing.T) {
	t.Parallel()
	labels := func(w registry.Registration, k, v string) registry.Registration {
		w.Labels = map[string]string{k: v}
		return w
	}
	full := func(t *testing.T) *registry.Registry {
		t.Helper()
		r := registry.New(lease)
		join(t, r, 1, labels(worker("w1", 4), "zone", "a"), "scripts:a.sh", "scripts:sub/b.sh")
		join(t, r, 2, labels(worker("w2", 2), "zone", "b"), "scripts:a.sh")
		if _, err := r.Register(at(0), labels(worker("new", 2), "zone", "c"), id(3)); err != nil { // has told nothing yet
			t.Fatal(err)
		}
		for n := range byte(3) {
			r.SetCommanded(id(n+1), true)
		}
		return r
	}
	for name, c := range map[string]struct {
		spec   job.Spec
		before func(*registry.Registry)
		want   string // name of a worker, or a reason
	}{
		"least loaded":             {job.Spec{Command: "uname"}, func(r *registry.Registry) { r.Occupy(id(3), 1); r.Occupy(id(1), 1) }, "w2"},
		"least loaded by share":    {job.Spec{Command: "uname"}, func(r *registry.Registry) { r.Occupy(id(3), 2); r.Occupy(id(1), 1); r.Occupy(id(2), 1) }, "w1"},
		"by name":                  {job.Spec{Command: "uname", Worker: "w2"}, nil, "w2"},
		"by id":                    {job.Spec{Command: "uname", Worker: id(2).String()}, nil, "w2"},
		"by label":                 {job.Spec{Command: "uname", Labels: map[string]string{"zone": "b"}}, nil, "w2"},
		"by script":                {job.Spec{Command: "bash", Path: "sub/b.sh"}, nil, "w1"},
		"by script and its folder": {job.Spec{Command: "bash", Path: "worker/scripts/sub/b.sh"}, nil, "w1"},
		"nobody takes uploads":     {job.Spec{Command: "bash", Path: "a.sh", Upload: []byte("x")}, func(r *registry.Registry) { r.SetScripts(id(3), job.ScriptIndex{}) }, job.ReasonNoUploads},
		"one takes uploads": {job.Spec{Command: "bash", Path: "none.sh", UploadSHA256: "s"}, func(r *registry.Registry) {
			open := worker("w2", 2)
			open.Uploads = true
			_, _ = r.Register(at(0), open, id(2))
			r.SetScripts(id(2), job.ScriptIndex{})
		}, "w2"},
		"the named takes no uploads": {job.Spec{Command: "bash", Path: "a.sh", Worker: "w1", UploadSHA256: "s"}, nil, job.ReasonNoUploads},
		"nobody of that name":        {job.Spec{Command: "uname", Worker: "w9"}, nil, job.ReasonWorkerGone},
		"no such label":              {job.Spec{Command: "uname", Labels: map[string]string{"zone": "x"}}, nil, job.ReasonNoLabels},
		"the named is offline":       {job.Spec{Command: "uname", Worker: "w1"}, func(r *registry.Registry) { r.Expire(at(11)) }, job.ReasonWorkerOffline},
		"all are offline":            {job.Spec{Command: "uname"}, func(r *registry.Registry) { r.Expire(at(11)) }, job.ReasonNoWorker},
		"all are full":               {job.Spec{Command: "uname"}, func(r *registry.Registry) { r.Occupy(id(1), 4); r.Occupy(id(2), 2); r.Occupy(id(3), 2) }, job.ReasonNoSlot},
		"nobody has it, one may":     {job.Spec{Command: "bash", Path: "c.sh"}, nil, job.ReasonConnecting},
		"nobody has it":              {job.Spec{Command: "bash", Path: "c.sh"}, func(r *registry.Registry) { r.SetScripts(id(3), job.ScriptIndex{}) }, job.ReasonNoScript},
		"the named has not told yet": {job.Spec{Command: "bash", Path: "c.sh", Worker: "new"}, nil, job.ReasonConnecting},
		"the named does not have it": {job.Spec{Command: "bash", Path: "sub/b.sh", Worker: "w2"}, nil, job.ReasonNoScript},
		"commands need no list":      {job.Spec{Command: "uname", Worker: "new"}, nil, "new"},
		"the named is drained":       {job.Spec{Command: "uname", Worker: "w1"}, func(r *registry.Registry) { _, _ = r.SetDrain(id(1), true, "", 0) }, job.ReasonWorkerDrained},
		"the named has no session":   {job.Spec{Command: "uname", Worker: "w1"}, func(r *registry.Registry) { r.SetCommanded(id(1), false) }, job.ReasonConnecting},
		"nobody has a session, one is full": {job.Spec{Command: "uname"}, func(r *registry.Registry) {
			r.SetCommanded(id(2), false)
			r.SetCommanded(id(3), false)
			r.Occupy(id(1), 4)
		}, job.ReasonConnecting},
		"a removed one": {job.Spec{Command: "uname", Worker: "w1"}, func(r *registry.Registry) { r.Remove(id(1)) }, job.ReasonWorkerGone},
		"a runner that is not ready": {job.Spec{Command: "python", Path: "a.sh", Worker: "w1"}, func(r *registry.Registry) {
			r.SetRunners(id(1), []job.RunnerInfo{{State: "starting", Commands: []string{"python"}}})
		}, "w1"}, // its policy allows every command
		"one that was known before all": {job.Spec{Command: "uname", Worker: "old"}, func(r *registry.Registry) { r.Load(registry.Worker{ID: id(8), Name: "old", State: registry.Online}) }, job.ReasonWorkerOffline},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := full(t)
			if c.before != nil {
				c.before(r)
			}
			w, reason := r.Place(&c.spec, job.WorkerID{})
			got := reason
			if reason == "" {
				got = w.Name
			}
			if got != c.want {
				t.Fatalf("%q, want %q", got, c.want)
			}
			if reason != "" {
				text := registry.Explain(reason, &c.spec)
				if text == "" || c.spec.Worker != "" && !strings.Contains(text, c.spec.Worker) {
					t.Errorf("%s is explained as %q", reason, text)
				}
			}
		})
	}
}

func TestCommandsOfTheNamedWorkerOnly(t *testing.T) {
	t.Parallel()
	r := registry.New(lease)
	join(t, r, 1, worker("w1", 1))
	few := worker("w2", 1)
	few.Commands = []string{"uname", "date"}
	join(t, r, 2, few)
	if got := r.Commands("w2", ""); !slices.Equal(got, []string{"date", "uname"}) {
		t.Errorf("w2 runs %q", got)
	}
	if got := r.Commands(id(2).String(), "a.sh"); !slices.Equal(got, []string{"bash", "date", "uname"}) {
		t.Errorf("w2 runs %q with a script", got)
	}
	if got := r.Commands("", ""); !slices.Equal(got, []string{"*", "date", "uname"}) {
		t.Errorf("all run %q", got)
	}
}

// TestAnyHistory: whatever happens, a worker is placed on only while it is
// online, has a lease and a free slot, and what was handed out never changes.
func TestAnyHistory(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		r := registry.New(lease)
		now := 0
		names := rapid.SampledFrom([]string{"w1", "w2", "w3"})
		known := func() job.WorkerID {
			all := r.All()
			if len(all) == 0 {
				return uuid.Nil
			}
			return all[rapid.IntRange(0, len(all)-1).Draw(t, "who")].ID
		}
		fresh := byte(0)
		t.Repeat(map[string]func(*rapid.T){
			"register": func(t *rapid.T) {
				reg := worker(names.Draw(t, "name"), rapid.IntRange(1, 3).Draw(t, "slots"))
				if w, err := r.Find(reg.Name); err == nil {
					reg.ID = w.ID
				}
				fresh++
				if _, err := r.Register(at(now), reg, id(fresh)); err != nil {
					t.Fatal(err)
				}
			},
			"time":       func(t *rapid.T) { now += rapid.IntRange(0, 6).Draw(t, "seconds"); r.Expire(at(now)) },
			"heartbeat":  func(t *rapid.T) { _, _, _ = r.Heartbeat(at(now), known(), rapid.Bool().Draw(t, "leaving"), 0, nil) },
			"drain":      func(t *rapid.T) { _, _ = r.SetDrain(known(), rapid.Bool().Draw(t, "drain"), "", 0) },
			"deregister": func(*rapid.T) { _, _ = r.Deregister(known()) },
			"remove":     func(*rapid.T) { r.Remove(known()) },
			"free": func(*rapid.T) {
				if w, ok := r.Get(known()); ok && w.Running > 0 {
					r.Occupy(w.ID, -1)
				}
			},
			"place": func(t *rapid.T) {
				w, reason := r.Place(&job.Spec{Command: "uname"}, job.WorkerID{})
				if reason != "" {
					return
				}
				if w.State != registry.Online || !at(now).Before(w.LeaseEnd) || w.Running >= w.Slots || w.Drain || w.Leaving {
					t.Fatalf("placed on %+v at %v", w, at(now))
				}
				for _, other := range r.All() {
					if other.State == registry.Online && other.Running*w.Slots < w.Running*other.Slots {
						t.Fatalf("%s has less to do than %s", other.Name, w.Name)
					}
				}
				before := w.Running
				r.Occupy(w.ID, 1)
				if w.Running != before {
					t.Fatal("what was handed out has changed")
				}
			},
			"": func(t *rapid.T) {
				seen := map[string]bool{}
				for _, w := range r.All() {
					if seen[w.Name] {
						t.Fatalf("two workers are named %s", w.Name)
					}
					seen[w.Name] = true
					byName, err := r.Find(w.Name)
					byID, ok := r.Get(w.ID)
					if err != nil || !ok || byName.ID != byID.ID {
						t.Fatalf("%s is not found as itself", w.Name)
					}
				}
			},
		})
	})
}

// TestAFullDiskTakesNoJob until its worker says that there is room again.
func TestAFullDiskTakesNoJob(t *testing.T) {
	t.Parallel()
	r := registry.New(lease)
	w, err := r.Register(at(0), worker("w1", 2), id(7))
	if err != nil {
		t.Fatal(err)
	}
	r.SetCommanded(w.ID, true)
	spec := &job.Spec{Command: "true"}
	for _, c := range []struct {
		conditions []job.Condition
		reason     string
	}{{nil, ""}, {[]job.Condition{{Type: "DISK_LOW"}, {Type: "DISK_FULL"}}, job.ReasonDiskFull}, {[]job.Condition{{Type: "DISK_LOW"}}, ""}} {
		if _, _, err := r.Heartbeat(at(1), w.ID, false, 0, c.conditions); err != nil {
			t.Fatal(err)
		}
		if _, reason := r.Place(spec, job.WorkerID{}); reason != c.reason {
			t.Errorf("%v: %q, want %q", c.conditions, reason, c.reason)
		}
		if c.reason != "" && !strings.Contains(registry.Explain(c.reason, spec), "disk") {
			t.Errorf("explained as %q", registry.Explain(c.reason, spec))
		}
	}
}
