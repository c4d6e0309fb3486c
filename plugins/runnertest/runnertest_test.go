package runnertest_test

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/droverhq/drover/plugins/runner"
	"github.com/droverhq/drover/plugins/runnertest"
)

// TestMain makes the test binary the plugin when a worker starts it.
func TestMain(m *testing.M) {
	if os.Getenv(runner.CookieKey) == runner.CookieValue {
		runner.Serve(runnertest.NewFake(nil))
		return
	}
	goleak.VerifyTestMain(m)
}

func TestFakeInProcess(t *testing.T) {
	t.Parallel()
	fake := runnertest.NewFake(nil)
	t.Cleanup(func() {
		if err := fake.Close(); err != nil {
			t.Error(err)
		}
	})
	runnertest.Run(t, runnertest.Harness{Open: runnertest.InProcess(fake), Command: runnertest.FakeName})
}

func TestFakeAsPlugin(t *testing.T) {
	t.Parallel()
	runnertest.RunPlugin(t, os.Args[0], runnertest.Harness{Command: runnertest.FakeName})
}
