package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/droverhq/drover/cmd/drover/internal/problem"
)

// TestWhatIsNotTextIsRefusedAtOnce: no text of the protocol can hold bytes that are
// not UTF-8. Every argument and every flag of every verb is refused before a
// scheduler is asked, and never tried again.
func TestWhatIsNotTextIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	f := startFake(t, t.TempDir())
	const bytes = "x\xff"
	var lines [][]string
	for path, c := range leaves(newRoot(silentEnv(), nil)) {
		if local(path) {
			continue
		}
		words := arguments(t, f, c)
		for i := range words {
			if words[i] != "--" && !slices.Contains([]string{"scheduler backup", "scripts show"}, path) { // a file; a name that is not sent
				bad := slices.Clone(words)
				bad[i] = bytes
				lines = append(lines, append(strings.Fields(path), bad...))
			}
		}
		c.LocalNonPersistentFlags().VisitAll(func(g *pflag.Flag) {
			if slices.Contains([]string{"env-file", "stdin", "dir"}, g.Name) {
				return // files have any name
			}
			if value := map[string]string{"string": bytes, "stringArray": bytes, "stringSlice": bytes, "k=v": "k=" + bytes}[g.Value.Type()]; value != "" {
				lines = append(lines, append(append(strings.Fields(path), "--"+g.Name, value), words...))
			}
		})
	}
	lines = append(
		lines,
		[]string{"run", "--env", "A=" + bytes, "hello.sh"}, []string{"run", "--env", bytes + "=a", "hello.sh"}, []string{"run", "hello.sh", "a", bytes},
		[]string{"run", "--array", "1-3", "hello.sh", bytes}, []string{"run", "--array", "1-3", "--label", "a=" + bytes, "hello.sh"},
	)
	for _, args := range lines {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			t.Parallel()
			begin := time.Now()
			out, code := f.playCode(args)
			if code != problem.Usage {
				t.Errorf("exit code %d, want %d:\n%s", code, problem.Usage, out)
			}
			if strings.Contains(out, "marshaling") {
				t.Errorf("gRPC refused it:\n%s", out)
			}
			if took := time.Since(begin); took > 20*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
	if len(lines) < 60 {
		t.Errorf("only %d command lines were tried", len(lines))
	}
}
