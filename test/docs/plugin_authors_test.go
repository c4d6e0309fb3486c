package docs_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/droverhq/drover/test/cluster"
)

// runnerLines is how short a runner must be, go.mod and comments included.
const runnerLines = 30

// TestPluginAuthors does what docs/plugin-authors.md says, block by block: a
// runner from nothing, built against the clone, installed into a running worker.
func TestPluginAuthors(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, bin)
	scripts := c.Scripts(c.Path("scripts"), map[string]string{"first.sh": "echo first\n"})
	c.Worker("w1", scripts)
	if err := os.Symlink(clone(t), c.Path("drover")); err != nil { // the reader's clone
		t.Fatal(err)
	}
	g := &guide{t: t, dir: c.Dir, env: append(goEnvironment(t),
		"PATH="+bin+":"+os.Getenv("PATH"), "HOME="+c.Dir, "DROVER_ADDRESS="+c.Address, "DROVER_CERTS="+c.Path("certs", "admin"),
		"DROVER_PLUGINS="+c.Path("w1-plugins"), "SCRIPTS="+scripts,
	)}
	for _, b := range blocks(read(t, filepath.Join(clone(t), "docs", "plugin-authors.md"))) {
		g.follow(b)
	}
	if g.runs == 0 || g.compared == 0 || g.lines == 0 {
		t.Fatalf("the document lost its marks: %d commands, %d outputs, %d lines of the runner", g.runs, g.compared, g.lines)
	}
	if g.lines >= runnerLines {
		t.Errorf("the runner has %d lines, not less than %d", g.lines, runnerLines)
	}
	c.Eventually("the removed runner is gone", func() bool { return !strings.Contains(c.Must("plugin", "ls"), "awk") })
}

// guide is a reader at work.
type guide struct {
	t      *testing.T
	dir    string // where the reader stands
	env    []string
	stdout string // of the last command

	runs, compared, lines int
}

func (g *guide) follow(b block) {
	g.t.Helper()
	name, isFile := strings.CutPrefix(b.mark, "file: ")
	switch {
	case isFile:
		if strings.HasSuffix(name, ".go") || name == "go.mod" {
			g.lines += strings.Count(b.text, "\n")
		}
		if err := os.WriteFile(filepath.Join(g.dir, name), []byte(b.text), 0o644); err != nil {
			g.t.Fatal(err)
		}
	case b.mark == "run":
		g.run(b.text)
	case b.mark == "output":
		g.compared++
		if g.stdout != b.text {
			g.t.Errorf("it printed\n%s\nthe document says\n%s", g.stdout, b.text)
		}
	case b.mark != "":
		g.t.Errorf("the mark %q means nothing", b.mark)
	}
}

// run runs a block as one shell script and stays in the folder that it ends in.
func (g *guide) run(script string) {
	g.t.Helper()
	where := filepath.Join(g.t.TempDir(), "pwd")
	cmd := exec.Command("bash", "-euc", script+"\npwd >\"$WHERE\"")
	cmd.Dir, cmd.Env = g.dir, append(g.env, "WHERE="+where)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		g.t.Fatalf("%v\n%s%s%s", err, script, stdout.String(), stderr.String())
	}
	g.runs++
	g.stdout = stdout.String()
	g.dir = strings.TrimSpace(read(g.t, where))
}

// goEnvironment is what the go command needs when HOME is another folder.
func goEnvironment(t *testing.T) []string {
	t.Helper()
	var env []string
	for _, name := range []string{"GOPATH", "GOMODCACHE", "GOCACHE", "GOPROXY", "GOSUMDB", "GOTOOLCHAIN"} {
		out, err := exec.Command("go", "env", name).Output()
		if err != nil {
			t.Fatal(err)
		}
		env = append(env, name+"="+strings.TrimSpace(string(out)))
	}
	return env
}
