package failpoint_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/core/rpc"
	"github.com/droverhq/drover/core/store/redis/redistest"
	"github.com/droverhq/drover/plugins/failpoint"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
	"github.com/droverhq/drover/test/cluster"
)

// script writes when it begins, then lines that can be foretold, and ends as it
// is told; "stop" waits for its end.
const script = `echo begin >> "$1.truth"
for ((i = 1; i <= $3; i++)); do echo "out $i"; echo "err $i" >&2; done
[ "$2" = stop ] && exec sleep 1000
exit "$2"
`

// way is how to get to a point: the points before it are died at first, by others
// or for a start that passes it. lossy is a way on which worker and plugin die
// together: a result is then the true one, or LOST.
type way struct {
	before []failpoint.Point
	lossy  bool
}

// ways are those of the points that jobs alone do not lead to.
func ways() map[failpoint.Point]way {
	scheduler := way{before: []failpoint.Point{failpoint.SchedulerCommitBefore}}
	worker := way{before: []failpoint.Point{failpoint.WorkerActAfter}}
	return map[failpoint.Point]way{
		failpoint.SchedulerTermRaised: scheduler, failpoint.SchedulerLoaded: scheduler, failpoint.StandbyLeaseTaken: scheduler,
		failpoint.WorkerFenceBefore: scheduler, failpoint.WorkerFenceAfter: scheduler,
		failpoint.WorkerRegistered: worker, failpoint.WorkerRestored: worker,
		// A life that has a segment makes no other one for so little.
		failpoint.WorkerSegmentBefore: worker, failpoint.WorkerSegmentAfter: worker,
		failpoint.WorkerRecordBefore:   {[]failpoint.Point{failpoint.PluginStartBefore}, true},
		failpoint.WorkerRecordAfter:    {[]failpoint.Point{failpoint.PluginStartBefore}, true},
		failpoint.WorkerWithdrawBefore: {[]failpoint.Point{failpoint.PluginForkBefore}, true},
		failpoint.WorkerWithdrawAfter:  {[]failpoint.Point{failpoint.PluginForkBefore}, true},
	}
}

// site is a cluster whose daemons die at points, and a client of it.
type site struct {
	*cluster.Cluster
	dir    string // of the points
	client droverv1.SchedulerServiceClient
	seen   map[droverv1.JobState]int
	visits int
}

