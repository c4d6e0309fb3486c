package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/plugins/kernfile"
	"github.com/droverhq/drover/plugins/lineage"
)

const (
	// quietPasses is how many looks in a row must find nobody new before the
	// stopped processes are taken for all there are.
	quietPasses = 2
	// stopPatience bounds one round of stopping who forks on and on.
	stopPatience = 10 * time.Second
	// firstPid is where the kernel begins again after the highest number (kernel/pid.c).
	firstPid = 300
)

// walker finds the processes of an attempt without cgroups: by the tag that they
// inherit (plugins/lineage), and those of runners that give none by session, process
// group, descent and the mark in their environment. A process that took off its tag
// on purpose, left its session, lost its parent and cleared its environment cannot be
// told from a stranger and is not found: only cgroups hold those.
type walker struct {
	scanner  *scanner
	never    map[int]bool
	req      StopRequest
	orphans  map[int]uint64 // instead of an attempt: what hides below one of these and started after that tick
	reopened bool
	known    map[process]bool // found once is found for ever, whatever it became
	newest   int              // the process that was made last before the newest look
}

func (w *walker) method() string { return MethodWalk }

// members picks the attempt's living processes out of a table. It is pure but
// for what it adds to known.
func (w *walker) members(table []entry) []entry {
	byPid := make(map[int]int, len(table))
	children := make(map[int][]int, len(table))
	for i, e := range table {
		byPid[e.pid] = i
		children[e.parent] = append(children[e.parent], i)
	}
	sessions := w.trustsSessions(table, byPid)
	var found []entry
	taken := make([]bool, len(table))
	var queue []int
	for i, e := range table {
		if w.known[e.process] || w.isSeed(e, sessions) {
			queue = append(queue, i)
		}
	}
	for len(queue) > 0 {
		i := queue[0]
		queue = queue[1:]
		if e := table[i]; taken[i] || w.never[e.pid] || !e.alive() {
			continue
		}
		taken[i] = true
		w.known[table[i].process] = true
		found = append(found, table[i])
		queue = append(queue, children[table[i].pid]...)
	}
	return found
}

// trustsSessions tells whether a session or process group numbered like the main
// process is the attempt's. A number is not given anew while a session of that
// number lives (pid_namespaces(7), credentials(7)); but once the main process is
// gone and nobody watched, its number may have had another life.
func (w *walker) trustsSessions(table []entry, byPid map[int]int) bool {
	if w.req.PID <= 1 || w.never[w.req.PID] {
		return false
	}
	if i, ok := byPid[w.req.PID]; ok {
		return w.req.StartTicks != 0 && table[i].start == w.req.StartTicks
	}
	return !w.reopened
}

func (w *walker) isSeed(e entry, sessions bool) bool {
	if w.orphans != nil {
		after, ok := w.orphans[e.parent]
		return ok && e.start > after && e.tag == lineage.None && e.mark == ""
	}
	if w.req.Mark != "" && (e.mark == w.req.Mark || e.tag == lineage.Of(w.req.Mark)) {
		return true
	}
	if e.mark != "" && w.req.Mark != "" {
		return false // another attempt's
	}
	return sessions && (e.session == w.req.PID || e.group == w.req.PID)
}

func (w *walker) look() ([]entry, error) {
	var err error
	if w.newest, err = newestPid(); err != nil {
		return nil, err
	}
	table, err := w.scanner.read()
	if err != nil {
		return nil, err
	}
	return w.members(table), nil
}

// empty looks twice: a process shows no environment for a moment while it
// executes a program. And it looks for those that a table does not show.
func (w *walker) empty() (bool, error) {
	for range quietPasses {
		if found, err := w.look(); err != nil || len(found) > 0 {
			return false, err
		}
	}
	n, err := w.chase(map[process]bool{})
	return n == 0 && err == nil, err
}

// chase signals the members that were made since the newest look began, at once, and
// counts them. One that forks and ends, again and again, is gone before a table that
// shows it is complete. But its lives have ever higher numbers, in the order in which
// they are made: who goes up through the numbers, and sees no member until there is no
// higher one, has left none behind. For the first life that it passed by before that
// one could be seen was being made by a life that it would have seen.
func (w *walker) chase(seen map[process]bool, signals ...unix.Signal) (n int, err error) {
	tag := lineage.Of(w.req.Mark)
	if tag == lineage.None {
		return 0, nil
	}
	last, err := newestPid()
	if err != nil || last == w.newest {
		return 0, err
	}
	highest := 0 // read when the numbers begin again
	for deadline, pid := time.Now().Add(stopPatience), w.newest+1; ; pid++ {
		if last < pid-1 && highest == 0 {
			if highest, err = highestPid(); err != nil {
				return n, err
			}
		}
		if highest != 0 && pid > highest {
			pid, highest = firstPid, 0
		}
		if lineage.Read(pid) == tag && !w.never[pid] {
			p, err := signalTagged(pid, tag, signals)
			if err != nil {
				return n, err
			}
			if p != (process{}) && !seen[p] {
				seen[p] = true
				n++
			}
		}
		if pid != last {
			continue
		}
		w.newest = last
		if last, err = newestPid(); err != nil || last == pid || time.Now().After(deadline) {
			return n, err
		}
	}
}

