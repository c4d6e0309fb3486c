package term_test

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/droverhq/drover/cmd/drover/internal/term"
)

func escaped(t *testing.T, pieces ...string) string {
	t.Helper()
	var b bytes.Buffer
	e := term.NewEscaper(&b)
	for _, p := range pieces {
		if n, err := e.Write([]byte(p)); err != nil || n != len(p) {
			t.Fatalf("write %q: %d, %v", p, n, err)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestTheTerminalIsNeverSteered: by whatever a job writes.
func TestTheTerminalIsNeverSteered(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name, in, want string
	}{
		{"text stays", "grüße, 世界 \\n\n\tdone", "grüße, 世界 \\n\n\tdone"},
		{"colour", "\x1b[31mred", `\x1b[31mred`},
		{"title", "\x1b]0;pwned\a", `\x1b]0;pwned\x07`},
		{"carriage return", "100%\r0%", `100%\r0%`},
		{"backspace and delete", "a\b\x7f", `a\x08\x7f`},
		{"NUL", "a\x00b", `a\x00b`},
		{"C1 as UTF-8", "a\u009b31m", `a\x9b31m`},
		{"C1 as a byte", "a\x9b31m", `a\x9b31m`},
		{"no UTF-8", "\xff\xfe", `\xff\xfe`},
		{"overlong", "\xc0\x80", `\xc0\x80`},
		{"direction", "a\u202eb", `a\u202eb`},
		{"cut character", "ab\xe4\xb8", `ab\xe4\xb8`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if got := escaped(t, c.in); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

func TestCharactersInPiecesArePutTogether(t *testing.T) {
	t.Parallel()
	if got := escaped(t, "a\xe4", "\xb8", "\x96b"); got != "a世b" {
		t.Errorf("%q", got)
	}
}

// TestPiecesMakeNoDifference: however output is cut, it looks the same, holds
// no control character but newline and tab, and is UTF-8.
func TestPiecesMakeNoDifference(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		all := rapid.SliceOf(rapid.SampledFrom([]byte("a\n\t\r\x00\x1b\x80\x9b\xc2\xe4\xb8\x96\xf0\x9f\x98\x80"))).Draw(r, "bytes")
		cut := rapid.IntRange(0, len(all)).Draw(r, "cut")
		whole, pieces := escaped(t, string(all)), escaped(t, string(all[:cut]), string(all[cut:]))
		if whole != pieces {
			r.Fatalf("%q in one, %q in two", whole, pieces)
		}
		if !utf8.ValidString(whole) {
			r.Fatalf("%q is not UTF-8", whole)
		}
		for _, c := range whole {
			if c < ' ' && c != '\n' && c != '\t' {
				r.Fatalf("%q holds %q", whole, c)
			}
		}
	})
}

func TestLineHasNoLineBreak(t *testing.T) {
	t.Parallel()
	if got := term.Line("a\nb\tc\r\u2028"); got != `a\nb\tc\r\u2028` {
		t.Errorf("%q", got)
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, os.ErrClosed }

func TestEscaperReportsTheWriter(t *testing.T) {
	t.Parallel()
	if _, err := term.NewEscaper(broken{}).Write([]byte("x")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("%v", err)
	}
}

func TestColoursNeedATerminal(t *testing.T) {
	t.Parallel()
	none := func(string) string { return "" }
	if got := term.NewPalette(&bytes.Buffer{}, none, false).Paint(term.Red, "x"); got != "x" {
		t.Errorf("a buffer got %q", got)
	}
	if term.IsTerminal(os.NewFile(^uintptr(0), "none")) {
		t.Error("a closed file is a terminal")
	}
	if got := (term.Palette{}).Paint(term.Plain, "x"); got != "x" {
		t.Errorf("plain is %q", got)
	}
}
