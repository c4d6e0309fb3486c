// Package docs_test keeps the documents true: it follows what they tell the
// reader to do, and looks up what they point to.
package docs_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/droverhq/drover/test/cluster"
)

// bin holds the binaries; TestMain builds them once.
var bin string

func TestMain(m *testing.M) {
	dir, err := cluster.Build()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	bin = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// clone is the folder of the module.
func clone(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// documents lists every document of the clone, relative to it: what git tracks
// and what is new, but nothing that is ignored.
func documents(t *testing.T) []string {
	t.Helper()
	cmd := exec.Command("git", "ls-files", "-co", "--exclude-standard", "*.md")
	cmd.Dir = clone(t)
	out, err := cmd.Output()
	if err != nil {
		t.Skipf("not a git clone: %v", err)
	}
	var all []string
	for _, path := range strings.Fields(string(out)) {
		if _, err := os.Stat(filepath.Join(clone(t), path)); err == nil { // not deleted a moment ago
			all = append(all, path)
		}
	}
	return all
}

// block is a fenced block of a document, with the comment before it.
type block struct {
	mark string // what stands in <!-- --> on the line before, or ""
	lang string
	text string
}

// blockPattern finds fenced blocks; a mark belongs to the block right after it.
var blockPattern = regexp.MustCompile("(?m)(?:^<!-- (.+) -->\n)?^```([a-z]*)\n((?s:.*?))^```$")

func blocks(document string) []block {
	var all []block
	for _, m := range blockPattern.FindAllStringSubmatch(document, -1) {
		all = append(all, block{m[1], m[2], m[3]})
	}
	return all
}
