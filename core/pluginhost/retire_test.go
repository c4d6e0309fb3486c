package pluginhost_test

import (
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/droverhq/drover/core/pluginhost"
)

// TestNewJobsGoToAProcessOfTheWorkersOwn: P7. A plugin that an earlier worker had
// started was killed in the middle of a start, and the job, which was no child of the
// worker, was LOST. Such a plugin keeps what it has and ends after the last; all else
// is for one whose parent is the worker.
func TestNewJobsGoToAProcessOfTheWorkersOwn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bash")
	w.awaitState("bash", "ready")
	open := w.gated("old", 42)
	e := w.await("start of old", func(e pluginhost.Event) bool { return e.ID == "old" && e.Started != nil })
	before := w.pluginPID("bash")
	m, err := pluginhost.Verify(w.dir, "bash")
	if err != nil {
		t.Fatal(err)
	}
	w.leave()
	w.open()
	if err := w.Resume(t.Context(), []pluginhost.Attempt{{
		ID: "old", Runner: pluginhost.Runner{Name: "bash", Version: m.Version, SHA256: m.SHA256},
		PID: int(e.Started.GetPid()), StartTicks: e.Started.GetStartTicks(),
	}}); err != nil {
		t.Fatal(err)
	}
	w.awaitState("bash", "ready")
	w.awaitState("bash", "draining")
	w.startScript("new", "exit $(( PPID == "+strconv.Itoa(before)+" ))")
	if e := w.awaitExit("new"); e.Exited.GetExitCode() != 0 || e.Exited == nil {
		t.Errorf("a new job is a child of the old plugin process: %+v", e)
	}
	w.Ack("new")
	open()
	if e := w.awaitExit("old"); e.Exited.GetExitCode() != 42 {
		t.Errorf("the job from before: %+v", e)
	}
	w.Ack("old")
	w.awaitRecords("only the new process", func(pids []int) bool { return len(pids) == 1 && pids[0] != before })
}

// TestAPluginThatDiesBeforeTheWorkerIsResumedKeepsItsJobs: its journal is read when
// it is known which attempts there are.
func TestAPluginThatDiesBeforeTheWorkerIsResumedKeepsItsJobs(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bash")
	w.awaitState("bash", "ready")
	w.startScript("a", "exit 3")
	w.awaitExit("a")
	before := w.pluginPID("bash")
	m, err := pluginhost.Verify(w.dir, "bash")
	if err != nil {
		t.Fatal(err)
	}
	w.leave()
	w.open()
	w.awaitState("bash", "draining") // it is attached
	if err := syscall.Kill(before, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.awaitState("bash", "ready") // its successor
	if err := w.Resume(t.Context(), []pluginhost.Attempt{
		{ID: "a", Runner: pluginhost.Runner{Name: "bash", Version: m.Version, SHA256: m.SHA256}},
	}); err != nil {
		t.Fatal(err)
	}
	if e := w.awaitExit("a"); e.Exited.GetExitCode() != 3 || e.Exited == nil {
		t.Errorf("what the dead plugin had noted: %+v", e)
	}
	w.Ack("a")
}

// awaitRecords waits until the processes that are on record are as they should be.
func (w *world) awaitRecords(what string, ok func(pids []int) bool) {
	w.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		var pids []int
		for _, r := range w.records() {
			pids = append(pids, r.PID)
		}
		slices.Sort(pids)
		if ok(pids) {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("%s: there are %v", what, pids)
		}
	}
}
