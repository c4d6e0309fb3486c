package worker

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/journal"
)

// lives runs f with a function that begins the worker's next life.
func lives(t *testing.T, f func(t *testing.T, w *world, next func(...option) *bench)) {
	t.Helper()
	t.Parallel()
	data := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		f(t, w, func(opts ...option) *bench { return begin(t, w, data, opts...) })
	})
}

func TestP7RunningJobsOutliveTheWorker(t *testing.T) {
	lives(t, func(t *testing.T, w *world, next func(...option) *bench) {
		b := next()
		b.start(order(1, "run=10s"))
		b.start(order(2, "run=3s", "code=7"))
		before := b.wait(1, job.Running)
		b.wait(2, job.Running)
		b.crash()
		time.Sleep(5 * time.Second)

		b = next()
		if r := b.wait(2, job.Failed); *r.ExitCode != 7 || r.Evidence != job.ExitJournal {
			t.Errorf("exit while away: %+v", r)
		}
		r := b.wait(1, job.Running)
		if r.PID != before.PID || r.Sequence <= before.Sequence {
			t.Errorf("adopted: %+v, before %+v", r, before)
		}
		if r := b.start(order(1, "run=10s")); r.State != job.Running {
			t.Errorf("P2: duplicate after a restart: %+v", r)
		}
		b.wait(1, job.Succeeded)
		b.clean()
		for id, n := range w.starts {
			if n != 1 {
				t.Errorf("%s was started %d times", id, n)
			}
		}
		if !w.outputs[testKey(1)].resumed {
			t.Error("output was not resumed")
		}
		b.crash()
	})
}

func TestP14TimeoutsGoOnOverARestart(t *testing.T) {
	lives(t, func(t *testing.T, _ *world, next func(...option) *bench) {
		b := next()
		o := order(1)
		o.Spec.Timeout = 10 * time.Second
		b.start(o)
		b.wait(1, job.Running)
		began := time.Now()
		b.crash()
		time.Sleep(6 * time.Second)
		b = next()
		b.wait(1, job.Failed)
		if took := time.Since(began).Round(time.Second); took != 10*time.Second {
			t.Errorf("timeout after %s", took)
		}
		b.clean()
		b.crash()
	})
}

func TestP9AStopGoesOnOverARestart(t *testing.T) {
	lives(t, func(t *testing.T, _ *world, next func(...option) *bench) {
		b := next()
		b.start(order(1, "deaf"))
		b.wait(1, job.Running)
		if _, err := b.Stop(t.Context(), stopOrder(1, 5*time.Second), false); err != nil {
			t.Fatal(err)
		}
		b.crash()
		b = next()
		if r := b.wait(1, job.Stopped); r.StopProof.Killed != 1 {
			t.Errorf("%+v", r.StopProof)
		}
		b.clean()
		b.crash()
	})
}

func TestP4ARebootLosesWhatRan(t *testing.T) {
	lives(t, func(t *testing.T, w *world, next func(...option) *bench) {
		b := next()
		b.start(order(1))
		b.wait(1, job.Running)
		b.start(order(2, "run=1s"))
		b.wait(2, job.Succeeded)
		b.crash()
		w.mu.Lock()
		w.procs, w.groups, w.pins = map[string]*proc{}, map[string]bool{}, 0
		w.mu.Unlock()
		b = next(func(c *Config) { c.BootID = "boot-2" })
		r := b.wait(1, job.Lost)
		if r.Reason != job.ReasonReboot || r.ExitCode != nil || r.Evidence != job.NoEvidence {
			t.Errorf("P6: %+v", r)
		}
		if len(w.resumed) != 0 {
			t.Errorf("plugins were asked for %v", w.resumed)
		}
		b.wait(2, job.Succeeded)
		b.clean()
		b.crash()
	})
}

func TestP4GoneWithoutAWordIsLostOnlyWhenNothingIsLeft(t *testing.T) {
	lives(t, func(t *testing.T, w *world, next func(...option) *bench) {
		b := next()
		b.start(order(1))
		b.wait(1, job.Running)
		b.crash()
		w.mu.Lock()
		w.amnesia = true // worker and plugin died together, yet the process lives
		w.procs[attemptID(testKey(1))].hidden = true
		w.mu.Unlock()
		b = next()
		r := b.wait(1, job.Lost)
		if r.Reason != job.ReasonNoProcess || r.ExitCode != nil {
			t.Errorf("%+v", r)
		}
		if w.procs[attemptID(testKey(1))].main {
			t.Error("LOST, and its process lives")
		}
		b.crash()
	})
}

