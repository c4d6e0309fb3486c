package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

// The controllers that carry limits.
const (
	cpuTree    = "cpu"
	memoryTree = "memory"
	pidsTree   = "pids"
)

// cpuPeriod is the span over which the kernel counts a cpu quota, in µs; the
// longer one is for shares so small that a quota would fall below the kernel's
// least of 1 ms (cpu.cfs_quota_us).
const (
	cpuPeriod     = 100_000
	cpuLongPeriod = 1_000_000
)

// wanted says which controller a limit needs and how the request calls it.
type wanted struct {
	controller, field string
}

func wants(l job.Limits) []wanted {
	var list []wanted
	if l.CPUMillis > 0 {
		list = append(list, wanted{cpuTree, "limits.cpu_millis"})
	}
	if l.Memory > 0 {
		list = append(list, wanted{memoryTree, "limits.memory_bytes"})
	}
	if l.Pids > 0 {
		list = append(list, wanted{pidsTree, "limits.pids"})
	}
	return list
}

// Check refuses limits that this host cannot keep with Invalid, reason
// LIMIT_UNSUPPORTED, and the field. It does no I/O.
func (m *Manager) Check(l job.Limits) error {
	const op = "check limits"
	for _, w := range wants(l) {
		c, ok := m.controls[w.controller]
		if !ok {
			return errs.Field(op, w.field, job.ReasonLimit,
				"this worker's host has no %s cgroup controller that drover may use", w.controller).
				WithHint("leave %s out, choose another worker, or give the worker a delegated cgroup (systemd: Delegate=yes, DelegateSubgroup=worker)", w.field)
		}
		if w.controller == pidsTree && c.version == 1 && l.Pids < 2 {
			// The thread that forks is counted while it does (Group.Tasks).
			return errs.Field(op, w.field, job.ReasonLimit, "the least that cgroup v1 of this worker's host can keep is 2, not %d", l.Pids)
		}
	}
	return nil
}

// controlsV1 notes the v1 controllers that limits can be set with. A controller
// that v2 has already is not in v1 (cgroups(7)).
func (m *Manager) controlsV1(found []hierarchy) bool {
	any := false
	for _, c := range []string{cpuTree, memoryTree, pidsTree} {
		h, ok := find(found, c)
		if _, have := m.controls[c]; !ok || have {
			continue
		}
		if err := writable(h.dir); err != nil {
			m.cfg.Log.Info("limits cannot be set", "controller", c, "reason", err)
			continue
		}
		m.controls[c] = control{version: 1, base: filepath.Join(h.dir, "drover-"+m.cfg.Name)}
		// A former life may have left something there; Prune and Close look.
		m.parents[m.controls[c].base] = true
		any = true
	}
	return any
}

// enableV2 hands the controllers that there are on to the groups. The kernel
// refuses this with EBUSY where home has processes of its own and is not the root
// (cgroups(7), no internal processes): then there are no limits.
func (m *Manager) enableV2(home string) {
	for _, c := range []string{cpuTree, memoryTree, pidsTree} {
		before, err := m.enable(home, c)
		if err != nil {
			m.cfg.Log.Info("limits cannot be set", "controller", c, "reason", err)
			continue
		}
		if !before {
			m.enabled = append(m.enabled, c)
		}
		if _, err := m.enable(m.base, c); err != nil {
			m.cfg.Log.Info("limits cannot be set", "controller", c, "reason", err)
			continue
		}
		m.controls[c] = control{version: 2, base: m.base}
	}
}

// enable hands a controller on to the children of dir and tells whether it was
// handed on before.
func (m *Manager) enable(dir, controller string) (before bool, err error) {
	on, err := readLine(dir, "cgroup.subtree_control")
	if err != nil {
		return false, err
	}
	if slices.Contains(strings.Fields(on), controller) {
		return true, nil
	}
	return false, writeFile(dir, "cgroup.subtree_control", "+"+controller)
}

// disableV2 takes back what enableV2 did, if no child needs it any more.
func (m *Manager) disableV2() {
	for _, c := range m.enabled {
		if err := writeFile(filepath.Dir(m.base), "cgroup.subtree_control", "-"+c); err != nil {
			m.cfg.Log.Debug("a controller stays enabled", "controller", c, "reason", err)
		}
	}
}

// limit sets the limits of a new group.
func (g *Group) limit(l job.Limits) error {
	for _, w := range wants(l) {
		dir := g.dir
		c := g.m.controls[w.controller]
		if c.version == 1 {
			var err error
			if dir, err = g.control(w.controller, c.base); err != nil {
				return err
			}
		}
		var err error
		switch w.controller {
		case cpuTree:
			err = limitCPU(dir, c.version, l.CPUMillis)
		case memoryTree:
			err = limitMemory(dir, c.version, l.Memory)
		case pidsTree:
			err = writeFile(dir, "pids.max", strconv.FormatUint(uint64(l.Pids), 10))
		}
		if err != nil {
			return fmt.Errorf("set %s: %w", w.field, err)
		}
	}
	return nil
}

// control makes the group's folder in the tree of a v1 controller. Controllers
// that are mounted together share it.
func (g *Group) control(controller, base string) (string, error) {
	for _, c := range g.limits {
		if filepath.Dir(c.dir) == base {
			g.limits = append(g.limits, controlDir{controller, c.dir})
			return c.dir, nil
		}
	}
	dir := filepath.Join(base, filepath.Base(g.dir))
	if err := os.Mkdir(base, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("make parent of groups: %w", err)
	}
	// A folder of this name may wait for its last dying task to go.
	for n := 1; ; n++ {
		err := os.Mkdir(dir, 0o755)
		if err == nil {
			break
		}
		if !errors.Is(err, os.ErrExist) || n > 1000 {
			return "", fmt.Errorf("make group for limits: %w", err)
		}
		dir = filepath.Join(base, filepath.Base(g.dir)+"-"+strconv.Itoa(n))
	}
	g.m.mu.Lock()
	g.m.used[dir] = true
	g.m.mu.Unlock()
	g.limits = append(g.limits, controlDir{controller, dir})
	return dir, nil
}

// quota is millis thousandths of a core as quota and period in µs.
func quota(millis uint32) (quota, period uint64) {
	period = cpuPeriod
	if millis < 10 {
		period = cpuLongPeriod
	}
	return uint64(millis) * period / 1000, period
}

func limitCPU(dir string, version int, millis uint32) error {
	quota, period := quota(millis)
	if version == 2 {
		return writeFile(dir, "cpu.max", fmt.Sprintf("%d %d", quota, period))
	}
	if err := writeFile(dir, "cpu.cfs_period_us", strconv.FormatUint(period, 10)); err != nil {
		return err
	}
	return writeFile(dir, "cpu.cfs_quota_us", strconv.FormatUint(quota, 10))
}

// limitMemory bounds memory and forbids swap, so that the bound is one.
func limitMemory(dir string, version int, bytes uint64) error {
	value := strconv.FormatUint(bytes, 10)
	if version == 2 {
		if err := writeFile(dir, "memory.max", value); err != nil {
			return err
		}
		// One process killed leaves an attempt that is neither whole nor over.
		if err := writeFile(dir, "memory.oom.group", "1"); err != nil {
			return err
		}
		return optional(writeFile(dir, "memory.swap.max", "0"))
	}
	if err := writeFile(dir, "memory.limit_in_bytes", value); err != nil {
		return err
	}
	return optional(writeFile(dir, "memory.memsw.limit_in_bytes", value))
}

// optional forgives a knob that kernels without swap accounting do not have.
func optional(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}
