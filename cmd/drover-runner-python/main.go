// Command drover-runner-python is the python runner as a plugin.
package main

import (
	"github.com/droverhq/drover/plugins/runner"
	"github.com/droverhq/drover/runners/python"
)

// version is set by the build.
var version = "dev"

func main() { runner.Serve(python.New(version)) }
