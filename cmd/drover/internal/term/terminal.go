package term

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Terminal is an output stream that ends at a terminal. Only text, newlines and
// tabs get through it, and the colours of its own palette: everything else that
// is written, by whatever verb and from whatever source, is shown as an escape.
// So a verb that forgets to escape a name cannot let the name steer it.
//
// The escapes of characters are those of JSON, so a JSON document stays valid
// and keeps its value. Text must not be cut inside a character between two
// writes; an Escaper puts the characters of a stream of bytes together.
type Terminal struct {
	w    io.Writer
	mark string // begins a colour; a secret of the process, so that data cannot hold it
}

// Guard returns the stream that verbs write to: a Terminal where stream is one,
// else stream itself, which takes every byte as it is.
func Guard(stream *os.File) io.Writer {
	if !IsTerminal(stream) {
		return stream
	}
	return NewTerminal(stream)
}

// NewTerminal returns a Terminal that writes to w.
func NewTerminal(w io.Writer) *Terminal {
	// A parameter that terminals would not understand; it has the form of one so
	// that a coloured word is measured like any other.
	return &Terminal{w, "\x1b[" + strconv.FormatUint(rand.Uint64(), 10) + ";"}
}

// Write implements io.Writer.
func (t *Terminal) Write(p []byte) (int, error) {
	var b strings.Builder
	b.Grow(len(p))
	for i, part := range strings.Split(string(p), t.mark) {
		if i > 0 {
			var colour string
			colour, part, _ = strings.Cut(part, "m")
			b.WriteString("\x1b[" + colour + "m")
		}
		b.WriteString(escape([]byte(part), "\n\t", jsonEscape))
	}
	if _, err := io.WriteString(t.w, b.String()); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Raw returns the stream without the guard: for the output of a job that is to
// be obeyed, or that an Escaper has escaped already.
func (t *Terminal) Raw() io.Writer { return t.w }

// EraseLine takes away the line that the cursor is in.
func (t *Terminal) EraseLine() {
	_, _ = io.WriteString(t.w, "\r\x1b[K") // a terminal that is gone shows at the next Write
}

// Columns returns the width of the terminal; 0 when it is not known.
func (t *Terminal) Columns() int {
	f, ok := t.w.(*os.File)
	if !ok {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(size.Col)
}

// jsonEscape writes a character as JSON does. A byte that is not UTF-8 has no
// such form, and no JSON document holds one.
func jsonEscape(r rune) string {
	if r > 0xffff {
		return fmt.Sprintf(`\u%04x\u%04x`, 0xd800+(r-0x10000)>>10, 0xdc00+(r-0x10000)&0x3ff)
	}
	return fmt.Sprintf(`\u%04x`, r)
}
