package scheduler

import (
	"container/heap"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"path"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
)

const opSubmit = "start job"

// hintOldRecords is the way back to work.
const hintOldRecords = `stop this scheduler and put the newer records in use; if they are lost, "drover store accept" lets these be in force`

// submit answers one request for a job.
func (m *Machine) submit(to uint64, s *Submit) {
	j, err := m.accept(s)
	m.reply(to, Result{Job: j, Err: err})
}

// submits answers many requests at once; a refused one keeps no other back.
func (m *Machine) submits(to uint64, all []Submit) {
	answers := make([]Answer, len(all))
	for i := range all {
		j, err := m.accept(&all[i])
		answers[i] = Answer{j.ID, err}
	}
	m.reply(to, Result{Jobs: answers})
}

// accept accepts a job (P1): place it at once if a worker fits, else queue it.
func (m *Machine) accept(s *Submit) (job.Job, error) {
	if m.old != "" {
		return job.Job{}, errs.E(opSubmit, errs.Precondition, job.ReasonOldRecords, errors.New(m.old)).WithHint("%s", hintOldRecords)
	}
	spec := s.Spec
	if spec.Command == "" {
		spec.Command = defaultCommand(spec.Path)
	}
	if w, err := m.workers.Find(spec.Worker); err == nil && w.Name != spec.Worker {
		spec.Worker = w.ID.String() // whatever other workers come meanwhile
	}
	if len(spec.Upload) > 0 {
		spec.UploadSHA256 = job.SHA256(spec.Upload)
	}
	var key string
	var hash [32]byte
	if s.RequestID != "" {
		key, hash = requestKey(s.Caller.identity(), s.RequestID), specHash(&spec)
		if earlier := m.earlier(key, s.Earlier); earlier != nil {
			return repeated(*earlier, hash, s.RequestID)
		}
	}
	w, reason := m.workers.Place(&spec, uuid.Nil)
	if err := m.refuse(&spec, reason); err != nil {
		return job.Job{}, err
	}
	input, size := spec.TakeInput()
	e := &entry{key: key, hash: hash, bytes: spec.Bytes(), Job: job.Job{
		ID: s.ID, Spec: spec, State: job.Queued, Submit: s.Time, RequestedBy: s.Caller.Name, Owner: s.Caller.identity(),
		RequestID: s.RequestID, Input: size, StdinBytes: int64(len(input.Stdin)),
	}}
	if err := m.account.check(e.Owner, e.bytes+size); err != nil {
		return job.Job{}, err
	}
	m.account.add(e.Owner, e.bytes+size)
	if size > 0 {
		m.effect(Effect{Keep: &Kept{Job: e.ID, Input: input}})
	}
	m.jobs[e.ID] = e
	if key != "" {
		m.requests[key] = e
	}
	m.enqueue(e)
	switch {
	case reason != "":
		m.wait(e.class, e, reason)
	case e.class.jobs[0] == e: // nobody of its kind waits before it
		heap.Pop(e.class)
		m.queue.left(e)
		m.dispatch(e, w)
	}
	j := e.Job
	m.effect(Effect{Put: &j, New: true, Hash: hash})
	return j, nil
}

// earlier returns what is known of a request id: what the store says, or of a job that
// is not committed yet what is recorded with it.
func (m *Machine) earlier(key string, stored *Accepted) *Accepted {
	if e := m.requests[key]; e != nil && (stored == nil || stored.Job != e.ID) {
		return &Accepted{e.ID, e.hash}
	}
	return stored
}

// repeated answers a request id that was seen before.
func repeated(a Accepted, hash [32]byte, id string) (job.Job, error) {
	if a.Hash == hash {
		return job.Job{ID: a.Job}, nil
	}
	return job.Job{}, errs.E(opSubmit, errs.Exists, "REQUEST_ID_REUSED",
		fmt.Errorf("request_id %q was used for another request, job %s", id, a.Job)).WithHint("choose a new request_id")
}

