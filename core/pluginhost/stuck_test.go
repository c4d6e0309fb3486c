package pluginhost

import (
	"bufio"
	"os"
	"os/exec"
	"testing"
	"time"

	runnerv1 "github.com/droverhq/drover/proto/drover/runner/v1"
)

// TestP19_UserStopsAForkWhileThePluginCollectsGarbage_OtherStartsGoOn: the plugin cannot
// help itself then. forkerMain forks as that user, collects garbage and writes a line for
// each fork.
func TestP19_UserStopsAForkWhileThePluginCollectsGarbage_OtherStartsGoOn(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		return // there is one user only
	}
	c := exec.CommandContext(t.Context(), "/proc/self/exe")
	c.Env = []string{"DROVER_TEST_FORKER=1"}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for s := bufio.NewScanner(out); s.Scan(); {
			lines <- struct{}{}
		}
	}()
	look, late := time.NewTicker(200*time.Millisecond), time.After(50*time.Second)
	defer look.Stop()
	killed, after := 0, 0
	for after < 100 {
		select {
		case <-lines:
			if killed > 0 {
				after++
			}
		case <-look.C:
			killed += killStopped(c.Process.Pid)
		case <-late:
			t.Errorf("%d forks were killed, and %d went well after that", killed, after)
			after = 100
		}
	}
	_ = c.Process.Kill()
	for waiting := true; waiting; {
		select {
		case <-lines:
		case <-ended:
			waiting = false
		}
	}
	_ = c.Wait()
}

func TestAPluginOwesAnAnswerToAStartOnly(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, c := range []struct {
		what string
		g    given
		want bool
	}{
		{"a start", given{start: &runnerv1.Start{}, at: now.Add(-time.Minute)}, true},
		{"a fresh start", given{start: &runnerv1.Start{}, at: now}, false},
		{"a job", given{at: now.Add(-time.Minute), pid: 7}, false},
		{"an end", given{start: &runnerv1.Start{}, at: now.Add(-time.Minute), exited: true}, false},
	} {
		p := newHosted(&Host{}, Manifest{})
		p.attempts["a"] = &c.g
		if got := p.owes(now); got != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
	}
}
