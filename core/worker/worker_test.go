package worker

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.Cleanup(func(code int) {
			if dir, err := pluginFolder(); err == nil {
				os.RemoveAll(dir)
			}
			os.Exit(code)
		}),
		// go-plugin's client of a plugin that lives on cannot be closed without
		// killing the plugin; a worker that leaves ends as a process.
		goleak.IgnoreAnyFunction("google.golang.org/grpc/internal/grpcsync.(*CallbackSerializer).run"),
		goleak.IgnoreAnyFunction("github.com/hashicorp/go-plugin/internal/cmdrunner.pidWait"),
	)
}

// story runs f in a bubble with one worker and checks that it leaves nothing.
func story(t *testing.T, f func(t *testing.T, b *bench), opts ...option) {
	t.Helper()
	t.Parallel()
	data := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := begin(t, newWorld(), data, opts...)
		f(t, b)
		b.crash()
	})
}

func TestAJobFromOrderToReport(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		r := b.start(order(1, "run=2500ms", "write=1s"))
		if r.State != job.Dispatched || r.Runner != "bash" || r.ScriptSHA256 != "5ha" {
			t.Errorf("answer: %+v", r)
		}
		r = b.wait(1, job.Running)
		if r.PID == 0 || r.Start.IsZero() {
			t.Errorf("running: %+v", r)
		}
		r = b.wait(1, job.Succeeded)
		if r.ExitCode == nil || *r.ExitCode != 0 || r.Evidence != job.Wait {
			t.Errorf("no observed code: %+v", r)
		}
		if r.Stdout != (job.Stream{Size: 2, SHA256: "out"}) || r.PID != 0 || r.StopProof != nil {
			t.Errorf("final: %+v", r)
		}
		if got := r.End.Sub(r.Start); got != 2500*time.Millisecond {
			t.Errorf("it ran for %s", got)
		}
		b.clean()
	})
}

