package e2e_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/test/cluster"
)

// within is what five seconds may become on a loaded machine.
const within = 20 * time.Second

// session is a command that runs while a test goes on.
type session struct {
	cmd    *exec.Cmd
	stdout *os.File
	stderr *os.File
	done   chan struct{}
}

// openSession starts a command line with a certificate folder.
func openSession(t *testing.T, c *cluster.Cluster, certsDir string, args ...string) *session {
	t.Helper()
	w := &session{cmd: c.Command(context.Background(), append([]string{"--certs", certsDir}, args...)...), done: make(chan struct{})}
	for _, f := range []**os.File{&w.stdout, &w.stderr} {
		var err error
		if *f, err = os.Create(filepath.Join(t.TempDir(), "out")); err != nil {
			t.Fatal(err)
		}
	}
	w.cmd.Stdout, w.cmd.Stderr = w.stdout, w.stderr
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(w.done)
		_ = w.cmd.Wait() // its code is in the state
	}()
	t.Cleanup(func() {
		_ = w.cmd.Process.Kill() // fails when it has ended
		<-w.done
		w.stdout.Close()
		w.stderr.Close()
	})
	return w
}

func (w *session) out() string { return slurp(w.stdout) }
func (w *session) err() string { return slurp(w.stderr) }

func slurp(f *os.File) string {
	b, _ := os.ReadFile(f.Name())
	return string(b)
}

// ends waits for the end, which must come soon, with the code of somebody who may not;
// those of wait and run are the job's otherwise.
func (w *session) ends(t *testing.T, what string, code int, why string) {
	t.Helper()
	began := time.Now()
	select {
	case <-w.done:
	case <-time.After(cluster.Patience):
		t.Fatalf("%s goes on; it said: %s", what, w.err())
	}
	if took := time.Since(began); took > within {
		t.Errorf("%s went on for %v", what, took)
	}
	if got := w.cmd.ProcessState.ExitCode(); got != code || !strings.Contains(w.err(), why) {
		t.Errorf("%s: exit %d, want %d with %q: %s", what, got, code, why, w.err())
	}
}

const chatter = "i=0; while [ ! -e \"$1\" ]; do i=$((i+1)); echo line $i; sleep 0.1; done\n"

// chatting starts a job that writes until a file is there, and returns its id and file.
func chatting(t *testing.T, c *cluster.Cluster, worker string) (id, file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "end")
	id = strings.TrimSpace(c.Must("run", "-d", "-q", "--worker", worker, "chatter.sh", file))
	c.Eventually("the job writes", func() bool { return strings.Contains(c.Run("logs", id).Stdout, "line 2") })
	t.Cleanup(func() { _ = os.WriteFile(file, nil, 0o600) })
	return id, file
}

// TestP22_RevokedWorker_NothingMoreIsTakenFromIt: neither output nor a result, though
// the scheduler has dialled it.
func TestP22_RevokedWorker_NothingMoreIsTakenFromIt(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, bin, "--lease", "3s", "--heartbeat", "500ms")
	scripts := c.Scripts(c.Path("scripts"), map[string]string{"chatter.sh": chatter})
	w := c.Worker("w1", scripts)
	id, file := chatting(t, c, "w1")
	f := openSession(t, c, c.Path("certs", "admin"), "logs", "-f", id)
	c.Eventually("the follower reads", func() bool { return strings.Contains(f.out(), "line 3") })
	c.Must("certs", "revoke", "worker/w1", "--ca", c.Path("ca"))
	c.Eventually("the scheduler closes its session", func() bool {
		return strings.Contains(c.Scheduler.LogText(), "closing a connection that would not be admitted now")
	})
	// What was said before is still under way to the follower for a moment.
	before := f.out()
	c.Eventually("the output stands still", func() bool {
		now := f.out()
		same := now == before
		before = now
		time.Sleep(500 * time.Millisecond) // five lines
		return same && f.out() == now
	})
	if err := os.WriteFile(file, nil, 0o600); err != nil { // the job ends, and its worker wants to tell
		t.Fatal(err)
	}
	c.Eventually("the job is unreachable", func() bool { return strings.Contains(c.Must("status", id), "UNREACHABLE") })
	if got := f.out(); got != before {
		t.Errorf("%d bytes came after the revocation", len(got)-len(before))
	}
	if n := strings.Count(c.Scheduler.LogText(), "worker cannot be reached"); n > 5 {
		t.Errorf("the scheduler complained %d times", n)
	}
	// An admin makes a new certificate for the machine: then its report counts.
	dir := c.Path("certs", "w1")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	c.Issue("w1", certs.RoleWorker)
	c.Eventually("the job has its result", func() bool { return strings.Contains(c.Must("status", id), "SUCCEEDED") })
	if w.Alive() {
		w.Terminate()
	}
}

