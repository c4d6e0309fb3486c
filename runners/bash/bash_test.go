package bash_test

import (
	"testing"

	"github.com/droverhq/drover/plugins/runnertest"
	"github.com/droverhq/drover/runners/bash"
)

// TestConformance runs the runner in this process, which therefore starts no
// other children.
func TestConformance(t *testing.T) {
	t.Parallel()
	runnertest.Run(t, runnertest.Harness{
		Open: runnertest.InProcess(bash.New("1.0.0")), Command: "bash", Interpreter: "bash",
	})
}
