package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/core/journal"
)

// world is a host in memory: it plays runners, output, groups and scripts for
// one worker after another, as a real host does over a worker's restart. Jobs
// do what their arguments say:
//
//	run=D      the main process ends after D (default: it runs until killed)
//	code=N     with this code
//	kid=D      a child holds the output until D after the main process
//	mute-kid=D the same, but the child has closed its output
//	deaf       all of it ignores SIGTERM
//	undead     SIGKILL does not help, until world.mercy
//	spawn=R    there is no process, for reason R
//	write=D    it writes a byte every D
//	late=D     the plugin makes the process after D
//	oom        the kernel kills it for want of memory
type world struct {
	mu       sync.Mutex
	feed     *Feed
	nextPID  int
	nextCG   int
	procs    map[string]*proc    // by attempt id
	outputs  map[job.Key]*fakeIO // by attempt
	starts   map[string]int      // how often a process was made
	acked    map[string]bool
	groups   map[string]bool // taken
	pins     int             // held
	launched []Launch
	refusal  error // Launcher.Start answers it
	deafness bool  // Launcher.Start loses what it gets
	leaving  int   // so many starts find their plugin shutting down
	resumed  []Held
	amnesia  bool // Resume: every process is gone
	early    bool // no runner is known before Resume
	lookups  map[string]error
	changed  chan struct{}
	mercy    bool
	finish   error
	full     string // there is no room: output of processes that are gone stays in the pipes
	shut     error  // groups cannot be reopened
	unpinned error  // generations cannot be pinned again
}

type proc struct {
	w       *world
	id      string
	cgroup  string
	pid     int
	main    bool
	kid     bool
	kidMute bool
	deaf    bool
	undead  bool
	void    bool
	args    map[string]string
	exit    *ProcessExit
	timers  []*time.Timer
	oom     uint64
	hidden  bool // the news of the exit is held back
}

type fakeIO struct {
	drained   chan struct{}
	closed    bool
	cut       bool // its process began after the end was told
	given     bool // GiveUp
	discarded bool // Discard
	finished  bool
	size      uint64
	last      time.Time
	resumed   bool
	acked     bool // Settled: what was told last
	failed    bool
}

func newWorld() *world {
	return &world{
		feed: NewFeed(), nextPID: 100, procs: map[string]*proc{}, outputs: map[job.Key]*fakeIO{},
		starts: map[string]int{}, acked: map[string]bool{}, groups: map[string]bool{}, lookups: map[string]error{},
		changed: make(chan struct{}, 1),
	}
}

func (w *world) Interpreter(r journal.Runner) string {
	if r.Name == "bash" {
		return "sh" // every host has it
	}
	return ""
}

func (w *world) Restricts(r journal.Runner) bool { return r.Name != "old" }

func (w *world) Lookup(command string) (journal.Runner, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.lookups[command]; err != nil {
		return journal.Runner{}, err
	}
	if w.early {
		return journal.Runner{}, errs.E("look up runner", errs.NotFound, job.ReasonNoRunner, nil)
	}
	switch command {
	case "bash", "binary", ".sh":
		return journal.Runner{Name: strings.TrimPrefix(command, "."), Version: "1.0", SHA256: "abc"}, nil
	}
	return journal.Runner{}, errs.E("look up runner", errs.NotFound, job.ReasonNoRunner, nil)
}

func (w *world) Start(_ journal.Runner, l Launch) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.launched = append(w.launched, l)
	if w.refusal != nil {
		return w.refusal
	}
	if w.deafness {
		return nil
	}
	if w.procs[l.ID] != nil {
		return nil // a second start of an id starts nothing
	}
	p := &proc{w: w, id: l.ID, cgroup: l.Cgroup, void: l.Lanes == (Lanes{}), args: map[string]string{}}
	for _, a := range l.Args {
		k, v, _ := strings.Cut(a, "=")
		p.args[k] = v
	}
	w.procs[l.ID] = p
	if d, ok := p.args["late"]; ok {
		p.timers = append(p.timers, time.AfterFunc(mustDuration(d), p.begin))
		return nil
	}
	w.mu.Unlock()
	p.begin()
	w.mu.Lock()
	return nil
}

func mustDuration(s string) time.Duration {
	d, err := time.ParseDuration(s)
	if err != nil {
		panic("unreachable: " + err.Error())
	}
	return d
}

