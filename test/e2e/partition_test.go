package e2e_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/rpc"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
	"github.com/droverhq/drover/test/cluster"
)

// shortLease makes partitions last longer than the lease without taking long.
func shortLease() []string { return []string{"--lease", "1s", "--heartbeat", "200ms"} }

// leaseOf6 is one that a loaded machine keeps: jobs that stop with it must not do so
// because heartbeats are late.
const leaseOf6 = 6 * time.Second

func longLease() []string { return []string{"--lease", leaseOf6.String(), "--heartbeat", "500ms"} }

// outOfReach waits until a job counts as unreachable, and makes sure that it
// stays what it was: running, and started once (P4).
func outOfReach(j *counted) {
	j.T.Helper()
	j.Eventually("it is out of reach", func() bool { return !status(j.T, j.Cluster, j.id).Reachable })
	if s := status(j.T, j.Cluster, j.id); s.State != "RUNNING" || !alive(j) {
		j.T.Errorf("behind a partition it is %s (%s); its process lives: %v", s.State, s.Reason, alive(j))
	}
}

// TestPartitionsLoseNothing: P4, P8. One-way and two-way loss between scheduler
// and worker, longer than the lease: jobs are unreachable, run on, are never
// started again, and all is as before soon after the partition has healed.
func TestPartitionsLoseNothing(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, bin, shortLease()...)
	scripts := c.Scripts(c.Path("scripts"), map[string]string{"count.sh": "echo begin >> \"$1.begins\"\n" + counting})
	type cut struct {
		*counted
		name                  string
		toScheduler, toWorker bool
		link                  *cluster.Link
	}
	cuts := []*cut{{name: "deaf", toWorker: true}, {name: "dumb", toScheduler: true}, {name: "cut-off", toScheduler: true, toWorker: true}}
	for _, x := range cuts {
		_, x.link = c.LinkedWorker(x.name, scripts)
		x.counted = &counted{Cluster: c, gate: c.Path("gate-" + x.name)}
		// It may be tried again when it is lost, and is not.
		x.id = c.Must("run", "-d", "-w", x.name, "--retries", "3", "--retry-on", "lost", "count.sh", x.gate)
		x.grows("it writes")
	}
	for _, x := range cuts {
		x.link.Lose(x.toScheduler, x.toWorker)
	}
	for _, x := range cuts {
		outOfReach(x.counted)
		c.Eventually(x.name+": the connections are given up", func() bool { return x.link.Up.GivenUp()+x.link.Down.GivenUp() > 0 })
	}
	for _, x := range cuts {
		x.link.Heal()
	}
	healed := time.Now()
	for _, x := range cuts {
		c.Eventually(x.name+": it is reached again", func() bool { return status(t, c, x.id).Reachable })
		t.Logf("%s: reached %v after it healed", x.name, time.Since(healed).Round(time.Millisecond))
	}
	for _, x := range cuts {
		x.grows("it is read again")
		x.finish()
		if b, err := os.ReadFile(x.gate + ".begins"); err != nil || string(b) != "begin\n" {
			t.Errorf("%s: it began %d times (%v)", x.name, strings.Count(string(b), "begin"), err)
		}
	}
}

// watched collects what a command prints while it runs.
type watched struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

// Write implements io.Writer.
func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

// text is what came so far.
func (w *watched) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

