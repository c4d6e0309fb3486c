package embedded

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"testing"

	"github.com/droverhq/drover/core/store"
)

// A submit looks for its request id among all that there ever were. Filters answer,
// also those of the last level, and what was read once stays in memory.
func TestLookingForWhatIsNotThereReadsNextToNothing(t *testing.T) {
	t.Parallel()
	s, err := Open(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	key := func(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n*0x9E3779B97F4A7C15) } // spread over all keys
	const records, looks = 20_000, 1_000
	for n := uint64(0); n < records; {
		var b store.Batch
		for range 1_000 {
			b.Put(key(n), make([]byte, 400))
			n++
		}
		if err := s.Apply(t.Context(), &b); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.db.Compact(t.Context(), []byte{0}, []byte{255, 255}, false); err != nil {
		t.Fatal(err)
	}
	look := func() (blocks int64) {
		before := s.db.Metrics().BlockCache.Misses
		for n := range uint64(looks) {
			if _, err := s.Get(t.Context(), key(records+n)); !errors.Is(err, store.ErrNotFound) {
				t.Fatalf("key %d: %v, want not found", records+n, err)
			}
		}
		return s.db.Metrics().BlockCache.Misses - before
	}
	// One in a hundred passes a filter of ten bits a key; what the filters and the
	// index take is read once.
	if blocks := look(); blocks > looks/10 {
		t.Errorf("%d blocks were read for %d keys that do not exist", blocks, looks)
	}
	if blocks := look(); blocks > 0 {
		t.Errorf("%d blocks were read once more", blocks)
	}
}