func TestP7AStartThatNeverReachedItsPluginIsSentAgain(t *testing.T) {
	lives(t, func(t *testing.T, w *world, next func(...option) *bench) {
		uploads := func(c *Config) { c.Policy.Uploads = true }
		b := next(uploads)
		w.deafness = true
		o := order(1, "run=1s")
		o.Spec.Stdin = []byte("x")
		o.Spec.Secrets = map[string][]byte{"s": nil}
		b.start(o)
		b.start(order(2, "run=1s"))
		if _, err := b.Stop(t.Context(), stopOrder(2, 0), false); err != nil {
			t.Fatal(err)
		}
		gone := order(3, "run=1s")
		gone.Spec.Workdir = t.TempDir()
		b.start(gone)
		sent := order(4, "run=1s")
		sent.Spec.Path, sent.Spec.Upload = "local.sh", []byte("echo local\n")
		b.start(sent)
		b.crash()
		if err := os.RemoveAll(gone.Spec.Workdir); err != nil {
			t.Fatal(err)
		}
		w.deafness = false
		w.early = true // plugins are found after the attempts are taken over
		b = next(uploads)
		// Its output has not ended because nobody held the lanes yet.
		if r := b.wait(1, job.Succeeded); r.Message != "" {
			t.Errorf("%+v", r)
		}
		if r := b.wait(2, job.Stopped); r.StopProof.Method != neverStartedProof {
			t.Errorf("%+v", r.StopProof)
		}
		if r := b.wait(3, job.Failed); r.Reason != job.ReasonSpawn {
			t.Errorf("%+v", r)
		}
		b.wait(4, job.Succeeded)
		for _, n := range []byte{1, 4} {
			is := func(l Launch) bool { return l.ID == attemptID(testKey(n)) }
			first := w.launched[slices.IndexFunc(w.launched, is)]
			again := w.launched[4+slices.IndexFunc(w.launched[4:], is)]
			if diff := cmp.Diff(first, again); diff != "" {
				t.Errorf("the second launch differs:\n%s", diff)
			}
		}
		b.clean()
		b.crash()
	})
}

func TestTombstonesAndResultsSurvive(t *testing.T) {
	lives(t, func(t *testing.T, _ *world, next func(...option) *bench) {
		b := next()
		if _, err := b.Stop(t.Context(), stopOrder(1, 0), false); err != nil {
			t.Fatal(err)
		}
		o := order(2)
		o.Spec.Path = "gone.sh"
		b.start(o)
		b.wait(2, job.Rejected)
		b.crash()
		b = next()
		p := b.connect(1)
		synctest.Wait()
		if p.state(1) != job.Stopped || p.state(2) != job.Rejected {
			t.Errorf("states %s %s", p.state(1), p.state(2))
		}
		p.close(t)
		if r := b.start(order(1)); r.State != job.Rejected || r.Reason != job.ReasonTombstone {
			t.Errorf("P2: late start over a restart: %+v", r)
		}
		b.crash()
	})
}

func TestP3FencesSurvive(t *testing.T) {
	lives(t, func(t *testing.T, _ *world, next func(...option) *bench) {
		b := next()
		p := b.connect(7)
		synctest.Wait()
		p.close(t)
		b.crash()
		b = next()
		if _, err := b.Start(t.Context(), order(1)); errs.ReasonOf(err) != job.ReasonFenced {
			t.Errorf("order of term 1 after a session of term 7: %v", err)
		}
		b.crash()
	})
}

func TestDetachedChildrenAreWatchedOverARestart(t *testing.T) {
	lives(t, func(t *testing.T, _ *world, next func(...option) *bench) {
		b := next()
		o := order(1, "run=1s", "kid=1m")
		o.Spec.DetachChildren = true
		b.start(o)
		b.wait(1, job.Succeeded)
		b.crash()
		b = next()
		if r := b.wait(1, job.Succeeded); r.Stdout.SHA256 != "" {
			t.Errorf("%+v", r)
		}
		time.Sleep(2 * time.Minute)
		if r := b.wait(1, job.Succeeded); r.Stdout.SHA256 != "out" {
			t.Errorf("%+v", r)
		}
		b.clean()
		b.crash()
	})
}

