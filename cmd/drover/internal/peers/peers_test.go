package peers_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
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

// TestSSHDoesNotMeasureAStartupFile: the remote bash must not read ~/.bashrc,
// which took two seconds for each command on one machine.
func TestSSHDoesNotMeasureAStartupFile(t *testing.T) {
	t.Parallel()
	if !slices.Contains(peers.Installed(), "ssh") {
		t.Skip("ssh is not installed")
	}
	s, err := peers.StartSSH(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}()
	out, err := s.Command(t.Context(), "bash", "-c", "echo $SHLVL").Output()
	if level, errLevel := strconv.Atoi(strings.TrimSpace(string(out))); err != nil || errLevel != nil || level < 2 {
		t.Errorf("the shell takes itself for the first one: level %q (%v)", out, err)
	}
	p, err := s.Processes()
	if err != nil || len(p["ssh"]) != 1 || len(p["sshd"]) < 2 {
		t.Errorf("processes %v (%v), want the master and its server's child", p, err)
	}
}
