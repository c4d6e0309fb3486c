package e2e_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/droverhq/drover/plugins/failpoint"
	"github.com/droverhq/drover/test/cluster"
)

// counting writes numbered lines to both streams until a file appears, then
// tells how many and ends with code 42.
const counting = `i=0
until [ -e "$1" ]; do
  i=$((i+1)); echo "out $i"; echo "err $i" >&2
  [ $((i % 50)) = 0 ] && sleep 0.01
done
echo "last $i"; exit 42
`

// counted is a counting job that is told to end.
type counted struct {
	*cluster.Cluster
	id, gate string
}

func startCounting(c *cluster.Cluster, name string) *counted {
	c.T.Helper()
	j := &counted{Cluster: c, gate: c.Path("gate-" + name)}
	j.id = c.Must("run", "-d", "count.sh", j.gate)
	j.grows("it writes")
	return j
}

// grows waits for output that is not there yet.
func (j *counted) grows(what string) {
	j.T.Helper()
	before := len(j.Run("logs", "--stdout", j.id).Stdout)
	j.Eventually(what, func() bool { return len(j.Run("logs", "--stdout", j.id).Stdout) > before })
}

// finish ends the job and checks its code and every byte of its output.
func (j *counted) finish() {
	j.T.Helper()
	if err := os.WriteFile(j.gate, nil, 0o600); err != nil {
		j.T.Fatal(err)
	}
	j.Eventually("the job ends", func() bool {
		s := status(j.T, j.Cluster, j.id)
		return s.State != "RUNNING" && s.State != "UNREACHABLE"
	})
	r := j.Run("wait", j.id)
	if r.Code != 42 {
		j.T.Errorf("exit code %d (%s), the truth is 42: %s", r.Code, r.Stderr, j.Must("why", j.id))
	}
	lines := strings.Split(strings.TrimSuffix(j.Must("logs", "--stdout", j.id), "\n"), "\n")
	n, err := strconv.Atoi(strings.TrimPrefix(lines[len(lines)-1], "last "))
	if err != nil || n != len(lines)-1 {
		j.T.Fatalf("%d lines, the last is %q", len(lines), lines[len(lines)-1])
	}
	for i, line := range lines[:n] {
		if line != fmt.Sprintf("out %d", i+1) {
			j.T.Fatalf("line %d of stdout is %q", i+1, line)
		}
	}
	errLines := strings.Split(strings.TrimSuffix(j.Must("logs", "--stderr", j.id), "\n"), "\n")
	if len(errLines) != n || errLines[n-1] != fmt.Sprintf("err %d", n) {
		j.T.Errorf("%d lines of stderr, the last %q, want %d", len(errLines), errLines[len(errLines)-1], n)
	}
}

func faulty(t *testing.T, flags ...string) (*cluster.Cluster, *cluster.Daemon) {
	t.Helper()
	c := cluster.New(t, bin, flags...)
	return c, c.Worker("w1", c.Scripts(c.Path("scripts"), map[string]string{"count.sh": counting}))
}

// plugins are the pids of a worker's plugin processes of one runner.
func plugins(c *cluster.Cluster, w *cluster.Daemon, name string) []int {
	c.T.Helper()
	folder := filepath.Join(w.Data, "plugins", "plugins")
	files, err := os.ReadDir(folder)
	if err != nil {
		c.T.Fatal(err)
	}
	var out []int
	for _, f := range files {
		if filepath.Ext(f.Name()) != ".json" {
			continue
		}
		data, err := os.ReadFile(filepath.Join(folder, f.Name()))
		if err != nil || !strings.Contains(string(data), `"name":"`+name+`"`) && !strings.Contains(string(data), `"name": "`+name+`"`) {
			continue
		}
		_, rest, _ := strings.Cut(string(data), `"pid":`)
		digits := strings.TrimSpace(rest)
		end := strings.IndexFunc(digits, func(r rune) bool { return r < '0' || r > '9' })
		pid, err := strconv.Atoi(digits[:end])
		if err != nil {
			c.T.Fatal(err)
		}
		out = append(out, pid)
	}
	if len(out) == 0 {
		c.T.Fatalf("no process of the runner %s in %v", name, files)
	}
	return out
}

// TestAKilledWorkerLosesNothing: P7, P8, P11. Code and output are exact.
func TestAKilledWorkerLosesNothing(t *testing.T) {
	t.Parallel()
	c, w := faulty(t)
	j := startCounting(c, "a")
	for range 3 {
		w.Kill()
		w.Start()
		j.grows("it is read again")
	}
	j.finish()
}