// begin makes the process.
func (p *proc) begin() {
	w := p.w
	w.mu.Lock()
	if w.leaving > 0 {
		w.leaving--
		delete(w.procs, p.id)
		w.mu.Unlock()
		w.push([]ProcessEvent{{ID: p.id, Exit: &ProcessExit{SpawnReason: reasonShuttingDown, SpawnError: "later"}}})
		return
	}
	if p.void {
		p.exit = &ProcessExit{SpawnReason: "BAD_REQUEST", SpawnError: "open the output pipe"}
		w.mu.Unlock()
		w.push([]ProcessEvent{{ID: p.id, Exit: p.exit}})
		return
	}
	if reason, ok := p.args["spawn"]; ok {
		p.exit = &ProcessExit{SpawnReason: reason, SpawnError: "no such file", Evidence: job.Wait}
		w.mu.Unlock()
		w.push([]ProcessEvent{{ID: p.id, Exit: p.exit}})
		return
	}
	w.starts[p.id]++
	if o := w.outputs[keyOf(p.id)]; o != nil && o.closed {
		o.cut = true
	}
	w.nextPID++
	p.pid, p.main = w.nextPID, true
	_, p.deaf = p.args["deaf"]
	_, p.undead = p.args["undead"]
	_, kid := p.args["kid"]
	_, p.kidMute = p.args["mute-kid"]
	p.kid = kid || p.kidMute
	if d, ok := p.args["run"]; ok {
		p.timers = append(p.timers, time.AfterFunc(mustDuration(d), p.end))
	}
	if d, ok := p.args["write"]; ok {
		p.writeEvery(mustDuration(d))
	}
	w.mu.Unlock()
	w.push([]ProcessEvent{{ID: p.id, Started: &journal.Started{PID: p.pid, Wall: time.Now()}}})
}

func (p *proc) writeEvery(d time.Duration) {
	p.timers = append(p.timers, time.AfterFunc(d, func() {
		p.w.mu.Lock()
		defer p.w.mu.Unlock()
		if !p.main {
			return
		}
		o := p.w.outputs[keyOf(p.id)]
		o.size++
		o.last = time.Now()
		p.writeEvery(d)
	}))
}

// end is the main process's own end.
func (p *proc) end() {
	p.w.mu.Lock()
	if !p.main {
		p.w.mu.Unlock()
		return
	}
	p.main = false
	x := &ProcessExit{PID: p.pid, Evidence: job.Wait, Time: time.Now()}
	if c, ok := p.args["code"]; ok {
		fmt.Sscan(c, &x.Code)
	}
	if _, ok := p.args["oom"]; ok {
		x.Signal = syscall.SIGKILL
		p.oom++
	}
	p.exit = x
	for _, name := range []string{"kid", "mute-kid"} {
		if d, ok := p.args[name]; ok {
			p.timers = append(p.timers, time.AfterFunc(mustDuration(d), func() {
				p.w.mu.Lock()
				defer p.w.mu.Unlock()
				p.kid = false
				p.settle()
			}))
		}
	}
	p.settle()
	p.tell()
}

// tell sends the exit and unlocks.
func (p *proc) tell() {
	x, hidden := p.exit, p.hidden
	p.w.mu.Unlock()
	if !hidden && x != nil {
		p.w.push([]ProcessEvent{{ID: p.id, Exit: x}})
	}
}

// settle closes the output when nobody holds it. Callers hold the lock.
func (p *proc) settle() {
	if o := p.w.outputs[keyOf(p.id)]; o != nil && p.w.full == "" && !p.main && (!p.kid || p.kidMute) && !o.closed {
		o.closed = true
		close(o.drained)
	}
}

// kill delivers a signal to all of it and returns how many it ended.
func (p *proc) kill(sig syscall.Signal) (ended uint32) {
	p.w.mu.Lock()
	if sig == syscall.SIGTERM && p.deaf || p.undead && !p.w.mercy {
		p.w.mu.Unlock()
		return 0
	}
	if p.kid {
		ended++
	}
	p.kid = false
	if !p.main {
		p.settle()
		p.w.mu.Unlock()
		return ended
	}
	p.main = false
	p.exit = &ProcessExit{PID: p.pid, Signal: sig, Evidence: job.Wait, Time: time.Now()}
	p.settle()
	p.tell()
	return ended + 1
}

// push hands news to the feed of the life that runs now.
func (w *world) push(news []ProcessEvent) {
	w.mu.Lock()
	feed := w.feed
	w.mu.Unlock()
	feed.Push(news)
}

func (w *world) Ack(ids ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range ids {
		w.acked[id] = true
	}
}

