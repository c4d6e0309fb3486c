package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/droverhq/drover/core/store/redis/redistest"
	"github.com/droverhq/drover/test/cluster"
)

// older is a cluster whose records are exchanged for an older copy of them, and then
// accepted: the way back of docs/operations.md.
type older struct {
	t *testing.T
	*cluster.Cluster

	ran     []string  // a file of each job: it has a line for each time that the job ran
	held    [2]string // they ran when the copy was made, and ended after it
	waited  string    // it waited for a slot when the copy was made, and ran after it
	after   string    // submitted after the copy was made; it has ended
	running string    // the same; it still runs
	ending  string    // the same; it ends under the older copy
}

func (o *older) file(n int) string { return o.Path(fmt.Sprintf("ran%d", n)) }
func (o *older) gate(n int) string { return o.Path(fmt.Sprintf("gate%d", n)) }

// job submits one that runs until its gate is open.
func (o *older) job(code string, gated bool) string {
	o.t.Helper()
	n := len(o.ran)
	o.ran = append(o.ran, o.file(n))
	gate := ""
	if gated {
		gate = o.gate(n)
	}
	return o.Must("run", "-d", "job.sh", o.file(n), gate, code)
}

func (o *older) open(n int) {
	o.t.Helper()
	if err := os.WriteFile(o.gate(n), nil, 0o600); err != nil {
		o.t.Fatal(err)
	}
}

func (o *older) runs(id string) {
	o.t.Helper()
	o.Eventually("it runs", func() bool { return status(o.t, o.Cluster, id).State == "RUNNING" })
}

// before does what is in the copy.
func (o *older) before() {
	o.t.Helper()
	o.Worker("w1", o.Scripts(o.Path("scripts"), map[string]string{
		"job.sh": "echo ran >> \"$1\"; while [ -n \"$2\" ] && [ ! -e \"$2\" ]; do sleep 0.1; done; exit $3\n",
	}), "--slots", "2")
	for i := range o.held {
		o.held[i] = o.job("0", true)
		o.runs(o.held[i])
	}
	o.waited = o.job("0", false)
}

// later does what is not in the copy.
func (o *older) later() {
	o.t.Helper()
	o.open(0)
	o.open(1)
	for _, id := range append(o.held[:], o.waited) {
		o.Must("wait", id)
	}
	o.after = o.job("0", false)
	o.Must("wait", o.after)
	o.running, o.ending = o.job("0", true), o.job("3", true)
	o.runs(o.running)
	o.runs(o.ending)
}

// unrecorded lists what the worker has and the scheduler does not know.
func (o *older) unrecorded() (ids []string) {
	o.t.Helper()
	var w struct {
		Unrecorded []struct {
			JobID string `json:"job_id"`
		} `json:"unrecorded"`
	}
	if err := json.Unmarshal([]byte(o.Must("workers", "show", "w1", "-o", "json")), &w); err != nil {
		o.t.Fatal(err)
	}
	for _, u := range w.Unrecorded {
		ids = append(ids, u.JobID)
	}
	return ids
}

// recovered looks at what has become of all of them once the copy is accepted.
func (o *older) recovered() {
	o.t.Helper()
	o.AwaitReady("w1")
	for _, id := range append(o.held[:], o.waited) {
		if r := o.Run("wait", id); r.Code != 0 {
			o.t.Errorf("a result that the lost records had acknowledged: %+v", r)
		}
	}
	o.Eventually("the ends of all are known", func() bool {
		return strings.Contains(o.Run("workers", "show", "w1").Stdout, "FAILED")
	})
	if got := o.unrecorded(); !slices.Equal(got, []string{o.after, o.running, o.ending}) {
		o.t.Errorf("without a record: %q", got)
	}
	shown := o.Run("workers", "show", "w1")
	want(o.t, shown, 0, shown.Stdout, `hint: "drover stop JOB" stops one`)
	if !strings.Contains(shown.Stdout, "bash job.sh") || !strings.Contains(shown.Stdout, "UNRECORDED_JOBS") {
		o.t.Errorf("the worker: %s", shown.Stdout)
	}
	if r := o.Run("stop", o.running); r.Code != 0 || !strings.Contains(r.Stdout, " on w1: ") {
		o.t.Errorf("stop: %+v", r)
	}
	for _, of := range [][2]string{{o.after, "SUCCEEDED"}, {o.ending, "FAILED"}} {
		if r := o.Run("jobs", "adopt", of[0]); r.Code != 0 || !strings.HasSuffix(r.Stdout, " on w1: "+of[1]+"\n") {
			o.t.Errorf("adopt: %+v", r)
		}
	}
	if r := o.Run("wait", o.ending); r.Code != 3 {
		o.t.Errorf("the adopted job: %+v", r)
	}
	if got := o.unrecorded(); len(got) > 0 {
		o.t.Errorf("still without a record: %q", got)
	}
	o.Must("run", "job.sh", o.Path("new"), "", "0")
	for i, f := range o.ran {
		if b, err := os.ReadFile(f); err != nil || string(b) != "ran\n" {
			o.t.Errorf("job %d wrote %q, %v", i, b, err)
		}
	}
}

