package cgroup

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// hierarchy is a mounted cgroup tree and this process's place in it.
type hierarchy struct {
	controllers []string // v1 only; v2 has none here
	dir         string   // folder of this process's own cgroup
}

// hierarchies reads where this process is in every mounted tree.
func hierarchies() ([]hierarchy, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find cgroup mounts: %w", err)
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("find own cgroups: %w", err)
	}
	return layout(string(mounts), string(own)), nil
}

// layout pairs the mounts of /proc/self/mountinfo with the paths of
// /proc/self/cgroup (proc_pid_mountinfo(5), cgroups(7)). A tree that is mounted
// so that the own cgroup cannot be seen is left out.
func layout(mountinfo, own string) []hierarchy {
	paths := map[string]string{} // controller, or "" for v2
	for line := range strings.Lines(own) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 {
			continue
		}
		for _, c := range strings.Split(parts[1], ",") {
			paths[c] = parts[2]
		}
	}
	var found []hierarchy
	for line := range strings.Lines(mountinfo) {
		h, ok := mounted(strings.Fields(line), paths)
		seen := slices.ContainsFunc(found, func(f hierarchy) bool { return slices.Equal(f.controllers, h.controllers) })
		if ok && !seen {
			found = append(found, h)
		}
	}
	return found
}

// mounted reads one line of mountinfo.
func mounted(fields []string, paths map[string]string) (hierarchy, bool) {
	dash := slices.Index(fields, "-")
	if dash < 6 || len(fields) < dash+4 {
		return hierarchy{}, false
	}
	root, point := unescape(fields[3]), unescape(fields[4])
	kind, options := fields[dash+1], strings.Split(fields[dash+3], ",")
	var controllers []string
	switch kind {
	case "cgroup2":
	case "cgroup":
		for _, o := range options {
			if _, ok := paths[o]; ok && o != "" {
				controllers = append(controllers, o)
			}
		}
		if len(controllers) == 0 {
			return hierarchy{}, false
		}
		slices.Sort(controllers)
	default:
		return hierarchy{}, false
	}
	key := ""
	if len(controllers) > 0 {
		key = controllers[0]
	}
	path, ok := paths[key]
	if !ok {
		return hierarchy{}, false
	}
	rel, err := filepath.Rel(root, path)
	if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		return hierarchy{}, false
	}
	return hierarchy{controllers: controllers, dir: filepath.Join(point, rel)}, true
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// find returns the v1 tree of a controller, or the v2 tree for "".
func find(all []hierarchy, controller string) (hierarchy, bool) {
	for _, h := range all {
		if controller == "" && h.controllers == nil || controller != "" && slices.Contains(h.controllers, controller) {
			return h, true
		}
	}
	return hierarchy{}, false
}

// delegated returns the cgroup to nest below: dir, or its parent where systemd
// put this process into a leaf of a cgroup that it handed over
// (systemd.resource-control(5), Delegate= and DelegateSubgroup=). Only the parent
// may then hand controllers on, because it has no process of its own.
func delegated(dir string) string {
	parent := filepath.Dir(dir)
	one := make([]byte, 8)
	for _, name := range []string{"user.delegate", "trusted.delegate"} {
		if n, err := unix.Getxattr(parent, name, one); err == nil && bytes.Equal(one[:n], []byte("1")) {
			return parent
		}
	}
	return dir
}
