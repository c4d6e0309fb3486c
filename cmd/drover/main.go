// Command drover runs scripts and commands on other machines. This binary is
// the command line, the scheduler and the worker; runners are plugins.
package main

import (
	"context"
	"os"

	"github.com/droverhq/drover/cmd/drover/internal/problem"
)

func main() {
	os.Exit(int(run(context.Background(), osEnv(), os.Args[1:])))
}

// run carries out one command line and returns the exit code.
func run(ctx context.Context, e *env, args []string) problem.Code {
	err := newRoot(e, args).ExecuteContext(ctx)
	problem.Print(e.stderr, err)
	return problem.CodeOf(err)
}
