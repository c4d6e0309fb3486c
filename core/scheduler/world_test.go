package scheduler

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/registry"
	"github.com/droverhq/drover/core/store"
	"github.com/droverhq/drover/core/store/memory"
)

// world is a cluster in memory: a Scheduler, its store, and workers that play
// jobs. A job does what its arguments say:
//
//	run=D   it ends after D (default: it runs until it is stopped)
//	code=N  with this code
type world struct {
	t     *testing.T
	ctx   context.Context //nolint:containedctx // the life of one test
	store store.Store
	log   *logbook
	rules Retention // of the next life

	mu      sync.Mutex // guards the fields below
	s       *Scheduler
	workers map[string]*player // by name
	cancel  context.CancelFunc
	ended   chan error
}

// logbook keeps what was logged.
type logbook struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// admin may see everything.
func admin() Caller { return Caller{Name: "root", Role: "admin"} }

// story runs f in a bubble with a Scheduler and checks that it ends cleanly.
func story(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 1000*time.Hour)
		w := &world{t: t, ctx: ctx, store: memory.New(), log: &logbook{}, workers: map[string]*player{}}
		w.begin()
		f(t, w)
		cancel()
		if err := w.end(); err != nil {
			t.Errorf("the scheduler ended with %v", err)
		}
	})
}

// begin starts a scheduler life on the store.
func (w *world) begin() {
	w.t.Helper()
	s, err := New(w.ctx, Config{Store: w.store, Connector: w, Retention: w.rules, Log: slog.New(slog.NewTextHandler(w.log, nil))})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.s, w.cancel, w.ended = s, cancel, make(chan error, 1)
	go func() { w.ended <- s.Run(ctx) }()
}

// end ends the scheduler life.
func (w *world) end() error {
	w.cancel()
	return <-w.ended
}

func (w *world) restart() {
	w.t.Helper()
	if err := w.end(); err != nil {
		w.t.Errorf("the scheduler ended with %v", err)
	}
	w.begin()
}

func (w *world) scheduler() *Scheduler {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.s
}

// player is a worker: it registers, renews its lease and plays its jobs.
type player struct {
	w  *world
	by Caller

	mu       sync.Mutex // guards the fields below
	reg      registry.Registration
	scripts  job.ScriptIndex
	attempts map[job.Key]*played
	starts   map[job.Key]int // how often a process was made (P2)
	forgets  []job.Key
	term     uint64
	life     job.Life // that commanded it last
	away     bool     // nothing of it is heard, nothing reaches it
	loses    bool     // what it is told to start
	link     *wire
}

type played struct {
	report job.Report
	fence  job.Fence
	timer  *time.Timer
}

// wire is one link to a player.
type wire struct {
	p      *player
	up     chan Up
	once   sync.Once
	closed chan struct{}
}

// join makes a worker that is ONLINE with an open session.
func (w *world) join(name string, slots int, scripts ...string) *player {
	w.t.Helper()
	p := &player{
		w: w, by: Caller{Name: name, Role: roleWorker}, reg: registration(name, slots),
		attempts: map[job.Key]*played{}, starts: map[job.Key]int{},
	}
	p.reg.Runners = []job.RunnerInfo{{Name: "bash", State: "ready", Commands: []string{"bash"}}}
	for _, s := range scripts {
		p.scripts.Scripts = append(p.scripts.Scripts, job.ScriptInfo{Path: s, Folder: "scripts", SHA256: "of " + s})
	}
	w.mu.Lock()
	w.workers[name] = p
	w.mu.Unlock()
	p.register()
	go p.live()
	synctest.Wait()
	return p
}

func (p *player) register() {
	r, err := p.w.scheduler().Register(p.w.ctx, p.by, p.reg)
	if err != nil {
		if p.w.ctx.Err() == nil {
			p.w.t.Errorf("register %s: %v", p.by.Name, err)
		}
		return
	}
	p.mu.Lock()
	p.reg.ID = r.Worker.ID
	p.mu.Unlock()
}

// live renews the lease until the test ends.
func (p *player) live() {
	for tick := time.NewTicker(DefaultHeartbeat); ; {
		select {
		case <-tick.C:
		case <-p.w.ctx.Done():
			tick.Stop()
			return
		}
		p.mu.Lock()
		away, id := p.away, p.reg.ID
		p.mu.Unlock()
		if away {
			continue
		}
		if _, err := p.w.scheduler().Heartbeat(p.w.ctx, p.by, Heartbeat{ID: id}); errs.KindOf(err) == errs.NotFound {
			p.register()
		}
	}
}

func (p *player) id() job.WorkerID {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reg.ID
}

// cut takes a worker off the network; its jobs go on.
func (p *player) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.away = true
	if p.link != nil {
		p.link.Close()
		p.link = nil
	}
}

// deaf makes a worker lose what it is told to start.
func (p *player) deaf(is bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.loses = is
}

func (p *player) heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.away = false
}

// Connect implements Connector.
func (w *world) Connect(_ context.Context, to registry.Worker, term uint64, h job.History) (Link, error) {
	w.mu.Lock()
	p := w.workers[to.Name]
	w.mu.Unlock()
	if p == nil {
		return nil, errs.E("connect", errs.Unavailable, "NOBODY", errors.New("nobody listens"))
	}
	return p.open(term, h)
}

