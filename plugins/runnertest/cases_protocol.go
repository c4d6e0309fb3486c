package runnertest

import (
	"cmp"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/droverhq/drover/plugins/runner"
	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

func startErrors(t *testing.T, h Harness) {
	w := newWorld(t, h, Options{})
	for name, spoil := range map[string]func(*job){
		"working folder":  func(j *job) { j.Workdir = "/does/not/exist" },
		"NUL in argument": func(j *job) { j.Args = []string{"a\x00b"} },
		"NUL in variable": func(j *job) { j.Env = append(j.Env, "A=a\x00b") },
		"output pipe":     func(j *job) { j.Stdout = "/does/not/exist" },
	} {
		t.Run(name, func(t *testing.T) {
			j := w.prepare("exit", "0")
			spoil(j)
			j.run().mustFail(runner.BadRequest)
		})
	}
	if s := w.stats(); s.GetRunning() != 0 || s.GetStarted() != 0 {
		t.Errorf("after failed starts: %v", s)
	}
	w.prepare("exit", "7").run().mustExit(7)
}

func executeErrors(t *testing.T, h Harness) {
	w := newWorld(t, h, Options{})
	dir := t.TempDir()
	info, err := w.Client.GetInfo(context.Background(), &runnerv1.GetInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if info.GetInterpreter() != "" || filepath.IsAbs(h.Command) {
		file := filepath.Join(dir, h.Interpreter)
		missing := w.prepare("exit", "0")
		missing.interpret(file)
		missing.run().mustFail(runner.NotFound)

		if err := os.WriteFile(file, []byte("text"), 0o600); err != nil {
			t.Fatal(err)
		}
		plain := w.prepare("exit", "0")
		plain.interpret(file)
		plain.run().mustFail(runner.NotExecutable)
	}
	long := w.prepare("exit", strings.Repeat("x", 1<<20))
	long.run().mustFail(runner.BadRequest)
}

// canaryEnds does what a worker does with a new version.
func canaryEnds(t *testing.T, h Harness) {
	w := newWorld(t, h, Options{})
	info, err := w.Client.GetInfo(context.Background(), &runnerv1.GetInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	wanted := info.GetCanary()
	if wanted == nil {
		wanted = &runnerv1.Canary{Script: []byte{}}
	}
	j := w.prepare("exit", wanted.GetArgs()...)
	j.Command, j.Script = cmp.Or(wanted.GetCommand(), info.GetName()), ""
	if wanted.Script != nil {
		j.Script = filepath.Join(j.Workdir, "canary"+strings.Join(info.GetExtensions()[:min(1, len(info.GetExtensions()))], ""))
		if err := os.WriteFile(j.Script, wanted.GetScript(), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	j.run()
	e := w.awaitExit(j.GetId())
	_, exited := e.GetResult().(*runnerv1.Exited_ExitCode)
	switch declared := info.GetCanary() != nil; {
	case declared && (!exited || e.GetExitCode() != 0):
		t.Errorf("the declared canary ended with %v", e)
	case !declared && !exited && e.GetError().GetReason() != runner.BadRequest:
		t.Errorf("an empty script ended with %v", e)
	}
	w.session.send(&runnerv1.SessionRequest{Acks: []string{j.GetId()}})
	w.eventually("it is forgotten", func() bool { s := w.stats(); return s.GetUnacknowledged() == 0 && s.GetRunning() == 0 })
}

func startedOnce(t *testing.T, h Harness) {
	w := newWorld(t, h, Options{})
	j := w.prepare("sleep").run()
	pid := j.pid()
	again := func(heard int) {
		t.Helper()
		w.session.send(&runnerv1.SessionRequest{Starts: []*runnerv1.Start{j.Start}})
		w.session.await("another word of the job", func() bool { return w.session.heard[j.GetId()] == heard })
	}
	again(2) // the start
	j.signal(syscall.SIGKILL)
	w.awaitExit(j.GetId())
	again(5) // start and exit, after the exit itself
	j.mustSignal(syscall.SIGKILL)
	w.eventually("the exit is forgotten", func() bool { return w.stats().GetUnacknowledged() == 0 })
	again(6) // delayed past its end: the exit
	if j.pid() != pid {
		t.Errorf("process %d became %d", pid, j.pid())
	}
	twins := w.prepare("sleep")
	w.session.send(&runnerv1.SessionRequest{Starts: []*runnerv1.Start{twins.Start, twins.Start}})
	w.session.await("the start", func() bool { return w.session.started[twins.GetId()] != nil })
	twins.signal(syscall.SIGKILL)
	twins.mustSignal(syscall.SIGKILL)
	if s := w.stats(); s.GetStarted() != 2 || s.GetRunning() != 0 {
		t.Errorf("two jobs, five requests: %v", s)
	}
}

func reattach(t *testing.T, h Harness) {
	w := newWorld(t, h, Options{})
	quick, slow, acked := w.prepare("sleep").run(), w.prepare("sleep").run(), w.prepare("exit", "0").run()
	acked.mustExit(0)
	w.eventually("the exit is forgotten", func() bool { return w.stats().GetUnacknowledged() == 0 })
	pids := [2]int{quick.pid(), slow.pid()}
	quick.signal(syscall.SIGUSR1)
	w.awaitExit(quick.GetId()) // and no acknowledgement
	w.session.close()
	w.connect()
	if quick.pid() != pids[0] || slow.pid() != pids[1] {
		t.Errorf("processes %d and %d became %d and %d", pids[0], pids[1], quick.pid(), slow.pid())
	}
	quick.mustSignal(syscall.SIGUSR1)
	if s := w.session.startedOf(acked.GetId()); s != nil {
		t.Errorf("an acknowledged job was told again: %v", s)
	}
	slow.signal(syscall.SIGTERM)
	slow.mustSignal(syscall.SIGTERM)
}

func oneSession(t *testing.T, h Harness) {
	w := newWorld(t, h, Options{})
	old := w.session
	j := w.prepare("sleep").run()
	w.connect()
	select {
	case <-old.done:
	case <-time.After(patience):
		t.Fatal("two sessions at once")
	}
	old.close()
	j.signal(syscall.SIGTERM)
	j.mustSignal(syscall.SIGTERM)
}

func exitJournal(t *testing.T, h Harness) {
	w := newWorld(t, h, Options{})
	ended, running := w.prepare("exit", "9").run(), w.prepare("sleep").run()
	w.awaitExit(ended.GetId())
	failed := w.prepare("exit", "0")
	failed.Workdir = "/does/not/exist"
	failed.run()
	j, err := runner.ReadJournal(w.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if e := j.Exited[ended.GetId()]; e.GetExitCode() != 9 || !e.GetFromJournal() {
		t.Errorf("the ended job: %v", e)
	}
	if s := j.Started[running.GetId()]; int(s.GetPid()) != running.pid() || j.Exited[running.GetId()] != nil {
		t.Errorf("the running job: %v", s)
	}
	if e := j.Exited[failed.GetId()]; e.GetError().GetReason() != runner.BadRequest {
		t.Errorf("the failed start: %v", e)
	}
	ended.mustExit(9)
	failed.mustFail(runner.BadRequest)
}

// adopted gives a job of one plugin to another, as a worker does after the first
// has died. Here it lives and reaps, so an older kernel may tell the second
// nothing; it never tells anything false.
func adopted(t *testing.T, h Harness) {
	first, second := newWorld(t, h, Options{}), newWorld(t, h, Options{})
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		j := first.prepare("sleep").run()
		adopt := &runnerv1.Adopt{
			Id: j.GetId(), Pid: int64(j.pid()), StartTicks: first.session.startedOf(j.GetId()).GetStartTicks(),
			Stdout: j.GetStdout(), Stderr: j.GetStderr(),
		}
		second.session.send(&runnerv1.SessionRequest{Adopts: []*runnerv1.Adopt{adopt}})
		second.session.await("the adopted process", func() bool { return second.session.started[j.GetId()] != nil })
		if s := second.stats(); s.GetRunning() != 1 {
			t.Errorf("%v", s)
		}
		second.session.close()
		second.connect() // it is told again
		if s := second.session.startedOf(j.GetId()); s.GetPid() != adopt.GetPid() {
			t.Errorf("adopted %v", s)
		}
		j.signal(sig)
		j.mustSignal(sig)
		e := second.awaitExit(j.GetId())
		if s, ok := e.GetResult().(*runnerv1.Exited_Signal); !e.GetAdopted() || e.GetResult() != nil && (!ok || s.Signal != int32(sig)) {
			t.Errorf("the adopted process ended with %v, want signal %d", e, sig)
		}
		second.session.send(&runnerv1.SessionRequest{Acks: []string{j.GetId()}})
		second.eventually("the exit is forgotten", func() bool { return second.stats().GetUnacknowledged() == 0 })
	}
}

func adoptedTooLate(t *testing.T, h Harness) {
	w := newWorld(t, h, Options{})
	j := w.prepare("exit", "0")
	w.session.send(&runnerv1.SessionRequest{Adopts: []*runnerv1.Adopt{{
		Id: "gone", Pid: int64(os.Getpid()), StartTicks: 1, Stdout: j.GetStdout(), Stderr: j.GetStderr(),
	}}})
	if e := w.awaitExit("gone"); e.GetResult() != nil || !e.GetAdopted() {
		t.Errorf("ended with %v", e)
	}
	w.session.send(&runnerv1.SessionRequest{Acks: []string{"gone"}})
	w.eventually("it is forgotten", func() bool { s := w.stats(); return s.GetUnacknowledged() == 0 && s.GetRunning() == 0 })
}

func idleEnd(t *testing.T, h Harness) {
	// Long enough for a busy machine to open the session in time.
	const idle = 3 * time.Second
	w := newWorld(t, h, Options{Idle: idle})
	j := w.prepare("sleep").run()
	// Neither a session nor a job is idleness.
	w.mustLive(idle + time.Second)
	w.session.close()
	w.mustLive(idle + time.Second)
	w.connect()
	j.signal(syscall.SIGTERM)
	j.mustSignal(syscall.SIGTERM)
	w.eventually("the exit is forgotten", func() bool { return w.stats().GetUnacknowledged() == 0 })
	w.session.close()
	w.awaitEnd()
}

func shutdownAfterLast(t *testing.T, h Harness) {
	w := newWorld(t, h, Options{})
	last := w.prepare("sleep").run()
	if _, err := w.Client.Shutdown(context.Background(), &runnerv1.ShutdownRequest{}); err != nil {
		t.Fatal(err)
	}
	late := w.prepare("exit", "0").run()
	late.mustFail(runner.ShuttingDown)
	last.signal(syscall.SIGTERM)
	w.awaitExit(last.GetId())
	w.mustLive(0) // until the exit is acknowledged
	last.mustSignal(syscall.SIGTERM)
	w.awaitEnd()
}

// newerWorker sends fields that this protocol version does not know.
func newerWorker(t *testing.T, h Harness) {
	w := newWorld(t, h, Options{})
	unknown := protowire.AppendString(protowire.AppendTag(nil, 999, protowire.BytesType), "from the future")
	j := w.prepare("exit", "6")
	j.ProtoReflect().SetUnknown(unknown)
	frame := &runnerv1.SessionRequest{Acks: []string{"nobody"}}
	frame.ProtoReflect().SetUnknown(unknown)
	w.session.send(frame)
	j.run().mustExit(6)
}

func manyQuickStarts(t *testing.T, h Harness) {
	w := newWorld(t, h, Options{})
	warm := w.prepare("exit", "0").run()
	warm.mustExit(0)
	for _, f := range warm.lanes {
		_ = f.Close()
	}
	w.eventually("the exit is forgotten", func() bool { return w.stats().GetUnacknowledged() == 0 })
	before := w.stats()
	const flight = 50
	jobs := make([]*job, 0, flight)
	for n := 0; n < quickStarts; n += flight {
		jobs = jobs[:0]
		frame := &runnerv1.SessionRequest{}
		for i := n; i < n+flight; i++ {
			j := w.prepare("exit", strconv.Itoa(i%256))
			jobs = append(jobs, j)
			frame.Starts = append(frame.Starts, j.Start)
		}
		w.session.send(frame)
		for i, j := range jobs {
			w.awaitExit(j.GetId())
			j.mustExit(int32((n + i) % 256))
			for _, f := range j.lanes {
				_ = f.Close()
			}
		}
	}
	var after *runnerv1.GetStatsResponse
	w.eventually("nothing is left behind", func() bool {
		after = w.stats()
		return after.GetUnacknowledged() == 0 && after.GetFds() <= before.GetFds() && after.GetGoroutines() <= before.GetGoroutines()
	})
	if after.GetRunning() != 0 || after.GetStarted() != before.GetStarted()+quickStarts {
		t.Errorf("%v, before %v", after, before)
	}
	if h.Interpreter == "" {
		return
	}
	tasks, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(w.PID), "task", "*", "children"))
	if err != nil {
		t.Fatal(err)
	}
	w.eventually("all children are reaped", func() bool { // an end is told before that
		for _, f := range tasks {
			if left, err := os.ReadFile(f); err == nil && len(left) > 0 {
				return false
			}
		}
		return true
	})
}

func otherProtocol(t *testing.T, path string) {
	_, err := launch(t, path, runner.Protocol+1, Options{})
	if err == nil || !strings.Contains(err.Error(), "incompatible API version") {
		t.Errorf("launched for protocol %d: %v", runner.Protocol+1, err)
	}
}

// describes compares what is in a manifest with what a worker hears.
func describes(t *testing.T, path string, h Harness) {
	cmd := exec.Command(path, "--describe")
	cmd.Env = []string{runner.CookieKey + "=" + runner.CookieValue}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var d runner.Description
	if err := json.Unmarshal(out, &d); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	i, err := h.Open(t, Options{}).Client.GetInfo(context.Background(), &runnerv1.GetInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if d.Name != i.GetName() || d.Version != i.GetVersion() || d.Protocol != int(i.GetProtocol()) ||
		!slices.Equal(d.Commands, i.GetCommands()) || !slices.Equal(d.Extensions, i.GetExtensions()) {
		t.Errorf("describes itself as %s, says %v", out, i)
	}
}
