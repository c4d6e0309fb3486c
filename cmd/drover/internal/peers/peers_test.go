package peers_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/droverhq/drover/cmd/drover/internal/peers"
	"github.com/droverhq/drover/core/errs"
)

func TestNamesAreChecked(t *testing.T) {
	t.Parallel()
	if err := peers.Check("rsh"); errs.KindOf(err) != errs.Invalid || !strings.Contains(err.Error(), "xargs") {
		t.Errorf("an unknown peer: %v", err)
	}
	for _, name := range peers.Names() {
		err := peers.Check(name)
		if installed := slices.Contains(peers.Installed(), name); installed != (err == nil) {
			t.Errorf("%s: installed %v, but %v", name, installed, err)
		}
		if err != nil && (errs.KindOf(err) != errs.Precondition || !strings.Contains(err.Error(), "not installed")) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestEachPeerRunsEveryJob starts those that this machine has. Each job leaves
// a file of its own, so none can be counted that did not run.
func TestEachPeerRunsEveryJob(t *testing.T) {
	t.Parallel()
	for _, name := range peers.Installed() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if name == "slurm" && os.Getenv("DROVER_LONG") == "" {
				t.Skip("DROVER_LONG=1: slurm takes seconds to start")
			}
			p, err := peers.Start(t.Context(), name, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := p.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			}()
			out := t.TempDir()
			if err := p.Run(context.WithoutCancel(t.Context()), []string{"/usr/bin/env", "mktemp", filepath.Join(out, "job it's XXXXXXXX")}, 4); err != nil {
				t.Fatal(err)
			}
			if files, err := filepath.Glob(filepath.Join(out, "*")); err != nil || len(files) != 4 {
				t.Errorf("%d of 4 jobs ran (%v)", len(files), err)
			}
		})
	}
}
