package dev

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/plugins/pidfd"
)

// devPatience bounds waits on a loaded machine.
const devPatience = 30 * time.Second

// script writes a program that stands for the drover binary.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "drover")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o700); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	return path
}

func open(t *testing.T, o Options) *Cluster {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	c, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestSettingsAreRememberedAndAddedTo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := open(t, Options{Dir: dir, Workers: 3, Memory: true, Scripts: "/s"})
	if err := c.save(&Running{}); err != nil {
		t.Fatal(err)
	}
	if again := open(t, Options{Dir: dir}); again.Workers != 3 || !again.Memory || again.Scripts != "/s" {
		t.Errorf("remembered %+v", again.settings)
	}
	if again := open(t, Options{Dir: dir, Workers: 1}); again.Workers != 1 || again.Scripts != "/s" {
		t.Errorf("changed to %+v", again.settings)
	}
	if c := open(t, Options{}); c.Workers != 1 {
		t.Errorf("%d workers without a wish", c.Workers)
	}
}

// TestTheExamplesBelongToTheBinary: a second clone does not run the scripts of the
// first, which may be gone.
func TestTheExamplesBelongToTheBinary(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for range 2 {
		clone := t.TempDir()
		examples := filepath.Join(clone, "examples", "scripts")
		if err := os.MkdirAll(examples, 0o700); err != nil {
			t.Fatal(err)
		}
		c := open(t, Options{Dir: dir, Binary: filepath.Join(clone, "bin", "drover")})
		if got := c.scriptFolder(); got != examples {
			t.Errorf("scripts of %s, want %s", got, examples)
		}
		if err := c.save(&Running{}); err != nil {
			t.Fatal(err)
		}
	}
	c := open(t, Options{Dir: dir, Binary: filepath.Join(t.TempDir(), "drover")})
	if got := c.scriptFolder(); got != filepath.Join(dir, "scripts") {
		t.Errorf("without examples: %s", got)
	}
}

