package e2e_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/output"
	"github.com/droverhq/drover/test/cluster"
)

// TestP8_FullDiskAndQuota_UnderKills_LoseNothingInSilence: four endless writers at a full
// quota and on a full disk, of which some end by themselves and some are stopped, while a
// daemon is killed. Every record has the size and sum of what is read, or a gap is
// declared; and what was removed is free again. DROVER_LONG=1 does it 100 times.
func TestP8_FullDiskAndQuota_UnderKills_LoseNothingInSilence(t *testing.T) {
	t.Parallel()
	rounds := 4
	if os.Getenv("DROVER_LONG") != "" {
		rounds = 100
	}
	disk := smallDisk(t, "160m")
	c := cluster.New(t, bin)
	if err := os.Symlink(disk, c.Path("w1")); err != nil {
		t.Fatal(err)
	}
	w := c.Worker("w1", c.Scripts(c.Path("scripts"), map[string]string{
		"endless.sh": "exec seq 1 1000000000\n",
		"ends.sh":    "timeout -s KILL 2 seq 1 1000000000; exit 5\n",
	}), "--slots", "8", "--output-quota", "24")
	r := room{t: t, c: c, w: w, disk: disk}
	for i := range rounds {
		r.round(i)
		t.Logf("round %d: %d outputs whole, %d with a declared gap", i+1, r.whole, r.cut)
		if t.Failed() {
			t.Fatalf("round %d of %d; the worker says:\n%s", i+1, rounds, w.LogText())
		}
	}
}

// room is a worker with little of it.
type room struct {
	t          *testing.T
	c          *cluster.Cluster
	w          *cluster.Daemon
	disk       string
	whole, cut int
}

func (r *room) round(i int) {
	r.t.Helper()
	c := r.c
	c.AwaitReady("w1")
	ids := make([]string, 4)
	for n := range ids {
		script := "endless.sh"
		if n%2 == 1 {
			script = "ends.sh"
		}
		ids[n] = strings.TrimSpace(c.Must("run", "-d", "--output-policy", "keep", script))
	}
	free := func() {}
	why := job.ReasonQuota
	if i%2 == 1 { // before the quota is used up
		why = job.ReasonDiskFull
		free = fill(r.t, r.disk)
	}
	c.Eventually("the output waits for room", func() bool { return strings.Contains(c.Must("workers", "show", "w1"), why) })
	r.kill(i + i/4) // in eight rounds each at a full quota and on a full disk
	for n := 0; n < len(ids); n += 2 {
		c.Must("stop", "--grace", "0s", ids[n])
	}
	if why == job.ReasonDiskFull {
		// What is stopped ends without room; what ends by itself waits for it, and says so.
		for n := 0; n < len(ids); n += 2 {
			c.Eventually("a stopped job ends", func() bool { return status(r.t, c, ids[n]).State == "STOPPED" })
		}
		c.Eventually("a job that has ended waits", func() bool {
			s := status(r.t, c, ids[1])
			return s.Reason == why || s.State == "FAILED"
		})
		free()
	}
	for _, id := range ids {
		c.Eventually("it ends", func() bool {
			s := status(r.t, c, id).State
			return s == "FAILED" || s == "STOPPED" || s == "LOST"
		})
		r.compare(id)
	}
	c.Must(append([]string{"jobs", "rm"}, ids...)...)
	c.Eventually("the quota is free", func() bool { return r.held() < 1<<20 })
}

// kill ends a daemon, or two, and starts it again.
func (r *room) kill(n int) {
	r.t.Helper()
	killPlugin := func() {
		for _, pid := range plugins(r.c, r.w, "bash") {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
				r.t.Fatal(err)
			}
		}
	}
	switch n % 4 {
	case 0:
		r.w.Kill()
		r.w.Start()
	case 1:
		r.c.Scheduler.Kill()
		r.c.StartScheduler(r.c.Address)
	case 2:
		killPlugin()
	case 3:
		killPlugin()
		r.w.Kill()
		r.w.Start()
	}
	// On a full disk no plugin can be started, so that it is not ready for more.
	r.c.Eventually("the worker is back", func() bool { return strings.Contains(r.c.Run("workers").Stdout, "ONLINE") })
}

// compare reads the output of a job and looks into its record.
func (r *room) compare(id string) {
	r.t.Helper()
	var record struct {
		State, Reason  string
		Stdout, Stderr struct {
			Size   int
			SHA256 string
		}
	}
	if err := json.Unmarshal([]byte(r.c.Must("status", id, "-o", "json")), &record); err != nil {
		r.t.Fatal(err)
	}
	var out, errs bytes.Buffer
	cmd := r.c.Command(context.Background(), "logs", "--stdout", id)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	sum := sha256.Sum256(out.Bytes())
	what := fmt.Sprintf("%s, %s (%s): record %+v, %d bytes %x are read, %v %s",
		id, record.State, record.Reason, record.Stdout, out.Len(), sum, err, errs.String())
	switch {
	case record.Stdout.Size != out.Len():
		r.t.Errorf("another size: %s", what)
	case record.Stdout.SHA256 == hex.EncodeToString(sum[:]) && err == nil:
		r.whole++
	case record.Stdout.SHA256 == "" && strings.Contains(errs.String(), output.Unread):
		r.cut++
	default:
		r.t.Errorf("no gap is declared: %s", what)
	}
}

// held is how much output is on the worker's disk, in bytes.
func (r *room) held() (n int64) {
	r.t.Helper()
	names, err := filepath.Glob(filepath.Join(r.disk, "output", "segments", "*.seg"))
	if err != nil {
		r.t.Fatal(err)
	}
	for _, name := range names {
		if info, err := os.Stat(name); err == nil {
			n += info.Size()
		}
	}
	return n
}