func TestResults(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		args   []string
		change func(*job.Spec)
		state  job.State
		reason string
		signal string
		text   string
		took   time.Duration
	}{
		{name: "code", args: []string{"run=1s", "code=3"}, state: job.Failed, reason: job.ReasonExitCode, text: "exit code 3", took: time.Second},
		{
			name: "oom", args: []string{"run=1s", "oom"}, change: func(s *job.Spec) { s.Limits.Memory = 1 << 20 },
			state: job.Failed, reason: job.ReasonOOM, signal: "SIGKILL", took: time.Second,
		},
		{
			name: "timeout", change: func(s *job.Spec) { s.Timeout = 5 * time.Second },
			state: job.Failed, reason: job.ReasonTimeout, signal: "SIGTERM", text: "longer than 5s", took: 5 * time.Second,
		},
		{
			name: "timeout of a deaf job", args: []string{"deaf"},
			change: func(s *job.Spec) { s.Timeout, s.Grace = 5*time.Second, 3*time.Second },
			state:  job.Failed, reason: job.ReasonTimeout, signal: "SIGKILL", took: 8 * time.Second,
		},
		{
			name: "silent", change: func(s *job.Spec) { s.IdleTimeout = 5 * time.Second },
			state: job.Failed, reason: job.ReasonIdleTimeout, signal: "SIGTERM", text: "silent for 5s", took: 5 * time.Second,
		},
		{
			name: "not silent", args: []string{"write=4s", "run=30s"}, change: func(s *job.Spec) { s.IdleTimeout = 5 * time.Second },
			state: job.Succeeded, took: 30 * time.Second,
		},
		{name: "not found", args: []string{"spawn=NOT_FOUND"}, state: job.Failed, reason: job.ReasonSpawn, text: "NOT_FOUND"},
		{name: "not executable", args: []string{"spawn=NOT_EXECUTABLE"}, state: job.Failed, reason: job.ReasonSpawn, text: "NOT_EXECUTABLE"},
		{name: "P10 child ends in the linger", args: []string{"run=1s", "kid=1s"}, state: job.Succeeded, took: time.Second},
		{name: "P10 child outlives the linger", args: []string{"run=1s", "kid=1h"}, state: job.Succeeded, took: time.Second},
		{name: "P10 mute child outlives the linger", args: []string{"run=1s", "mute-kid=1h"}, state: job.Succeeded, took: time.Second},
		{
			name: "P10 no linger", args: []string{"run=1s", "kid=1h"}, change: func(s *job.Spec) { s.Linger = 0 },
			state: job.Succeeded, took: time.Second,
		},
		{
			name: "output limit seen only at the end", args: []string{"run=5s", "write=1s"},
			change: func(s *job.Spec) { s.OutputPolicy, s.OutputLimit = job.Fail, 2 },
			state:  job.Failed, reason: job.ReasonOutputLimit, took: 5 * time.Second,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			story(t, func(t *testing.T, b *bench) {
				o := order(1, c.args...)
				if c.change != nil {
					c.change(&o.Spec)
				}
				b.start(o)
				began := time.Now()
				r := b.wait(1, c.state)
				if r.Reason != c.reason || r.Signal != c.signal || !strings.Contains(r.Message, c.text) {
					t.Errorf("%s %q %q %q", r.State, r.Reason, r.Signal, r.Message)
				}
				if c.took > 0 && r.End.Sub(began).Round(100*time.Millisecond) != c.took {
					t.Errorf("ended after %s, want %s", r.End.Sub(began), c.took)
				}
				if c.reason == job.ReasonSpawn && (r.ExitCode != nil || r.PID != 0) {
					t.Errorf("P6: a process that never was has a result: %+v", r)
				}
				b.clean()
			})
		})
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		change func(*job.Spec)
		world  func(*world)
		state  job.State
		reason string
		text   string
	}{
		{name: "script", change: func(s *job.Spec) { s.Path = "gone.sh" }, reason: job.ReasonScriptGone, text: "path: "},
		{name: "path", change: func(s *job.Spec) { s.Path = "../etc/passwd" }, reason: job.ReasonPath, text: "path: "},
		{name: "bare command", change: func(s *job.Spec) { s.Path, s.Command = "", "bash" }, reason: job.ReasonPolicy, text: "command: "},
		{name: "bare command by path", change: func(s *job.Spec) { s.Path, s.Command = "", "/tmp/true" }, reason: job.ReasonPolicy},
		{name: "no runner", change: func(s *job.Spec) { s.Command = "ruby" }, reason: job.ReasonNoRunner, text: `no runner serves "ruby"`},
		{name: "no extension", change: func(s *job.Spec) { s.Command, s.Path = "", "count" }, reason: job.ReasonNoRunner, text: "extension"},
		{name: "nothing", change: func(s *job.Spec) { s.Command, s.Path = "", "" }, reason: reasonBadRequest},
		{name: "limit", change: func(s *job.Spec) { s.Limits.CPUMillis = 100 }, reason: job.ReasonLimit, text: "limits.cpu_millis"},
		{name: "env", change: func(s *job.Spec) { s.Env = map[string]string{"LD_PRELOAD": "x"} }, reason: job.ReasonPolicy, text: `env["LD_PRELOAD"]`},
		{name: "env NUL", change: func(s *job.Spec) { s.Env = map[string]string{"APP_A": "\x00"} }, reason: reasonBadRequest},
		{name: "args NUL", change: func(s *job.Spec) { s.Args = []string{"", "\x00"} }, reason: reasonBadRequest, text: "args[1]"},
		{name: "user", change: func(s *job.Spec) { s.User = "nobody" }, reason: job.ReasonPolicy, text: "user: "},
		{name: "workdir", change: func(s *job.Spec) { s.Workdir = "/nonexistent" }, reason: reasonWorkdir, text: "/nonexistent"},
		{name: "relative workdir", change: func(s *job.Spec) { s.Workdir = "tmp" }, reason: reasonWorkdir},
		{name: "workdir file", change: func(s *job.Spec) { s.Workdir = "/etc/passwd" }, reason: reasonWorkdir, text: "not a folder"},
		{name: "secret", change: func(s *job.Spec) { s.Secrets = map[string][]byte{"../x": nil} }, reason: reasonBadRequest, text: "secrets"},
		{name: "stdin", change: func(s *job.Spec) { s.Stdin = make([]byte, job.MaxStdin+1) }, reason: reasonBadRequest, text: "stdin"},
		{
			name: "plugin", world: func(w *world) {
				w.refusal = errs.E("start", errs.Unavailable, job.ReasonRunnerFailed, errors.New("it keeps dying"))
			},
			reason: job.ReasonRunnerFailed, text: "it keeps dying",
		},
		{
			name:   "command of the policy that is not there",
			change: func(s *job.Spec) { s.Path, s.Command = "", "drover-no-such" }, state: job.Failed, reason: job.ReasonSpawn, text: "NOT_FOUND",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			story(t, func(t *testing.T, b *bench) {
				if c.world != nil {
					c.world(b.w)
				}
				o := order(1, "run=1s")
				if c.change != nil {
					c.change(&o.Spec)
				}
				want := c.state
				if want == job.None {
					want = job.Rejected
				}
				b.start(o)
				r := b.wait(1, want)
				if r.Reason != c.reason || !strings.Contains(r.Message, c.text) || r.Message == "" {
					t.Errorf("%s %q: %q", r.State, r.Reason, r.Message)
				}
				if n := b.w.starts[attemptID(o.Key)]; n != 0 {
					t.Errorf("%d processes were made", n)
				}
				// A duplicate gets the same answer and starts nothing.
				if again := b.start(o); again.State != want || again.Reason != c.reason {
					t.Errorf("duplicate: %+v", again)
				}
				b.w.procs = map[string]*proc{}
				b.clean()
			}, func(c *Config) { c.Policy.Commands = []string{"true", "drover-no-such"} })
		})
	}
}

