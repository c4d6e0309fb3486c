package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	grpccodes "google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/droverhq/drover/certs"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
	"github.com/droverhq/drover/test/cluster"
)

// flood is how much comes at once.
type flood struct{ submits, readers, watchers, listers, stops int }

// stalledReader is more than what a read of output that stands still holds in a
// daemon, and floodRoom what else a flood may take.
const (
	stalledReader = 128 << 10
	floodRoom     = 256 << 20
	stopsWithin   = 30 * time.Second // on any machine
)

// TestP16AFloodHoldsUpNothingThatMatters: submits, lists, watches and reads whose
// readers stand still, more than are let in, from one client. Meanwhile another one
// stops jobs, heartbeats keep the workers ONLINE, and memory is bounded; afterwards
// everything works and nothing is left open.
func TestP16AFloodHoldsUpNothingThatMatters(t *testing.T) {
	t.Parallel()
	f := flood{submits: 2000, readers: 100, watchers: 200, listers: 24, stops: 4}
	if os.Getenv("DROVER_LONG") != "" {
		f = flood{submits: 20_000, readers: 700, watchers: 1500, listers: 64, stops: 30}
	}
	c := cluster.New(t, bin)
	dir := c.Scripts(c.Path("scripts"), map[string]string{
		"big.sh": "head -c 8388608 /dev/zero; exec sleep 1000\n", "sleep.sh": "exec sleep 1000\n", "ok.sh": "echo out; echo err >&2\n",
	})
	w := c.Worker("w1", dir, "--slots", strconv.Itoa(f.stops+8))
	c.Worker("w2", dir, "--slots", "1")
	big := c.Must("run", "-d", "--worker", "w1", "big.sh")
	var asleep []string
	for range f.stops {
		asleep = append(asleep, c.Must("run", "-d", "--worker", "w1", "sleep.sh"))
	}
	c.Eventually("all has been written", func() bool {
		return len(c.Must("logs", "--stdout", big)) == 8<<20
	})
	s, before := c.Scheduler, map[*cluster.Daemon]usage{c.Scheduler: use(t, c.Scheduler), w: use(t, w)}
	stalled := c.Command(context.Background(), "logs", "-f", big)
	if err := stalled.Start(); err != nil {
		t.Fatal(err)
	}
	if err := stalled.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	tide := begin(t, c, f, big)
	most := map[*cluster.Daemon]int{}
	for _, id := range asleep {
		began := time.Now()
		if r := c.Run("stop", "--grace", "0s", id); r.Code != 0 || time.Since(began) > stopsWithin {
			t.Errorf("a stop took %v and said %+v", time.Since(began), r)
		}
		for _, state := range workerStates(t, c) {
			if state != "ONLINE" {
				t.Errorf("a worker is %s", state)
			}
		}
		for _, d := range []*cluster.Daemon{s, w} {
			most[d] = max(most[d], use(t, d).memory)
		}
	}
	tide.end()
	for d, n := range map[*cluster.Daemon]int{s: most[s], w: most[w]} {
		n = max(n, use(t, d).memory)
		grown, room := n-before[d].memory, floodRoom+min(f.readers, 512)*stalledReader
		t.Logf("memory %d MiB before, %d MiB at the most, %d MiB allowed", before[d].memory>>20, n>>20, (before[d].memory+room)>>20)
		if grown > room {
			t.Errorf("memory grew by %d MiB, more than %d MiB", grown>>20, room>>20)
		}
	}
	if err := errors.Join(stalled.Process.Kill(), ignoreExit(stalled.Wait())); err != nil {
		t.Error(err)
	}
	for _, d := range []*cluster.Daemon{s, w} {
		c.Eventually("descriptors are back", func() bool { return use(t, d).files <= before[d].files+8 })
	}
	want(t, c.Run("run", "--worker", "w1", "ok.sh"), 0, "out\n", "err\n")
	if n := len(c.Must("logs", "--stdout", big)); n != 8<<20 {
		t.Errorf("%d bytes can be read", n)
	}
	c.Must("stop", "--grace", "0s", big)
}

// ignoreExit leaves out that a command was killed.
func ignoreExit(err error) error {
	if strings.Contains(fmt.Sprint(err), "signal: killed") {
		return nil
	}
	return err
}

// tide is a flood that goes on until its end.
type tide struct {
	t       *testing.T
	f       flood
	cancel  context.CancelFunc
	running sync.WaitGroup

	accepted, putOff, broken, listed, watching, reading atomic.Int64
}

