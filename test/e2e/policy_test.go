package e2e_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/droverhq/drover/test/cluster"
)

// codes begins with a mark for each attempt, which cannot be made twice, and ends with
// the code that the arguments have for it; 0 when they have none.
const codes = `set -C; : > "$1.$DROVER_ATTEMPT" || exit 99
shift; eval "exit \${$DROVER_ATTEMPT:-0}"
`

// story is a job as the tests of policies look at it.
type story struct {
	JobID   string `json:"job_id"`
	Name    string `json:"name"`
	State   string `json:"state"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
	Attempt int    `json:"attempt"`
}

// stories are all jobs by name.
func stories(c *cluster.Cluster) map[string]story {
	c.T.Helper()
	var list []story
	if err := json.Unmarshal([]byte(c.Must("jobs", "-o", "json", "--limit", "0")), &list); err != nil {
		c.T.Fatal(err)
	}
	out := map[string]story{}
	for _, s := range list {
		out[s.Name] = s
	}
	return out
}

// why is what people are told of a job. A reason without advice is no answer.
func why(c *cluster.Cluster, s story, says ...string) {
	c.T.Helper()
	out := c.Must("why", s.JobID)
	for _, want := range append(says, "hint:") {
		if !strings.Contains(out, want) {
			c.T.Errorf("why %s does not say %q:\n%s", s.Name, want, out)
		}
	}
}

// marks are when the attempts of a job have begun, by its own word.
func marks(c *cluster.Cluster, prefix string) (at []time.Time) {
	c.T.Helper()
	files, err := filepath.Glob(prefix + ".*")
	if err != nil {
		c.T.Fatal(err)
	}
	for _, f := range files {
		st, err := os.Stat(f)
		if err != nil {
			c.T.Fatal(err)
		}
		at = append(at, st.ModTime())
	}
	slices.SortFunc(at, time.Time.Compare)
	return at
}

// TestP5AttemptsAreMadeAsThePolicySays, each once, and the last one's code is the
// job's.
func TestP5AttemptsAreMadeAsThePolicySays(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, bin)
	die := strings.Replace(codes, "eval", `[ "$DROVER_ATTEMPT" = 1 ] && kill -9 $$; eval`, 1)
	c.Worker("w1", c.Scripts(c.Path("scripts"), map[string]string{"codes.sh": codes, "die.sh": die}))
	quick := []string{"--retry-backoff", "10ms"}
	for _, p := range []struct {
		name   string
		policy []string
		script string
		codes  []string // of the attempts
		code   int      // of the job
		begun  int
	}{
		{"never", nil, "codes.sh", []string{"3"}, 3, 1},
		{"failure", []string{"--retries", "2", "--retry-on", "failure"}, "codes.sh", []string{"3", "4", "5", "0"}, 5, 3},
		{"until it succeeds", []string{"--retries", "5", "--retry-on", "failure"}, "codes.sh", []string{"3", "0"}, 0, 2},
		{"by default both", []string{"--retries", "1"}, "codes.sh", []string{"3", "0"}, 0, 2},
		{"not of a success", []string{"--retries", "5"}, "codes.sh", nil, 0, 1},
		{"codes, while they match", []string{"--retries", "5", "--retry-on", "3,4"}, "codes.sh", []string{"3", "4", "5", "0"}, 5, 3},
		{"another code", []string{"--retries", "5", "--retry-on", "9"}, "codes.sh", []string{"3", "0"}, 3, 1},
		{"lost is not failure", []string{"--retries", "5", "--retry-on", "lost"}, "codes.sh", []string{"3", "0"}, 3, 1},
		{"a signal is a failure", []string{"--retries", "1", "--retry-on", "failure"}, "die.sh", nil, 0, 2},
		{"a signal is no code", []string{"--retries", "1", "--retry-on", "137"}, "die.sh", nil, 137, 1},
	} {
		mark := c.Path("marks " + p.name)
		args := slices.Concat([]string{"run", "--name", p.name}, p.policy)
		if p.policy != nil {
			args = append(args, quick...)
		}
		r := c.Run(append(append(args, p.script, mark), p.codes...)...)
		if got := len(marks(c, mark)); r.Code != p.code || got != p.begun {
			t.Errorf("%s: exit %d, want %d; begun %d times, want %d\n%s", p.name, r.Code, p.code, got, p.begun, r.Stderr)
		}
	}
	all := stories(c)
	if s := all["codes, while they match"]; s.State != "FAILED" || s.Attempt != 3 {
		t.Errorf("%+v", s)
	}
	why(c, all["codes, while they match"], "FAILED", "attempt 3", "of at most 6", "EXIT_CODE", "exit code 5")
	why(c, all["a signal is no code"], "SIGNAL", "SIGKILL")
	backoffDoubles(c)
	rejectedIsTriedAgain(c)
}

// backoffDoubles looks at the times between attempts. The least of them is certain.
func backoffDoubles(c *cluster.Cluster) {
	c.T.Helper()
	mark := c.Path("marks of backoff")
	r := c.Run("run", "--retries", "2", "--retry-on", "failure", "--retry-backoff", "150ms", "codes.sh", mark, "3", "3", "0")
	at := marks(c, mark)
	if r.Code != 0 || len(at) != 3 {
		c.T.Fatalf("exit %d after %d attempts: %s", r.Code, len(at), r.Stderr)
	}
	if first, second := at[1].Sub(at[0]), at[2].Sub(at[1]); first < 150*time.Millisecond || second < 300*time.Millisecond {
		c.T.Errorf("the waits were %v and %v", first, second)
	}
}

// rejectedIsTriedAgain: what a worker rejects may be right a moment later. While it
// waits for that, why says so, and a stop ends it.
func rejectedIsTriedAgain(c *cluster.Cluster) {
	c.T.Helper()
	folder := c.Path("later")
	run := func(name string, policy ...string) cluster.Result {
		return c.Run(slices.Concat([]string{"run", "--name", name, "--workdir", folder}, policy, []string{"codes.sh", c.Path("marks " + name)})...)
	}
	if r := run("rejected", "--retries", "1", "--retry-on", "lost", "--retry-backoff", "10ms"); r.Code != 125 || !strings.Contains(r.Stderr, folder) {
		c.T.Errorf("rejected twice: exit %d, %s", r.Code, r.Stderr)
	}
	if r := run("rejected once", "--retries", "1", "--retry-on", "failure"); r.Code != 125 {
		c.T.Errorf("a rejection is no failure: exit %d, %s", r.Code, r.Stderr)
	}
	long := c.Must("run", "-d", "--name", "given up", "--workdir", folder, "--retries", "1", "--retry-backoff", "1h", "codes.sh", c.Path("marks given up"))
	c.Eventually("it waits for its second attempt", func() bool { return stories(c)["given up"].Reason == "RETRY" })
	why(c, stories(c)["given up"], "QUEUED", "RETRY", "attempt 1 ended REJECTED (WORKDIR)", "1h0m0s")
	c.Must("stop", long)
	soon := c.Must("run", "-d", "--name", "mended", "--workdir", folder, "--retries", "1", "--retry-backoff", "5s", "codes.sh", c.Path("marks mended"))
	c.Eventually("it was rejected once", func() bool { return stories(c)["mended"].Attempt == 1 && stories(c)["mended"].Reason == "RETRY" })
	if err := os.Mkdir(folder, 0o755); err != nil {
		c.T.Fatal(err)
	}
	if r := c.Run("wait", soon); r.Code != 0 {
		c.T.Errorf("mended: exit %d, %s", r.Code, r.Stderr)
	}
	all := stories(c)
	for name, want := range map[string]string{
		"rejected": "REJECTED WORKDIR 2", "rejected once": "REJECTED WORKDIR 1", "given up": "STOPPED USER 1", "mended": "SUCCEEDED  2",
	} {
		if s := all[name]; fmt.Sprintf("%s %s %d", s.State, s.Reason, s.Attempt) != want {
			c.T.Errorf("%s: %+v, want %s", name, s, want)
		}
	}
	why(c, all["rejected"], "REJECTED", "WORKDIR", folder)
	why(c, all["given up"], "STOPPED", "USER")
}

// TestTimesRunOutAndWhySaysWhich: of the queue, of the run, of silence; each is told
// from the others, and what does not wait for them is left alone.
func TestTimesRunOutAndWhySaysWhich(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, bin)
	c.Worker("w1", c.Scripts(c.Path("scripts"), map[string]string{
		"gate.sh":   "until [ -e \"$1\" ]; do sleep 0.05; done\n",
		"silent.sh": "echo once; exec sleep 1000\n",
		"talks.sh":  "for i in 1 2 3 4 5 6; do echo $i; sleep 0.1; done; exit 4\n",
		"spam.sh":   "while :; do echo spam; done\n",
		"codes.sh":  codes,
	}), "--slots", "2")
	for _, p := range []struct {
		name, state string
		args        []string
		code        int
		why         []string
	}{
		{"run", "FAILED TIMEOUT", []string{"--timeout", "200ms", "silent.sh"}, 124, []string{"200ms"}},
		{"idle", "FAILED IDLE_TIMEOUT", []string{"--idle-timeout", "200ms", "silent.sh"}, 124, []string{"200ms"}},
		{"talks", "FAILED EXIT_CODE", []string{"--idle-timeout", "60s", "--timeout", "60s", "--queue-timeout", "60s", "talks.sh"}, 4, nil},
		{"again", "FAILED TIMEOUT", []string{"--timeout", "200ms", "--retries", "1", "--retry-on", "failure", "--retry-backoff", "10ms", "silent.sh"}, 124, []string{"attempt 2", "of at most 2"}},
		{"spawn", "FAILED SPAWN", []string{"--command", "/etc/hostname", ""}, 126, []string{"/etc/hostname"}},
		{"output", "FAILED OUTPUT_LIMIT", []string{"--output-policy", "fail", "--output-limit", "64KiB", "--grace", "0s", "spam.sh"}, 137, []string{"--output-limit"}},
		{"not by its code", "FAILED TIMEOUT", []string{"--timeout", "200ms", "--retries", "1", "--retry-on", "124", "silent.sh"}, 124, []string{"attempt 1"}},
	} {
		r := c.Run(slices.Concat([]string{"run", "--name", p.name}, p.args)...)
		s := stories(c)[p.name]
		if r.Code != p.code || s.State+" "+s.Reason != p.state {
			t.Errorf("%s: exit %d, want %d; %+v\n%s", p.name, r.Code, p.code, s, r.Stderr)
		}
		why(c, s, append(p.why, s.Reason)...)
	}
	waits(c)
}

// waits fills the worker, and asks of each job that waits why.
func waits(c *cluster.Cluster) {
	c.T.Helper()
	gate := c.Path("gate")
	for range 2 {
		c.Must("run", "-d", "--name", "in the way", "gate.sh", gate)
	}
	late := c.Must("run", "-d", "--name", "late", "--queue-timeout", "100ms", "codes.sh", c.Path("marks late"))
	waiting := c.Must("run", "-d", "--name", "waiting", "--queue-timeout", "1h", "codes.sh", c.Path("marks waiting"))
	if r := c.Run("wait", late); r.Code != 125 {
		c.T.Errorf("late: exit %d, %s", r.Code, r.Stderr)
	}
	all := stories(c)
	why(c, all["late"], "REJECTED", "QUEUE_TIMEOUT", "100ms", "--queue-timeout")
	why(c, all["waiting"], "QUEUED", "NO_SLOT")
	nowhere := c.Must("run", "-d", "--name", "nowhere", "-l", "zone=nowhere", "codes.sh", c.Path("marks nowhere"))
	why(c, stories(c)["nowhere"], "QUEUED", "NO_LABELS", "zone=nowhere")
	c.Must("stop", nowhere)
	why(c, stories(c)["nowhere"], "STOPPED", "USER", "while it waited")
	c.Must("workers", "drain", "w1", "--reason", "a new kernel")
	drained := c.Must("run", "-d", "--name", "drained", "codes.sh", c.Path("marks drained"))
	c.Eventually("it waits for the worker", func() bool { return stories(c)["drained"].Reason == "WORKER_DRAINED" })
	why(c, stories(c)["drained"], "QUEUED", "WORKER_DRAINED", "drover workers undrain")
	c.Must("workers", "undrain", "w1")
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		c.T.Fatal(err)
	}
	if r := c.Run("wait", waiting, drained); r.Code != 0 {
		c.T.Errorf("those that waited: exit %d, %s", r.Code, r.Stderr)
	}
	if n := len(marks(c, c.Path("marks late"))); n != 0 {
		c.T.Error("what was rejected has begun")
	}
}