func (w *world) Resume(_ context.Context, held []Held) error {
	w.mu.Lock()
	w.resumed, w.early = held, false
	var news []ProcessEvent
	for _, h := range held {
		p := w.procs[h.ID]
		switch {
		case p == nil:
			news = append(news, ProcessEvent{ID: h.ID, Unknown: true})
		case w.amnesia:
			news = append(news, ProcessEvent{ID: h.ID, Gone: true})
		case p.main:
			news = append(news, ProcessEvent{ID: h.ID, Started: &journal.Started{PID: p.pid, Wall: time.Now()}})
		case p.exit != nil:
			x := *p.exit
			x.Evidence = job.ExitJournal
			news = append(news, ProcessEvent{ID: h.ID, Exit: &x})
		}
	}
	w.mu.Unlock()
	w.push(news)
	return nil
}

func (w *world) Runners() []job.RunnerInfo {
	return []job.RunnerInfo{{Name: "bash", Version: "1.0", State: "ready"}}
}

func (w *world) Conditions() []job.Condition { return nil }

func (w *world) Changed() <-chan struct{} { return w.changed }

// output

type worldOutput struct{ *world }

func (o worldOutput) Take(k job.Key, _ OutputOptions) (Lanes, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.outputs[k] != nil {
		return Lanes{}, fmt.Errorf("%v has lanes already", k)
	}
	o.outputs[k] = &fakeIO{drained: make(chan struct{})}
	return Lanes{"/lanes/" + attemptID(k) + ".out", "/lanes/" + attemptID(k) + ".err"}, nil
}

func (o worldOutput) Resume(k job.Key, _ Lanes, opts OutputOptions) error {
	o.mu.Lock()
	x := o.outputs[k]
	if x != nil {
		x.resumed = true
	}
	o.mu.Unlock()
	if x == nil {
		return errors.New("no such lanes")
	}
	if !opts.Unborn {
		o.NoWriter(k)
	}
	return nil
}

func (o worldOutput) Whole(job.Key) {}

func (o worldOutput) Left(k job.Key) (held bool, why string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	x, p := o.outputs[k], o.procs[attemptID(k)]
	if x == nil || x.closed {
		return false, ""
	}
	return o.full == "" || p != nil && p.kid && !p.kidMute, o.full
}

// room lets all output go into segments that has waited for that.
func (w *world) room() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.full = ""
	for _, p := range w.procs {
		p.settle()
	}
}

func (o worldOutput) GiveUp(k job.Key) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if x := o.outputs[k]; x != nil && !x.closed {
		x.closed, x.given = true, true
		close(x.drained)
	}
}

func (o worldOutput) Discard(k job.Key) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if x := o.outputs[k]; x != nil {
		x.discarded = true
	}
}

func (o worldOutput) NoWriter(k job.Key) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if p := o.procs[attemptID(k)]; p != nil && (p.main || p.kid && !p.kidMute) {
		return // somebody holds them
	}
	if o.full != "" {
		return
	}
	if x := o.outputs[k]; x != nil && !x.closed {
		x.closed = true
		close(x.drained)
	}
}

func (o worldOutput) Drained(k job.Key) <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	if x := o.outputs[k]; x != nil {
		return x.drained
	}
	gone := make(chan struct{})
	close(gone)
	return gone
}

func (o worldOutput) Finish(_ context.Context, k job.Key, _ bool) (stdout, stderr job.Stream, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	x := o.outputs[k]
	switch {
	case o.finish != nil:
		return stdout, stderr, o.finish
	case x == nil:
		return stdout, stderr, errors.New("no such output")
	case !x.closed:
		return stdout, stderr, errors.New("somebody writes")
	case x.cut:
		return stdout, stderr, errors.New("its end came before its process")
	}
	x.finished = true
	return job.Stream{Size: x.size, SHA256: "out"}, job.Stream{SHA256: "err"}, nil
}

func (o worldOutput) Sizes(k job.Key) (stdout, stderr uint64, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if x := o.outputs[k]; x != nil {
		return x.size, 0, true
	}
	return 0, 0, false
}

func (o worldOutput) LastWrite(k job.Key) time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	if x := o.outputs[k]; x != nil {
		return x.last
	}
	return time.Time{}
}

func (o worldOutput) Settled(k job.Key, acked, failed bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if x := o.outputs[k]; x != nil {
		x.acked, x.failed = acked, failed
	}
}

func (o worldOutput) Remove(k job.Key) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.outputs, k)
	return nil
}

func (o worldOutput) Keys() []job.Key {
	o.mu.Lock()
	defer o.mu.Unlock()
	var all []job.Key
	for k := range o.outputs {
		all = append(all, k)
	}
	return all
}

func (o worldOutput) Conditions() []job.Condition {
	return []job.Condition{{Type: "DISK_LOW"}}
}

