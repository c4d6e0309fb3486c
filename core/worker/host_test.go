package worker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/droverhq/drover/core/cgroup"
	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/journal"
	"github.com/droverhq/drover/core/output"
	"github.com/droverhq/drover/core/pluginhost"
	"github.com/droverhq/drover/core/scripts"
)

// These tests run real processes through the real parts: plugins built from
// cmd, lanes, cgroups, script generations and a journal on disk.

// pluginFolder is where plugins are built; TestMain removes it.
var pluginFolder = sync.OnceValues(func() (string, error) { return os.MkdirTemp("", "drover-plugins-") })

// plugins builds the runner plugins once for all tests.
var plugins = sync.OnceValues(func() (string, error) {
	dir, err := pluginFolder()
	if err != nil {
		return "", err
	}
	for _, name := range []string{"bash", "binary"} {
		build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", filepath.Join(dir, "drover-runner-"+name), "github.com/droverhq/drover/cmd/drover-runner-"+name)
		if out, err := build.CombinedOutput(); err != nil {
			return dir, fmt.Errorf("build plugin %s: %w\n%s", name, err, out)
		}
	}
	return dir, nil
})

// site is the folders of one real worker over all its lives.
type site struct {
	t                            *testing.T
	data, scripts, plugins, name string
	policy                       Policy
}

func newSite(t *testing.T) *site {
	t.Helper()
	built, err := plugins()
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, data: root + "/data", scripts: root + "/scripts", plugins: root + "/plugins", name: "test-" + uuid.NewString()[:8], policy: Policy{Commands: []string{"*"}}}
	if err := os.Mkdir(s.scripts, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"bash", "binary"} {
		if _, err := pluginhost.Install(s.plugins, filepath.Join(built, "drover-runner-"+name), ""); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s *site) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.scripts, name), []byte(text), 0o755); err != nil {
		s.t.Fatal(err)
	}
}

// life is one real worker process's worth of parts.
type life struct {
	*Worker
	t       *testing.T
	store   *output.Store
	host    *pluginhost.Host
	groups  *cgroup.Manager
	journal *journal.Journal
	cancel  context.CancelFunc
	running sync.WaitGroup
	counter uint64
}

