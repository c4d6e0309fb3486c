package cgroup

import (
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func member(pid, parent, session int, mark string) entry {
	return entry{process: process{pid, uint64(pid) * 10}, parent: parent, group: session, session: session, threads: 1, state: 'S', mark: mark}
}

func numbers(found []entry) []int {
	var list []int
	for _, e := range found {
		list = append(list, e.pid)
	}
	slices.Sort(list)
	return list
}

func TestMembers(t *testing.T) {
	t.Parallel()
	zombie := member(101, 100, 100, "")
	zombie.state, zombie.threads = 'Z', 1
	threaded := member(101, 100, 100, "")
	threaded.state, threaded.threads = 'Z', 3
	cases := []struct {
		name  string
		req   StopRequest
		again bool
		table []entry
		want  []int
	}{
		{"session and descent", StopRequest{PID: 100, StartTicks: 1000}, false, []entry{
			member(100, 50, 100, ""), member(101, 100, 100, ""), member(102, 101, 102, ""), member(103, 102, 103, ""), member(200, 50, 200, ""),
		}, []int{100, 101, 102, 103}},
		{"orphans by their mark", StopRequest{PID: 100, StartTicks: 1000, Mark: "m"}, false, []entry{
			member(100, 50, 100, "m"), member(101, 1, 101, "m"), member(102, 1, 102, "other"), member(103, 101, 103, ""),
		}, []int{100, 101, 103}},
		{"the number of the main process is a stranger's now", StopRequest{PID: 100, StartTicks: 999, Mark: "m"}, false, []entry{
			member(100, 1, 100, ""), member(101, 100, 100, ""), member(102, 1, 70, "m"),
		}, []int{102}},
		{"main process gone, its session left", StopRequest{PID: 100, StartTicks: 1000, Mark: "m"}, false, []entry{
			member(101, 1, 100, ""), member(102, 1, 100, "other"),
		}, []int{101}},
		{"main process gone in a former life", StopRequest{PID: 100, StartTicks: 1000, Mark: "m"}, true, []entry{
			member(101, 1, 100, ""), member(102, 1, 100, "m"),
		}, []int{102}},
		{"start unknown: only the mark counts", StopRequest{PID: 100, Mark: "m"}, false, []entry{
			member(100, 50, 100, "m"), member(101, 1, 100, ""),
		}, []int{100}},
		{"zombies run no more", StopRequest{PID: 100, StartTicks: 1000}, false, []entry{member(100, 50, 100, ""), zombie}, []int{100}},
		{"unless other threads do", StopRequest{PID: 100, StartTicks: 1000}, false, []entry{member(100, 50, 100, ""), threaded}, []int{100, 101}},
		{"the worker and what is above it never", StopRequest{PID: 100, StartTicks: 1000, Mark: "m"}, false, []entry{
			member(100, 50, 100, "m"), member(7, 100, 100, "m"), member(8, 7, 8, ""),
		}, []int{100}},
		{"a request without anything finds nobody", StopRequest{}, false, []entry{member(1, 0, 0, ""), member(5, 1, 0, "")}, nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := &walker{req: c.req, reopened: c.again, never: map[int]bool{1: true, 7: true}, known: map[process]bool{}}
			if got := numbers(w.members(c.table)); !slices.Equal(got, c.want) {
				t.Errorf("members %v, want %v", got, c.want)
			}
		})
	}
}

// Found once is found for ever: a process that executes a program shows no
// environment for a moment, and one that lost its parent no descent.
func TestMembersRememberWhoTheyFound(t *testing.T) {
	t.Parallel()
	w := &walker{req: StopRequest{Mark: "m"}, known: map[process]bool{}}
	w.members([]entry{member(100, 1, 100, "m"), member(101, 100, 101, "")})
	if got := numbers(w.members([]entry{member(100, 1, 100, ""), member(101, 1, 101, "")})); !slices.Equal(got, []int{100, 101}) {
		t.Errorf("members %v", got)
	}
	other := member(100, 1, 100, "")
	other.start++
	if got := numbers(w.members([]entry{other})); len(got) != 0 {
		t.Errorf("another process under a known number was taken: %v", got)
	}
}

// Whatever the table: every marked and every descendant of one is found, and
// nobody who is neither related, nor marked, nor in the session.
func TestMembersAreExactlyTheRelated(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 30).Draw(t, "processes")
		var table []entry
		for i := range n {
			parent := 1
			if i > 0 && rapid.Bool().Draw(t, "has a parent") {
				parent = table[rapid.IntRange(0, i-1).Draw(t, "parent")].pid
			}
			mark := rapid.SampledFrom([]string{"", "", "", "m", "other"}).Draw(t, "mark")
			table = append(table, member(100+i, parent, 5000+i, mark))
		}
		related := map[int]bool{}
		for _, e := range table { // parents come before children
			related[e.pid] = e.mark == "m" || related[e.parent]
		}
		w := &walker{req: StopRequest{Mark: "m"}, known: map[process]bool{}}
		shuffled := rapid.Permutation(table).Draw(t, "order")
		got := map[int]bool{}
		for _, e := range w.members(shuffled) {
			got[e.pid] = true
		}
		for _, e := range table {
			if got[e.pid] != related[e.pid] {
				t.Fatalf("%d found: %v, related: %v", e.pid, got[e.pid], related[e.pid])
			}
		}
	})
}

