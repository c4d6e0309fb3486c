package term

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Escaper passes text on and shows control bytes other than newline and tab,
// and bytes that are no UTF-8, as escapes, so that a job's output cannot steer
// the terminal. Characters that arrive in pieces are put together. It is used by one
// goroutine.
type Escaper struct {
	w    io.Writer
	rest []byte // the beginning of a character
}

// NewEscaper returns an Escaper that writes to w.
func NewEscaper(w io.Writer) *Escaper { return &Escaper{w: w} }

// Write implements io.Writer.
func (e *Escaper) Write(p []byte) (int, error) {
	text := p
	if len(e.rest) > 0 {
		text = append(e.rest, p...)
	}
	whole := len(text) - partial(text)
	_, err := io.WriteString(e.w, escape(text[:whole], "\n\t", shortEscape))
	e.rest = append([]byte(nil), text[whole:]...)
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close shows what is left of a character whose end never came. It does not
// close the writer below.
func (e *Escaper) Close() error {
	if len(e.rest) == 0 {
		return nil
	}
	_, err := io.WriteString(e.w, escape(e.rest, "", shortEscape))
	e.rest = nil
	return err
}

// partial returns how many bytes at the end begin a character without ending it.
func partial(p []byte) int {
	for n := 1; n <= min(len(p), utf8.UTFMax-1); n++ {
		if tail := p[len(p)-n:]; utf8.RuneStart(tail[0]) {
			if utf8.FullRune(tail) {
				return 0
			}
			return n
		}
	}
	return 0
}

// Line returns s as one line that cannot steer a terminal: newlines and tabs
// are escaped, too.
func Line(s string) string { return escape([]byte(s), "", shortEscape) }

// escape shows everything that is not plain text; characters in keep stay.
func escape(p []byte, keep string, form func(rune) string) string {
	var b strings.Builder
	b.Grow(len(p))
	for len(p) > 0 {
		r, size := utf8.DecodeRune(p)
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, p[0])
		case !Steers(r) || strings.ContainsRune(keep, r):
			b.Write(p[:size])
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\r':
			b.WriteString(`\r`)
		default:
			b.WriteString(form(r))
		}
		p = p[size:]
	}
	return b.String()
}

// shortEscape writes a character in as few digits as a reader needs.
func shortEscape(r rune) string {
	switch {
	case r < 0x100:
		return fmt.Sprintf(`\x%02x`, r)
	case r > 0xffff:
		return fmt.Sprintf(`\U%08x`, r)
	default:
		return fmt.Sprintf(`\u%04x`, r)
	}
}

// Steers reports whether a character is not shown as itself: it moves the
// cursor, changes the terminal's state, turns the direction of the text that
// follows (CVE-2021-42574), breaks the line, or is invisible. Invisible
// characters that change the look of their neighbours and nothing else are
// text: the joiners U+200C and U+200D, and the variation selectors U+FE00 to
// U+FE0F.
func Steers(r rune) bool {
	switch {
	case r < 0x7f:
		return r < ' '
	case r < 0xa0:
		return true
	case r == zeroWidthNonJoiner || r == zeroWidthJoiner:
		return false
	case unicode.Is(unicode.Cf, r):
		return !unicode.Is(unicode.Prepended_Concatenation_Mark, r) // those are signs that are seen
	default:
		return unicode.In(r, unicode.Zl, unicode.Zp, unicode.Other_Default_Ignorable_Code_Point) || r >= 0xe0100 && r <= 0xe01ef
	}
}

// Joiners of format category that change the shape of the letters beside them.
const (
	zeroWidthNonJoiner = '\u200c'
	zeroWidthJoiner    = '\u200d'
)
