package e2e_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/droverhq/drover/test/cluster"
)

// devCluster runs drover as somebody who has nothing but the binaries.
type devCluster struct {
	t    *testing.T
	home string
}

func (d devCluster) run(args ...string) (stdout, stderr string, code int) {
	d.t.Helper()
	cmd := exec.Command(filepath.Join(bin, "drover"), args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + d.home, "NO_COLOR=1"}
	var out, err strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &err
	_ = cmd.Run() // the exit code tells
	return out.String(), err.String(), cmd.ProcessState.ExitCode()
}

func (d devCluster) must(args ...string) string {
	d.t.Helper()
	out, err, code := d.run(args...)
	if code != 0 {
		d.t.Fatalf("drover %s: exit %d\n%s%s", strings.Join(args, " "), code, out, err)
	}
	return strings.TrimSuffix(out, "\n")
}

// pid of a daemon of the cluster.
func (d devCluster) pid(name string) int {
	d.t.Helper()
	var s struct {
		Processes []struct {
			Role, Name string
			PID        int
		}
	}
	if err := json.Unmarshal([]byte(d.must("dev", "status", "-o", "json")), &s); err != nil {
		d.t.Fatal(err)
	}
	for _, p := range s.Processes {
		if p.Name == name && p.Role != "plugin" {
			return p.PID
		}
	}
	d.t.Fatalf("there is no %s in %+v", name, s)
	return 0
}

// TestDevCluster: one command, no certificate handled; daemons that were killed
// come back with their jobs; nothing is left after the stop.
func TestDevCluster(t *testing.T) {
	t.Parallel()
	d := devCluster{t, t.TempDir()}
	folder := filepath.Join(d.home, "scripts")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "wait.sh"), []byte("echo begun; until [ -e \"$1\" ]; do sleep 0.05; done; echo done; exit 9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err, code := d.run("--address", "127.0.0.1:1", "jobs"); code != 5 || !strings.Contains(err, "drover dev") {
		t.Errorf("before the start: exit %d, %s", code, err)
	}
	d.must("dev", "--detach", "--workers", "2", "--scripts", folder)
	t.Cleanup(func() {
		d.must("dev", "stop")
		if left := cluster.Processes(d.home); len(left) > 0 {
			t.Errorf("left after the stop: %v", left)
		}
	})
	if out := d.must("exec", "--", "echo", "hello  world"); out != "hello  world" {
		t.Errorf("exec printed %q", out)
	}
	go1 := filepath.Join(d.home, "go")
	id := d.must("run", "-d", "--worker", "w1", "wait.sh", go1)
	for _, name := range []string{"scheduler", "w1"} {
		if err := syscall.Kill(d.pid(name), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	d.must("dev", "--detach")
	if err := os.WriteFile(go1, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	out, _, code := d.run("attach", id)
	if code != 9 || out != "begun\ndone\n" {
		t.Errorf("after the kills the job ended with %d and printed %q", code, out)
	}
}

// TestDevInTheForeground ends with Ctrl-C and takes everything with it.
func TestDevInTheForeground(t *testing.T) {
	t.Parallel()
	d := devCluster{t, t.TempDir()}
	cmd := exec.Command(filepath.Join(bin, "drover"), "dev")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + d.home}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer time.AfterFunc(cluster.Patience, func() { _ = cmd.Process.Kill() }).Stop()
	said := make([]byte, 0, 4096)
	for !strings.Contains(string(said), "Ctrl-C") {
		part := make([]byte, 512)
		n, err := stderr.Read(part)
		if err != nil {
			t.Fatalf("it ended: %s", said)
		}
		said = append(said, part[:n]...)
	}
	if out := d.must("exec", "--", "echo", "up"); out != "up" {
		t.Errorf("exec printed %q", out)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("dev ended with %v", err)
	}
	if left := cluster.Processes(d.home); len(left) > 0 {
		t.Errorf("left after Ctrl-C: %v", left)
	}
}