func TestParseStat(t *testing.T) {
	t.Parallel()
	const tail = " R 12 34 56 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 9 0 4711 1 2 3"
	for _, name := range []string{"bash", "a b", "x) R 1 (y", "new\nline", "((", ")"} {
		e, err := parseStat(99, []byte("99 ("+name+")"+tail))
		want := entry{process: process{99, 4711}, parent: 12, group: 34, session: 56, threads: 9, state: 'R'}
		if err != nil || e != want {
			t.Errorf("%q: %+v, %v", name, e, err)
		}
	}
	for _, text := range []string{"", "99 (x", "99 (x) R 1", "99 (x) R 12 34 56 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 9 0 x 1"} {
		if _, err := parseStat(99, []byte(text)); err == nil {
			t.Errorf("%q was read", text)
		}
	}
}

func TestMarkOf(t *testing.T) {
	t.Parallel()
	for env, want := range map[string]string{
		"": "", "A=1\x00DROVER_MARK=x\x00B=2\x00": "x", "DROVER_MARK=y": "y",
		"XDROVER_MARK=z\x00": "", "A=DROVER_MARK=z\x00": "", "DROVER_MARK=\x00": "",
	} {
		if got := markOf([]byte(env)); got != want {
			t.Errorf("%q: %q, want %q", env, got, want)
		}
	}
}

func TestReusedNumbersAreNotSignalled(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("sleep", "300")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	e, err := readStat(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if sent, err := signalProcess(process{e.pid, e.start - 1}, unix.SIGKILL); sent || err != nil {
		t.Errorf("a stranger under the same number was signalled: %v, %v", sent, err)
	}
	if now, err := readStat(e.pid); err != nil || now.state == 'Z' {
		t.Errorf("the stranger is dead: %+v, %v", now, err)
	}
	if sent, err := signalProcess(e.process, unix.SIGKILL); !sent || err != nil {
		t.Errorf("signal: %v, %v", sent, err)
	}
	cmd.Wait()
	if sent, err := signalProcess(e.process, unix.SIGKILL); sent || err != nil {
		t.Errorf("a process that is gone was signalled: %v, %v", sent, err)
	}
}

func TestLineageLeadsToTheTop(t *testing.T) {
	t.Parallel()
	line, err := ancestry(os.Getpid())
	if err != nil || !line[os.Getpid()] || !line[os.Getppid()] || !line[1] {
		t.Errorf("%v, %v", line, err)
	}
}

// Who asks gets a table that is younger than the question, however many ask.
func TestScansAreSharedAndFresh(t *testing.T) {
	t.Parallel()
	s := newScanner()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			cmd := exec.Command("sleep", "300")
			if err := cmd.Start(); err != nil {
				t.Error(err)
				return
			}
			defer cmd.Wait()
			defer cmd.Process.Kill()
			table, err := s.read()
			if err != nil {
				t.Error(err)
			}
			if !slices.ContainsFunc(table, func(e entry) bool { return e.pid == cmd.Process.Pid }) {
				t.Errorf("process %d, started before the question, is missing", cmd.Process.Pid)
			}
		})
	}
	all.Wait()
}

func TestTheTableSeesThisProcess(t *testing.T) {
	t.Parallel()
	table, err := readTable()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(table, func(e entry) bool { return e.pid == os.Getpid() })
	if i < 0 || table[i].parent != os.Getppid() || !table[i].alive() {
		t.Errorf("own entry is number %d", i)
	}
}

// A worker that leaves ends what came to it and to its plugins, and no child that it
// had before it began: a shell may have started that, and then become the worker.
func TestP17_ChildOfBeforeTheWorker_IsLeftAlone(t *testing.T) {
	t.Parallel()
	const self, plugin = 10, 20
	w := &walker{orphans: map[int]uint64{self: 500, plugin: 0}, never: map[int]bool{self: true, plugin: true}, known: map[process]bool{}}
	var got []int
	for _, e := range w.members([]entry{
		{process: process{self, 400}, parent: 1, state: 'S'},
		{process: process{plugin, 450}, parent: self, state: 'S'},
		{process: process{30, 300}, parent: self, state: 'S'},   // an exporter of the shell's
		{process: process{31, 600}, parent: 30, state: 'S'},     // and its child
		{process: process{40, 501}, parent: self, state: 'S'},   // came when a plugin died
		{process: process{50, 460}, parent: plugin, state: 'S'}, // of an earlier worker's job
	}) {
		got = append(got, e.pid)
	}
	if slices.Sort(got); !slices.Equal(got, []int{40, 50}) {
		t.Errorf("it ends %v", got)
	}
}
