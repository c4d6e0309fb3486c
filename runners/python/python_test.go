package python_test

import (
	"testing"

	"github.com/droverhq/drover/plugins/runnertest"
	"github.com/droverhq/drover/runners/python"
)

// TestConformance runs the runner in this process, which therefore starts no
// other children.
func TestConformance(t *testing.T) {
	t.Parallel()
	path := runnertest.PythonPath(t) // a child, before the runner that waits for all of them
	runnertest.Run(t, runnertest.Harness{
		Open: runnertest.InProcess(python.New("1.0.0")), Command: "python", Interpreter: "python3",
		Path: path, Wrap: runnertest.Python,
	})
}