// TestP3_FolderCopiedFileByFile_IsRefusedAndAccepted: the copy was made while jobs were
// submitted, and is of no single moment.
func TestP3_FolderCopiedFileByFile_IsRefusedAndAccepted(t *testing.T) {
	t.Parallel()
	o := &older{t: t, Cluster: cluster.New(t, bin)}
	o.before()
	data, saved := o.Path("scheduler"), o.Path("saved")
	stop, submitted := make(chan struct{}), make(chan int)
	client := clientOf(t, o.Cluster, o.Path("certs", "admin"))
	go func() {
		n := 0
		for ; ; n++ {
			select {
			case <-stop:
				submitted <- n
				return
			default:
			}
			r := request(fmt.Sprintf("storm-%d", n), "")
			r.Path, r.Labels, r.Args = "job.sh", map[string]string{"no": "worker"}, []string{strings.Repeat("x", 10000)}
			if _, err := client.StartJob(t.Context(), r); err != nil {
				t.Error(err)
			}
		}
	}()
	err := filepath.WalkDir(data, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		time.Sleep(20 * time.Millisecond) // jobs go on: a copy of many files takes its time
		b, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		to := filepath.Join(saved, strings.TrimPrefix(path, data))
		return errors.Join(err, os.MkdirAll(filepath.Dir(to), 0o700), os.WriteFile(to, b, 0o600))
	})
	close(stop)
	if n := <-submitted; err != nil || n < 5 {
		t.Fatalf("%d jobs were submitted meanwhile; %v", n, err)
	}
	o.Scheduler.Kill() // a life that the copy does not know begins
	o.StartScheduler(o.Address)
	o.AwaitReady("w1")
	o.later()
	o.Scheduler.Terminate()
	if err := errors.Join(os.Rename(data, o.Path("newer")), os.Rename(saved, data)); err != nil {
		t.Fatal(err)
	}
	args := []string{"scheduler", "--listen", o.Address, "--data", data, "--certs", o.Path("certs", "scheduler"), "--ca", o.Path("ca")}
	if r := o.RunUntil("these records are older", args...); strings.Contains(r.Stderr, "STORE_DAMAGED") || strings.Contains(r.Stderr, "drover store salvage") {
		o.Must("store", "salvage", data) // the length of the log was noted after its copy
		o.RunUntil("these records are older", args...)
	}
	o.open(5)
	o.StartScheduler(o.Address)
	o.Eventually("submits are refused", func() bool {
		r := o.Run("run", "-d", "job.sh")
		return r.Code != 0 && strings.Contains(r.Stderr, "these records are older than what a worker was told") && strings.Contains(r.Stderr, "drover store accept")
	})
	if n := strings.Count(o.Scheduler.LogText()[strings.LastIndex(o.Scheduler.LogText(), "scheduler is up"):], "level=ERROR"); n > 0 {
		t.Errorf("%d more errors are logged: %s", n, o.Scheduler.LogText())
	}
	o.Scheduler.Terminate()
	o.Must("store", "accept", data)
	o.StartScheduler(o.Address)
	o.recovered()
}

