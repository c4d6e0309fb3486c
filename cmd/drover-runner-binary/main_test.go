package main

import (
	"os"
	"testing"

	"github.com/droverhq/drover/plugins/runner"
	"github.com/droverhq/drover/plugins/runnertest"
)

// TestMain makes the test binary the plugin when a worker starts it.
func TestMain(m *testing.M) {
	if os.Getenv(runner.CookieKey) == runner.CookieValue {
		main()
		return
	}
	m.Run()
}

func TestConformanceAsPlugin(t *testing.T) {
	t.Parallel()
	runnertest.RunPlugin(t, os.Args[0], runnertest.Harness{Command: "/bin/bash", Interpreter: "bash"})
}
