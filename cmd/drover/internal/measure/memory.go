package measure

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Process is one process whose memory is measured.
type Process struct {
	Role, Name string
	PID        int
}

// ProcessMemory is what one process holds. Shared pages count by their share.
type ProcessMemory struct {
	Role   string `json:"role"`
	Name   string `json:"name"`
	PSSKB  int64  `json:"pss_kb"`
	AnonKB int64  `json:"anon_kb"` // of that: its own data
	FileKB int64  `json:"file_kb"` // of that: programs and libraries
}

// Memory is what a cluster holds at one moment.
type Memory struct {
	PSSKB     int64           `json:"pss_kb"`
	Processes []ProcessMemory `json:"processes"`
}

// MemoryResult is the memory of an idle cluster, of one with jobs, and what the
// difference is per job.
type MemoryResult struct {
	Idle        Memory  `json:"idle"`
	Jobs        int     `json:"jobs"`
	Running     Memory  `json:"running"`
	PSSKBPerJob float64 `json:"pss_kb_per_job"`
}

// How Settled waits: memory is taken when so many looks in a row found nearly
// the same. That is longer than a daemon takes to notice that it is at rest.
const (
	settleLook  = time.Second
	settleSame  = 8
	settleLooks = 60
	settleSlack = 200 // kB
)

// Settled returns the memory of the processes once it has come to rest, or
// after a minute.
func Settled(ctx context.Context, ps []Process) (Memory, error) {
	tick := time.NewTicker(settleLook)
	defer tick.Stop()
	last, err := ReadMemory(ps)
	for look, same := 0, 0; err == nil && same < settleSame && look < settleLooks; look++ {
		select {
		case <-ctx.Done():
			return Memory{}, ctx.Err()
		case <-tick.C:
		}
		var now Memory
		if now, err = ReadMemory(ps); max(now.PSSKB-last.PSSKB, last.PSSKB-now.PSSKB) <= settleSlack {
			same++
		} else {
			same = 0
		}
		last = now
	}
	return last, err
}

// ReadMemory reads the memory of the processes, those of the same program
// together: what this process maps of that program, too, would lessen their
// share and is added to the first of them.
func ReadMemory(ps []Process) (Memory, error) {
	var m Memory
	exes := map[string]bool{}
	for _, p := range ps {
		r, err := readPSS(p.PID)
		if err != nil {
			return Memory{}, fmt.Errorf("read the memory of %s: %w", p.Name, err)
		}
		r.Role, r.Name = p.Role, p.Name
		exe, err := os.Readlink("/proc/" + strconv.Itoa(p.PID) + "/exe")
		if err != nil {
			return Memory{}, fmt.Errorf("find the program of %s: %w", p.Name, err)
		}
		if !exes[exe] {
			exes[exe] = true
			own, err := ownShare(exe)
			if err != nil {
				return Memory{}, err
			}
			r.PSSKB, r.FileKB = r.PSSKB+own, r.FileKB+own
		}
		m.PSSKB += r.PSSKB
		m.Processes = append(m.Processes, r)
	}
	return m, nil
}

// PerJob is what the memory grew by per job.
func PerJob(idle, running Memory, jobs int) float64 {
	return float64(running.PSSKB-idle.PSSKB) / float64(jobs)
}

// readPSS reads smaps_rollup, see Documentation/filesystems/proc.rst.
func readPSS(pid int) (ProcessMemory, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/smaps_rollup")
	if err != nil {
		return ProcessMemory{}, err
	}
	var p ProcessMemory
	for key, field := range map[string]*int64{"Pss": &p.PSSKB, "Pss_Anon": &p.AnonKB, "Pss_File": &p.FileKB} {
		if *field, err = kilobytes(data, key); err != nil {
			return ProcessMemory{}, err
		}
	}
	return p, nil
}

// kilobytes finds the value of one line such as "Pss:    1234 kB".
func kilobytes(data []byte, key string) (int64, error) {
	for line := range bytes.Lines(data) {
		rest, ok := bytes.CutPrefix(line, []byte(key+":"))
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(string(bytes.TrimSpace(bytes.TrimSuffix(bytes.TrimSpace(rest), []byte("kB")))), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read %q: %w", line, err)
		}
		return n, nil
	}
	return 0, fmt.Errorf("there is no %s", key)
}

// ownShare is this process's share of what it maps of a file.
func ownShare(path string) (int64, error) {
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return 0, fmt.Errorf("read own memory: %w", err)
	}
	defer f.Close()
	var sum int64
	inside := false
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) > 1 && !strings.HasSuffix(fields[0], ":"): // the head of a mapping
			inside = slices.Contains(fields[5:], path)
		case inside && fields[0] == "Pss:":
			n, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read own memory: %w", err)
			}
			sum += n
		}
	}
	return sum, lines.Err()
}
