package pluginhost_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/droverhq/drover/core/pluginhost"
)

// damages are what a small file may have become when a worker begins.
func damages() map[string]func(path string, data []byte) error {
	return map[string]func(string, []byte) error{
		"empty":   func(p string, _ []byte) error { return os.WriteFile(p, nil, 0o600) },
		"half":    func(p string, d []byte) error { return os.WriteFile(p, d[:len(d)/2], 0o600) },
		"garbage": func(p string, d []byte) error { return os.WriteFile(p, bytes.Repeat([]byte{0xa5}, len(d)), 0o600) },
		"missing": func(p string, _ []byte) error { return os.Remove(p) },
		"folder": func(p string, _ []byte) error {
			if err := os.Remove(p); err != nil {
				return err
			}
			return os.MkdirAll(filepath.Join(p, "in it"), 0o700)
		},
	}
}

// abandoned is a host with one running job whose start its worker did not hear of, and
// which is gone; spoil says what became of files of the plugin's.
func abandoned(t *testing.T, spoil func(w *world)) (w *world, plugin, pid int) {
	t.Helper()
	// A short path: folders of plugin processes lie below it.
	root, err := os.MkdirTemp("", "d") //nolint:usetesting // that of the test is too long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	w = newWorldAt(t, root, patience, "bash")
	w.awaitState("bash", "ready")
	m, err := pluginhost.Verify(w.dir, "bash")
	if err != nil {
		t.Fatal(err)
	}
	w.startScript("running", "exec sleep 1000")
	pid, plugin = w.awaitStart("running"), w.pluginPID("bash")
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	w.leave()
	spoil(w)
	w.open()
	r := pluginhost.Runner{Name: "bash", Version: m.Version, SHA256: m.SHA256}
	if err := w.Resume(t.Context(), []pluginhost.Attempt{{ID: "running", Runner: r}}); err != nil {
		t.Fatal(err)
	}
	return w, plugin, pid
}

// spoilOne damages the file that a pattern below the state folder finds.
func spoilOne(t *testing.T, w *world, pattern string, damage func(string, []byte) error) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(w.state, pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %v, %v", pattern, found, err)
	}
	data, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := damage(found[0], data); err != nil {
		t.Fatal(err)
	}
}

// TestP2_PluginRecordDamaged_JobIsNotStartedAgain: the second copy takes its place, and
// where both are lost, the exit journal says what was started. A record that did not
// parse kept the worker from starting, and one that was missing made it start the job
// again beside the one that ran.
func TestP2_PluginRecordDamaged_JobIsNotStartedAgain(t *testing.T) {
	t.Parallel()
	for name, damage := range damages() {
		for _, files := range [][]string{{"plugins/*.json"}, {"plugins/*.json.copy"}, {"plugins/*.json", "plugins/*.json.copy"}} {
			both := len(files) == 2
			t.Run(name+" "+strings.Join(files, " "), func(t *testing.T) {
				t.Parallel()
				w, plugin, pid := abandoned(t, func(w *world) {
					for _, f := range files {
						spoilOne(t, w, f, damage)
					}
				})
				if got := w.awaitStart("running"); got != pid {
					t.Errorf("running is process %d, was %d", got, pid)
				}
				w.awaitState("bash", "ready")
				if alive := syscall.Kill(plugin, 0) == nil; alive == both {
					t.Errorf("the plugin process lives: %t", alive)
				}
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				if e := w.awaitExit("running"); e.Exited.GetSignal() != int32(syscall.SIGKILL) {
					t.Errorf("running: %+v", e)
				}
				w.Ack("running")
				w.awaitRecords("one process", func(pids []int) bool { return len(pids) == 1 })
			})
		}
	}
}

// TestP2_ExitJournalDamaged_StartIsNotMadeAgain: the plugin process is gone, and its
// journal does not tell any more what it began. A start that the worker knows nothing of
// was taken for one that never reached the plugin.
func TestP2_ExitJournalDamaged_StartIsNotMadeAgain(t *testing.T) {
	t.Parallel()
	for name, damage := range damages() {
		if name == "half" {
			continue // a record that is cut off is what a kill leaves
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, _, _ := abandoned(t, func(w *world) {
				if err := syscall.Kill(w.pluginPID("bash"), syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				spoilOne(t, w, "run/*/exits.journal", damage)
			})
			if e := w.awaitExit("running"); !e.Lost {
				t.Errorf("running: %+v", e)
			}
			w.Ack("running")
		})
	}
}
