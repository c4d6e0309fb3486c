package pluginhost_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/pluginhost"
	"github.com/droverhq/drover/plugins/pidfd"
)

// fragile builds a version of the bash runner whose canary goes as mode says.
func fragile(t *testing.T, version, mode string) string {
	t.Helper()
	return buildPlugin(t, "./testdata/fragile", "-X main.version="+version+" -X main.mode="+mode)
}

func buildPlugin(t *testing.T, source, flags string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "drover-runner-bash")
	if out, err := exec.Command("go", "build", "-ldflags", "-s -w "+flags, "-o", file, source).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return file
}

// gated starts a job that ends with a code once open is called.
func (w *world) gated(id string, code int) (open func()) {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), "gate")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.startScript(id, fmt.Sprintf("read x < %s; exit %d", path, code))
	w.awaitStart(id)
	return func() {
		w.t.Helper()
		if err := os.WriteFile(path, []byte("x\n"), 0); err != nil {
			w.t.Fatal(err)
		}
	}
}

// awaitVersion waits until a version of bash is in a state.
func (w *world) awaitVersion(version, state string) job.RunnerInfo {
	w.t.Helper()
	deadline := time.After(patience)
	for {
		for _, r := range w.Runners() {
			if r.Name == "bash" && r.Version == version && r.State == state {
				return r
			}
		}
		select {
		case <-w.Changed():
		case <-time.After(50 * time.Millisecond):
		case <-deadline:
			w.t.Fatalf("bash %s is not %s: %+v", version, state, w.Runners())
		}
	}
}

// TestAFailedCanaryLeavesTheOldVersionInService: P11. The new version is shown
// with the reason and gets no job; the old one gets them, also when it dies.
func TestAFailedCanaryLeavesTheOldVersionInService(t *testing.T) {
	t.Parallel()
	for mode, why := range map[string]string{
		"exit":    `exit code 3 and said "no luck"`,
		"hang":    "did not end within",
		"die":     "the plugin ended the session",
		"missing": "NOT_FOUND",
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			w := newWorldWith(t, 10*time.Second, "bash")
			first := w.awaitState("bash", "ready")
			open := w.gated("old", 4)
			if _, err := pluginhost.Install(w.dir, fragile(t, "2.0.0", mode), ""); err != nil {
				t.Fatal(err)
			}
			bad := w.awaitVersion("2.0.0", "unhealthy")
			if !strings.Contains(bad.Message, why) || !strings.Contains(bad.Message, first.Version+" stays in service") {
				t.Errorf("the reason is %q, want %q", bad.Message, why)
			}
			said := false
			for _, c := range w.Conditions() {
				said = said || c.Type == "RUNNER_UNHEALTHY" && strings.Contains(c.Message, why) && !c.Since.IsZero()
			}
			if !said {
				t.Errorf("conditions %+v", w.Conditions())
			}
			if r, err := w.Lookup("bash"); err != nil || r.SHA256 != first.SHA256 {
				t.Fatalf("in service is %+v, %v", r, err)
			}
			if err := syscall.Kill(w.process(first.SHA256), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			w.startScript("new", "exit 6")
			if e := w.awaitExit("new"); e.Exited.GetExitCode() != 6 || !strings.HasSuffix(e.Plugin, first.SHA256) {
				t.Errorf("got %+v", e)
			}
			open()
			if e := w.awaitExit("old"); e.Exited.GetExitCode() != 4 {
				t.Errorf("got %+v", e)
			}
			w.Ack("old", "new")
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, e := range w.events {
				if e.ID != "old" && e.ID != "new" {
					t.Errorf("the canary left a trace: %+v", e)
				}
			}
		})
	}
}

// TestACanaryIsGivenUpWhenItsVersionIsNotNeeded: a worker that ends does not wait for it.
func TestACanaryIsGivenUpWhenItsVersionIsNotNeeded(t *testing.T) {
	t.Parallel()
	w := newWorldWith(t, time.Hour)
	if _, err := pluginhost.Install(w.dir, fragile(t, "2.0.0", "hang"), ""); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(patience); len(w.records()) == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no process of the plugin was started")
		}
	}
	w.shutdown()
}

// TestARunnerThatDeclaresNoCanaryIsTriedWithAnEmptyScript: whatever its interpreter
// thinks of it, and also when the runner refuses it.
func TestARunnerThatDeclaresNoCanaryIsTriedWithAnEmptyScript(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"undeclared", "picky"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "bash")
			w.awaitState("bash", "ready")
			if _, err := pluginhost.Install(w.dir, fragile(t, "2.0.0", mode), ""); err != nil {
				t.Fatal(err)
			}
			w.awaitVersion("2.0.0", "ready")
		})
	}
}

// TestABadFileLeavesTheOldVersionInService: a file that is refused, be it half of
// an installation, is no removal.
func TestABadFileLeavesTheOldVersionInService(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bash")
	first := w.awaitState("bash", "ready")
	file := filepath.Join(w.dir, "drover-runner-bash")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if bad := w.awaitState("bash", "refused"); !strings.Contains(bad.Message, "was changed") {
		t.Errorf("refused: %q", bad.Message)
	}
	w.startScript("a", "exit 6")
	if e := w.awaitExit("a"); e.Exited.GetExitCode() != 6 || !strings.HasSuffix(e.Plugin, first.SHA256) {
		t.Errorf("got %+v", e)
	}
	w.Ack("a")
}

