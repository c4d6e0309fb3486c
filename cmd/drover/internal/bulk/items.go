package bulk

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Bounds of what one run takes.
const (
	MaxItems = 10_000_000
	maxParts = 1000 // of the list of an array
	maxIndex = 1_000_000_000_000_000
	maxLine  = 1 << 20
	maxInput = 256 << 20 // of all lines
)

// Items are what the jobs of one run differ by: text for each, in order.
type Items interface {
	Len() int
	Item(i int) string
}

// Range is one part of an array: From, From+Step, ... up to To.
type Range struct{ From, To, Step int64 }

func (r Range) len() int64 { return (r.To-r.From)/r.Step + 1 }

// Array is the indices of an array job.
type Array struct {
	ranges []Range
	ends   []int // how many indices there are up to the end of each range
}

// Len implements Items.
func (a *Array) Len() int {
	if len(a.ends) == 0 {
		return 0
	}
	return a.ends[len(a.ends)-1]
}

// Item implements Items.
func (a *Array) Item(i int) string {
	before := 0
	for k, end := range a.ends {
		if i < end {
			r := a.ranges[k]
			return strconv.FormatInt(r.From+int64(i-before)*r.Step, 10)
		}
		before = end
	}
	panic("unreachable: the index is below Len")
}

// ParseArray reads indices such as 1-100, 0-99:5 or 1,3,7-9. An index that is
// named twice is an error: it would be one job too many.
func ParseArray(s string) (*Array, error) {
	a := &Array{}
	for part := range strings.SplitSeq(s, ",") {
		r, err := parseRange(part)
		if err != nil {
			return nil, err
		}
		if r.len() > int64(MaxItems-a.Len()) {
			return nil, fmt.Errorf("there are more than %d indices", MaxItems)
		}
		for _, o := range a.ranges {
			if n, both := common(o, r); both {
				return nil, fmt.Errorf("%q names %d a second time", part, n)
			}
		}
		a.ranges, a.ends = append(a.ranges, r), append(a.ends, a.Len()+int(r.len()))
		if len(a.ranges) > maxParts {
			return nil, fmt.Errorf("there are more than %d parts", maxParts)
		}
	}
	return a, nil
}

func parseRange(s string) (Range, error) {
	bounds, step, stepped := strings.Cut(s, ":")
	from, to, ranged := strings.Cut(bounds, "-")
	r := Range{Step: 1}
	for _, f := range []struct {
		text string
		on   bool
		into *int64
	}{{from, true, &r.From}, {to, ranged, &r.To}, {step, stepped, &r.Step}} {
		if !f.on {
			continue
		}
		n, err := strconv.ParseUint(f.text, 10, 63)
		if err != nil || n > maxIndex || strconv.FormatUint(n, 10) != f.text {
			return r, fmt.Errorf("%q is no range such as 1-100, 0-99:5 or 7", s)
		}
		*f.into = int64(n)
	}
	switch {
	case !ranged && stepped:
		return r, fmt.Errorf("%q has a step and no range", s)
	case !ranged:
		r.To = r.From
	case r.To < r.From:
		return r, fmt.Errorf("%q is empty: %d is below %d", s, r.To, r.From)
	case r.Step == 0:
		return r, fmt.Errorf("%q has the step 0", s)
	}
	return r, nil
}

// common finds an index that two ranges share. They are walked from where both
// have begun; the pattern repeats after the product of the steps.
func common(a, b Range) (int64, bool) {
	if a.Step < b.Step {
		a, b = b, a // fewer steps of the wider one
	}
	low, high := max(a.From, b.From), min(a.To, b.To)
	first := a.From
	if first < low {
		first += (low - a.From + a.Step - 1) / a.Step * a.Step
	}
	for n, tries := first, int64(0); n <= high && tries < b.Step; n, tries = n+a.Step, tries+1 {
		if (n-b.From)%b.Step == 0 {
			return n, true
		}
	}
	return 0, false
}

// Lines are the lines of a file.
type Lines []string

// Len implements Items.
func (l Lines) Len() int { return len(l) }

// Item implements Items.
func (l Lines) Item(i int) string { return l[i] }

// ReadLines reads all lines of r, each exactly as it is, without its newline. A
// line that cannot be an argument is an error that says which it is.
func ReadLines(r io.Reader) (Lines, error) {
	var lines Lines
	in, size := bufio.NewReader(r), 0
	for {
		line, err := in.ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("line %d: %w", len(lines)+1, err)
		}
		if line == "" {
			return lines, nil
		}
		text := strings.TrimSuffix(line, "\n")
		if why := unfit(text); why != "" {
			return nil, fmt.Errorf("line %d %s", len(lines)+1, why)
		}
		if size += len(text); size > maxInput || len(lines) == MaxItems {
			return nil, fmt.Errorf("line %d: there are more than %d lines or %d MiB", len(lines)+1, MaxItems, maxInput>>20)
		}
		lines = append(lines, text)
	}
}

func unfit(line string) string {
	switch {
	case len(line) > maxLine:
		return "is longer than 1 MiB"
	case strings.ContainsRune(line, 0):
		return "holds a NUL byte"
	case !utf8.ValidString(line):
		return "is not valid UTF-8"
	default:
		return ""
	}
}
