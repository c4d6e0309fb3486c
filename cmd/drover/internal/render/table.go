package render

import (
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// gutter stands between two columns.
const gutter = "  "

// sgr matches the colours that a palette adds; they take no room.
var sgr = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile("\x1b\\[[0-9;]*m") })

// width is the room that a cell takes.
func width(s string) int { return utf8.RuneCountInString(sgr().ReplaceAllString(s, "")) }

// Widths returns the room of each column.
func Widths(header []string, rows [][]string) []int {
	w := make([]int, len(header))
	for _, row := range append([][]string{header}, rows...) {
		for i, cell := range row {
			if i < len(w) {
				w[i] = max(w[i], width(oneLine(cell)))
			}
		}
	}
	return w
}

// oneLine shows what would break the line of a table: a value must not be able to
// forge a line.
func oneLine(s string) string {
	return strings.NewReplacer("\n", `\n`, "\r", `\r`, "\t", `\t`).Replace(s)
}

// WriteTable writes a header and aligned rows.
func WriteTable(out io.Writer, header []string, rows [][]string) error {
	widths := Widths(header, rows)
	var b strings.Builder
	for _, row := range append([][]string{header}, rows...) {
		b.WriteString(AlignRow(row, widths))
	}
	if _, err := io.WriteString(out, b.String()); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// AlignRow returns one line of a table.
func AlignRow(row []string, widths []int) string {
	var b strings.Builder
	for i, cell := range row {
		cell = oneLine(cell)
		b.WriteString(cell)
		if i < len(row)-1 {
			b.WriteString(strings.Repeat(" ", max(0, widths[i]-width(cell))) + gutter)
		}
	}
	return strings.TrimRight(b.String(), " ") + "\n"
}

// Field is one line of what is told about a single thing.
type Field struct {
	Name, Value string
}

// WriteFields writes names and values, leaving out what is empty.
func WriteFields(out io.Writer, fields []Field) error {
	room := 0
	for _, f := range fields {
		if f.Value != "" {
			room = max(room, width(f.Name))
		}
	}
	var b strings.Builder
	for _, f := range fields {
		if f.Value != "" {
			fmt.Fprintf(&b, "%s:%s%s\n", f.Name, strings.Repeat(" ", room-width(f.Name)+1), oneLine(f.Value))
		}
	}
	if _, err := io.WriteString(out, b.String()); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// Duration is a duration for people: 1m30s, and below a minute with what
// digits say something.
func Duration(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < 10*time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	case d < 48*time.Hour:
		return trimZero(d.Round(time.Second).String())
	default:
		days := d / (24 * time.Hour)
		return fmt.Sprintf("%dd%dh", days, (d-days*24*time.Hour)/time.Hour)
	}
}

// trimZero turns 1h0m0s into 1h and 2m0s into 2m.
func trimZero(s string) string {
	if rest, ok := strings.CutSuffix(s, "m0s"); ok {
		s = rest + "m"
	}
	if rest, ok := strings.CutSuffix(s, "h0m"); ok {
		s = rest + "h"
	}
	return s
}

// Age is how long ago something was, coarsely.
func Age(now, t time.Time) string {
	if t.IsZero() {
		return ""
	}
	d := max(now.Sub(t), 0)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	default:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	}
}

// Size is a number of bytes for people, in powers of 1024.
func Size(n uint64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n), ""
	for _, unit = range []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"} {
		if value /= 1024; value < 1024 {
			break
		}
	}
	return fmt.Sprintf("%.1f %s", value, unit)
}

// Cut shortens s to n characters.
func Cut(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n-1]) + "…"
}
