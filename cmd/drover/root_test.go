package main

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

func silentEnv() *env {
	return &env{stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard, getenv: func(string) string { return "" }, now: time.Now}
}

// usages are the help texts of a command and of all below it, by path.
func usages(c *cobra.Command) map[string]string {
	texts := map[string]string{c.CommandPath(): c.Long + c.UsageString()}
	for _, below := range c.Commands() {
		for path, text := range usages(below) {
			texts[path] = text
		}
	}
	return texts
}

// TestAVerbIsTheSameAloneAndAmongAll: a command line makes only the verb that it
// names, which must not be seen.
func TestAVerbIsTheSameAloneAndAmongAll(t *testing.T) {
	t.Parallel()
	all := usages(newRoot(silentEnv(), nil))
	for _, v := range verbs() {
		root := newRoot(silentEnv(), []string{v.name, "--help"})
		c, _, err := root.Find([]string{v.name})
		if err != nil || c.Name() != v.name || c.GroupID != v.group {
			t.Errorf("%s: found %q of group %q, %v", v.name, c.Name(), c.GroupID, err)
			continue
		}
		for path, text := range usages(c) {
			if all[path] != text {
				t.Errorf("%s alone:\n%s\namong all:\n%s", path, text, all[path])
			}
		}
	}
}

func TestFirstWordIsFoundBehindGlobalFlags(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"":                                  "",
		"run count.sh":                      "run",
		"--address a:1 --certs c run x":     "run",
		"--address=a:1 --no-color status":   "status",
		"--no-color=false --context x wait": "wait",
		"--address":                         "",
		"--help run":                        "",
		"-h":                                "",
		"-- run":                            "",
		"__complete run":                    "__complete",
	} {
		if got := firstWord(strings.Fields(line)); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

func TestOneVerbIsMadeWhereOneIsNamed(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]int{"run x": 1, "--no-color jobs": 1, "rum x": len(verbs()), "help run": len(verbs()), "": len(verbs()), "job ls": len(verbs())} {
		if got := len(needed(strings.Fields(line))); got != want {
			t.Errorf("%q: %d verbs, want %d", line, got, want)
		}
	}
}
