// Package term knows what a terminal is and keeps what others printed from
// steering it.
package term

import (
	"os"

	"golang.org/x/sys/unix"
)

// IsTerminal tells whether a stream is a terminal. Anything that is no file is
// none.
func IsTerminal(stream any) bool {
	switch s := stream.(type) {
	case *Terminal:
		return true
	case *os.File:
		_, err := unix.IoctlGetTermios(int(s.Fd()), unix.TCGETS)
		return err == nil
	default:
		return false
	}
}

// Palette colours words, or leaves them as they are. The zero value leaves
// them.
type Palette struct {
	mark string // of the Terminal that lets the colours through; "" is none
}

// NewPalette returns a palette for a stream: colours only on a terminal, and
// neither with NO_COLOR (no-color.org), nor on a dumb one, nor when off is set.
func NewPalette(stream any, getenv func(string) string, off bool) Palette {
	t, ok := stream.(*Terminal)
	if !ok || off || getenv("NO_COLOR") != "" || getenv("TERM") == "dumb" {
		return Palette{}
	}
	return Palette{t.mark}
}

// Colour is the number of an SGR foreground colour.
type Colour string

// The colours in use.
const (
	Plain  Colour = ""
	Red    Colour = "31"
	Green  Colour = "32"
	Yellow Colour = "33"
	Blue   Colour = "34"
	Grey   Colour = "90"
)

// Paint returns s in a colour, or s itself.
func (p Palette) Paint(c Colour, s string) string {
	if p.mark == "" || c == Plain {
		return s
	}
	return p.mark + string(c) + "m" + s + p.mark + "0m"
}
