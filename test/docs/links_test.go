package docs_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// linkPattern finds links and images; what begins with a scheme is left out by
// the caller.
var linkPattern = regexp.MustCompile(`\]\(([^)\s]*)\)`)

var headingPattern = regexp.MustCompile(`(?m)^#+ +(.+)$`)

// TestLinksResolve: every relative link of every document leads to a file of the
// clone, and to a heading when it names one.
func TestLinksResolve(t *testing.T) {
	t.Parallel()
	for _, path := range documents(t) {
		text := blockPattern.ReplaceAllString(read(t, filepath.Join(clone(t), path)), "")
		for _, m := range linkPattern.FindAllStringSubmatch(text, -1) {
			link := m[1]
			if strings.Contains(link, "://") || strings.HasPrefix(link, "mailto:") {
				continue
			}
			file, anchor, _ := strings.Cut(link, "#")
			target := filepath.Join(clone(t), filepath.Dir(path), file)
			if file == "" {
				target = filepath.Join(clone(t), path)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: the link %s leads nowhere", path, link)
				continue
			}
			if anchor != "" && !slices.Contains(anchors(read(t, target)), anchor) {
				t.Errorf("%s: the link %s names no heading", path, link)
			}
		}
	}
}

// anchors are the names that a code host gives to the headings of a document.
func anchors(document string) []string {
	var out []string
	for _, m := range headingPattern.FindAllStringSubmatch(blockPattern.ReplaceAllString(document, ""), -1) {
		name := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 0x80:
				return r
			}
			return -1
		}, strings.ToLower(m[1]))
		out = append(out, name)
	}
	return out
}

var testPattern = regexp.MustCompile(`\bTest[A-Z]\w+`)

// TestNamedTestsExist: a document that says "proved by TestX" is held to it.
func TestNamedTestsExist(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("git", "-C", clone(t), "grep", "--untracked", "-ohE", `^func Test\w+`, "--", "*_test.go").Output()
	if err != nil {
		t.Skipf("not a git clone: %v", err)
	}
	known := strings.Split(string(out), "\n")
	for _, path := range documents(t) {
		text := blockPattern.ReplaceAllString(read(t, filepath.Join(clone(t), path)), "")
		for _, name := range testPattern.FindAllString(text, -1) {
			if !slices.Contains(known, "func "+name) {
				t.Errorf("%s: there is no %s", path, name)
			}
		}
	}
}
