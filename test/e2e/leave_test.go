package e2e_test

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/droverhq/drover/test/cluster"
)

// TestP17_WorkerThatLeavesWithoutAFarewell_LeavesNothing: the scheduler is away, or does
// not let it in any more, or a plugin hangs. Its jobs and plugins end all the same.
func TestP17_WorkerThatLeavesWithoutAFarewell_LeavesNothing(t *testing.T) {
	t.Parallel()
	for name, trouble := range map[string]func(*cluster.Cluster, *cluster.Daemon){
		"no scheduler": func(c *cluster.Cluster, _ *cluster.Daemon) { c.Scheduler.Kill() },
		"revoked": func(c *cluster.Cluster, w *cluster.Daemon) {
			if _, err := c.CA.Revoke("worker/" + w.Name); err != nil {
				t.Fatal(err)
			}
			c.Eventually("the worker is refused", func() bool { return strings.Contains(c.Run("workers").Stdout, "OFFLINE") })
		},
		"frozen plugins": func(_ *cluster.Cluster, w *cluster.Daemon) {
			plugins := cluster.Processes(w.Data + "/plugins/bin/")
			if len(plugins) != 3 {
				t.Fatalf("plugins are %v", plugins)
			}
			for _, line := range plugins {
				pid, err := strconv.Atoi(strings.Fields(line)[0])
				if err == nil {
					err = syscall.Kill(pid, syscall.SIGSTOP)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := cluster.New(t, bin)
			w := c.Worker("w1", c.Scripts(c.Path("scripts"), scripts()))
			id := strings.TrimSpace(c.Must("run", "--detach", "sleep.sh"))
			c.Eventually("it sleeps", func() bool { return strings.Contains(c.Run("logs", id).Stdout, "sleeping") })
			trouble(c, w)
			w.Terminate()
			if left := cluster.Processes(w.Data); len(left) > 0 {
				t.Errorf("left over: %v\n%s", left, w.LogText())
			}
		})
	}
}

// hide starts twenty processes that look like nobody's, and one that forks and ends all
// the time; $1 is in the command line of each. stray takes off its tag, too.
const hide = `cd /
for i in {1..20}; do
	(setsid env -i /bin/bash -c 'setsid /bin/bash -c "exec -a \$0 sleep 1000 <&- >&- 2>&-" "$0" & disown; exit' "$1-$i" &)
done
hop='setsid env -i /bin/bash -c "$0" "$0" "$1" <&- >&- 2>&- & disown; exit'
(setsid env -i /bin/bash -c "$hop" "$hop" "$1-hop" &)
[ "$2" != stray ] || (ulimit -S -x unlimited; setsid env -i /bin/bash -c 'exec -a "$0" sleep 1000 <&- >&- 2>&-' "$1-stray" &)
[ "$2" != kill ] || kill -9 $PPID
echo ready
sleep 1000
`

// TestP9_StopWithoutCgroups_EndsWhatHides, and says how far that can be known. What hides
// on purpose ends with the worker at the latest.
func TestP9_StopWithoutCgroups_EndsWhatHides(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, bin)
	w := c.Worker("w1", c.Scripts(c.Path("scripts"), map[string]string{"hide.sh": hide}), "--cgroups", "none")
	c.Eventually("the worker says that it has no cgroups", func() bool {
		return strings.Contains(c.Must("workers", "show", "w1"), "NO_CGROUPS")
	})
	left := func(word string) []string { return cluster.Processes(word) }
	for _, how := range []string{"plain", "kill", "stray"} {
		word := "hidden-" + how + "-" + strconv.Itoa(os.Getpid())
		id := strings.TrimSpace(c.Must("run", "--detach", "hide.sh", word, how))
		c.Eventually("it is ready", func() bool { return strings.Contains(c.Run("logs", id).Stdout, "ready") })
		out := c.Must("stop", "--grace", "0s", id)
		if !strings.Contains(out, "as far as can be seen without cgroups") {
			t.Errorf("%s: %s", how, out)
		}
		want := 0
		if how == "stray" {
			want = 1
		}
		if now := left(word); len(now) != want {
			t.Errorf("%s: %d processes are left, want %d: %v", how, len(now), want, now)
		}
	}
	w.Terminate()
	if now := left("hidden-"); len(now) > 0 {
		t.Errorf("the worker has left, and behind it: %v", now)
	}
}
