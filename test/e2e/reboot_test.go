package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"github.com/droverhq/drover/core/job"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
	"github.com/droverhq/drover/test/cluster"
)

// witness is counting that also writes down, where drover does not look, that it has
// begun, and how much it has said when it ends. Twice in one attempt it cannot begin.
const witness = `set -C
echo $$ > "$1.begun-$DROVER_ATTEMPT" || exit 99
i=0
until [ -e "$1" ]; do
  i=$((i+1)); echo "out $i"; echo "err $i" >&2
  [ $((i % 20)) = 0 ] && sleep 0.02
done
echo "last $i"; echo "$i" > "$1.ended"; exit 42
`

// witnessed is a job that runs it.
type witnessed struct {
	*counted
}

func startWitness(c *cluster.Cluster, name string, flags ...string) *witnessed {
	c.T.Helper()
	j := &witnessed{&counted{Cluster: c, gate: c.Path("gate-" + name)}}
	j.id = c.Must(append(append([]string{"run", "-d"}, flags...), "witness.sh", j.gate)...)
	j.grows("it writes")
	return j
}

// open lets it end.
func (j *witnessed) open() {
	j.T.Helper()
	if err := os.WriteFile(j.gate, nil, 0o600); err != nil {
		j.T.Fatal(err)
	}
}

// gone waits until it has written down its end and no process of it is left.
func (j *witnessed) gone() {
	j.T.Helper()
	j.Eventually("it ends", func() bool {
		_, err := os.Stat(j.gate + ".ended")
		return err == nil && len(cluster.Processes(j.gate)) == 0
	})
}

// verdict is how a job ended as people are told.
type verdict struct {
	State    string `json:"state"`
	Reason   string `json:"reason"`
	Evidence string `json:"evidence"`
	ExitCode *int   `json:"exit_code"`
	Attempt  int    `json:"attempt"`
}

func (j *witnessed) ended() verdict {
	j.T.Helper()
	var v verdict
	j.Eventually("the job ends", func() bool {
		v = verdict{}
		r := j.Run("status", j.id, "-o", "json")
		return r.Code == 0 && json.Unmarshal([]byte(r.Stdout), &v) == nil &&
			(v.State == "FAILED" || v.State == "LOST" || v.State == "SUCCEEDED" || v.State == "REJECTED")
	})
	return v
}

// ended42 wants the true exit code, as it was seen, and every byte.
func (j *witnessed) ended42() {
	j.T.Helper()
	j.code42(true)
}

func (j *witnessed) code42(whole bool) {
	j.T.Helper()
	v := j.ended()
	if v.State != "FAILED" || v.ExitCode == nil || *v.ExitCode != 42 || v.Evidence == "" {
		j.T.Errorf("%+v, the truth is 42: %s", v, j.Must("why", j.id))
	}
	if r := j.Run("wait", j.id); r.Code != 42 {
		j.T.Errorf("wait exits with %d", r.Code)
	}
	n := j.count()
	j.says("--stdout", spoken("out", n)+fmt.Sprintf("last %d\n", n), whole)
	j.says("--stderr", spoken("err", n), whole)
}

// unseen is a job that nobody of drover saw end. Unless whoever reaps orphans here is
// slow, and the kernel still knows the code, it is LOST.
func (j *witnessed) unseen() {
	j.T.Helper()
	if j.ended().State == "LOST" {
		j.lost(job.ReasonNoProcess, j.count())
		return
	}
	j.code42(false)
}

// lost wants that no code was made up, and no byte.
func (j *witnessed) lost(reason string, spoke int) {
	j.T.Helper()
	if v := j.ended(); v.State != "LOST" || v.Reason != reason || v.ExitCode != nil || v.Evidence != "" {
		j.T.Errorf("%+v, want LOST, %s: %s", v, reason, j.Must("why", j.id))
	}
	if r := j.Run("wait", j.id); r.Code != 125 {
		j.T.Errorf("wait exits with %d", r.Code)
	}
	j.says("--stdout", spoken("out", spoke), false)
	j.says("--stderr", spoken("err", spoke), false)
}

// count is how many lines it has said.
func (j *witnessed) count() int {
	j.T.Helper()
	b, err := os.ReadFile(j.gate + ".ended")
	if err != nil {
		j.T.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		j.T.Fatal(err)
	}
	return n
}

// says compares output with the truth: all of it, or a beginning.
func (j *witnessed) says(stream, truth string, whole bool) {
	j.T.Helper()
	r := j.Run("logs", stream, j.id)
	if r.Stdout == truth || !whole && strings.HasPrefix(truth, r.Stdout) {
		return
	}
	same := 0
	for same < min(len(truth), len(r.Stdout)) && truth[same] == r.Stdout[same] {
		same++
	}
	j.T.Errorf("%s has %d bytes, written were %d; the same are %d, then comes %.40q (%s)", stream, len(r.Stdout), len(truth), same, r.Stdout[same:], r.Stderr)
}