// refuse turns reasons that waiting will hardly mend into an error at submit,
// unless the caller asked to wait with a queue timeout.
func (m *Machine) refuse(s *job.Spec, reason string) error {
	if reason == job.ReasonWorkerGone {
		_, err := m.workers.Find(s.Worker)
		return fmt.Errorf("%s: worker_id: %w", opSubmit, err)
	}
	if s.QueueTimeout > 0 {
		return nil
	}
	wait := "give --queue-timeout to wait for it"
	switch {
	case reason == job.ReasonWorkerOffline && s.Worker != "":
		return errs.E(opSubmit, errs.Precondition, "WORKER_OFFLINE", fmt.Errorf("the worker %q is offline", s.Worker)).WithHint("%s", wait)
	case reason == job.ReasonWorkerDrained && s.Worker != "":
		return errs.E(opSubmit, errs.Precondition, "WORKER_DRAINED", fmt.Errorf("the worker %q is draining", s.Worker)).WithHint("%s", wait)
	case reason == job.ReasonNoScript:
		e := errs.Field(opSubmit, "path", "SCRIPT_NOT_FOUND", "%s", registry.Explain(reason, s))
		e.Kind = errs.NotFound
		return e.WithHint(`"drover scripts" lists what there is; paths are relative to a script folder`)
	case reason == job.ReasonNoUploads:
		return errs.Field(opSubmit, "upload", job.ReasonPolicy, "%s", registry.Explain(reason, s)).
			WithHint(`a worker takes them with "uploads: true" in its policy file`)
	case reason == job.ReasonNoRunner:
		return errs.Field(opSubmit, "command", "COMMAND_UNKNOWN", "%s", registry.Explain(reason, s)).
			WithHint("it can run: %s", strings.Join(m.workers.Commands(s.Worker, s.Path), ", "))
	case reason == job.ReasonNoLabels && s.Worker != "":
		return errs.Field(opSubmit, "labels", "LABELS", "the worker %q does not have them", s.Worker)
	default:
		return nil
	}
}

// defaultCommand is the runner of a script whose request names none.
func defaultCommand(p string) string {
	switch path.Ext(p) {
	case ".sh":
		return "bash"
	case ".py":
		return "python"
	default:
		return ""
	}
}

func requestKey(owner, id string) string { return owner + "\x00" + id }

// specHash tells equal requests from others. What appendJSON makes is canonical:
// fields in order, map keys sorted, and a field that a newer drover knows
// changes nothing while nobody sets it.
func specHash(s *job.Spec) [32]byte {
	data, err := appendJSON(make([]byte, 0, recordRoom), reflect.ValueOf(s).Elem())
	if err != nil {
		panic("unreachable: a spec holds only strings, numbers, lists and maps")
	}
	return sha256.Sum256(data)
}

// enqueue puts a job into the queue and starts the clock of its wait.
func (m *Machine) enqueue(e *entry) {
	if c := m.queue.add(e); c.reason != "" {
		e.Reason, e.Message = c.reason, registry.Explain(c.reason, &e.Spec)
	}
	e.deadline = time.Time{} // one that was set while it was dispatched
	if e.Spec.QueueTimeout > 0 {
		m.setDeadline(e, m.now.Add(e.Spec.QueueTimeout))
	}
}

// wait notes why a class waits, on each of its jobs. When the reason is what it
// was, only e has to learn it: a submit costs the same however many wait.
func (m *Machine) wait(c *class, e *entry, reason string) {
	jobs := c.jobs
	if c.reason == reason {
		jobs = []*entry{e}
	}
	c.reason = reason
	for _, e := range jobs {
		if e.Reason != reason {
			e.Reason, e.Message = reason, registry.Explain(reason, &e.Spec)
			j := e.Job
			m.effect(Effect{Put: &j})
		}
	}
}

// placeQueued places what fits now, in the order of the queue over all classes.
func (m *Machine) placeQueued() {
	h := make(heads, 0, len(m.queue.classes))
	for _, c := range m.queue.classes {
		h = append(h, c)
	}
	heap.Init(&h)
	for h.Len() > 0 {
		c := h[0]
		e := c.jobs[0]
		w, reason := m.choose(e)
		if reason != "" {
			m.wait(c, e, reason)
			heap.Pop(&h)
			continue
		}
		heap.Pop(c)
		m.queue.left(e)
		m.dispatch(e, w)
		m.put(e)
		if c.Len() == 0 {
			heap.Pop(&h)
		} else {
			heap.Fix(&h, 0)
		}
	}
}

// choose returns the worker for the next attempt of a job, or why there is none.
func (m *Machine) choose(e *entry) (registry.Worker, string) {
	if m.old != "" {
		return registry.Worker{}, job.ReasonOldRecords
	}
	return m.workers.Place(&e.Spec, e.triedOn())
}

// dispatch gives a job to a worker. The caller records it: the order leaves
// only after the commit of the same round.
func (m *Machine) dispatch(e *entry, w registry.Worker) {
	e.State, e.Reason, e.Message = job.Dispatched, "", ""
	e.Attempt++
	e.Worker, e.WorkerName, e.BootID = w.ID, w.Name, w.BootID
	e.Fence = m.fence()
	e.Result = job.Report{}
	e.deadline, e.resent = time.Time{}, false
	m.workers.Occupy(w.ID, 1)
	m.place(e)
	m.send(w.ID, Down{Starts: []job.StartOrder{m.order(e)}})
}

// fence returns the fence of a new order (P3).
func (m *Machine) fence() job.Fence {
	m.counter++
	return job.Fence{Term: m.term, Counter: m.counter}
}

