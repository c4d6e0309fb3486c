package docs_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestManualPages: every verb has a page, and the product itself carries no
// formatter for it.
func TestManualPages(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd := exec.Command("go", "run", "-tags", "man", "./cmd/drover", "man", dir)
	cmd.Dir = clone(t)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, verb := range []string{"", "-run", "-logs", "-stop", "-scheduler", "-worker", "-plugin-install", "-certs-token"} {
		page := read(t, filepath.Join(dir, "drover"+verb+".1"))
		name := ".SH NAME\ndrover" + strings.ReplaceAll(verb, "-", `\-`)
		if !strings.Contains(strings.ReplaceAll(page, "\\-", "-"), strings.ReplaceAll(name, "\\-", "-")) {
			t.Errorf("drover%s.1 does not say its name: %.200s", verb, page)
		}
	}
	if out, err := exec.Command(filepath.Join(bin, "drover"), "man", dir).CombinedOutput(); err == nil {
		t.Errorf("the product writes manual pages: %s", out)
	}
}
