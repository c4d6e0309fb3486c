package e2e_test

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"google.golang.org/grpc"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/rpc"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
	"github.com/droverhq/drover/test/cluster"
)

// historian records what clients ask and are told.
type historian struct {
	t      *testing.T
	began  time.Time
	client droverv1.SchedulerServiceClient

	mu      sync.Mutex // guards the fields below
	history []porcupine.Operation
	ids     map[string]string // by request id, of those that are known
}

// now is the time of the history.
func (h *historian) now() int64 { return time.Since(h.began).Nanoseconds() }

// note records one call. What was asked without an answer may take effect as
// late as it likes; a look without an answer tells nothing.
func (h *historian) note(client int, in ask, call int64, out seen) {
	back := h.now()
	if out.unknown {
		if in.op == "get" || in.op == "list" {
			return
		}
		back = math.MaxInt64
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if out.id != "" {
		h.ids[in.request] = out.id
	}
	h.history = append(h.history, porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: back})
}

// id is the job of a request, when it is known.
func (h *historian) id(request string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ids[request]
}

// known are all jobs by request.
func (h *historian) known() map[string]string {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make(map[string]string, len(h.ids))
	for r, id := range h.ids {
		out[r] = id
	}
	return out
}

// lookBack is how many requests a client chooses from: few, so that they meet.
const lookBack = 4

// live is the life of one client: it asks at random until it is told to end.
func (h *historian) live(ctx context.Context, client int, newest *sync.Map) {
	r := rand.New(rand.NewPCG(uint64(client), 7))
	for n := 0; ctx.Err() == nil; n++ {
		if n%20 == 0 {
			newest.Store(client, fmt.Sprintf("c%d-%d", client, n))
		}
		request, _ := newest.Load(r.IntN(lookBack)) // of another client, or one's own
		name, ok := request.(string)
		if !ok {
			continue
		}
		h.once(ctx, client, name, r.IntN(8))
		pace := time.NewTimer(10 * time.Millisecond) // of the load
		<-pace.C
	}
}

// once asks one thing.
func (h *historian) once(ctx context.Context, client int, request string, what int) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	id := h.id(request)
	switch {
	case what == 0:
		h.list(ctx, client)
	case id == "" || what < 3:
		h.submit(ctx, client, request, what%2)
	case what == 3:
		h.stop(ctx, client, request, id)
	default:
		call := h.now()
		got, err := h.client.GetJob(ctx, &droverv1.GetJobRequest{JobId: id}, grpc.WaitForReady(true))
		h.note(client, ask{op: "get", request: request}, call, h.saw(got.GetJob(), err))
	}
}

func (h *historian) submit(ctx context.Context, client int, request string, variant int) {
	in := ask{op: "submit", request: request, variant: variant}
	call := h.now()
	got, err := h.client.StartJob(ctx, &droverv1.StartJobRequest{
		Command: "sleep", Args: []string{[]string{"0.2", "2"}[variant]}, RequestId: request,
	}, grpc.WaitForReady(true))
	out := seen{id: got.GetJobId()}
	if err != nil {
		out = seen{unknown: true, refused: errs.ReasonOf(rpc.FromStatus("submit", err)) == "REQUEST_ID_REUSED"}
		out.unknown = !out.refused
	}
	h.note(client, in, call, out)
}

func (h *historian) stop(ctx context.Context, client int, request, id string) {
	call := h.now()
	got, err := h.client.StopJob(ctx, &droverv1.StopJobRequest{JobId: id}, grpc.WaitForReady(true))
	h.note(client, ask{op: "stop", request: request}, call, h.saw(got.GetJob(), err))
}

