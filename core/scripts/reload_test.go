package scripts

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/droverhq/drover/core/job"
)

func TestEveryKindOfEditIsNoticed(t *testing.T) {
	t.Parallel()
	dir := folderWith(t, "kept.sh", "kept", "edited.sh", "old", "renamed.sh", "r", "deleted.sh", "d", "replaced.sh", "old", "mode.sh", "m")
	l := run(t, dir)
	at := func(name string) string { return filepath.Join(dir, name) }
	kept := byPath(l)["kept.sh"]
	write(t, dir, "new.sh", "new")
	write(t, dir, "edited.sh", "edited")
	write(t, dir, "a/b/c/nested.sh", "nested")
	write(t, t.TempDir(), "x", "x")
	write(t, dir, ".tmp", "replaced")
	for _, err := range []error{
		os.Rename(at("renamed.sh"), at("moved.sh")), os.Remove(at("deleted.sh")), os.Rename(at(".tmp"), at("replaced.sh")), os.Chmod(at("mode.sh"), 0o755),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"a/b/c/nested.sh", "edited.sh", "kept.sh", "mode.sh", "moved.sh", "new.sh", "replaced.sh"}
	untilIndex(t, l, "all edits", func(all map[string]job.ScriptInfo) bool {
		return len(all) == len(want) && all["edited.sh"].Size == 6 && all["replaced.sh"].Size == 8
	})
	for _, name := range want {
		p := pin(t, l, name)
		if got, now := content(t, p.Path), content(t, at(name)); got != now {
			t.Errorf("%s: published %q, there is %q", name, got, now)
		}
		p.Release()
	}
	if byPath(l)["kept.sh"] != kept {
		t.Error("an untouched script changed in the index")
	}
	p := pin(t, l, "mode.sh")
	defer p.Release()
	if info, err := os.Stat(p.Path); err != nil || info.Mode()&0o100 == 0 {
		t.Errorf("mode.sh is published %v, %v", info.Mode(), err)
	}
}

// A folder that comes with its files in one go has no watch yet when they appear.
func TestFoldersMadeWithTheirFilesInOneGo(t *testing.T) {
	t.Parallel()
	dir, aside := folderWith(t), t.TempDir()
	l := run(t, dir)
	for i := range 200 {
		write(t, aside, fmt.Sprintf("pack/%d/%d.sh", i%20, i), fmt.Sprint(i))
	}
	if err := os.Rename(filepath.Join(aside, "pack"), filepath.Join(dir, "pack")); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		write(t, dir, fmt.Sprintf("made/%d/%d.sh", i%20, i), fmt.Sprint(i))
	}
	untilIndex(t, l, "all 400 scripts", func(all map[string]job.ScriptInfo) bool { return len(all) == 400 })
	// And what is below them is watched from then on.
	write(t, dir, "pack/7/7.sh", "again")
	sum := byPath(l)["pack/7/7.sh"].SHA256
	untilIndex(t, l, "an edit far below", func(all map[string]job.ScriptInfo) bool { return all["pack/7/7.sh"].SHA256 != sum })
}

// The flip of a symbolic link gives no event in the folder it led to.
func TestAFlippedFolderIsNoticed(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	write(t, parent, "releases/1/run.sh", "one")
	write(t, parent, "releases/2/run.sh", "two")
	write(t, parent, "releases/2/more.sh", "more")
	folder := filepath.Join(parent, "current")
	flip := func(to string) {
		t.Helper()
		next := filepath.Join(parent, "next")
		if err := os.Symlink(to, next); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, folder); err != nil {
			t.Fatal(err)
		}
	}
	flip("releases/1")
	l := run(t, folder)
	old := pin(t, l, "run.sh")
	defer old.Release()
	flip("releases/2")
	untilIndex(t, l, "the flip", func(all map[string]job.ScriptInfo) bool { return len(all) == 2 })
	p := pin(t, l, "current/run.sh")
	defer p.Release()
	if content(t, p.Path) != "two" || content(t, old.Path) != "one" {
		t.Errorf("new %q, pinned before %q", content(t, p.Path), content(t, old.Path))
	}
	write(t, parent, "releases/2/run.sh", "three")
	again := pin(t, l, "run.sh")
	defer again.Release()
	if text := content(t, again.Path); text != "three" {
		t.Errorf("an edit behind the link: %q", text)
	}
}

