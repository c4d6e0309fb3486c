// Package e2e_test runs whole clusters of the built binaries, as a user would.
package e2e_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/test/cluster"
)

// bin holds the binaries; TestMain builds them once.
var bin string

func TestMain(m *testing.M) {
	dir, err := cluster.Build()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	bin = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// scripts of the tests.
func scripts() map[string]string {
	return map[string]string{
		"ok.sh":    "echo out; echo err >&2\n",
		"seven.sh": "exit 7\n",
		"args.sh":  "for a in \"$@\"; do printf '[%s]' \"$a\"; done\n",
		"cat.sh":   "cat\n",
		"sleep.sh": "echo sleeping; exec sleep 1000\n",
		"env.py":   "import os, sys\nprint(os.environ['COLOUR'], sys.argv[1:])\n",
		"sub/x.sh": "echo sub\n",
	}
}

func one(t *testing.T, flags ...string) *cluster.Cluster {
	t.Helper()
	c := cluster.New(t, bin)
	c.Worker("w1", c.Scripts(c.Path("worker", "scripts"), scripts()), flags...)
	return c
}

func want(t *testing.T, r cluster.Result, code int, stdout, stderr string) {
	t.Helper()
	if r.Code != code || r.Stdout != stdout || !strings.Contains(r.Stderr, stderr) {
		t.Errorf("exit %d, stdout %q, stderr %q; want %d, %q, %q", r.Code, r.Stdout, r.Stderr, code, stdout, stderr)
	}
}

// TestRunFeelsLikeALocalCommand: streams on their own descriptors, the job's
// exit code, arguments byte for byte.
func TestRunFeelsLikeALocalCommand(t *testing.T) {
	t.Parallel()
	c := one(t)
	want(t, c.Run("run", "ok.sh"), 0, "out\n", "err\n")
	want(t, c.Run("run", "seven.sh"), 7, "", "")
	want(t, c.Run("run", "worker/scripts/ok.sh"), 0, "out\n", "err\n")
	want(t, c.Run("run", "sub/x.sh"), 0, "sub\n", "")
	want(t, c.Run("run", "args.sh", "", "a b", "-x", "--", "ünï", "line\nline", "*", "$HOME"), 0,
		"[][a b][-x][--][ünï][line\nline][*][$HOME]", "")
	want(t, c.Run("run", "--env", "COLOUR=blue", "env.py", "--name", "World"), 0, "blue ['--name', 'World']\n", "")
	want(t, c.Run("run", "--command", "bash", "worker/scripts/ok.sh"), 0, "out\n", "err\n")
	want(t, c.Run("run", "--command", "perl", "ok.pl"), 127, "", "ok.pl")
	want(t, c.Run("exec", "--", "echo", "a  b"), 0, "a  b\n", "")
	want(t, c.Run("exec", "--", "sh", "-c", "kill -9 $$"), 137, "", "")
	want(t, c.Run("run", "--timeout", "200ms", "sleep.sh"), 124, "sleeping\n", "")
	stdin := c.Command(context.Background(), "run", "--stdin", "-", "cat.sh")
	stdin.Stdin = strings.NewReader("to the job")
	if out, err := stdin.Output(); err != nil || string(out) != "to the job" {
		t.Errorf("stdin: %q, %v", out, err)
	}
}

// TestFoldersOfAWorkerMayBeRelative to where it was started: its plugins, which run
// in folders of their own, found nothing.
func TestFoldersOfAWorkerMayBeRelative(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, bin)
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	relative := func(path string) string {
		rel, err := filepath.Rel(here, path)
		if err != nil {
			t.Fatal(err)
		}
		return rel
	}
	c.Worker("w1", relative(c.Scripts(c.Path("worker", "scripts"), scripts())), "--data", relative(c.Path("w1")), "--plugins", relative(c.Path("w1-plugins")))
	want(t, c.Run("run", "ok.sh"), 0, "out\n", "err\n")
	want(t, c.Run("run", "--env", "COLOUR=red", "env.py"), 0, "red []\n", "")
}