// TestAJobThatEndsWhileItsWorkerIsDead: the plugin keeps the code, the pipe the bytes.
func TestAJobThatEndsWhileItsWorkerIsDead(t *testing.T) {
	t.Parallel()
	c, w := faulty(t)
	j := startCounting(c, "a")
	w.Kill()
	if err := os.WriteFile(j.gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.Eventually("the script ends", func() bool { return len(cluster.Processes("count.sh")) == 0 || !alive(j) })
	w.Start()
	j.finish()
}

// alive tells whether a process of the job exists.
func alive(j *counted) bool { return len(cluster.Processes(j.gate)) > 0 }

// TestAKilledPluginCostsNoJob: P7. The worker adopts the jobs.
func TestAKilledPluginCostsNoJob(t *testing.T) {
	t.Parallel()
	c, w := faulty(t)
	j := startCounting(c, "a")
	for _, pid := range plugins(c, w, "bash") {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	j.grows("it writes on")
	again := startCounting(c, "b") // on the restarted plugin
	j.finish()
	again.finish()
}

// TestAFrozenScheduler: stopped for longer than the lease, it comes back and
// nobody has lost anything.
func TestAFrozenScheduler(t *testing.T) {
	t.Parallel()
	c, _ := faulty(t, "--lease", "1s", "--heartbeat", "200ms")
	j := startCounting(c, "a")
	c.Scheduler.Signal(syscall.SIGSTOP)
	frozen := time.NewTimer(2500 * time.Millisecond) // the fault itself, not a synchronization
	<-frozen.C
	c.Scheduler.Signal(syscall.SIGCONT)
	j.grows("it is read again")
	j.finish()
}

// TestAFrozenWorker: its jobs are unreachable, and reachable again.
func TestAFrozenWorker(t *testing.T) {
	t.Parallel()
	c, w := faulty(t, "--lease", "1s", "--heartbeat", "200ms")
	j := startCounting(c, "a")
	w.Signal(syscall.SIGSTOP)
	c.Eventually("it is unreachable", func() bool { return !status(t, c, j.id).Reachable })
	w.Signal(syscall.SIGCONT)
	c.Eventually("it is reachable", func() bool { return status(t, c, j.id).Reachable })
	j.finish()
}

// TestPointsAreCompiledAway: an ordinary build knows nothing of the places at which
// test/failpoint kills.
func TestPointsAreCompiledAway(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"drover", "drover-runner-bash"} {
		program, err := os.ReadFile(filepath.Join(bin, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range []string{
			failpoint.Variable, string(failpoint.WorkerIntentAfter), string(failpoint.PluginForkBefore), string(failpoint.SchedulerCommitAfter),
		} {
			if bytes.Contains(program, []byte(word)) {
				t.Errorf("%s holds %q", name, word)
			}
		}
	}
}

// TestP5_DataFolderIsLost_WhatRanIsEndedBeforeTheRetry: a worker with a new data folder said
// that it had no process of an attempt, which ran on beside the next one.
func TestP5_DataFolderIsLost_WhatRanIsEndedBeforeTheRetry(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, bin, shortLease()...)
	w := c.Worker("w1", c.Scripts(c.Path("worker", "scripts"), map[string]string{
		"hold.sh": "echo begun >> \"$1\"; exec tail -f \"$1\"\n",
	}))
	if strings.Contains(c.Must("workers", "show", "w1"), "NO_CGROUPS") {
		t.Skip("needs cgroups")
	}
	file := c.Path("began")
	begun := func() int {
		b, _ := os.ReadFile(file)
		return strings.Count(string(b), "begun")
	}
	id := c.Must("run", "-d", "--retries", "1", "--retry-on", "lost", "hold.sh", file)
	c.Eventually("it runs", func() bool { return status(t, c, id).State == "RUNNING" && len(cluster.Processes(file)) == 1 })
	plugins := cluster.Processes(filepath.Join(w.Data, "plugins", "bin"))
	w.Kill()
	if err := os.Rename(w.Data, w.Data+".lost"); err != nil {
		t.Fatal(err)
	}
	w.Start()
	c.Eventually("it runs again", func() bool { return begun() == 2 })
	if all := cluster.Processes(file); len(all) > 1 {
		t.Errorf("at once there are %q", all)
	}
	c.Must("stop", id)
	for _, p := range plugins { // they wait for a worker of the lost folder
		pid, _, _ := strings.Cut(p, " ")
		if n, err := strconv.Atoi(pid); err == nil {
			_ = syscall.Kill(n, syscall.SIGKILL)
		}
	}
}
