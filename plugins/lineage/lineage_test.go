package lineage_test

import (
	"bufio"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/plugins/lineage"
)

// TestP9_ProcessThatShedsAllElse_KeepsItsTag: double fork, another session, no
// environment, all descriptors closed, another folder, another program.
func TestP9_ProcessThatShedsAllElse_KeepsItsTag(t *testing.T) { //nolint:paralleltest // the tag is the whole process's
	wanted := lineage.Of("some attempt")
	users := []*syscall.Credential{nil}
	if os.Getuid() == 0 {
		users = append(users, &syscall.Credential{Uid: 65534, Gid: 65534})
	}
	for _, user := range users {
		cmd := exec.Command("/bin/sh", "-c", `cd /; (setsid env -i /bin/sh -c '(exec /bin/sh -c "echo \$\$; exec sleep 1000 0<&- >&- 2>&-") & ' &)`)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: user, Setsid: true}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		takeOff := lineage.Wear(wanted)
		err = cmd.Start()
		takeOff()
		if err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			t.Fatal(err)
		}
		if got := lineage.Read(pid); got != wanted {
			t.Errorf("process %d of user %v has tag %x, want %x", pid, user, got, wanted)
		}
		_ = syscall.Kill(pid, syscall.SIGKILL)
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	if got := lineage.Read(os.Getpid()); got != lineage.None {
		t.Errorf("this process has kept tag %x", got)
	}
}

func TestTags(t *testing.T) {
	t.Parallel()
	if a, b := lineage.Of("a"), lineage.Of("b"); a == b || a == lineage.None || a != lineage.Of("a") {
		t.Errorf("tags %x and %x", a, b)
	}
	if lineage.Of("") != lineage.None || lineage.Read(1) != lineage.None {
		t.Error("nothing has a tag")
	}
	if lineage.Read(1<<30) != lineage.None {
		t.Error("a process that is not there has one")
	}
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() { lineage.Read(os.Getpid()) })
	}
	wait.Wait()
}

// TestAnotherUsersLimitsAreRead from /proc: prlimit(2) tells them to its own user only.
func TestAnotherUsersLimitsAreRead(t *testing.T) {
	t.Parallel()
	var limit unix.Rlimit
	if err := unix.Prlimit(1, 10, nil, &limit); err != nil {
		t.Logf("of another user: %v", err)
	}
	if lineage.Read(1) != lineage.None {
		t.Error("init has a tag")
	}
}
