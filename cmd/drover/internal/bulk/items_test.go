package bulk_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"

	"github.com/droverhq/drover/cmd/drover/internal/bulk"
)

func all(items bulk.Items) []string {
	out := make([]string, items.Len())
	for i := range out {
		out[i] = items.Item(i)
	}
	return out
}

func TestAnArrayIsRangesStepsAndLists(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"7":                "7",
		"0":                "0",
		"1-3":              "1 2 3",
		"3-3":              "3",
		"1-10:4":           "1 5 9",
		"0-9:100":          "0",
		"5,1-2":            "5 1 2",
		"0-8:2,1-9:2":      "0 2 4 6 8 1 3 5 7 9",
		"1000000000000000": "1000000000000000",
	} {
		a, err := bulk.ParseArray(in)
		if err != nil || strings.Join(all(a), " ") != want {
			t.Errorf("%q: %v, %v", in, a, err)
		}
	}
}

func TestAnArrayThatCannotBeMeantIsRefused(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                            "no range",
		"1,":                          "no range",
		"-1":                          "no range",
		"1-":                          "no range",
		"a-b":                         "no range",
		"1-2-3":                       "no range",
		"01":                          "no range",
		"+1":                          "no range",
		" 1":                          "no range",
		"1.5":                         "no range",
		"1-2:":                        "no range",
		"1000000000000001":            "no range",
		"5-1":                         "is empty",
		"1-9:0":                       "step 0",
		"3:2":                         "a step and no range",
		"1-3,2":                       "names 2 a second time",
		"2,1-3":                       "names 2 a second time",
		"0-90:6,2-98:4":               "names 6 a second time",
		"0-9000000:3,7,9,99":          "names 9 a second time",
		"1-10000001":                  "more than 10000000 indices",
		"1-9999999,10000000-10000001": "more than 10000000 indices",
	} {
		if a, err := bulk.ParseArray(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v, want %q", in, a, err, want)
		}
	}
	var long []string
	for i := range 1001 {
		long = append(long, strconv.Itoa(i))
	}
	if _, err := bulk.ParseArray(strings.Join(long, ",")); err == nil {
		t.Error("1,001 parts are taken")
	}
}

// TestArrayAgreesWithItsDefinition: every index once, in the order in which it
// is written, or an error that names one that comes twice.
func TestArrayAgreesWithItsDefinition(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var parts, want []string
		for range rapid.IntRange(1, 4).Draw(t, "parts") {
			from, n, step := rapid.IntRange(0, 40).Draw(t, "from"), rapid.IntRange(0, 30).Draw(t, "n"), rapid.IntRange(1, 12).Draw(t, "step")
			parts = append(parts, fmt.Sprintf("%d-%d:%d", from, from+n, step))
			for i := from; i <= from+n; i += step {
				want = append(want, strconv.Itoa(i))
			}
		}
		distinct := slices.Compact(slices.Sorted(slices.Values(want)))
		a, err := bulk.ParseArray(strings.Join(parts, ","))
		if twice := len(distinct) != len(want); twice != (err != nil) {
			t.Fatalf("%v: twice %v, %v", parts, twice, err)
		}
		if err == nil && !slices.Equal(all(a), want) {
			t.Fatalf("%v: %v instead of %v", parts, all(a), want)
		}
	})
}

func TestLinesAreTakenByteForByte(t *testing.T) {
	t.Parallel()
	for in, want := range map[string][]string{
		"":               nil,
		"a":              {"a"},
		"a\n":            {"a"},
		"\n":             {""},
		" a \t\r\n\nb\n": {" a \t\r", "", "b"},
		"{}\n$HOME *\n":  {"{}", "$HOME *"},
	} {
		got, err := bulk.ReadLines(iotest.OneByteReader(strings.NewReader(in)))
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}

func TestALineThatCannotBeAnArgumentIsNamed(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"a\nb\x00c\n":                            "line 2 holds a NUL byte",
		"\xff":                                   "line 1 is not valid UTF-8",
		"a\n" + strings.Repeat("x", 1<<20+1):     "line 2 is longer than 1 MiB",
		strings.Repeat("x", 1<<20) + "\nb\n\x00": "line 3 holds a NUL byte",
	} {
		if _, err := bulk.ReadLines(strings.NewReader(in)); err == nil || err.Error() != want {
			t.Errorf("%.20q: %v, want %s", in, err, want)
		}
	}
	if _, err := bulk.ReadLines(iotest.ErrReader(iotest.ErrTimeout)); err == nil {
		t.Error("a read error is lost")
	}
}
