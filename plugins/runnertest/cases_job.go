package runnertest

import (
	"bytes"
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/droverhq/drover/plugins/runner"
	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

func saysWhoItIs(t *testing.T, h Harness) {
	p := h.Open(t, Options{})
	i, err := p.Client.GetInfo(context.Background(), &runnerv1.GetInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`).MatchString(i.GetName()) {
		t.Errorf("name %q", i.GetName())
	}
	if i.GetVersion() == "" || i.GetProtocol() != runner.Protocol || int(i.GetPid()) != p.PID {
		t.Errorf("%v, want a version, protocol %d and process %d", i, runner.Protocol, p.PID)
	}
	if !slices.Contains(i.GetCommands(), i.GetName()) {
		t.Errorf("commands %q without its name", i.GetCommands())
	}
	for _, e := range i.GetExtensions() {
		if len(e) < 2 || e[0] != '.' {
			t.Errorf("extension %q", e)
		}
	}
}

func argumentsExact(t *testing.T, h Harness) {
	w := newWorld(t, h, Options{})
	args := []string{
		"", " ", "two words", "line\nbreak", "trailing\n", "tab\t", "Grüße 世界 🐂", "-n", "--help", "-", "--",
		`"quoted"`, `'`, `\n`, "$HOME", "`id`", "$(id)", "*", "~", "a=b", ";", "&", "|", "\x01\x7f", strings.Repeat("x", 100_000), "",
	}
	j := w.prepare("args", args...).run()
	got, _ := j.output()
	if want := strings.Join(args, "\x00") + "\x00"; got != want {
		t.Errorf("arguments %q", got)
	}
	j.mustExit(0)
	none := w.prepare("args").run()
	if got, _ := none.output(); got != "" {
		t.Errorf("no arguments became %q", got)
	}
	none.mustExit(0)
}

func environmentExact(t *testing.T, h Harness) {
	w := newWorld(t, h, Options{})
	j := w.prepare("environ")
	j.Env = append(j.Env, "EMPTY=", "SPACES= a  b ", "LINES=a\nb\n", "EQUALS=a=b=c", "UTF8=Grüße", "lower=1", "QUOTE='\"$(id)")
	want := strings.Join(j.GetEnv(), "\x00") + "\x00"
	if got, _ := j.run().output(); got != want {
		t.Errorf("environment %q, want %q", got, want)
	}
	j.mustExit(0)
}

func exitCodes(t *testing.T, h Harness) {
	w := newWorld(t, h, Options{})
	for _, code := range []int32{0, 1, 2, 42, 126, 127, 128, 137, 255} {
		j := w.prepare("exit", strconv.Itoa(int(code))).run()
		j.mustExit(code)
		if out, err := j.output(); out != "" || err != "" {
			t.Errorf("said %q and %q", out, err)
		}
	}
}

func endingSignals(t *testing.T, h Harness) {
	w := newWorld(t, h, Options{})
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL, syscall.SIGUSR1, syscall.SIGSEGV} {
		w.prepare("kill", strconv.Itoa(int(sig))).run().mustSignal(sig)
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL, syscall.SIGUSR2} {
		j := w.prepare("sleep").run()
		j.signal(sig)
		j.mustSignal(sig)
	}
}

