package runnertest

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/plugins/runner"
	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// interpreterOfTheWorker puts a program of the interpreter's name into the folder
// that the job's PATH names first, and into its working folder. Neither must run,
// whether the worker says where the interpreter is or is an older one that does not.
func interpreterOfTheWorker(t *testing.T, h Harness) {
	w := newWorld(t, h, Options{})
	dir := t.TempDir()
	name := filepath.Base(h.Interpreter)
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\nexit 99\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, ".", "", dir + ":" + os.Getenv("PATH")} {
		told := w.prepare("exit", "7")
		told.Env, told.Workdir = []string{"PATH=" + path}, dir
		told.run().mustExit(7)

		old := w.prepare("exit", "7")
		old.Env, old.Workdir, old.Interpreter = []string{"PATH=" + path}, dir, ""
		if filepath.IsAbs(old.Command) {
			old.Command = name
		}
		// What it finds by itself may need a PATH of its own, as wrappers do.
		if e := old.run().exit(); e.GetExitCode() == 99 {
			t.Errorf("PATH %q chose the interpreter: %v", path, e)
		}
	}
}

// restricts leaves runners out that do not say that they can.
func restricts(t *testing.T, w *world) bool {
	t.Helper()
	info, err := w.Client.GetInfo(context.Background(), &runnerv1.GetInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return info.GetRestricts()
}

func noNewPrivileges(t *testing.T, h Harness) {
	w := newWorld(t, h, Options{})
	if !restricts(t, w) {
		return
	}
	for _, on := range []bool{false, true, false} { // what one job has is not the next one's
		j := w.prepare("status")
		j.NoNewPrivs = on
		want := "NoNewPrivs:\t0\n"
		if on {
			want = "NoNewPrivs:\t1\n"
		}
		if got, _ := j.run().output(); !strings.Contains(got, want) {
			t.Errorf("no_new_privs %v: %s", on, regexp.MustCompile(`NoNewPrivs.*`).FindString(got))
		}
		j.mustExit(0)
	}
}

func resourceLimits(t *testing.T, h Harness) {
	w := newWorld(t, h, Options{})
	if !restricts(t, w) {
		return
	}
	limits := []*runnerv1.Rlimit{
		{Resource: unix.RLIMIT_NOFILE, Value: 63},
		{Resource: unix.RLIMIT_CORE, Value: 0},
		{Resource: unix.RLIMIT_FSIZE, Value: 1 << 30},
		{Resource: unix.RLIMIT_NPROC, Value: 4000},
	}
	j := w.prepare("limits")
	j.Rlimits, j.NoNewPrivs = limits, true
	got, _ := j.run().output()
	j.mustExit(0)
	for name, want := range map[string]string{
		"Max open files": "63", "Max core file size": "0", "Max file size": strconv.Itoa(1 << 30), "Max processes": "4000",
	} {
		if line := regexp.MustCompile(name + ` +(\d+) +(\d+) `).FindStringSubmatch(got); line == nil || line[1] != want || line[2] != want {
			t.Errorf("%s: %q, want %s twice", name, line, want)
		}
	}
	free := w.prepare("limits")
	if got, _ := free.run().output(); regexp.MustCompile(`Max open files +63 `).MatchString(got) {
		t.Error("the limits of one job are those of the next one")
	}
	free.mustExit(0)
	for range 20 { // ends are told as of any process
		code, killed := w.prepare("exit", "5"), w.prepare("kill", strconv.Itoa(int(syscall.SIGKILL)))
		code.Rlimits, killed.Rlimits = limits, limits
		code.run().mustExit(5)
		killed.run().mustSignal(syscall.SIGKILL)
	}
	impossible := w.prepare("exit", "0")
	impossible.Rlimits = []*runnerv1.Rlimit{{Resource: 1000, Value: math.MaxUint64}}
	impossible.run()
	if e := impossible.exit(); e.GetError().GetMessage() == "" {
		t.Errorf("a limit that does not exist: %v", e)
	}
	missing := w.prepare("exit", "0")
	missing.Rlimits, missing.NoNewPrivs = limits, true
	missing.interpret(filepath.Join(t.TempDir(), "none"))
	missing.run().mustFail(runner.NotFound)
}
