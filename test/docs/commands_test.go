package docs_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// TestCommandLinesExist: every "drover ..." that a document shows, in a block of
// commands or in running text, names a verb and flags that the binary has.
func TestCommandLinesExist(t *testing.T) {
	t.Parallel()
	h := &helps{t: t, known: map[string]help{}}
	for _, path := range documents(t) {
		lines := commandLines(read(t, filepath.Join(clone(t), path)))
		for _, line := range lines {
			if err := h.check(line); err != nil {
				t.Errorf("%s: %q: %v", path, line, err)
			}
		}
		if path == "README.md" && len(lines) < 5 {
			t.Errorf("README.md shows only %d command lines", len(lines))
		}
	}
}

// TestTheCheckerFindsMistakes: a checker that accepts all would pass, too.
func TestTheCheckerFindsMistakes(t *testing.T) {
	t.Parallel()
	h := &helps{t: t, known: map[string]help{}}
	for line, wrong := range map[string]string{
		"drover run --timeout 1m count.sh --any-flag of the script": "",
		"drover exec -w w1 -- ls --color":                           "",
		"drover workers drain w1 --reason 'a few words --x'":        "",
		"drover --address 127.0.0.1:7420 jobs -o json":              "",
		"drover rum count.sh":                                       "rum",
		"drover workers paint w1":                                   "paint",
		"drover jobs --colour":                                      "--colour",
		"drover stop -z JOB":                                        "-z",
	} {
		err := h.check(line)
		if wrong == "" && err != nil || wrong != "" && (err == nil || !strings.Contains(err.Error(), wrong)) {
			t.Errorf("%q: %v, want it to name %q", line, err, wrong)
		}
	}
}

// inlinePattern finds code in running text.
var inlinePattern = regexp.MustCompile("`(drover [^`]+)`")

// startPattern finds where a command line of drover begins within a line of shell.
var startPattern = regexp.MustCompile(`(?:^|[\s(;])(drover )`)

func commandLines(document string) []string {
	var out []string
	for _, b := range blocks(document) {
		if b.lang != "sh" && b.lang != "console" {
			continue
		}
		for line := range strings.Lines(strings.ReplaceAll(b.text, "\\\n", " ")) {
			for _, at := range startPattern.FindAllStringSubmatchIndex(line, -1) {
				out = append(out, upToTheEnd(line[at[2]:]))
			}
		}
	}
	text := blockPattern.ReplaceAllString(document, "")
	for _, m := range inlinePattern.FindAllStringSubmatch(strings.ReplaceAll(text, "\n", " "), -1) {
		out = append(out, m[1])
	}
	return out
}

// upToTheEnd cuts a line of shell after its first command.
func upToTheEnd(s string) string {
	quote := byte(0)
	for i := range len(s) {
		switch c := s[i]; {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '\'' || c == '"':
			quote = c
		case strings.IndexByte(";|&)<>\n", c) >= 0, c == '#' && s[i-1] == ' ':
			return strings.TrimSpace(s[:i])
		}
	}
	return s
}

// help is what a verb says of itself.
type help struct {
	verbs []string
	flags map[string]bool // value: takes a word
}

// helps asks the binary, once per verb.
type helps struct {
	t     *testing.T
	mu    sync.Mutex // guards known
	known map[string]help
}

var (
	verbPattern = regexp.MustCompile(`(?m)^  ([a-z-]+) {2,}\S`)
	flagPattern = regexp.MustCompile(`(?m)^ +(?:(-[a-zA-Z]), )?(--[a-z0-9-]+)( \S+(?: \S+)*)? {2,}\S`)
)

func (h *helps) of(verbs ...string) help {
	h.t.Helper()
	key := strings.Join(verbs, " ")
	h.mu.Lock()
	defer h.mu.Unlock()
	if known, ok := h.known[key]; ok {
		return known
	}
	out, err := exec.Command(filepath.Join(bin, "drover"), append(slices.Clone(verbs), "--help")...).Output()
	if err != nil {
		h.t.Fatalf("drover %s --help: %v", key, err)
	}
	text, _, _ := strings.Cut(string(out), "Additional help topics:")
	found := help{flags: map[string]bool{}}
	for _, m := range verbPattern.FindAllStringSubmatch(text, -1) {
		found.verbs = append(found.verbs, m[1])
	}
	for _, m := range flagPattern.FindAllStringSubmatch(text, -1) {
		found.flags[m[2]] = m[3] != ""
		if m[1] != "" {
			found.flags[m[1]] = m[3] != ""
		}
	}
	h.known[key] = found
	return found
}

// check goes through a command line as drover would.
func (h *helps) check(line string) error {
	words := split(line)[1:]
	var verbs []string
	for len(words) > 0 {
		now := h.of(verbs...)
		word := words[0]
		words = words[1:]
		name, _, joined := strings.Cut(word, "=")
		takes, known := now.flags[name]
		switch {
		case word == "--":
			return nil
		case len(word) > 1 && word[0] == '-' && !known:
			return fmt.Errorf("there is no flag %s", name)
		case len(word) > 1 && word[0] == '-':
			if takes && !joined && len(words) > 0 {
				words = words[1:]
			}
		case slices.Contains(now.verbs, word):
			verbs = append(verbs, word)
		case len(now.verbs) > 0:
			return fmt.Errorf("there is no verb %q", strings.Join(append(verbs, word), " "))
		case verbs[0] == "run" || verbs[0] == "exec" || verbs[0] == "help":
			return nil // the rest is the job's
		}
	}
	return nil
}

// split takes words apart as a shell does, without its expansions.
func split(line string) []string {
	var words []string
	for _, m := range regexp.MustCompile(`(?:'[^']*'|"[^"]*"|[^\s'"])+`).FindAllString(line, -1) {
		words = append(words, strings.Trim(m, `'"`))
	}
	return words
}
