package e2e_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/core/rpc"
	"github.com/droverhq/drover/core/store/redis/redistest"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
	"github.com/droverhq/drover/test/cluster"
)

// truthful tells a file when it begins and that it ended.
const truthful = `echo "begin $1 $EPOCHREALTIME" >>"$2"
read -rt 0.05 <> <(:)
echo "end $1" >>"$2"
`

// pair is a cluster of two schedulers on one Redis, under load.
type pair struct {
	*cluster.Cluster
	first, second     *cluster.Daemon
	address, address2 string // of the two

	truth string
	jobs  droverv1.SchedulerServiceClient
	stop  chan struct{}
	load  sync.WaitGroup

	mu        sync.Mutex // guards submitted
	submitted map[string]order
}

// order is one request of the load.
type order struct {
	job  string
	from time.Time // when it was first sent
}

// newPair starts two schedulers; url is the store of the first.
func newPair(t *testing.T, server *redistest.Server, url string) *pair {
	t.Helper()
	flags := []string{"--standby", "--takeover", "2s", "--store"}
	p := &pair{Cluster: cluster.New(t, bin, append(flags, url)...), stop: make(chan struct{}), submitted: map[string]order{}}
	p.first, p.address = p.Scheduler, p.Address
	p.Eventually("the first one is active", func() bool { return lives(p.first) == 1 })
	p.second, p.address2 = p.Standby("second", append(flags, server.URL())...)
	p.Worker("w1", p.Scripts(p.Path("scripts"), map[string]string{"job.sh": truthful, "count.sh": counting}), "--slots", "32")
	p.truth = p.Path("truth")
	source, err := certs.NewSource(p.Path("certs", "admin"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := rpc.NewHandshakes().DialScheduler(p.Address, source.ClientConfig(certs.RoleScheduler, ""))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	p.jobs = droverv1.NewSchedulerServiceClient(conn)
	for n := range 8 {
		p.load.Go(func() { p.submit(n) })
	}
	return p
}

// lives counts how often a scheduler has become active.
func lives(d *cluster.Daemon) int { return strings.Count(d.LogText(), `msg="scheduler is up"`) }

func request(id, truth string) *droverv1.StartJobRequest {
	return &droverv1.StartJobRequest{
		RequestId: id, Path: "job.sh", Args: []string{id, truth}, QueueTimeout: durationpb.New(cluster.Patience),
	}
}

// submit sends jobs one after the other, each until it is answered, and waits for
// its end.
func (p *pair) submit(n int) {
	for i := 0; ; i++ {
		select {
		case <-p.stop:
			return
		default:
		}
		id := fmt.Sprintf("%d-%d", n, i)
		from := time.Now()
		job, err := p.insist(id)
		p.mu.Lock()
		p.submitted[id] = order{job, from}
		p.mu.Unlock()
		var ended *droverv1.Job
		if err == nil {
			err = persist(func(ctx context.Context) error {
				got, err := p.jobs.GetJob(ctx, &droverv1.GetJobRequest{JobId: job, Wait: true})
				ended = got.GetJob()
				return err
			})
		}
		if err != nil || ended.GetState() != droverv1.JobState_JOB_STATE_SUCCEEDED {
			p.T.Errorf("request %s: %v, %v", id, ended.GetState(), err)
			return
		}
	}
}

func (p *pair) insist(id string) (job string, err error) {
	err = persist(func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		got, err := p.jobs.StartJob(ctx, request(id, p.truth))
		job = got.GetJobId()
		return err
	})
	return job, err
}

// persist tries until it is answered, as any client does.
func persist(call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), cluster.Patience)
	defer cancel()
	for {
		err := call(ctx)
		if err == nil || ctx.Err() != nil {
			return err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// accepted waits for n more answers.
func (p *pair) accepted(n int) {
	p.T.Helper()
	count := func() int {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.submitted)
	}
	goal := count() + n
	p.Eventually(fmt.Sprintf("%d jobs are accepted", goal), func() bool { return count() >= goal })
}

// ledger ends the load and compares what was asked for with what happened.
func (p *pair) ledger(fault time.Time) {
	p.T.Helper()
	close(p.stop)
	p.load.Wait()
	lines, err := os.ReadFile(p.truth)
	if err != nil {
		p.T.Fatal(err)
	}
	begun := map[string]int{}
	first := time.Time{}
	for line := range strings.Lines(string(lines)) {
		f := strings.Fields(line)
		if f[0] != "begin" {
			continue
		}
		begun[f[1]]++
		at, err := strconv.ParseFloat(f[2], 64)
		if err != nil {
			p.T.Fatal(err)
		}
		when := time.UnixMicro(int64(at * 1e6))
		if o, ok := p.submitted[f[1]]; ok && o.from.After(fault) && (first.IsZero() || when.Before(first)) {
			first = when
		}
	}
	lost, doubled, ids := 0, 0, map[string]bool{}
	for id, o := range p.submitted {
		switch {
		case begun[id] == 0:
			lost++
		case begun[id] > 1:
			doubled++
		}
		ids[o.job] = true
	}
	for _, id := range slices.Sorted(maps.Keys(p.submitted))[:10] { // P1
		if job, err := p.insist(id); err != nil || job != p.submitted[id].job {
			p.T.Errorf("request %s was job %s and is %s, %v", id, p.submitted[id].job, job, err)
		}
	}
	if lost+doubled > 0 || len(ids) != len(p.submitted) || len(begun) != len(p.submitted) {
		p.T.Errorf("ledger: %d requests, %d jobs, %d begun, %d lost, %d doubled", len(p.submitted), len(ids), len(begun), lost, doubled)
	}
	p.T.Logf("ledger: submitted %d, lost %d, doubled %d; the first job that was submitted after the fault began %.2f s after it",
		len(p.submitted), lost, doubled, first.Sub(fault).Seconds())
}

// attended is a job with three commands that attend it.
type attended struct {
	*pair
	gate, id        string
	run, logs, wait *exec.Cmd
	stdout, copied  *bytes.Buffer
}

func (p *pair) attend() *attended {
	p.T.Helper()
	a := &attended{pair: p, gate: p.Path("gate"), stdout: &bytes.Buffer{}, copied: &bytes.Buffer{}}
	a.run = p.Command(context.Background(), "run", "--name", "attended", "count.sh", a.gate)
	a.run.Stdout = a.stdout
	if err := a.run.Start(); err != nil {
		p.T.Fatal(err)
	}
	p.Eventually("the attended job runs", func() bool {
		for line := range strings.Lines(p.Run("jobs", "--state", "running", "-o", "jsonl").Stdout) {
			if _, rest, ok := strings.Cut(line, `"job_id":"`); ok && strings.Contains(line, `"attended"`) {
				a.id, _, _ = strings.Cut(rest, `"`)
				return true
			}
		}
		return false
	})
	a.logs = p.Command(context.Background(), "logs", "-f", "--stdout", a.id)
	a.logs.Stdout = a.copied
	a.wait = p.Command(context.Background(), "wait", a.id)
	for _, cmd := range []*exec.Cmd{a.logs, a.wait} {
		if err := cmd.Start(); err != nil {
			p.T.Fatal(err)
		}
	}
	p.Eventually("its output is read", func() bool { return len(p.Run("logs", "--stdout", a.id).Stdout) > 0 })
	return a
}

// finish ends the job; the commands have seen nothing of the fault.
func (a *attended) finish() {
	a.T.Helper()
	j := &counted{Cluster: a.Cluster, gate: a.gate, id: a.id}
	j.finish()
	for _, c := range []struct {
		cmd  *exec.Cmd
		code int
	}{{a.run, 42}, {a.logs, 0}, {a.wait, 42}} {
		_ = c.cmd.Wait() // the code tells
		if got := c.cmd.ProcessState.ExitCode(); got != c.code {
			a.T.Errorf("%v exits with %d, want %d", c.cmd.Args[1:], got, c.code)
		}
	}
	whole := a.Run("logs", "--stdout", a.id).Stdout
	if a.stdout.String() != whole || a.copied.String() != whole {
		a.T.Errorf("run printed %d bytes, logs -f %d; the output has %d", a.stdout.Len(), a.copied.Len(), len(whole))
	}
}

// TestAStandbyTakesOver: P1, P2, P7, P15. The active scheduler is killed under
// load, and then the one that took over.
func TestAStandbyTakesOver(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	p := newPair(t, server, server.URL())
	a := p.attend()
	p.accepted(50)
	if r := p.Run("--address", p.address2, "jobs"); r.Code != 5 || !strings.Contains(r.Stderr, "the active one is at "+p.address) {
		t.Errorf("the standby answers %+v", r)
	}
	fault := time.Now()
	p.first.Kill()
	p.accepted(50)
	if lives(p.second) != 1 {
		t.Errorf("the second one was active %d times", lives(p.second))
	}
	a.finish()
	p.ledger(fault)
}

// TestAFrozenSchedulerThatWakesDoesNothing: P3. It is stopped for longer than its
// lease; when it goes on it writes nothing, serves nobody and stands by, and when
// the other one is killed it is active again.
func TestAFrozenSchedulerThatWakesDoesNothing(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	p := newPair(t, server, server.URL())
	a := p.attend()
	p.accepted(50)
	fault := time.Now()
	p.first.Signal(syscall.SIGSTOP)
	p.accepted(50)
	p.first.Signal(syscall.SIGCONT)
	p.Eventually("it stands by", func() bool {
		_, after, ok := strings.Cut(p.first.LogText(), `msg="no longer the active scheduler, standing by"`)
		return ok && strings.Contains(after, `msg="standing by"`) && strings.Contains(after, "active="+p.address2)
	})
	if n := strings.Count(p.first.LogText(), "no longer the active scheduler"); n != 1 || lives(p.first) != 1 || lives(p.second) != 1 {
		t.Errorf("it says so %d times; active %d and %d times", n, lives(p.first), lives(p.second))
	}
	if r := p.Run("--address", p.address, "jobs"); r.Code != 5 || !strings.Contains(r.Stderr, "the active one is at "+p.address2) {
		t.Errorf("the one that woke answers %+v", r)
	}
	p.accepted(50)
	p.second.Kill()
	p.accepted(50)
	if lives(p.first) != 2 {
		t.Errorf("the first one was active %d times", lives(p.first))
	}
	a.finish()
	p.ledger(fault)
}

// TestWithoutRedisNobodyActs: the active scheduler loses its way to Redis, and the
// other takes over; then Redis is away for both, for longer than the lease.
func TestWithoutRedisNobodyActs(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	way := newWay(t, server)
	p := newPair(t, server, "redis+unix://"+way.path)
	a := p.attend()
	p.accepted(20)
	fault := time.Now()
	way.cut()
	p.accepted(20)
	p.Eventually("the first one says so", func() bool { return strings.Contains(p.first.LogText(), "no longer the active scheduler") })
	way.heal()
	p.Eventually("the first one stands by", func() bool { return strings.Contains(p.first.LogText(), "active="+p.address2) })
	server.Kill()
	p.Eventually("nobody acts", func() bool { return strings.Contains(p.second.LogText(), "no longer the active scheduler") })
	server.Up(t)
	p.accepted(20)
	a.finish()
	p.ledger(fault)
}

// way is a way to Redis that can be cut.
type way struct {
	path string

	mu    sync.Mutex // guards the fields below
	conns map[net.Conn]bool
	shut  bool
}

func newWay(t *testing.T, server *redistest.Server) *way {
	t.Helper()
	w := &way{path: filepath.Join(filepath.Dir(server.Socket), "way"), conns: map[net.Conn]bool{}}
	listen, err := net.Listen("unix", w.path)
	if err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	wait.Go(func() {
		for {
			in, err := listen.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("unix", server.Socket)
			if err != nil || !w.add(in, out) {
				_ = in.Close()
				continue
			}
			for _, ends := range [][2]net.Conn{{in, out}, {out, in}} {
				wait.Go(func() {
					_, _ = io.Copy(ends[0], ends[1]) // ends with either side
					_ = ends[0].Close()
					_ = ends[1].Close()
				})
			}
		}
	})
	t.Cleanup(func() {
		_ = listen.Close()
		w.cut()
		wait.Wait()
	})
	return w
}

func (w *way) add(in, out net.Conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conns[in], w.conns[out] = true, true
	if w.shut {
		_ = out.Close()
	}
	return !w.shut
}

func (w *way) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.shut = true
	for c := range w.conns {
		_ = c.Close()
	}
	clear(w.conns)
}

func (w *way) heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.shut = false
}
