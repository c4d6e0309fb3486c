// Package bash runs scripts with bash: bash SCRIPT ARGS.
package bash

import (
	"errors"

	"github.com/droverhq/drover/plugins/runner"
	"github.com/droverhq/drover/runners/process"
)

const interpreter = "bash"

// New returns the bash runner.
func New(version string) *process.Runner {
	return process.New(process.Config{
		Info: runner.Info{
			Name: interpreter, Version: version, Extensions: []string{".sh"}, Interpreter: interpreter,
			Canary: &runner.Canary{Script: []byte("exit 0\n")},
		},
		Argv: Argv,
	})
}

// Argv is bash, the script, its arguments. A leading dash in a script's
// argument is the script's: bash reads no option after the script.
func Argv(s runner.Spec) ([]string, error) {
	if s.Script == "" {
		return nil, errors.New("the bash runner needs a script; run bash itself as an executable with an empty path")
	}
	return append([]string{interpreter, s.Script}, s.Args...), nil
}
