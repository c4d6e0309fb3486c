package e2e_test

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/droverhq/drover/test/cluster"
)

// TestFoldersMayHaveAnyName: P7, P8. What shells and patterns take for something else is
// a name like any other: after a kill the output of an ended job is there, and one that
// runs goes on.
func TestFoldersMayHaveAnyName(t *testing.T) {
	t.Parallel()
	for n, name := range []string{"[", `a[b]*?\{c,d} $HOME %d ä`} {
		t.Run(strconv.Itoa(n), func(t *testing.T) {
			t.Parallel()
			c := cluster.NewBelow(t, bin, name)
			w := c.Worker("w1", c.Scripts(c.Path("scripts"), map[string]string{
				"ok.sh": "echo said\n", "waits.sh": "exec sleep 1000\n",
			}))
			ended := strings.TrimSpace(c.Must("run", "-d", "ok.sh"))
			c.Must("wait", ended)
			runs := strings.TrimSpace(c.Must("run", "-d", "waits.sh"))
			c.Eventually("it runs", func() bool { return status(t, c, runs).State == "RUNNING" })
			before := plugins(c, w, "bash")
			w.Kill()
			w.Start()
			var got cluster.Result
			c.Eventually("its outputs can be read", func() bool {
				got = c.Run("logs", ended)
				return got.Code != 5 // it cannot be reached yet
			})
			want(t, got, 0, "said\n", "")
			if after := plugins(c, w, "bash"); !slices.Contains(after, before[0]) {
				t.Errorf("%q: the plugin %v was not taken over, there are %v", name, before, after)
			}
			if state := status(t, c, runs).State; state != "RUNNING" {
				t.Errorf("%q: the job that ran is %s", name, state)
			}
			c.Must("stop", "--grace", "0s", runs)
		})
	}
}
