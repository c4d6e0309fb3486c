package scripts

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fsnotify/fsnotify"

	"github.com/droverhq/drover/core/job"
)

func TestOfAParentOnlyTheFoldersOwnNameCounts(t *testing.T) {
	t.Parallel()
	h := &hints{sources: map[string]bool{"/x/worker/scripts": true, "/y/more": true}}
	for name, want := range map[string]bool{
		"/x/worker/scripts":          true,
		"/x/worker/scripts/a.sh":     true,
		"/x/worker/scripts/a/b/c.sh": true,
		"/y/more/a":                  true,
		"/x/worker/other":            false,
		"/x/worker/scripts2/a.sh":    false,
		"/x/worker":                  false,
		"/y/a":                       false,
	} {
		if got := h.concerns(fsnotify.Event{Name: name}); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestMissingEventsAreReportedOnce(t *testing.T) {
	t.Parallel()
	reports := 0
	h := &hints{report: func(error) { reports++ }}
	for range 3 {
		h.fail(errors.New("no space left on device"))
	}
	h.begin()
	h.visit("/x", identity{1, 1}) // without a watcher nothing is watched
	h.end()
	h.close()
	if events, failures := h.events(); reports != 1 || !h.blind || events != nil || failures != nil {
		t.Errorf("%d reports, blind %v", reports, h.blind)
	}
}

func TestWatchesFollowTheFolders(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := newHints(nil, func(err error) { t.Errorf("no events: %v", err) })
	defer h.close()
	id := func() identity {
		info, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		return signatureOf(info).identity()
	}
	first := id()
	h.begin()
	h.visit(dir, first)
	h.visit(filepath.Join(dir, "gone"), identity{1, 1})
	h.end()
	if len(h.watched) != 1 || h.watched[dir] != first {
		t.Errorf("watched %v", h.watched)
	}
	// Another folder under the same name is watched anew.
	if err := os.Rename(dir, dir+"-old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	h.begin()
	h.visit(dir, id())
	h.end()
	if h.watched[dir] == first {
		t.Error("the folder that went is still watched in place of the new one")
	}
	h.begin()
	h.end()
	if len(h.watched) != 0 {
		t.Errorf("watched %v though nothing is left", h.watched)
	}
}

func TestConditionsKeepTheirTimeAndAreLoggedOnce(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	f := &folder{name: "scripts", source: "/x/scripts"}
	l := &Library{cfg: Config{Log: slog.New(slog.NewTextHandler(&log, nil))}, folders: []*folder{f}}
	one := summary(map[string]string{"b.sh": "is a folder", "a.sh": "is a socket"})
	for range 3 {
		l.note(f, ConditionRefused, one)
	}
	before := l.Conditions()
	l.note(f, ConditionRefused, summary(map[string]string{"b.sh": "is a folder"}))
	after := l.Conditions()
	if len(before) != 1 || before[0].Message != `/x/scripts: "a.sh" is a socket, and 1 more are not published` {
		t.Errorf("before %+v", before)
	}
	if len(after) != 1 || after[0].Since != before[0].Since || after[0].Message != `/x/scripts: "b.sh" is a folder` {
		t.Errorf("after %+v", after)
	}
	l.note(f, ConditionRefused, summary(nil))
	if len(l.Conditions()) != 0 {
		t.Errorf("left %+v", l.Conditions())
	}
	if n := strings.Count(log.String(), "\n"); n != 2 {
		t.Errorf("%d lines were logged, want one for each message:\n%s", n, log.String())
	}
}

func TestFoldersOfOneNameAreToldApart(t *testing.T) {
	t.Parallel()
	list, err := name([]string{"/a/scripts", "/b/scripts", "/c/more", "/d/scripts/"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range list {
		names = append(names, f.name)
	}
	if got := strings.Join(names, " "); got != "scripts scripts~2 more scripts~3" {
		t.Errorf("names %q", got)
	}
}

func TestTwoFoldersChangeApart(t *testing.T) {
	t.Parallel()
	first, second := folderWith(t, "a.sh", "a"), folderWith(t, "b.sh", "b")
	l := run(t, first, second)
	p := pin(t, l, "a.sh")
	defer p.Release()
	write(t, second, "b.sh", "edited")
	untilIndex(t, l, "the edit", func(all map[string]job.ScriptInfo) bool { return all["b.sh"].Size == 6 })
	again := pin(t, l, "a.sh")
	defer again.Release()
	if again.Generation != p.Generation || again.Path != p.Path {
		t.Errorf("an edit in one folder made a generation of the other: %+v", again)
	}
}

// TestP21_ListOfScripts_FitsWhatASchedulerTakes: in number and in bytes.
func TestP21_ListOfScripts_FitsWhatASchedulerTakes(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("p", job.MaxPath)
	for want, all := range map[int][]job.ScriptInfo{
		3:                                       make([]job.ScriptInfo, 3),
		job.MaxScripts:                          make([]job.ScriptInfo, job.MaxScripts+1),
		job.MaxScriptsBytes / job.MaxPath:       slices.Repeat([]job.ScriptInfo{{Path: long}}, 20_000),
		job.MaxScriptsBytes / (job.MaxPath + 5): slices.Repeat([]job.ScriptInfo{{Path: long, Folder: "ab", SHA256: "cde"}}, 20_000),
	} {
		if got := fitting(all); got != want {
			t.Errorf("of %d scripts %d fit, want %d", len(all), got, want)
		}
	}
}
