// Command drover-runner-binary is the binary runner as a plugin.
package main

import (
	"github.com/droverhq/drover/plugins/runner"
	"github.com/droverhq/drover/runners/binary"
)

// version is set by the build.
var version = "dev"

func main() { runner.Serve(binary.New(version)) }
