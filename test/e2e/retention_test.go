package e2e_test

import (
	"encoding/json"
	"errors"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/droverhq/drover/core/store/redis/redistest"
	"github.com/droverhq/drover/test/cluster"
)

// TestRecordsGoByAgeNumberAndOutcome: with each engine. What goes is gone for every
// question, its output too; failures stay longer, what runs stays, and a scheduler
// that is killed, or another one, goes on with it.
func TestRecordsGoByAgeNumberAndOutcome(t *testing.T) {
	t.Parallel()
	for name, engine := range map[string]func(t *testing.T) []string{
		"embedded": func(*testing.T) []string { return nil },
		"redis":    func(t *testing.T) []string { return []string{"--store", redistest.Start(t).URL()} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			recordsGo(t, append(engine(t), "--keep-jobs-for", "3s", "--keep-failed-for", "1h", "--keep-jobs", "2", "--keep-requests-for", "1s"))
		})
	}
}

func recordsGo(t *testing.T, flags []string) {
	c := cluster.New(t, bin, flags...)
	c.Worker("w1", c.Scripts(c.Path("worker", "scripts"), scripts()), "--slots", "8")
	running := c.Must("run", "-d", "sleep.sh")
	c.Eventually("it runs", func() bool { return status(t, c, running).State == "RUNNING" })
	good := c.Must("run", "-d", "ok.sh")
	c.Run("wait", good)
	gone := func(why, id string) {
		t.Helper()
		c.Eventually(why, func() bool { return c.Run("status", id).Code == 3 })
		if r := c.Run("logs", id); r.Code != 3 {
			t.Errorf("%s: logs answers %+v", why, r)
		}
		if list := c.Must("jobs", "-q"); strings.Contains(list, id) {
			t.Errorf("%s: it is listed:\n%s", why, list)
		}
	}
	gone("a success goes by its age", good)
	var bad []string
	for range 3 {
		id := c.Must("run", "-d", "seven.sh")
		c.Run("wait", id)
		bad = append(bad, id)
	}
	c.Scheduler.Kill()
	c.StartScheduler(c.Address, flags...)
	c.AwaitReady("w1")
	gone("the oldest of too many goes, after a kill too", bad[0])
	for _, id := range bad[1:] {
		if s := status(t, c, id).State; s != "FAILED" {
			t.Errorf("a failure that is kept is %s", s)
		}
	}
	if s := status(t, c, running).State; s != "RUNNING" {
		t.Errorf("what runs is %s", s)
	}
	c.Must("stop", running)
	want(t, c.Run("run", "ok.sh"), 0, "out\n", "err\n")
}

// TestOutputGoesByAgeAndNumber: the worker gives back what its flags say, logs says
// what is missing and why, and the record, sizes and sums stay, over a restart too.
func TestOutputGoesByAgeAndNumber(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, bin)
	w := c.Worker("w1", c.Scripts(c.Path("worker", "scripts"), map[string]string{
		"ok.sh": "echo out; echo err >&2\n", "bad.sh": "echo bad; exit 3\n", "long.sh": "echo begun; exec sleep 1000\n",
	}), "--keep-output-for", "4s", "--keep-outputs", "2")
	long := c.Must("run", "-d", "long.sh")
	good := c.Must("run", "-d", "ok.sh")
	gone := func(id, reason string) {
		t.Helper()
		c.Eventually("the output goes for "+reason, func() bool {
			r := c.Run("logs", "--stdout", id)
			return r.Code == 1 && r.Stdout == "" && strings.Contains(r.Stderr, "bytes 0 to 4 are missing: "+reason+" (its worker ")
		})
	}
	gone(good, "RETENTION_AGE")
	var bad []string
	for range 3 {
		bad = append(bad, c.Must("run", "-d", "bad.sh"))
	}
	gone(bad[0], "RETENTION_COUNT")
	w.Kill()
	w.Start()
	c.AwaitReady("w1")
	gone(good, "RETENTION_AGE")
	gone(bad[0], "RETENTION_COUNT")
	want(t, c.Run("logs", bad[1]), 0, "bad\n", "")
	want(t, c.Run("logs", bad[2]), 0, "bad\n", "")
	want(t, c.Run("logs", "--stdout", long), 0, "begun\n", "")
	for id, state := range map[string]string{good: "SUCCEEDED", bad[0]: "FAILED"} {
		var r struct {
			State  string
			Stdout struct {
				Size   int
				SHA256 string
			}
		}
		text := c.Must("status", id, "-o", "json")
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			t.Fatal(err, text)
		}
		if r.State != state || r.Stdout.Size != 4 || len(r.Stdout.SHA256) != 64 {
			t.Errorf("the record is %s", text)
		}
		c.Must("why", id)
	}
	c.Must("stop", long)
}

// TestOutputOfARemovedJob_WorkerIsAway_GoesWhenItIsBack: with each engine, also when the
// scheduler is killed meanwhile. The output stayed on its disk, and in its quota, for good.
func TestOutputOfARemovedJob_WorkerIsAway_GoesWhenItIsBack(t *testing.T) {
	t.Parallel()
	for name, engine := range map[string]func(t *testing.T) []string{
		"embedded": func(*testing.T) []string { return nil },
		"redis":    func(t *testing.T) []string { return []string{"--store", redistest.Start(t).URL()} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			removedWhileAway(t, engine(t))
		})
	}
}

func removedWhileAway(t *testing.T, flags []string) {
	const size = 64 << 20
	c := cluster.New(t, bin, flags...)
	w := c.Worker("w1", c.Scripts(c.Path("worker", "scripts"), map[string]string{"big.sh": "head -c \"$1\" /dev/zero\n"}), "--output-quota", "100")
	write := func(bytes int) string {
		t.Helper()
		id := c.Must("run", "-d", "--output-policy", "keep", "--timeout", "1m", "big.sh", strconv.Itoa(bytes))
		if r := c.Run("wait", id); r.Code != 0 {
			t.Fatalf("wait answers %+v", r)
		}
		return id
	}
	output := filepath.Join(w.Data, "output")
	big, small := write(size), write(5)
	if kept := diskUse(t, output); kept < size {
		t.Fatalf("the worker keeps %d bytes", kept)
	}
	w.Kill()
	c.Must("jobs", "rm", big)
	c.Scheduler.Kill()
	c.StartScheduler(c.Address, flags...)
	w.Start()
	c.AwaitReady("w1")
	c.Eventually("the output is gone from the disk", func() bool { return diskUse(t, output) < size/2 })
	write(size) // the quota has room for one
	want(t, c.Run("logs", small), 0, "\x00\x00\x00\x00\x00", "")
}

// diskUse is how many bytes the files below a folder take of the disk.
func diskUse(t *testing.T, dir string) (bytes int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil {
			var info fs.FileInfo
			if info, err = e.Info(); err == nil {
				bytes += info.Sys().(*syscall.Stat_t).Blocks * 512
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}
