package cgroup

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzLayout: whatever the kernel lists, a hierarchy is an absolute path that does
// not climb out of its mount.
func FuzzLayout(f *testing.F) {
	f.Add("35 24 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n", "0::/user.slice/a.scope\n")
	f.Add("33 32 0:29 /docker/x /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n", "4:cpu,cpuacct:/docker/x/y\n1:name=systemd:/\n")
	f.Add("1 2 0:3 / /a\\040b rw shared:1 - cgroup2 none rw\n", "0::/../..\n")
	f.Fuzz(func(t *testing.T, mountinfo, own string) {
		for _, h := range layout(mountinfo, own) {
			if strings.HasPrefix(h.dir, "../") || strings.Contains(h.dir, "/../") || filepath.Clean(h.dir) != h.dir {
				t.Errorf("%+v leads elsewhere", h)
			}
		}
	})
}

// FuzzStat: no name of a process shifts the numbers behind it.
func FuzzStat(f *testing.F) {
	f.Add("cat", "S", 1, 2, 3, uint64(77))
	f.Add(") R 1 1 1 (", "Z", 4, 5, 6, uint64(1))
	f.Add("a\n) (b", "R", 0, -1, 1<<30, uint64(1)<<63)
	f.Fuzz(func(t *testing.T, name, state string, parent, group, session int, start uint64) {
		if len(state) != 1 || state[0] <= ' ' || state[0] > '~' || state == ")" {
			return
		}
		text := fmt.Sprintf("42 (%s) %s %d %d %d 0 0 0 0 0 0 0 0 0 0 0 0 0 9 0 %d 0 0\n", name, state, parent, group, session, start)
		e, err := parseStat(42, []byte(text))
		if err != nil || e.state != state[0] || e.parent != parent || e.group != group || e.session != session || e.process != (process{42, start}) {
			t.Errorf("%q: %+v, %v", text, e, err)
		}
	})
}

// FuzzKernelFiles: what is torn or strange is an error, a zero or nothing.
func FuzzKernelFiles(f *testing.F) {
	f.Add([]byte("populated 1\nfrozen 0\n"), "frozen")
	f.Add([]byte("PATH=/bin\x00"+MarkVariable+"=abc\x00"), "PATH")
	f.Add([]byte("1 (a"), "a")
	f.Fuzz(func(t *testing.T, text []byte, key string) {
		_, _ = parseStat(1, text)
		if mark := markOf(text); mark != "" && !strings.Contains(string(text), MarkVariable+"="+mark) {
			t.Errorf("the mark %q is not in %q", mark, text)
		}
		if n := keyed(text, key); n != 0 && !strings.Contains(string(text), key) {
			t.Errorf("%q has the value %d in %q", key, n, text)
		}
	})
}
