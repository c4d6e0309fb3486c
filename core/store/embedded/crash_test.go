package embedded

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/droverhq/drover/core/store"
)

// P1: what Apply returned for is there after a power cut at any moment, and a
// batch is there as a whole or not at all.
func TestAppliedBatchesSurviveAPowerCut(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	fs := vfs.NewCrashableMem()
	s, err := open("data", log, fs)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for round := range 20 {
		var wait sync.WaitGroup
		for w := range 4 {
			wait.Go(func() {
				var b store.Batch
				b.Put(fmt.Appendf(nil, "%03d/%d/a", round, w), []byte("1"))
				b.Put(fmt.Appendf(nil, "%03d/%d/b", round, w), []byte("2"))
				if err := s.Apply(context.Background(), &b); err != nil {
					t.Error(err)
				}
			})
		}
		wait.Wait()
		if n := survivors(t, fs.CrashClone(vfs.CrashCloneCfg{
			UnsyncedDataPercent: 30, RNG: rand.New(rand.NewPCG(uint64(round), 1)),
		}), log); n < (round+1)*8 || n%2 != 0 {
			t.Fatalf("round %d: %d records came back of %d", round, n, (round+1)*8)
		}
	}
}

// survivors counts what a store finds after the cut.
func survivors(t *testing.T, fs vfs.FS, log *slog.Logger) int {
	t.Helper()
	s, err := open("data", log, fs)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	n := 0
	for _, err := range s.Scan(t.Context(), store.Range{}) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	return n
}

// BenchmarkApply measures durable batches of one record.
func BenchmarkApply(b *testing.B) {
	for _, writers := range []int{1, 16, 256} {
		b.Run(fmt.Sprint(writers), func(b *testing.B) {
			s, err := Open(b.TempDir(), slog.New(slog.DiscardHandler))
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			var wait sync.WaitGroup
			b.ResetTimer()
			for w := range writers {
				wait.Go(func() {
					for i := w; i < b.N; i += writers {
						var batch store.Batch
						batch.Put(fmt.Appendf(nil, "%09d", i), make([]byte, 256))
						if err := s.Apply(context.Background(), &batch); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wait.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
		})
	}
}