func TestWhatARunnerGets(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		o := order(1, "run=1s", "", "with space", "-x")
		o.Spec.Stdin = []byte("typed")
		o.Spec.Secrets = map[string][]byte{"token": []byte("hunter2")}
		o.Spec.Env = map[string]string{"COLOR": "red", "PATH": "/opt/bin"}
		b.start(o)
		b.wait(1, job.Running)
		l := b.w.launched[0]
		if l.Script != "/gen/7/count.sh" || l.Workdir != "/gen/7" || l.Command != "bash" || l.Cgroup != "group1" {
			t.Errorf("launch: %+v", l)
		}
		if !slices.Equal(l.Args, []string{"run=1s", "", "with space", "-x"}) {
			t.Errorf("args: %q", l.Args)
		}
		id := attemptID(o.Key)
		want := []string{
			"COLOR=red", "DROVER_ATTEMPT=1", "DROVER_JOB_ID=" + o.Job.String(), "DROVER_MARK=" + id,
			"DROVER_SCRIPT_SOURCE=/src/count.sh", "DROVER_SECRETS=" + filepath.Join(b.data, "attempts", id, "secrets"),
			"DROVER_WORKER=w1", "LC_ALL=C", "PATH=/opt/bin",
		}
		if !slices.Equal(l.Env, want) {
			t.Errorf("env:\n%q\nwant:\n%q", l.Env, want)
		}
		secret := filepath.Join(b.data, "attempts", id, "secrets", "token")
		for file, text := range map[string]string{l.Stdin: "typed", secret: "hunter2"} {
			got, err := os.ReadFile(file)
			if err != nil || string(got) != text {
				t.Errorf("%s holds %q, %v", file, got, err)
			}
			if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o400 {
				t.Errorf("%s has mode %v, %v", file, info.Mode(), err)
			}
		}
		raw, err := os.ReadFile(b.data + "/journal")
		if err != nil || strings.Contains(string(raw), "hunter2") {
			t.Errorf("the journal holds the secret (%v)", err)
		}
		b.wait(1, job.Succeeded)
		b.clean()
		if _, err := os.Stat(filepath.Join(b.data, "attempts", id)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("secrets outlive the attempt: %v", err)
		}
	}, func(c *Config) { c.Policy.Env = []string{"COLOR", "PATH"} })
}

func TestBareCommandsRunByTheBinaryRunner(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		o := order(1, "run=1s")
		o.Spec.Path, o.Spec.Command = "", "true"
		b.start(o)
		r := b.wait(1, job.Succeeded)
		l := b.w.launched[0]
		if r.Runner != "binary" || l.Script != "" || !filepath.IsAbs(l.Command) || filepath.Base(l.Command) != "true" {
			t.Errorf("%s got %+v", r.Runner, l)
		}
		if l.Workdir != filepath.Join(b.data, "scratch") {
			t.Errorf("workdir %s", l.Workdir)
		}
	})
}

