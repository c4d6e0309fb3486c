package pluginhost

import (
	"bytes"
	"cmp"
	"os"
	"slices"
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
	endWait      = 10 * time.Second // for its threads to be gone, and its forks to be jobs
	doubtWait    = time.Second      // for the children of others to be named
	endPause     = time.Millisecond // between two looks, at first
	longestPause = 50 * time.Millisecond
)

// unnamed is a start whose process is not known, if there is one.
type unnamed struct {
	env    string // its environment, as /proc shows it
	mark   string // DROVER_MARK=... of it; "" when that alone is no proof
	trace  string // the same; whoever has it shows that the job has begun
	cgroup string // its folder, or ""
	uid    int    // of the job
	noted  uint64 // it is not older than this, in ticks
}

// fits tells whether a process can be of the start at all. An environment can be
// copied, by another job of the same user or by an earlier attempt of the same job.
func (u *unnamed) fits(pid int, st pidfd.Stat) bool {
	return st.Ticks >= u.noted && (u.cgroup == "" || within(pid, u.cgroup))
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

// locate looks for the processes of starts whose fork was about to happen. never
// are the starts of which is proved that no program was executed, and none will be:
// they may be given to another process. What an earlier worker handed to the plugin
// has no environment to look for.
func (p *hosted) locate(proc *process, left runner.Journal, ids []string) (found map[string]named, never []string) {
	want := p.unnamed(proc, left, ids)
	if len(want) == 0 {
		return nil, nil
	}
	begin, pause := time.Now(), endPause
	for {
		ended := proc.ended()
		v := look(&proc.record, want, p.host.known(left))
		waited := time.Since(begin)
		if (!v.forked || waited > endWait) && (len(v.doubt) == 0 || waited > doubtWait) {
			if !v.forked && ended && left.Keeps && !proc.foreign {
				never = v.unborn(want)
			}
			return v.found, never
		}
		time.Sleep(pause)
		pause = min(2*pause, longestPause)
	}
}

// unnamed lists the starts whose process nobody has named.
func (p *hosted) unnamed(proc *process, left runner.Journal, ids []string) map[string]unnamed {
	want := map[string]unnamed{}
	p.mu.Lock()
	defer p.mu.Unlock()
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
			want[id] = g.unnamed(started.GetStartTicks(), proc.foreign)
		}
	}
	return want
}

// unnamed tells how the process of a start is recognized. A child that outlives
// it must not be taken for it: its exit code is another (P6). What a shell starts
// has another environment, but so has the job itself after an exec. Then the mark
// will do where the job, if it had ended, would be a zombie that is found, too.
func (g *given) unnamed(noted uint64, foreign bool) unnamed {
	u := unnamed{
		env: strings.Join(g.start.GetEnv(), "\x00") + "\x00", cgroup: g.start.GetCgroup(),
		trace: g.mark, noted: noted, uid: os.Getuid(),
	}
	if c := g.start.GetCredential(); c != nil {
		u.uid = int(c.GetUid())
	}
	if !foreign && u.cgroup != "" {
		u.mark = g.mark
	}
	return u
}

// known are the processes whose part is clear: plugins, and jobs that are named.
func (h *Host) known(left runner.Journal) map[named]bool {
	out := map[named]bool{}
	for _, s := range left.Started {
		out[named{int(s.GetPid()), s.GetStartTicks()}] = true
	}
	for _, p := range h.all() {
		p.mu.Lock()
		if p.process != nil {
			out[named{p.process.PID, p.process.StartTicks}] = true
		}
		for _, g := range p.attempts {
			out[named{g.pid, g.ticks}] = true
		}
		p.mu.Unlock()
	}
	for _, o := range h.adopter.all() {
		out[named{o.pid, o.ticks}] = true
	}
	return out
}

// view is what one look through all processes has shown.
type view struct {
	found  map[string]named
	forked bool            // a child of the plugin has not become a job yet
	doubt  map[string]bool // starts that a process may be of, or a child of it
}

