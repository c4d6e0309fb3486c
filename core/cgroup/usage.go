package cgroup

import (
	"path/filepath"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/plugins/kernfile"
)

// Usage is what the processes of a group have used.
type Usage struct {
	CPUMicros uint64 // processor time; 0 with v1 and without cgroups
	MaxRSS    uint64 // most bytes held at once; 0 unless memory is limited
	OOMKills  uint64 // processes killed for want of memory under a limit
}

// Usage reads what the group has used since it was acquired. It is zero where the
// host counts nothing, and for a group without limits: those are used again
// thousands of times a second, and their counters are not read in between.
func (g *Group) Usage() (Usage, error) {
	if g.dir == "" || !g.limited {
		return Usage{}, nil
	}
	u, err := g.read(g.dir)
	if err != nil {
		return Usage{}, errs.E("read cgroup usage", errs.Internal, "CGROUP", err)
	}
	u.CPUMicros -= min(u.CPUMicros, g.base.CPUMicros)
	u.OOMKills -= min(u.OOMKills, g.base.OOMKills)
	for _, c := range g.limits {
		if c.controller != memoryTree {
			continue
		}
		if u.OOMKills, err = present(readKey(c.dir, "memory.oom_control", "oom_kill")); err != nil {
			return Usage{}, errs.E("read cgroup usage", errs.Internal, "CGROUP", err)
		}
		if u.MaxRSS, err = present(readNumber(c.dir, "memory.max_usage_in_bytes")); err != nil {
			return Usage{}, errs.E("read cgroup usage", errs.Internal, "CGROUP", err)
		}
	}
	return u, nil
}

// read reads the counters of a v2 folder, which never go back to 0.
func (g *Group) read(dir string) (Usage, error) {
	var u Usage
	if !g.unified {
		return u, nil
	}
	var err error
	if u.CPUMicros, err = present(readKey(dir, "cpu.stat", "usage_usec")); err != nil {
		return Usage{}, err
	}
	if g.m.controls[memoryTree].version != 2 {
		return u, nil
	}
	if u.OOMKills, err = present(readKey(dir, "memory.events", "oom_kill")); err != nil {
		return Usage{}, err
	}
	if g.limited {
		// memory.peak is younger than the kernels this runs on (5.19).
		u.MaxRSS, err = present(readNumber(dir, "memory.peak"))
	}
	return u, err
}

func readNumber(dir, file string) (uint64, error) {
	text, err := kernfile.Read(filepath.Join(dir, file), make([]byte, 64))
	if err != nil {
		return 0, err
	}
	return keyed(append([]byte("n "), text...), "n"), nil
}

// present makes a counter that is not there 0.
func present(n uint64, err error) (uint64, error) {
	if gone(err) {
		return 0, nil
	}
	return n, err
}
