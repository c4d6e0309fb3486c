package runner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/droverhq/drover/plugins/failpoint"
	"github.com/droverhq/drover/plugins/foreign"
	"github.com/droverhq/drover/plugins/pidfd"
	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// spawners is how many Start calls run at once: enough to keep the kernel's
// fork lock busy, few enough not to fight for it.
const spawners = 8

// recentAcks is how many acknowledged ids are remembered, so that a delayed
// second Start of one starts nothing.
const recentAcks = 4096

// ServerConfig configures a Server; the zero value works.
type ServerConfig struct {
	Journal string        // file of the exit journal; "" keeps none
	Idle    time.Duration // end after so long without session and work; 0 never
	Log     *slog.Logger  // nil discards
	Stop    func()        // called once when the plugin should end
}

// Server speaks drover.runner.v1 for one Runner. Plugins use it through Serve;
// tests use it in process.
type Server struct {
	runnerv1.UnimplementedRunnerServiceServer

	runner  Runner
	info    Info
	journal *journal
	log     *slog.Logger
	idle    time.Duration
	stop    func()

	// gate keeps compaction away while a record is on its way from the journal
	// into the state below: readers write records, the writer compacts.
	gate sync.RWMutex

	mu       sync.Mutex // guards the fields below
	attempts map[string]*attempt
	running  int
	started  uint64
	recent   map[string]*runnerv1.Exited
	order    []string // of recent, oldest first
	session  *outbox  // nil while nobody listens
	draining bool
	closed   bool
	timer    *time.Timer           // of idleness
	watched  map[*os.File]struct{} // handles of adopted processes

	queue  *startQueue
	ending chan struct{}  // closed by Close
	wait   sync.WaitGroup // of the spawners and of who listens to sessions
}

// attempt is one Start that was not acknowledged yet.
type attempt struct {
	noted   *runnerv1.Started // the note in the journal that a fork comes
	started *runnerv1.Started
	exited  *runnerv1.Exited
	early   *runnerv1.Exited // the process ended before Start returned
	lanes   [2]int           // read ends kept open, so that no byte dies with the worker
}

// NewServer returns a server that runs until Close.
func NewServer(r Runner, c ServerConfig) (*Server, error) {
	info := r.Info()
	j, err := openJournal(c.Journal, info.Keeps)
	if err != nil {
		return nil, err
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Stop == nil {
		c.Stop = func() {}
	}
	s := &Server{
		runner: r, info: info, journal: j, log: c.Log, idle: c.Idle, stop: sync.OnceFunc(c.Stop),
		attempts: map[string]*attempt{}, recent: map[string]*runnerv1.Exited{}, queue: newStartQueue(),
		watched: map[*os.File]struct{}{}, ending: make(chan struct{}),
	}
	if s.idle > 0 {
		s.timer = time.AfterFunc(s.idle, s.checkIdle)
	}
	for range spawners {
		s.wait.Go(s.spawn)
	}
	return s, nil
}

// Close ends the spawners and the runner. Running jobs are left alone. Sessions
// have been ended before, by stopping the gRPC server.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	if s.timer != nil {
		s.timer.Stop()
	}
	session := s.session
	for f := range s.watched {
		_ = f.Close() // its watcher then ends
	}
	s.mu.Unlock()
	close(s.ending)
	if session != nil {
		session.close()
	}
	s.queue.close()
	s.wait.Wait()
	return errors.Join(s.runner.Close(), s.journal.close())
}

// GetInfo implements the protocol.
func (s *Server) GetInfo(context.Context, *runnerv1.GetInfoRequest) (*runnerv1.GetInfoResponse, error) {
	return &runnerv1.GetInfoResponse{
		Name: s.info.Name, Version: s.info.Version, Commands: commands(s.info), Extensions: s.info.Extensions,
		Pid: int64(os.Getpid()), Protocol: Protocol, Canary: s.info.Canary.proto(),
		Interpreter: s.info.Interpreter, Restricts: s.info.Restricts,
	}, nil
}