// The event queue of the kernel holds 16,384: a burst must converge without it.
func TestABurstOfFortyThousandWritesConverges(t *testing.T) {
	t.Parallel()
	dir := folderWith(t)
	l := run(t, dir)
	began := time.Now()
	const files, rounds = 200, 200
	for i := range files * rounds {
		path := filepath.Join(dir, fmt.Sprintf("%d.sh", i%files))
		if err := os.WriteFile(path, fmt.Appendf(nil, "%d", i/files), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	wrote := time.Since(began)
	untilIndex(t, l, "the last version of each", func(all map[string]job.ScriptInfo) bool {
		for _, s := range all {
			if s.Size != 3 {
				return false
			}
		}
		return len(all) == files
	})
	for i := range files {
		p := pin(t, l, fmt.Sprintf("%d.sh", i))
		if text := content(t, p.Path); text != fmt.Sprint(rounds-1) {
			t.Errorf("%d.sh: %q", i, text)
		}
		p.Release()
	}
	t.Logf("40,000 writes in %v, converged %v later, generation %d", wrote, time.Since(began)-wrote, l.Index().Generation)
}

// P12: a half-written file is never published; the version before stays.
func TestAHalfWrittenFileIsNeverPublished(t *testing.T) {
	t.Parallel()
	dir := folderWith(t, "job.sh", "old")
	l := run(t, dir)
	// Written as an editor that replaces in place does, with a long pause.
	f, err := os.OpenFile(filepath.Join(dir, "job.sh"), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := os.Create(filepath.Join(dir, "fresh.sh"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []*os.File{f, fresh} {
		if _, err := file.WriteString("half"); err != nil {
			t.Fatal(err)
		}
	}
	p := pin(t, l, "job.sh") // waits a second for it, in vain
	if text := content(t, p.Path); text != "old" {
		t.Errorf("published %q while it is being written", text)
	}
	p.Release()
	_, err = l.Pin("fresh.sh")
	isField(t, err, job.ReasonScriptGone)
	if err != nil && !strings.Contains(err.Error(), "being written") {
		t.Errorf("%v", err)
	}
	for _, file := range []*os.File{f, fresh} {
		if _, err := file.WriteString(" whole"); err != nil {
			t.Fatal(err)
		}
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"job.sh", "fresh.sh"} {
		p := pin(t, l, name)
		if text := content(t, p.Path); text != "half whole" {
			t.Errorf("%s: %q after it was closed", name, text)
		}
		p.Release()
	}
}

// One file that changes on and on does not keep the others back.
func TestARestlessFileHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	dir := folderWith(t)
	l := run(t, dir)
	log, err := os.Create(filepath.Join(dir, "job.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(3 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				log.WriteString("line\n")
			case <-stop:
				return
			}
		}
	}()
	write(t, dir, "a.sh", "a")
	p := pin(t, l, "a.sh")
	p.Release()
	close(stop)
	<-stopped
}

// `edit; drover run` runs the edit.
func TestAFreshEditIsWhatRuns(t *testing.T) {
	t.Parallel()
	dir := folderWith(t, "a.sh", "0")
	l := run(t, dir)
	var took []time.Duration
	for i := range 20 {
		text := fmt.Sprint("version ", i)
		write(t, dir, "a.sh", text)
		began := time.Now()
		p := pin(t, l, "a.sh")
		took = append(took, time.Since(began))
		if got := content(t, p.Path); got != text {
			t.Errorf("got %q, want %q", got, text)
		}
		p.Release()
		name := fmt.Sprintf("new%d.sh", i)
		write(t, dir, name, text)
		pin(t, l, name).Release()
	}
	slices.Sort(took)
	t.Logf("from edit to pin: median %v, slowest %v", took[len(took)/2], took[len(took)-1])
	if err := os.Remove(filepath.Join(dir, "a.sh")); err != nil {
		t.Fatal(err)
	}
	_, err := l.Pin("a.sh")
	isField(t, err, job.ReasonScriptGone)
}

// P12: a running bash script, overwritten in place a hundred times, keeps running
// its own bytes. Bash reads a script as it goes, so that it would see any change.
func TestARunningScriptKeepsItsBytes(t *testing.T) {
	t.Parallel()
	script := "# version 0\n"
	for i := range 100 {
		script += fmt.Sprintf("read -r go; source \"${0%%/*}/lib.sh\"; echo \"%d $lib\"\n", i)
	}
	dir := folderWith(t, "long.sh", script, "lib.sh", "lib=first\n")
	l := run(t, dir)
	p := pin(t, l, "long.sh")
	cmd := exec.Command("bash", p.Path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for i := range 100 {
		write(t, dir, "long.sh", fmt.Sprintf("# version %d\nexit 9\n", i))
		write(t, dir, "lib.sh", fmt.Sprintf("lib=later%d\n", i))
		if i%20 == 0 {
			newer := pin(t, l, "long.sh") // a new generation while it runs
			newer.Release()
		}
		fmt.Fprintln(in, "go")
		if !lines.Scan() || lines.Text() != fmt.Sprintf("%d first", i) {
			t.Fatalf("line %d: %q", i, lines.Text())
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the script ended with %v", err)
	}
	dir = filepath.Dir(p.Root)
	p.Release()
	until(t, "its generation to go", func() bool {
		_, err := os.Stat(dir)
		return err != nil
	})
}
