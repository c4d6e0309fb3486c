package e2e_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/droverhq/drover/plugins/pidfd"
	"github.com/droverhq/drover/test/cluster"
)

// Versions of the tests of upgrades: what all tests are built with, of drover and of
// the plugins, and what is installed over it.
const (
	earlier = "unknown"
	dev     = "dev"
	later   = "v99.0.0-test"
)

// short tells its token on both streams and writes it into a file of that name. A
// second start of the same job would fail, as the file is there.
const short = `set -C; printf %s "$2" > "$1/$2"; printf 'out %s\n' "$2"; sleep 0.1; printf 'err %s\n' "$2" >&2`

// slowly is counting that leaves the machine to the others.
func slowly() string { return strings.NewReplacer("% 50", "% 5", "0.01", "0.1").Replace(counting) }

// site is a cluster whose binaries are installed in a folder of its own, where they
// are replaced as a person would do it.
type site struct {
	*cluster.Cluster
	worker  *cluster.Daemon
	plugins string
	truth   string
	newer   string // folder of the later version

	over  chan struct{}
	crowd sync.WaitGroup
	mu    sync.Mutex // guards next
	next  int
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{over: make(chan struct{}), newer: t.TempDir()}
	if err := cluster.BuildVersion(s.newer, later, "drover", "drover-runner-bash"); err != nil {
		t.Fatal(err)
	}
	installed := t.TempDir()
	for _, name := range []string{"drover", "drover-runner-bash", "drover-runner-python", "drover-runner-binary"} {
		if err := os.Link(filepath.Join(bin, name), filepath.Join(installed, name)); err != nil {
			t.Fatal(err)
		}
	}
	s.Cluster = cluster.New(t, installed)
	s.truth, s.plugins = s.Path("truth"), s.Path("w1-plugins")
	if err := os.Mkdir(s.truth, 0o755); err != nil {
		t.Fatal(err)
	}
	// Between two signals the worker drains: that must not be over before the second.
	s.worker = s.Worker("w1", s.Scripts(s.Path("scripts"), map[string]string{"short.sh": short, "count.sh": slowly()}), "--drain-timeout", "10m")
	return s
}

// install puts a version of drover into the place of the one that is there: renamed
// over it, so that who starts it finds the old one or the new one.
func (s *site) install(from string) {
	s.T.Helper()
	place := filepath.Join(s.Bin, "drover")
	if err := os.Link(filepath.Join(from, "drover"), place+".new"); err != nil {
		s.T.Fatal(err)
	}
	if err := os.Rename(place+".new", place); err != nil {
		s.T.Fatal(err)
	}
}

// twice tells the worker to leave, and when it has begun to, to end at once.
func twice(s *site) {
	s.T.Helper()
	begun := func() int { return strings.Count(s.worker.LogText(), "msg=leaving") }
	before := begun()
	s.worker.Signal(syscall.SIGTERM)
	s.Eventually("the worker begins to leave", func() bool { return begun() > before })
	s.worker.Signal(syscall.SIGTERM)
}

// restart ends the worker in a way that keeps its jobs, starts what is installed, and
// waits until the cluster knows its version.
func (s *site) restart(version string, end func(*site)) {
	s.T.Helper()
	end(s)
	s.Eventually("the worker ends", func() bool { return !s.worker.Alive() })
	s.worker.Start()
	s.Eventually("the worker is ONLINE as "+version, func() bool {
		var w struct{ Version, State string }
		r := s.Run("workers", "show", "w1", "-o", "json")
		return r.Code == 0 && json.Unmarshal([]byte(r.Stdout), &w) == nil && w.Version == version && w.State == "ONLINE"
	})
	if !s.runs(s.worker) {
		s.T.Error("the worker is not the one that is installed")
	}
}

// runs tells whether a daemon executes the file that is installed now.
func (s *site) runs(d *cluster.Daemon) bool {
	s.T.Helper()
	running, err := os.Stat(fmt.Sprintf("/proc/%d/exe", d.PID()))
	if err != nil {
		s.T.Fatal(err)
	}
	installed, err := os.Stat(filepath.Join(s.Bin, "drover"))
	if err != nil {
		s.T.Fatal(err)
	}
	return os.SameFile(running, installed)
}

// load keeps short jobs under way, an array after another, until the site is over.
func (s *site) load(jobs int) {
	s.crowd.Go(func() {
		for {
			select {
			case <-s.over:
				return
			default:
			}
			s.mu.Lock()
			s.next++
			round := s.next
			s.mu.Unlock()
			r := s.array(jobs, round)
			if want := fmt.Sprintf(": %d succeeded\n", jobs); r.Code != 0 || !strings.Contains(r.Stdout, want) {
				s.T.Errorf("round %d: exit %d\n%s%s", round, r.Code, r.Stdout, r.Stderr)
			}
		}
	})
}

// array runs many jobs with one command. One that finds no scheduler has asked for
// nothing, and is given again.
func (s *site) array(jobs, round int) cluster.Result {
	for {
		r := s.Run("run", "--array", fmt.Sprintf("1-%d", jobs), "short.sh", s.truth, fmt.Sprintf("%d.{}", round))
		if !strings.Contains(r.Stderr, "cannot reach the scheduler") {
			return r
		}
	}
}