func TestExtensionsChooseARunner(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		o := order(1, "run=1s")
		o.Spec.Command = ""
		b.start(o)
		if r := b.wait(1, job.Succeeded); r.Runner != "sh" {
			t.Errorf("runner %q", r.Runner)
		}
	})
}

func TestP2DuplicatesStartNothing(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		o := order(1, "run=1s")
		for range 3 {
			b.start(o)
		}
		b.wait(1, job.Succeeded)
		if r := b.start(o); r.State != job.Succeeded {
			t.Errorf("late duplicate: %+v", r)
		}
		b.clean()
		if n := b.w.starts[attemptID(o.Key)]; n != 1 {
			t.Errorf("%d starts", n)
		}
	})
}

func TestP2LateStartAfterItsStop(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		r, err := b.Stop(t.Context(), stopOrder(1, 0), true)
		if err != nil || r.State != job.Stopped || r.StopProof == nil {
			t.Fatalf("stop of the unseen: %+v, %v", r, err)
		}
		if r := b.start(order(1)); r.State != job.Rejected || r.Reason != job.ReasonTombstone {
			t.Errorf("late start: %+v", r)
		}
		if len(b.w.launched) != 0 {
			t.Error("it was launched")
		}
		if r, err = b.Attempt(t.Context(), testKey(1)); err != nil || r.State != job.Stopped {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

func TestP3OldFencesAreRefused(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		o := order(5, "run=1s")
		o.Fence = job.Fence{Term: 2, Counter: 5}
		b.start(o)
		for _, f := range []job.Fence{{Term: 1, Counter: 9}, {Term: 2, Counter: 4}} {
			late := order(6)
			late.Fence = f
			_, err := b.Start(t.Context(), late)
			if errs.KindOf(err) != errs.Precondition || errs.ReasonOf(err) != job.ReasonFenced {
				t.Errorf("fence %v: %v", f, err)
			}
		}
		_, err := b.Stop(t.Context(), stopOrder(5, 0), false) // of term 1
		if errs.ReasonOf(err) != job.ReasonFenced {
			t.Errorf("a stop of an old term: %v", err)
		}
		b.wait(5, job.Succeeded)
	})
}

func TestP9StopIsProved(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		b.start(order(1, "kid=1h"))
		b.wait(1, job.Running)
		r, err := b.Stop(t.Context(), stopOrder(1, time.Second), false)
		if err != nil || r.State != job.Stopping || r.Reason != job.ReasonUser {
			t.Fatalf("answer: %+v, %v", r, err)
		}
		r, err = b.Stop(t.Context(), stopOrder(1, time.Second), true)
		if err != nil || r.State != job.Stopped || r.StopProof.Termed != 2 || r.StopProof.Killed != 0 {
			t.Fatalf("end: %+v %+v, %v", r, r.StopProof, err)
		}
		if r.Signal != "SIGTERM" || r.Evidence != job.Wait {
			t.Errorf("how it ended: %+v", r)
		}
		if again, err := b.Stop(t.Context(), stopOrder(1, 0), true); err != nil || again.State != job.Stopped {
			t.Errorf("stop of the stopped: %+v, %v", again, err)
		}
		b.clean()
	})
}

func TestP9SecondStopEscalatesAtOnce(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		b.start(order(1, "deaf"))
		b.wait(1, job.Running)
		began := time.Now()
		if _, err := b.Stop(t.Context(), stopOrder(1, time.Hour), false); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		r, err := b.Stop(t.Context(), stopOrder(1, 0), true)
		if err != nil || r.State != job.Stopped || r.StopProof.Killed != 1 || r.Signal != "SIGKILL" {
			t.Fatalf("%+v %+v, %v", r, r.StopProof, err)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("it took %s", took)
		}
		b.clean()
	})
}

func TestP9GraceIsTheSpecsUnlessAsked(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		b.start(order(1, "deaf"))
		b.wait(1, job.Running)
		began := time.Now()
		o := stopOrder(1, 0)
		o.Grace = nil
		r, err := b.Stop(t.Context(), o, true)
		if err != nil || r.State != job.Stopped {
			t.Fatalf("%+v, %v", r, err)
		}
		if took := time.Since(began).Round(time.Second); took != job.DefaultGrace {
			t.Errorf("it took %s", took)
		}
	})
}

