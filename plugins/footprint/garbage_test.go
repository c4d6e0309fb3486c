package footprint

import (
	"context"
	"log/slog"
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"testing"
)

func TestASmallProcessMayGatherGarbageAndALargeOneNot(t *testing.T) {
	t.Parallel()
	for live, want := range map[uint64]int{
		0: most, 1 << 20: most, 8 << 20: most, 10 << 20: 160, 16 << 20: usual, 1 << 30: usual,
	} {
		if got := share(live); got != want {
			t.Errorf("%d bytes in use: %d, want %d", live, got, want)
		}
	}
	// What is kept in all never grows by more than by Go's own rule, or by spare.
	for live := uint64(1 << 20); live < 1<<31; live += live/3 + 1 {
		if garbage := live * uint64(share(live)) / 100; garbage > max(live, spare) {
			t.Errorf("%d bytes in use: %d of garbage", live, garbage)
		}
	}
}

func TestGarbageIsCollectedAsTheProcessNeedsIt(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	type look struct{ allocated, held uint64 } // MiB
	for _, c := range []struct {
		name  string
		given uint64
		looks []look
		want  []int // percent after each look; 0: unchanged
	}{
		{"small", usual, []look{{10, 5}, {10, 5}, {11, 5}}, []int{most, 0, 0}},
		{"growing", usual, []look{{10, 5}, {60, 10}, {70, 11}, {200, 40}, {300, 41}}, []int{most, 160, 0, usual, 0}},
		{"large and quiet", usual, []look{{900, 1000}, {940, 1000}, {980, 1000}}, []int{0, tight, 0}},
		{"large and busy", usual, []look{{900, 1000}, {960, 1000}, {1020, 1000}}, []int{0, 0, 0}},
		{"work in between", usual, []look{{900, 1000}, {910, 1000}, {2000, 1000}, {2001, 1000}}, []int{0, tight, usual, tight}},
		{"it shrinks", usual, []look{{900, 1000}, {910, 1000}, {911, 60}}, []int{0, tight, usual}},
		{"a start is work", usual, []look{{900, 1000}}, []int{0}},
		{"started with less", 10, []look{{900, 1000}, {910, 1000}, {911, 3}}, []int{0, 0, 0}},
		{"started without collection", math.MaxUint64, []look{{900, 1000}, {910, 1000}, {911, 3}}, []int{0, 0, 0}},
		{"started with more", 300, []look{{900, 1000}, {910, 1000}, {2000, 3}}, []int{0, tight, 300}},
	} {
		g := newGarbage(c.given)
		var got []int
		for _, l := range c.looks {
			g.look(l.allocated*mib, l.held*mib)
			percent, _ := g.next(l.held * mib)
			got = append(got, percent)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v percent, want %v", c.name, got, c.want)
		}
	}
}

// Not parallel: the collector is the whole process's.
func TestKeepSetsWhatTheRuntimeUses(t *testing.T) {
	before := debug.SetGCPercent(usual)
	defer debug.SetGCPercent(before)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		Keep(ctx, slog.New(slog.DiscardHandler))
	}()
	sample := []metrics.Sample{{Name: percentNow}}
	for told := collections(ctx); ; {
		runtime.GC()
		<-told
		if metrics.Read(sample); sample[0].Value.Uint64() == most {
			break // a test has next to nothing in use
		}
	}
	cancel()
	<-ended
}
