package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/plugins/kernfile"
)

const (
	// signalPasses bounds how often new processes are looked for to send
	// SIGTERM to: who forks faster than this is left to the kill.
	signalPasses = 20
	// openAtOnce bounds the pidfds held at a time.
	openAtOnce = 256
	// freezePatience is how long a freeze may take. A process in an
	// uninterruptible sleep does not freeze; the others are killed then, too.
	freezePatience = 500 * time.Millisecond
)

// cell is a cgroup, v2 or v1 freezer, as a holder of processes.
type cell struct {
	dir     string
	unified bool
	own     map[int]bool // this process and its ancestors: never signalled
	events  *events      // nil with v1
}

func (c *cell) method() string {
	if c.hasKill() {
		return MethodKill
	}
	return MethodFreeze
}

// hasKill tells whether the kernel kills a cgroup at once (Linux 5.14). It looks
// at the parent, which is there even if the group was removed.
func (c *cell) hasKill() bool {
	return c.unified && unix.Access(filepath.Join(filepath.Dir(c.dir), "cgroup.kill"), unix.F_OK) == nil
}

func (c *cell) empty() (bool, error) {
	if c.unified {
		populated, _, err := c.events.read()
		if gone(err) {
			return true, nil
		}
		return err == nil && !populated, err
	}
	pids, err := c.pids()
	return err == nil && len(pids) == 0, err
}

// pids lists the processes of the cgroup and of those below it.
func (c *cell) pids() ([]int, error) {
	pids, err := c.list("cgroup.procs")
	if err != nil || c.unified || len(pids) == 0 {
		return pids, err
	}
	return c.withoutVisitors(pids)
}

// list reads a file of numbers in the cgroup and in those below it.
func (c *cell) list(file string) ([]int, error) {
	var numbers []int
	err := walkTree(c.dir, func(dir string) (err error) {
		numbers, err = readPids(numbers, dir, file)
		return err
	})
	return numbers, err
}

// withoutVisitors drops processes that have threads elsewhere. With v1 the thread
// that forks enters the group first (Group.Tasks), and cgroup.procs then names its
// whole process: a runner plugin, which no stop may touch. The threads are listed
// before the group is read, so that a thread born meanwhile is not taken for one
// that is elsewhere.
func (c *cell) withoutVisitors(pids []int) ([]int, error) {
	threads := make(map[int][]int, len(pids))
	for _, pid := range pids {
		entries, err := os.ReadDir(taskFolder(pid))
		if err != nil && !gone(err) && !errors.Is(err, unix.ESRCH) {
			return nil, fmt.Errorf("list threads: %w", err)
		}
		for _, e := range entries {
			if tid, err := strconv.Atoi(e.Name()); err == nil {
				threads[pid] = append(threads[pid], tid)
			}
		}
	}
	list, err := c.list("tasks")
	if err != nil {
		return nil, err
	}
	inside := make(map[int]bool, len(list))
	for _, tid := range list {
		inside[tid] = true
	}
	return slices.DeleteFunc(pids, func(pid int) bool {
		return slices.ContainsFunc(threads[pid], func(tid int) bool { return !inside[tid] && runs(pid, tid) })
	}), nil
}

func taskFolder(pid int) string { return filepath.Join("/proc", strconv.Itoa(pid), "task") }

// runs tells whether a thread is there and has not ended.
func runs(pid, tid int) bool {
	text, err := kernfile.Read(filepath.Join(taskFolder(pid), strconv.Itoa(tid), "stat"), make([]byte, 512))
	if err != nil {
		return false
	}
	e, err := parseStat(tid, text)
	return err == nil && e.state != 'Z' && e.state != 'X'
}

func (c *cell) processes() ([]process, error) {
	pids, err := c.pids()
	list := make([]process, len(pids))
	for i, pid := range pids {
		list[i].pid = pid
	}
	return list, err
}

