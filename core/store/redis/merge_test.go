package redis

import (
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/droverhq/drover/core/store"
)

// A page is what the snapshot held, as far as it reaches, whatever has changed
// since and wherever the two lists were cut; page by page nothing is missing or
// told twice.
func TestPagesShowTheSnapshot(t *testing.T) {
	t.Parallel()
	keys := rapid.SampledFrom([]string{"", "\x00", "a", "a\x00", "b", "c", "d", "e", "f", "\xff"})
	rapid.Check(t, func(t *rapid.T) {
		snapshot := rapid.MapOf(keys, rapid.SampledFrom([]string{"", "1", "2"})).Draw(t, "snapshot")
		present := rapid.MapOf(keys, rapid.SampledFrom([]string{"", "1", "3"})).Draw(t, "present")
		past := map[string]string{}
		for _, k := range rapid.SliceOf(keys).Draw(t, "touched") {
			past[k] = "touched"
		}
		for k := range maps.Keys(map[string]bool{"": true, "\x00": true, "a": true, "a\x00": true, "b": true, "c": true, "d": true, "e": true, "f": true, "\xff": true}) {
			old, had := snapshot[k]
			new, has := present[k]
			if past[k] == "" && had == has && old == new {
				continue
			}
			if past[k] = "-"; had {
				past[k] = "+" + old
			}
		}
		reverse := rapid.Bool().Draw(t, "reverse")
		var got []string
		var last []byte
		for begun, more := false, true; more; begun = true {
			a := cut(t, present, begun, last, reverse)
			b := cut(t, past, begun, last, reverse)
			var pairs []store.Pair
			if pairs, last, more = merge(a, b, reverse); more && last == nil {
				t.Fatal("there is more, but from nowhere")
			}
			for _, p := range pairs {
				got = append(got, string(p.Key)+"="+string(p.Value))
			}
		}
		var want []string
		for _, k := range slices.Sorted(maps.Keys(snapshot)) {
			want = append(want, k+"="+snapshot[k])
		}
		if reverse {
			slices.Reverse(want)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("got %q, want %q", got, want)
		}
	})
}

// cut is what Redis returns of a map after a key: a few pairs at least one, and
// whether it may have more.
func cut(t *rapid.T, m map[string]string, begun bool, after []byte, reverse bool) stretch {
	var s stretch
	keys := slices.Sorted(maps.Keys(m))
	if reverse {
		slices.Reverse(keys)
	}
	most := rapid.IntRange(1, 4).Draw(t, "most")
	for _, k := range keys {
		if begun && (!reverse && k <= string(after) || reverse && k >= string(after)) {
			continue
		}
		if len(s.pairs) == most {
			break
		}
		s.pairs = append(s.pairs, store.Pair{Key: []byte(k), Value: []byte(m[k])})
	}
	s.more = len(s.pairs) == most
	return s
}
