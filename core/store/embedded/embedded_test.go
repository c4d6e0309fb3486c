package embedded_test

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/store"
	"github.com/droverhq/drover/core/store/embedded"
	"github.com/droverhq/drover/core/store/storetest"
)

func open(t *testing.T, dir string) store.Store {
	t.Helper()
	s, err := embedded.Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestConformance(t *testing.T) {
	t.Parallel()
	storetest.Run(t, storetest.Engine{Open: open})
}

// P15: what would hold a second scheduler from damaging the records of the first.
func TestASecondUserOfTheFolderIsRefusedWithAHint(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open(t, dir)
	_, err := embedded.Open(dir, slog.New(slog.DiscardHandler))
	var e *errs.Error
	if !errors.As(err, &e) || e.Hint == "" || e.Reason != "STORE_LOCKED" || e.Kind != errs.Precondition {
		t.Errorf("got %v", err)
	}
}

// The lock of another process is another error of the system than our own.
func TestAnotherProcessIsRefused(t *testing.T) {
	if dir := os.Getenv("DROVER_TEST_STORE"); dir != "" {
		_, err := embedded.Open(dir, slog.New(slog.DiscardHandler))
		fmt.Println(errs.ReasonOf(err), err)
		return
	}
	t.Parallel()
	dir := t.TempDir()
	open(t, dir)
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestAnotherProcessIsRefused$")
	cmd.Env = append(os.Environ(), "DROVER_TEST_STORE="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "STORE_LOCKED") || !strings.Contains(string(out), "used by another scheduler") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestAFolderThatCannotBeUsedIsNamed(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := embedded.Open(filepath.Join(file, "store"), slog.New(slog.DiscardHandler))
	if errs.ReasonOf(err) != "STORE_FOLDER" || !strings.Contains(err.Error(), file) {
		t.Errorf("got %v", err)
	}
}

func TestCheckpointIsAWholeStore(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir()).(*embedded.Store)
	var b store.Batch
	b.Put([]byte("k"), []byte("v"))
	if err := s.Apply(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "copy")
	if err := s.Checkpoint(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if v, err := open(t, dir).Get(t.Context(), []byte("k")); err != nil || string(v) != "v" {
		t.Errorf("%q, %v", v, err)
	}
}
