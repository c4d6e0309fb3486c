package main

import "testing"

// A limit that is no number was taken as some number, one that rounds to zero
// as no limit at all.
func TestLimitFlagsTakeNumbersOnly(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		text string
		want uint64
		ok   bool
	}{
		{"4096", 4096, true},
		{"0", 0, true},
		{"512M", 512 << 20, true},
		{"1.5k", 1536, true},
		{"2GiB", 2 << 30, true},
		{"0.4", 0, false},
		{"nan", 0, false},
		{"inf", 0, false},
		{"-1", 0, false},
		{"1e30", 0, false},
		{"M", 0, false},
		{"1X", 0, false},
	} {
		var v size
		if err := v.Set(c.text); (err == nil) != c.ok || uint64(v) != c.want {
			t.Errorf("size %q: %d, %v", c.text, v, err)
		}
	}
	for _, c := range []struct {
		text string
		want uint32
		ok   bool
	}{
		{"0.5", 500, true},
		{"2", 2000, true},
		{"0.001", 1, true},
		{"0", 0, false},
		{"0.0004", 0, false},
		{"-1", 0, false},
		{"nan", 0, false},
		{"inf", 0, false},
	} {
		var v cpus
		if err := v.Set(c.text); (err == nil) != c.ok || uint32(v) != c.want {
			t.Errorf("processors %q: %d, %v", c.text, v, err)
		}
	}
}