// record is a job as the command line prints it.
type record struct {
	JobID      string `json:"job_id"`
	State      string `json:"state"`
	Reason     string `json:"reason"`
	WorkerName string `json:"worker_name"`
	Reachable  bool   `json:"reachable"`
	PID        int    `json:"pid"`
	Stdout     struct {
		Size   int    `json:"size"`
		SHA256 string `json:"sha256"`
	} `json:"stdout"`
	StopProof *struct {
		Killed int `json:"killed"`
		Termed int `json:"termed"`
	} `json:"stop_proof"`
}

func status(t testing.TB, c *cluster.Cluster, id string) record {
	t.Helper()
	var r record
	if err := json.Unmarshal([]byte(c.Must("status", id, "-o", "json")), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestPlacement: by id, by name, by label, by script.
func TestPlacement(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, bin)
	c.Worker("east", c.Scripts(c.Path("e"), map[string]string{"where.sh": "echo $DROVER_WORKER\n", "e.sh": "echo $DROVER_WORKER\n"}), "--label", "zone=east")
	c.Worker("west", c.Scripts(c.Path("w"), map[string]string{"where.sh": "echo $DROVER_WORKER\n", "w.sh": "echo $DROVER_WORKER\n"}), "--label", "zone=west")
	var w struct {
		WorkerID string `json:"worker_id"`
	}
	if err := json.Unmarshal([]byte(c.Must("workers", "show", "west", "-o", "json")), &w); err != nil {
		t.Fatal(err)
	}
	for _, p := range []struct {
		want string
		args []string
	}{
		{"west", []string{"--worker", w.WorkerID, "where.sh"}},
		{"east", []string{"--worker", "east", "where.sh"}},
		{"west", []string{"--label", "zone=west", "where.sh"}},
		{"east", []string{"e.sh"}},
		{"west", []string{"w.sh"}},
	} {
		want(t, c.Run(append([]string{"run"}, p.args...)...), 0, p.want+"\n", "")
	}
}

// TestADeadWorkerIsOfflineAndItsJobsUnreachable, and one that is stopped by
// SIGTERM deregisters.
func TestADeadWorkerIsOfflineAndItsJobsUnreachable(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, bin, "--lease", "2s", "--heartbeat", "500ms")
	s := c.Scripts(c.Path("scripts"), scripts())
	dead, leaving := c.Worker("dead", s), c.Worker("leaving", s)
	id := c.Must("run", "-d", "--worker", "dead", "sleep.sh")
	c.Eventually("the job runs", func() bool { return status(t, c, id).State == "RUNNING" })
	dead.Kill()
	c.Eventually("the worker is OFFLINE", func() bool { return strings.Contains(c.Must("workers", "show", "dead", "-o", "json"), `"OFFLINE"`) })
	c.Eventually("the job is unreachable", func() bool { return !status(t, c, id).Reachable })
	if st := status(t, c, id).State; st != "RUNNING" {
		t.Errorf("without proof the job became %s", st)
	}
	leaving.Terminate()
	if out := c.Must("workers", "show", "leaving", "-o", "json"); !strings.Contains(out, `"DEREGISTERED"`) {
		t.Errorf("after SIGTERM: %s", out)
	}
	dead.Start()
	c.Eventually("the job is back", func() bool { r := status(t, c, id); return r.Reachable && r.State == "RUNNING" })
	c.Must("stop", id)
	if r := status(t, c, id); r.State != "STOPPED" {
		t.Errorf("stopped job is %s", r.State)
	}
}

// TestStopLeavesNothing: setsid, double fork, SIGTERM ignored.
func TestStopLeavesNothing(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, bin)
	tree := `trap '' TERM
setsid sh -c 'trap "" TERM; (sh -c "trap \"\" TERM; while :; do sleep 1; done" &) ; while :; do sleep 1; done' &
(setsid sh -c 'trap "" TERM; exec sleep 1000' &)
echo ready
while :; do sleep 1; done
`
	c.Worker("w1", c.Scripts(c.Path("scripts"), map[string]string{"tree.sh": tree}))
	for i := range 50 {
		mark := fmt.Sprintf("tree-%s-%d", filepath.Base(c.Dir), i)
		id := c.Must("run", "-d", "--env", "TREE="+mark, "tree.sh")
		c.Eventually("the tree stands", func() bool { return strings.Contains(c.Run("logs", id).Stdout, "ready") })
		c.Must("stop", id, "--grace", "50ms")
		if left := cluster.Processes("TREE=" + mark); len(left) > 0 {
			t.Fatalf("stop %d left %v", i, left)
		}
	}
}

