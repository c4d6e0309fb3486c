package e2e_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/test/cluster"
)

// smallDisk mounts a file system of its own. It must be called before the cluster
// is made, so that it is unmounted after that has ended.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root may mount a file system of its own")
	}
	dir := t.TempDir()
	if err := unix.Mount("drover-test", dir, "tmpfs", 0, "mode=0700,size="+size); err != nil {
		t.Skipf("no file system can be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill writes until nothing fits any more; free makes room again.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "ballast")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{1 << 20, 4 << 10} {
		block := bytes.Repeat([]byte{1}, size)
		for err = nil; err == nil; {
			_, err = f.Write(block)
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTheDiskOfTheSchedulerIsFull: P16. Submits are refused with the reason, jobs go
// on and end, what was acknowledged is there afterwards, and all works again.
func TestTheDiskOfTheSchedulerIsFull(t *testing.T) {
	t.Parallel()
	disk := smallDisk(t, "64m")
	c := cluster.New(t, bin)
	c.Scheduler.Terminate()
	if err := errors.Join(os.RemoveAll(c.Path("scheduler")), os.Symlink(disk, c.Path("scheduler"))); err != nil {
		t.Fatal(err)
	}
	c.StartScheduler(c.Address)
	c.Worker("w1", c.Scripts(c.Path("scripts"), map[string]string{"count.sh": counting, "ok.sh": "exit 0\n"}), "--slots", "8")
	j := startCounting(c, "a")
	before := c.Must("run", "-d", "ok.sh")
	c.Must("wait", before)
	free := fill(t, disk)
	r := c.RunUntil("trying again", "run", "-d", "ok.sh")
	if r.Code == 0 || !strings.Contains(r.Stderr, "are kept for jobs that were accepted") || !strings.Contains(r.Stderr, "hint: make room") {
		t.Errorf("a submit on a full disk: exit %d, %s", r.Code, r.Stderr)
	}
	// The job ends while there is no room for its result.
	if err := os.WriteFile(j.gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.Eventually("the script ends", func() bool { return !alive(j) })
	if !c.Scheduler.Alive() {
		t.Fatalf("the scheduler died:\n%s", c.Scheduler.LogText())
	}
	if got := status(t, c, before).State; got != "SUCCEEDED" {
		t.Errorf("the job before is %s", got)
	}
	free()
	j.finish()
	c.Eventually("submits are taken again", func() bool { return c.Run("run", "-d", "ok.sh").Code == 0 })
	c.Scheduler.Kill()
	c.StartScheduler(c.Address)
	c.AwaitReady("w1")
	if got := status(t, c, j.id); got.State != "FAILED" {
		t.Errorf("after a restart the job is %s", got.State)
	}
	if got := status(t, c, before).State; got != "SUCCEEDED" {
		t.Errorf("after a restart the job before is %s", got)
	}
	c.Must("run", "ok.sh")
}

// TestTheDiskOfAWorkerIsFull: P8. The condition is told, nothing new is started, stops
// and ends go through, no byte is lost, and all works again.
func TestTheDiskOfAWorkerIsFull(t *testing.T) {
	t.Parallel()
	disk := smallDisk(t, "128m")
	c := cluster.New(t, bin)
	if err := os.Symlink(disk, c.Path("w1")); err != nil {
		t.Fatal(err)
	}
	c.Worker("w1", c.Scripts(c.Path("scripts"), map[string]string{
		"count.sh": counting, "ok.sh": "exit 0\n", "quiet.sh": "until [ -e \"$1\" ]; do sleep 0.02; done; exit 7\n",
	}), "--slots", "8")
	j := startCounting(c, "a")
	quiet, victim := c.Must("run", "-d", "quiet.sh", c.Path("gate-quiet")), c.Must("run", "-d", "quiet.sh", "never")
	for _, id := range []string{quiet, victim} {
		c.Eventually("it runs", func() bool { return status(t, c, id).State == "RUNNING" })
	}
	if strings.Contains(c.Must("workers", "show", "w1"), "DISK_FULL") {
		t.Error("the disk is called full before it is")
	}
	free := fill(t, disk)
	c.Eventually("the condition is told", func() bool {
		text := c.Must("workers", "show", "w1")
		return strings.Contains(text, "DISK_FULL") && strings.Contains(text, "DISK_LOW")
	})
	waits := c.Must("run", "-d", "ok.sh")
	c.Eventually("a new job waits", func() bool { return strings.Contains(c.Must("why", waits), "DISK_FULL") })
	if why := c.Must("why", waits); !strings.Contains(why, "make room") || status(t, c, waits).State != "QUEUED" {
		t.Errorf("why a job waits for the disk:\n%s", why)
	}
	c.Must("stop", "--grace", "0s", victim)
	if err := os.WriteFile(c.Path("gate-quiet"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.Eventually("a job ends", func() bool { return status(t, c, quiet).State == "FAILED" })
	if r := c.Run("wait", quiet); r.Code != 7 {
		t.Errorf("it ended with %d: %s", r.Code, r.Stderr)
	}
	c.Eventually("a job is stopped", func() bool { return status(t, c, victim).State == "STOPPED" })
	free()
	c.Eventually("the waiting job runs", func() bool { return status(t, c, waits).State == "SUCCEEDED" })
	j.grows("it writes on")
	j.finish()
	c.Must("run", "ok.sh")
}
