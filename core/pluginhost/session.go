package pluginhost

import (
	"context"
	"maps"
	"slices"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"

	"github.com/droverhq/drover/plugins/pidfd"
	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// This file is the talk with one plugin process: frames down, and frames up turned
// into events.

// serve speaks with one plugin process until it dies or ctx ends.
func (p *hosted) serve(ctx context.Context, proc *process) {
	for ctx.Err() == nil {
		sctx, cancel := context.WithCancel(ctx)
		p.mu.Lock()
		p.session = cancel
		p.mu.Unlock()
		p.askAgain()
		stream, err := proc.api.Session(sctx)
		again := false
		if err == nil {
			var wait sync.WaitGroup
			wait.Go(func() { p.send(sctx, stream) })
			p.receive(stream)
			again = sctx.Err() != nil // resync ended it
			cancel()
			p.nudge()
			wait.Wait()
		}
		cancel()
		if ctx.Err() != nil || !again && !p.survives(ctx, proc) {
			return
		}
	}
}

// askAgain repeats the starts that the plugin has not answered: one that it has not
// begun is dropped with the session that it came in. What it has begun starts nothing;
// what a process before it has begun has a pid, and is not asked of this one (P2).
func (p *hosted) askAgain() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(p.attempts)) {
		g := p.attempts[id]
		if g.start != nil && g.pid == 0 && !g.exited && !slices.Contains(p.pending.GetStarts(), g.start) {
			p.pending.Starts = append(p.pending.Starts, g.start)
		}
	}
}

// resync opens a new session: the plugin then tells again all that it has, and
// what nobody waits for is acknowledged.
func (p *hosted) resync() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.resumed = true
	if p.session != nil {
		p.session()
	}
}

// survives waits a moment to learn whether a broken stream means a dead plugin.
func (p *hosted) survives(ctx context.Context, proc *process) bool {
	wait := 20 * time.Millisecond
	if p.unneeded() {
		wait = time.Minute // it has said farewell and is on its way out
	}
	for end := time.Now().Add(wait); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(time.Millisecond) {
		if !pidfd.Alive(proc.PID, proc.StartTicks) {
			return false
		}
	}
	return pidfd.Alive(proc.PID, proc.StartTicks)
}

// send carries frames down; what gathers while one is sent makes the next.
func (p *hosted) send(ctx context.Context, stream grpc.BidiStreamingClient[runnerv1.SessionRequest, runnerv1.SessionResponse]) {
	last := 0
	for {
		p.mu.Lock()
		f := cutFrame(p.pending)
		p.mu.Unlock()
		if n := len(f.GetStarts()) + len(f.GetSignals()) + len(f.GetAcks()) + len(f.GetAdopts()); n > 0 {
			last = n
			if err := stream.Send(f); err != nil {
				// Whether it arrived is unknown: a start of a known id starts
				// nothing, so all of it may be said again (P2).
				p.mu.Lock()
				f.Starts = append(f.Starts, p.pending.GetStarts()...)
				f.Signals = append(f.Signals, p.pending.GetSignals()...)
				f.Acks = append(f.Acks, p.pending.GetAcks()...)
				f.Adopts = append(f.Adopts, p.pending.GetAdopts()...)
				p.pending = f
				p.mu.Unlock()
				return
			}
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
			p.gather(last)
		}
	}
}

// gather waits a moment for more to send while many attempts come and go: the
// plugin has enough to do meanwhile, and is woken less often. last is how many
// things the last frame held.
func (p *hosted) gather(last int) {
	p.mu.Lock()
	n := len(p.attempts)
	p.mu.Unlock()
	if n >= gateFrom && last >= gateLast {
		time.Sleep(min(gateWidth, time.Duration(n)*gateEach))
	}
}

// receive turns frames into events until the stream breaks.
func (p *hosted) receive(stream grpc.BidiStreamingClient[runnerv1.SessionRequest, runnerv1.SessionResponse]) {
	for {
		f, err := stream.Recv()
		if err != nil {
			return
		}
		var out []Event
		foreign := p.foreign(f)
		p.mu.Lock()
		for _, id := range f.GetBeginning() {
			if g := p.attempts[id]; g != nil {
				g.held = false // it tells what comes of it
			}
		}
		for _, s := range f.GetStarted() {
			g := p.attempts[s.GetId()]
			if fd, ok := foreign[s.GetId()]; ok {
				delete(foreign, s.GetId()) // a frame may name an attempt twice
				if g == nil || g.handle >= 0 || g.adopted {
					_ = syscall.Close(fd)
				} else {
					g.handle = fd
				}
			}
			if g != nil {
				g.held = false
				g.start = nil
				if g.pid == 0 {
					p.useful = true
					g.pid, g.ticks = int(s.GetPid()), s.GetStartTicks()
					out = append(out, Event{Plugin: p.key(), ID: s.GetId(), Started: s})
				}
			}
		}
		for _, e := range f.GetExited() {
			switch g := p.attempts[e.GetId()]; {
			case g == nil && p.resumed:
				// The worker has it on disk since an earlier life, and its word did
				// not reach the plugin.
				p.pending.Acks = append(p.pending.Acks, e.GetId())
				p.nudge()
			case g != nil && g.adopted && e.GetResult() == nil:
				// It came too late to see more, and this process watches, too.
			case g != nil && !g.exited:
				g.held, g.exited, g.start = false, true, nil
				g.letGo()
				out = append(out, p.ended(e))
			}
		}
		var orphans []string
		if f.GetSynced() {
			news, left := p.unknown()
			out, orphans = append(out, news...), left
		}
		p.mu.Unlock()
		p.host.emit(out)
		for _, id := range orphans {
			p.settleOne(id, nil, nil, nil)
		}
	}
}
