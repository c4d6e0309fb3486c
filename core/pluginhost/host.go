// Package pluginhost finds, verifies, launches, reattaches, replaces and drains
// runner plugins, and carries starts to them and news of processes back.
package pluginhost

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/plugins/pidfd"
	"github.com/droverhq/drover/plugins/runner"
	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// Pace of looking at the plugin folder and for orphans.
const (
	rescanAfter = 50 * time.Millisecond // of quiet after a change
	rescanEvery = 10 * time.Second
	reapEvery   = 2 * time.Second
)

// Config configures a Host.
type Config struct {
	Dir    string // plugin folder
	State  string // folder for private copies, sockets, journals and records
	BootID string // identity of the host's boot
	Log    *slog.Logger
	// Events receives news in order. It must not block.
	Events func([]Event)
	// Idle is how long a plugin without worker and work lives; 0 for ever.
	Idle time.Duration
	// Canary bounds the canary of a new version, from its start to its end; 0: 20 s.
	Canary time.Duration
}

// Event is news of one attempt; exactly one field beside Plugin, ID and
// Evidence is set.
type Event struct {
	Plugin   string // name@sha256
	ID       string
	Started  *runnerv1.Started
	Exited   *runnerv1.Exited
	Evidence job.Evidence // of Exited
	Lost     bool         // proved gone without a result
	Unknown  bool         // the plugin was never told: nothing was started
}

// Runner is one version of one plugin.
type Runner struct{ Name, Version, SHA256 string }

// Attempt is what a restarted worker knows of an attempt.
type Attempt struct {
	ID         string
	Runner     Runner
	PID        int // 0: no start was confirmed
	StartTicks uint64
	Stdout     string // named pipes, for whoever watches it
	Stderr     string
}

// Host runs the plugins of one worker. Its methods may be called concurrently
// while Run runs.
type Host struct {
	config  Config
	adopter *adopter
	changed chan struct{}
	ready   chan struct{} // closed after the first scan
	told    chan struct{} // closed when Resume has said what attempts there are

	emitMu sync.Mutex // keeps the order of events

	mu      sync.Mutex         // guards the fields below
	byKey   map[string]*hosted // takes starts, or will
	leaving map[*hosted]bool   // draining, and its version was installed again
	current map[string]*hosted // by name: takes new jobs
	next    map[string]*hosted // by name: takes over once its canary has passed
	refused map[string]refusal
	owners  map[string]*hosted // by attempt id
	dead    []record           // plugins of an earlier worker that are gone
	retired map[string]*hosted // by key: those that had new jobs of the earlier worker, until Resume
	base    context.Context    //nolint:containedctx // life of the plugins' goroutines, from Run to Close
	cancel  context.CancelFunc
	wait    sync.WaitGroup
}

// New returns a host; it looks at the plugin folder when Run runs. This
// process becomes a subreaper: jobs of a dead plugin become its children.
func New(c Config) (*Host, error) {
	const op = "open the plugin host"
	for _, d := range []string{"bin", "plugins", "run"} {
		if err := os.MkdirAll(filepath.Join(c.State, d), 0o700); err != nil {
			return nil, errs.E(op, errs.Precondition, "PLUGIN_STATE", err)
		}
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return nil, errs.E(op, errs.Precondition, "PLUGIN_FOLDER", err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, errs.E(op, errs.Internal, "SUBREAPER", err)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.Canary = cmp.Or(c.Canary, canaryTimeout)
	h := &Host{
		config: c, changed: make(chan struct{}, 1), ready: make(chan struct{}), told: make(chan struct{}),
		byKey: map[string]*hosted{}, leaving: map[*hosted]bool{}, current: map[string]*hosted{},
		next: map[string]*hosted{}, refused: map[string]refusal{}, owners: map[string]*hosted{},
		retired: map[string]*hosted{},
	}
	h.base, h.cancel = context.WithCancel(context.Background())
	var err error
	if h.adopter, err = newAdopter(h.emit, h.orphanEnded); err != nil {
		return nil, errs.E(op, errs.Internal, "ADOPTER", err)
	}
	return h, nil
}

// emit hands events on, one caller at a time.
func (h *Host) emit(evs []Event) {
	if len(evs) == 0 {
		return
	}
	h.emitMu.Lock()
	defer h.emitMu.Unlock()
	h.config.Events(evs)
}

func (h *Host) note() {
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

// Changed is told when Runners has news.
func (h *Host) Changed() <-chan struct{} { return h.changed }

// Run watches the plugin folder until ctx ends. Plugins and their jobs go on
// after that; Shutdown ends them.
func (h *Host) Run(ctx context.Context) error {
	h.wait.Go(func() {
		if err := h.adopter.run(h.base); err != nil {
			h.config.Log.Error("adopted jobs are not waited for", "error", err)
		}
	})
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch the plugin folder: %w", err)
	}
	defer func() { _ = watcher.Close() }()
	if err := watcher.Add(h.config.Dir); err != nil {
		return fmt.Errorf("watch the plugin folder: %w", err)
	}
	if err := h.takeOver(ctx); err != nil {
		return err
	}
	h.scan()
	close(h.ready)
	rescan, reap := time.NewTicker(rescanEvery), time.NewTicker(reapEvery)
	defer rescan.Stop()
	defer reap.Stop()
	var quiet <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-watcher.Events:
			quiet = time.After(rescanAfter)
		case err := <-watcher.Errors:
			h.config.Log.Warn("plugin folder watch", "error", err)
			quiet = time.After(rescanAfter)
		case <-quiet:
			quiet = nil
			h.scan()
		case <-rescan.C:
			h.scan()
		case <-reap.C:
			h.reapOrphans()
			h.releaseStuck(time.Now())
			h.recovered()
		}
	}
}

