package certs_test

import (
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/droverhq/drover/certs"
)

// TestNamesAreWhatTheirPatternSays compares the check with the pattern that it
// stands for.
func TestNamesAreWhatTheirPatternSays(t *testing.T) {
	t.Parallel()
	pattern := regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9._-]{0,61}[a-zA-Z0-9])?$`)
	check := func(t rapid.TB, name string) {
		if got, want := certs.CheckName(name) == nil, pattern.MatchString(name); got != want {
			t.Errorf("%q: allowed %v, want %v", name, got, want)
		}
	}
	for _, name := range []string{
		"", "a", "-", "a.", ".a", "a.b", "a b", "a\n", "\xff", "a\xffb", "\u00e4", "a/b", "w1_x-2", strings.Repeat("a", 63), strings.Repeat("a", 64),
	} {
		check(t, name)
	}
	rapid.Check(t, func(t *rapid.T) { check(t, rapid.StringMatching(`[a-cZ09._/ -]{0,65}`).Draw(t, "name")) })
}
