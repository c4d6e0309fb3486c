// Package runnertest is the executable specification of drover.runner.v1. The
// three runners of drover and the Fake of this package pass it, in process and
// as plugins; a third party's runner is measured by it too.
package runnertest

import (
	"testing"
	"time"

	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// Harness says how a runner is reached and how it is told what to do.
type Harness struct {
	// Open makes a fresh plugin that is gone when the test ends; InProcess and
	// Launched make such functions.
	Open func(t testing.TB, o Options) *Plugin
	// Command of the requests. The suite writes shell scripts and asks for them
	// with this command. An absolute one is itself the interpreter.
	Command string
	// Interpreter is the program that Command runs scripts with; the suite finds it as
	// a worker does. "" is a runner that starts no processes: the cases that look at
	// processes are left out.
	Interpreter string
	// Path is a folder to look in before those of PATH.
	Path string
	// Wrap makes a script for the runner that behaves like a shell script; nil
	// takes the shell script itself.
	Wrap func(shell string) string
}

// Options of one plugin.
type Options struct {
	Idle time.Duration // see runner.ServerConfig
	By   []string      // a program and its arguments that execute the plugin, which is named after them
}

// Plugin is a runner behind its protocol.
type Plugin struct {
	Client runnerv1.RunnerServiceClient
	Dir    string          // of the exit journal
	PID    int             // of the process that serves it
	Ended  <-chan struct{} // closed when the plugin has ended
}

// quickStarts is the number of jobs of the case that looks for leaks.
const quickStarts = 1000

// Run runs the whole suite.
func Run(t *testing.T, h Harness) {
	// Alone, because it counts descriptors and goroutines of the process.
	t.Run("1,000 quick starts leave nothing behind", func(t *testing.T) { manyQuickStarts(t, h) })
	for _, c := range cases {
		if c.processes && h.Interpreter == "" {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.run(t, h)
		})
	}
}

// RunPlugin runs the suite with the plugin binary at path; the harness needs no
// Open. It adds what only a plugin can show: version skew and its description.
func RunPlugin(t *testing.T, path string, h Harness) {
	t.Helper()
	h.Open = Launched(path)
	Run(t, h)
	t.Run("a worker of another protocol is refused", func(t *testing.T) {
		t.Parallel()
		otherProtocol(t, path)
	})
	if h.Interpreter != "" {
		t.Run("a job is born as after a login, whatever the worker was started by", func(t *testing.T) {
			t.Parallel()
			bornClean(t, h)
		})
	}
	t.Run("describes itself for its manifest", func(t *testing.T) {
		t.Parallel()
		describes(t, path, h)
	})
}

// cases of the suite. processes marks those that only a runner of processes
// can pass.
var cases = []struct {
	name      string
	processes bool
	run       func(*testing.T, Harness)
}{
	{"says who it is", false, saysWhoItIs},
	{"its canary ends at once", false, canaryEnds},
	{"arguments arrive byte for byte", false, argumentsExact},
	{"the environment is the given one and nothing else", false, environmentExact},
	{"exit codes", false, exitCodes},
	{"signals that end a job", false, endingSignals},
	{"standard input", false, standardInput},
	{"working folder", false, workingFolder},
	{"a job may refuse to end on TERM, not on KILL", false, ignoredTerm},
	{"a job may end as it likes on TERM", false, handledTerm},
	{"signals to nobody are no error", false, signalsToNobody},
	{"binary and huge output", false, hugeOutput},
	{"a job may close its output and go on", false, closedOutput},
	{"a job may open its output again", true, reopenedOutput},
	{"children may outlive the job", true, outlivingChildren},
	{"a job has a session of its own and no foreign descriptors", true, cleanProcess},
	{"the PATH of a job does not choose its interpreter", true, interpreterOfTheWorker},
	{"a job gains no privileges when it must not", true, noNewPrivileges},
	{"a job has the resource limits it is given", true, resourceLimits},
	{"a start that cannot be says why", false, startErrors},
	{"a program that cannot be executed says why", true, executeErrors},
	{"a start given twice starts once", false, startedOnce},
	{"a new session hears what went on", false, reattach},
	{"a new session ends the one before", false, oneSession},
	{"the exit journal tells what was not acknowledged", false, exitJournal},
	{"an adopted process is watched to its end", true, adopted},
	{"an adopted process that is gone is told", false, adoptedTooLate},
	{"ends when idle", false, idleEnd},
	{"shuts down after the last job", false, shutdownAfterLast},
	{"a newer worker is understood", false, newerWorker},
}
