// Package python runs scripts with Python 3: python3 -s SCRIPT ARGS.
package python

import (
	"errors"

	"github.com/droverhq/drover/plugins/runner"
	"github.com/droverhq/drover/runners/process"
)

const interpreter = "python3"

// New returns the python runner. It serves the commands python and python3;
// both mean Python 3.
func New(version string) *process.Runner {
	return process.New(process.Config{
		Info: runner.Info{
			Name: "python", Version: version, Commands: []string{interpreter}, Extensions: []string{".py"}, Interpreter: interpreter,
			Canary: &runner.Canary{Script: []byte("raise SystemExit(0)\n")},
		},
		Argv: Argv,
	})
}

// Argv is python3, the script, its arguments. -s leaves out the packages and the
// start-up files of the user's own folder: whoever can write there, such as an
// earlier job of the same user, is not to choose what a published script runs.
func Argv(s runner.Spec) ([]string, error) {
	if s.Script == "" {
		return nil, errors.New("the python runner needs a script; run python3 itself as an executable with an empty path")
	}
	return append([]string{interpreter, "-s", s.Script}, s.Args...), nil
}
