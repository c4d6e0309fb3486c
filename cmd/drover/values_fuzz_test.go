package main

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/droverhq/drover/cmd/drover/internal/bulk"
)

// FuzzDuration: what is taken is not negative, and reads the same in Go's own form.
func FuzzDuration(f *testing.F) {
	for _, s := range []string{"90", "1.5", "90s", "1m30s", "2d", "0.5d", "-1", "1e300", "NaN", "Inf", "9223372036", "106751d", "1h", "", "d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := parseDuration(s)
		if err != nil {
			return
		}
		if again, err := parseDuration(d.String()); d < 0 || err != nil || again != d {
			t.Errorf("%q is %v, which is %v, %v", s, d, again, err)
		}
		if strings.Contains(strings.ToLower(s), "nan") || d > math.MaxInt64-time.Hour && len(s) < 6 {
			t.Errorf("%q is taken as %v", s, d)
		}
	})
}

// FuzzSize: what is taken is what a bound can be, and nothing becomes no limit.
func FuzzSize(f *testing.F) {
	for _, s := range []string{"4096", "512M", "2GiB", "1.5k", "0.0001k", "4T", "-1", "1e30", "NaN", "KB", "1b", "Inf", "0x10", "1e-400"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var v size
		if err := v.Set(s); err == nil && (v > 1<<62 || v == 0 && strings.ContainsAny(s, "123456789")) {
			t.Errorf("%q is %d", s, v)
		}
		var c cpus
		if err := c.Set(s); err == nil && (c == 0 || c > 4_000_000_000) {
			t.Errorf("%q is %d processors", s, c)
		}
	})
}

// FuzzArray: what is taken names each index once, and as many as it says.
func FuzzArray(f *testing.F) {
	for _, s := range []string{"1-100", "0-99:5", "1,3,7-9", "3-1", "1,1", "0-9:3,1-9:3", "5-5", "0-4294967295:1000000", "", "a", "-1", "1-2-3", "01"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := bulk.ParseArray(s)
		if err != nil || a.Len() > 10_000 {
			return
		}
		seen := map[string]bool{}
		for i := range a.Len() {
			if item := a.Item(i); seen[item] {
				t.Fatalf("%q names %s twice", s, item)
			} else {
				seen[item] = true
			}
		}
	})
}
