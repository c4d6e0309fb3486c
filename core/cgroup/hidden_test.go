package cgroup

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/droverhq/drover/core/job"
	"github.com/droverhq/drover/plugins/lineage"
)

// named counts the processes that have a word in their command line.
func named(t *testing.T, word string) (n int) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		line, err := os.ReadFile(f)
		if err == nil && strings.Contains(string(line), word) && !strings.HasPrefix(f, "/proc/self") {
			n++
		}
	}
	return n
}

// TestP9_ProcessesThatHide_AreStopped: in sessions of their own, twice forked, without
// environment and descriptors, in another folder and under another name.
func TestP9_ProcessesThatHide_AreStopped(t *testing.T) {
	t.Parallel()
	inEveryMode(t, func(t *testing.T, m *Manager) {
		word := "hidden-" + unique()
		g := acquire(t, m, job.Limits{})
		s := start(t, g, `cd /; for i in {1..20}; do
	(setsid env -i /bin/bash -c 'setsid /bin/bash -c "exec -a \$0 sleep 1000 <&- >&- 2>&-" "$0" & disown; exit' "$1-$i" &)
done; echo ready; sleep 1000; :`, word)
		s.line(t)
		until(t, "all to hide", func() bool { return named(t, word+"-") >= 20 })
		s.req.Grace = time.Millisecond
		stop(t, g, s.req)
		if n := named(t, word); n > 0 {
			t.Errorf("%d processes are left", n)
		}
		if empty, err := g.Empty(s.req); !empty || err != nil {
			t.Errorf("empty: %v, %v", empty, err)
		}
	})
}

// TestP9_ProcessThatForksAndEndsAllTheTime_IsStopped: each of its lives is over before
// a list of all processes is read.
func TestP9_ProcessThatForksAndEndsAllTheTime_IsStopped(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]string{
		"by fork":          `setsid env -i /usr/bin/perl -e 'use POSIX; while (1) { exit if fork; POSIX::setsid(); open F, ">>", $ARGV[0]; print F "."; close F }' "$1" &`,
		"by fork and exec": `hop='echo -n . >> "$1"; setsid env -i /bin/bash -c "$0" "$0" "$1" & disown; exit'; (setsid env -i /bin/bash -c "$hop" "$hop" "$1" &)`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inEveryMode(t, func(t *testing.T, m *Manager) {
				lives := filepath.Join(t.TempDir(), "lives")
				count := func() int64 {
					st, err := os.Stat(lives)
					if err != nil {
						return 0
					}
					return st.Size()
				}
				g := acquire(t, m, job.Limits{})
				s := start(t, g, script+"\necho ready; sleep 1000; :", lives)
				s.line(t)
				until(t, "a few lives", func() bool { return count() > 20 })
				s.req.Grace = time.Millisecond
				stop(t, g, s.req)
				before := count()
				time.Sleep(50 * time.Millisecond) // for what must not happen
				if after := count(); after != before {
					t.Errorf("it lives on: %d lives became %d", before, after)
				}
			})
		})
	}
}

// TestP9_NeighbourIsLeftAlone: a tag is of one attempt.
func TestP9_NeighbourIsLeftAlone(t *testing.T) {
	t.Parallel()
	inEveryMode(t, func(t *testing.T, m *Manager) {
		word := "neighbour-" + unique()
		const hide = `(setsid env -i /bin/bash -c 'exec -a "$0" sleep 1000 <&- >&- 2>&-' "$1" &); echo ready; sleep 1000; :`
		one, two := acquire(t, m, job.Limits{}), acquire(t, m, job.Limits{})
		mine, other := start(t, one, hide, word+"-1"), start(t, two, hide, word+"-2")
		mine.line(t)
		other.line(t)
		until(t, "both to hide", func() bool { return named(t, word+"-1\x00") > 0 && named(t, word+"-2\x00") > 0 })
		stop(t, one, mine.req)
		if a, b := named(t, word+"-1\x00"), named(t, word+"-2\x00"); a != 0 || b == 0 {
			t.Errorf("%d of the attempt's are left, %d of the neighbour's", a, b)
		}
	})
}

// TestP9_ManyOthersStartMeanwhile_TheNewestIsStillFound: between two looks others started
// more processes than were looked at.
func TestP9_ManyOthersStartMeanwhile_TheNewestIsStillFound(t *testing.T) {
	t.Parallel()
	mark := unique()
	w := &walker{scanner: newScanner(), never: map[int]bool{os.Getpid(): true}, req: StopRequest{Mark: mark}, known: map[process]bool{}}
	if found, err := w.look(); err != nil || len(found) > 0 {
		t.Fatalf("%v, %v", found, err)
	}
	cmd := exec.Command("bash", "-c", `ulimit -S -x "$1"; exec sleep 1000`, "bash", fmt.Sprint(uint64(lineage.Of(mark))))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	defer func() { _ = cmd.Process.Kill() }()
	until(t, "it wears its tag", func() bool { return lineage.Read(cmd.Process.Pid) == lineage.Of(mark) })
	if err := exec.Command("bash", "-c", "for i in {1..200}; do (:); done").Run(); err != nil {
		t.Fatal(err)
	}
	if n, err := w.chase(map[process]bool{}); n != 1 || err != nil {
		t.Errorf("%d are found, %v", n, err)
	}
}