func TestP9TheUnkillableStaysStoppingAndSaysWhy(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		b.start(order(1, "undead"))
		b.wait(1, job.Running)
		if _, err := b.Stop(t.Context(), stopOrder(1, 0), false); err != nil {
			t.Fatal(err)
		}
		time.Sleep(61 * time.Second)
		r := b.wait(1, job.Stopping)
		if !strings.Contains(r.Message, "withstands SIGKILL") {
			t.Errorf("message %q", r.Message)
		}
		said := func() bool {
			return slices.ContainsFunc(b.Conditions(), func(c job.Condition) bool { return c.Type == reasonUnkillable })
		}
		if !said() || b.Counts().Unkillable != 1 {
			t.Errorf("conditions %v", b.Conditions())
		}
		b.w.mu.Lock()
		b.w.mercy = true
		b.w.mu.Unlock()
		time.Sleep(2 * time.Minute)
		b.wait(1, job.Stopped)
		if said() {
			t.Errorf("conditions %v", b.Conditions())
		}
		b.clean()
	})
}

func TestAStopDuringTheLingerKeepsTheResult(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		o := order(1, "run=1s", "code=4", "kid=1h")
		o.Spec.Linger = time.Hour
		b.start(o)
		b.wait(1, job.Running)
		time.Sleep(2 * time.Second)
		r, err := b.Stop(t.Context(), stopOrder(1, time.Second), true)
		if err != nil || r.State != job.Failed || *r.ExitCode != 4 || r.StopProof == nil || r.StopProof.Termed != 1 {
			t.Fatalf("%+v, %v", r, err)
		}
		b.clean()
	})
}

func TestAStopBeforeTheProcessWaitsForIt(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		b.start(order(1, "late=3s"))
		r, err := b.Stop(t.Context(), stopOrder(1, 10*time.Second), true)
		if err != nil || r.State != job.Stopped || r.StopProof.Termed != 1 {
			t.Fatalf("%+v, %v", r, err)
		}
		b.clean()
	})
}

func TestP10DetachedChildrenLive(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		o := order(1, "run=1s", "kid=1m")
		o.Spec.DetachChildren = true
		b.start(o)
		r := b.wait(1, job.Succeeded)
		if r.Stdout.SHA256 != "" {
			t.Errorf("P8: a checksum of an open stream: %+v", r.Stdout)
		}
		if empty, _ := (worldGroup{b.w, "group1"}).Empty(StopRequest{}); empty {
			t.Error("the child was killed")
		}
		if b.Counts().Running != 0 {
			t.Error("a detached child holds a slot")
		}
		time.Sleep(2 * time.Minute)
		if r = b.wait(1, job.Succeeded); r.Stdout.SHA256 != "out" {
			t.Errorf("after the child's end: %+v", r.Stdout)
		}
		b.clean()
	})
}

func TestMuteDetachedChildrenDelayNoChecksum(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		o := order(1, "run=1s", "mute-kid=1m")
		o.Spec.DetachChildren = true
		b.start(o)
		if r := b.wait(1, job.Succeeded); r.Stdout.SHA256 != "out" {
			t.Errorf("streams %+v", r.Stdout)
		}
		time.Sleep(2 * time.Minute)
		b.clean()
	})
}

func TestOutputPolicyFailStops(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		o := order(1, "write=1s")
		o.Spec.OutputPolicy, o.Spec.OutputLimit = job.Fail, 3
		b.start(o)
		b.wait(1, job.Running)
		time.Sleep(5 * time.Second)
		b.w.feed.OutputExceeded(o.Key)
		if r := b.wait(1, job.Failed); r.Reason != job.ReasonOutputLimit || r.StopProof == nil {
			t.Errorf("%+v", r)
		}
		b.clean()
	})
}

