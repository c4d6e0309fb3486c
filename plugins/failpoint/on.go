//go:build failpoint

package failpoint

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Enabled tells whether the points are compiled in.
const Enabled = true

// At kills this process with SIGKILL when p is the first point that is armed.
// Of all that reach it at once one process dies, once.
func At(p Point) {
	dir := os.Getenv(Variable)
	if dir == "" {
		return
	}
	armed := filepath.Join(dir, ArmedFile)
	text, err := os.ReadFile(armed)
	if err != nil {
		return // nothing is armed
	}
	first, rest, _ := strings.Cut(string(text), "\n")
	if first != string(p) {
		return
	}
	// Whoever renames it has it for itself.
	if os.Rename(armed, filepath.Join(dir, HitPrefix+first)) != nil {
		return
	}
	if rest != "" {
		next := armed + ".next"
		if os.WriteFile(next, []byte(rest), 0o600) == nil {
			_ = os.Rename(next, armed)
		}
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // the signal is on its way
}