func (s *site) begin() *life {
	t := s.t
	t.Helper()
	log := slog.New(slog.NewTextHandler(&testLog{t: t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	feed := NewFeed()
	j, st, err := journal.Open(journal.Config{Path: s.data + "/journal", Log: log})
	must(err)
	store, err := output.Open(output.Config{Dir: s.data + "/output", Log: log, Exceeded: func(k job.Key, _ output.StreamID) { feed.OutputExceeded(k) }})
	must(err)
	lib, err := scripts.New(scripts.Config{Folders: []string{s.scripts}, Dir: s.data + "/scripts", Log: log})
	must(err)
	groups, err := cgroup.New(cgroup.Config{Name: s.name, Log: log})
	must(err)
	boot, err := BootID()
	must(err)
	host, err := pluginhost.New(pluginhost.Config{Dir: s.plugins, State: s.data + "/plugins", BootID: boot, Log: log, Events: FeedEvents(feed)})
	must(err)
	wk, err := New(Config{
		Name: s.name, Data: s.data, Slots: 32, Log: log, Policy: s.rooted(),
		Journal: j, State: st, Output: BindOutput(store), Scripts: BindScripts(lib), Groups: BindGroups(groups),
		Runners: BindRunners(host), Feed: feed,
	})
	must(err)
	ctx, cancel := context.WithCancel(context.Background())
	l := &life{Worker: wk, t: t, store: store, host: host, groups: groups, journal: j, cancel: cancel, counter: st.Fence.Counter}
	for name, run := range map[string]func(context.Context) error{"output": store.Run, "scripts": lib.Run, "plugins": host.Run, "worker": wk.Run} {
		l.running.Go(func() {
			if err := run(ctx); err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	l.ready()
	return l
}

// ready waits until both plugins take jobs.
func (l *life) ready() {
	l.t.Helper()
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		n := 0
		for _, r := range l.host.Runners() {
			if r.State == "ready" {
				n++
			}
		}
		if n == 2 {
			return
		}
	}
	l.t.Fatalf("plugins are not ready: %+v", l.host.Runners())
}

// leave ends this life; plugins and jobs go on.
func (l *life) leave() {
	l.t.Helper()
	l.cancel()
	l.running.Wait()
	l.host.Close()
	if err := errors.Join(l.store.Close(), l.journal.Close(), l.groups.Close()); err != nil {
		l.t.Error(err)
	}
}

// end ends it for good: nothing may be left (P17).
func (l *life) end() {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if err := l.Drain(ctx, 0); err != nil {
		l.t.Error(err)
	}
	if err := l.host.Shutdown(ctx); err != nil {
		l.t.Error(err)
	}
	l.leave()
}

type testLog struct {
	t    *testing.T
	mu   sync.Mutex
	over bool
}

func (l *testLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.t.Context().Err() == nil && !l.over {
		l.t.Logf("%s", bytes.TrimSpace(p))
	}
	return len(p), nil
}

func (l *life) order(spec job.Spec) job.StartOrder {
	l.counter++
	if spec.Linger == 0 {
		spec.Linger = job.DefaultLinger
	}
	return job.StartOrder{
		Key: job.Key{Job: uuid.New(), Attempt: 1}, Fence: job.Fence{Term: 1, Counter: l.counter}, Spec: spec,
	}
}

func (l *life) run(spec job.Spec) job.Key {
	l.t.Helper()
	o := l.order(spec)
	if _, err := l.Start(l.t.Context(), o); err != nil {
		l.t.Fatal(err)
	}
	return o.Key
}

// await polls: these tests run on real time.
func (l *life) await(key job.Key, what string, ok func(job.Report) bool) job.Report {
	l.t.Helper()
	var r job.Report
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		var err error
		if r, err = l.Attempt(l.t.Context(), key); err == nil && ok(r) {
			return r
		}
	}
	l.t.Fatalf("%s never came: %+v", what, r)
	return r
}

func (l *life) finished(key job.Key) job.Report {
	l.t.Helper()
	return l.await(key, "the end", func(r job.Report) bool { return r.State.Terminal() })
}

func (l *life) read(key job.Key, id output.StreamID) string {
	l.t.Helper()
	rd, err := l.store.Read(key, id, 0)
	if err != nil {
		l.t.Fatal(err)
	}
	defer rd.Close()
	var b bytes.Buffer
	for {
		c, err := rd.Next(l.t.Context(), false)
		if errors.Is(err, io.EOF) {
			return b.String()
		}
		if err != nil {
			l.t.Fatal(err)
		}
		b.Write(c.Data)
	}
}

// marked lists the processes that carry an attempt's mark.
func marked(key job.Key) (pids []string) {
	want := []byte("DROVER_MARK=" + attemptID(key) + "\x00")
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, f := range files {
		if env, err := os.ReadFile(f); err == nil && bytes.Contains(env, want) {
			pids = append(pids, filepath.Base(filepath.Dir(f)))
		}
	}
	return pids
}

func sum(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:])
}

func TestARealScript(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.write("talk.sh", `echo "args: $# <$1> <$2>"; echo "env: $APP_COLOR"; cat; echo "$PWD" >&2; echo again > /dev/stderr; cat "$DROVER_SECRETS/token"; exit 3`)
	l := s.begin()
	defer l.end()
	key := l.run(job.Spec{
		Command: "bash", Path: "talk.sh", Args: []string{"", "two words"}, Env: map[string]string{"APP_COLOR": "red"},
		Stdin: []byte("typed\n"), Secrets: map[string][]byte{"token": []byte("hunter2\n")},
	})
	r := l.finished(key)
	if r.State != job.Failed || r.Reason != job.ReasonExitCode || r.ExitCode == nil || *r.ExitCode != 3 || r.Evidence != job.Wait {
		t.Errorf("%+v", r)
	}
	out, errOut := l.read(key, output.Stdout), l.read(key, output.Stderr)
	if want := "args: 2 <> <two words>\nenv: red\ntyped\nhunter2\n"; out != want {
		t.Errorf("stdout %q, want %q", out, want)
	}
	if !strings.HasSuffix(errOut, "\nagain\n") || !strings.HasPrefix(errOut, s.data) {
		t.Errorf("stderr %q", errOut)
	}
	if r.Stdout.SHA256 != sum(out) || r.Stdout.Size != uint64(len(out)) || r.Stderr.SHA256 != sum(errOut) {
		t.Errorf("streams %+v %+v", r.Stdout, r.Stderr)
	}
	if r.Runner != "bash" || r.ScriptSHA256 == "" {
		t.Errorf("runner %q script %q", r.Runner, r.ScriptSHA256)
	}
}

func TestRealExecutables(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.write("hello.txt", "hello\n")
	l := s.begin()
	defer l.end()
	ok := l.run(job.Spec{Command: "printf", Args: []string{"%s|", "a b", "", "-x"}})
	if r := l.finished(ok); r.State != job.Succeeded || l.read(ok, output.Stdout) != "a b||-x|" {
		t.Errorf("%+v printed %q", r, l.read(ok, output.Stdout))
	}
	script := l.run(job.Spec{Command: "cat", Path: "hello.txt"})
	if r := l.finished(script); r.State != job.Succeeded || r.Runner != "binary" || l.read(script, output.Stdout) != "hello\n" {
		t.Errorf("%+v", r)
	}
	for name, c := range map[string]struct {
		spec   job.Spec
		state  job.State
		reason string
	}{
		"missing":        {job.Spec{Command: "/no/such/file"}, job.Failed, job.ReasonSpawn},
		"not executable": {job.Spec{Command: "/etc/passwd"}, job.Failed, job.ReasonSpawn},
		"killed":         {job.Spec{Command: "sh", Args: []string{"-c", "kill -9 $$"}}, job.Failed, job.ReasonSignal},
		"timeout":        {job.Spec{Command: "sleep", Args: []string{"60"}, Timeout: 100 * time.Millisecond, Grace: time.Second}, job.Failed, job.ReasonTimeout},
		"silent":         {job.Spec{Command: "sleep", Args: []string{"60"}, IdleTimeout: 100 * time.Millisecond}, job.Failed, job.ReasonIdleTimeout},
		"no script":      {job.Spec{Command: "bash", Path: "none.sh"}, job.Rejected, job.ReasonScriptGone},
		"outside":        {job.Spec{Command: "bash", Path: "../x"}, job.Rejected, job.ReasonPath},
	} {
		r := l.finished(l.run(c.spec))
		if r.State != c.state || r.Reason != c.reason || r.Message == "" {
			t.Errorf("%s: %s %s %q", name, r.State, r.Reason, r.Message)
		}
	}
}

func TestP9RealStopLeavesNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.write("hydra.sh", `trap "" TERM
setsid bash -c 'trap "" TERM; (trap "" TERM; while :; do sleep 1; done) & while :; do sleep 1; done' &
(setsid sleep 1000 &)
echo ready
while :; do sleep 1; done`)
	l := s.begin()
	defer l.end()
	for range 3 {
		key := l.run(job.Spec{Command: "bash", Path: "hydra.sh"})
		l.await(key, "the first line", func(r job.Report) bool { return r.Stdout.Size > 0 })
		grace := 100 * time.Millisecond
		r, err := l.Stop(t.Context(), job.StopOrder{Key: key, Fence: job.Fence{Term: 1, Counter: 1 << 30}, Grace: &grace}, true)
		if err != nil || r.State != job.Stopped || r.StopProof == nil || r.StopProof.Killed == 0 {
			t.Fatalf("%+v %+v, %v", r, r.StopProof, err)
		}
		if left := marked(key); len(left) != 0 {
			t.Errorf("left after the stop: %v", left)
		}
	}
}

func TestP10RealChildrenGetTheLinger(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.write("parent.sh", `(sleep 0.2; echo late) & (sleep 100) & echo early`)
	l := s.begin()
	defer l.end()
	key := l.run(job.Spec{Command: "bash", Path: "parent.sh", Linger: 600 * time.Millisecond})
	if r := l.finished(key); r.State != job.Succeeded || l.read(key, output.Stdout) != "early\nlate\n" {
		t.Errorf("%+v printed %q", r, l.read(key, output.Stdout))
	}
	if left := marked(key); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestP7RealJobsOutliveTheWorker(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.write("count.sh", `for i in $(seq 1 40); do echo line $i; sleep 0.05; done; exit 7`)
	s.write("short.sh", `sleep 0.3; echo short; exit 5`)
	l := s.begin()
	long, short := l.run(job.Spec{Command: "bash", Path: "count.sh"}), l.run(job.Spec{Command: "bash", Path: "short.sh"})
	before := l.await(long, "RUNNING", func(r job.Report) bool { return r.State == job.Running })
	l.leave()
	time.Sleep(600 * time.Millisecond) // real processes go on, and one of them ends

	l = s.begin()
	r := l.await(long, "RUNNING again", func(r job.Report) bool { return r.State == job.Running })
	if r.PID != before.PID {
		t.Errorf("pid %d, before %d", r.PID, before.PID)
	}
	if r := l.finished(short); r.ExitCode == nil || *r.ExitCode != 5 || l.read(short, output.Stdout) != "short\n" {
		t.Errorf("%+v printed %q", r, l.read(short, output.Stdout))
	}
	l.leave()
	l = s.begin()
	defer l.end()
	var want strings.Builder
	for i := range 40 {
		fmt.Fprintf(&want, "line %d\n", i+1)
	}
	r = l.finished(long)
	if r.ExitCode == nil || *r.ExitCode != 7 || l.read(long, output.Stdout) != want.String() || r.Stdout.SHA256 != sum(want.String()) {
		t.Errorf("%+v printed %q", r, l.read(long, output.Stdout))
	}
}

func TestManyRealJobs(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.write("n.sh", `echo "job $1"; exit $(($1 % 3))`)
	l := s.begin()
	defer l.end()
	const jobs = 150
	keys := make([]job.Key, jobs)
	var wait sync.WaitGroup
	slots := make(chan struct{}, 24)
	orders := make([]job.StartOrder, jobs)
	for i := range orders {
		orders[i] = l.order(job.Spec{Command: "bash", Path: "n.sh", Args: []string{fmt.Sprint(i)}})
		// All with one fence: they arrive in any order.
		orders[i].Fence.Counter = 1
		keys[i] = orders[i].Key
	}
	for i := range orders {
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			if _, err := l.Start(t.Context(), orders[i]); err != nil {
				t.Error(err)
				return
			}
			if r := l.finished(keys[i]); r.ExitCode == nil || int(*r.ExitCode) != i%3 || l.read(keys[i], output.Stdout) != fmt.Sprintf("job %d\n", i) {
				t.Errorf("job %d: %+v printed %q", i, r, l.read(keys[i], output.Stdout))
			}
		})
	}
	wait.Wait()
	if c := l.Counts(); c.Live != 0 || c.Running != 0 {
		t.Errorf("%+v", c)
	}
	if _, err := l.Attempt(t.Context(), job.Key{Job: uuid.New()}); errs.KindOf(err) != errs.NotFound {
		t.Errorf("%v", err)
	}
}

// rooted is the policy with root allowed: tests may run as root, and few are about that.
func (s *site) rooted() Policy {
	p := s.policy
	p.AllowRoot = true
	return p
}