// TestOutputIsFollowedThroughAPartition: P7, P8. A reader whose network to the
// scheduler swallows everything notices that by itself, and goes on at its byte.
func TestOutputIsFollowedThroughAPartition(t *testing.T) {
	t.Parallel()
	c, _ := faulty(t)
	p := cluster.NewProxy(t, func() string { return c.Address })
	j := startCounting(c, "a")
	var out watched
	cmd := c.Command(context.Background(), "--address", p.Address(), "logs", "-f", "--stdout", j.id)
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c.Eventually("it is followed", func() bool { return out.text() != "" })
	for name, lost := range map[string][2]bool{"to the client": {false, true}, "both ways": {true, true}} {
		before := p.GivenUp()
		p.Lose(lost[0], lost[1])
		c.Eventually("the loss "+name+" is noticed", func() bool { return p.GivenUp() > before })
		p.Lose(false, false)
		healed := time.Now()
		// More than what was on its way: that came over the connection of before.
		written := len(c.Run("logs", "--stdout", j.id).Stdout)
		c.Eventually("it is followed again", func() bool { return len(out.text()) > written })
		t.Logf("%s: followed again %v after it healed", name, time.Since(healed).Round(time.Millisecond))
	}
	j.finish()
	if err := cmd.Wait(); err != nil {
		t.Errorf("drover logs -f: %v", err)
	}
	if whole := c.Must("logs", "--stdout", j.id) + "\n"; out.text() != whole {
		t.Errorf("%d bytes were followed, the output has %d, or they differ", len(out.text()), len(whole))
	}
}

