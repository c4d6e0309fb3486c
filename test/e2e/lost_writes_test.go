package e2e_test

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	goredis "github.com/redis/go-redis/v9"
	grpccodes "google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/droverhq/drover/core/store/redis/redistest"
	"github.com/droverhq/drover/test/cluster"
)

// TestP3_OlderCopyOfRedisUnderAPair_NobodyGoesOn: both schedulers notice and say so,
// also when they are started again; nothing is started. An administrator accepts
// what is there, and the same workers work again: the way back of
// docs/operations.md.
func TestP3_OlderCopyOfRedisUnderAPair_NobodyGoesOn(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	flags := []string{"--standby", "--takeover", "2s", "--store", server.URL()}
	c := cluster.New(t, bin, flags...)
	first, address := c.Scheduler, c.Address
	c.Eventually("the first one is active", func() bool { return lives(first) == 1 })
	second, _ := c.Standby("second", flags...)
	c.Worker("w1", c.Scripts(c.Path("worker", "scripts"), scripts()))
	want(t, c.Run("run", "ok.sh"), 0, "out\n", "err\n")
	worker := c.Must("workers", "-o", "json")

	files, saved := filepath.Join(server.Dir, "appendonlydir"), c.Path("saved")
	if err := os.CopyFS(saved, os.DirFS(files)); err != nil {
		t.Fatal(err)
	}
	forgotten := ""
	for range 6 {
		forgotten = c.Must("run", "-d", "ok.sh")
		c.Must("wait", forgotten)
	}
	server.Kill()
	if err := errors.Join(os.RemoveAll(files), os.CopyFS(files, os.DirFS(saved))); err != nil {
		t.Fatal(err)
	}
	server.Up(t)

	const said = "the store does not hold any more what it had acknowledged"
	c.Eventually("both end and say why", func() bool {
		return !first.Alive() && !second.Alive() && strings.Contains(first.LogText(), said) && strings.Contains(second.LogText(), said)
	})
	if lives(second) > 0 {
		t.Error("the standby took over")
	}
	for range 2 {
		r := c.Run(append([]string{"scheduler", "--listen", "127.0.0.1:0", "--data", c.Path("scheduler"), "--certs", c.Path("certs", "scheduler")}, flags...)...)
		if r.Code == 0 || !strings.Contains(r.Stderr, said) || !strings.Contains(r.Stderr, "drover store accept") {
			t.Errorf("started again: %+v", r)
		}
	}

	c.Eventually("the copy's lease is over", func() bool { return c.Run("store", "accept", server.URL()).Code == 0 })
	c.StartScheduler(address, flags...)
	c.AwaitReady("w1")
	want(t, c.Run("run", "ok.sh"), 0, "out\n", "err\n")
	if now := c.Must("workers", "-o", "json"); field(worker, "worker_id") != field(now, "worker_id") {
		t.Errorf("the worker has another id: %s, before %s", now, worker)
	}
	if r := c.Run("status", forgotten); r.Code == 0 {
		t.Errorf("a job that was lost is there: %+v", r)
	}
}

// field is the first value of a name in JSON.
func field(text, name string) string {
	_, rest, _ := strings.Cut(text, `"`+name+`"`)
	value, _, _ := strings.Cut(rest, "\n")
	return value
}

// TestASecondClusterOnTheSameRecordsIsRefused: it has another CA. The first one does
// not notice.
func TestASecondClusterOnTheSameRecordsIsRefused(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	c, other := cluster.New(t, bin, "--store", server.URL()), cluster.New(t, bin)
	c.Worker("w1", c.Scripts(c.Path("worker", "scripts"), scripts()))
	for _, standby := range []string{"--standby=false", "--standby"} {
		r := other.Run("scheduler", "--listen", "127.0.0.1:0", "--data", other.Path("another"), "--certs", other.Path("certs", "scheduler"),
			"--store", server.URL(), standby)
		if r.Code == 0 || !strings.Contains(r.Stderr, "it holds the records of the cluster") || !strings.Contains(r.Stderr, "hint: give each cluster a prefix") {
			t.Errorf("%s: %+v", standby, r)
		}
	}
	want(t, c.Run("run", "ok.sh"), 0, "out\n", "err\n")
	if lives(c.Scheduler) != 1 || !c.Scheduler.Alive() {
		t.Error(c.Scheduler.LogText())
	}
}

// TestP16_RedisIsFull_SchedulerGoesOn: new jobs are refused with STORE_FULL while stops
// and ends have room; without any they wait, and all goes on when there is.
func TestP16_RedisIsFull_SchedulerGoesOn(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--maxmemory-policy", "noeviction")
	c := cluster.New(t, bin, "--store", server.URL("patience=2s"))
	c.Worker("w1", c.Scripts(c.Path("worker", "scripts"), scripts()))
	admin := goredis.NewClient(&goredis.Options{Network: "unix", Addr: server.Socket})
	defer admin.Close()
	limit := func(bytes int) {
		t.Helper()
		if err := admin.ConfigSet(t.Context(), "maxmemory", strconv.Itoa(bytes)).Err(); err != nil {
			t.Fatal(err)
		}
	}
	var jobs [2]string
	for i := range jobs {
		jobs[i] = c.Must("run", "-d", "sleep.sh")
		c.Eventually("the job runs", func() bool { return status(t, c, jobs[i]).State == "RUNNING" })
	}
	info, err := admin.Info(t.Context(), "memory").Result()
	if err != nil {
		t.Fatal(err)
	}
	var used int
	_, text, _ := strings.Cut(info, "\nused_memory:")
	if _, err := fmt.Sscan(text, &used); err != nil {
		t.Fatal(err)
	}
	limit(used + used/16) // less than the tenth that is kept
	// The commands of drover come again by themselves.
	client := clientOf(t, c, c.Path("certs", "admin"))
	refused := func(why string) bool {
		_, err := client.StartJob(t.Context(), request(rand.Text(), "nowhere"))
		return grpcstatus.Code(err) == grpccodes.ResourceExhausted && strings.Contains(err.Error(), why)
	}
	c.Eventually("new jobs are refused", func() bool { return refused("kept for jobs that were accepted") })
	c.Must("stop", jobs[0])
	limit(1 << 20)
	stopped := make(chan cluster.Result)
	go func() { stopped <- c.Run("stop", jobs[1]) }()
	c.Eventually("the operator is told", func() bool { return strings.Contains(c.Scheduler.LogText(), "the store takes no writes") })
	if !refused("Redis has refused writes") {
		t.Error("a new job is not refused")
	}
	if !c.Scheduler.Alive() {
		t.Fatal(c.Scheduler.LogText())
	}
	limit(0)
	if r := <-stopped; r.Code != 0 {
		t.Errorf("the stop: %+v", r)
	}
	c.Eventually("it accepts again", func() bool { return c.Run("run", "ok.sh").Code == 0 })
	if n := lives(c.Scheduler); n != 1 {
		t.Errorf("it was up %d times", n)
	}
}
