package pluginhost

import (
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/core/cgroup"
	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/plugins/pidfd"
	"github.com/droverhq/drover/plugins/runner"
	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// forked is a plugin process that is killed after its note that it forks for "a".
type forked struct {
	script  string // of the plugin, which is a shell: what it does before it is killed
	reaps   bool   // it may have reaped what its journal does not tell
	foreign bool   // an earlier worker started it
	cgroup  string
	ends    bool // all that is in the cgroup ends before it is settled
}

// outlived begins a child that goes on when the plugin is gone, so that it is not
// the plugin which reaps it.
const outlived = "while kill -0 $$; do sleep 0.01; done 2>&-; "

// settle lets it die and be settled, and tells what became of the start.
func (f forked) settle(t *testing.T) (again bool, told []Event) {
	t.Helper()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	h := &Host{config: Config{Log: slog.New(slog.DiscardHandler), Events: func(e []Event) { told = append(told, e...) }}}
	h.adopter = &adopter{emit: h.emit, ended: h.orphanEnded, byFD: map[int32]*orphan{}}
	p := newHosted(h, Manifest{})
	p.process = &process{foreign: f.foreign}
	p.start(&runnerv1.Start{Id: "a", Cgroup: f.cgroup, Env: []string{"PATH=" + os.Getenv("PATH"), "DROVER_MARK=unborn"}})
	p.process, p.pending.Starts = nil, nil // it was sent
	if err := os.WriteFile(filepath.Join(dir, runner.JournalName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	left := runner.Journal{
		Started: map[string]*runnerv1.Started{"a": {Id: "a", StartTicks: pidfd.Now()}}, Keeps: !f.reaps,
	}
	cmd := exec.Command("bash", "-c", f.script+"\nkill -9 $$")
	cmd.Env = []string{runner.DirVariable + "=" + dir, "PATH=" + os.Getenv("PATH"), "GROUP=" + f.cgroup}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	session := cmd.Process.Pid
	proc := &process{record: record{Dir: dir, PID: session}, foreign: f.foreign}
	_ = cmd.Wait()
	for end := time.Now().Add(time.Minute); f.ends; time.Sleep(time.Millisecond) {
		if events, err := os.ReadFile(filepath.Join(f.cgroup, "cgroup.events")); err == nil && strings.Contains(string(events), "populated 0") {
			break
		}
		if time.Now().After(end) {
			t.Fatal("it does not end")
		}
	}
	defer func() {
		for _, pid := range children() {
			if st, err := pidfd.ReadStat(pid); err == nil && (st.Session == session || hasVariable(pid, "DROVER_MARK=unborn")) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
				_, _ = syscall.Wait4(pid, nil, 0, nil)
			}
		}
	}()
	p.settle(proc, left, []string{"a"})
	h.adopter.settling.Wait()
	if len(p.pending.GetStarts()) == 0 { // LOST is LOST, whoever dies next
		p.settle(&process{}, runner.Journal{}, []string{"a"})
		h.adopter.settling.Wait()
	}
	return len(p.pending.GetStarts()) == 1, told
}

// TestAStartThatWasNeverForkedIsStartedAgain: P7. A plugin was killed between its
// note that a fork comes and the fork, and the job was LOST. Now it is started
// again, if it is proved that no program was executed for it (P2).
func TestAStartThatWasNeverForkedIsStartedAgain(t *testing.T) { //nolint:paralleltest // looks at the children of this process
	for name, c := range map[string]struct {
		forked
		again bool
	}{
		"no fork":                                 {forked{}, true},
		"a fork that ended before it was a job":   {forked{script: "(exit 3) &"}, true},
		"a fork that takes its time and ends":     {forked{script: "(read -t 0.2 x <> <(:); exit 3) &"}, true},
		"a job that has ended":                    {forked{script: "(" + outlived + "exec true) &"}, false},
		"a job that lives, and has cleared all":   {forked{script: "(exec env -i A=1 sleep 1000) &"}, false},
		"a job that has ended, its child lives":   {forked{script: "(env -i DROVER_MARK=unborn setsid sleep 1000 &) & wait"}, false},
		"nobody says what was reaped":             {forked{reaps: true}, false},
		"the children have gone to somebody else": {forked{foreign: true}, false},
	} {
		t.Run(name, func(t *testing.T) { //nolint:paralleltest // as above
			again, told := c.settle(t)
			if again != c.again || again == (len(told) > 0 && told[0].Lost) {
				t.Errorf("started again: %v, want %v; told %+v", again, c.again, told)
			}
		})
	}
}

// TestACgroupTellsWhetherAStartWasForked: whose child is in the cgroup of a job, or was
// when it ended, is that job.
func TestACgroupTellsWhetherAStartWasForked(t *testing.T) { //nolint:paralleltest // looks at the children of this process
	m, err := cgroup.New(cgroup.Config{Name: "unborn-test"})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	g, err := m.Acquire(job.Limits{}, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Release()
	if g.Dir() == "" {
		t.Skip("no cgroup v2 is writable here")
	}
	_, told := forked{script: "(exec setsid bash -c '" + `echo $$ > "$GROUP/cgroup.procs"; ` + strings.ReplaceAll(outlived, "$$", "$PPID") + "exit 7') & until grep -q . \"$GROUP/cgroup.procs\"; do sleep 0.01; done", cgroup: g.Dir(), ends: true}.settle(t)
	if len(told) != 2 || told[0].Started == nil || told[1].Exited.GetExitCode() != 7 {
		t.Errorf("of a job that had ended was told %+v", told)
	}
	const enter = `(echo $BASHPID > "$GROUP/cgroup.procs"; `
	for name, c := range map[string]struct {
		forked
		again bool
	}{
		"a child that is in another":         {forked{script: "(exec env -i A=1 sleep 1000) &"}, true},
		"a zombie was in it":                 {forked{script: enter + outlived + "exec true) & until grep -q . \"$GROUP/cgroup.procs\"; do sleep 0.01; done"}, false},
		"a job is in it, without any traces": {forked{script: enter + "exec env -i A=1 sleep 1000) & until grep -q . \"$GROUP/cgroup.procs\"; do sleep 0.01; done"}, false},
	} {
		t.Run(name, func(t *testing.T) { //nolint:paralleltest // as above
			c.cgroup = g.Dir()
			again, told := c.settle(t)
			if again != c.again {
				t.Errorf("started again: %v, want %v; told %+v", again, c.again, told)
			}
		})
	}
	forged := []string{"(env -i DROVER_MARK=unborn setsid sleep 1000 &)"}
	if os.Getuid() == 0 {
		forged = append(forged, enter+`exec setpriv --reuid=65534 env -i "PATH=$PATH" DROVER_MARK=unborn setsid sleep 1000) &`)
	}
	for _, script := range forged {
		_, told := forked{script: script + " until grep -aqs DROVER_MARK=unborn /proc/[0-9]*/environ; do sleep 0.01; done", cgroup: g.Dir()}.settle(t)
		for _, e := range told {
			if e.Started != nil {
				t.Errorf("adopted was what %s has started", script)
			}
		}
	}
}
