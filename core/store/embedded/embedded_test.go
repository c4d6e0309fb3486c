package embedded_test

import (
	"errors"
	"log/slog"
	"path/filepath"
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

func TestASecondUserOfTheFolderIsRefusedWithAHint(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open(t, dir)
	_, err := embedded.Open(dir, slog.New(slog.DiscardHandler))
	var e *errs.Error
	if !errors.As(err, &e) || e.Hint == "" {
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
