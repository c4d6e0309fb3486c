// Package python runs scripts with Python 3: python3 SCRIPT ARGS.
package python

import (
	"errors"

	"github.com/droverhq/drover/plugins/runner"
	"github.com/droverhq/drover/runners/process"
)

// New returns the python runner. It serves the commands python and python3;
// both mean Python 3.
func New(version string) *process.Runner {
	return process.New(process.Config{
		Info: runner.Info{
			Name: "python", Version: version, Commands: []string{"python3"}, Extensions: []string{".py"},
			Canary: &runner.Canary{Script: []byte("raise SystemExit(0)\n")},
		},
		Argv: Argv,
	})
}

// Argv is python3, the script, its arguments.
func Argv(s runner.Spec) ([]string, error) {
	if s.Script == "" {
		return nil, errors.New("the python runner needs a script; run python3 itself as an executable with an empty path")
	}
	return append([]string{"python3", s.Script}, s.Args...), nil
}
