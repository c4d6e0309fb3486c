package runnertest

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// patience is how long anything may take on a machine that is busy otherwise.
const patience = 60 * time.Second

// world is one plugin with the session of one worker.
type world struct {
	*Plugin
	t *testing.T
	h Harness

	session *session
	ids     int
}

func newWorld(t *testing.T, h Harness, o Options) *world {
	t.Helper()
	w := &world{Plugin: h.Open(t, o), t: t, h: h}
	w.connect()
	t.Cleanup(w.endJobs)
	return w
}

// endJobs kills what a case left running.
func (w *world) endJobs() {
	select {
	case <-w.Ended:
		return
	default:
	}
	if w.session.isClosed() {
		w.connect()
	}
	for _, id := range w.session.running() {
		w.session.send(&runnerv1.SessionRequest{Signals: []*runnerv1.Signal{{Id: id, Signal: int32(syscall.SIGKILL)}}})
		w.awaitExit(id)
	}
	w.session.close()
}

// connect opens a session, which ends the one before.
func (w *world) connect() {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := w.Client.Session(ctx)
	if err != nil {
		cancel()
		w.t.Fatal(err)
	}
	s := &session{
		t: w.t, transmit: stream.Send, cancel: cancel, done: make(chan struct{}), news: make(chan struct{}),
		started: map[string]*runnerv1.Started{}, exited: map[string]*runnerv1.Exited{}, heard: map[string]int{},
	}
	go func() {
		defer close(s.done)
		for {
			m, err := stream.Recv()
			if err != nil {
				return
			}
			s.take(m)
		}
	}()
	w.session = s
	s.await("the synced frame", func() bool { return s.synced })
}

// job is one Start with its output.
type job struct {
	*runnerv1.Start
	w     *world
	lanes [2]*os.File
}

// prepare makes the Start of a behaviour and its lanes, and starts nothing.
func (w *world) prepare(behaviour string, args ...string) *job {
	w.t.Helper()
	text, ok := behaviours[behaviour]
	if !ok {
		w.t.Fatalf("no behaviour %q", behaviour)
	}
	if w.h.Wrap != nil {
		text = w.h.Wrap(text)
	}
	w.ids++
	dir := w.t.TempDir()
	j := &job{w: w, Start: &runnerv1.Start{
		Id: fmt.Sprintf("%s/%d", w.t.Name(), w.ids), Command: w.h.Command, Script: filepath.Join(dir, behaviour), Args: args,
		Env: []string{"PATH=" + w.h.path()}, Workdir: dir, Interpreter: w.h.find(w.t),
		Stdout: filepath.Join(dir, "out"), Stderr: filepath.Join(dir, "err"),
	}}
	if err := os.WriteFile(j.Script, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	for i, p := range []string{j.Stdout, j.Stderr} {
		if err := syscall.Mkfifo(p, 0o600); err != nil {
			w.t.Fatal(err)
		}
		// A worker holds the read ends before it asks for the start.
		f, err := os.OpenFile(p, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(func() { _ = f.Close() })
		j.lanes[i] = f
	}
	return j
}

func (h Harness) path() string { return h.Path + ":" + os.Getenv("PATH") }

// find returns where the interpreter is.
func (h Harness) find(t *testing.T) string {
	t.Helper()
	if h.Interpreter == "" {
		return ""
	}
	for _, dir := range filepath.SplitList(h.path()) {
		file := filepath.Join(dir, h.Interpreter)
		if info, err := os.Stat(file); filepath.IsAbs(dir) && err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return file
		}
	}
	t.Fatalf("%s is not in %s", h.Interpreter, h.path())
	return ""
}

// interpret makes file the interpreter of the job.
func (j *job) interpret(file string) {
	j.Interpreter = file
	if filepath.IsAbs(j.Command) {
		j.Command = file
	}
}

// run asks for the start and waits for what becomes of it.
func (j *job) run() *job {
	j.w.t.Helper()
	j.w.session.send(&runnerv1.SessionRequest{Starts: []*runnerv1.Start{j.Start}})
	j.w.session.await("the start of "+j.GetId(), func() bool {
		return j.w.session.started[j.GetId()] != nil || j.w.session.exited[j.GetId()] != nil
	})
	return j
}

// pid of the process.
func (j *job) pid() int {
	j.w.t.Helper()
	s := j.w.session.startedOf(j.GetId())
	if s.GetPid() <= 0 || s.GetTime() == nil || j.w.h.Interpreter != "" && s.GetStartTicks() == 0 {
		j.w.t.Fatalf("started with %v", s)
	}
	return int(s.GetPid())
}

// output is everything that the job says on both streams, up to their ends.
func (j *job) output() (stdout, stderr string) {
	j.w.t.Helper()
	var (
		wait sync.WaitGroup
		got  [2][]byte
		errs [2]error
	)
	for i, f := range j.lanes {
		if err := f.SetReadDeadline(time.Now().Add(patience)); err != nil {
			j.w.t.Fatal(err)
		}
		wait.Go(func() { got[i], errs[i] = io.ReadAll(f) })
	}
	wait.Wait()
	for _, err := range errs {
		if err != nil {
			j.w.t.Fatalf("read the output of %s: %v", j.GetId(), err)
		}
	}
	return string(got[0]), string(got[1])
}

// line reads the first bytes of standard output up to a newline.
func (j *job) line() string {
	j.w.t.Helper()
	f := j.lanes[0]
	if err := f.SetReadDeadline(time.Now().Add(patience)); err != nil {
		j.w.t.Fatal(err)
	}
	var out []byte
	for b := make([]byte, 1); ; {
		if _, err := f.Read(b); err != nil {
			j.w.t.Fatalf("read a line of %s after %q: %v", j.GetId(), out, err)
		}
		if b[0] == '\n' {
			return string(out)
		}
		out = append(out, b[0])
	}
}

func (j *job) signal(sig syscall.Signal) {
	j.w.t.Helper()
	j.w.session.send(&runnerv1.SessionRequest{Signals: []*runnerv1.Signal{{Id: j.GetId(), Signal: int32(sig)}}})
}

// exit waits for the end and acknowledges it.
func (j *job) exit() *runnerv1.Exited {
	j.w.t.Helper()
	e := j.w.awaitExit(j.GetId())
	j.w.session.send(&runnerv1.SessionRequest{Acks: []string{j.GetId()}})
	return e
}

// mustExit runs a job to its end and wants an exit code.
func (j *job) mustExit(code int32) {
	j.w.t.Helper()
	e := j.exit()
	if c, ok := e.GetResult().(*runnerv1.Exited_ExitCode); !ok || c.ExitCode != code {
		j.w.t.Errorf("ended with %v, want exit code %d", e, code)
	}
	if e.GetTime() == nil || e.GetFromJournal() || int(e.GetPid()) != j.pid() {
		j.w.t.Errorf("ended with %v", e)
	}
}

// mustSignal wants an end by a signal.
func (j *job) mustSignal(sig syscall.Signal) {
	j.w.t.Helper()
	e := j.exit()
	if s, ok := e.GetResult().(*runnerv1.Exited_Signal); !ok || s.Signal != int32(sig) {
		j.w.t.Errorf("ended with %v, want signal %d", e, sig)
	}
}

// mustFail wants a start error.
func (j *job) mustFail(reason string) {
	j.w.t.Helper()
	e := j.exit()
	if r := e.GetError(); r.GetReason() != reason || r.GetMessage() == "" || e.GetPid() != 0 {
		j.w.t.Errorf("ended with %v, want %s", e, reason)
	}
	if s := j.w.session.startedOf(j.GetId()); s != nil {
		j.w.t.Errorf("was started: %v", s)
	}
}

func (w *world) awaitExit(id string) *runnerv1.Exited {
	w.t.Helper()
	var e *runnerv1.Exited
	w.session.await("the exit of "+id, func() bool {
		e = w.session.exited[id]
		return e != nil
	})
	return e
}

// stats asks what the plugin holds.
func (w *world) stats() *runnerv1.GetStatsResponse {
	w.t.Helper()
	s, err := w.Client.GetStats(context.Background(), &runnerv1.GetStatsRequest{})
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// eventually polls a condition of another process.
func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("not so: %s", what)
		}
	}
}

