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
// the terminal (contract, section 3). Characters that arrive in pieces are put
// together. It is used by one goroutine.
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
	_, err := io.WriteString(e.w, escape(text[:whole], "\n\t"))
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
	_, err := io.WriteString(e.w, escape(e.rest, ""))
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
func Line(s string) string { return escape([]byte(s), "") }

// escape shows everything that is not plain text; characters in keep stay.
func escape(p []byte, keep string) string {
	var b strings.Builder
	b.Grow(len(p))
	for len(p) > 0 {
		r, size := utf8.DecodeRune(p)
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, p[0])
		case !steers(r) || strings.ContainsRune(keep, r):
			b.Write(p[:size])
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\r':
			b.WriteString(`\r`)
		case r < 0x100:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
		p = p[size:]
	}
	return b.String()
}

// steers tells whether a character moves the cursor, changes what is shown, or
// turns the direction of the text that follows (CVE-2021-42574).
func steers(r rune) bool {
	return unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == '\u2028' || r == '\u2029'
}
