package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"github.com/droverhq/drover/core/store"
	"github.com/droverhq/drover/core/store/backup"
	"github.com/droverhq/drover/core/store/memory"
	"github.com/droverhq/drover/core/store/redis/redistest"
	"github.com/droverhq/drover/plugins/runner"
	"github.com/droverhq/drover/runners/process"
)

func TestMain(m *testing.M) {
	testscript.Main(leakChecked{m}, map[string]func(){"drover": main, "drover-runner-testing": testingRunner})
}

// testingRunner is a runner plugin.
func testingRunner() {
	runner.Serve(process.New(process.Config{
		Info: runner.Info{Name: "testing", Version: "v1"},
		Argv: func(s runner.Spec) ([]string, error) { return append([]string{"cat", s.Script}, s.Args...), nil },
	}))
}

// leakChecked fails when goroutines are left after all tests.
type leakChecked struct{ m *testing.M }

// Run implements testscript.TestingM.
func (l leakChecked) Run() int {
	code := l.m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			return 1
		}
	}
	return code
}

// TestScripts plays testdata/script against a fake scheduler each, with drover
// as a process of its own.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			f := startFake(env.T().(testing.TB), filepath.Join(env.WorkDir, "fake"))
			for k, v := range f.environment(map[string]string{"HOME": filepath.Join(env.WorkDir, "home"), "VIEWER": filepath.Join(f.dir, "viewer"), "STRANGER": filepath.Join(f.dir, "stranger")}) {
				env.Setenv(k, v)
			}
			runner, err := exec.LookPath("drover-runner-testing")
			if err != nil {
				return err
			}
			// A program of its own: the test binary knows what it is by its name,
			// and an installed plugin has another.
			wrapper := filepath.Join(env.WorkDir, "drover-runner-testing")
			if err := os.WriteFile(wrapper, []byte("#!/bin/sh\nexec "+runner+" \"$@\"\n"), 0o755); err != nil {
				return err
			}
			env.Setenv("RUNNER", wrapper)
			env.Values["fake"], env.Values["t"] = f, env.T()
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":   scriptExits,
			"reading": scriptReading,
			"awaited": scriptAwaited,
			"stops":   scriptStops,
			"begun":   scriptBegun,
			"same":    scriptSame,
			"redis":   scriptRedis,
			"records": scriptRecords,
			"damage":  scriptDamage,
		},
	})
}

// scriptExits is "exits CODE COMMAND...": the command ends with that code.
func scriptExits(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if exit, ok := err.(*exec.ExitError); ok { //nolint:errorlint // testscript returns it unwrapped
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit code %d, want %s", got, args[0])
	}
}

// scriptReading waits until somebody reads the output of the only job.
func scriptReading(ts *testscript.TestScript, _ bool, _ []string) {
	f := ts.Value("fake").(*fake)
	f.until(ts, func() bool { return len(f.jobs) == 1 && f.jobs[0].readers > 0 })
}

// scriptAwaited waits until somebody has asked for the end of the only job.
func scriptAwaited(ts *testscript.TestScript, _ bool, _ []string) {
	f := ts.Value("fake").(*fake)
	f.until(ts, func() bool { return len(f.jobs) == 1 && f.jobs[0].waiters > 0 })
}

// scriptStops is "stops N": waits until the only job has been stopped N times.
func scriptStops(ts *testscript.TestScript, _ bool, args []string) {
	f := ts.Value("fake").(*fake)
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	f.until(ts, func() bool { return len(f.jobs) == 1 && len(f.jobs[0].stops) >= n })
}

// scriptBegun is "begun N": waits until N jobs have begun.
func scriptBegun(ts *testscript.TestScript, _ bool, args []string) {
	f := ts.Value("fake").(*fake)
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	f.until(ts, func() bool { return len(f.jobs) == n })
}

// until waits for a condition that is checked under the lock.
func (f *fake) until(t interface{ Fatalf(string, ...any) }, ok func() bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.await(ctx, ok); ctx.Err() != nil {
		t.Fatalf("it did not come to that within a minute")
	}
}

// scriptSame is "same NAME FILE": the file holds the named bytes.
func scriptSame(ts *testscript.TestScript, _ bool, args []string) {
	want := map[string]string{"bytes": everyByte(), "bytes-twice": everyByte() + everyByte(), "500-lines": lines(500), "20000-lines": lines(20_000)}[args[0]]
	if got := ts.ReadFile(args[1]); got != want {
		ts.Fatalf("%s has %d bytes that differ from the %d of %s", args[1], len(got), len(want), args[0])
	}
}

// scriptRedis is "redis NAME ARGUMENT...": starts a Redis, with NAME its URL.
func scriptRedis(ts *testscript.TestScript, _ bool, args []string) {
	server := redistest.Start(ts.Value("t").(testing.TB), args[1:]...)
	ts.Setenv(args[0], server.URL())
}

// scriptDamage is "damage FOLDER N": changes a byte of the newest log of a store, N
// bytes before its end.
func scriptDamage(ts *testscript.TestScript, _ bool, args []string) {
	logs, err := filepath.Glob(filepath.Join(ts.MkAbs(args[0]), "*.log"))
	ts.Check(err)
	back, err := strconv.Atoi(args[1])
	ts.Check(err)
	path := slices.Max(logs)
	text, err := os.ReadFile(path)
	ts.Check(err)
	text[len(text)-back] ^= 1
	ts.Check(os.WriteFile(path, text, 0o600))
}

// scriptRecords is "records N FILE": makes a backup of N records.
func scriptRecords(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	var b store.Batch
	b.Put(store.TermKey(), store.EncodeTerm(1)) // as a scheduler leaves it
	for i := range n - 1 {
		b.Put(fmt.Appendf(nil, "x%06d", i), fmt.Append(nil, i))
	}
	st := memory.New()
	ts.Check(st.Apply(context.Background(), &b))
	f, err := os.Create(ts.MkAbs(args[1]))
	ts.Check(err)
	_, err = backup.Write(context.Background(), st, f, nil)
	ts.Check(err)
	ts.Check(f.Close())
}
