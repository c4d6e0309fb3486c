package footprint

import (
	"math"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"testing"
)

func TestALargeProcessWithLittleToDoCollectsSooner(t *testing.T) {
	t.Parallel()
	const (
		mib = 1 << 20
		now = 100 // percent: as the process was started
	)
	type look struct{ allocated, held uint64 } // MiB
	for _, c := range []struct {
		name  string
		usual uint64
		looks []look
		want  []int // percent after each look; 0: unchanged
	}{
		{"small", now, []look{{10, 20}, {10, 20}, {11, 20}}, []int{0, 0, 0}},
		{"large and quiet", now, []look{{900, 1000}, {940, 1000}, {980, 1000}}, []int{0, tight, 0}},
		{"large and busy", now, []look{{900, 1000}, {960, 1000}, {1020, 1000}}, []int{0, 0, 0}},
		{"work in between", now, []look{{900, 1000}, {910, 1000}, {2000, 1000}, {2001, 1000}}, []int{0, tight, now, tight}},
		{"it shrinks", now, []look{{900, 1000}, {910, 1000}, {911, 60}}, []int{0, tight, now}},
		{"a start is work", now, []look{{900, 1000}}, []int{0}},
		{"started with less", 10, []look{{900, 1000}, {910, 1000}}, []int{0, 0}},
		{"started without collection", math.MaxUint64, []look{{900, 1000}, {910, 1000}}, []int{0, 0}},
		{"started with more", 400, []look{{900, 1000}, {910, 1000}, {2000, 1000}}, []int{0, tight, 400}},
	} {
		p := newPress(c.usual)
		var got []int
		for _, l := range c.looks {
			percent, _ := p.next(l.allocated*mib, l.held*mib)
			got = append(got, percent)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v percent, want %v", c.name, got, c.want)
		}
	}
}

// TestPressSetsWhatTheRuntimeUses: the metric that it is started with is the one
// that it changes.
func TestPressSetsWhatTheRuntimeUses(t *testing.T) {
	before := debug.SetGCPercent(100)
	defer debug.SetGCPercent(before)
	percent := func() uint64 {
		s := []metrics.Sample{{Name: percentNow}}
		metrics.Read(s)
		return s[0].Value.Uint64()
	}
	p := newPress(percent())
	p.apply(1, large)
	if p.apply(1, large); percent() != tight {
		t.Errorf("%d percent while it is large and quiet", percent())
	}
	if p.apply(large, large); percent() != 100 {
		t.Errorf("%d percent when it has work again", percent())
	}
}
