package pluginhost

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/plugins/pidfd"
	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// Restarts of a plugin that keeps dying.
const (
	firstBackoff = 50 * time.Millisecond
	mostBackoff  = 10 * time.Second
	unhealthyAt  = 3 // deaths in a row
	healthyAfter = 10 * time.Second
	futileBefore = time.Second
)

// The gate of frames to a plugin.
const (
	gateFrom  = 32 // attempts that are with it
	gateLast  = 2  // things in the frame before
	gateEach  = 8 * time.Microsecond
	gateWidth = time.Millisecond
)

// States of a plugin, as people see them.
const (
	stateStarting  = "starting"
	stateReady     = "ready"
	stateDraining  = "draining"
	stateUnhealthy = "unhealthy"
	stateRefused   = "refused"
)

// hosted is one version of one plugin over all its processes.
type hosted struct {
	host     *Host
	manifest Manifest

	mu       sync.Mutex // guards the fields below
	state    string
	message  string
	since    time.Time // of the state
	process  *process  // nil between two
	begun    time.Time // of the process, or of its adoption
	proven   bool      // its canary has passed
	settling bool      // the last one is dead, and its jobs are not taken over yet
	attempts map[string]*given
	pending  *runnerv1.SessionRequest
	wake     chan struct{}
	draining bool
	leave    chan struct{}      // closed when it begins to drain
	late     bool               // the process was started while it drained, for what is left
	deaths   int                // in a row, of lives that were short and started nothing, for people
	futile   int                // lives in a row that were short and started nothing
	useful   bool               // the present life has started a job
	session  context.CancelFunc // ends the present session, for a fresh replay
	resumed  bool               // attempts holds all that the worker has not on disk: others are acknowledged
	graves   []*grave
}

func newHosted(h *Host, m Manifest) *hosted {
	return &hosted{
		host: h, manifest: m, state: stateStarting, since: time.Now(), attempts: map[string]*given{},
		pending: &runnerv1.SessionRequest{}, wake: make(chan struct{}, 1), leave: make(chan struct{}),
	}
}

func (p *hosted) key() string { return p.manifest.Name + "@" + p.manifest.SHA256 }

func (p *hosted) info() job.RunnerInfo {
	p.mu.Lock()
	defer p.mu.Unlock()
	live := 0
	for _, g := range p.attempts {
		if !g.exited {
			live++
		}
	}
	return job.RunnerInfo{
		Name: p.manifest.Name, Version: p.manifest.Version, SHA256: p.manifest.SHA256, State: p.state,
		Jobs: live, Commands: p.manifest.Commands, Message: p.message,
	}
}

func (p *hosted) set(state, message string) {
	p.mu.Lock()
	changed := p.state != state || p.message != message
	if p.state != state {
		p.since = time.Now()
	}
	p.state, p.message = state, message
	p.mu.Unlock()
	if changed {
		p.host.note()
	}
}

// add queues something for the plugin.
func (p *hosted) add(change func(f *runnerv1.SessionRequest)) {
	p.mu.Lock()
	change(p.pending)
	p.mu.Unlock()
	p.nudge()
}

func (p *hosted) nudge() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// start queues a start, unless the plugin drains: it may be gone by then, and
// nobody would start what came too late.
func (p *hosted) start(s *runnerv1.Start) (taken bool) {
	g := newGiven()
	p.add(func(f *runnerv1.SessionRequest) {
		if p.draining {
			return
		}
		taken = true
		g.start, g.at, g.stdout, g.stderr = s, time.Now(), s.GetStdout(), s.GetStderr()
		for _, kv := range s.GetEnv() {
			if strings.HasPrefix(kv, "DROVER_MARK=") {
				g.mark = kv
			}
		}
		p.attempts[s.GetId()] = g
		f.Starts = append(f.Starts, s)
	})
	return taken
}

// isForeign tells whether its process was started by an earlier worker.
func (p *hosted) isForeign() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.process != nil && p.process.foreign
}

// ack forgets attempts whose end is on the worker's disk.
func (p *hosted) ack(ids []string) (known []string) {
	defer p.closeGraves(ids)
	p.add(func(f *runnerv1.SessionRequest) {
		for _, id := range ids {
			if g, ok := p.attempts[id]; ok {
				g.letGo()
				delete(p.attempts, id)
				known = append(known, id)
			}
		}
		f.Acks = append(f.Acks, known...)
	})
	p.release()
	return known
}