// TestScriptFoldersThatCannotBeAreRefused, and nothing is changed: neither one that
// is gone nor another one than that of workers that run.
func TestScriptFoldersThatCannotBeAreRefused(t *testing.T) {
	t.Parallel()
	stat, err := pidfd.ReadStat(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	worker := Process{"worker", workerName(0), os.Getpid(), stat.Ticks}
	dir, first, second := t.TempDir(), t.TempDir(), t.TempDir()
	for _, c := range []struct {
		name, scripts, reason, names string
		running                      Running
	}{
		{"gone", filepath.Join(first, "gone"), "SCRIPTS", "gone", Running{}},
		{"another than that of a worker", second, "RUNNING", first, Running{Scripts: first, Processes: []Process{worker}}},
		{"that of a worker", first, "", "", Running{Scripts: first, Processes: []Process{worker}}},
		{"none beside a worker", "", "", "", Running{Scripts: first, Processes: []Process{worker}}},
		{"another than before", second, "", "", Running{Scripts: first}},
	} {
		if err := open(t, Options{Dir: dir}).save(&c.running); err != nil {
			t.Fatal(err)
		}
		err := open(t, Options{Dir: dir, Scripts: c.scripts}).Validate()
		if errs.ReasonOf(err) != c.reason || err != nil && !strings.Contains(err.Error(), c.names) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// TestWorkersThatAreTakenOverKeepTheirScripts, and it is those that readiness is about:
// a worker without any never tells of the scripts of another clone.
func TestWorkersThatAreTakenOverKeepTheirScripts(t *testing.T) {
	t.Parallel()
	stat, err := pidfd.ReadStat(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	clone := t.TempDir()
	if err := os.MkdirAll(filepath.Join(clone, "examples", "scripts"), 0o700); err != nil {
		t.Fatal(err)
	}
	c := open(t, Options{Binary: filepath.Join(clone, "bin", "drover")})
	first := t.TempDir()
	pid := os.Getpid()
	taken := []Process{{"scheduler", "scheduler", pid, stat.Ticks}, {"worker", workerName(0), pid, stat.Ticks}}
	if err := c.save(&Running{Scripts: first, Processes: taken}); err != nil {
		t.Fatal(err)
	}
	r, err := c.running()
	if err != nil {
		t.Fatal(err)
	}
	if started, err := c.startMissing(t.Context(), &r); err != nil || len(started) > 0 {
		t.Fatalf("%d started, %v", len(started), err)
	}
	err = c.awaitReady(t.Context(), func(_ context.Context, asked Running) (int, error) {
		if asked.Scripts != first {
			t.Errorf("asked for scripts of %s, want %s", asked.Scripts, first)
		}
		return 1, nil
	}, r, nil)
	if err != nil {
		t.Error(err)
	}
}

func TestABrokenSettingsFileIsNamed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "cluster.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), filepath.Join(dir, "cluster.json")) {
		t.Errorf("got %v", err)
	}
}

// TestResetTouchesNothingElse: --data may name any folder by mistake.
func TestResetTouchesNothingElse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	precious := filepath.Join(dir, "precious")
	if err := os.WriteFile(precious, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := open(t, Options{Dir: dir})
	if err := c.Reset(); errs.ReasonOf(err) != "NO_CLUSTER" {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
	if err := c.save(&Running{}); err != nil {
		t.Fatal(err)
	}
	if err := c.Reset(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
}

func TestResetRefusesWhileItRuns(t *testing.T) {
	t.Parallel()
	c := open(t, Options{})
	stat, err := pidfd.ReadStat(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.save(&Running{Processes: []Process{{"scheduler", "scheduler", os.Getpid(), stat.Ticks}}}); err != nil {
		t.Fatal(err)
	}
	if err := c.Reset(); errs.ReasonOf(err) != "RUNNING" {
		t.Errorf("got %v", err)
	}
}

// TestAReusedPidIsNotSignalled: pid and start time together name a process.
func TestAReusedPidIsNotSignalled(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	stat, err := pidfd.ReadStat(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	p := Process{"worker", "w1", cmd.Process.Pid, stat.Ticks}
	other := Process{"worker", "w1", cmd.Process.Pid, stat.Ticks + 1}
	if !p.Alive() || other.Alive() || (Process{}).Alive() {
		t.Errorf("alive: %v, with another start time %v", p.Alive(), other.Alive())
	}
	if err := other.signal(syscall.SIGKILL); err != nil || !p.Alive() {
		t.Errorf("the signal to another: %v, alive %v", err, p.Alive())
	}
	if err := p.signal(syscall.SIGKILL); err != nil || !awaitExit(p, devPatience) {
		t.Errorf("the signal: %v", err)
	}
}

// TestADaemonThatDiesIsShownWithItsLog, and not waited for.
func TestADaemonThatDiesIsShownWithItsLog(t *testing.T) {
	t.Parallel()
	c := open(t, Options{Binary: script(t, "echo the disk is on fire >&2; exit 1\n")})
	for _, d := range []string{"logs", "scheduler"} {
		if err := os.Mkdir(c.path(d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	c.Address = "127.0.0.1:1"
	_, err := c.startScheduler(t.Context())
	if errs.ReasonOf(err) != "DAEMON_DIED" || !strings.Contains(err.Error(), "the disk is on fire") {
		t.Errorf("got %v", err)
	}
}

// TestAClusterThatGoesAwayLeavesTheWellKnownPort: a run of chaos lost it to another
// cluster while its scheduler was dead.
func TestAClusterThatGoesAwayLeavesTheWellKnownPort(t *testing.T) {
	t.Parallel()
	text := `while [ "$1" != --listen ]; do shift; done
listen=$2
while [ "$1" != --data ]; do shift; done
echo "$listen" >"$2/address.new"; mv "$2/address.new" "$2/address"; exec sleep 1000
`
	c := open(t, Options{Binary: script(t, text), Scratch: true})
	first := startAndKill(t, c)
	_, port, err := net.SplitHostPort(first)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := strconv.Atoi(port); err != nil || n < spareFrom || n >= spareTo {
		t.Errorf("port %s may be taken while the scheduler is away", port)
	}
	if again := startAndKill(t, c); again != first {
		t.Errorf("it was on %s, and then on %s", first, again)
	}
}

// startAndKill returns where a scheduler listened.
func startAndKill(t *testing.T, c *Cluster) string {
	t.Helper()
	for _, d := range []string{"logs", "scheduler"} {
		if err := os.MkdirAll(c.path(d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), devPatience)
	defer cancel()
	ch, err := c.startScheduler(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := ch.signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-ch.done
	return c.Address
}

// TestAnotherPortWhenTheWellKnownOneIsTaken, also when it was taken a moment ago.
func TestAnotherPortWhenTheWellKnownOneIsTaken(t *testing.T) {
	t.Parallel()
	if l, err := net.Listen("tcp", DefaultAddress); err == nil {
		defer l.Close()
	} // else somebody else has it, which is the case that is wanted
	text := `while [ "$1" != --listen ]; do shift; done
[ "$2" = ` + DefaultAddress + ` ] && exit 1
while [ "$1" != --data ]; do shift; done
echo 127.0.0.1:4711 >"$2/address.new"; mv "$2/address.new" "$2/address"; exec sleep 1000
`
	c := open(t, Options{Binary: script(t, text)})
	if at := startAndKill(t, c); at != "127.0.0.1:4711" {
		t.Errorf("address %q", at)
	}
}