func TestOrdersBeyondTheSlotsWaitAndFailNothing(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		answers := make(chan error, 4)
		for n := range byte(6) {
			go func() {
				time.Sleep(time.Duration(n) * time.Millisecond) // in order: strict fences grow
				_, err := b.Start(t.Context(), order(n+1, "run=10s"))
				answers <- err
			}()
		}
		time.Sleep(time.Second)
		if r := b.wait(5, job.Dispatched); r.Reason != job.ReasonNoSlot {
			t.Errorf("waiting: %+v", r)
		}
		if c := b.Counts(); c.Running != 4 || c.Waiting != 2 {
			t.Errorf("%+v", c)
		}
		for n := range byte(6) {
			b.wait(n+1, job.Succeeded)
		}
		for range 6 {
			if err := <-answers; err != nil {
				t.Error(err)
			}
		}
		if c := b.Counts(); c.Running != 0 {
			t.Errorf("%+v", c)
		}
		b.clean()
	})
}

func TestP16TooManyOrdersAreRefusedAndNotRemembered(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		b.start(order(1))
		go b.Start(ctx, order(2, "run=1s"))
		time.Sleep(time.Second)
		_, err := b.Start(t.Context(), order(3))
		if errs.KindOf(err) != errs.Exhausted || errs.ReasonOf(err) != job.ReasonNoSlot {
			t.Fatalf("third order: %v", err)
		}
		if _, err := b.Attempt(t.Context(), testKey(3)); errs.KindOf(err) != errs.NotFound {
			t.Errorf("it is remembered: %v", err)
		}
		if _, err := b.Stop(t.Context(), stopOrder(1, 0), true); err != nil {
			t.Fatal(err)
		}
		b.wait(2, job.Succeeded)
		b.start(order(3, "run=1s"))
		b.wait(3, job.Succeeded)
	}, func(c *Config) { c.Slots, c.Overshoot = 1, 1 })
}

func TestAStopTakesAnOrderOutOfTheQueue(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		b.start(order(1))
		go b.Start(t.Context(), order(2))
		time.Sleep(time.Second)
		r, err := b.Stop(t.Context(), stopOrder(2, 0), true)
		if err != nil || r.State != job.Stopped || len(b.w.launched) != 1 {
			t.Fatalf("%+v, %v", r, err)
		}
		b.wait(1, job.Running)
		if _, err := b.Stop(t.Context(), stopOrder(1, 0), true); err != nil {
			t.Fatal(err)
		}
		b.clean()
	}, func(c *Config) { c.Slots = 1 })
}

func TestCallsNameTheirAttempt(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		if _, err := b.Start(t.Context(), job.StartOrder{}); errs.KindOf(err) != errs.Invalid {
			t.Errorf("start of nothing: %v", err)
		}
		o := stopOrder(1, 0)
		o.Attempt = 0
		if _, err := b.Stop(t.Context(), o, false); errs.KindOf(err) != errs.Invalid {
			t.Errorf("stop of attempt 0: %v", err)
		}
		if _, err := b.Attempt(t.Context(), testKey(9)); errs.KindOf(err) != errs.NotFound {
			t.Errorf("unknown attempt: %v", err)
		}
		b.start(order(1, "run=1s"))
		r, err := b.Attempt(t.Context(), job.Key{Job: testKey(1).Job})
		if err != nil || r.Key != testKey(1) {
			t.Errorf("newest attempt: %+v, %v", r, err)
		}
		b.wait(1, job.Succeeded)
	})
}

func TestP11APluginThatShutsDownFailsNoJob(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		b.w.leaving = 3
		b.start(order(1, "run=1s"))
		b.wait(1, job.Succeeded)
		b.w.leaving = 100
		b.start(order(2, "run=1s"))
		if r := b.wait(2, job.Rejected); r.Reason != job.ReasonRunnerFailed || !strings.Contains(r.Message, "SHUTTING_DOWN") {
			t.Errorf("%+v", r)
		}
		b.clean()
	})
}

func TestABrokenOutputEndsTheAttemptAllTheSame(t *testing.T) {
	story(t, func(t *testing.T, b *bench) {
		b.w.finish = errors.New("input/output error")
		b.start(order(1, "run=1500ms", "write=1s"))
		r := b.wait(1, job.Succeeded)
		if !strings.Contains(r.Message, "input/output error") || r.Stdout.SHA256 != "" || r.Stdout.Size != 1 {
			t.Errorf("%+v", r)
		}
	})
}