func TestCrashInTheLinger(t *testing.T) {
	lives(t, func(t *testing.T, _ *world, next func(...option) *bench) {
		b := next()
		o := order(1, "run=1s", "code=5", "kid=1h")
		o.Spec.Linger = 10 * time.Second
		b.start(o)
		b.wait(1, job.Running)
		time.Sleep(3 * time.Second)
		b.crash()
		b = next()
		if r := b.wait(1, job.Failed); *r.ExitCode != 5 || r.Evidence != job.Wait {
			t.Errorf("%+v", r)
		}
		b.clean()
		b.crash()
	})
}

func TestLeftOversOfACrashBeforeTheIntentAreSwept(t *testing.T) {
	lives(t, func(t *testing.T, w *world, next func(...option) *bench) {
		b := next()
		b.start(order(1, "run=1s"))
		b.wait(1, job.Succeeded)
		b.crash()
		stray := filepath.Join(b.data, "attempts", attemptID(testKey(9)))
		if err := os.MkdirAll(stray, 0o700); err != nil {
			t.Fatal(err)
		}
		w.outputs[testKey(9)] = &fakeIO{drained: make(chan struct{})}
		b = next()
		b.wait(1, job.Succeeded)
		if _, err := os.Stat(stray); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("attempt folder is left: %v", err)
		}
		if _, left := w.outputs[testKey(9)]; left {
			t.Error("stray output is left")
		}
		b.crash()
	})
}

// flaky is a journal on a disk that is sometimes full.
type flaky struct {
	Recorder
	mu   sync.Mutex
	full bool
}

func (f *flaky) Append(rs ...journal.Record) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.full {
		return errs.E("append", errs.Exhausted, journal.ReasonWrite, errors.New("no space left on device"))
	}
	return f.Recorder.Append(rs...)
}

func TestP2NothingHappensBeforeItIsOnDisk(t *testing.T) {
	var f *flaky
	story(t, func(t *testing.T, b *bench) {
		<-b.ready
		f.mu.Lock()
		f.full = true
		f.mu.Unlock()
		answered := make(chan error, 1)
		go func() {
			_, err := b.Start(t.Context(), order(1, "run=1s"))
			answered <- err
		}()
		time.Sleep(time.Minute)
		b.w.mu.Lock()
		launched := len(b.w.launched)
		b.w.mu.Unlock()
		if launched != 0 || len(answered) != 0 {
			t.Error("started or answered without an intent on disk")
		}
		if cs := b.Conditions(); len(cs) != 2 || cs[1].Type != journal.ReasonWrite {
			t.Errorf("conditions %+v", cs)
		}
		f.mu.Lock()
		f.full = false
		f.mu.Unlock()
		if err := <-answered; err != nil {
			t.Error(err)
		}
		b.wait(1, job.Succeeded)
		if cs := b.Conditions(); len(cs) != 1 {
			t.Errorf("conditions %+v", cs)
		}
		b.clean()
	}, func(c *Config) {
		f = &flaky{Recorder: c.Journal}
		c.Journal = f
	})
}

func TestADataFolderBelongsToOneWorker(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "worker.json")
	x, err := openIdentity(file, "w1", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := x.get(); ok {
		t.Error("an id before the first registration")
	}
	if err := x.set(testWorkerID()); err != nil {
		t.Fatal(err)
	}
	x, err = openIdentity(file, "w1", slog.New(slog.DiscardHandler))
	if id, ok := x.get(); err != nil || !ok || id != testWorkerID() {
		t.Errorf("%v %v %v", id, ok, err)
	}
	if _, err := openIdentity(file, "w2", slog.New(slog.DiscardHandler)); errs.ReasonOf(err) != "WORKER_RENAMED" {
		t.Errorf("another name: %v", err)
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	x, err = openIdentity(file, "w1", slog.New(slog.DiscardHandler))
	if id, ok := x.get(); err != nil || !ok || id != testWorkerID() {
		t.Errorf("from the second copy: %v %v %v", id, ok, err)
	}
	for _, f := range []string{file, file + ".copy"} {
		if err := os.WriteFile(f, []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := openIdentity(file, "w1", slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a broken file was accepted")
	}
}

func TestNewNeedsAFolder(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := New(Config{Name: "w", Data: file, Feed: NewFeed(), Log: slog.New(slog.DiscardHandler)})
	if errs.ReasonOf(err) != "DATA_FOLDER" {
		t.Errorf("%v", err)
	}
}
