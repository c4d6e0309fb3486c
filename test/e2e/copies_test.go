package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/droverhq/drover/test/cluster"
)

// TestP3_OldCopyOfTheScheduler_StartsNothing: its records are copied in three ways, live on,
// are put back as they were, and are started less often, as often or more often than the
// newer ones. What ran does not run again, and the newer records are whole afterwards.
func TestP3_OldCopyOfTheScheduler_StartsNothing(t *testing.T) {
	t.Parallel()
	for _, way := range []string{"hot", "cold", "backup"} {
		for _, starts := range [][2]int{{1, 1}, {3, 1}, {1, 3}} {
			t.Run(fmt.Sprintf("%s, newer %d, older %d", way, starts[0], starts[1]), func(t *testing.T) {
				t.Parallel()
				oldCopy(t, way, starts[0], starts[1])
			})
		}
	}
}

func oldCopy(t *testing.T, way string, newer, older int) {
	t.Helper()
	c := cluster.New(t, bin)
	data, aside, saved := c.Path("scheduler"), c.Path("newer"), c.Path("saved")
	c.Worker("w1", c.Scripts(c.Path("scripts"), map[string]string{
		"count.sh": "echo ran >> \"$1\"; [ -z \"$2\" ] || exec sleep 1000\n", "ok.sh": "echo ok\n",
	}), "--slots", "1")
	files := []string{c.Path("f0")}
	ids := []string{c.Must("run", "-d", "count.sh", files[0], "hold")}
	c.Eventually("it runs", func() bool { return status(t, c, ids[0]).State == "RUNNING" })
	for i := range 4 {
		files = append(files, c.Path(fmt.Sprintf("f%d", i+1)))
		ids = append(ids, c.Must("run", "-d", "count.sh", files[i+1]))
	}
	cp := func(from, to string) {
		t.Helper()
		if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	switch way {
	case "hot":
		cp(data, saved)
	case "cold":
		c.Scheduler.Terminate()
		cp(data, saved)
		c.StartScheduler(c.Address)
	default:
		c.Must("scheduler", "backup", c.Path("file"))
	}
	for range newer {
		c.Scheduler.Kill()
		c.StartScheduler(c.Address)
	}
	c.AwaitReady("w1")
	c.Must("stop", "--grace", "0s", ids[0])
	for _, id := range ids[1:] {
		c.Must("wait", id)
	}
	c.Scheduler.Terminate()
	if err := os.Rename(data, aside); err != nil {
		t.Fatal(err)
	}
	if way == "backup" {
		c.Must("scheduler", "restore", c.Path("file"), "--data", data)
	} else {
		cp(saved, data)
	}
	for n := range older {
		if n > 0 {
			c.Scheduler.Kill()
		}
		c.StartScheduler(c.Address)
	}
	c.Eventually("the scheduler says that its records are old", func() bool {
		return strings.Contains(c.Scheduler.LogText(), "these records are older than what")
	})
	c.Eventually("submits are refused", func() bool {
		r := c.Run("run", "-d", "ok.sh")
		return r.Code != 0 && strings.Contains(r.Stderr, "these records are older than what ") && strings.Contains(r.Stderr, "drover store accept")
	})
	c.Scheduler.Kill()
	if err := os.Rename(data, c.Path("older")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(aside, data); err != nil {
		t.Fatal(err)
	}
	c.StartScheduler(c.Address)
	c.AwaitReady("w1")
	want(t, c.Run("run", "ok.sh"), 0, "ok\n", "")
	for i, f := range files {
		b, err := os.ReadFile(f)
		if err != nil || string(b) != "ran\n" {
			t.Errorf("job %d wrote %q, %v", i, b, err)
		}
	}
	for _, id := range ids[1:] {
		if s := status(t, c, id).State; s != "SUCCEEDED" {
			t.Errorf("job %s is %s", id, s)
		}
	}
}