func (p *hosted) empty() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.attempts) == 0
}

// run keeps the plugin going until ctx ends, or until it is drained.
func (p *hosted) run(ctx context.Context, proc *process) {
	backoff := firstBackoff
	for ctx.Err() == nil {
		if proc == nil {
			if p.unneeded() {
				return
			}
			var err error
			if proc, err = p.begin(ctx); err != nil {
				proc = nil
				if p.unneeded() { // and that is why
					return
				}
				p.failed(err)
				backoff = p.pause(ctx, backoff)
				continue
			}
		}
		begin := time.Now()
		p.attach(ctx, proc)
		p.host.promote(p)
		p.serve(ctx, proc)
		if proc.foreign && !p.host.knowsAttempts(ctx) || ctx.Err() != nil {
			return
		}
		drained := p.unneeded()
		p.died(proc)
		proc = nil
		if drained {
			return
		}
		if p.judge(time.Since(begin)) {
			backoff = firstBackoff
		}
		p.sicken()
		backoff = p.pause(ctx, backoff)
	}
}

// begin starts a process, and tries the first one of a version with a canary. Both
// take their time, and are given up when the plugin is not needed any more.
func (p *hosted) begin(ctx context.Context) (*process, error) {
	ctx, cancel := p.whileNeeded(ctx)
	defer cancel()
	p.mu.Lock()
	trial := !p.proven && !p.draining
	p.mu.Unlock()
	proc, err := p.host.launch(ctx, p.manifest, trial)
	if err != nil || !trial {
		return proc, err
	}
	if err = try(ctx, proc, p.host.config.Canary); err == nil {
		proc.Trial = false
		err = p.host.save(&proc.record)
	}
	if err != nil {
		p.host.discard(proc)
		return nil, err
	}
	p.mu.Lock()
	p.proven = true
	p.mu.Unlock()
	return proc, nil
}

// whileNeeded ends with ctx, or when the plugin begins to drain with nothing to do.
func (p *hosted) whileNeeded(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	var wait sync.WaitGroup
	wait.Go(func() {
		select {
		case <-ctx.Done():
		case <-p.leave:
			if p.empty() {
				cancel()
			}
		}
	})
	return ctx, func() { cancel(); wait.Wait() }
}

// judge looks at the life of a process that has died, and tells whether it was a
// good one. Starts are given up only on a plugin that does nothing but die: one
// that is killed again and again, and works in between, still gets to them.
func (p *hosted) judge(lived time.Duration) (good bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if lived > healthyAfter || p.useful {
		p.deaths = 0
	}
	if lived > futileBefore || p.useful {
		p.futile = 0
	} else {
		p.futile++
	}
	p.useful = false
	return lived > healthyAfter
}

func (p *hosted) isDraining() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.draining
}

// unneeded: it takes nothing new, and has nothing.
func (p *hosted) unneeded() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.draining && len(p.attempts) == 0
}

func (p *hosted) attach(ctx context.Context, proc *process) {
	p.mu.Lock()
	p.process, p.begun = proc, time.Now()
	draining, sick := p.draining, p.deaths >= unhealthyAt
	p.mu.Unlock()
	p.readopt()
	switch {
	case draining && p.keep():
		p.set(stateDraining, "")
	case draining: // it was told to go while it was launched
		p.set(stateDraining, "")
		p.shutdown(ctx, proc)
	case sick:
		p.set(stateUnhealthy, "it is up again after many deaths, and counts as ready once it has stayed up for "+healthyAfter.String())
	default:
		p.set(stateReady, "")
	}
}

func (p *hosted) failed(err error) {
	p.mu.Lock()
	p.deaths++
	p.futile++
	deaths := p.deaths
	p.mu.Unlock()
	stays := p.host.standIn(p)
	p.host.config.Log.Warn("plugin not started", "runner", p.manifest.Name, "version", p.manifest.Version, "error", err, "in_service", stays)
	state, message := stateStarting, oneLine(err)
	if deaths >= unhealthyAt || stays != "" || errors.Is(err, errCanary) {
		state = stateUnhealthy
	}
	if stays != "" {
		message += "; version " + stays + " stays in service"
	}
	p.set(state, message)
}