// mustLive fails when the plugin ends within d.
func (w *world) mustLive(d time.Duration) {
	w.t.Helper()
	select {
	case <-w.Ended:
		w.t.Fatal("the plugin has ended")
	case <-time.After(d):
	}
}

func (w *world) awaitEnd() {
	w.t.Helper()
	select {
	case <-w.Ended:
	case <-time.After(patience):
		w.t.Fatal("the plugin does not end")
	}
}

// session is what one worker hears.
type session struct {
	t        *testing.T
	transmit func(*runnerv1.SessionRequest) error
	cancel   context.CancelFunc
	done     chan struct{} // closed when the stream has ended

	mu      sync.Mutex // guards the fields below
	started map[string]*runnerv1.Started
	exited  map[string]*runnerv1.Exited
	heard   map[string]int // how often an id was mentioned
	synced  bool
	news    chan struct{} // closed and replaced with every frame
}

func (s *session) take(m *runnerv1.SessionResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range m.GetStarted() {
		s.started[e.GetId()] = e
		s.heard[e.GetId()]++
	}
	for _, e := range m.GetExited() {
		s.exited[e.GetId()] = e
		s.heard[e.GetId()]++
	}
	s.synced = s.synced || m.GetSynced()
	close(s.news)
	s.news = make(chan struct{})
}

func (s *session) send(m *runnerv1.SessionRequest) {
	s.t.Helper()
	if err := s.transmit(m); err != nil {
		s.t.Fatalf("send a frame: %v", err)
	}
}

// await waits until ok, which is called with s.mu held.
func (s *session) await(what string, ok func() bool) {
	s.t.Helper()
	end := time.After(patience)
	for {
		s.mu.Lock()
		good, news := ok(), s.news
		s.mu.Unlock()
		if good {
			return
		}
		select {
		case <-news:
		case <-s.done:
			s.t.Fatalf("the session ended before %s", what)
		case <-end:
			s.t.Fatalf("waited in vain for %s", what)
		}
	}
}

func (s *session) startedOf(id string) *runnerv1.Started {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.started[id]
}

// running lists the jobs that have started and not ended.
func (s *session) running() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for id := range s.started {
		if s.exited[id] == nil {
			out = append(out, id)
		}
	}
	return out
}

func (s *session) isClosed() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// close ends the session from the worker's side.
func (s *session) close() {
	s.cancel()
	<-s.done
}
