package cgroup

import (
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/droverhq/drover/core/job"
)

// nobody is a user without any rights.
const nobody = 65534

// TestAnOrdinaryUserCanStop runs what such a user must be able to do as another user.
func TestAnOrdinaryUserCanStop(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("is one already")
	}
	dir := t.TempDir()
	binary := filepath.Join(dir, "test")
	copyFile(t, os.Args[0], binary)
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "-test.run=^(TestAsAnOrdinaryUser|TestP9_.*)$", "-test.v")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestAsAnOrdinaryUser works in whatever mode this user can have, and says why it
// is not a better one.
func TestAsAnOrdinaryUser(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	m := open(t, Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
	if m.Mode() == ModeNone && !strings.Contains(log.String(), "reason=") {
		t.Errorf("no reason for doing without cgroups was logged: %q", log.String())
	}
	g := acquire(t, m, job.Limits{})
	s := start(t, g, `trap "" TERM; (setsid sleep 300 &); sleep 300 & echo ready; sleep 300; :`)
	s.line(t)
	s.req.Grace = time.Millisecond
	if proof := stop(t, g, s.req); proof.Termed < 3 || proof.Killed == 0 {
		t.Errorf("%+v", proof)
	}
	if left := survivors(t, s.req.Mark); len(left) > 0 {
		t.Errorf("survived: %v", left)
	}
}

// copyFile lets another process write the copy: a descriptor of this one, open
// for writing, could be inherited by a process that a test forks at this moment,
// and the copy could not be executed (ETXTBSY).
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