// newSite arms the points that the first start of a worker passes, if any.
func newSite(t *testing.T, start []failpoint.Point, flags ...string) *site {
	t.Helper()
	s := &site{dir: t.TempDir(), seen: map[droverv1.JobState]int{}}
	s.Cluster = cluster.NewRevived(t, bin, []string{failpoint.Variable + "=" + s.dir}, flags...)
	s.arm(start)
	s.Worker("w1", s.Scripts(s.Path("scripts"), map[string]string{"job.sh": script}))
	for _, p := range start {
		s.isHit(p)
	}
	source, err := certs.NewSource(s.Path("certs", "admin"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := rpc.Dial(s.Address, source.ClientConfig(certs.RoleScheduler, ""))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	s.client = droverv1.NewSchedulerServiceClient(conn)
	return s
}

// arm says where to die next.
func (s *site) arm(points []failpoint.Point) {
	s.T.Helper()
	var text strings.Builder
	for _, p := range points {
		text.WriteString(string(p) + "\n")
	}
	path := filepath.Join(s.dir, failpoint.ArmedFile)
	if err := os.WriteFile(path+".new", []byte(text.String()), 0o600); err != nil {
		s.T.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		s.T.Fatal(err)
	}
}

// isHit waits until somebody has died at a point.
func (s *site) isHit(p failpoint.Point) {
	s.T.Helper()
	hit := filepath.Join(s.dir, failpoint.HitPrefix+string(p))
	s.Eventually(string(p)+" is hit", func() bool { return os.Remove(hit) == nil })
}

// call asks until there is an answer: schedulers come and go.
func call[In, Out any](s *site, f func(context.Context, In, ...grpc.CallOption) (Out, error), in In) (out Out) {
	s.T.Helper()
	var err error
	for end := time.Now().Add(cluster.Patience); time.Now().Before(end); {
		ctx, cancel := context.WithTimeout(s.T.Context(), 5*time.Second)
		out, err = f(ctx, in, grpc.WaitForReady(true))
		cancel()
		if err == nil {
			return out
		}
	}
	s.T.Fatalf("no answer: %v", err)
	return out
}

// trial is one job and what must become of it. No name begins with another one: its
// processes are found by it.
type trial struct {
	name, id, truth string
	end             string // argument of the script
	lines           int
}

// visit lets the cluster die at one point under jobs.
func (s *site) visit(p failpoint.Point, jobs int) {
	s.T.Helper()
	w := ways()[p]
	s.arm(append(slices.Clone(w.before), p))
	s.visits++
	var trials []*trial
	for i := range jobs {
		x := &trial{name: fmt.Sprintf("%s-%d-%02d", p, s.visits, i), end: []string{"7", "stop", "0"}[i%3], lines: 10}
		if x.end == "0" {
			x.lines = 3000
		}
		x.truth = s.Path(x.name)
		x.id = call(s, s.client.StartJob, &droverv1.StartJobRequest{
			Command: "bash", Path: "job.sh", Args: []string{x.truth, x.end, strconv.Itoa(x.lines)},
			RequestId: x.name, Grace: durationpb.New(time.Second),
		}).GetJobId()
		trials = append(trials, x)
	}
	for _, x := range trials {
		s.settle(x, w.lossy)
	}
	for _, q := range append(slices.Clone(w.before), p) {
		s.isHit(q)
	}
}

func terminal(j *droverv1.Job) bool {
	switch j.GetState() {
	case droverv1.JobState_JOB_STATE_SUCCEEDED, droverv1.JobState_JOB_STATE_FAILED, droverv1.JobState_JOB_STATE_STOPPED,
		droverv1.JobState_JOB_STATE_REJECTED, droverv1.JobState_JOB_STATE_LOST:
		return true
	}
	return false
}

// settle waits for the end of a job and compares it with the truth.
func (s *site) settle(x *trial, lossy bool) {
	s.T.Helper()
	var j *droverv1.Job
	asked := false
	s.Eventually(x.name+" ends", func() bool {
		if x.end == "stop" && !asked && x.begins() > 0 {
			call(s, s.client.StopJob, &droverv1.StopJobRequest{JobId: x.id})
			asked = true
		}
		j = call(s, s.client.GetJob, &droverv1.GetJobRequest{JobId: x.id}).GetJob()
		return terminal(j)
	})
	s.seen[j.GetState()]++
	what := fmt.Sprintf("%s is %s (%s: %s)", x.name, j.GetState(), j.GetReason(), j.GetMessage())
	if left := cluster.Processes(x.truth); len(left) > 0 {
		s.T.Errorf("%s, and %v is left", what, left)
	}
	if n := x.begins(); n > 1 || n < 1 && !lossy {
		s.T.Errorf("%s, and began %d times", what, n)
	}
	lost := j.GetState() == droverv1.JobState_JOB_STATE_LOST
	switch {
	case lost && (!lossy || j.ExitCode != nil):
		s.T.Error(what)
	case lost:
		return
	case x.end == "stop" && j.GetState() != droverv1.JobState_JOB_STATE_STOPPED:
		s.T.Error(what)
	case x.end != "stop" && (j.ExitCode == nil || strconv.Itoa(int(j.GetExitCode())) != x.end):
		s.T.Errorf("%s, and its exit code is %v", what, j.ExitCode)
	}
	var got cluster.Result
	s.Eventually("its output can be read", func() bool { got = s.Run("logs", x.id); return got.Code == 0 })
	stderr, complaint, _ := strings.Cut(got.Stderr, "drover: ")
	for _, c := range []struct{ word, stream, got string }{{"out", "stdout", got.Stdout}, {"err", "stderr", stderr}} {
		var want strings.Builder
		for i := range x.lines {
			fmt.Fprintf(&want, "%s %d\n", c.word, i+1)
		}
		if lossy && strings.HasPrefix(want.String(), c.got) && strings.Contains(complaint, c.stream+": what follows") {
			continue // what was in the pipe died with those who held it, and that is said (P8)
		}
		if c.got != want.String() {
			s.T.Errorf("%s wrote %d bytes of %q, %d are read, or they differ", x.name, want.Len(), c.word, len(c.got))
		}
	}
}

// begins counts how often the script began, by its own word.
func (x *trial) begins() int {
	b, _ := os.ReadFile(x.truth + ".truth") // none: never
	return strings.Count(string(b), "begin\n")
}

// of lists the points with a prefix, in order.
func of(t *testing.T, prefix string) (out []failpoint.Point) {
	t.Helper()
	for _, p := range points(t) {
		if strings.HasPrefix(string(p), prefix) {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return out
}

// TestEveryFailpoint: P1, P2, P6, P7, P8, P17. At each point the process that
// reaches it dies, and is started again. No job is lost or begins twice, every exit
// code is true, every byte is there, and no process is left. DROVER_LONG=1 does it
// again and again, with more jobs.
func TestEveryFailpoint(t *testing.T) {
	t.Parallel()
	rounds, jobs := 1, 3
	if os.Getenv("DROVER_LONG") != "" {
		rounds, jobs = 5, 12
	}
	run := func(name string, points []failpoint.Point, site func(*testing.T) *site) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := site(t)
			for range rounds {
				for _, p := range points {
					s.visit(p, jobs)
				}
			}
			t.Logf("%d points were hit, %d times each; the jobs: %v", len(points), rounds, s.seen)
		})
	}
	plain := func(t *testing.T) *site { t.Helper(); return newSite(t, nil) }
	first := []failpoint.Point{failpoint.WorkerIdentityBefore, failpoint.WorkerIdentityAfter}
	worker := slices.DeleteFunc(of(t, "worker."), func(p failpoint.Point) bool { return slices.Contains(first, p) })
	half := len(worker) / 2
	run("scheduler", of(t, "scheduler."), plain)
	run("worker", worker[:half], func(t *testing.T) *site { t.Helper(); return newSite(t, first) })
	run("worker, the rest", worker[half:], plain)
	// A plugin that dies again and again is started again with growing pauses.
	for part := range slices.Chunk(of(t, "plugin."), 5) {
		run(string(part[0])+" and on", part, plain)
	}
	run("standby", of(t, "standby."), func(t *testing.T) *site {
		t.Helper()
		return newSite(t, nil, "--store", redistest.Start(t).URL(), "--standby", "--takeover", "1s")
	})
}

// TestALifeWhoseNewsIsLostIsNoFutileOne: P7. A plugin that starts a job and dies
// before it can tell has done its work. After three such lives in a row the next
// job was refused, for the runner "does not stay up".
func TestALifeWhoseNewsIsLostIsNoFutileOne(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	for range 3 {
		s.visit(failpoint.PluginSendBefore, 1)
	}
	s.visit(failpoint.PluginStartBefore, 1)
}

// TestACertificateIsWholeAtEveryFailpoint: whoever stores a certificate dies at
// each step. What lies there is nothing or a whole one, and then the next try
// succeeds.
func TestACertificateIsWholeAtEveryFailpoint(t *testing.T) {
	t.Parallel()
	s := &site{dir: t.TempDir(), Cluster: &cluster.Cluster{T: t, Bin: bin, Dir: t.TempDir()}}
	if _, err := certs.Init(s.Path("ca"), "test"); err != nil {
		t.Fatal(err)
	}
	for _, p := range of(t, "certs.") {
		out := s.Path(string(p))
		issue := func() (code int, text string) {
			cmd := s.Command(t.Context(), "certs", "issue", "someone", "--role", "viewer", "--ca", s.Path("ca"), "--out", out)
			cmd.Env = append(cmd.Env, failpoint.Variable+"="+s.dir)
			b, _ := cmd.CombinedOutput() // the code tells
			return cmd.ProcessState.ExitCode(), string(b)
		}
		s.arm([]failpoint.Point{p})
		if code, text := issue(); code != -1 {
			t.Fatalf("%s: it ended with %d: %s", p, code, text)
		}
		s.isHit(p)
		if certs.Missing(out) {
			if code, text := issue(); code != 0 {
				t.Errorf("after %s: %s", p, text)
			}
		}
		if _, err := certs.NewSource(out, slog.New(slog.DiscardHandler)); err != nil {
			t.Errorf("%s: %v", p, err)
		}
	}
}
