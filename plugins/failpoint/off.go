//go:build !failpoint

package failpoint

// Enabled tells whether the points are compiled in.
const Enabled = false

// At does nothing: this is an ordinary build.
func At(Point) {}