// TestManyShortJobs: all terminal, all codes and outputs right, nothing left.
func TestManyShortJobs(t *testing.T) {
	t.Parallel()
	jobs := 200
	if os.Getenv("DROVER_LONG") != "" {
		jobs = 5000
	}
	c := cluster.New(t, bin)
	w := c.Worker("w1", c.Scripts(c.Path("scripts"), map[string]string{"n.sh": "echo out $1; echo err $1 >&2; exit $(($1 % 5))\n"}), "--slots", "64")
	c.Must("run", "n.sh", "0")
	before := openFiles(t, w.PID())
	var wait sync.WaitGroup
	next := make(chan int)
	for range 8 {
		wait.Go(func() {
			for i := range next {
				r := c.Run("run", "n.sh", fmt.Sprint(i))
				if r.Code != i%5 || r.Stdout != fmt.Sprintf("out %d\n", i) || r.Stderr != fmt.Sprintf("err %d\n", i) {
					t.Errorf("job %d: exit %d, stdout %q, stderr %q", i, r.Code, r.Stdout, r.Stderr)
				}
			}
		})
	}
	for i := range jobs {
		next <- i
	}
	close(next)
	wait.Wait()
	c.Eventually("no descriptor is left over", func() bool { return openFiles(t, w.PID()) <= before+64 })
	if strings.Contains(c.Must("workers", "show", "w1", "-o", "json"), `"running": 0`) == false {
		t.Errorf("jobs left: %s", c.Must("workers", "show", "w1", "-o", "json"))
	}
}

func openFiles(t *testing.T, pid int) int {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// TestLargeOutput: sha256-equal to the source, live and afterwards, with three
// readers at once, one of them stalled; the daemons do not grow.
func TestLargeOutput(t *testing.T) {
	t.Parallel()
	size := 48 << 20
	if os.Getenv("DROVER_LONG") != "" {
		size = 1 << 30
	}
	c := cluster.New(t, bin)
	data := c.Path("data")
	sum := randomFile(t, data, size)
	w := c.Worker("w1", c.Scripts(c.Path("scripts"), map[string]string{"big.sh": "cat " + data + " & cat " + data + " >&2; wait\n"}))
	before := rss(t, w.PID()) + rss(t, c.Scheduler.PID())
	id := c.Must("run", "-d", "big.sh")
	stalled := c.Command(context.Background(), "logs", "-f", "--stdout", id)
	pipe, err := stalled.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := stalled.Start(); err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	for _, stream := range []string{"--stdout", "--stderr"} {
		wait.Go(func() {
			if got := streamSum(t, c, "logs", "-f", stream, id); got != sum {
				t.Errorf("live %s: %s, want %s", stream, got, sum)
			}
		})
	}
	wait.Wait()
	for _, stream := range []string{"--stdout", "--stderr"} {
		if got := streamSum(t, c, "logs", stream, "--verify", id); got != sum {
			t.Errorf("afterwards %s: %s, want %s", stream, got, sum)
		}
	}
	if grown := rss(t, w.PID()) + rss(t, c.Scheduler.PID()) - before; grown > 128<<20 {
		t.Errorf("worker and scheduler grew by %d MiB", grown>>20)
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, pipe); err != nil {
		t.Fatal(err)
	}
	if err := stalled.Wait(); err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(hash.Sum(nil)); got != sum {
		t.Errorf("the stalled reader: %s, want %s", got, sum)
	}
}

func randomFile(t *testing.T, path string, size int) string {
	t.Helper()
	in, err := os.Open("/dev/urandom")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	hash := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(out, hash), in, int64(size)); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(hash.Sum(nil))
}

func streamSum(t *testing.T, c *cluster.Cluster, args ...string) string {
	t.Helper()
	cmd := c.Command(context.Background(), args...)
	hash := sha256.New()
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = hash, &stderr
	if err := cmd.Run(); err != nil {
		t.Errorf("drover %v: %v: %s", args, err, stderr.String())
	}
	return hex.EncodeToString(hash.Sum(nil))
}