// TestRollback: the version before comes back from what was kept, while a process
// of it still drains, and every job is found again by the next worker.
func TestRollback(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bash")
	first := w.awaitState("bash", "ready")
	if _, err := pluginhost.Install(w.dir, buildPlugin(t, "../../cmd/drover-runner-bash", "-X main.version=2.0.0"), ""); err != nil {
		t.Fatal(err)
	}
	open := map[string]func(){"one": w.gated("one", 4)}
	second := w.awaitVersion("2.0.0", "ready")
	w.awaitVersion(first.Version, "draining")
	open["two"] = w.gated("two", 4)
	if _, err := pluginhost.InstallKept(w.dir, "bash", "1.9.9", ""); errs.ReasonOf(err) != "PLUGIN_VERSION" {
		t.Errorf("a version that is not kept: %v", err)
	}
	back, err := pluginhost.InstallKept(w.dir, "bash", first.Version, "")
	if err != nil || back.SHA256 != first.SHA256 {
		t.Fatalf("rolled back to %+v, %v", back, err)
	}
	w.awaitVersion("2.0.0", "draining")
	w.awaitVersion(first.Version, "ready")
	open["three"] = w.gated("three", 4)
	if n := len(w.Runners()); n != 3 {
		t.Errorf("%d processes, want three: %+v", n, w.Runners())
	}
	runnerOf := map[string]job.RunnerInfo{"one": first, "two": second, "three": first}
	var held []pluginhost.Attempt
	for id, r := range runnerOf {
		e := w.await("start of "+id, func(e pluginhost.Event) bool { return e.ID == id && e.Started != nil })
		held = append(held, pluginhost.Attempt{ID: id, PID: int(e.Started.GetPid()), StartTicks: e.Started.GetStartTicks(), Runner: pluginhost.Runner{Name: "bash", Version: r.Version, SHA256: r.SHA256}})
	}
	w.leave()
	w.open()
	if err := w.Resume(t.Context(), held); err != nil {
		t.Fatal(err)
	}
	w.startScript("four", "exit 6")
	if e := w.awaitExit("four"); e.Exited.GetExitCode() != 6 || !strings.HasSuffix(e.Plugin, first.SHA256) {
		t.Errorf("four: %+v", e)
	}
	for id := range runnerOf {
		open[id]()
		if e := w.awaitExit(id); e.Exited.GetExitCode() != 4 || e.Evidence != job.Wait {
			t.Errorf("%s: %+v", id, e)
		}
		w.Ack(id)
	}
	w.Ack("four")
	for len(w.Runners()) > 1 { // each ends after its last job
		<-w.Changed()
	}
}

// TestAPluginThatKeepsDyingIsUnhealthy: it is started again with growing pauses,
// and is ready again once it works.
func TestAPluginThatKeepsDyingIsUnhealthy(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bash")
	r := w.awaitState("bash", "ready")
	dead := map[int]bool{}
	for end := time.Now().Add(patience); len(dead) < 3 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		for _, p := range w.records() {
			if !dead[p.PID] && p.SHA256 == r.SHA256 {
				dead[p.PID] = true
				if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if bad := w.awaitState("bash", "unhealthy"); !strings.Contains(bad.Message, "died 3 times") && !strings.Contains(bad.Message, "after many deaths") {
		t.Errorf("the reason is %q", bad.Message)
	}
	// What waits at a death is refused, with the reason; what comes after it waits
	// for the next life.
	id := "a"
	w.startScript(id, "exit 6")
	e := w.awaitExit(id)
	if refused := e.Exited.GetError(); refused != nil {
		if refused.GetReason() != "RUNNER_UNAVAILABLE" || !strings.Contains(refused.GetMessage(), "does not stay up") {
			t.Errorf("refused with %+v", refused)
		}
		id = "b"
		w.startScript(id, "exit 6")
		e = w.awaitExit(id)
	}
	if e.Exited.GetExitCode() != 6 || e.Exited.GetError() != nil {
		t.Errorf("got %+v", e)
	}
	w.awaitState("bash", "ready")
	w.Ack(id)
}

// TestAPluginWithoutARecordIsEnded: a worker was killed after it had started a plugin
// process and before it had written that down. The process was nobody's, and lived
// until it had been idle for long enough (P17).
func TestAPluginWithoutARecordIsEnded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bash")
	w.awaitState("bash", "ready")
	old := w.pluginPID("bash")
	w.close()
	files, err := filepath.Glob(filepath.Join(w.state, "plugins", "*"))
	if err != nil || len(files) != 2 { // a record is kept twice
		t.Fatalf("records %v, %v", files, err)
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	w.open()
	if err := w.Resume(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	w.awaitState("bash", "ready")
	if now := w.pluginPID("bash"); now == old {
		t.Fatal("it was attached")
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if st, err := pidfd.ReadStat(old); err != nil || st.State == 'Z' {
			break
		}
		if time.Now().After(end) {
			t.Fatal("it lives")
		}
	}
	if left, _ := filepath.Glob(filepath.Join(w.state, "run", "*")); len(left) != 1 {
		t.Errorf("folders of plugin processes: %v", left)
	}
}
