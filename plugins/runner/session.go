package runner

import (
	"iter"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/droverhq/drover/plugins/failpoint"
	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// Frame gating: with many attempts that come and go, waiting a moment for more
// events saves a wake-up of the worker per event; with a few, or one among many
// that only run, an event goes out at once.
const (
	gateFrom  = 32 // attempts about
	gateLast  = 2  // events in the frame before
	gateEach  = 8 * time.Microsecond
	gateWidth = 2 * time.Millisecond
)

func gate(attempts, last int) time.Duration {
	if attempts < gateFrom || last < gateLast {
		return 0
	}
	return min(gateWidth, time.Duration(attempts)*gateEach)
}

// Session implements the protocol. It ends when the worker leaves, and when a
// newer session takes over: whoever speaks on the old one must learn that.
func (s *Server) Session(stream grpc.BidiStreamingServer[runnerv1.SessionRequest, runnerv1.SessionResponse]) error {
	if err := stream.Context().Err(); err != nil {
		return err // given up before its turn came: it must not end a newer one
	}
	out := s.openSession()
	var wait sync.WaitGroup
	defer wait.Wait()
	defer s.closeSession(out)
	wait.Go(func() { out.send(stream, s.about) })
	left := make(chan struct{})
	// Owned by the server, not by this call: Recv returns after the call has.
	s.wait.Go(func() {
		defer close(left)
		s.receive(stream, out)
	})
	select {
	case <-left:
	case <-out.done:
	}
	return nil
}

// receive takes frames until the worker is gone; it comes back with a new
// session. A start belongs to the session that it came in: see enter.
func (s *Server) receive(stream grpc.BidiStreamingServer[runnerv1.SessionRequest, runnerv1.SessionResponse], from *outbox) {
	for {
		frame, err := stream.Recv()
		if err != nil {
			return
		}
		s.queue.add(frame.GetStarts(), from)
		for _, a := range frame.GetAdopts() {
			s.adopt(a)
		}
		for _, sig := range frame.GetSignals() {
			if err := s.runner.Signal(sig.GetId(), syscall.Signal(sig.GetSignal())); err != nil {
				s.log.Warn("signal not delivered", "id", sig.GetId(), "signal", sig.GetSignal(), "error", err)
			}
		}
		if ids := frame.GetAcks(); len(ids) > 0 {
			s.ack(ids)
		}
	}
}

// openSession ends the session before and replays the state to the new one.
func (s *Server) openSession() *outbox {
	out := newOutbox()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.session != nil {
		s.session.close()
	}
	s.session = out
	for id, a := range s.attempts {
		if a.started == nil && a.exited == nil {
			out.beginning(id)
		}
		s.repeat(a)
	}
	out.synced()
	if s.timer != nil {
		s.timer.Stop()
	}
	return out
}

func (s *Server) closeSession(out *outbox) {
	out.close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.session == out {
		s.session = nil
		if s.timer != nil && !s.closed {
			s.timer.Reset(s.idle)
		}
	}
}

// outbox gathers events for one session. Its size is bounded by the number of
// attempts: each has one start and one exit.
type outbox struct {
	mu     sync.Mutex // guards frame and closed
	frame  *runnerv1.SessionResponse
	closed bool
	wake   chan struct{}
	done   chan struct{} // closed with the outbox
}

func newOutbox() *outbox {
	return &outbox{frame: &runnerv1.SessionResponse{}, wake: make(chan struct{}, 1), done: make(chan struct{})}
}

func (o *outbox) change(f func(*runnerv1.SessionResponse)) {
	o.mu.Lock()
	f(o.frame)
	o.mu.Unlock()
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

func (o *outbox) started(m *runnerv1.Started) {
	o.change(func(f *runnerv1.SessionResponse) { f.Started = append(f.Started, m) })
}

func (o *outbox) exited(m *runnerv1.Exited) {
	o.change(func(f *runnerv1.SessionResponse) { f.Exited = append(f.Exited, m) })
}

func (o *outbox) beginning(id string) {
	o.change(func(f *runnerv1.SessionResponse) { f.Beginning = append(f.Beginning, id) })
}

func (o *outbox) synced() {
	o.change(func(f *runnerv1.SessionResponse) { f.Synced = true })
}

func (o *outbox) close() {
	o.mu.Lock()
	if !o.closed {
		o.closed = true
		close(o.done)
	}
	o.mu.Unlock()
	o.change(func(*runnerv1.SessionResponse) {})
}

// about is how many attempts wait to start, run, or are not acknowledged.
func (s *Server) about() int {
	waiting := s.queue.len()
	s.mu.Lock()
	defer s.mu.Unlock()
	return waiting + len(s.attempts)
}

// send carries frames out until the outbox is closed or the stream breaks.
func (o *outbox) send(stream grpc.ServerStreamingServer[runnerv1.SessionResponse], about func() int) {
	last := 0
	for range o.wake {
		time.Sleep(gate(about(), last))
		o.mu.Lock()
		frame, closed := o.frame, o.closed
		o.frame = &runnerv1.SessionResponse{}
		o.mu.Unlock()
		if closed {
			return
		}
		if last = len(frame.GetStarted()) + len(frame.GetExited()); last == 0 && !frame.GetSynced() {
			continue
		}
		failpoint.At(failpoint.PluginSendBefore)
		for _, part := range cut(frame) {
			if err := stream.Send(part); err != nil {
				return // Recv in Session sees the same break
			}
		}
		failpoint.At(failpoint.PluginSendAfter)
	}
}

// frameBytes bounds a frame that is made of many events.
const frameBytes = 2 << 20

// cut makes frames of events that are far below what a worker takes. The last of them
// says what is said once.
func cut(f *runnerv1.SessionResponse) []*runnerv1.SessionResponse {
	if proto.Size(f) <= frameBytes {
		return []*runnerv1.SessionResponse{f}
	}
	var out []*runnerv1.SessionResponse
	part, size := &runnerv1.SessionResponse{}, 0
	room := func(n int) {
		if size += n; size > frameBytes && size > n {
			out = append(out, part)
			part, size = &runnerv1.SessionResponse{}, n
		}
	}
	for _, id := range f.GetBeginning() {
		room(len(id) + 8)
		part.Beginning = append(part.Beginning, id)
	}
	for _, m := range f.GetStarted() {
		room(proto.Size(m) + 8)
		part.Started = append(part.Started, m)
	}
	for _, m := range f.GetExited() {
		room(proto.Size(m) + 8)
		part.Exited = append(part.Exited, m)
	}
	part.Synced = f.GetSynced()
	return append(out, part)
}

// startQueue hands Starts to the spawners in order.
type startQueue struct {
	mu     sync.Mutex // guards the fields below
	more   *sync.Cond
	starts []asked
	closed bool
}

// asked is a Start with the session that it came in.
type asked struct {
	start *runnerv1.Start
	from  *outbox
}

func newStartQueue() *startQueue {
	q := &startQueue{}
	q.more = sync.NewCond(&q.mu)
	return q
}

func (q *startQueue) add(starts []*runnerv1.Start, from *outbox) {
	if len(starts) == 0 {
		return
	}
	q.mu.Lock()
	for _, s := range starts {
		q.starts = append(q.starts, asked{s, from})
		q.more.Signal()
	}
	q.mu.Unlock()
}

func (q *startQueue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.starts)
}

func (q *startQueue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.more.Broadcast()
}

// all yields Starts until the queue is closed.
func (q *startQueue) all() iter.Seq[asked] {
	return func(yield func(asked) bool) {
		for {
			q.mu.Lock()
			for len(q.starts) == 0 && !q.closed {
				q.more.Wait()
			}
			if q.closed {
				q.mu.Unlock()
				return
			}
			p := q.starts[0]
			q.starts = q.starts[1:]
			q.mu.Unlock()
			if !yield(p) {
				return
			}
		}
	}
}