// TestP3_OlderRedis_IsRefusedAndAccepted: Redis comes back from a copy of its log, from
// its snapshot, or as a replica that lagged behind, with one scheduler and with two.
// DROVER_LONG=1 tries each way with both numbers.
func TestP3_OlderRedis_IsRefusedAndAccepted(t *testing.T) {
	t.Parallel()
	for name, way := range map[string]func(*testing.T, *redistest.Server, *goredis.Client, string) (swap func()){
		"log": copyLog, "snapshot": copySnapshot, "replica": lagging,
	} {
		for _, standby := range []bool{false, true} {
			if os.Getenv("DROVER_LONG") == "" && standby != (name == "replica") {
				continue
			}
			t.Run(fmt.Sprintf("%s, standby %v", name, standby), func(t *testing.T) {
				t.Parallel()
				olderRedis(t, standby, way)
			})
		}
	}
}

func olderRedis(t *testing.T, standby bool, way func(*testing.T, *redistest.Server, *goredis.Client, string) func()) {
	t.Helper()
	port := redistest.Port(t)
	server := redistest.Start(t, "--port", port)
	admin := goredis.NewClient(&goredis.Options{Network: "unix", Addr: server.Socket})
	t.Cleanup(func() { admin.Close() })
	flags := []string{"--takeover", "2s", "--store", server.URL()}
	if standby {
		flags = append(flags, "--standby")
	}
	o := &older{t: t, Cluster: cluster.New(t, bin, flags...)}
	all, address := []*cluster.Daemon{o.Scheduler}, o.Address
	if standby {
		o.Eventually("the first one is active", func() bool { return lives(o.Scheduler) == 1 })
		second, _ := o.Standby("second", flags...)
		all = append(all, second)
	}
	o.before()
	swap := way(t, server, admin, port)
	o.later()
	swap()
	const said = "the store does not hold any more what it had acknowledged"
	o.Eventually("all end and say why", func() bool {
		return !slices.ContainsFunc(all, func(d *cluster.Daemon) bool { return d.Alive() || !strings.Contains(d.LogText(), said) })
	})
	if standby && lives(all[1]) > 0 {
		t.Error("the standby took over")
	}
	o.open(5)
	o.Eventually("the copy's lease is over", func() bool { return o.Run("store", "accept", server.URL()).Code == 0 })
	o.StartScheduler(address, flags...)
	o.recovered()
}

// copyLog copies the append-only files.
func copyLog(t *testing.T, server *redistest.Server, _ *goredis.Client, _ string) func() {
	files, saved := filepath.Join(server.Dir, "appendonlydir"), filepath.Join(t.TempDir(), "saved")
	if err := os.CopyFS(saved, os.DirFS(files)); err != nil {
		t.Fatal(err)
	}
	return func() {
		server.Kill()
		if err := errors.Join(os.RemoveAll(files), os.CopyFS(files, os.DirFS(saved))); err != nil {
			t.Fatal(err)
		}
		server.Up(t)
	}
}

// copySnapshot has Redis write a snapshot, and starts on it as its manual says: without
// the log, which is switched on afterwards.
func copySnapshot(t *testing.T, server *redistest.Server, admin *goredis.Client, _ string) func() {
	if err := admin.Save(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	return func() {
		server.Kill()
		if err := os.RemoveAll(filepath.Join(server.Dir, "appendonlydir")); err != nil {
			t.Fatal(err)
		}
		server.Change(t, "--appendonly", "no")
		if err := admin.ConfigSet(t.Context(), "appendonly", "yes").Err(); err != nil {
			t.Fatal(err)
		}
	}
}

// lagging is a replica that loses its primary, and is promoted in its place.
func lagging(t *testing.T, server *redistest.Server, admin *goredis.Client, port string) func() {
	replica := redistest.Start(t)
	r := goredis.NewClient(&goredis.Options{Network: "unix", Addr: replica.Socket})
	t.Cleanup(func() { r.Close() })
	if err := r.ReplicaOf(t.Context(), "127.0.0.1", port).Err(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(cluster.Patience); ; {
		if n, err := admin.Wait(t.Context(), 1, time.Second).Result(); err == nil && n == 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the replica does not catch up")
		}
	}
	if err := r.ReplicaOf(t.Context(), "127.0.0.1", redistest.Port(t)).Err(); err != nil { // nobody is there
		t.Fatal(err)
	}
	return func() {
		server.Kill()
		if err := errors.Join(r.ReplicaOf(t.Context(), "NO", "ONE").Err(), os.Rename(replica.Socket, server.Socket)); err != nil {
			t.Fatal(err)
		}
	}
}