// Close lets go of the plugins: they and their jobs go on, for the next worker.
func (h *Host) Close() {
	h.cancel()
	h.wait.Wait()
}

// Processes lists the plugin processes by number.
func (h *Host) Processes() (pids []int) {
	for _, p := range h.all() {
		p.mu.Lock()
		if p.process != nil {
			pids = append(pids, p.process.PID)
		}
		p.mu.Unlock()
	}
	return pids
}

// Shutdown ends every plugin after its last job, and waits for that (P17). Those that
// are not gone by the end of ctx are killed.
func (h *Host) Shutdown(ctx context.Context) error {
	for _, p := range h.all() {
		p.drain(ctx)
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		left := len(h.all())
		if left == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("end the plugins: %d did not end in time and are killed: %w", left, ctx.Err()), h.kill())
		case <-tick.C:
		}
	}
}

// kill ends the plugin processes that withstand a shutdown, such as one that is
// stopped, and waits for that.
func (h *Host) kill() error {
	for _, p := range h.all() {
		p.mu.Lock()
		proc := p.process
		p.mu.Unlock()
		if proc == nil {
			continue
		}
		fd, err := pidfd.Open(proc.PID, proc.StartTicks)
		if err != nil {
			continue // it has ended
		}
		err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		if err := errors.Join(err, unix.Close(fd)); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill plugin %d: %w", proc.PID, err)
		}
	}
	for end := time.Now().Add(endWait); len(h.all()) > 0; time.Sleep(endPause) {
		if time.Now().After(end) {
			return fmt.Errorf("kill the plugins: %d are left", len(h.all()))
		}
	}
	return nil
}

func (h *Host) isPlugin(pid int) bool { return slices.Contains(h.Processes(), pid) }

