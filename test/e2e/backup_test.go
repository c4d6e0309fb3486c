package e2e_test

import (
	"os"
	"strings"
	"testing"

	"github.com/droverhq/drover/test/cluster"
)

// swap puts a backup in the place of the scheduler's records.
func swap(c *cluster.Cluster, aside, file string, flags ...string) {
	c.T.Helper()
	c.Scheduler.Terminate()
	if err := os.Rename(c.Path("scheduler"), c.Path(aside)); err != nil {
		c.T.Fatal(err)
	}
	c.Must(append([]string{"scheduler", "restore", file, "--data", c.Path("scheduler")}, flags...)...)
	c.StartScheduler(c.Address)
}

// TestAnOldBackupCommandsNobody: P3. Workers know a newer term; the operator is
// told, and can put the copy in force on purpose.
func TestAnOldBackupCommandsNobody(t *testing.T) {
	t.Parallel()
	c := one(t)
	ended := c.Must("run", "-d", "ok.sh")
	c.Must("wait", ended)
	running := c.Must("run", "-d", "sleep.sh")
	c.Eventually("the job runs", func() bool { return status(t, c, running).State == "RUNNING" })
	file := c.Path("backup")
	c.Must("scheduler", "backup", file)
	want(t, c.Run("scheduler", "backup", file), 1, "", "is there already")
	want(t, c.RunAs(c.Issue("op", "operator"), "scheduler", "backup", file+"2"), 4, "", `operator "op" may not`)
	want(t, c.Run("scheduler", "restore", file, "--data", c.Path("scheduler")), 1, "", "is used by another scheduler")
	later := c.Must("run", "-d", "ok.sh")
	c.Must("wait", later)
	for range 2 { // terms 2 and 3; the backup's next life has 2
		c.Scheduler.Kill()
		c.StartScheduler(c.Address)
		c.AwaitReady("w1")
	}

	swap(c, "newest", file)
	c.Eventually("the operator is told", func() bool {
		return strings.Contains(c.Scheduler.LogText(), "these records are older than what the worker w1 was told")
	})
	if r := status(t, c, running); r.Reachable {
		t.Errorf("under a fenced scheduler the job is %+v", r)
	}

	swap(c, "refused", file, "--term", "9")
	c.Eventually("the job is back", func() bool { r := status(t, c, running); return r.Reachable && r.State == "RUNNING" })
	if s := status(t, c, ended).State; s != "SUCCEEDED" {
		t.Errorf("the job that had ended is %s", s)
	}
	c.Must("stop", running)
	want(t, c.Run("run", "ok.sh"), 0, "out\n", "err")
}

func TestADamagedBackupIsRefused(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, bin)
	file := c.Path("backup")
	c.Must("scheduler", "backup", file)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data[:len(data)-1], 0o600); err != nil {
		t.Fatal(err)
	}
	want(t, c.Run("scheduler", "restore", file, "--data", c.Path("new")), 2, "", "it breaks off")
	want(t, c.Run("scheduler", "restore", c.Path("none"), "--data", c.Path("new")), 3, "", "no such file")
}
