package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	grpccodes "google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/core/rpc"
	"github.com/droverhq/drover/core/store/redis/redistest"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
	"github.com/droverhq/drover/test/cluster"
)

// clientOf returns a client of the scheduler with an identity.
func clientOf(t *testing.T, c *cluster.Cluster, dir string) droverv1.SchedulerServiceClient {
	t.Helper()
	source, err := certs.NewSource(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := rpc.Dial(c.Address, source.ClientConfig(certs.RoleScheduler, ""))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return droverv1.NewSchedulerServiceClient(conn)
}

// heldMemory is the memory of a daemon that is no file of its disk, in bytes.
func heldMemory(t *testing.T, d *cluster.Daemon) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.PID()))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "RssAnon:")
	var kib int
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// queuedRoom is what a scheduler may grow by while 40 MiB of standard input more wait
// in its store: what is collected later. To hold them would take twice as much.
const queuedRoom = 48 << 20

// TestP16_InputThatWaits_IsOnDiskAndHoldsUpNobody: 60 jobs with 1 MiB of standard input
// each wait while others run, over a restart of the scheduler, and then run at once.
func TestP16_InputThatWaits_IsOnDiskAndHoldsUpNobody(t *testing.T) {
	t.Parallel()
	for name, flags := range map[string]func(*testing.T) []string{
		"embedded": func(*testing.T) []string { return nil },
		"redis":    func(t *testing.T) []string { return []string{"--store", redistest.Start(t).URL()} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inputWaits(t, flags(t))
		})
	}
}

func inputWaits(t *testing.T, flags []string) {
	t.Helper()
	c := cluster.New(t, bin, flags...)
	scripts := c.Scripts(c.Path("scripts"), map[string]string{"sum.sh": "sha256sum\n", "gate.sh": "read x < \"$1\"\n", "ok.sh": "echo ok\n"})
	fifo := c.Path("gate")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	c.Worker("full", scripts, "--slots", "1")
	c.Worker("free", scripts, "--slots", "2")
	var full struct {
		WorkerID string `json:"worker_id"`
	}
	if err := json.Unmarshal([]byte(c.Must("workers", "show", "full", "-o", "json")), &full); err != nil {
		t.Fatal(err)
	}
	busy := c.Must("run", "-d", "--worker", "full", "gate.sh", fifo)
	c.Eventually("its slot is taken", func() bool { return status(t, c, busy).State == "RUNNING" })
	heavy := clientOf(t, c, c.Issue("heavy", certs.RoleSubmitter))
	submit := func(i int) string {
		r, err := heavy.StartJob(t.Context(), &droverv1.StartJobRequest{
			Command: "bash", Path: "sum.sh", WorkerId: full.WorkerID, RequestId: "heavy-" + strconv.Itoa(i),
			Stdin: bytes.Repeat([]byte{byte(i)}, 1<<20),
		})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetJobId()
	}
	var ids []string
	for i := range 20 { // what buffers and the runtime take once
		ids = append(ids, submit(i))
	}
	before := heldMemory(t, c.Scheduler)
	for i := 20; i < 60; i++ {
		ids = append(ids, submit(i))
	}
	if grown := heldMemory(t, c.Scheduler) - before; grown > queuedRoom {
		t.Errorf("the scheduler grew by %d MiB, more than %d MiB", grown>>20, queuedRoom>>20)
	} else {
		t.Logf("the scheduler grew by %.1f MiB", float64(grown)/(1<<20))
	}
	want(t, c.Run("run", "--worker", "free", "ok.sh"), 0, "ok\n", "")
	c.Scheduler.Kill()
	c.StartScheduler(c.Address, flags...)
	c.AwaitReady("free")
	c.AwaitReady("full")
	if err := os.WriteFile(fifo, []byte("go\n"), 0); err != nil {
		t.Fatal(err)
	}
	began, others := time.Now(), 0
	c.Eventually("all have run", func() bool {
		want(t, c.Run("run", "--worker", "free", "ok.sh"), 0, "ok\n", "")
		others++
		return status(t, c, ids[len(ids)-1]).State == "SUCCEEDED"
	})
	t.Logf("60 jobs took %v, meanwhile %d of another client ran", time.Since(began).Round(time.Millisecond), others)
	sums := map[string]bool{}
	for _, id := range ids {
		sums[c.Must("logs", id)] = true
	}
	if len(sums) != len(ids) {
		t.Errorf("%d different sums of %d inputs", len(sums), len(ids))
	}
}

