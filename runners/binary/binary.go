// Package binary runs executables, and scripts with any interpreter that the
// worker's policy allows: COMMAND SCRIPT ARGS, or COMMAND ARGS.
package binary

import (
	"errors"

	"github.com/droverhq/drover/plugins/runner"
	"github.com/droverhq/drover/runners/process"
)

// Name is the runner's name and its own command: a script with this command is
// executed by itself, through its first line.
const Name = "binary"

// New returns the binary runner.
func New(version string) *process.Runner {
	return process.New(process.Config{
		Info: runner.Info{Name: Name, Version: version, Canary: &runner.Canary{Command: "true"}},
		Argv: Argv,
	})
}

// Argv is the command, the script if there is one, and the arguments.
func Argv(s runner.Spec) ([]string, error) {
	switch {
	case s.Script == "" && (s.Command == "" || s.Command == Name):
		return nil, errors.New("the binary runner needs a command or a script")
	case s.Script == "":
		return append([]string{s.Command}, s.Args...), nil
	case s.Command == "" || s.Command == Name:
		return append([]string{s.Script}, s.Args...), nil
	default:
		return append([]string{s.Command, s.Script}, s.Args...), nil
	}
}
