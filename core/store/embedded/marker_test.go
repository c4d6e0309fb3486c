package embedded

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/store"
)

// TestP15_MarkerIsMissing_TheStoreIsNotTakenForANewOne: it was, and every record was
// forgotten without a word.
func TestP15_MarkerIsMissing_TheStoreIsNotTakenForANewOne(t *testing.T) {
	t.Parallel()
	for _, marker := range []string{manifestMarker, formatMarker} {
		dir := t.TempDir()
		log := slog.New(slog.DiscardHandler)
		s, err := Open(dir, log)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Apply(t.Context(), &store.Batch{Ops: []store.Op{{Key: []byte("k"), Value: []byte("v")}}}); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		found, err := filepath.Glob(filepath.Join(dir, marker+"*"))
		if err != nil || len(found) != 1 {
			t.Fatalf("%v, %v", found, err)
		}
		away := filepath.Join(t.TempDir(), "marker")
		if err := os.Rename(found[0], away); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, log); errs.ReasonOf(err) != "STORE" || !strings.Contains(err.Error(), marker) {
			t.Fatalf("without %s: %v", marker, err)
		}
		if err := os.Rename(away, found[0]); err != nil {
			t.Fatal(err)
		}
		if s, err = Open(dir, log); err != nil {
			t.Fatal(err)
		}
		if v, err := s.Get(t.Context(), []byte("k")); string(v) != "v" || err != nil {
			t.Errorf("with it again: %q, %v", v, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
