package term_test

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/droverhq/drover/cmd/drover/internal/term"
)

func screen(t testing.TB, text string) string {
	t.Helper()
	var b bytes.Buffer
	if n, err := term.NewTerminal(&b).Write([]byte(text)); err != nil || n != len(text) {
		t.Fatalf("write: %d, %v", n, err)
	}
	return b.String()
}

func TestATerminalGetsTextOnly(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"grüße, 世界 👩\u200d💻 ❤\ufe0f می\u200cخواهم\n\tdone": "grüße, 世界 👩\u200d💻 ❤\ufe0f می\u200cخواهم\n\tdone",
		"\x1b[31mred\x1b[0m": `\u001b[31mred\u001b[0m`,
		"\x1b]0;title\a\r":   `\u001b]0;title\u0007\r`,
		"\u009b31m\u0085":    `\u009b31m\u0085`,
		"\x9b31m\xff":        `\x9b31m\xff`,
		"a\x7f\b\x00":        `a\u007f\u0008\u0000`,
		"\u202e\u2066\u061c": `\u202e\u2066\u061c`,
		"\u200b\u2060\ufeff": `\u200b\u2060\ufeff`,
		"\u00ad\u180e\u3164": `\u00ad\u180e\u3164`,
		"\U000e0041":         `\udb40\udc41`,
		"\u2028\u2029":       `\u2028\u2029`,
		"\u0600 is a sign":   "\u0600 is a sign",
	} {
		if got := screen(t, in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// TestOnlyThePaletteColoursATerminal: data that looks like a colour is none.
func TestOnlyThePaletteColoursATerminal(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	s := term.NewTerminal(&b)
	xterm := func(name string) string { return map[string]string{"TERM": "xterm"}[name] }
	p := term.NewPalette(s, xterm, false)
	if _, err := s.Write([]byte(p.Paint(term.Red, "a\x1b[32mb") + "\x1b[31mc")); err != nil {
		t.Fatal(err)
	}
	if want := "\x1b[31ma\\u001b[32mb\x1b[0m\\u001b[31mc"; b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
	b.Reset()
	other := term.NewPalette(term.NewTerminal(&b), xterm, false)
	if _, err := s.Write([]byte(other.Paint(term.Red, "x"))); err != nil || bytes.ContainsRune(b.Bytes(), '\x1b') {
		t.Errorf("%q, %v: the mark of another terminal is taken for a colour", b.String(), err)
	}
	if got := term.NewPalette(s, xterm, true).Paint(term.Red, "x"); got != "x" {
		t.Errorf("--no-color: %q", got)
	}
}

// TestJSONOnATerminalKeepsItsValue: the escapes of a terminal are those of JSON.
func TestJSONOnATerminalKeepsItsValue(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(rapid.Bool().Draw(r, "html"))
		in := rapid.MapOf(rapid.String(), rapid.StringOf(rapid.RuneFrom([]rune("a\\\"\n\t\r\x1b\x7f\u009b\u202e\u2066\u200f\u2028\ufeff\U000e0041😀")))).Draw(r, "document")
		if err := e.Encode(in); err != nil {
			r.Fatal(err)
		}
		shown := screen(t, b.String())
		for _, c := range shown {
			if term.Steers(c) && c != '\n' {
				r.Fatalf("%q holds %U", shown, c)
			}
		}
		var out map[string]string
		if err := json.Unmarshal([]byte(shown), &out); err != nil {
			r.Fatalf("%v: %q", err, shown)
		}
		for k, v := range in {
			if out[k] != v {
				r.Fatalf("%q became %q in %q", v, out[k], shown)
			}
		}
	})
}

func TestAStreamThatIsNoTerminalIsNotGuarded(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if term.Guard(w) != w {
		t.Error("a pipe is guarded")
	}
}

// FuzzEscape: whatever a job prints, a terminal gets text only, however the
// bytes are cut; and text stays as it is.
func FuzzEscape(f *testing.F) {
	for _, s := range []string{"plain\n", "\x1b]0;x\a", "\u009b31m", "\x9b", "\xe4\xb8", "\u202e\u200b\U000e0041", "😀\u200d"} {
		f.Add([]byte(s), 1)
	}
	f.Fuzz(func(t *testing.T, data []byte, cut int) {
		cut = max(0, min(cut, len(data)))
		whole, pieces := escaped(t, string(data)), escaped(t, string(data[:cut]), string(data[cut:]))
		if whole != pieces {
			t.Errorf("%q in one piece, %q in two", whole, pieces)
		}
		for _, shown := range []string{whole, screen(t, string(data)), term.Line(string(data))} {
			for _, r := range shown {
				if term.Steers(r) && r != '\n' && r != '\t' || !utf8.ValidString(shown) {
					t.Fatalf("%q holds %U", shown, r)
				}
			}
			if screen(t, shown) != shown {
				t.Errorf("%q is escaped again", shown)
			}
		}
	})
}
