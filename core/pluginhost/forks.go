package pluginhost

import (
	"bytes"
	"cmp"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/droverhq/drover/plugins/pidfd"
	"github.com/droverhq/drover/plugins/runner"
)

// This file finds the processes that a plugin process had begun to start when it
// was killed, before it could write down which they are.

// Waits for what a killed plugin process leaves to be settled.
const (
	endWait  = 10 * time.Second // for its threads to be gone, and its forks to be jobs
	endPause = time.Millisecond
)

// unnamed is a start whose process is not known, if there is one.
type unnamed struct {
	env    string // its environment, as /proc shows it
	mark   string // DROVER_MARK=... of it; "" when that alone is no proof
	cgroup string // its folder, or ""
}

// named is a process that was found.
type named struct {
	pid   int
	ticks uint64
}

// ended tells whether no thread of a process is left. Until then one of them may
// still write to its journal, and its children are not ours yet.
func (r *record) ended() bool {
	st, err := pidfd.ReadStat(r.PID)
	if err != nil || st.Ticks != r.StartTicks {
		return true
	}
	tasks, err := os.ReadDir("/proc/" + strconv.Itoa(r.PID) + "/task")
	return err != nil || st.State == 'Z' && len(tasks) <= 1
}

// awaitEnd waits until no thread of a process that was killed is left.
func (r *record) awaitEnd() {
	for end := time.Now().Add(endWait); !r.ended() && time.Now().Before(end); {
		time.Sleep(endPause)
	}
}

// locate looks for the processes of starts whose fork was about to happen. What
// an earlier worker handed to the plugin has no environment to look for.
func (p *hosted) locate(proc *process, left runner.Journal, ids []string) map[string]named {
	want := map[string]unnamed{}
	p.mu.Lock()
	for _, id := range ids {
		g := p.attempts[id]
		if g == nil || g.exited || g.pid != 0 {
			continue
		}
		started, exited := left.Started[id], left.Exited[id]
		if started == nil && exited == nil {
			started, exited = g.begun, g.ended
		}
		if started != nil && started.GetPid() == 0 && exited == nil && g.start != nil {
			want[id] = g.unnamed(proc.foreign)
		}
	}
	p.mu.Unlock()
	if len(want) == 0 {
		return nil
	}
	for end := time.Now().Add(endWait); ; time.Sleep(endPause) {
		found, forked := look(&proc.record, want)
		if !forked || time.Now().After(end) {
			return found
		}
	}
}

// unnamed tells how the process of a start is recognized. A child that outlives
// it must not be taken for it: its exit code is another (P6). What a shell starts
// has another environment, but so has the job itself after an exec. Then the mark
// will do where the job, if it had ended, would be a zombie that is found, too.
func (g *given) unnamed(foreign bool) unnamed {
	u := unnamed{env: strings.Join(g.start.GetEnv(), "\x00") + "\x00", cgroup: g.start.GetCgroup()}
	if !foreign && u.cgroup != "" {
		u.mark = g.mark
	}
	return u
}

// look goes through all processes once: a job may end while one is looked for.
// forked tells that a child of the plugin has not become a job yet.
func look(r *record, want map[string]unnamed) (found map[string]named, forked bool) {
	found = map[string]named{}
	fork := []byte(runner.DirVariable + "=" + r.Dir)
	self := os.Getpid()
	for _, pid := range everybody() {
		env, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
		if err != nil {
			continue
		}
		if r.Dir != "" && pid != r.PID && holds(env, fork) {
			forked = true
			continue
		}
		id, ok := owner(pid, self, env, want)
		if !ok {
			continue
		}
		st, err := pidfd.ReadStat(pid)
		if err != nil || st.Session != pid { // the main process leads a session
			continue
		}
		// Children of it that lead one, too, are younger.
		if old, ok := found[id]; !ok || cmp.Or(cmp.Compare(st.Ticks, old.ticks), cmp.Compare(pid, old.pid)) < 0 {
			found[id] = named{pid, st.Ticks}
		}
	}
	return found, forked
}

func holds(env, variable []byte) bool {
	for kv := range bytes.SplitSeq(env, []byte{0}) {
		if bytes.Equal(kv, variable) {
			return true
		}
	}
	return false
}

// owner tells whose main process one may be. A zombie has no environment; that of
// a job is a child of this process, and its cgroup tells.
func owner(pid, self int, env []byte, want map[string]unnamed) (id string, ok bool) {
	if len(env) > 0 {
		for id, u := range want {
			if u.env == string(env) || u.mark != "" && holds(env, []byte(u.mark)) {
				return id, true
			}
		}
		return "", false
	}
	if st, err := pidfd.ReadStat(pid); err != nil || st.State != 'Z' || st.Parent != self {
		return "", false
	}
	groups, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return "", false
	}
	for line := range strings.Lines(string(groups)) {
		path, unified := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !unified || len(path) < 2 {
			continue
		}
		for id, u := range want {
			if strings.HasSuffix(u.cgroup, path) {
				return id, true
			}
		}
	}
	return "", false
}

// unsettled tells whether a plugin process has died whose jobs are not taken over
// yet: their zombies are the only witnesses of their ends.
func (h *Host) unsettled() bool {
	for _, p := range h.all() {
		p.mu.Lock()
		dead := p.settling || p.process != nil && !pidfd.Alive(p.process.PID, p.process.StartTicks)
		p.mu.Unlock()
		if dead {
			return true
		}
	}
	return false
}

// reapOrphans collects zombies that came to this process because it is a
// subreaper: children of jobs whose plugin is gone. Plugins and adopted jobs
// have their own waiters. Zombies of this process's own session were started
// by it otherwise and are left to whoever did.
func (h *Host) reapOrphans() {
	own, err := pidfd.ReadStat(syscall.Getpid())
	if err != nil {
		return
	}
	var zombies []int
	for _, pid := range children() {
		st, err := pidfd.ReadStat(pid)
		if err == nil && st.State == 'Z' && st.Session != own.Session {
			zombies = append(zombies, pid)
		}
	}
	// After the look: the plugin of a zombie that was seen had died before it.
	if h.unsettled() {
		return
	}
	for _, pid := range zombies {
		if h.adopter.holds(pid) || h.isPlugin(pid) {
			continue
		}
		var status syscall.WaitStatus
		_, _ = syscall.Wait4(pid, &status, syscall.WNOHANG, nil)
	}
}