// settle ends the load and looks at every job that there was: each has run once, has
// succeeded, and its output is what it wrote.
func (s *site) settle(jobs int) {
	s.T.Helper()
	close(s.over)
	s.crowd.Wait()
	ran := written(s.T.(*testing.T), s.truth)
	if len(ran) != s.next*jobs {
		s.T.Errorf("%d jobs have run, not %d", len(ran), s.next*jobs)
	}
	var all []struct {
		State   string   `json:"state"`
		Attempt int      `json:"attempt"`
		Path    string   `json:"path"`
		Args    []string `json:"args"`
		Stdout  struct{ SHA256 string }
		Stderr  struct{ SHA256 string }
	}
	if err := json.Unmarshal([]byte(s.Must("jobs", "-o", "json", "--limit", "0")), &all); err != nil {
		s.T.Fatal(err)
	}
	for _, j := range all {
		if j.Path != "short.sh" {
			continue
		}
		token := j.Args[1]
		if ran[token] != token || j.State != "SUCCEEDED" || j.Attempt != 1 ||
			j.Stdout.SHA256 != sumOfLine("out "+token) || j.Stderr.SHA256 != sumOfLine("err "+token) {
			s.T.Errorf("job %s wrote %q: %+v", token, ran[token], j)
		}
		delete(ran, token)
	}
	if len(ran) > 0 {
		s.T.Errorf("%d jobs have run that nobody knows of: %v", len(ran), ran)
	}
	s.T.Logf("%d short jobs in %d arrays", s.next*jobs, s.next)
}

func sumOfLine(line string) string {
	sum := sha256.Sum256([]byte(line + "\n"))
	return hex.EncodeToString(sum[:])
}

// bash lists the versions of the bash runner with their states.
func (s *site) bash() []string {
	s.T.Helper()
	var list []struct {
		Runner  string `json:"name"`
		Version string `json:"version"`
		State   string `json:"state"`
	}
	if err := json.Unmarshal([]byte(s.Must("plugin", "ls", "-o", "json")), &list); err != nil {
		s.T.Fatal(err)
	}
	var out []string
	for _, r := range list {
		if r.Runner == "bash" {
			out = append(out, r.Version+" "+r.State)
		}
	}
	slices.Sort(out)
	return out
}

// takesOver waits until one version of the bash runner gets the jobs and the other
// one keeps what it has.
func (s *site) takesOver(ready, draining string) {
	s.T.Helper()
	want := []string{draining + " draining", ready + " ready"}
	slices.Sort(want)
	s.Eventually(ready+" takes over from "+draining, func() bool { return slices.Equal(s.bash(), want) })
}

// leaves waits for the end of plugin processes whose last job has ended.
func (s *site) leaves(pids []int, ticks []uint64) {
	s.T.Helper()
	s.Eventually("the plugin before is gone", func() bool {
		for i, pid := range pids {
			if pidfd.Alive(pid, ticks[i]) {
				return false
			}
		}
		return true
	})
}

// processes are the plugin processes of the bash runner, with their start times.
func (s *site) processes() (pids []int, ticks []uint64) {
	s.T.Helper()
	for _, pid := range plugins(s.Cluster, s.worker, "bash") {
		if st, err := pidfd.ReadStat(pid); err == nil { // one that is gone may still be on record
			pids, ticks = append(pids, pid), append(ticks, st.Ticks)
		}
	}
	return pids, ticks
}

// TestP11EveryPartIsReplacedUnderLoad by another version and back, while short jobs
// come and go and long ones run: worker, scheduler, and the bash runner. Nothing
// fails, is lost or runs twice, and no byte is missing.
func TestP11EveryPartIsReplacedUnderLoad(t *testing.T) {
	t.Parallel()
	jobs, rounds := 25, 1
	if os.Getenv("DROVER_LONG") != "" {
		jobs, rounds = 200, 10
	}
	s := newSite(t)
	if got := s.Must("version", "-o", "name"); got != earlier {
		t.Fatalf("version %s", got)
	}
	s.load(jobs)
	for range rounds {
		s.upgrade()
	}
	s.settle(jobs)
}

// upgrade replaces all and puts all back.
func (s *site) upgrade() {
	s.T.Helper()
	a := startCounting(s.Cluster, "a")

	// The worker. Its scheduler is older then.
	s.install(s.newer)
	if got := s.Must("version", "-o", "name"); got != later || s.runs(s.Scheduler) {
		s.T.Errorf("installed is %s", got)
	}
	s.restart(later, func(s *site) { s.worker.Kill() })
	a.grows("its output goes on")

	// The scheduler, and the worker back: now that is the older one.
	s.Scheduler.Terminate()
	s.StartScheduler(s.Address)
	if !s.runs(s.Scheduler) {
		s.T.Error("the scheduler is not the one that is installed")
	}
	s.install(bin)
	s.restart(earlier, twice)
	a.grows("its output goes on")

	// The runner, while the job runs on the one before, and back to that one.
	old, oldTicks := s.processes()
	s.Must("plugin", "install", "--dir", s.plugins, filepath.Join(s.newer, "drover-runner-bash"))
	s.takesOver(later, dev)
	b := startCounting(s.Cluster, "b")
	a.finish()
	s.leaves(old, oldTicks)
	old, oldTicks = s.processes()
	s.Must("plugin", "install", "--dir", s.plugins, "--version", dev, "bash")
	s.takesOver(dev, later)
	c := startCounting(s.Cluster, "c")
	b.finish()
	s.leaves(old, oldTicks)
	if got := s.bash(); !slices.Equal(got, []string{dev + " ready"}) {
		s.T.Errorf("the runners are %q", got)
	}

	// The scheduler back; the worker is of the same version again.
	s.Scheduler.Kill()
	s.StartScheduler(s.Address)
	s.AwaitReady("w1")
	c.finish()
	for _, j := range []*counted{a, b, c} {
		if err := os.Remove(j.gate); err != nil {
			s.T.Fatal(err)
		}
	}
}
