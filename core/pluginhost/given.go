package pluginhost

import (
	"syscall"
	"time"

	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// given is an attempt that was handed to the plugin and not acknowledged.
type given struct {
	start   *runnerv1.Start // nil once it is confirmed, or after a restart of the worker
	at      time.Time       // of start
	mark    string          // DROVER_MARK=... of its environment
	stdout  string          // named pipes
	stderr  string
	pid     int
	ticks   uint64
	handle  int // pidfd of a job whose plugin is no child of this process, or -1
	exited  bool
	adopted bool
	held    bool // known from an earlier worker, not confirmed by the plugin yet
	// What the journal of a dead process says of a held one.
	begun *runnerv1.Started
	ended *runnerv1.Exited
}

func newGiven() *given { return &given{handle: -1} }

// letGo closes the handle.
func (g *given) letGo() {
	if g.handle >= 0 {
		_ = syscall.Close(g.handle)
		g.handle = -1
	}
}
