package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/plugins/kernfile"
	"github.com/droverhq/drover/plugins/lineage"
)

// entry is one process of the table.
type entry struct {
	process
	parent, group, session int
	threads                int
	state                  byte
	mark                   string
	tag                    lineage.Tag
}

// alive tells whether any of it still runs. A main thread that ended is a zombie
// while other threads run on.
func (e entry) alive() bool { return e.state != 'Z' && e.state != 'X' || e.threads > 1 }

// readStat reads /proc/PID/stat (proc_pid_stat(5)).
func readStat(pid int) (entry, error) {
	text, err := kernfile.Read(filepath.Join("/proc", strconv.Itoa(pid), "stat"), make([]byte, 512))
	if err != nil {
		return entry{}, err
	}
	return parseStat(pid, text)
}

func parseStat(pid int, text []byte) (entry, error) {
	// The name in parentheses may itself hold parentheses, spaces and newlines.
	end := bytes.LastIndexByte(text, ')')
	if end < 0 {
		return entry{}, fmt.Errorf("read state of process %d: %q", pid, text)
	}
	f := bytes.Fields(text[end+1:])
	if len(f) < 20 {
		return entry{}, fmt.Errorf("read state of process %d: %q", pid, text)
	}
	number := func(i int) int {
		n, _ := strconv.Atoi(string(f[i]))
		return n
	}
	start, err := strconv.ParseUint(string(f[19]), 10, 64)
	if err != nil {
		return entry{}, fmt.Errorf("read start of process %d: %w", pid, err)
	}
	return entry{
		process: process{pid, start}, state: f[0][0],
		parent: number(1), group: number(2), session: number(3), threads: number(17),
	}, nil
}

// markOf finds the mark in an environment as /proc/PID/environ shows it.
func markOf(environ []byte) string {
	const name = MarkVariable + "="
	for len(environ) > 0 {
		one, rest, _ := bytes.Cut(environ, []byte{0})
		if bytes.HasPrefix(one, []byte(name)) {
			return string(one[len(name):])
		}
		environ = rest
	}
	return ""
}

// readTable reads all processes. The environment of other users' processes is
// not readable without privileges; those have no mark.
func readTable() ([]entry, error) {
	proc, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	defer proc.Close()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	const kthreadd = 2
	var table []entry
	buf := make([]byte, 64<<10)
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		text, err := kernfile.Read("/proc/"+name+"/stat", buf)
		if err != nil {
			continue // it ended meanwhile
		}
		e, err := parseStat(pid, text)
		if err != nil {
			return nil, err
		}
		if e.parent == kthreadd || pid == kthreadd {
			continue
		}
		if environ, err := kernfile.Read("/proc/"+name+"/environ", buf); err == nil {
			e.mark = markOf(environ)
		}
		e.tag = lineage.Read(pid)
		table = append(table, e)
	}
	return table, nil
}

// ancestry is a process and its ancestors.
func ancestry(pid int) (map[int]bool, error) {
	line := map[int]bool{1: true}
	for pid > 0 && !line[pid] {
		line[pid] = true
		e, err := readStat(pid)
		if errors.Is(err, unix.ENOENT) {
			break // outside of what this /proc shows
		}
		if err != nil {
			return nil, fmt.Errorf("find ancestors: %w", err)
		}
		pid = e.parent
	}
	return line, nil
}

// scanner reads the table for many stops at once: who asks while one is being
// read shares the next, so that every answer is younger than its question.
type scanner struct {
	turn chan struct{} // holds a token while nobody reads

	mu   sync.Mutex // guards next
	next *scan
}

type scan struct {
	done  chan struct{}
	table []entry
	err   error
}

func newScanner() *scanner {
	s := &scanner{turn: make(chan struct{}, 1)}
	s.turn <- struct{}{}
	return s
}

// read returns the table as it is after the call. The table is shared: read only.
func (s *scanner) read() ([]entry, error) {
	s.mu.Lock()
	mine := s.next
	if mine != nil {
		s.mu.Unlock()
		<-mine.done
		return mine.table, mine.err
	}
	mine = &scan{done: make(chan struct{})}
	s.next = mine
	s.mu.Unlock()
	<-s.turn
	s.mu.Lock()
	s.next = nil
	s.mu.Unlock()
	mine.table, mine.err = readTable()
	s.turn <- struct{}{}
	close(mine.done)
	return mine.table, mine.err
}