// rss is the anonymous memory of a process: what it really grew by, without
// pages of files.
func rss(t *testing.T, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		var kb int
		if _, err := fmt.Sscanf(line, "RssAnon: %d kB", &kb); err == nil {
			return kb << 10
		}
	}
	t.Fatal("no RssAnon")
	return 0
}

// TestScriptsAreHotAndRunningOnesKeepTheirBytes: P12.
func TestScriptsAreHotAndRunningOnesKeepTheirBytes(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, bin)
	dir := c.Scripts(c.Path("scripts"), map[string]string{"v.sh": "echo one\n"})
	c.Worker("w1", dir)
	want(t, c.Run("run", "v.sh"), 0, "one\n", "")
	if err := os.WriteFile(filepath.Join(dir, "v.sh"), []byte("echo two\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	want(t, c.Run("run", "v.sh"), 0, "two\n", "")
	gate := c.Path("gate")
	if err := syscall.Mkfifo(gate, 0o600); err != nil {
		t.Fatal(err)
	}
	c.Scripts(dir, map[string]string{"lib.sh": "say() { echo old; }\n", "run.sh": "read x < " + gate + "\n. \"$(dirname \"$0\")/lib.sh\"\nsay\necho end\n"})
	c.Eventually("the script is listed", func() bool { return strings.Contains(c.Must("scripts", "-o", "json"), "run.sh") })
	id := c.Must("run", "-d", "run.sh")
	c.Eventually("the job runs", func() bool { return status(t, c, id).State == "RUNNING" })
	for i := range 100 {
		c.Scripts(dir, map[string]string{"run.sh": fmt.Sprintf("echo overwritten %d\n", i), "lib.sh": "say() { echo new; }\n"})
	}
	if err := os.WriteFile(gate, []byte("go\n"), 0); err != nil {
		t.Fatal(err)
	}
	c.Must("wait", id)
	if got := c.Must("logs", "--stdout", id); got != "old\nend" {
		t.Errorf("the running script printed %q", got)
	}
	if err := os.Remove(filepath.Join(dir, "v.sh")); err != nil {
		t.Fatal(err)
	}
	c.Eventually("the deleted script is gone", func() bool { return c.Run("run", "v.sh").Code == 127 })
}

// TestAScriptIsSentAlong: --upload runs a file of the caller's machine, alone in
// a folder that goes when the job has ended, and only where the policy takes it.
func TestAScriptIsSentAlong(t *testing.T) {
	t.Parallel()
	c := one(t)
	local := filepath.Join(c.Scripts(c.Path("mine"), map[string]string{
		"local.sh": "touch here; ls; echo \"[$1]\" $(pwd); exit 9\n",
	}), "local.sh")
	r := c.Run("run", "--upload", local, "a b")
	listed, folder, ok := strings.Cut(r.Stdout, "[a b] ")
	if r.Code != 9 || !ok || listed != "here\n" {
		t.Fatalf("exit %d, %q, %q", r.Code, r.Stdout, r.Stderr)
	}
	c.Eventually("the script goes with its job", func() bool {
		_, err := os.Stat(strings.TrimSpace(folder))
		return os.IsNotExist(err)
	})
	var jobs []struct {
		JobID        string `json:"job_id"`
		ScriptSHA256 string `json:"script_sha256"`
	}
	if err := json.Unmarshal([]byte(c.Must("jobs", "-o", "json")), &jobs); err != nil || len(jobs) != 1 {
		t.Fatal(jobs, err)
	}
	script, err := os.ReadFile(local)
	if sum := sha256.Sum256(script); err != nil || jobs[0].ScriptSHA256 != hex.EncodeToString(sum[:]) {
		t.Errorf("recorded sha256 %s, %v", jobs[0].ScriptSHA256, err)
	}
	want(t, c.Run("rerun", jobs[0].JobID), 2, "", "drover run --upload")
	shut := c.Path("shut.yaml")
	if err := os.WriteFile(shut, []byte("allow_root: true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Worker("w2", c.Path("mine"), "--policy", shut)
	want(t, c.Run("run", "--worker", "w2", "--upload", local), 126, "", "uploads: true")
}

// TestRerun_WithoutItsInput_IsRefused: an ended job ran again without its secrets, or with
// nothing on its standard input, and nobody was told.
func TestRerun_WithoutItsInput_IsRefused(t *testing.T) {
	t.Parallel()
	c := one(t)
	file := filepath.Join(c.Scripts(c.Path("mine"), map[string]string{"input": "hush"}), "input")
	last := func() string {
		t.Helper()
		return strings.TrimSpace(c.Must("jobs", "-q", "-n", "1"))
	}
	want(t, c.Run("run", "--secret", "KEY=@"+file, "ok.sh"), 0, "out\n", "err\n")
	want(t, c.Run("rerun", last()), 2, "", "the secrets KEY")
	want(t, c.Run("rerun", "--secret", "KEY=@"+file, last()), 0, "out\n", "err\n")
	want(t, c.Run("run", "--stdin", file, "cat.sh"), 0, "hush", "")
	want(t, c.Run("rerun", last()), 2, "", "4 bytes of standard input")
	want(t, c.Run("rerun", "--stdin", file, last()), 0, "hush", "")
}

// TestMisuse: a clear error, the right exit code, nothing started.
func TestMisuse(t *testing.T) {
	t.Parallel()
	c := one(t)
	dir := c.Path("worker", "scripts")
	if err := os.Symlink("/etc/hostname", filepath.Join(dir, "out.sh")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe.sh"), 0o600); err != nil {
		t.Fatal(err)
	}
	viewer, submitter := c.Issue("vera", certs.RoleViewer), c.Issue("sam", certs.RoleSubmitter)
	other, err := certs.Init(c.Path("other-ca"), "other")
	if err != nil {
		t.Fatal(err)
	}
	foreign := c.Path("foreign")
	if err := other.IssuePair(foreign, certs.IssueRequest{Name: "eve", Role: certs.RoleAdmin}); err != nil {
		t.Fatal(err)
	}
	jobsBefore := c.Must("jobs", "-q", "--limit", "1000")
	for _, m := range []struct {
		name string
		args []string
		code int
		want []string
	}{
		{"unknown worker", []string{"run", "--worker", "nobody", "ok.sh"}, 125, []string{"worker_id", "nobody", "drover workers"}},
		{"unknown job", []string{"status", "deadbeef"}, 3, []string{"deadbeef", "drover jobs"}},
		{"unknown script", []string{"run", "nope.sh"}, 127, []string{"path", "nope.sh"}},
		{"unknown command", []string{"run", "--command", "cobol", "nope.sh"}, 127, []string{"nope.sh"}},
		{"path leads out", []string{"run", "../ok.sh"}, 126, []string{"path", ".."}},
		{"absolute path", []string{"run", "/etc/passwd.sh"}, 126, []string{"path", "absolute"}},
		{"directory", []string{"run", "--command", "bash", "sub"}, 127, []string{"path", "sub"}},
		{"trailing slash", []string{"run", "--command", "bash", "sub/"}, 126, []string{"path", "slash"}},
		{"symlink out", []string{"run", "out.sh"}, 127, []string{"path", "out.sh"}},
		{"FIFO", []string{"run", "pipe.sh"}, 127, []string{"path", "pipe.sh"}},
		{"refused environment", []string{"run", "--env", "LD_PRELOAD=/x", "ok.sh"}, 126, []string{"env", "LD_PRELOAD"}},
		{"no such flag", []string{"run", "--nope", "ok.sh"}, 2, []string{"--nope"}},
		{"viewer submits", []string{"--certs", viewer, "run", "ok.sh"}, 125, []string{"viewer"}},
		{"viewer stops", []string{"--certs", viewer, "stop", "deadbeef"}, 4, []string{"viewer"}},
		{"submitter drains", []string{"--certs", submitter, "workers", "drain", "w1"}, 4, []string{"submitter"}},
		{"foreign certificate", []string{"--certs", foreign, "jobs"}, 4, []string{"certificate"}},
		{"no certificate", []string{"--certs", c.Path("nowhere"), "jobs"}, 4, []string{"nowhere"}},
		{"nobody there", []string{"--address", "127.0.0.1:1", "jobs"}, 5, []string{"127.0.0.1:1", "refused"}},
	} {
		t.Run(m.name, func(t *testing.T) {
			r := c.Run(m.args...)
			if r.Code != m.code {
				t.Errorf("exit %d, want %d", r.Code, m.code)
			}
			for _, w := range m.want {
				if !strings.Contains(r.Stderr, w) {
					t.Errorf("%q does not say %q", r.Stderr, w)
				}
			}
			if strings.Count(r.Stderr, "\n") > 3 {
				t.Errorf("more than three lines: %q", r.Stderr)
			}
		})
	}
	after := c.Must("jobs", "-q", "--limit", "1000")
	for _, id := range strings.Fields(strings.Replace(after, jobsBefore, "", 1)) {
		if status := c.Must("status", id, "-o", "json"); !strings.Contains(status, `"REJECTED"`) { // as by a policy
			t.Errorf("something was started: %s", status)
		}
	}
	c.Must("workers", "drain", "w1")
	r := c.Run("run", "--worker", "w1", "ok.sh")
	if r.Code != 125 || !strings.Contains(r.Stderr, "drain") {
		t.Errorf("drained: exit %d, %s", r.Code, r.Stderr)
	}
	c.Must("workers", "undrain", "w1")
	want(t, c.Run("run", "ok.sh"), 0, "out\n", "err\n")
}

// TestDaemonsExplainWhyTheyDoNotStart.
func TestDaemonsExplainWhyTheyDoNotStart(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, bin)
	config := c.Path("bad.yaml")
	if err := os.WriteFile(config, []byte("slots: 4\nlable: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w := c.Issue("w1", certs.RoleWorker)
	for _, m := range []struct {
		name string
		args []string
		want []string
	}{
		{"port in use", []string{"scheduler", "--listen", c.Address, "--data", c.Path("s2"), "--certs", c.Path("certs", "scheduler")}, []string{c.Address, "in use", "--listen"}},
		{"data folder in use", []string{"scheduler", "--listen", "127.0.0.1:0", "--data", c.Path("scheduler"), "--certs", c.Path("certs", "scheduler")}, []string{c.Path("scheduler"), "--data"}},
		{"unreadable data folder", []string{"worker", "--data", "/proc/nope", "--certs", w}, []string{"/proc/nope", "--data"}},
		{"wrong role", []string{"scheduler", "--listen", "127.0.0.1:0", "--data", c.Path("s3"), "--certs", w}, []string{"worker", "scheduler"}},
		{"no certificate", []string{"worker", "--data", c.Path("w2"), "--certs", c.Path("nowhere")}, []string{"nowhere", "drover certs"}},
		{"malformed configuration", []string{"worker", "--config", config}, []string{config + ":2", "lable", "label"}},
	} {
		t.Run(m.name, func(t *testing.T) {
			r := c.Run(m.args...)
			if r.Code == 0 {
				t.Error("exit 0")
			}
			for _, w := range m.want {
				if !strings.Contains(r.Stderr, w) {
					t.Errorf("%q does not say %q", r.Stderr, w)
				}
			}
		})
	}
}

// TestASchedulerThatIsKilledForgetsNothing: P1, P15, on the main path.
func TestASchedulerThatIsKilledForgetsNothing(t *testing.T) {
	t.Parallel()
	c := one(t)
	id := c.Must("run", "-d", "--request-id", "r1", "sleep.sh")
	c.Eventually("the job runs", func() bool { return status(t, c, id).State == "RUNNING" })
	c.Scheduler.Kill()
	c.StartScheduler(c.Address)
	c.AwaitReady("w1")
	c.Eventually("the job is reachable", func() bool { r := status(t, c, id); return r.Reachable && r.State == "RUNNING" })
	if again := c.Must("run", "-d", "--request-id", "r1", "sleep.sh"); again != id {
		t.Errorf("the same request made job %s, not %s", again, id)
	}
	if r := c.Run("run", "-d", "--request-id", "r1", "ok.sh"); r.Code != 125 || !strings.Contains(r.Stderr, "request_id") {
		t.Errorf("another request with the same id: exit %d, %s", r.Code, r.Stderr)
	}
	c.Must("stop", id)
}