// Runners lists every plugin: those that take jobs, drain, or are refused.
func (h *Host) Runners() []job.RunnerInfo {
	var out []job.RunnerInfo
	for _, p := range h.all() {
		out = append(out, p.info())
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.refused {
		out = append(out, r.info)
	}
	slices.SortFunc(out, func(a, b job.RunnerInfo) int { return strings.Compare(a.Name+a.SHA256, b.Name+b.SHA256) })
	return out
}

// Lookup finds the runner of a command.
func (h *Host) Lookup(command string) (Runner, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, p := range h.current {
		if name == command || slices.Contains(p.manifest.Commands, command) {
			return Runner{name, p.manifest.Version, p.manifest.SHA256}, nil
		}
	}
	if r, ok := h.refused[command]; ok {
		return Runner{}, errs.E("find a runner", errs.Precondition, job.ReasonRunnerFailed, errors.New(r.info.Message))
	}
	return Runner{}, errs.E("find a runner", errs.NotFound, job.ReasonNoRunner, fmt.Errorf("no plugin serves the command %q", command))
}

// Interpreter returns the name of the program that a runner runs scripts with, as its
// manifest has it; "" when it names none.
func (h *Host) Interpreter(r Runner) string { return h.description(r).Interpreter }

// Restricts tells whether a runner applies no_new_privs and rlimits.
func (h *Host) Restricts(r Runner) bool { return h.description(r).Restricts }

func (h *Host) description(r Runner) runner.Description {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p := h.byKey[r.Name+"@"+r.SHA256]; p != nil {
		return p.manifest.Description
	}
	return runner.Description{}
}

// Start hands a start to a runner. Its result arrives as an event.
func (h *Host) Start(r Runner, s *runnerv1.Start) error {
	h.mu.Lock()
	p := h.byKey[r.Name+"@"+r.SHA256]
	if p != nil {
		h.owners[s.GetId()] = p // before any news of it
	}
	h.mu.Unlock()
	if p == nil || !p.start(s) {
		h.mu.Lock()
		delete(h.owners, s.GetId())
		h.mu.Unlock()
		return errs.E("start a process", errs.Precondition, job.ReasonRunnerFailed, fmt.Errorf("the runner %s %s takes no more jobs", r.Name, r.Version))
	}
	return nil
}

// Signal signals the main process of an attempt; unknown ones are no error.
func (h *Host) Signal(id string, sig syscall.Signal) error {
	h.mu.Lock()
	p := h.owners[id]
	h.mu.Unlock()
	if p != nil {
		p.signal(id, sig)
	}
	return nil
}

// Ack tells the plugins that the ends of attempts are on the worker's disk.
func (h *Host) Ack(ids ...string) {
	byOwner := map[*hosted][]string{}
	h.mu.Lock()
	for _, id := range ids {
		if p := h.owners[id]; p != nil {
			byOwner[p] = append(byOwner[p], id)
			delete(h.owners, id)
		}
	}
	h.mu.Unlock()
	for p, ids := range byOwner {
		p.ack(ids)
	}
}

// takeOver attaches the plugins of an earlier worker that live. What dead ones
// left is kept until Resume asks for it.
func (h *Host) takeOver(ctx context.Context) error {
	records, lost, err := h.records()
	if err != nil {
		return err
	}
	left, err := h.sweep(records, lost)
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.dead = append(h.dead, left...)
	h.mu.Unlock()
	for _, r := range records {
		proc, err := h.reattach(ctx, r)
		if err != nil {
			h.config.Log.Info("plugin of an earlier worker is gone", "runner", r.Name, "error", err)
			h.mu.Lock()
			h.dead = append(h.dead, r)
			h.mu.Unlock()
			continue
		}
		if r.Trial { // it has no job; its version is tried again
			h.discard(proc)
			continue
		}
		h.config.Log.Info("plugin attached again", "runner", r.Name, "version", r.Version, "pid", r.PID)
		retires := h.retire(ctx, proc)
		m := Manifest{SHA256: r.SHA256}
		m.Name, m.Version, m.Commands = r.Name, r.Version, proc.info.GetCommands()
		h.mu.Lock()
		p := h.host(m, proc, true)
		if retires {
			h.retired[p.key()] = p
			p = h.host(m, nil, true)
		}
		if !p.isDraining() {
			h.current[r.Name] = p
		}
		h.mu.Unlock()
	}
	return nil
}

// Resume takes over the attempts of an earlier worker: events tell what became
// of each. Run must have begun. Call it once, also with no attempts, so that
// what dead plugins left is cleaned up.
func (h *Host) Resume(ctx context.Context, attempts []Attempt) error {
	select {
	case <-h.ready:
	case <-ctx.Done():
		return errs.E("resume plugins", errs.Canceled, "", ctx.Err())
	}
	byKey := map[string][]Attempt{}
	for _, a := range attempts {
		k := a.Runner.Name + "@" + a.Runner.SHA256
		byKey[k] = append(byKey[k], a)
	}
	h.mu.Lock()
	dead := h.dead
	h.dead = nil
	h.mu.Unlock()
	for _, r := range dead {
		h.buryAmong(r, byKey)
	}
	for k, as := range byKey {
		as = h.holdLeaving(k, as)
		h.mu.Lock()
		p := cmp.Or(h.retired[k], h.byKey[k]) // nothing was given to its successor yet
		h.mu.Unlock()
		if p != nil {
			h.hold(p, as, true)
			continue
		}
		for _, a := range as { // no process and no journal of it
			h.alone(k, a)
		}
	}
	h.mu.Lock()
	clear(h.retired)
	h.mu.Unlock()
	close(h.told)
	for _, p := range h.all() {
		p.resync()
	}
	return nil
}

// heir is the plugin that watches over what another process of it has left: the
// process that was watching, the one that came after it, the same version, or the one
// that takes new jobs. Without one a host of its own keeps the books. All that one
// process left has one heir: who was asked to watch was asked to watch it all.
func (h *Host) heir(name, version, sum string, left []Attempt) *hosted {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.every() {
		if p.manifest.Name == name && p.watches(left) {
			return p
		}
	}
	if p := cmp.Or(h.retired[name+"@"+sum], h.byKey[name+"@"+sum]); p != nil {
		return p
	}
	if p := h.current[name]; p != nil {
		return p
	}
	m := Manifest{SHA256: sum}
	m.Name, m.Version = name, version
	p := newHosted(h, m)
	p.draining = true // it is never started
	return p
}

// buryAmong is bury among the attempts of its version, or of every one of its name when
// its record is lost.
func (h *Host) buryAmong(r record, byKey map[string][]Attempt) {
	if r.SHA256 != "" {
		k := r.Name + "@" + r.SHA256
		byKey[k] = h.bury(r, byKey[k])
		return
	}
	var all []Attempt
	for k, as := range byKey {
		if strings.HasPrefix(k, r.Name+"@") {
			all = append(all, as...)
			byKey[k] = nil
		}
	}
	for _, a := range h.bury(r, all) {
		k := a.Runner.Name + "@" + a.Runner.SHA256
		byKey[k] = append(byKey[k], a)
	}
}

// bury settles the attempts that a dead plugin process began to start, and
// returns the others: another process has them, or none.
func (h *Host) bury(r record, attempts []Attempt) (others []Attempt) {
	r.awaitEnd()
	left, err := runner.ReadJournal(r.Dir)
	if err != nil {
		h.config.Log.Error("exit journal not read", "runner", r.Name, "error", err)
	}
	if r.PID != 0 { // else it never came to a journal
		h.tellDamage(r.Dir, &left)
	}
	var mine []Attempt
	for _, a := range attempts {
		if left.Damaged && a.PID == 0 && r.PID != 0 && !mentions(left, a.ID) {
			left.Started[a.ID] = &runnerv1.Started{Id: a.ID} // as far as can be known (P2)
		}
		if mentions(left, a.ID) {
			mine = append(mine, a)
		} else {
			others = append(others, a)
		}
	}
	p := h.heir(r.Name, r.Version, r.SHA256, mine)
	p.inherit(r, left, h.hold(p, mine, false))
	return others
}

// hold makes attempts of an earlier worker known to a plugin; held ones are to
// be confirmed by it.
func (h *Host) hold(p *hosted, attempts []Attempt, held bool) (ids []string) {
	p.mu.Lock()
	for _, a := range attempts {
		g := newGiven()
		g.pid, g.ticks, g.stdout, g.stderr, g.held = a.PID, a.StartTicks, a.Stdout, a.Stderr, held
		p.attempts[a.ID] = g
		ids = append(ids, a.ID)
	}
	p.mu.Unlock()
	h.mu.Lock()
	for _, a := range attempts {
		h.owners[a.ID] = p
	}
	h.mu.Unlock()
	return ids
}

// alone settles an attempt without any record of its plugin.
func (h *Host) alone(plugin string, a Attempt) {
	if a.PID == 0 {
		h.emit([]Event{{Plugin: plugin, ID: a.ID, Unknown: true}})
		return
	}
	p := h.heir(a.Runner.Name, a.Runner.Version, a.Runner.SHA256, []Attempt{a})
	started := &runnerv1.Started{Id: a.ID, Pid: int64(a.PID), StartTicks: a.StartTicks}
	p.inherit(record{}, runner.Journal{Started: map[string]*runnerv1.Started{a.ID: started}}, h.hold(p, []Attempt{a}, false))
}

// orphanEnded notes the end of an adopted process.
func (h *Host) orphanEnded(id string) {
	h.mu.Lock()
	p := h.owners[id]
	h.mu.Unlock()
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if g := p.attempts[id]; g != nil {
		g.exited = true
	}
}