// begin begins a flood and returns when all streams are open or refused, and some
// submits and lists have been answered.
func begin(t *testing.T, c *cluster.Cluster, f flood, output string) *tide {
	t.Helper()
	identity := c.Issue("flood", certs.RoleOperator)
	ctx, cancel := context.WithCancel(context.Background())
	x := &tide{t: t, f: f, cancel: cancel}
	var clients []droverv1.SchedulerServiceClient
	for range 8 {
		clients = append(clients, clientOf(t, c, identity))
	}
	for i := range f.readers {
		open(x, ctx, &x.reading, func(ctx context.Context) (grpc.ClientStream, error) {
			return clients[i%8].StreamOutput(ctx, &droverv1.StreamOutputRequest{JobId: output, Follow: true})
		})
	}
	for i := range f.watchers {
		open(x, ctx, &x.watching, func(ctx context.Context) (grpc.ClientStream, error) {
			return clients[i%8].WatchEvents(ctx, &droverv1.WatchEventsRequest{})
		})
	}
	for i := range f.listers {
		x.running.Go(func() {
			for ctx.Err() == nil {
				_, err := clients[i%8].ListJobs(ctx, &droverv1.ListJobsRequest{PageSize: 1000})
				x.answered(ctx, err, &x.listed)
			}
		})
	}
	next := atomic.Int64{}
	for i := range 64 {
		x.running.Go(func() {
			for ctx.Err() == nil && next.Add(1) <= int64(f.submits) {
				_, err := clients[i%8].StartJob(ctx, &droverv1.StartJobRequest{
					Command: "bash", Path: "ok.sh", QueueTimeout: durationpb.New(20 * time.Second),
					Labels: map[string]string{"there": "is-none"},
				})
				x.answered(ctx, err, &x.accepted)
			}
		})
	}
	c.Eventually("the flood is there", func() bool { return x.accepted.Load() > 100 && x.listed.Load() > 0 })
	return x
}

// answered counts; the only refusal allowed is to be put off.
func (x *tide) answered(ctx context.Context, err error, ok *atomic.Int64) {
	switch {
	case err == nil:
		ok.Add(1)
	case grpcstatus.Code(err) == grpccodes.ResourceExhausted:
		x.putOff.Add(1)
	case grpcstatus.Code(err) == grpccodes.Unavailable:
		x.broken.Add(1) // its connection was given up: this machine is busy
	case ctx.Err() == nil:
		x.t.Errorf("answered %v", err)
	}
}

// open opens a stream that nobody reads. Its header, or its end, tells that it is
// counted.
func open(x *tide, ctx context.Context, ok *atomic.Int64, call func(context.Context) (grpc.ClientStream, error)) {
	x.running.Go(func() {
		stream, err := call(ctx)
		if err != nil {
			x.answered(ctx, err, ok)
			return
		}
		ok.Add(1)
		<-ctx.Done()
		_ = stream
	})
}

func (x *tide) end() {
	x.cancel()
	x.running.Wait()
	x.t.Logf("%d reads and %d watches asked for; %d submits and %d lists answered, %d put off, %d cut off",
		x.reading.Load(), x.watching.Load(), x.accepted.Load(), x.listed.Load(), x.putOff.Load(), x.broken.Load())
}

// usage is what a process holds.
type usage struct {
	memory int // bytes that are resident
	files  int
}

func use(t *testing.T, d *cluster.Daemon) (u usage) {
	t.Helper()
	proc := filepath.Join("/proc", strconv.Itoa(d.PID()))
	text, err := os.ReadFile(filepath.Join(proc, "statm"))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(text))[1])
	if err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		t.Fatal(err)
	}
	u.memory = pages * os.Getpagesize()
	for _, f := range files {
		// How many files its records are in is the store's own affair.
		if to, err := os.Readlink(filepath.Join(proc, "fd", f.Name())); err == nil && !strings.Contains(to, "/scheduler/store/") {
			u.files++
		}
	}
	return u
}

func workerStates(t *testing.T, c *cluster.Cluster) (states []string) {
	t.Helper()
	var list []struct{ State string }
	if err := json.Unmarshal([]byte(c.Must("workers", "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	for _, w := range list {
		states = append(states, w.State)
	}
	if len(states) != 2 {
		t.Errorf("%d workers", len(states))
	}
	return states
}