func spoken(word string, n int) string {
	var b strings.Builder
	for i := 1; i <= n; i++ {
		fmt.Fprintf(&b, "%s %d\n", word, i)
	}
	return b.String()
}

// begun lists the attempts that have begun.
func (j *witnessed) begun() int {
	j.T.Helper()
	n := 0
	for ; ; n++ {
		if _, err := os.Stat(fmt.Sprintf("%s.begun-%d", j.gate, n+1)); err != nil {
			return n
		}
	}
}

// TestWorkerAndPluginKilledTogether: P2, P4, P6, P7, P8. A job that runs on is taken
// over, its code is the true one with evidence, and every byte is there. One that ends
// while neither is there has the true code, or is LOST. None begins twice, and no byte
// is other than written.
func TestWorkerAndPluginKilledTogether(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, bin)
	w := c.Worker("w1", c.Scripts(c.Path("scripts"), map[string]string{"witness.sh": witness}))
	on, meanwhile := startWitness(c, "on"), startWitness(c, "meanwhile")
	pids := plugins(c, w, "bash")
	w.Kill()
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	meanwhile.open()
	meanwhile.gone()
	w.Start()
	on.grows("it is read again")
	on.open()
	on.gone()
	meanwhile.unseen()
	if pidfdTells(t) {
		on.ended42()
	} else {
		on.unseen()
	}
	for _, j := range []*witnessed{on, meanwhile} {
		if n := j.begun(); n != 1 || j.ended().Attempt != 1 {
			t.Errorf("it has begun %d times", n)
		}
	}
	last := startWitness(c, "last")
	last.open()
	last.ended42()
}

// pidfdTells tells whether the kernel says how a process ended that is nobody's child
// here: from 6.15 on.
func pidfdTells(t *testing.T) bool {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(string(b), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	return major > 6 || major == 6 && minor >= 15
}

// TestP4TheHostIsRebooted under a worker: what it ran is LOST, and tried again only by
// who asked for that; what had ended before is what it was.
func TestP4TheHostIsRebooted(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root may show a process another boot id")
	}
	c := cluster.New(t, bin)
	w := c.Worker("w1", c.Scripts(c.Path("scripts"), map[string]string{"witness.sh": witness}))
	before := startWitness(c, "before")
	under := startWitness(c, "under")
	again := startWitness(c, "again", "--retries", "1", "--retry-on", "lost", "--retry-backoff", "10ms")
	// Its end is on the worker's disk, and nowhere else.
	worker := asScheduler(c, w.Address())
	c.Scheduler.Kill()
	before.open()
	c.Eventually("the worker knows its end", func() bool {
		r, err := worker.GetJob(context.Background(), &droverv1.WorkerServiceGetJobRequest{JobId: before.id, Attempt: 1})
		return err == nil && r.GetReport().GetState() == droverv1.JobState_JOB_STATE_FAILED
	})
	powerOff(c, w)
	boot := uuid.NewString()
	w.Reboot(boot)
	c.StartScheduler(c.Address)
	c.AwaitReady("w1")
	if out := c.Must("workers", "show", "w1", "-o", "json"); !strings.Contains(out, boot) {
		t.Errorf("the worker has not seen that it is another boot: %s", out)
	}
	before.ended42()
	under.lost(job.ReasonReboot, 1<<16)
	why(c, story{JobID: under.id}, "LOST", "REBOOT", "drover rerun")
	again.grows("the second attempt writes")
	again.open()
	again.ended42()
	if v := again.ended(); v.Attempt != 2 || again.begun() != 2 || under.begun() != 1 || before.begun() != 1 {
		t.Errorf("attempt %d; begun %d, %d and %d times", v.Attempt, again.begun(), under.begun(), before.begun())
	}
}

// powerOff ends all that a worker's host runs, the worker first: nobody is left to
// see how the others end.
func powerOff(c *cluster.Cluster, w *cluster.Daemon) {
	c.T.Helper()
	w.Kill()
	for _, runner := range []string{"bash", "python", "binary"} {
		for _, pid := range plugins(c, w, runner) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	c.Eventually("nothing runs", func() bool {
		left := cluster.Processes(w.Data)
		for _, line := range left {
			pid, err := strconv.Atoi(line[:strings.IndexByte(line, ' ')])
			if err != nil {
				c.T.Fatal(err)
			}
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		return len(left) == 0
	})
}
