package e2e_test

import (
	"context"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/rpc"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
	"github.com/droverhq/drover/test/cluster"
)

// TestP1RequestIdsOutliveTheScheduler: the same request id and request is the
// same job, whatever happened to the scheduler and the job meanwhile; another
// request with it is refused.
func TestP1RequestIdsOutliveTheScheduler(t *testing.T) {
	t.Parallel()
	c, _ := faulty(t)
	gate := c.Path("gate")
	ask := func() string { return c.Must("run", "-d", "--request-id", "r1", "count.sh", gate) }
	first := ask()
	again := func(when string) {
		t.Helper()
		if id := ask(); id != first {
			t.Errorf("%s: the job is %s, was %s", when, id, first)
		}
		if r := c.Run("run", "-d", "--request-id", "r1", "count.sh", c.Path("other")); r.Code == 0 || !strings.Contains(r.Stderr, "r1") {
			t.Errorf("%s: another request with the id: %+v", when, r)
		}
	}
	again("at once")
	for _, when := range []string{"after a kill of the scheduler", "after one more"} {
		restartScheduler(c)
		again(when)
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := c.Run("wait", first); r.Code != 42 {
		t.Errorf("it ended with %d", r.Code)
	}
	again("after its end")
	restartScheduler(c)
	again("after its end and a kill")
}

// restartScheduler kills the scheduler and starts it where it was.
func restartScheduler(c *cluster.Cluster) {
	c.T.Helper()
	c.Scheduler.Kill()
	c.StartScheduler(c.Address)
}

// orders speaks to a worker in the place of its scheduler, with fences above all
// that the scheduler has given.
type orders struct {
	*cluster.Cluster
	worker  droverv1.WorkerServiceClient
	id      string
	gate    string
	counter uint64
}

func newOrders(c *cluster.Cluster, w *cluster.Daemon) *orders {
	c.T.Helper()
	o := &orders{Cluster: c, id: uuid.NewString(), counter: 1 << 40}
	o.gate = c.Path("gate-" + o.id)
	o.to(w)
	return o
}

// to dials the present life of a worker.
func (o *orders) to(w *cluster.Daemon) {
	o.T.Helper()
	o.worker = asScheduler(o.Cluster, w.Address())
}

// start is an order to start; it can be sent any number of times.
func (o *orders) start() *droverv1.WorkerServiceStartJobRequest {
	o.counter++
	return &droverv1.WorkerServiceStartJobRequest{Start: &droverv1.StartAttempt{
		JobId: o.id, Attempt: 1, Fence: &droverv1.Fence{Term: 1, Counter: o.counter},
		Spec: &droverv1.JobSpec{Command: "bash", Path: "begin.sh", Args: []string{o.gate}},
	}}
}

// send delivers a start and returns what the worker says.
func (o *orders) send(r *droverv1.WorkerServiceStartJobRequest) *droverv1.AttemptReport {
	o.T.Helper()
	got, err := o.worker.StartJob(context.Background(), r)
	if err != nil {
		o.T.Fatal(err)
	}
	return got.GetReport()
}

// stop stops the attempt and waits for its end.
func (o *orders) stop() *droverv1.AttemptReport {
	o.T.Helper()
	o.counter++
	r, err := o.worker.StopJob(context.Background(), &droverv1.WorkerServiceStopJobRequest{Wait: true, Stop: &droverv1.StopAttempt{
		JobId: o.id, Attempt: 1, Fence: &droverv1.Fence{Term: 1, Counter: o.counter}, Reason: job.ReasonUser,
	}})
	if err != nil {
		o.T.Fatal(err)
	}
	return r.GetReport()
}

// begins counts how often the script has begun, by its own word.
func (o *orders) begins() int {
	b, _ := os.ReadFile(o.gate + ".begins") // none: it never did
	return strings.Count(string(b), "begin\n")
}

const beginScript = `echo begin >> "$1.begins"; until [ -e "$1" ]; do sleep 0.02; done`

func ordered(t *testing.T) (*cluster.Cluster, *cluster.Daemon) {
	t.Helper()
	c := cluster.New(t, bin)
	return c, c.Worker("w1", c.Scripts(c.Path("scripts"), map[string]string{"begin.sh": beginScript}))
}

// TestP2AStartDelayedPastItsStop: the stop leaves a tombstone, which refuses the
// start however late it comes, also in the next life of the worker.
func TestP2AStartDelayedPastItsStop(t *testing.T) {
	t.Parallel()
	c, w := ordered(t)
	o := newOrders(c, w)
	late := o.start()
	if r := o.stop(); r.GetState() != droverv1.JobState_JOB_STATE_STOPPED {
		t.Fatalf("a stop of what was never seen: %v", r)
	}
	for _, when := range []string{"at once", "again", "after a kill of the worker"} {
		if when == "after a kill of the worker" {
			w.Restart(c)
			o.to(w)
		}
		if r := o.send(late); r.GetState() != droverv1.JobState_JOB_STATE_REJECTED || r.GetReason() != job.ReasonTombstone {
			t.Errorf("the start, %s: %v (%s)", when, r.GetState(), r.GetReason())
		}
	}
	// A later job of the same kind is taken, and runs: the worker was able to.
	next := newOrders(c, w)
	next.counter = o.counter
	next.send(next.start())
	c.Eventually("the next one runs", func() bool { return next.begins() == 1 })
	next.stop()
	if n := o.begins(); n != 0 {
		t.Errorf("the stopped job began %d times", n)
	}
}

// TestP2AStartDeliveredTwice: at once, one after the other, after a restart of the
// worker, and after its end: it begins once.
func TestP2AStartDeliveredTwice(t *testing.T) {
	t.Parallel()
	c, w := ordered(t)
	o := newOrders(c, w)
	start := o.start()
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			if _, err := o.worker.StartJob(context.Background(), start); err != nil {
				t.Errorf("one of eight: %v", err)
			}
		})
	}
	wait.Wait()
	c.Eventually("it begins", func() bool { return o.begins() > 0 })
	o.send(start)
	w.Restart(c)
	o.to(w)
	if r := o.send(start); r.GetState() != droverv1.JobState_JOB_STATE_RUNNING {
		t.Errorf("after a restart of the worker: %v (%s)", r.GetState(), r.GetReason())
	}
	if r := o.stop(); r.GetState() != droverv1.JobState_JOB_STATE_STOPPED {
		t.Errorf("its stop: %v (%s)", r.GetState(), r.GetReason())
	}
	if r := o.send(start); r.GetState() != droverv1.JobState_JOB_STATE_STOPPED {
		t.Errorf("after its end: %v (%s)", r.GetState(), r.GetReason())
	}
	if n := o.begins(); n != 1 {
		t.Errorf("it began %d times", n)
	}
}

// TestP3AStartOfAnOlderFence: an order that was overtaken by a newer one is
// refused, and so is one of an older scheduler.
func TestP3AStartOfAnOlderFence(t *testing.T) {
	t.Parallel()
	c, w := ordered(t)
	o := newOrders(c, w)
	overtaken := newOrders(c, w)
	late := overtaken.start() // the lower counter
	late.Start.Fence.Counter = 1 << 39
	o.send(o.start())
	_, err := overtaken.worker.StartJob(context.Background(), late)
	if errs.KindOf(rpc.FromStatus("start", err)) != errs.Precondition {
		t.Errorf("an order that was overtaken: %v", err)
	}
	late.Start.Fence = &droverv1.Fence{Counter: 1 << 50} // of a term before all
	if _, err = overtaken.worker.StartJob(context.Background(), late); errs.KindOf(rpc.FromStatus("start", err)) != errs.Precondition {
		t.Errorf("an order of an older term: %v", err)
	}
	o.stop()
	if n := overtaken.begins(); n != 0 {
		t.Errorf("it began %d times", n)
	}
}