// TestP22_RevokedPeople_AreCutOffEverywhere: those who follow, who wait in one call,
// and an admin who reads from a worker directly.
func TestP22_RevokedPeople_AreCutOffEverywhere(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, bin)
	scripts := c.Scripts(c.Path("scripts"), map[string]string{"chatter.sh": chatter})
	c.Worker("w1", scripts)
	id, _ := chatting(t, c, "w1")
	vera, sam, ada := c.Issue("vera", certs.RoleViewer), c.Issue("sam", certs.RoleSubmitter), c.Issue("ada", certs.RoleAdmin)
	follower, waiter := openSession(t, c, vera, "logs", "-f", id), openSession(t, c, vera, "wait", id)
	runner := openSession(t, c, sam, "run", "chatter.sh", c.Path("never"))
	direct := dialDirect(t, c, "w1", ada)
	c.Eventually("all read", func() bool {
		return strings.Contains(follower.out(), "line 3") && strings.Contains(runner.out(), "line 3")
	})
	reading := direct.follow(t, id)
	for _, name := range []string{"viewer/vera", "submitter/sam", "admin/ada"} {
		c.Must("certs", "revoke", name, "--ca", c.Path("ca"))
	}
	follower.ends(t, "logs -f", 4, "revoked")
	waiter.ends(t, "wait", 125, "revoked")
	runner.ends(t, "run", 125, "revoked")
	select {
	case err := <-reading:
		t.Logf("the direct read ended with %v", err)
	case <-time.After(within):
		t.Error("the worker goes on serving a revoked admin")
	}
	c.Eventually("the worker refuses the admin", func() bool { return strings.Contains(direct.refusal(t), "revoked") })
	// The list is there for the worker's next life.
	if list := slurpPath(t, filepath.Join(c.Path("certs", "w1"), "crl.pem")); !strings.Contains(list, "X509 CRL") {
		t.Errorf("the worker keeps %q", list)
	}
}

// TestP22_CertificateExpires_OnAnOpenConnection: what it was let in for ends with it.
func TestP22_CertificateExpires_OnAnOpenConnection(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, bin)
	scripts := c.Scripts(c.Path("scripts"), map[string]string{"chatter.sh": chatter})
	c.Worker("w1", scripts)
	id, _ := chatting(t, c, "w1")
	dir := c.Path("certs", "brief")
	c.Must("certs", "issue", "brief", "--role", "admin", "--ttl", "8s", "--ca", c.Path("ca"), "--out", dir)
	until := time.Now().Add(8 * time.Second)
	follower, waiter := openSession(t, c, dir, "logs", "-f", id), openSession(t, c, dir, "wait", id)
	direct := dialDirect(t, c, "w1", dir)
	reading := direct.follow(t, id)
	c.Eventually("they read", func() bool { return strings.Contains(follower.out(), "line 3") })
	time.Sleep(time.Until(until)) // until it expires: there is nothing else to wait for
	follower.ends(t, "logs -f", 4, "expired")
	waiter.ends(t, "wait", 125, "expired")
	select {
	case <-reading:
	case <-time.After(within):
		t.Error("the worker goes on serving an expired certificate")
	}
}

// TestP22_CAIsRemoved_ItsCertificatesAreCutOff when it leaves ca.crt.
func TestP22_CAIsRemoved_ItsCertificatesAreCutOff(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, bin)
	scripts := c.Scripts(c.Path("scripts"), map[string]string{"chatter.sh": chatter})
	other, err := certs.Init(c.Path("other"), "test")
	if err != nil {
		t.Fatal(err)
	}
	eve := c.Path("eve")
	if err := other.IssuePair(eve, certs.IssueRequest{Name: "eve", Role: certs.RoleAdmin}); err != nil {
		t.Fatal(err)
	}
	own, foreign := slurpPath(t, c.CA.BundleFile()), slurpPath(t, other.BundleFile())
	trusted := filepath.Join(c.Path("certs", "scheduler"), "ca.crt")
	put(t, filepath.Join(eve, "ca.crt"), own)
	put(t, trusted, own+foreign)
	c.Worker("w1", scripts)
	id, _ := chatting(t, c, "w1")
	var follower *session
	c.Eventually("the other CA is trusted", func() bool { return c.RunAs(eve, "status", id).Code == 0 })
	follower = openSession(t, c, eve, "logs", "-f", id)
	waiter := openSession(t, c, eve, "wait", id)
	c.Eventually("they read", func() bool { return strings.Contains(follower.out(), "line 3") })
	put(t, trusted, own)
	follower.ends(t, "logs -f", 4, "another CA")
	waiter.ends(t, "wait", 125, "another CA")
	if out := c.Run("logs", id); out.Code != 0 { // the others go on
		t.Errorf("%+v", out)
	}
}

func slurpPath(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	}
	return string(bytes.TrimSpace(b)) + "\n"
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}
