package e2e_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/droverhq/drover/test/cluster"
)

// once writes what it was given into a file of its own; a second start of the
// same job would fail, as the file is there.
const once = `set -C; printf %s "$2" > "$1/$DROVER_ARRAY_INDEX"`

func manyCluster(t *testing.T) (c *cluster.Cluster, truth string) {
	t.Helper()
	c = cluster.New(t, bin)
	c.Worker("w1", c.Scripts(c.Path("scripts"), map[string]string{"once.sh": once}))
	truth = c.Path("truth")
	if err := os.Mkdir(truth, 0o755); err != nil {
		t.Fatal(err)
	}
	return c, truth
}

func written(t *testing.T, truth string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(truth)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(truth, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = string(b)
	}
	return out
}

// TestAnArrayRunsEachJobOnce also when the scheduler is killed in the midst of
// it: the client goes on by itself, and nothing is made twice (P1, P2, P7).
func TestAnArrayRunsEachJobOnce(t *testing.T) {
	t.Parallel()
	const jobs = 1200
	c, truth := manyCluster(t)
	cmd := c.Command(context.Background(), "run", "--array", fmt.Sprintf("1-%d", jobs), "once.sh", truth, "<{}>")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c.Eventually("jobs run", func() bool { return len(written(t, truth)) > 100 })
	c.Scheduler.Kill()
	c.StartScheduler(c.Address)
	if err := cmd.Wait(); err != nil || !strings.Contains(stdout.String(), fmt.Sprintf(": %d succeeded\n", jobs)) {
		t.Fatalf("%v; %s%s", err, &stdout, &stderr)
	}
	got := written(t, truth)
	for i := 1; i <= jobs; i++ {
		if s := got[fmt.Sprint(i)]; s != fmt.Sprintf("<%d>", i) {
			t.Errorf("job %d wrote %q", i, s)
		}
	}
	if len(got) != jobs {
		t.Errorf("%d jobs have run", len(got))
	}
}

func TestEachLineIsOneArgumentByteForByte(t *testing.T) {
	t.Parallel()
	c, truth := manyCluster(t)
	lines := []string{"a b", "", " \t", "$HOME `id` *", `"'\`, "{}", "-x", "--", "ünï ☃", "\r"}
	cmd := c.Command(context.Background(), "run", "--parallel", "3", "--each", "-", "once.sh", truth, "{}|{}")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	got := written(t, truth)
	for i, line := range lines {
		if s := got[fmt.Sprint(i+1)]; s != line+"|"+line {
			t.Errorf("line %q came as %q", line, s)
		}
	}
}
