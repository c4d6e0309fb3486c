package scheduler

import (
	"bytes"
	"context"
	"maps"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
	"github.com/droverhq/drover/core/store"
	"github.com/droverhq/drover/core/store/backup"
	"github.com/droverhq/drover/core/store/memory"
)

// P15, P7: every kind of job that a scheduler can leave behind, settled exactly
// by the next one.
func TestARestartSettlesEveryJob(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		p := w.join("w1", 5)
		runs, ends := w.run(args("run=1h")), w.run(args("run=20s", "code=9"))
		gone, stopped := w.run(args("run=1h")), w.run(args("run=1h"))
		for _, id := range []job.ID{runs, ends, gone, stopped} {
			w.wait(id, job.Running)
		}
		p.deaf(true)
		ordered := w.run(args("run=1h")) // the order does not arrive
		queued := w.run(args("run=1s"))
		time.Sleep(time.Second)
		p.cut()
		p.deaf(false)
		time.Sleep(time.Second)
		if a, b := w.job(ordered), w.job(queued); a.State != job.Dispatched || b.State != job.Queued || b.Reason != job.ReasonConnecting {
			t.Fatalf("%v and %v (%s)", a.State, b.State, b.Reason)
		}
		if _, err := w.s.StopJob(w.ctx, admin(), stopped.String(), nil, false); err != nil {
			t.Fatal(err)
		}
		before := w.s.Term()
		w.restart()
		if w.s.Term() <= before {
			t.Errorf("term %d after %d", w.s.Term(), before)
		}
		for id, s := range map[job.ID]job.State{
			runs: job.Running, ends: job.Running, gone: job.Running, stopped: job.Stopping, ordered: job.Dispatched, queued: job.Queued,
		} {
			if j := w.job(id); j.State != s || j.State.Live() == j.UnreachableSince.IsZero() {
				t.Errorf("after the restart %v, unreachable since %v, want %v", j.State, j.UnreachableSince, s)
			}
		}
		if got := w.worker("w1"); got.State != registry.Offline || got.Running != 5 {
			t.Errorf("the worker is %v with %d jobs", got.State, got.Running)
		}
		time.Sleep(time.Minute)
		p.mu.Lock()
		delete(p.attempts, job.Key{Job: gone, Attempt: 1}) // the worker has no record and no process of it
		p.mu.Unlock()
		p.heal()
		if j := w.wait(ends, job.Failed); *j.Result.ExitCode != 9 {
			t.Errorf("exit code %d", *j.Result.ExitCode)
		}
		w.wait(stopped, job.Stopped)
		if j := w.wait(gone, job.Lost); j.Reason != job.ReasonNoProcess {
			t.Errorf("lost for %s", j.Reason)
		}
		if j := w.wait(ordered, job.Running); j.Attempt != 1 {
			t.Errorf("attempt %d", j.Attempt)
		}
		w.wait(queued, job.Succeeded)
		if j := w.wait(runs, job.Running); !j.UnreachableSince.IsZero() {
			t.Errorf("unreachable since %v", j.UnreachableSince)
		}
		w.wait(runs, job.Succeeded)
		for _, id := range []job.ID{runs, ends, gone, stopped, ordered, queued} {
			if n := p.started(id); n != 1 {
				t.Errorf("a process was made %d times (P2)", n)
			}
		}
	})
}

func TestQueuedJobsOutliveManyRestarts(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		low := w.run(job.Spec{Command: "x", Args: []string{"run=1s"}})
		high := w.run(job.Spec{Command: "x", Args: []string{"run=1s"}, Priority: 5})
		for range 3 {
			w.restart()
		}
		p := w.join("w1", 1)
		w.wait(low, job.Running)
		if j := w.job(high); j.State != job.Succeeded {
			t.Errorf("the order of the queue is lost: %v", j.State)
		}
		w.wait(low, job.Succeeded)
		if p.started(low) != 1 || p.started(high) != 1 {
			t.Errorf("started %d and %d times", p.started(low), p.started(high))
		}
	})
}

func TestWhatASchedulerWillNotStartOn(t *testing.T) {
	t.Parallel()
	id := job.ID{1}
	for _, c := range []struct {
		name, key, value, want string
	}{
		{"half a term", string(store.TermKey()), "1234", "4 bytes instead of 8"},
		{"a worker that is no JSON", string(idKey(prefixWorker, id)), "{", "load worker 01"},
		{"a mark of a job that is not there", string(idKey(prefixLive, id)), "", "read job 01"},
		{"a job that is no JSON", string(idKey(prefixJob, id)), "{", "decode a job"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			st := memory.New()
			var b store.Batch
			b.Put([]byte(c.key), []byte(c.value))
			if c.key[0] == prefixJob {
				b.Put(idKey(prefixLive, id), nil)
			}
			if err := st.Apply(t.Context(), &b); err != nil {
				t.Fatal(err)
			}
			_, err := New(t.Context(), Config{Store: st})
			wantErr(t, err, errs.Internal, "STORE")
			if err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("it says %q, want %q", err, c.want)
			}
		})
	}
}

func TestARequestIDRecordThatIsBrokenIsNoOtherJob(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		var b store.Batch
		b.Put(requestRecord(requestKey("root", "r")), []byte("short"))
		if err := w.store.Apply(w.ctx, &b); err != nil {
			t.Fatal(err)
		}
		_, err := w.s.StartJob(w.ctx, admin(), plain(), "r")
		wantErr(t, err, errs.Internal, "STORE")
		w.wait(w.run(args()), job.Queued) // the loop goes on
	})
}

func TestABackupHoldsEveryRecordButInput(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		w.join("w1", 1)
		w.wait(w.run(args("run=1s")), job.Succeeded)
		w.run(job.Spec{Command: "x", Worker: "w1"})
		w.run(job.Spec{Command: "x", Labels: map[string]string{"zone": "later"}, Stdin: []byte("input"), Secrets: map[string][]byte{"k": []byte("secret")}})
		synctest.Wait()
		var file bytes.Buffer
		if err := w.s.Backup(w.ctx, admin(), &file); err != nil {
			t.Fatal(err)
		}
		copied := memory.New()
		if _, err := backup.Load(w.ctx, bytes.NewReader(file.Bytes()), copied); err != nil {
			t.Fatal(err)
		}
		want := everything(t, w.store)
		inputs := len(want)
		maps.DeleteFunc(want, func(key, _ string) bool { return isInput([]byte(key)) })
		if inputs -= len(want); inputs != 1 {
			t.Errorf("%d inputs are in the store", inputs)
		}
		if diff := cmp.Diff(want, everything(t, copied)); diff != "" {
			t.Errorf("the copy differs: %s", diff)
		}
		ctx, cancel := context.WithCancel(w.ctx)
		cancel()
		wantErr(t, w.s.Backup(ctx, admin(), &file), errs.Internal, "BACKUP")
	})
}

// everything is all pairs of a store.
func everything(t *testing.T, st store.Store) map[string]string {
	t.Helper()
	all := map[string]string{}
	for p, err := range st.Scan(context.Background(), store.Range{}) {
		if err != nil {
			t.Fatal(err)
		}
		all[string(p.Key)] = string(p.Value)
	}
	return all
}
