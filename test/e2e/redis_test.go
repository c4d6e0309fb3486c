package e2e_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/droverhq/drover/core/store/redis/redistest"
	"github.com/droverhq/drover/test/cluster"
)

// TestTheRecordsAreInRedis: P1, P7, P15. A kill of Redis, of the scheduler, or
// of both costs no job and no record, and the records move to a folder.
func TestTheRecordsAreInRedis(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	store := []string{"--store", server.URL("patience=5m")}
	c := cluster.New(t, bin, store...)
	c.Worker("w1", c.Scripts(c.Path("worker", "scripts"), scripts()))
	want(t, c.Run("run", "ok.sh"), 0, "out\n", "err\n")
	ended := c.Must("run", "-d", "seven.sh")
	if r := c.Run("wait", ended); r.Code != 7 {
		t.Errorf("%+v", r)
	}
	running := c.Must("run", "-d", "sleep.sh")
	c.Eventually("the job runs", func() bool { return status(t, c, running).State == "RUNNING" })

	server.Kill()
	waiting := make(chan cluster.Result)
	go func() { waiting <- c.Run("run", "ok.sh") }()
	c.Eventually("the operator is told", func() bool {
		return strings.Contains(c.Scheduler.LogText(), "the store cannot be reached")
	})
	server.Up(t)
	want(t, <-waiting, 0, "out\n", "err\n")

	c.Scheduler.Kill()
	server.Kill()
	server.Up(t)
	c.StartScheduler(c.Address, store...)
	c.Eventually("the job is back", func() bool { r := status(t, c, running); return r.Reachable && r.State == "RUNNING" })
	if s := status(t, c, ended).State; s != "FAILED" {
		t.Errorf("the job that had ended is %s", s)
	}

	c.Scheduler.Terminate()
	c.Must("store", "copy", server.URL(), c.Path("folder"))
	if err := os.RemoveAll(c.Path("scheduler")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(c.Path("folder"), c.Path("scheduler")); err != nil {
		t.Fatal(err)
	}
	c.StartScheduler(c.Address)
	c.Eventually("the job is back", func() bool { r := status(t, c, running); return r.Reachable && r.State == "RUNNING" })
	if s := status(t, c, ended).State; s != "FAILED" {
		t.Errorf("in the folder the job that had ended is %s", s)
	}
	c.Must("stop", running)
}

// TestASchedulerThatWasReplacedEnds: P3. Two use the same records: the older one
// writes nothing any more and says why.
func TestASchedulerThatWasReplacedEnds(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	c := cluster.New(t, bin, "--store", server.URL())
	c.Worker("w1", c.Scripts(c.Path("worker", "scripts"), scripts()))
	second := c.Command(context.Background(), "scheduler", "--listen", "127.0.0.1:0", "--data", c.Path("second"),
		"--certs", c.Path("certs", "scheduler"), "--store", server.URL())
	if err := second.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = second.Process.Kill() // fails when it has ended by itself
		_ = second.Wait()         // tells of the signal
	}()
	c.Eventually("the second one is up", func() bool {
		_, err := os.Stat(filepath.Join(c.Path("second"), "address"))
		return err == nil
	})
	if r := c.RunUntil("trying again", "run", "-d", "ok.sh"); r.Code == 0 || r.Stdout != "" {
		t.Errorf("the older one accepted %s", r.Stdout)
	}
	c.Eventually("the older one ends", func() bool {
		return !c.Scheduler.Alive() && strings.Contains(c.Scheduler.LogText(), "another writer has taken over the store") &&
			strings.Contains(c.Scheduler.LogText(), "a newer scheduler uses these records")
	})
	if err := second.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	c.StartScheduler(c.Address, "--store", server.URL())
	c.AwaitReady("w1")
	want(t, c.Run("run", "ok.sh"), 0, "out\n", "err\n")
}
