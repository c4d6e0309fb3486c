package e2e_test

import (
	"bufio"
	"os"
	"strings"
	"testing"

	"github.com/droverhq/drover/test/cluster"
)

// TestAWatchTellsWhatEndedWhileTheSchedulerWasAway: it listed before it listened, and
// what ended in between stayed RUNNING as its last line.
func TestAWatchTellsWhatEndedWhileTheSchedulerWasAway(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, bin)
	gate, done := c.Path("gate"), c.Path("done")
	c.Worker("w1", c.Scripts(c.Path("scripts"), map[string]string{"gate.sh": "until [ -e \"$1\" ]; do sleep 0.05; done; touch \"$2\"\n"}))
	id := c.Must("run", "-d", "gate.sh", gate, done)
	for _, filter := range [][]string{nil, {"--state", "RUNNING"}} {
		watch := c.Command(t.Context(), append([]string{"jobs", "--watch"}, filter...)...)
		out, err := watch.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := watch.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = watch.Process.Kill(); _ = watch.Wait() })
		lines := bufio.NewScanner(out)
		until := func(state string) {
			t.Helper()
			for lines.Scan() {
				if strings.Contains(lines.Text(), id[len(id)-8:]) && strings.Contains(lines.Text(), state) {
					return
				}
			}
			t.Fatalf("the watch ends without %s", state)
		}
		until("RUNNING")
		defer until("SUCCEEDED")
	}
	c.Scheduler.Kill()
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.Eventually("the job ends", func() bool {
		_, err := os.Stat(done)
		return err == nil
	})
	c.StartScheduler(c.Address)
}