// TestP16_LargeJobs_AreListedByEverybody: 72 jobs with 120 KB of arguments each, and
// requests that are too large.
func TestP16_LargeJobs_AreListedByEverybody(t *testing.T) {
	t.Parallel()
	c := one(t)
	owner := clientOf(t, c, c.Issue("owner", certs.RoleSubmitter))
	for i := range 72 {
		if _, err := owner.StartJob(t.Context(), &droverv1.StartJobRequest{
			Command: "bash", Path: "ok.sh", Args: []string{strings.Repeat("x", 120_000)}, RequestId: strconv.Itoa(i),
		}); err != nil {
			t.Fatal(err)
		}
	}
	for _, role := range []certs.Role{certs.RoleViewer, certs.RoleOperator, certs.RoleAdmin} {
		as := c.Issue("some-"+string(role), role)
		for _, format := range []string{"table", "wide", "json", "yaml"} {
			if r := c.RunAs(as, "jobs", "-o", format, "--limit", "0"); r.Code != 0 || strings.Count(r.Stdout, "ok.sh") < 72 {
				t.Errorf("%s, %s: exit %d, %d jobs, %.200s", role, format, r.Code, strings.Count(r.Stdout, "ok.sh"), r.Stderr)
			}
		}
	}
	for name, q := range map[string]*droverv1.StartJobRequest{
		"arguments": {Args: []string{strings.Repeat("x", 10<<20)}},
		"input":     {Stdin: make([]byte, 10<<20)},
		"secret":    {Secrets: map[string][]byte{"key": make([]byte, 10<<20)}},
		"variable":  {Env: map[string]string{"LC_X": strings.Repeat("x", 10<<20)}},
		"name":      {Name: strings.Repeat("x", 10<<20)},
	} {
		q.Command, q.Path = "bash", "ok.sh"
		_, err := owner.StartJob(t.Context(), q, grpc.MaxCallSendMsgSize(64<<20))
		if code := grpcstatus.Code(err); code != grpccodes.ResourceExhausted && code != grpccodes.InvalidArgument || !strings.Contains(err.Error(), "larger than") {
			t.Errorf("10 MiB of %s: %v", name, err)
		}
	}
	want(t, c.Run("run", "ok.sh"), 0, "out\n", "err\n")
}

// TestP16_AHundredThousandScripts_AreListedAndRun: as files in a folder.
func TestP16_AHundredThousandScripts_AreListedAndRun(t *testing.T) {
	t.Parallel()
	n := 3_000
	if os.Getenv("DROVER_LONG") != "" {
		n = 100_000
	}
	c := cluster.New(t, bin)
	dir := c.Scripts(c.Path("scripts"), map[string]string{"ok.sh": "echo ok\n"})
	for i := range n - 1 {
		sub := filepath.Join(dir, fmt.Sprintf("folder-with-a-long-name-%03d", i/1000))
		if i%1000 == 0 {
			if err := os.Mkdir(sub, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("script-with-a-long-name-%04d.sh", i%1000)), []byte("echo \"$0\"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.Worker("w1", dir)
	last := fmt.Sprintf("folder-with-a-long-name-%03d/script-with-a-long-name-%04d.sh", (n-2)/1000, (n-2)%1000)
	if r := c.Run("run", last); r.Code != 0 || !strings.HasSuffix(r.Stdout, last+"\n") {
		t.Errorf("exit %d, %q, %s", r.Code, r.Stdout, r.Stderr)
	}
	var list []struct {
		Path string `json:"path"`
	}
	c.Eventually("all are listed", func() bool {
		if err := json.Unmarshal([]byte(c.Must("scripts", "-o", "json")), &list); err != nil {
			t.Fatal(err)
		}
		return len(list) == n
	})
}
