package footprint

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
)

func TestTrimComesWithRestAndNotAgainBeforeWork(t *testing.T) {
	t.Parallel()
	const kib = 1 << 10
	for _, c := range []struct {
		name      string
		allocated []uint64 // KiB, at each look
		want      []bool
	}{
		{"after the start", []uint64{5000, 5000, 5000}, []bool{false, true, false}},
		{"a start that goes on", []uint64{5000, 9000, 20000, 20000}, []bool{false, false, false, true}},
		{"idle for long", []uint64{5000, 5000, 5800, 6600, 7400, 8200, 8200}, []bool{false, true, false, false, true, false, false}},
		{"work in between", []uint64{5000, 5000, 50000, 90000, 90000, 90000}, []bool{false, true, false, false, true, false}},
		{"little work", []uint64{5000, 5000, 6900, 6900}, []bool{false, true, false, false}},
	} {
		var p pace
		var got []bool
		for _, a := range c.allocated {
			got = append(got, p.rests(a*kib))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: trimmed %v, want %v", c.name, got, c.want)
		}
	}
}

func TestOnlyMappingsAsInTheFileAreGivenBack(t *testing.T) {
	t.Parallel()
	smaps := `00400000-00500000 r--p 00000000 fe:00 42 /bin/x
Anonymous:             0 kB
00500000-00600000 r-xp 00100000 fe:00 42 /bin/x
Rss:                 900 kB
Anonymous:             0 kB
00600000-00601000 r--p 00200000 fe:00 42 /bin/x
Anonymous:             4 kB
00601000-00700000 rw-p 00200000 fe:00 42 /bin/x
Anonymous:             0 kB
00700000-00800000 r-xp 00000000 fe:00 43 /lib/y
Anonymous:             0 kB
00800000-00900000 rw-p 00000000 00:00 0
Anonymous:            80 kB
`
	want := []mapping{{0x400000, 0x500000}, {0x500000, 0x600000}}
	if got := clean([]byte(smaps), "/bin/x"); !slices.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
}

// TestTrimLetsGoOfTheProgram: the test itself goes on running afterwards.
func TestTrimLetsGoOfTheProgram(t *testing.T) {
	before := programKB(t)
	if err := Trim(); err != nil {
		t.Fatal(err)
	}
	if after := programKB(t); after >= before {
		t.Errorf("%d kB of the program were mapped, %d kB after the trim", before, after)
	}
}

func programKB(t *testing.T) (kb int) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	inside := false
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if !strings.HasSuffix(f[0], ":") {
			inside = f[len(f)-1] == exe && strings.Contains(f[1], "x")
		}
		if inside && f[0] == "Rss:" {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			kb += n
		}
	}
	return kb
}

func TestKeepEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*look)
		defer cancel()
		if keep(ctx, slog.New(slog.DiscardHandler), nil); ctx.Err() == nil {
			t.Error("it ended before its context")
		}
	})
}