// terminate sends SIGTERM, and SIGCONT so that who is stopped can answer it,
// until a look finds nobody new.
func (c *cell) terminate() (int, error) {
	seen := map[process]bool{}
	for range signalPasses {
		n, err := c.signal(seen, unix.SIGTERM, unix.SIGCONT)
		if err != nil {
			return len(seen), err
		}
		if n == 0 {
			break
		}
	}
	return len(seen), nil
}

// signal sends signals to the processes not seen before and counts them.
func (c *cell) signal(seen map[process]bool, signals ...unix.Signal) (int, error) {
	pids, err := c.pids()
	if err != nil {
		return 0, err
	}
	fresh := pids[:0]
	for _, pid := range pids {
		if !seen[process{pid: pid}] && !c.own[pid] {
			fresh = append(fresh, pid)
		}
	}
	sent := 0
	for len(fresh) > 0 {
		n := min(openAtOnce, len(fresh))
		k, err := c.signalSome(fresh[:n], seen, signals)
		sent += k
		if err != nil {
			return sent, err
		}
		fresh = fresh[n:]
	}
	return sent, nil
}

// signalSome opens a pidfd on each process and looks into the cgroup again: a
// number that is still there is what the pidfd was opened on. So a number that
// was used again by a stranger is never signalled.
func (c *cell) signalSome(pids []int, seen map[process]bool, signals []unix.Signal) (int, error) {
	open := make(map[int]int, len(pids))
	defer func() {
		for _, fd := range open {
			closeFd(fd)
		}
	}()
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("open process %d: %w", pid, err)
		}
		open[pid] = fd
	}
	again, err := c.pids()
	if err != nil {
		return 0, err
	}
	sent := 0
	for _, pid := range again {
		fd, ok := open[pid]
		if !ok || seen[process{pid: pid}] {
			continue
		}
		for _, s := range signals {
			if err := send(fd, s); err != nil {
				return sent, err
			}
		}
		seen[process{pid: pid}] = true
		sent++
	}
	return sent, nil
}

func (c *cell) kill(killed map[process]bool) error {
	if c.hasKill() {
		return c.killAtOnce(killed)
	}
	return c.killFrozen(killed)
}

// killAtOnce lets the kernel kill all, also what is being forked just now.
func (c *cell) killAtOnce(killed map[process]bool) error {
	list, err := c.processes()
	if err != nil {
		return err
	}
	for _, p := range list {
		killed[p] = true
	}
	if err := writeFile(c.dir, "cgroup.kill", "1"); err != nil && !gone(err) {
		return err
	}
	return nil
}

// killFrozen freezes the group so that nothing forks, kills each process, and
// thaws the group so that they can die.
func (c *cell) killFrozen(killed map[process]bool) error {
	if err := c.freeze(); err != nil {
		return err
	}
	now := map[process]bool{}
	_, err := c.signal(now, unix.SIGKILL)
	for p := range now {
		killed[p] = true
	}
	return errors.Join(err, c.thaw())
}

// freeze stops every process and waits until it is so, for a while.
func (c *cell) freeze() error {
	file, value := "freezer.state", "FROZEN"
	if c.unified {
		file, value = "cgroup.freeze", "1"
	}
	deadline := time.Now().Add(freezePatience)
	for pause := 100 * time.Microsecond; time.Now().Before(deadline); pause *= 2 {
		// A v1 freezer takes up its work again only when it is told again
		// (Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst).
		if err := writeFile(c.dir, file, value); gone(err) {
			return nil
		} else if err != nil {
			return err
		}
		frozen, err := c.frozen()
		if frozen || err != nil {
			return err
		}
		time.Sleep(pause)
	}
	return nil
}

func (c *cell) frozen() (bool, error) {
	if c.unified {
		n, err := readKey(c.dir, "cgroup.events", "frozen")
		return n != 0 || gone(err), optional(err)
	}
	s, err := readLine(c.dir, "freezer.state")
	return s == "FROZEN" || gone(err), optional(err)
}

func (c *cell) thaw() error {
	file, value := "freezer.state", "THAWED"
	if c.unified {
		file, value = "cgroup.freeze", "0"
	}
	if err := writeFile(c.dir, file, value); err != nil && !gone(err) {
		return err
	}
	return nil
}