// pause waits before the next start; waiting starts fail once the plugin is
// unhealthy: they were never sent.
func (p *hosted) pause(ctx context.Context, d time.Duration) time.Duration {
	p.mu.Lock()
	sick := p.futile >= unhealthyAt
	p.mu.Unlock()
	if sick {
		p.abandon()
	}
	leave := p.leave
	if !p.empty() { // it is needed for what it has
		leave = nil
	}
	select {
	case <-ctx.Done():
	case <-leave:
	case <-time.After(d):
	}
	return min(2*d, mostBackoff)
}

// abandon refuses the starts that no plugin process has seen.
func (p *hosted) abandon() {
	p.mu.Lock()
	var out []Event
	for _, s := range p.pending.GetStarts() {
		delete(p.attempts, s.GetId())
		out = append(out, notStarted(p.key(), s.GetId(), "RUNNER_UNAVAILABLE",
			fmt.Sprintf("the runner %s does not stay up: %s", p.manifest.Name, p.message)))
	}
	p.pending.Starts = nil
	p.mu.Unlock()
	p.host.emit(out)
}

func notStarted(plugin, id, reason, message string) Event {
	return Event{Plugin: plugin, ID: id, Exited: &runnerv1.Exited{
		Id: id, Result: &runnerv1.Exited_Error{Error: &runnerv1.StartError{Reason: reason, Message: message}},
	}}
}

func oneLine(err error) string {
	return strings.Join(strings.Fields(err.Error()), " ")
}

// ended is the news of an exit: without a result the process is gone, and nobody
// saw how.
func (p *hosted) ended(e *runnerv1.Exited) Event {
	switch {
	case e.GetResult() == nil:
		return Event{Plugin: p.key(), ID: e.GetId(), Lost: true}
	case e.GetFromJournal():
		return Event{Plugin: p.key(), ID: e.GetId(), Exited: e, Evidence: job.ExitJournal}
	case e.GetAdopted():
		return Event{Plugin: p.key(), ID: e.GetId(), Exited: e, Evidence: job.PidFD}
	default:
		return Event{Plugin: p.key(), ID: e.GetId(), Exited: e, Evidence: job.Wait}
	}
}

// unknown tells of held attempts that the plugin has never heard of; p.mu is held.
func (p *hosted) unknown() (out []Event, orphans []string) {
	for id, g := range p.attempts {
		switch {
		case !g.held:
		case g.begun != nil || g.ended != nil:
			// Another process began it, and this one was not asked to watch it.
			orphans = append(orphans, id)
		default:
			g.held = false
			delete(p.attempts, id)
			if g.pid == 0 {
				out = append(out, Event{Plugin: p.key(), ID: id, Unknown: true})
			} else {
				out = append(out, Event{Plugin: p.key(), ID: id, Lost: true})
			}
		}
	}
	return out, orphans
}

// drain takes nothing new and ends the plugin after its last job.
func (p *hosted) drain(ctx context.Context) {
	p.mu.Lock()
	if !p.draining {
		p.draining = true
		close(p.leave)
	}
	proc := p.process
	p.mu.Unlock()
	p.set(stateDraining, "")
	if proc != nil {
		p.host.markDraining(proc.Dir)
		p.shutdown(ctx, proc)
	}
}

// shutdown asks a plugin process to end after its last job.
func (p *hosted) shutdown(ctx context.Context, proc *process) {
	ctx, cancel := context.WithTimeout(ctx, infoTimeout)
	defer cancel()
	// A plugin without jobs ends so quickly that its answer may be lost.
	if _, err := proc.api.Shutdown(ctx, &runnerv1.ShutdownRequest{}); err != nil && pidfd.Alive(proc.PID, proc.StartTicks) {
		p.host.config.Log.Warn("plugin not told to end", "runner", p.manifest.Name, "error", err)
	}
}

// signal reaches the main process of an attempt, wherever it is.
func (p *hosted) signal(id string, sig syscall.Signal) {
	if p.host.adopter.signal(id, sig) {
		return
	}
	p.add(func(f *runnerv1.SessionRequest) {
		f.Signals = append(f.Signals, &runnerv1.Signal{Id: id, Signal: int32(sig)})
	})
}
