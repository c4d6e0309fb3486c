package cgroup

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/droverhq/drover/plugins/kernfile"
)

func TestLayout(t *testing.T) {
	t.Parallel()
	h := func(dir string, controllers ...string) hierarchy { return hierarchy{controllers, dir} }
	cases := []struct {
		name, mounts, own string
		want              []hierarchy
	}{
		{
			name:   "v2 alone, as systemd mounts it",
			mounts: "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
			own:    "0::/system.slice/drover.service\n",
			want:   []hierarchy{h("/sys/fs/cgroup/system.slice/drover.service")},
		},
		{
			name: "hybrid with v2 at a place of its own",
			mounts: "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n" +
				"34 31 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n" +
				"32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n" +
				"41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
			own: "4:memory:/a/b\n2:cpu,cpuacct:/\n1:name=systemd:/\n0::/c\n",
			want: []hierarchy{
				h("/sys/fs/cgroup/memory/a/b", "memory"), h("/sys/fs/cgroup/cpu,cpuacct", "cpu", "cpuacct"), h("/sys/fs/cgroup/unified/c"),
			},
		},
		{
			name:   "a container that sees a part of the tree",
			mounts: "30 23 0:26 /docker/1f /sys/fs/cgroup ro - cgroup2 cgroup rw\n",
			own:    "0::/docker/1f/init\n",
			want:   []hierarchy{h("/sys/fs/cgroup/init")},
		},
		{
			name:   "a mount that does not show the own cgroup",
			mounts: "30 23 0:26 /docker/1f /sys/fs/cgroup rw - cgroup2 cgroup rw\n31 23 0:26 /../other /x rw - cgroup2 cgroup rw\n",
			own:    "0::/docker/2a\n",
		},
		{
			name:   "the first of two mounts of a tree",
			mounts: "30 23 0:26 / /one rw - cgroup2 cgroup rw\n31 23 0:26 / /two rw - cgroup2 cgroup rw\n",
			own:    "0::/\n",
			want:   []hierarchy{h("/one")},
		},
		{
			name:   "a mount point with a space and a backslash",
			mounts: `30 23 0:26 / /mnt/c\040g\134 rw - cgroup2 cgroup rw` + "\n",
			own:    "0::/x\n",
			want:   []hierarchy{h(`/mnt/c g\/x`)},
		},
		{
			name:   "a named tree without controllers, other file systems, broken lines",
			mounts: "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n1 2 - ext4\nx\n\n30 1 8:1 / / rw - ext4 /dev/a rw\n",
			own:    "1:name=systemd:/\nbroken\n",
			want:   []hierarchy{h("/sys/fs/cgroup/systemd", "name=systemd")},
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if d := cmp.Diff(c.want, layout(c.mounts, c.own), cmp.AllowUnexported(hierarchy{})); d != "" {
				t.Errorf("-want +got\n%s", d)
			}
		})
	}
}

func TestFind(t *testing.T) {
	t.Parallel()
	all := []hierarchy{{[]string{"cpu", "cpuacct"}, "/c"}, {nil, "/u"}}
	for controller, want := range map[string]string{"cpu": "/c", "cpuacct": "/c", "": "/u", "memory": ""} {
		if h, ok := find(all, controller); h.dir != want || ok != (want != "") {
			t.Errorf("%q: %v, %v", controller, h, ok)
		}
	}
}

func TestUnwritableCgroupsAreNotUsed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := writable(dir); err == nil {
		t.Error("a folder without cgroup.procs is no cgroup")
	}
	if err := writable(filepath.Join(dir, "missing")); err == nil {
		t.Error("a missing folder is not writable")
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := writable(dir); err != nil {
		t.Error(err)
	}
	if got := delegated(dir); got != dir {
		t.Errorf("nothing was delegated, yet %s was chosen over %s", got, dir)
	}
}

func TestFilesOfARemovedCgroup(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "gone")
	if list, err := readPids(nil, dir, "cgroup.procs"); err != nil || list != nil {
		t.Errorf("%v, %v", list, err)
	}
	if err := removeTree(dir); err != nil {
		t.Error(err)
	}
	if err := removeEmpty(dir); err != nil {
		t.Error(err)
	}
	if empty, err := (&cell{dir: dir}).empty(); !empty || err != nil {
		t.Errorf("v1: %v, %v", empty, err)
	}
	if empty, err := (&cell{dir: dir, unified: true, events: newEvents(dir)}).empty(); !empty || err != nil {
		t.Errorf("v2: %v, %v", empty, err)
	}
	killed := map[process]bool{}
	if err := (&cell{dir: dir}).killFrozen(killed); err != nil || len(killed) > 0 {
		t.Errorf("v1 kill: %v", err)
	}
	if err := (&cell{dir: dir, unified: true}).killAtOnce(killed); err != nil || len(killed) > 0 {
		t.Errorf("v2 kill: %v", err)
	}
}

func TestReadFileGrowsItsBuffer(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "long")
	long := make([]byte, 100_000)
	for i := range long {
		long[i] = byte(i)
	}
	if err := os.WriteFile(path, long, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := kernfile.Read(path, make([]byte, 10))
	if err != nil || string(got) != string(long) {
		t.Errorf("read %d bytes of %d, %v", len(got), len(long), err)
	}
}