// GetStats implements the protocol.
func (s *Server) GetStats(context.Context, *runnerv1.GetStatsRequest) (*runnerv1.GetStatsResponse, error) {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, fmt.Errorf("count file descriptors: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	unacknowledged := 0
	for _, a := range s.attempts {
		if a.exited != nil {
			unacknowledged++
		}
	}
	return &runnerv1.GetStatsResponse{
		Running: uint32(s.running), Started: s.started, Unacknowledged: uint32(unacknowledged),
		Fds: uint32(len(fds) - 1), Goroutines: uint32(runtime.NumGoroutine()),
	}, nil
}

// Shutdown implements the protocol.
func (s *Server) Shutdown(context.Context, *runnerv1.ShutdownRequest) (*runnerv1.ShutdownResponse, error) {
	s.Drain()
	return &runnerv1.ShutdownResponse{}, nil
}

// Drain takes nothing new and ends the plugin after its last job.
func (s *Server) Drain() {
	s.mu.Lock()
	s.draining = true
	done := len(s.attempts) == 0
	s.mu.Unlock()
	if done {
		s.stop()
	}
}

// checkIdle ends the plugin when the idle time has passed with nothing to do
// and nobody listening.
func (s *Server) checkIdle() {
	s.mu.Lock()
	done := s.session == nil && len(s.attempts) == 0 && !s.closed
	s.mu.Unlock()
	if done {
		s.log.Info("idle, ending")
		s.stop()
	}
}

// spawn is one spawner: it starts what is queued.
func (s *Server) spawn() {
	for a := range s.queue.all() {
		s.start(a.start, a.from)
	}
}

// start runs one Start and tells what became of it.
func (s *Server) start(p *runnerv1.Start, from *outbox) {
	a, ok := s.enter(p, from)
	if !ok {
		return
	}
	if err := a.openLanes(p.GetStdout(), p.GetStderr(), ownerOf(p)); err != nil {
		s.finish(a, startFailed(p.GetId(), &StartError{BadRequest, err.Error()}))
		return
	}
	failpoint.At(failpoint.PluginStartBefore)
	if err := s.note(a, p.GetId()); err != nil {
		s.finish(a, startFailed(p.GetId(), &StartError{Resource, err.Error()}))
		return
	}
	failpoint.At(failpoint.PluginForkBefore)
	process, err := s.callStart(specFromProto(p), func(e Exit) { s.exited(p.GetId(), a, e) })
	if err != nil {
		s.finish(a, startFailed(p.GetId(), err))
		return
	}
	failpoint.At(failpoint.PluginForkAfter)
	started := &runnerv1.Started{
		Id: p.GetId(), Pid: int64(process.PID), StartTicks: process.StartTicks, Time: timestamppb.Now(),
	}
	if early := s.began(a, started); early != nil {
		s.finish(a, early)
	}
}

// note records that a fork comes: a host that finds the record after a crash knows
// that the process may exist; one that does not, that it never did. So without it
// nothing is started (P2). The process will not be older than the note.
func (s *Server) note(a *attempt, id string) error {
	m := &runnerv1.Started{Id: id, StartTicks: pidfd.Now()}
	s.gate.RLock()
	defer s.gate.RUnlock()
	if err := s.journal.append(&runnerv1.SessionResponse{Started: []*runnerv1.Started{m}}); err != nil {
		return err
	}
	s.mu.Lock()
	a.noted = m
	s.mu.Unlock()
	return nil
}

// began records that a process exists; it returns an exit that came first.
func (s *Server) began(a *attempt, m *runnerv1.Started) *runnerv1.Exited {
	s.gate.RLock()
	defer s.gate.RUnlock()
	s.record(&runnerv1.SessionResponse{Started: []*runnerv1.Started{m}})
	failpoint.At(failpoint.PluginStartAfter)
	s.mu.Lock()
	defer s.mu.Unlock()
	a.started = m
	s.running++
	s.started++
	if s.session != nil {
		s.session.started(m)
	}
	return a.early
}

// enter makes the attempt, or repeats what became of an earlier Start. A Start of a
// session that is over is dropped: who opens the next one asks for what it still
// wants, perhaps another process (P2).
func (s *Server) enter(p *runnerv1.Start, from *outbox) (*attempt, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := p.GetId()
	if s.session != from || s.known(id) {
		return nil, false
	}
	a := &attempt{lanes: [2]int{-1, -1}}
	s.attempts[id] = a
	if s.draining {
		e := startFailed(id, &StartError{ShuttingDown, "the plugin is shutting down and takes nothing new"})
		a.exited = e
		s.repeat(a)
		return nil, false
	}
	return a, true
}

// repeat sends the state of an attempt; s.mu is held.
func (s *Server) repeat(a *attempt) {
	if s.session == nil {
		return
	}
	if a.started != nil {
		s.session.started(a.started)
	}
	if a.exited != nil {
		s.session.exited(a.exited)
	}
}

// callStart keeps a panic of a third party's Start from ending other jobs.
func (s *Server) callStart(spec Spec, exited func(Exit)) (p Process, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = &StartError{Internal, fmt.Sprintf("the runner panicked: %v", r)}
		}
	}()
	return s.runner.Start(spec, exited)
}

// exited records the end of a process, on disk before anybody hears of it (P6) and
// before it is reaped (P7).
func (s *Server) exited(id string, a *attempt, e Exit) {
	out := &runnerv1.Exited{
		Id: id, Pid: int64(e.PID), Time: timestamppb.New(e.Time),
		CpuMicros: uint64(e.CPU.Microseconds()), MaxRssBytes: e.MaxRSS,
	}
	switch code := int32(e.Code); {
	case e.Signal != 0:
		out.Result = &runnerv1.Exited_Signal{Signal: int32(e.Signal)}
	case int(code) == e.Code:
		out.Result = &runnerv1.Exited_ExitCode{ExitCode: code}
	default: // what does not fit would read as another code: none is told (P6)
		s.log.Error("exit code out of range", "id", id, "code", e.Code)
	}
	if !s.tooEarly(a, out) {
		s.finish(a, out)
	}
}

