package scripts

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/job"
)

// isField checks that an error names the field, the reason, and what to do.
func isField(t *testing.T, err error, reason string) {
	t.Helper()
	var e *errs.Error
	if !errors.As(err, &e) || e.Kind != errs.Invalid || e.Field != "path" || e.Reason != reason || e.Hint == "" {
		t.Errorf("got %#v, want Invalid path %s with a hint", err, reason)
	}
}

// P13: what cannot name a script is refused before any folder is looked into.
func TestPathsThatCannotNameAScript(t *testing.T) {
	t.Parallel()
	for _, path := range []string{
		"", "/", "/etc/passwd", "..", "../x", "a/../b", "a/..", "./a", "a/./b", ".", "a//b", "a/", "a//",
		"a\x00b", "\x00", strings.Repeat("a/", 3000) + "b", "\xff\xfe", "//a",
	} {
		isField(t, Check(path), job.ReasonPath)
	}
	for _, path := range []string{
		"a", "a/b.sh", "..a", "a..", "...", ".hidden", "-rf", "a b", "ä/ß.sh", `back\slash`, "new\nline", "~", "*", "$HOME",
	} {
		if err := Check(path); err != nil {
			t.Errorf("%q was refused: %v", path, err)
		}
	}
}

func TestReadings(t *testing.T) {
	t.Parallel()
	const folder = "/x/worker/scripts"
	for path, want := range map[string][]string{
		"count.sh":                   {"count.sh"},
		"scripts/count.sh":           {"scripts/count.sh", "count.sh"},
		"worker/scripts/count.sh":    {"worker/scripts/count.sh", "count.sh"},
		"x/worker/scripts/a/b.sh":    {"x/worker/scripts/a/b.sh", "a/b.sh"},
		"worker/count.sh":            {"worker/count.sh"},
		"other/scripts/count.sh":     {"other/scripts/count.sh"},
		"scriptsmore/count.sh":       {"scriptsmore/count.sh"},
		"scripts":                    {"scripts"},
		"scripts/scripts/count.sh":   {"scripts/scripts/count.sh", "scripts/count.sh"},
		"y/x/worker/scripts/deep.sh": {"y/x/worker/scripts/deep.sh"},
	} {
		if got := readings(folder, path); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", path, got, want)
		}
	}
	if got := readings("/s/s", "s/s/a"); !slices.Equal(got, []string{"s/s/a", "s/a", "a"}) {
		t.Errorf("a folder below one of its own name: %q", got)
	}
}
