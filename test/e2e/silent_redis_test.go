package e2e_test

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/droverhq/drover/core/store/redis/redistest"
	"github.com/droverhq/drover/test/cluster"
)

// TestARedisThatIsSilent: P16. It takes connections and answers nothing, for longer
// than the scheduler's patience. Who submits hears of it in bounded time, reads and
// jobs go on, and all is as before when it answers again.
func TestARedisThatIsSilent(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	c := cluster.New(t, bin, "--store", server.URL("timeout=1s", "patience=3s"))
	c.Worker("w1", c.Scripts(c.Path("worker", "scripts"), scripts()))
	running := c.Must("run", "-d", "sleep.sh")
	c.Eventually("the job runs", func() bool { return status(t, c, running).State == "RUNNING" })
	server.Signal(t, syscall.SIGSTOP)
	began := time.Now()
	r := c.Run("run", "-d", "ok.sh")
	if r.Code == 0 || time.Since(began) > time.Minute {
		t.Errorf("after %v: %+v", time.Since(began), r)
	}
	t.Logf("after %v: %s", time.Since(began), r.Stderr)
	c.Eventually("the operator is told", func() bool { return strings.Contains(c.Scheduler.LogText(), "the store cannot be reached") })
	if r := c.Run("logs", "--stdout", running); r.Code != 0 || r.Stdout != "sleeping\n" {
		t.Errorf("its output meanwhile: %+v", r)
	}
	server.Signal(t, syscall.SIGCONT)
	c.Eventually("it accepts again", func() bool { return c.Run("run", "ok.sh").Code == 0 })
	if s := status(t, c, running).State; s != "RUNNING" {
		t.Errorf("the job that ran is %s", s)
	}
	c.Must("stop", running)
}
