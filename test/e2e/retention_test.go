package e2e_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/droverhq/drover/test/cluster"
)

// TestOutputGoesByAgeAndNumber: the worker gives back what its flags say, logs says
// what is missing and why, and the record, sizes and sums stay, over a restart too.
func TestOutputGoesByAgeAndNumber(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, bin)
	w := c.Worker("w1", c.Scripts(c.Path("worker", "scripts"), map[string]string{
		"ok.sh": "echo out; echo err >&2\n", "bad.sh": "echo bad; exit 3\n", "long.sh": "echo begun; exec sleep 1000\n",
	}), "--keep-output-for", "4s", "--keep-outputs", "2")
	long := c.Must("run", "-d", "long.sh")
	good := c.Must("run", "-d", "ok.sh")
	gone := func(id, reason string) {
		t.Helper()
		c.Eventually("the output goes for "+reason, func() bool {
			r := c.Run("logs", "--stdout", id)
			return r.Code == 1 && r.Stdout == "" && strings.Contains(r.Stderr, "bytes 0 to 4 are missing: "+reason+" (its worker ")
		})
	}
	gone(good, "RETENTION_AGE")
	var bad []string
	for range 3 {
		bad = append(bad, c.Must("run", "-d", "bad.sh"))
	}
	gone(bad[0], "RETENTION_COUNT")
	w.Kill()
	w.Start()
	c.AwaitReady("w1")
	gone(good, "RETENTION_AGE")
	gone(bad[0], "RETENTION_COUNT")
	want(t, c.Run("logs", bad[1]), 0, "bad\n", "")
	want(t, c.Run("logs", bad[2]), 0, "bad\n", "")
	want(t, c.Run("logs", "--stdout", long), 0, "begun\n", "")
	for id, state := range map[string]string{good: "SUCCEEDED", bad[0]: "FAILED"} {
		var r struct {
			State  string
			Stdout struct {
				Size   int
				SHA256 string
			}
		}
		text := c.Must("status", id, "-o", "json")
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			t.Fatal(err, text)
		}
		if r.State != state || r.Stdout.Size != 4 || len(r.Stdout.SHA256) != 64 {
			t.Errorf("the record is %s", text)
		}
		c.Must("why", id)
	}
	c.Must("stop", long)
}