// groups

type worldGroups struct{ *world }

func (g worldGroups) Check(l job.Limits) error {
	if l.CPUMillis > 0 {
		return errs.Field("check limits", "limits.cpu_millis", job.ReasonLimit, "this host has no cpu controller")
	}
	return nil
}

func (g worldGroups) Acquire(job.Limits, int) (Group, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.nextCG++
	name := fmt.Sprintf("group%d", g.nextCG)
	g.groups[name] = true
	return worldGroup{g.world, name}, nil
}

func (g worldGroups) Reopen(name string) (Group, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut != nil {
		return nil, g.shut
	}
	if !g.groups[name] {
		return nil, errs.E("reopen", errs.NotFound, "", nil)
	}
	return worldGroup{g.world, name}, nil
}

func (g worldGroups) Prune() ([]string, error) { return nil, nil }

func (g worldGroups) End(context.Context, []string) error { return nil }

type worldGroup struct {
	w    *world
	name string
}

func (g worldGroup) Name() string    { return g.name }
func (g worldGroup) Dir() string     { return g.name }
func (g worldGroup) Tasks() []string { return nil }

func (g worldGroup) proc() *proc {
	g.w.mu.Lock()
	defer g.w.mu.Unlock()
	for _, p := range g.w.procs {
		if p.cgroup == g.name {
			return p
		}
	}
	return nil
}

func (g worldGroup) Empty(StopRequest) (bool, error) {
	p := g.proc()
	if p == nil {
		return true, nil
	}
	g.w.mu.Lock()
	defer g.w.mu.Unlock()
	return !p.main && !p.kid, nil
}

func (g worldGroup) Stop(ctx context.Context, r StopRequest) (job.StopProof, error) {
	proof := job.StopProof{Method: "cgroup-kill"}
	p := g.proc()
	if p == nil {
		return proof, nil
	}
	if r.Grace > 0 {
		proof.Termed = p.kill(syscall.SIGTERM)
		grace := time.NewTimer(r.Grace)
		defer grace.Stop()
		for look := time.NewTicker(10 * time.Millisecond); ; {
			if empty, _ := g.Empty(StopRequest{}); empty {
				look.Stop()
				return proof, nil
			}
			select {
			case <-look.C:
				continue
			case <-ctx.Done():
				look.Stop()
				return proof, ctx.Err()
			case <-grace.C:
				look.Stop()
			}
			break
		}
	}
	proof.Killed = p.kill(syscall.SIGKILL)
	if empty, _ := g.Empty(StopRequest{}); empty {
		return proof, nil
	}
	wait := time.NewTimer(time.Minute)
	defer wait.Stop()
	select {
	case <-wait.C:
		return proof, errs.E("stop group", errs.Precondition, reasonUnkillable, errors.New("1 process withstands SIGKILL"))
	case <-ctx.Done():
		return proof, ctx.Err()
	}
}

func (g worldGroup) OOMKills() (uint64, error) {
	p := g.proc()
	if p == nil {
		return 0, nil
	}
	g.w.mu.Lock()
	defer g.w.mu.Unlock()
	return p.oom, nil
}

func (g worldGroup) Release() error {
	g.w.mu.Lock()
	defer g.w.mu.Unlock()
	if !g.w.groups[g.name] {
		return errors.New("released twice")
	}
	delete(g.w.groups, g.name)
	return nil
}

// scripts

type worldScripts struct{ *world }

func (s worldScripts) Pin(path string) (Pin, error) {
	if path == "../etc/passwd" {
		return Pin{}, errs.Field("pin script", "path", job.ReasonPath, `%q leaves the script folder`, path)
	}
	if path == "gone.sh" {
		return Pin{}, errs.Field("pin script", "path", job.ReasonScriptGone, "there is no script %q", path)
	}
	return s.pin(journal.Script{Generation: 7, Folder: "scripts", Name: path, SHA256: "5ha"})
}

func (s worldScripts) PinGeneration(sc journal.Script) (Pin, error) {
	s.mu.Lock()
	err := s.unpinned
	s.mu.Unlock()
	if err != nil {
		return Pin{}, err
	}
	return s.pin(sc)
}

func (s worldScripts) pin(sc journal.Script) (Pin, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pins++
	return Pin{
		Path: "/gen/7/" + sc.Name, Root: "/gen/7", Source: "/src/" + sc.Name, Script: sc,
		Release: func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.pins--
		},
	}, nil
}

func (s worldScripts) Retain([]uint64) {}

func (s worldScripts) Conditions() []job.Condition { return nil }