// highestPid is the number after which the kernel begins again (proc_sys_kernel(5)).
func highestPid() (int, error) {
	const file = "/proc/sys/kernel/pid_max"
	text, err := kernfile.Read(file, make([]byte, 32))
	if err != nil {
		return 0, fmt.Errorf("find the highest process number: %w", err)
	}
	most, err := strconv.Atoi(string(bytes.TrimSpace(text)))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", file, err)
	}
	return most - 1, nil
}

// newestPid is the number that was given to a process last (proc_loadavg(5)).
func newestPid() (int, error) {
	text, err := kernfile.Read("/proc/loadavg", make([]byte, 128))
	if err != nil {
		return 0, fmt.Errorf("find the newest process: %w", err)
	}
	words := bytes.Fields(text)
	if len(words) < 5 {
		return 0, fmt.Errorf("find the newest process: %q", text)
	}
	pid, err := strconv.Atoi(string(words[4]))
	if err != nil {
		return 0, fmt.Errorf("find the newest process: %w", err)
	}
	return pid, nil
}

// signalTagged signals the process that has a number and a tag; it returns nothing when
// that is gone. The tag is read again once the pidfd is open: whoever has the number
// then is a member, too.
func signalTagged(pid int, tag lineage.Tag, signals []unix.Signal) (process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	// A thread may have the number: the kernel says ENOENT since 6.16, EINVAL before.
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return process{}, nil
	}
	if err != nil {
		return process{}, fmt.Errorf("open process %d: %w", pid, err)
	}
	defer closeFd(fd)
	if lineage.Read(pid) != tag {
		return process{}, nil
	}
	for _, s := range signals {
		if err := send(fd, s); err != nil {
			return process{}, err
		}
	}
	e, err := readStat(pid)
	if err != nil || !e.alive() || lineage.Read(pid) != tag {
		return process{}, nil // it ended, with whatever it was sent
	}
	return e.process, nil
}

func (w *walker) processes() ([]process, error) {
	found, err := w.look()
	list := make([]process, len(found))
	for i, e := range found {
		list[i] = e.process
	}
	return list, err
}

func (w *walker) terminate() (int, error) {
	seen := map[process]bool{}
	for range signalPasses {
		n, err := w.signalNew(seen, unix.SIGTERM, unix.SIGCONT)
		if err != nil {
			return len(seen), err
		}
		if n == 0 {
			break
		}
	}
	return len(seen), nil
}

// kill stops first, because who is stopped forks no more, and looks until two
// passes found nobody new; only then does it kill.
func (w *walker) kill(killed map[process]bool) error {
	stopped := map[process]bool{}
	deadline := time.Now().Add(stopPatience)
	for quiet := 0; quiet < quietPasses && time.Now().Before(deadline); {
		n, err := w.signalNew(stopped, unix.SIGSTOP)
		if err != nil {
			return err
		}
		more, err := w.chase(stopped, unix.SIGSTOP)
		if err != nil {
			return err
		}
		quiet++
		if n+more > 0 {
			quiet = 0
		}
	}
	for p := range stopped {
		sent, err := signalProcess(p, unix.SIGKILL)
		if err != nil {
			return err
		}
		if sent {
			killed[p] = true
		}
	}
	return nil
}

// signalNew signals the members not seen before and counts them.
func (w *walker) signalNew(seen map[process]bool, signals ...unix.Signal) (int, error) {
	found, err := w.look()
	if err != nil {
		return 0, err
	}
	n := 0
	for _, e := range found {
		if seen[e.process] {
			continue
		}
		sent, err := signalProcess(e.process, signals...)
		if err != nil {
			return n, err
		}
		if sent {
			seen[e.process] = true
			n++
		}
	}
	return n, nil
}

// signalProcess signals p unless it is gone. The pidfd is opened first and the
// start read after it: if that is still p's, so is the pidfd.
func signalProcess(p process, signals ...unix.Signal) (bool, error) {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open process %d: %w", p.pid, err)
	}
	defer closeFd(fd)
	e, err := readStat(p.pid)
	if gone(err) || errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if e.start != p.start {
		return false, nil
	}
	for _, s := range signals {
		if err := send(fd, s); err != nil {
			return false, err
		}
	}
	return true, nil
}
