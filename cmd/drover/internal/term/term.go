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
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// Palette colours words, or leaves them as they are. The zero value leaves
// them.
type Palette struct {
	on bool
}

// NewPalette returns a palette for a stream: colours only on a terminal, and
// neither with NO_COLOR (no-color.org), nor on a dumb one, nor when off is set.
func NewPalette(stream any, getenv func(string) string, off bool) Palette {
	return Palette{!off && getenv("NO_COLOR") == "" && getenv("TERM") != "dumb" && IsTerminal(stream)}
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
	if !p.on || c == Plain {
		return s
	}
	return "\x1b[" + string(c) + "m" + s + "\x1b[0m"
}