// TestAFrozenPlugin: P7. Its jobs run on, what waits for it waits, and nobody is lost.
func TestAFrozenPlugin(t *testing.T) {
	t.Parallel()
	c, w := faulty(t, shortLease()...)
	j := startCounting(c, "a")
	pids := plugins(c, w, "bash")
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	waiting := c.Must("run", "-d", "count.sh", j.gate)
	j.grows("it writes on")
	frozen := time.NewTimer(2500 * time.Millisecond) // the fault itself, not a synchronization
	<-frozen.C
	if s := status(t, c, waiting); s.State != "DISPATCHED" {
		t.Errorf("a job for a frozen plugin is %s", s.State)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	j.finish()
	if r := c.Run("wait", waiting); r.Code != 42 {
		t.Errorf("the job that waited ended with %d: %s", r.Code, c.Must("why", waiting))
	}
}

// leasedScript tells of each attempt when it begins whether the one before still
// lives, and runs until it is told to end.
const leasedScript = `n=$DROVER_ATTEMPT; p=$((n-1))
if [ -e "$1.pid$p" ] && kill -0 "$(cat "$1.pid$p")" 2>/dev/null; then echo overlap >> "$1.trouble"; fi
echo $$ > "$1.tmp$n"; mv "$1.tmp$n" "$1.pid$n"
until [ -e "$1" ]; do sleep 0.02; done
`

// attemptAt asks a worker itself what it knows of an attempt.
func attemptAt(c *cluster.Cluster, link *cluster.Link, id string, attempt uint32) *droverv1.AttemptReport {
	c.T.Helper()
	w := asScheduler(c, link.Down.Address())
	r, err := w.GetJob(context.Background(), &droverv1.WorkerServiceGetJobRequest{JobId: id, Attempt: attempt})
	if err != nil {
		c.T.Fatal(err)
	}
	return r.GetReport()
}

// asScheduler speaks to a worker with the certificate of the scheduler.
func asScheduler(c *cluster.Cluster, address string) droverv1.WorkerServiceClient {
	c.T.Helper()
	source, err := certs.NewSource(c.Path("certs", "scheduler"), slog.New(slog.DiscardHandler))
	if err != nil {
		c.T.Fatal(err)
	}
	conn, err := rpc.Dial(address, source.ClientConfig(certs.RoleWorker, ""))
	if err != nil {
		c.T.Fatal(err)
	}
	c.T.Cleanup(func() { conn.Close() })
	return droverv1.NewWorkerServiceClient(conn)
}

// TestP4AWorkerThatIsCutOffStopsWhatAskedForIt: on_partition=stop. The worker
// stops the attempts by itself; only then does the scheduler give them up, and
// the policy for lost attempts runs one again elsewhere. What the worker tells
// afterwards is true and changes no record.
func TestP4AWorkerThatIsCutOffStopsWhatAskedForIt(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, bin, longLease()...)
	scripts := c.Scripts(c.Path("scripts"), map[string]string{"run.sh": leasedScript, "count.sh": counting})
	_, link := c.LinkedWorker("w1", scripts, "--label", "site=a")
	c.Worker("w2", scripts, "--label", "site=a")
	gate := c.Path("gate")
	// Ties go by name: the first attempt is on w1.
	moves := c.Must("run", "-d", "-l", "site=a", "--on-partition", "stop", "--grace", "1s", "--retries", "2", "--retry-on", "lost", "run.sh", gate)
	stays := c.Must("run", "-d", "-w", "w1", "--on-partition", "stop", "--grace", "1s", "run.sh", c.Path("other"))
	keeps := &counted{Cluster: c, gate: c.Path("gate-keeps")}
	keeps.id = c.Must("run", "-d", "-w", "w1", "count.sh", keeps.gate)
	keeps.grows("it writes")
	for _, id := range []string{moves, stays} {
		c.Eventually("it runs on w1", func() bool { s := status(t, c, id); return s.State == "RUNNING" && s.WorkerName == "w1" })
	}
	link.Lose(true, true)
	began := time.Now()
	c.Eventually("it runs on w2", func() bool { s := status(t, c, moves); return s.State == "RUNNING" && s.WorkerName == "w2" })
	// From the last contact, which was less than a lease before.
	if took, least := time.Since(began), job.PartitionWait(leaseOf6, time.Second)-leaseOf6; took < least {
		t.Errorf("it was given up after %v, it could not be before %v", took, least)
	}
	c.Eventually("the other is given up", func() bool { return status(t, c, stays).State == "LOST" })
	if s := status(t, c, stays); s.Reason != job.ReasonPartition {
		t.Errorf("it is LOST because of %s", s.Reason)
	}
	outOfReach(keeps) // it did not ask
	link.Heal()
	c.Eventually("w1 is back", func() bool { return status(t, c, keeps.id).Reachable })
	for _, id := range []string{moves, stays} {
		whole := uuid.MustParse(fullID(c, id)).String()
		if r := attemptAt(c, link, whole, 1); r.GetState() != droverv1.JobState_JOB_STATE_STOPPED || r.GetReason() != job.ReasonPartition {
			t.Errorf("w1 says of %s: %v (%s)", id, r.GetState(), r.GetReason())
		}
	}
	if r := c.Run("wait", stays); r.Code != 125 || status(t, c, stays).State != "LOST" {
		t.Errorf("a LOST job flips: %d, %+v", r.Code, status(t, c, stays))
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := c.Run("wait", moves); r.Code != 0 {
		t.Errorf("exit %d: %s", r.Code, c.Must("why", moves))
	}
	if b, err := os.ReadFile(gate + ".trouble"); err == nil {
		t.Errorf("two attempts ran at once: %s", b)
	}
	keeps.finish()
}

// fullID is the whole id of a job.
func fullID(c *cluster.Cluster, ref string) string {
	c.T.Helper()
	return status(c.T, c, ref).JobID
}

// TestP4AFrozenWorkerStopsWhenItWakes: it was not there to stop anything, and
// does so first of all.
func TestP4AFrozenWorkerStopsWhenItWakes(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, bin, longLease()...)
	w := c.Worker("w1", c.Scripts(c.Path("scripts"), map[string]string{"run.sh": leasedScript}))
	gate := c.Path("gate")
	id := c.Must("run", "-d", "--on-partition", "stop", "--grace", "0s", "run.sh", gate)
	c.Eventually("it runs", func() bool { _, err := os.Stat(gate + ".pid1"); return err == nil })
	text, err := os.ReadFile(gate + ".pid1")
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	w.Signal(syscall.SIGSTOP)
	c.Eventually("it is out of reach", func() bool { return !status(t, c, id).Reachable })
	w.Signal(syscall.SIGCONT)
	c.Eventually("it has ended", func() bool { s := status(t, c, id); return s.State == "STOPPED" || s.State == "LOST" })
	if s := status(t, c, id); s.Reason != job.ReasonPartition {
		t.Errorf("it is %s (%s)", s.State, s.Reason)
	}
	c.Eventually("its process is gone", func() bool { return syscall.Kill(pid, 0) != nil })
}
