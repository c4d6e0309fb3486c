package pluginhost

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/droverhq/drover/plugins/pidfd"
	"github.com/droverhq/drover/plugins/runner"
	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// begun is a plugin whose process was killed when it was about to fork for "a".
func begun(env ...string) (p *hosted, left runner.Journal) {
	p = newHosted(&Host{config: Config{Events: func([]Event) {}}, adopter: &adopter{}}, Manifest{})
	g := newGiven()
	g.start = &runnerv1.Start{Id: "a", Env: env}
	p.attempts["a"] = g
	return p, runner.Journal{Started: map[string]*runnerv1.Started{"a": {Id: "a"}}}
}

// shell runs a script in a session of its own, as a job runs; what it prints
// first is told. It ends when its input does.
func shell(t *testing.T, script string, env ...string) (cmd *exec.Cmd, stdin io.WriteCloser, said string) {
	t.Helper()
	cmd = exec.Command("bash", "-c", script)
	cmd.Env = env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	said, err = bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return cmd, stdin, strings.TrimSpace(said)
}

// TestAForkThatIsNoJobYetIsWaitedFor: a plugin was killed between fork and exec of
// a job. Nothing had the job's mark yet, so it was LOST, and killed (P4, P7).
func TestAForkThatIsNoJobYetIsWaitedFor(t *testing.T) {
	t.Parallel()
	const mark = "DROVER_MARK=a fork"
	dir := t.TempDir()
	p, left := begun(mark)
	cmd, stdin, _ := shell(t, `echo; read x; exec env -i "`+mark+`" sleep 1000`,
		runner.DirVariable+"="+dir, "PATH="+os.Getenv("PATH"))
	proc := &process{record: record{Dir: dir}, foreign: true}
	if v := look(&proc.record, map[string]unnamed{"a": {env: mark + "\x00"}}, nil); len(v.found) > 0 || !v.forked {
		t.Fatalf("found %v, forked %v", v.found, v.forked)
	}
	if _, err := io.WriteString(stdin, "\n"); err != nil {
		t.Fatal(err)
	}
	if got, _ := p.locate(proc, left, []string{"a"}); got["a"].pid != cmd.Process.Pid {
		t.Errorf("found %v, want process %d", got, cmd.Process.Pid)
	}
}

// TestAChildIsNotTakenForItsJob: one that leads a session of its own, too, was
// taken for a job that had ended; its exit code became the job's (P6).
func TestAChildIsNotTakenForItsJob(t *testing.T) {
	t.Parallel()
	env := []string{"PATH=" + os.Getenv("PATH"), "DROVER_MARK=a parent"}
	p, left := begun(env...)
	proc := &process{foreign: true}
	cmd, stdin, child := shell(t, "setsid bash -c 'echo $$; exec sleep 1000' & read x; exit 7", env...)
	defer func() { _ = exec.Command("kill", "-9", child).Run() }()
	if got, _ := p.locate(proc, left, []string{"a"}); got["a"].pid != cmd.Process.Pid {
		t.Errorf("found %v, want process %d", got, cmd.Process.Pid)
	}
	_ = stdin.Close()
	_ = cmd.Wait()
	if got, _ := p.locate(proc, left, []string{"a"}); len(got) > 0 {
		t.Errorf("found %v of a job that has ended; its child is %s", got, child)
	}
}

// TestADeathIsSettledBeforeOrphansAreReaped: the zombie of a job is the only
// witness of its end until its plugin's death is settled.
func TestADeathIsSettledBeforeOrphansAreReaped(t *testing.T) {
	t.Parallel()
	self := os.Getpid()
	st, err := pidfd.ReadStat(self)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		process  *process
		settling bool
		want     bool
	}{
		"it lives":       {&process{record: record{PID: self, StartTicks: st.Ticks}}, false, false},
		"it is dead":     {&process{record: record{PID: self, StartTicks: st.Ticks + 1}}, false, true},
		"between two":    {nil, true, true},
		"all is settled": {nil, false, false},
	} {
		p := newHosted(nil, Manifest{})
		p.process, p.settling = c.process, c.settling
		if got := (&Host{byKey: map[string]*hosted{"": p}}).unsettled(); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if (&record{PID: self, StartTicks: st.Ticks}).ended() || !(&record{PID: self, StartTicks: st.Ticks + 1}).ended() {
		t.Error("this process has ended, or another has not")
	}
}