func (s worldScripts) Index() job.ScriptIndex {
	return job.ScriptIndex{Generation: 7, Scripts: []job.ScriptInfo{{Path: "count.sh"}}}
}

func (s worldScripts) Changed() <-chan struct{} { return nil }

// helpers

func keyOf(id string) job.Key {
	k, err := parseAttemptID(id)
	if err != nil {
		panic("unreachable: " + err.Error())
	}
	return k
}

func testKey(n byte) job.Key { return job.Key{Job: uuid.UUID{0: 1, 15: n}, Attempt: 1} }

// order is a start of the script count.sh with arguments for the world.
func order(n byte, args ...string) job.StartOrder {
	return job.StartOrder{
		Key: testKey(n), Fence: job.Fence{Term: 1, Counter: uint64(n)},
		Spec: job.Spec{
			Command: "bash", Path: "count.sh", Args: args,
			Grace: job.DefaultGrace, Linger: job.DefaultLinger,
		},
	}
}

func stopOrder(n byte, grace time.Duration) job.StopOrder {
	return job.StopOrder{Key: testKey(n), Fence: job.Fence{Term: 1, Counter: 200}, Grace: &grace, Reason: job.ReasonUser}
}

// bench is one life of a worker over a world.
type bench struct {
	*Worker
	t      *testing.T
	w      *world
	j      *journal.Journal
	cancel context.CancelFunc
	over   chan error
	data   string
	began  time.Time
}

type option func(*Config)

// begin runs a worker on data; the same data and world again is a restart.
func begin(t *testing.T, w *world, data string, opts ...option) *bench {
	t.Helper()
	j, st, err := journal.Open(journal.Config{Path: data + "/journal", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	w.feed = NewFeed()
	w.pins = 0 // they die with their process
	c := Config{
		Name: "w1", Data: data, Slots: 4, Policy: Policy{Commands: []string{"true"}, AllowRoot: true},
		Journal: j, State: st, Output: worldOutput{w}, Scripts: worldScripts{w}, Groups: worldGroups{w}, Runners: w, Feed: w.feed,
		Log: slog.New(slog.DiscardHandler), BootID: "boot-1", Environ: []string{"PATH=/usr/bin:/bin", "SECRET=x", "LC_ALL=C"},
	}
	w.mu.Unlock()
	// One clock for all lives of a worker: seconds since 2000, where synctest begins.
	c.Now = func() Instant {
		now := time.Now()
		return Instant{Boot: now.Sub(time.Date(1999, 12, 31, 0, 0, 0, 0, time.UTC)), Wall: now}
	}
	for _, o := range opts {
		o(&c)
	}
	wk, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	b := &bench{Worker: wk, t: t, w: w, j: j, cancel: cancel, over: make(chan error, 1), data: data, began: time.Now()}
	go func() { b.over <- wk.Run(ctx) }()
	return b
}

// crash ends this life without any goodbye to jobs.
func (b *bench) crash() {
	b.t.Helper()
	b.cancel()
	if err := <-b.over; err != nil && !errors.Is(err, context.Canceled) {
		b.t.Fatal(err)
	}
	if err := b.j.Close(); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) start(o job.StartOrder) job.Report {
	b.t.Helper()
	r, err := b.Start(b.t.Context(), o)
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

// wait returns the report once the attempt is in one of the states.
func (b *bench) wait(n byte, states ...job.State) job.Report {
	b.t.Helper()
	for range 100_000 {
		r, err := b.Attempt(b.t.Context(), testKey(n))
		if err == nil {
			for _, s := range states {
				if r.State == s {
					return r
				}
			}
			if r.State.Terminal() {
				b.t.Fatalf("attempt %d is %s (%s: %s), want %v", n, r.State, r.Reason, r.Message, states)
			}
		}
		time.Sleep(time.Millisecond) // fake time: every use is inside a bubble
	}
	b.t.Fatalf("attempt %d never became %v", n, states)
	return job.Report{}
}

// clean checks that nothing is held any more (P17).
func (b *bench) clean() {
	b.t.Helper()
	time.Sleep(time.Second)
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	if len(b.w.groups) != 0 || b.w.pins != 0 {
		b.t.Errorf("left over: %d groups, %d pins", len(b.w.groups), b.w.pins)
	}
	for id, p := range b.w.procs {
		if p.main {
			b.t.Errorf("left over: process of %s", id)
		}
		if !b.w.acked[id] {
			b.t.Errorf("the plugin was never told to forget %s", id)
		}
	}
	for k, o := range b.w.outputs {
		if !o.finished {
			b.t.Errorf("output of %v was not finished", k)
		}
	}
}
