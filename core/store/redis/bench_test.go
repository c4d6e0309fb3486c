package redis_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/droverhq/drover/core/store"
	"github.com/droverhq/drover/core/store/redis"
	"github.com/droverhq/drover/core/store/redis/redistest"
)

func benchmarked(b *testing.B) *redis.Store {
	b.Helper()
	c, err := redis.ParseURL(redistest.Start(b).URL(), nothing)
	if err != nil {
		b.Fatal(err)
	}
	s, err := redis.Open(b.Context(), c)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	return s
}

// BenchmarkApply measures durable batches by their records.
func BenchmarkApply(b *testing.B) {
	for _, records := range []int{1, 100, 4000} {
		b.Run(fmt.Sprint(records), func(b *testing.B) {
			s := benchmarked(b)
			for i := 0; b.Loop(); i++ {
				var batch store.Batch
				for n := range records {
					batch.Put(fmt.Appendf(nil, "%09d/%d", i, n), make([]byte, 256))
				}
				if err := s.Apply(context.Background(), &batch); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N*records)/b.Elapsed().Seconds(), "records/s")
		})
	}
}

// BenchmarkRead measures what a scheduler does when it starts.
func BenchmarkRead(b *testing.B) {
	const records = 100_000
	s := benchmarked(b)
	var batch store.Batch
	for n := range records {
		if batch.Put(fmt.Appendf(nil, "%09d", n), make([]byte, 1000)); len(batch.Ops) == 5000 {
			if err := s.Apply(context.Background(), &batch); err != nil {
				b.Fatal(err)
			}
			batch = store.Batch{}
		}
	}
	b.Run("scan", func(b *testing.B) {
		for b.Loop() {
			for _, err := range s.Scan(context.Background(), store.Range{}) {
				if err != nil {
					b.Fatal(err)
				}
			}
		}
		b.ReportMetric(float64(b.N*records)/b.Elapsed().Seconds(), "records/s")
	})
	for _, readers := range []int{1, 8} {
		b.Run(fmt.Sprintf("get/%d", readers), func(b *testing.B) {
			for b.Loop() {
				var wait sync.WaitGroup
				for r := range readers {
					wait.Go(func() {
						for n := r; n < records; n += readers {
							if _, err := s.Get(context.Background(), fmt.Appendf(nil, "%09d", n)); err != nil {
								b.Error(err)
							}
						}
					})
				}
				wait.Wait()
			}
			b.ReportMetric(float64(b.N*records)/b.Elapsed().Seconds(), "records/s")
		})
	}
}