func standardInput(t *testing.T, h Harness) {
	w := newWorld(t, h, Options{})
	data := make([]byte, 1<<20)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	j := w.prepare("cat")
	j.Stdin = filepath.Join(t.TempDir(), "in")
	if err := os.WriteFile(j.GetStdin(), data, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, _ := j.run().output(); got != string(data) {
		t.Errorf("%d bytes came back of %d, or others", len(got), len(data))
	}
	j.mustExit(0)
	none := w.prepare("cat").run()
	if got, _ := none.output(); got != "" {
		t.Errorf("no input became %q", got)
	}
	none.mustExit(0)
}

func workingFolder(t *testing.T, h Harness) {
	w := newWorld(t, h, Options{})
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(dir, "with space ü")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	j := w.prepare("cwd")
	j.Workdir = dir
	if got, _ := j.run().output(); got != dir+"\n" {
		t.Errorf("works in %q, want %q", got, dir)
	}
	j.mustExit(0)
}

func ignoredTerm(t *testing.T, h Harness) {
	w := newWorld(t, h, Options{})
	j := w.prepare("stubborn").run()
	if got := j.line(); got != "ready" {
		t.Fatalf("said %q", got)
	}
	j.signal(syscall.SIGTERM)
	// Signals are delivered in order: when the second job's has arrived, so has
	// the first's.
	other := w.prepare("sleep").run()
	other.signal(syscall.SIGTERM)
	other.mustSignal(syscall.SIGTERM)
	if got := w.session.running(); !slices.Equal(got, []string{j.GetId()}) {
		t.Fatalf("running: %q", got)
	}
	j.signal(syscall.SIGKILL)
	j.mustSignal(syscall.SIGKILL)
}

func handledTerm(t *testing.T, h Harness) {
	w := newWorld(t, h, Options{})
	j := w.prepare("handled").run()
	if got := j.line(); got != "ready" {
		t.Fatalf("said %q", got)
	}
	j.signal(syscall.SIGTERM)
	if got, _ := j.output(); got != "TERM\n" {
		t.Errorf("said %q", got)
	}
	j.mustExit(3)
}

func signalsToNobody(t *testing.T, h Harness) {
	w := newWorld(t, h, Options{})
	gone := w.prepare("exit", "0").run()
	gone.mustExit(0)
	gone.signal(syscall.SIGTERM)
	w.session.send(&runnerv1.SessionRequest{
		Signals: []*runnerv1.Signal{{Id: "nobody", Signal: int32(syscall.SIGKILL)}}, Acks: []string{"nobody"},
	})
	w.prepare("exit", "5").run().mustExit(5)
}

func hugeOutput(t *testing.T, h Harness) {
	w := newWorld(t, h, Options{})
	dir := t.TempDir()
	var data [2][]byte
	var files []string
	for i, size := range []int{16 << 20, 4<<20 + 1} {
		data[i] = make([]byte, size)
		if _, err := rand.Read(data[i]); err != nil {
			t.Fatal(err)
		}
		files = append(files, filepath.Join(dir, strconv.Itoa(i)))
		if err := os.WriteFile(files[i], data[i], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	j := w.prepare("copy", files...).run()
	stdout, stderr := j.output()
	if !bytes.Equal([]byte(stdout), data[0]) || !bytes.Equal([]byte(stderr), data[1]) {
		t.Errorf("%d and %d bytes came, want %d and %d, or they differ", len(stdout), len(stderr), len(data[0]), len(data[1]))
	}
	j.mustExit(0)
}

func closedOutput(t *testing.T, h Harness) {
	w := newWorld(t, h, Options{})
	j := w.prepare("closed").run()
	if stdout, stderr := j.output(); stdout != "said\n" || stderr != "" {
		t.Errorf("said %q and %q", stdout, stderr)
	}
	if got := w.session.running(); len(got) != 1 {
		t.Errorf("running: %q", got)
	}
	j.signal(syscall.SIGTERM)
	j.mustSignal(syscall.SIGTERM)
}

func reopenedOutput(t *testing.T, h Harness) {
	w := newWorld(t, h, Options{})
	j := w.prepare("reopen").run()
	if stdout, stderr := j.output(); stdout != "a\nc\nd\n" || stderr != "b\n" {
		t.Errorf("said %q and %q", stdout, stderr)
	}
	j.mustExit(0)
}

func outlivingChildren(t *testing.T, h Harness) {
	w := newWorld(t, h, Options{})
	gate := filepath.Join(t.TempDir(), "gate")
	if err := syscall.Mkfifo(gate, 0o600); err != nil {
		t.Fatal(err)
	}
	j := w.prepare("family", gate).run()
	var pids []int
	for range 2 {
		pid, err := strconv.Atoi(j.line())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
		pids = append(pids, pid)
	}
	if err := os.WriteFile(gate, []byte("go\n"), 0); err != nil {
		t.Fatal(err)
	}
	j.mustExit(0) // though its children live
	b := make([]byte, 1)
	if err := j.lanes[0].SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if n, err := j.lanes[0].Read(b); n != 0 || !os.IsTimeout(err) {
		t.Errorf("the output of living children ended: %d, %v", n, err)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Errorf("child %d: %v", pid, err)
		}
	}
	if stdout, stderr := j.output(); stdout != "" || stderr != "" {
		t.Errorf("said %q and %q", stdout, stderr)
	}
	for _, pid := range pids {
		w.eventually("the orphan is reaped", func() bool {
			_, err := os.Stat("/proc/" + strconv.Itoa(pid))
			return err != nil
		})
	}
}

func cleanProcess(t *testing.T, h Harness) {
	w := newWorld(t, h, Options{})
	j := w.prepare("stat").run()
	stat, _ := j.output()
	j.mustExit(0)
	// proc_pid_stat(5): after the name in brackets come state, parent, group, session.
	f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if own := strconv.Itoa(j.pid()); f[2] != own || f[3] != own {
		t.Errorf("process %s has group %s and session %s", own, f[2], f[3])
	}
	d := w.prepare("descriptors").run()
	fds, _ := d.output()
	d.mustExit(0)
	for _, f := range strings.Split(strings.TrimSpace(fds), "\n") {
		// 0 to 2, and what an interpreter opens: its script.
		if f != os.DevNull && f != d.GetStdout() && f != d.GetStderr() && f != d.GetScript() && !strings.HasPrefix(f, "/proc/") {
			t.Errorf("inherits %s", f)
		}
	}
}

// bornClean: what a worker was started with is not for jobs, and goes through the plugin.
func bornClean(t *testing.T, h Harness) {
	const worse = `import os, signal, sys
for s in range(1, 32):
    if s not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD):
        signal.signal(s, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
os.umask(0o077)
open("/proc/self/oom_score_adj", "w").write("500")
os.execv(sys.argv[1], sys.argv[1:])`
	j := newWorld(t, h, Options{By: []string{"python3", "-c", worse}}).prepare("birth").run()
	said, _ := j.output()
	j.mustExit(0)
	for _, inC := range []string{"0000000080000000", "0000000100000000", "0000000180000000"} {
		// Signals 32 and 33 are glibc's own. Its posix_spawn, which make(1) uses, ignores them
		// in the child, and Go leaves them alone in a program that is linked with glibc.
		said = strings.Replace(said, "SigIgn:\t"+inC, "SigIgn:\t0000000000000000", 1)
	}
	const want = "Umask:\t0022\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\noom 0\n"
	if said != want {
		t.Errorf("a job is born with %q, want %q", said, want)
	}
}
