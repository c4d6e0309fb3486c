package binary_test

import (
	"slices"
	"testing"

	"github.com/droverhq/drover/plugins/runner"
	"github.com/droverhq/drover/plugins/runnertest"
	"github.com/droverhq/drover/runners/binary"
)

// TestConformance runs the runner in this process, which therefore starts no
// other children.
func TestConformance(t *testing.T) {
	t.Parallel()
	runnertest.Run(t, runnertest.Harness{
		Open: runnertest.InProcess(binary.New("1.0.0")), Command: "/bin/bash", Interpreter: "bash",
	})
}

func TestArgv(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spec runner.Spec
		want []string // nil is refused
	}{
		"a command":                     {runner.Spec{Command: "uname", Args: []string{"-a"}}, []string{"uname", "-a"}},
		"an interpreter":                {runner.Spec{Command: "perl", Script: "/s/a.pl", Args: []string{"x"}}, []string{"perl", "/s/a.pl", "x"}},
		"a script by itself":            {runner.Spec{Script: "/s/tool", Args: []string{""}}, []string{"/s/tool", ""}},
		"a script with the own command": {runner.Spec{Command: "binary", Script: "/s/tool"}, []string{"/s/tool"}},
		"nothing":                       {runner.Spec{}, nil},
		"only the own command":          {runner.Spec{Command: "binary"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := binary.Argv(c.spec)
			if (err != nil) != (c.want == nil) || !slices.Equal(got, c.want) {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}
