package pluginhost_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/pluginhost"
	"github.com/droverhq/drover/plugins/runner"
	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// built holds the real bash and binary plugins.
var built string

// hostRole makes the test binary a worker-like process that can be killed.
const hostRole = "DROVER_TEST_HOST"

func TestMain(m *testing.M) {
	if os.Getenv(hostRole) != "" {
		hostMain()
		return
	}
	if os.Getenv(forkerRole) != "" {
		forkerMain()
		return
	}
	dir, err := os.MkdirTemp("", "drover-plugins-")
	if err != nil {
		panic(err)
	}
	for _, name := range []string{"bash", "binary"} {
		cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", filepath.Join(dir, "drover-runner-"+name), "../../cmd/drover-runner-"+name)
		if out, err := cmd.CombinedOutput(); err != nil {
			panic(fmt.Sprintf("%v: %s", err, out))
		}
	}
	built = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// world is a host with its folders and the events it told.
type world struct {
	*pluginhost.Host
	t      *testing.T
	dir    string
	state  string
	cancel context.CancelFunc
	done   chan error
	canary time.Duration

	mu     sync.Mutex // guards events
	events []pluginhost.Event
	news   chan struct{}
}

// patience is how long a test waits for what must come. Most of it is for machines
// on which much else runs.
const patience = 60 * time.Second

func newWorld(t *testing.T, plugins ...string) *world {
	t.Helper()
	return newWorldWith(t, patience, plugins...)
}

// newWorldWith also says how long a canary may take.
func newWorldWith(t *testing.T, canary time.Duration, plugins ...string) *world {
	t.Helper()
	return newWorldAt(t, t.TempDir(), canary, plugins...)
}

func newWorldAt(t *testing.T, root string, canary time.Duration, plugins ...string) *world {
	t.Helper()
	w := &world{
		t: t, dir: filepath.Join(root, "plugins"), state: filepath.Join(root, "state"), canary: canary, news: make(chan struct{}, 1),
	}
	for _, p := range plugins {
		if _, err := pluginhost.Install(w.dir, filepath.Join(built, "drover-runner-"+p), ""); err != nil {
			t.Fatal(err)
		}
	}
	w.open()
	return w
}

func (w *world) open() {
	w.t.Helper()
	h, err := pluginhost.New(pluginhost.Config{
		Dir: w.dir, State: w.state, BootID: "boot", Log: slog.New(slog.DiscardHandler), Events: w.take,
		Canary: w.canary,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.Host = h
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel, w.done = cancel, make(chan error, 1)
	go func() { w.done <- h.Run(ctx) }()
	w.t.Cleanup(w.shutdown)
}

func (w *world) shutdown() {
	if w.cancel == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := w.Shutdown(ctx); err != nil {
		w.t.Error(err)
	}
	w.close()
	if left, _ := filepath.Glob(filepath.Join(w.state, "run", "*")); len(left) > 0 {
		w.t.Errorf("left behind: %v", left)
	}
}

func (w *world) close() {
	w.cancel()
	w.cancel = nil
	if err := <-w.done; err != nil {
		w.t.Error(err)
	}
	w.Close()
}

// leave is the end of a worker; the next one has heard nothing.
func (w *world) leave() {
	w.close()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = nil
}

func (w *world) take(evs []pluginhost.Event) {
	w.mu.Lock()
	w.events = append(w.events, evs...)
	w.mu.Unlock()
	select {
	case w.news <- struct{}{}:
	default:
	}
}

// await waits for an event.
func (w *world) await(what string, match func(pluginhost.Event) bool) pluginhost.Event {
	w.t.Helper()
	deadline := time.After(patience)
	for {
		w.mu.Lock()
		for _, e := range w.events {
			if match(e) {
				w.mu.Unlock()
				return e
			}
		}
		w.mu.Unlock()
		select {
		case <-w.news:
		case <-deadline:
			w.t.Fatalf("no event: %s; got %+v", what, w.events)
		}
	}
}

func (w *world) awaitState(name, state string) job.RunnerInfo {
	w.t.Helper()
	deadline := time.After(patience)
	for {
		for _, r := range w.Runners() {
			if r.Name == name && r.State == state {
				return r
			}
		}
		select {
		case <-w.Changed():
		case <-time.After(50 * time.Millisecond):
		case <-deadline:
			w.t.Fatalf("%s is not %s: %+v", name, state, w.Runners())
		}
	}
}

// lanes makes the two pipes of a job and keeps their read ends.
func lanes(t *testing.T) (stdout, stderr string, read func() string) {
	t.Helper()
	dir := t.TempDir()
	var fds []int
	for _, n := range []string{"out", "err"} {
		p := filepath.Join(dir, n)
		if err := syscall.Mkfifo(p, 0o600); err != nil {
			t.Fatal(err)
		}
		fd, err := syscall.Open(p, syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	t.Cleanup(func() {
		for _, fd := range fds {
			syscall.Close(fd)
		}
	})
	return filepath.Join(dir, "out"), filepath.Join(dir, "err"), func() string {
		buf := make([]byte, 64<<10)
		n, _ := syscall.Read(fds[0], buf)
		return string(buf[:max(n, 0)])
	}
}

func (w *world) startScript(id, script string) (read func() string) {
	w.t.Helper()
	file := filepath.Join(w.t.TempDir(), "s.sh")
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		w.t.Fatal(err)
	}
	r, err := w.Lookup("bash")
	if err != nil {
		w.t.Fatal(err)
	}
	stdout, stderr, read := lanes(w.t)
	if err := w.Start(r, &runnerv1.Start{
		Id: id, Command: "bash", Script: file, Stdout: stdout, Stderr: stderr, Workdir: "/",
		Env: []string{"PATH=" + os.Getenv("PATH"), "DROVER_MARK=" + id},
	}); err != nil {
		w.t.Fatal(err)
	}
	return read
}

func (w *world) awaitStart(id string) int {
	w.t.Helper()
	e := w.await("start of "+id, func(e pluginhost.Event) bool { return e.ID == id && e.Started != nil })
	return int(e.Started.GetPid())
}

func (w *world) awaitExit(id string) pluginhost.Event {
	w.t.Helper()
	return w.await("exit of "+id, func(e pluginhost.Event) bool { return e.ID == id && (e.Exited != nil || e.Lost || e.Unknown) })
}

// pluginPID reads the reattach record of a plugin.
func (w *world) pluginPID(name string) int {
	w.t.Helper()
	for _, r := range w.records() {
		if r.Name == name {
			return r.PID
		}
	}
	w.t.Fatalf("no record of %s", name)
	return 0
}

// process is the pid of the newest process of a version.
func (w *world) process(sum string) int {
	w.t.Helper()
	for _, r := range w.records() {
		if r.SHA256 == sum {
			return r.PID
		}
	}
	w.t.Fatalf("no record of %s", sum)
	return 0
}

// pluginRecord is what a worker writes down of a plugin process.
type pluginRecord struct {
	Name   string `json:"name"`
	SHA256 string `json:"sha256"`
	PID    int    `json:"pid"`
	when   time.Time
}

// records are those that exist, the newest first.
func (w *world) records() (out []pluginRecord) {
	w.t.Helper()
	files, _ := filepath.Glob(filepath.Join(w.state, "plugins", "*.json"))
	for _, f := range files {
		info, err := os.Stat(f)
		data, err2 := os.ReadFile(f)
		if errors.Join(err, err2) != nil {
			continue // it is gone meanwhile
		}
		r := pluginRecord{when: info.ModTime()}
		if err := json.Unmarshal(data, &r); err != nil {
			w.t.Fatal(err)
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b pluginRecord) int { return b.when.Compare(a.when) })
	return out
}

func TestAJobRunsThroughTheRealPlugin(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bash")
	w.awaitState("bash", "ready")
	read := w.startScript("a", "echo hello; exit 7")
	if pid := w.awaitStart("a"); pid == 0 {
		t.Error("no pid")
	}
	e := w.awaitExit("a")
	if e.Exited.GetExitCode() != 7 || e.Evidence != job.Wait {
		t.Errorf("exit %+v", e)
	}
	if got := read(); got != "hello\n" {
		t.Errorf("output %q", got)
	}
	w.Ack("a")
}

func TestUnknownCommandsHaveNoRunner(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bash")
	w.awaitState("bash", "ready")
	if _, err := w.Lookup("cobol"); errs.ReasonOf(err) != job.ReasonNoRunner {
		t.Errorf("got %v", err)
	}
}

// TestAKilledPluginCostsNothing: P7 for the plugin.
func TestAKilledPluginCostsNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bash")
	w.awaitState("bash", "ready")
	w.startScript("ended", "exit 3")
	w.awaitExit("ended") // not acknowledged: the journal still has it
	open := w.gated("running", 42)
	old := w.pluginPID("bash")
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.startScript("after", "exit 5")
	if e := w.awaitExit("after"); e.Exited.GetExitCode() != 5 {
		t.Errorf("after the crash: %+v", e)
	}
	if now := w.pluginPID("bash"); now == old {
		t.Error("the plugin was not restarted")
	}
	open()
	if e := w.awaitExit("running"); e.Exited.GetExitCode() != 42 || e.Evidence != job.AdoptedWait && e.Evidence != job.PidFD {
		t.Errorf("adopted job: %+v", e)
	}
	w.Ack("ended", "running", "after")
}

func TestSignalsReachRunningAndAdoptedJobs(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bash")
	w.awaitState("bash", "ready")
	for _, id := range []string{"a", "b"} {
		w.startScript(id, "exec sleep 1000")
		w.awaitStart(id)
	}
	if err := w.Signal("a", syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if e := w.awaitExit("a"); e.Exited.GetSignal() != int32(syscall.SIGTERM) {
		t.Errorf("running: %+v", e)
	}
	if err := syscall.Kill(w.pluginPID("bash"), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.startScript("c", "exit 0")
	w.awaitExit("c")
	if err := w.Signal("b", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e := w.awaitExit("b"); e.Exited.GetSignal() != int32(syscall.SIGKILL) || e.Evidence != job.AdoptedWait && e.Evidence != job.PidFD {
		t.Errorf("adopted: %+v", e)
	}
	w.Ack("a", "b", "c")
}

// TestAnExitThatComesAfterItsAcknowledgementIsForgotten: the worker reaps the jobs of
// a dead plugin itself, and can have their ends on disk before the next process of
// the plugin, which watches them too, has seen them. That process must not keep them:
// it would never end.
func TestAnExitThatComesAfterItsAcknowledgementIsForgotten(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bash")
	w.awaitState("bash", "ready")
	const jobs = 20
	var ids []string
	for i := range jobs {
		id := fmt.Sprint("job", i)
		w.startScript(id, "exec sleep 1000")
		w.awaitStart(id)
		ids = append(ids, id)
	}
	if err := syscall.Kill(w.pluginPID("bash"), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.startScript("next", "exit 0") // the next process is there, and watches
	w.awaitExit("next")
	plugin := w.pluginPID("bash")
	if err := syscall.Kill(plugin, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if err := w.Signal(id, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range ids {
		w.awaitExit(id)
	}
	w.Ack(append(ids, "next")...)
	if err := syscall.Kill(plugin, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	w.shutdown() // ends when the plugin does
}

// hostMain runs a host in a process of its own and one job on it.
func hostMain() {
	var mu sync.Mutex
	h, err := pluginhost.New(pluginhost.Config{
		Dir: os.Getenv("DROVER_TEST_DIR"), State: os.Getenv("DROVER_TEST_STATE"), BootID: "boot",
		Events: func(evs []pluginhost.Event) {
			mu.Lock()
			defer mu.Unlock()
			for _, e := range evs {
				if e.Started != nil {
					fmt.Println(e.ID, e.Started.GetPid(), e.Started.GetStartTicks())
				}
			}
		},
	})
	if err != nil {
		panic(err)
	}
	go func() { _ = h.Run(context.Background()) }()
	for {
		if rs := h.Runners(); len(rs) == 1 && rs[0].State == "ready" {
			break
		}
		<-h.Changed()
	}
	r, err := h.Lookup("bash")
	if err != nil {
		panic(err)
	}
	for _, id := range []string{"quick", "slow"} {
		if err := h.Start(r, &runnerv1.Start{
			Id: id, Command: "bash", Script: os.Getenv("DROVER_TEST_" + id), Workdir: "/",
			Stdout: os.Getenv("DROVER_TEST_OUT"), Stderr: os.Getenv("DROVER_TEST_OUT"), Env: []string{"PATH=" + os.Getenv("PATH")},
		}); err != nil {
			panic(err)
		}
	}
	select {}
}

// TestAPluginThenItsWorkerAreKilled: the worker dies before it has on disk what
// the dead plugin's journal told it. The next one must not take the attempts for
// ones that were never started: they would run twice (P2).
func TestAPluginThenItsWorkerAreKilled(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bash")
	w.awaitState("bash", "ready")
	m, err := pluginhost.Verify(w.dir, "bash")
	if err != nil {
		t.Fatal(err)
	}
	r := pluginhost.Runner{Name: "bash", Version: m.Version, SHA256: m.SHA256}
	w.startScript("ended", "exit 3")
	w.awaitExit("ended")
	w.startScript("running", "exec sleep 1000")
	pid := w.awaitStart("running")
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	old := w.pluginPID("bash")
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.startScript("after", "exit 5") // the next process of the plugin runs
	w.awaitExit("after")
	w.leave()
	w.open()
	// What this worker has on disk: three intents, no start.
	if err := w.Resume(t.Context(), []pluginhost.Attempt{
		{ID: "ended", Runner: r}, {ID: "running", Runner: r}, {ID: "after", Runner: r}, {ID: "never", Runner: r},
	}); err != nil {
		t.Fatal(err)
	}
	if e := w.awaitExit("ended"); e.Exited.GetExitCode() != 3 || e.Evidence != job.ExitJournal {
		t.Errorf("ended: %+v", e)
	}
	if got := w.awaitStart("running"); got != pid {
		t.Errorf("running is process %d, was %d", got, pid)
	}
	if e := w.awaitExit("after"); e.Exited.GetExitCode() != 5 {
		t.Errorf("after: %+v", e)
	}
	if e := w.awaitExit("never"); !e.Unknown {
		t.Errorf("never: %+v", e)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e := w.awaitExit("running"); e.Exited.GetSignal() != int32(syscall.SIGKILL) {
		t.Errorf("running: %+v", e)
	}
	w.Ack("ended", "running", "after", "never")
	w.awaitRecords("one process", func(pids []int) bool { return len(pids) == 1 })
}

// TestARestartedWorkerFindsItsJobs: P7 and P11 for the worker.
func TestARestartedWorkerFindsItsJobs(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bash")
	w.shutdown()
	dir := t.TempDir()
	scripts, gates := map[string]string{}, map[string]*os.File{}
	for id, code := range map[string]int{"quick": 9, "slow": 11} {
		path := filepath.Join(dir, id+".gate")
		if err := syscall.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		// Open for both, so that no open waits and no line is lost.
		gate, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { gate.Close() })
		scripts[id], gates[id] = fmt.Sprintf("read x < %s; exit %d", path, code), gate
	}
	out, _, _ := lanes(t)
	env := append(os.Environ(), hostRole+"=1", "DROVER_TEST_DIR="+w.dir, "DROVER_TEST_STATE="+w.state, "DROVER_TEST_OUT="+out)
	for id, s := range scripts {
		file := filepath.Join(dir, id)
		if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		env = append(env, "DROVER_TEST_"+id+"="+file)
	}
	first := exec.Command(os.Args[0])
	first.Env = env
	pipe, err := first.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	var attempts []pluginhost.Attempt
	m, err := pluginhost.Verify(w.dir, "bash")
	if err != nil {
		t.Fatal(err)
	}
	r := pluginhost.Runner{Name: "bash", Version: m.Version, SHA256: m.SHA256}
	for range 2 {
		a := pluginhost.Attempt{Runner: r}
		if _, err := fmt.Fscan(pipe, &a.ID, &a.PID, &a.StartTicks); err != nil {
			t.Fatal(err)
		}
		attempts = append(attempts, a)
	}
	_ = first.Process.Kill()
	_ = first.Wait()
	if _, err := gates["quick"].WriteString("x\n"); err != nil { // ends while nobody is there
		t.Fatal(err)
	}
	w.open()
	attempts = append(attempts, pluginhost.Attempt{ID: "never", Runner: r})
	if err := w.Resume(t.Context(), attempts); err != nil {
		t.Fatal(err)
	}
	if e := w.awaitExit("never"); !e.Unknown {
		t.Errorf("a start that never arrived: %+v", e)
	}
	if _, err := gates["slow"].WriteString("x\n"); err != nil {
		t.Fatal(err)
	}
	for id, code := range map[string]int32{"quick": 9, "slow": 11} {
		if e := w.awaitExit(id); e.Exited.GetExitCode() != code {
			t.Errorf("%s: %+v", id, e)
		}
	}
	w.Ack("quick", "slow", "never")
}

// TestTheNextPluginWatchesWhatAKilledOneLeft: the plugin is killed, then the
// worker, and then a job ends that has neither as its parent any more. The next
// process of the plugin was asked to watch it and has seen the end.
func TestTheNextPluginWatchesWhatAKilledOneLeft(t *testing.T) {
	t.Parallel()
	for restarts := range 3 { // a short name: the folders of plugins are below those of the test
		t.Run(strconv.Itoa(restarts), func(t *testing.T) {
			t.Parallel()
			nextPluginWatches(t, restarts)
		})
	}
}

// nextPluginWatches: a job lives over so many restarts of the worker before the one
// that it ends in.
func nextPluginWatches(t *testing.T, restarts int) {
	w := newWorld(t, "bash")
	w.awaitState("bash", "ready")
	m, err := pluginhost.Verify(w.dir, "bash")
	if err != nil {
		t.Fatal(err)
	}
	open := w.gated("a", 42)
	e := w.await("start of a", func(e pluginhost.Event) bool { return e.ID == "a" && e.Started != nil })
	pid := int(e.Started.GetPid())
	if err := syscall.Kill(w.pluginPID("bash"), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	journals := func() (dirs []string) {
		dirs, _ = filepath.Glob(filepath.Join(w.state, "run", "bash-*"))
		return dirs
	}
	seen := func(what string, ok func(runner.Journal) bool) {
		t.Helper()
		for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
			for _, dir := range journals() {
				if j, err := runner.ReadJournal(dir); err == nil && ok(j) {
					return
				}
			}
			if time.Now().After(end) {
				t.Fatalf("no journal has %s", what)
			}
		}
	}
	w.startScript("after", "exit 5") // the next process runs
	w.awaitExit("after")
	seen("both", func(j runner.Journal) bool { return j.Started["a"].GetPid() == int64(pid) && j.Exited["after"] != nil })
	attempt := pluginhost.Attempt{
		ID: "a", Runner: pluginhost.Runner{Name: "bash", Version: m.Version, SHA256: m.SHA256}, PID: pid, StartTicks: e.Started.GetStartTicks(),
	}
	for range restarts {
		w.close()
		w.open()
		if err := w.Resume(t.Context(), []pluginhost.Attempt{attempt}); err != nil {
			t.Fatal(err)
		}
		w.awaitState("bash", "draining")
		w.awaitState("bash", "ready")
	}
	w.leave()
	open()
	seen("the exit", func(j runner.Journal) bool { return j.Exited["a"].GetExitCode() == 42 })
	if _, err := syscall.Wait4(pid, nil, 0, nil); err != nil { // as init does it
		t.Fatal(err)
	}
	w.open()
	if err := w.Resume(t.Context(), []pluginhost.Attempt{attempt}); err != nil {
		t.Fatal(err)
	}
	if e := w.awaitExit("a"); e.Exited.GetExitCode() != 42 || e.Evidence != job.PidFD {
		t.Errorf("a: %+v", e)
	}
	w.Ack("a")
	for end := time.Now().Add(patience); len(journals()) > 1; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("left: %q", journals())
		}
	}
}

// TestAnAckThatGotLostIsMadeGood: a worker was killed after it had an exit on
// disk and before the plugin heard of that. The next one does not ask for the
// attempt; the plugin must not keep it, and its pipes, for ever.
func TestAnAckThatGotLostIsMadeGood(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bash")
	w.awaitState("bash", "ready")
	w.startScript("a", "exit 3")
	w.awaitExit("a")
	pid := w.pluginPID("bash")
	w.close()
	w.open()
	if err := w.Resume(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if w.pluginPID("bash") != pid {
		t.Fatal("the plugin was not taken over")
	}
	w.shutdown() // returns once the plugin has ended: it holds nothing
}

func TestTamperedAndUnsafePluginsAreRefused(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name   string
		spoil  func(t *testing.T, file string)
		reason string
	}{
		{"tampered", func(t *testing.T, f string) {
			t.Helper()
			if err := os.WriteFile(f, []byte("#!/bin/sh\n"), 0o755); err != nil {
				t.Fatal(err)
			}
		}, "PLUGIN_TAMPERED"},
		{"world-writable", func(t *testing.T, f string) {
			t.Helper()
			if err := os.Chmod(f, 0o777); err != nil {
				t.Fatal(err)
			}
		}, "PLUGIN_WRITABLE"},
		{"no manifest", func(t *testing.T, f string) {
			t.Helper()
			if err := os.Remove(f + ".json"); err != nil {
				t.Fatal(err)
			}
		}, "PLUGIN_MANIFEST"},
		{"wrong protocol", func(t *testing.T, f string) {
			t.Helper()
			data, err := os.ReadFile(f + ".json")
			if err != nil {
				t.Fatal(err)
			}
			changed := strings.Replace(string(data), `"protocol": 1`, `"protocol": 9`, 1)
			if err := os.WriteFile(f+".json", []byte(changed), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "PLUGIN_PROTOCOL"},
		{"folder writable by all", func(t *testing.T, f string) {
			t.Helper()
			if err := os.Chmod(filepath.Dir(f), 0o777); err != nil {
				t.Fatal(err)
			}
		}, "PLUGIN_WRITABLE"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "p")
			if _, err := pluginhost.Install(dir, filepath.Join(built, "drover-runner-bash"), ""); err != nil {
				t.Fatal(err)
			}
			c.spoil(t, filepath.Join(dir, "drover-runner-bash"))
			_, err := pluginhost.Verify(dir, "bash")
			if errs.ReasonOf(err) != c.reason || !strings.Contains(err.Error(), dir) {
				t.Errorf("got %v, want %s and the file", err, c.reason)
			}
		})
	}
}

// script writes an executable that poses as a plugin.
func script(t *testing.T, text string) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "plugin")
	if err := os.WriteFile(f, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return f
}

const describes = `if [ "$1" = --describe ]; then echo '{"name":"bad","version":"1","protocol":1,"commands":["bad"]}'; exit 0; fi
`

func TestInstallRefusesWhatIsNoPlugin(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ text, reason string }{
		"prints garbage":   {"echo hello", "PLUGIN_BROKEN"},
		"fails":            {"exit 1", "PLUGIN_BROKEN"},
		"bad name":         {`echo '{"name":"../x","version":"1","protocol":1}'`, "PLUGIN_NAME"},
		"another protocol": {`echo '{"name":"x","version":"1","protocol":2}'`, "PLUGIN_PROTOCOL"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if _, err := pluginhost.Install(dir, script(t, c.text), ""); errs.ReasonOf(err) != c.reason {
				t.Errorf("got %v", err)
			}
			if left, _ := os.ReadDir(dir); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	if _, err := pluginhost.Install(t.TempDir(), filepath.Join(built, "drover-runner-bash"), strings.Repeat("0", 64)); errs.ReasonOf(err) != "PLUGIN_SHA256" {
		t.Errorf("wrong sum: %v", err)
	}
}

func TestBadPluginsAreShownAndHurtNobodyElse(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ text, why string }{
		"dies at start":                    {describes + "exit 1", "it ended, or closed"},
		"prints garbage":                   {describes + "echo garbage; exec sleep 100", `it printed "garbage"`},
		"speaks another protocol":          {describes + "echo '1|9|unix|/nowhere|grpc|'; exec sleep 100", "version"},
		"stderr lines that look like logs": {describes + `echo '{"@message":1}' >&2; exit 1`, "it ended, or closed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "bash")
			if _, err := pluginhost.Install(w.dir, script(t, c.text), ""); err != nil {
				t.Fatal(err)
			}
			if bad := w.awaitState("bad", "unhealthy"); !strings.Contains(bad.Message, c.why) || strings.Contains(bad.Message, "\n") {
				t.Errorf("the reason is %q, want %q in one line", bad.Message, c.why)
			}
			w.awaitState("bash", "ready")
			w.startScript("a", "exit 0")
			w.awaitExit("a")
			w.Ack("a")
			r, err := w.Lookup("bad")
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Start(r, &runnerv1.Start{Id: "b"}); err != nil {
				t.Fatal(err)
			}
			if e := w.awaitExit("b"); e.Exited.GetError().GetReason() != "RUNNER_UNAVAILABLE" {
				t.Errorf("got %+v", e)
			}
		})
	}
}

func TestARemovedPluginFinishesItsJobs(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bash")
	w.awaitState("bash", "ready")
	open := w.gated("a", 4)
	if err := pluginhost.Remove(w.dir, "bash"); err != nil {
		t.Fatal(err)
	}
	w.awaitState("bash", "draining")
	if _, err := w.Lookup("bash"); err == nil {
		t.Error("a removed plugin takes new jobs")
	}
	open()
	if e := w.awaitExit("a"); e.Exited.GetExitCode() != 4 {
		t.Errorf("got %+v", e)
	}
	w.Ack("a")
	for len(w.Runners()) > 0 {
		<-w.Changed()
	}
	if err := pluginhost.Remove(w.dir, "bash"); errs.KindOf(err) != errs.NotFound {
		t.Errorf("second removal: %v", err)
	}
}

func TestANewVersionTakesOverUnderJobs(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bash")
	first := w.awaitState("bash", "ready")
	open := w.gated("old", 4)
	next := filepath.Join(t.TempDir(), "drover-runner-bash")
	cmd := exec.Command("go", "build", "-ldflags", "-s -w -X main.version=2.0.0", "-o", next, "../../cmd/drover-runner-bash")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := pluginhost.Install(w.dir, next, ""); err != nil {
		t.Fatal(err)
	}
	w.awaitState("bash", "draining")
	second := w.awaitState("bash", "ready")
	if second.SHA256 == first.SHA256 || second.Version != "2.0.0" {
		t.Errorf("second %+v", second)
	}
	w.startScript("new", "exit 6")
	if e := w.awaitExit("new"); e.Exited.GetExitCode() != 6 || !strings.HasSuffix(e.Plugin, second.SHA256) {
		t.Errorf("got %+v", e)
	}
	open()
	if e := w.awaitExit("old"); e.Exited.GetExitCode() != 4 || !strings.HasSuffix(e.Plugin, first.SHA256) {
		t.Errorf("got %+v", e)
	}
	w.Ack("old", "new")
	if vs, err := pluginhost.Versions(w.dir, "bash"); err != nil || len(vs) != 1 || !strings.HasSuffix(vs[0], first.SHA256) {
		t.Errorf("kept versions %v, %v", vs, err)
	}
}

func TestProbeGivesUpOnAPluginThatHangs(t *testing.T) {
	t.Parallel()
	if _, err := pluginhost.Probe(t.Context(), script(t, "sleep 100")); err == nil || !strings.Contains(err.Error(), "did not answer") {
		t.Errorf("got %v", err)
	}
	var e *errs.Error
	if _, err := pluginhost.Probe(t.Context(), "/nowhere"); !errors.As(err, &e) {
		t.Errorf("got %v", err)
	}
}
