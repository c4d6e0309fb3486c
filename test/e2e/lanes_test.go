package e2e_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/droverhq/drover/test/cluster"
)

// thief keeps readers of its own standard output, and a path by which to open one
// later, beyond its end: in a child of its own, or in the keeper, which is another
// job of its user. Both write what they read into the file "stolen".
const thief = reader + `
drop, i = sys.argv[1], int(sys.argv[2])
mine = os.open("/proc/self/fd/1", os.O_RDONLY | os.O_NONBLOCK)
path = os.open("/proc/self/fd/1", os.O_PATH)
if i % 2:
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.connect(drop + "/keeper")
    socket.send_fds(s, [b"x"], [mine, path])
    sys.exit()
if os.fork():
    sys.exit()
os.setsid()
for fd in (0, 1, 2):
    os.close(fd)
keep(mine, path)
end = time.monotonic() + 3
while time.monotonic() < end:
    look()
' "$1" "$DROVER_ARRAY_INDEX"
`

// keeper takes descriptors of thieves, and keeps the newest.
const keeper = reader + `
drop = sys.argv[1]
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(drop + "/keeper")
s.setblocking(False)
while True:
    look()
    try:
        _, fds, _, _ = socket.recv_fds(s, 16, 2)
        keep(*fds)
    except BlockingIOError:
        pass
    for fd in kept.pop(0) if len(kept) > 200 else []:
        os.close(fd)
' "$1"
`

// reader begins both: look waits a moment for bytes in what is kept, and opens once
// more what can be opened.
const reader = `exec /usr/bin/python3 -ISc '
import os, select, socket, sys, time
poll, kept = select.epoll(), []
def keep(mine, path):
    kept.append((mine, path))
    poll.register(mine, select.EPOLLIN | select.EPOLLET)
def look():
    for fd, _ in poll.poll(0.02):
        take(fd)
    for _, path in kept[-5:]:
        try:
            later = os.open("/proc/self/fd/%d" % path, os.O_RDONLY | os.O_NONBLOCK)
        except PermissionError:
            continue
        take(later)
        os.close(later)
def take(fd):
    try:
        got = os.read(fd, 65536)
    except BlockingIOError:
        return
    if got:
        with open(drop + "/stolen", "ab") as f:
            f.write(got)
`

const victim = `for i in 1 2 3 4 5 6 7 8 9 10; do echo "line $i of this job, and of no other"; done
`

// TestP19_ReadersThatJobsLeaveBehind_TakeNothingOfOthers: jobs of one user keep
// readers of their pipes by every means there is, while jobs of other users run.
// DROVER_LONG=1 does it for 100,000 lines.
func TestP19_ReadersThatJobsLeaveBehind_TakeNothingOfOthers(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root: only root runs jobs as other users")
	}
	victims := 50 // of each user
	if os.Getenv("DROVER_LONG") != "" {
		victims = 5000
	}
	c := cluster.New(t, bin)
	if err := os.Chmod(filepath.Dir(c.Dir), 0o755); err != nil { // for the other users
		t.Fatal(err)
	}
	policy := c.Path("users.yaml")
	if err := os.WriteFile(policy, []byte("commands: [\"*\"]\nusers: [nobody, daemon]\nallow_root: true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Worker("w1", c.Scripts(c.Path("scripts"), map[string]string{"thief.sh": thief, "keeper.sh": keeper, "victim.sh": victim}), "--policy", policy)
	drop := c.Path("drop")
	if err := os.Mkdir(drop, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(drop, 0o777); err != nil {
		t.Fatal(err)
	}
	kept := strings.TrimSpace(c.Must("run", "--detach", "--user", "nobody", "--workdir", "/", "keeper.sh", drop))
	c.Eventually("the keeper listens", func() bool {
		_, err := os.Stat(drop + "/keeper")
		return err == nil
	})
	run := func(count int, args ...string) {
		args = append([]string{"run", "--array", fmt.Sprintf("1-%d", count), "--workdir", "/", "--parallel", "4"}, args...)
		if r := c.Run(args...); r.Code != 0 {
			t.Errorf("%v: exit %d: %s", args, r.Code, r.Stderr)
		}
	}
	var prey, hunters sync.WaitGroup
	prey.Go(func() { run(victims, "--user", "daemon", "--name", "victim", "victim.sh") })
	prey.Go(func() { run(victims, "--name", "victim", "victim.sh") })
	var over atomic.Bool
	hunters.Go(func() { // as long as there are victims
		for rounds := 0; rounds == 0 || !over.Load(); rounds++ {
			run(60, "--user", "nobody", "--detach-children", "thief.sh", drop)
		}
	})
	prey.Wait()
	over.Store(true)
	hunters.Wait()
	c.Must("stop", "--grace", "0s", kept)
	c.Eventually("the thieves are gone", func() bool { return len(cluster.Processes(drop)) == 0 })
	if stolen, err := os.ReadFile(drop + "/stolen"); err == nil {
		t.Errorf("%d lines were taken, such as %.80q", strings.Count(string(stolen), "\n"), stolen)
	}
	whole(c, 2*victims)
}

// whole holds the output of every victim against what it wrote (P8).
func whole(c *cluster.Cluster, victims int) {
	c.T.Helper()
	var text strings.Builder
	for i := 1; i <= 10; i++ {
		fmt.Fprintf(&text, "line %d of this job, and of no other\n", i)
	}
	sum := sha256.Sum256([]byte(text.String()))
	var list []struct {
		JobID  string `json:"job_id"`
		Name   string `json:"name"`
		Stdout struct {
			Size   int    `json:"size"`
			SHA256 string `json:"sha256"`
		} `json:"stdout"`
	}
	if err := json.Unmarshal([]byte(c.Must("jobs", "-o", "json", "--limit", "0")), &list); err != nil {
		c.T.Fatal(err)
	}
	seen := 0
	for _, j := range list {
		if j.Name != "victim" {
			continue
		}
		seen++
		if j.Stdout.Size != text.Len() || j.Stdout.SHA256 != hex.EncodeToString(sum[:]) {
			c.T.Errorf("job %s: %d bytes of %d, sha256 %s", j.JobID, j.Stdout.Size, text.Len(), j.Stdout.SHA256)
		}
	}
	if seen != victims {
		c.T.Errorf("%d jobs of %d are listed", seen, victims)
	}
}
