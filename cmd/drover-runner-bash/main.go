// Command drover-runner-bash is the bash runner as a plugin.
package main

import (
	"github.com/droverhq/drover/plugins/runner"
	"github.com/droverhq/drover/runners/bash"
)

// version is set by the build.
var version = "dev"

func main() { runner.Serve(bash.New(version)) }