func (p *player) open(term uint64, h job.History) (Link, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.away:
		return nil, errs.E("connect", errs.Unavailable, "AWAY", errors.New("no route"))
	case !h.Holds(p.life):
		return nil, errs.E("open session", errs.Precondition, job.ReasonOldRecords, &job.StrangeLifeError{Last: p.life, Term: term})
	case term < p.term:
		return nil, errs.E("open session", errs.Precondition, job.ReasonFenced, errors.New("an old term"))
	}
	p.term, p.life = term, h.Last()
	if p.link != nil {
		p.link.Close()
	}
	p.link = &wire{p: p, up: make(chan Up, 1000), closed: make(chan struct{})}
	up := Up{Hello: &Hello{BootID: p.reg.BootID, InstanceID: p.reg.InstanceID, Complete: true}, Scripts: &p.scripts, Runners: p.reg.Runners}
	for _, a := range p.attempts {
		up.Reports = append(up.Reports, a.report)
	}
	p.link.up <- up
	return p.link, nil
}

// Recv implements Link.
func (l *wire) Recv() (Up, error) {
	select {
	case <-l.closed:
		return Up{}, io.EOF
	case up := <-l.up:
		return up, nil
	}
}

// Close implements Link.
func (l *wire) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Send implements Link.
func (l *wire) Send(d Down) (tooLarge []job.Key, err error) {
	p := l.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.away || p.link != l {
		return nil, io.ErrClosedPipe
	}
	for i := range d.Starts {
		p.start(&d.Starts[i])
	}
	for _, o := range d.Stops {
		p.stop(o)
	}
	for _, k := range d.Acks {
		delete(p.attempts, k)
	}
	p.forgets = append(p.forgets, d.Forgets...)
	return nil, nil
}

// start plays a start order; p.mu is held.
func (p *player) start(o *job.StartOrder) {
	if p.loses || p.attempts[o.Key] != nil || p.starts[o.Key] > 0 {
		return // P2
	}
	p.starts[o.Key]++
	a := &played{fence: o.Fence, report: job.Report{Key: o.Key, Runner: "bash", PID: 7}}
	p.attempts[o.Key] = a
	args := map[string]string{}
	for _, arg := range o.Spec.Args {
		k, v, _ := strings.Cut(arg, "=")
		args[k] = v
	}
	code, _ := strconv.ParseInt(args["code"], 10, 32)
	if d, err := time.ParseDuration(args["run"]); err == nil {
		a.timer = time.AfterFunc(d, func() { p.exit(o.Key, int32(code)) })
	}
	p.tell(a, job.Running, "")
}

// stop plays a stop order; p.mu is held.
func (p *player) stop(o job.StopOrder) {
	a := p.attempts[o.Key]
	if a == nil {
		a = &played{report: job.Report{Key: o.Key}}
		p.attempts[o.Key] = a
		p.tell(a, job.Stopped, job.ReasonTombstone)
		return
	}
	if a.timer != nil {
		a.timer.Stop()
	}
	if !a.report.State.Terminal() {
		p.tell(a, job.Stopped, o.Reason)
	}
}

// exit ends a job's process.
func (p *player) exit(k job.Key, code int32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.attempts[k]
	if a == nil || a.report.State.Terminal() {
		return
	}
	a.report.ExitCode, a.report.Evidence = &code, job.Wait
	if code != 0 {
		p.tell(a, job.Failed, job.ReasonExitCode)
		return
	}
	p.tell(a, job.Succeeded, "")
}

// tell reports the state of an attempt; p.mu is held.
func (p *player) tell(a *played, s job.State, reason string) {
	a.report.Sequence++
	a.report.State, a.report.Reason = s, reason
	if p.link != nil && !p.away {
		p.link.up <- Up{Reports: []job.Report{a.report}}
	}
}

// forgetAll makes a worker lose its memory and its processes, as a host does
// that is rebooted.
func (p *player) forgetAll(boot string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range p.attempts {
		if a.timer != nil {
			a.timer.Stop()
		}
	}
	p.attempts, p.reg.BootID = map[job.Key]*played{}, boot
}

// started is how often processes of a job were made.
func (p *player) started(id job.ID) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for k, times := range p.starts {
		if k.Job == id {
			n += times
		}
	}
	return n
}

// run submits a job.
func (w *world) run(s job.Spec) job.ID {
	w.t.Helper()
	if s.Command == "" && s.Path == "" {
		s.Command = "sleep"
	}
	id, err := w.s.StartJob(w.ctx, admin(), s, "")
	if err != nil {
		w.t.Fatalf("submit: %v", err)
	}
	return id
}

func args(a ...string) job.Spec { return job.Spec{Args: a} }

func (w *world) job(id job.ID) job.Job {
	w.t.Helper()
	j, err := w.s.Job(w.ctx, admin(), id.String(), false)
	if err != nil {
		w.t.Fatalf("read job: %v", err)
	}
	return j
}

// wait waits until a job is in one of the states.
func (w *world) wait(id job.ID, states ...job.State) job.Job {
	w.t.Helper()
	var found job.Job
	done := errors.New("done")
	err := w.s.Watch(w.ctx, admin(), id.String(), true, func() {}, func(c Change) error {
		if c.Job != nil && slices.Contains(states, c.Job.State) {
			found = *c.Job
			return done
		}
		return nil
	})
	if !errors.Is(err, done) {
		w.t.Fatalf("wait for %v: %v; it is %v", states, err, w.job(id).State)
	}
	return found
}

func (w *world) worker(name string) registry.Worker {
	w.t.Helper()
	found, err := w.s.Worker(w.ctx, name)
	if err != nil {
		w.t.Fatal(err)
	}
	return found
}

// wantErr checks kind and reason of an error.
func wantErr(t *testing.T, err error, kind errs.Kind, reason string) {
	t.Helper()
	if err == nil || errs.KindOf(err) != kind || errs.ReasonOf(err) != reason {
		t.Errorf("error %v (%v, %s), want %v, %s", err, errs.KindOf(err), errs.ReasonOf(err), kind, reason)
	}
}