// look goes through all processes once: a job may end while one is looked for.
// The environment of each is read first: a fork shows that of the plugin until it
// executes a program, for a moment none, and then its own.
func look(r *record, want map[string]unnamed, known map[named]bool) view {
	v := view{found: map[string]named{}, doubt: map[string]bool{}}
	fork := []byte(runner.DirVariable + "=" + r.Dir)
	self := os.Getpid()
	for _, pid := range everybody() {
		// Of a zombie there is none, which newer kernels call an error.
		env, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
		if r.Dir != "" && pid != r.PID && holds(env, fork) {
			v.forked = true
			continue
		}
		st, gone := pidfd.ReadStat(pid)
		if gone != nil {
			continue // its parent has reaped it, and that is not this process
		}
		if id, ok := owner(pid, self, env, st, want); ok {
			v.belongs(id, named{pid, st.Ticks}, st.Session == pid)
			continue
		}
		v.traces(env, want)
		if st.Parent == self && !known[named{pid, st.Ticks}] && (st.Session == pid || st.Session == r.PID) {
			v.weigh(pid, env, st, want)
		}
	}
	for id := range v.found {
		delete(v.doubt, id)
	}
	return v
}

// belongs notes a process of a start. The main process leads a session; children of
// it that lead one, too, are younger.
func (v *view) belongs(id string, n named, leads bool) {
	if !leads {
		v.doubt[id] = true
		return
	}
	if old, ok := v.found[id]; !ok || cmp.Or(cmp.Compare(n.ticks, old.ticks), cmp.Compare(n.pid, old.pid)) < 0 {
		v.found[id] = n
	}
}

// traces notes what only a process of a start has.
func (v *view) traces(env []byte, want map[string]unnamed) {
	for id, u := range want {
		if u.trace != "" && holds(env, []byte(u.trace)) {
			v.doubt[id] = true
		}
	}
}

// weigh looks at a child of this process that nobody has named: the fork of a
// start comes here when its plugin dies, and so do children of jobs.
func (v *view) weigh(pid int, env []byte, st pidfd.Stat, want map[string]unnamed) {
	zombie := st.State == 'Z'
	if st.Forked && (zombie || len(env) > 0) {
		return // it ended before it executed anything, or it is the fork of a job
	}
	if strings.HasPrefix(string(env), runner.DirVariable+"=") {
		return // another plugin, see launch
	}
	for id, u := range want {
		switch {
		case !u.fits(pid, st):
		case !zombie && len(env) == 0:
			v.forked = true // it is about to execute a program
		default:
			v.doubt[id] = true
		}
	}
}

// unborn lists the starts that have no process and never had one. Who was a child
// of the plugin is one of this process now, if only as a zombie: nobody has reaped
// it (Host.unsettled).
func (v *view) unborn(want map[string]unnamed) (ids []string) {
	for id := range want {
		if _, found := v.found[id]; !found && !v.doubt[id] {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

func holds(env, variable []byte) bool {
	for kv := range bytes.SplitSeq(env, []byte{0}) {
		if bytes.Equal(kv, variable) {
			return true
		}
	}
	return false
}

// owner tells whose process one is. A zombie has no environment; that of a job is a
// child of this process, and its cgroup tells.
func owner(pid, self int, env []byte, st pidfd.Stat, want map[string]unnamed) (id string, ok bool) {
	zombie := len(env) == 0 && st.State == 'Z' && !st.Forked && st.Parent == self
	for id, u := range want {
		match := u.env == string(env) || u.mark != "" && holds(env, []byte(u.mark))
		if len(env) == 0 {
			match = zombie && u.cgroup != ""
		}
		if match && u.fits(pid, st) && runsAs(pid, u.uid) {
			return id, true
		}
	}
	return "", false
}

// within tells whether a process is, or was when it ended, in a cgroup. One that
// cannot be asked may be.
func within(pid int, cgroup string) bool {
	groups, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(groups)) {
		path, unified := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if unified && len(path) > 1 && strings.HasSuffix(cgroup, path) {
			return true
		}
	}
	return false
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