func (m *Machine) order(e *entry) job.StartOrder {
	o := job.StartOrder{Key: e.attempt(), Fence: e.Fence, Spec: e.Spec, BootID: e.BootID, Input: e.Input}
	if w, ok := m.workers.Get(e.Worker); ok && e.Spec.OnPartition == job.StopItself {
		o.Lapses = w.Lapses
	}
	return o
}

// send orders something when the worker listens; otherwise the reconciliation
// after its next hello orders it.
func (m *Machine) send(w job.WorkerID, d Down) {
	if l := m.links[w]; l != nil && l.complete {
		m.effect(Effect{Send: &Send{w, d}})
	}
}

// stopJob makes a stop durable (P9). Stopping what has ended changes nothing.
func (m *Machine) stopJob(to uint64, s *Stop) {
	if s.Unrecorded {
		m.stopUnrecorded(s)
	}
	e := m.jobs[s.ID]
	if e == nil {
		m.reply(to, Result{Job: job.Job{ID: s.ID}})
		return
	}
	switch e.State {
	case job.Queued:
		m.queue.remove(e)
		e.State, e.Reason, e.Message = job.Stopped, s.Reason, "it was stopped while it waited"
		m.put(e)
	case job.Stopping: // a second stop may shorten the grace
		e.stop.Grace, e.StopGrace = s.Grace, s.Grace
		if ownStop(e.Reason) { // the worker's, until now: a retry is off
			e.Reason, e.Message, e.stop.Reason = s.Reason, "stop requested", s.Reason
		}
		m.put(e)
		m.send(e.Worker, Down{Stops: []job.StopOrder{e.stop}})
	default:
		e.State, e.Reason, e.StopGrace = job.Stopping, s.Reason, s.Grace
		e.Message = "stop requested"
		e.stop = job.StopOrder{
			Key: e.attempt(), Fence: m.fence(), Grace: s.Grace, Reason: s.Reason,
		}
		m.put(e)
		m.send(e.Worker, Down{Stops: []job.StopOrder{e.stop}})
	}
	m.reply(to, Result{Job: e.Job})
}

// finish ends an attempt; a retry policy may take the job back to the queue (P5).
func (m *Machine) finish(e *entry, s job.State, reason, message string) {
	m.workers.Occupy(e.Worker, -1)
	m.dirty = true
	m.displace(e)
	if asked := e.State == job.Stopping && !ownStop(e.Reason); !asked && retries(&e.Job, s, reason) {
		m.retry(e, s, reason)
		return
	}
	e.State, e.Reason, e.Message = s, reason, message
	e.UnreachableSince = time.Time{}
	m.put(e)
}

// ownStop tells whether a worker stops an attempt by itself, for its limits or for
// want of a lease. Every other stop was asked for, and ends the job.
func ownStop(reason string) bool {
	return reason == job.ReasonTimeout || reason == job.ReasonIdleTimeout || reason == job.ReasonOutputLimit ||
		reason == job.ReasonPartition
}

// retries tells whether the policy asks for one more attempt.
func retries(j *job.Job, s job.State, reason string) bool {
	r := &j.Spec.Retry
	if j.Attempt > r.Max {
		return false
	}
	switch s {
	case job.Lost, job.Rejected:
		return r.OnLost && reason != job.ReasonTooLarge && reason != job.ReasonInputGone // the next would end so, too
	case job.Stopped:
		return r.OnLost && reason == job.ReasonPartition
	case job.Failed:
		if !r.OnFailure {
			return false
		}
		code := j.Result.ExitCode
		return len(r.ExitCodes) == 0 || code != nil && slices.Contains(r.ExitCodes, *code)
	default:
		return false
	}
}

// reasonRetry is why a job waits for its backoff, and only then.
const reasonRetry = "RETRY"

func (m *Machine) retry(e *entry, s job.State, reason string) {
	wait := backoff(&e.Job)
	past, _ := e.AttemptOf(e.Attempt)
	past.State, past.Reason = s, reason
	e.Past = append(slices.Clip(e.Past), past)
	e.State, e.Reason = job.Queued, reasonRetry
	e.Message = fmt.Sprintf("attempt %d ended %s (%s); the next is made in %v", e.Attempt, s, reason, wait)
	e.Worker, e.WorkerName, e.UnreachableSince = job.WorkerID{}, "", time.Time{}
	m.delay(e, wait)
	m.put(e)
}

// triedOn is the worker of the attempt before; nil: there was none.
func (e *entry) triedOn() job.WorkerID {
	if n := len(e.Past); n > 0 {
		return e.Past[n-1].Worker
	}
	return job.WorkerID{}
}

func (m *Machine) delay(e *entry, wait time.Duration) {
	e.delayed = true
	m.setDeadline(e, m.now.Add(wait))
}

// backoff is the wait after the present attempt.
func backoff(j *job.Job) time.Duration {
	wait := j.Spec.Retry.Backoff
	for n := min(j.Attempt, 11); n > 1 && wait <= math.MaxInt64/2; n-- {
		wait *= 2
	}
	return wait
}
