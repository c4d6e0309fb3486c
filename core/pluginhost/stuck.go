package pluginhost

import (
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/plugins/pidfd"
)

// stuckAfter is how long a plugin may owe an answer to a start before its forks are
// looked at. By itself it lets go of them after a second.
const stuckAfter = 2 * time.Second

// owes tells whether the plugin has had a start for long and has not said what became of it.
func (p *hosted) owes(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, g := range p.attempts {
		if g.start != nil && g.pid == 0 && !g.exited && now.Sub(g.at) > stuckAfter {
			return true
		}
	}
	return false
}

// releaseStuck frees the plugins that a user of their jobs holds up. A child has that
// user before it executes its program, and can be stopped by it; until then the thread
// that forks waits in the kernel (vfork(2)). When the garbage collector of the plugin
// wants that thread to stop, everything in the plugin waits, too, and it cannot help
// itself.
func (h *Host) releaseStuck(now time.Time) {
	for _, p := range h.all() {
		if !p.owes(now) {
			continue
		}
		p.mu.Lock()
		proc := p.process
		p.mu.Unlock()
		if proc == nil {
			continue
		}
		if n := killStopped(proc.PID); n > 0 {
			h.config.Log.Warn("starts that were stopped before they executed their program are killed", "runner", p.manifest.Name, "pid", proc.PID, "processes", n)
		}
	}
}

// killStopped kills the children of a process that were stopped before they executed a
// program, and counts them.
func killStopped(parent int) (killed int) {
	for _, pid := range childrenOf(strconv.Itoa(parent)) {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it is gone
		}
		// Read once the handle is open: what it tells is of the same process.
		st, err := pidfd.ReadStat(pid)
		if err == nil && st.Parent == parent && st.Forked && (st.State == 'T' || st.State == 't') && unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil {
			killed++
		}
		_ = unix.Close(fd)
	}
	return killed
}
