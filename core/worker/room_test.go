package worker

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/droverhq/drover/core/job"
)

// noRoom keeps output of processes that are gone in the pipes.
func noRoom(w *world, why string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.full = why
}

// TestP8_NoRoom_TheAttemptStaysAndSaysWhy: a mover that waits is no writer. The end is
// told when its size and sum are known.
func TestP8_NoRoom_TheAttemptStaysAndSaysWhy(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		noRoom(b.w, job.ReasonQuota)
		b.start(order(1, "run=1s", "code=3"))
		time.Sleep(5 * time.Minute)
		r := b.wait(1, job.Running)
		if r.Reason != job.ReasonQuota || !strings.Contains(r.Message, "waits for room") {
			t.Errorf("it says %q, %q", r.Reason, r.Message)
		}
		b.w.room()
		r = b.wait(1, job.Failed)
		if r.Stdout.SHA256 != "out" || r.Reason != job.ReasonExitCode || r.StopProof != nil {
			t.Errorf("%+v", r)
		}
		b.clean()
	})
}

// TestP8_NoRoom_DetachedChildren_AreNotTakenForWriters: they hold nothing.
func TestP8_NoRoom_DetachedChildren_AreNotTakenForWriters(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		noRoom(b.w, job.ReasonDiskFull)
		o := order(1, "run=1s", "mute-kid=10m")
		o.Spec.DetachChildren = true
		b.start(o)
		time.Sleep(5 * time.Minute)
		if r := b.wait(1, job.Running); r.Reason != job.ReasonDiskFull {
			t.Errorf("it says %q, %q", r.Reason, r.Message)
		}
		b.w.room()
		if r := b.wait(1, job.Succeeded); r.Stdout.SHA256 != "out" {
			t.Errorf("%+v", r)
		}
		time.Sleep(10 * time.Minute)
		b.clean()
	})
}

// TestP8_NoRoom_AStopEndsIt: what no room is found for is given up, and declared.
func TestP8_NoRoom_AStopEndsIt(t *testing.T) {
	for name, c := range map[string]struct {
		args  []string
		wait  time.Duration // before the stop
		state job.State
	}{
		"while it runs":     {[]string{"write=1s"}, time.Minute, job.Stopped},
		"when it has ended": {[]string{"run=1s"}, time.Minute, job.Succeeded},
	} {
		t.Run(name, func(t *testing.T) {
			story(t, func(t *testing.T, b *bench) {
				noRoom(b.w, job.ReasonDiskFull)
				b.start(order(1, c.args...))
				time.Sleep(c.wait)
				began := time.Now()
				r, err := b.Stop(t.Context(), stopOrder(1, 0), true)
				if err != nil || r.State != c.state {
					t.Fatalf("%+v, %v", r, err)
				}
				if took := time.Since(began); took > 2*sealPatience {
					t.Errorf("the stop took %s", took)
				}
				if !b.w.outputs[testKey(1)].given {
					t.Error("nothing was given up")
				}
				b.clean()
			})
		})
	}
}

// TestP8_RemovedWhileHeld_IsDiscarded_OverARestart: a removal waits for nobody.
func TestP8_RemovedWhileHeld_IsDiscarded_OverARestart(t *testing.T) {
	lives(t, func(t *testing.T, w *world, next func(...option) *bench) {
		b := next()
		p := b.connect(1)
		o := order(1, "run=1s", "kid=1h")
		o.Spec.DetachChildren = true
		b.start(o)
		b.wait(1, job.Succeeded)
		p.down <- Down{Forgets: []job.Key{testKey(1)}}
		synctest.Wait()
		output := func() *fakeIO {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.outputs[testKey(1)]
		}
		discarded := func() bool {
			x := output()
			w.mu.Lock()
			defer w.mu.Unlock()
			return x != nil && x.discarded
		}
		if !discarded() {
			t.Fatal("its bytes are kept")
		}
		p.close(t)
		b.crash()
		w.mu.Lock()
		w.outputs[testKey(1)].discarded = false
		w.mu.Unlock()
		b = next()
		synctest.Wait()
		if !discarded() {
			t.Error("its bytes are kept after a restart")
		}
		time.Sleep(2 * time.Hour)
		if output() != nil {
			t.Error("its output is left at the end of its children")
		}
		b.crash()
	})
}