// list is one look at every job that was known when it began: what was accepted
// before must be in it.
func (h *historian) list(ctx context.Context, client int) {
	known := h.known()
	call := h.now()
	got, err := h.client.ListJobs(ctx, &droverv1.ListJobsRequest{PageSize: 1000}, grpc.WaitForReady(true))
	if err != nil || got.GetNextPageToken() != "" {
		return
	}
	byID := map[string]*droverv1.Job{}
	for _, j := range got.GetJobs() {
		byID[j.GetJobId()] = j
	}
	for request, id := range known {
		out := seen{absent: true}
		if j := byID[id]; j != nil {
			out = h.saw(j, nil)
		}
		h.note(client, ask{op: "list", request: request}, call, out)
	}
}

// saw is what an answer tells of a job.
func (h *historian) saw(j *droverv1.Job, err error) seen {
	switch {
	case err == nil:
		return seen{id: j.GetJobId(), state: job.State(j.GetState())}
	case errs.KindOf(rpc.FromStatus("ask", err)) == errs.NotFound:
		return seen{absent: true}
	default:
		return seen{unknown: true}
	}
}

// TestTheClientsHistoryIsLinearizable: four clients submit (each request more than
// once, and another one with its id), look, list and stop, while the scheduler is
// killed and started again and again. P1, P7, P9, P15.
func TestTheClientsHistoryIsLinearizable(t *testing.T) {
	t.Parallel()
	kills, between := 4, time.Second
	if os.Getenv("DROVER_LONG") != "" {
		kills = 100
	}
	c := cluster.New(t, bin)
	c.Worker("w1", c.Scripts(c.Path("scripts"), map[string]string{"one.sh": "true\n"}), "--slots", "8")
	h := &historian{t: t, began: time.Now(), client: clientOf(t, c, c.Path("certs", "admin")), ids: map[string]string{}}
	ctx, cancel := context.WithCancel(context.Background())
	var (
		clients sync.WaitGroup
		newest  sync.Map // by client: the request id that it has made last
	)
	for n := range lookBack {
		clients.Go(func() { h.live(ctx, n, &newest) })
	}
	for range kills {
		pause := time.NewTimer(between) // the load between two faults, not a synchronization
		<-pause.C
		restartScheduler(c)
	}
	before := len(h.known())
	c.Eventually("jobs are accepted again", func() bool { return len(h.known()) > before })
	cancel()
	clients.Wait()
	h.check()
}

// check lets porcupine look for an order, and makes sure that it would have found
// a lie in this very history.
func (h *historian) check() {
	h.t.Helper()
	answered := map[string]int{}
	for _, o := range h.history {
		if !o.Output.(seen).unknown {
			answered[o.Input.(ask).op]++
		}
	}
	h.t.Logf("%d jobs, %d calls, answered %v", len(h.ids), len(h.history), answered)
	for _, op := range []string{"submit", "get", "stop", "list"} {
		if answered[op] == 0 {
			h.t.Errorf("no %s was answered: the history shows nothing", op)
		}
	}
	const patience = 60 * time.Second
	if got := porcupine.CheckOperationsTimeout(jobModel(), h.history, patience); got != porcupine.Ok {
		h.t.Errorf("no order of the calls explains what clients saw: %v", got)
		h.explain()
	}
	lie := append([]porcupine.Operation(nil), h.history...)
	for request, id := range h.ids {
		at := h.now()
		lie = append(lie, porcupine.Operation{
			Input: ask{op: "get", request: request}, Call: at, Return: at + 1, Output: seen{absent: true, id: id},
		})
		break
	}
	if porcupine.CheckOperationsTimeout(jobModel(), lie, patience) != porcupine.Illegal {
		h.t.Error("a history in which an accepted job is gone passes")
	}
}

// explain prints the calls of the first request that has no order.
func (h *historian) explain() {
	h.t.Helper()
	m := jobModel()
	for _, part := range m.Partition(h.history) {
		if porcupine.CheckOperationsTimeout(m, part, 10*time.Second) == porcupine.Ok {
			continue
		}
		for _, o := range part {
			h.t.Logf("client %d, %v to %v: %s", o.ClientId, time.Duration(o.Call), time.Duration(o.Return), m.DescribeOperation(o.Input, o.Output))
		}
		return
	}
}
