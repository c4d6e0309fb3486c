// Command fragile is a bash runner whose first start goes as its build says, for
// the tests of core/pluginhost.
package main

import (
	"errors"
	"os"

	"github.com/droverhq/drover/plugins/runner"
	"github.com/droverhq/drover/runners/process"
)

// Set by the build.
var (
	version = "0"
	mode    = ""
)

func main() {
	info := runner.Info{Name: "bash", Version: version, Canary: &runner.Canary{Script: []byte("echo no luck >&2; exit 3\n")}}
	switch mode {
	case "hang":
		info.Canary.Script = []byte("exec sleep 1000\n")
	case "undeclared", "picky":
		info.Canary = nil
	}
	runner.Serve(process.New(process.Config{Info: info, Argv: func(s runner.Spec) ([]string, error) {
		switch {
		case mode == "die":
			os.Exit(1)
		case mode == "missing":
			return []string{"no-such-interpreter", s.Script}, nil
		case mode == "picky" && len(s.Args) == 0:
			return nil, errors.New("this runner needs an argument")
		case mode == "undeclared":
			return []string{"bash", "-c", "exit 9"}, nil
		}
		return append([]string{"bash", s.Script}, s.Args...), nil
	}}))
}