// tooEarly keeps an exit that came before Start has returned: start tells it. One
// of a start that has failed is of no use any more.
func (s *Server) tooEarly(a *attempt, e *runnerv1.Exited) bool {
	s.gate.RLock()
	defer s.gate.RUnlock()
	s.mu.Lock()
	early, failed := a.started == nil, a.exited != nil
	if early && !failed {
		a.early = e
	}
	s.mu.Unlock()
	if early && !failed {
		s.record(&runnerv1.SessionResponse{Exited: []*runnerv1.Exited{e}})
	}
	return early
}

func (s *Server) finish(a *attempt, e *runnerv1.Exited) {
	s.gate.RLock()
	defer s.gate.RUnlock()
	failpoint.At(failpoint.PluginExitBefore)
	s.record(&runnerv1.SessionResponse{Exited: []*runnerv1.Exited{e}})
	failpoint.At(failpoint.PluginExitAfter)
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.started != nil {
		s.running--
	}
	a.exited = e
	if s.session != nil {
		s.session.exited(e)
	}
}

// record logs a journal that cannot be written: the event itself still goes
// out, only a crash right now would lose it.
func (s *Server) record(m *runnerv1.SessionResponse) {
	if err := s.journal.append(m); err != nil {
		s.log.Error("exit journal not written", "error", err)
	}
}

func startFailed(id string, err error) *runnerv1.Exited {
	var se *StartError
	if !errors.As(err, &se) {
		se = &StartError{Internal, err.Error()}
	}
	return &runnerv1.Exited{
		Id: id, Time: timestamppb.Now(),
		Result: &runnerv1.Exited_Error{Error: &runnerv1.StartError{Reason: shorten(se.Reason, 128), Message: shorten(se.Message, maxMessageText)}},
	}
}

// maxMessageText bounds what a runner says of a failed start, in bytes.
const maxMessageText = 2 << 10

// shorten cuts a text that is too long.
func shorten(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "")
}

// openLanes keeps a read end of both pipes. Read ends do not count as holders
// of the stream: the worker's end sees EOF exactly when no process of the job
// holds it any more (P8).
func (a *attempt) openLanes(stdout, stderr string, owner uint32) error {
	for i, path := range []string{stdout, stderr} {
		fd, err := foreign.Open(path, unix.O_RDONLY, unix.S_IFIFO, owner)
		if err != nil {
			return fmt.Errorf("the output pipe: %w", err)
		}
		a.lanes[i] = fd
	}
	return nil
}

// ownerOf is the user that a job runs as.
func ownerOf(p *runnerv1.Start) uint32 {
	if c := p.GetCredential(); c != nil {
		return c.GetUid()
	}
	return uint32(os.Geteuid())
}

func (a *attempt) closeLanes() {
	for i, fd := range a.lanes {
		if fd >= 0 {
			syscall.Close(fd) //nolint:errcheck // a read end has nothing to lose
			a.lanes[i] = -1
		}
	}
}

// ack forgets attempts whose end is on the worker's disk.
func (s *Server) ack(ids []string) {
	failpoint.At(failpoint.PluginAckBefore)
	s.mu.Lock()
	var gone []*attempt
	for _, id := range ids {
		a, ok := s.attempts[id]
		if !ok || a.exited == nil {
			continue
		}
		delete(s.attempts, id)
		gone = append(gone, a)
		s.recent[id] = a.exited
		s.order = append(s.order, id)
	}
	if n := len(s.order) - recentAcks; n > 0 {
		for _, id := range s.order[:n] {
			delete(s.recent, id)
		}
		s.order = append([]string(nil), s.order[n:]...)
	}
	done := s.draining && len(s.attempts) == 0
	s.mu.Unlock()
	for _, a := range gone {
		a.closeLanes()
	}
	failpoint.At(failpoint.PluginAckAfter)
	if s.journal.full() {
		s.compact()
	}
	if done {
		s.stop()
	}
}

// compact rewrites the journal with what is not acknowledged.
func (s *Server) compact() {
	s.gate.Lock()
	defer s.gate.Unlock()
	s.mu.Lock()
	live := s.snapshot()
	s.mu.Unlock()
	if err := s.journal.rewrite(live); err != nil {
		s.log.Error("exit journal not compacted", "error", err)
	}
}

// snapshot lists the state of every attempt; s.mu is held.
func (s *Server) snapshot() []*runnerv1.SessionResponse {
	out := make([]*runnerv1.SessionResponse, 0, len(s.attempts))
	for _, a := range s.attempts {
		m := &runnerv1.SessionResponse{}
		if s := cmp.Or(a.started, a.noted); s != nil {
			m.Started = append(m.Started, s)
		}
		if e := cmp.Or(a.exited, a.early); e != nil {
			m.Exited = append(m.Exited, e)
		}
		out = append(out, m)
	}
	return out
}

func commands(i Info) []string {
	out := []string{i.Name}
	for _, c := range i.Commands {
		if c != i.Name {
			out = append(out, c)
		}
	}
	return out
}
