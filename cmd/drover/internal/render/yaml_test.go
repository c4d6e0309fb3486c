package render

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/droverhq/drover/cmd/drover/internal/term"
)

// hostile are values that a writer of YAML has to look at.
func hostile() []any {
	return []any{
		"", " ", "a b", "-", "- a", "a: b", "a #b", "#", "yes", "NO", "null", "~", "1", "0x1f", "1e3", ".5", "1:30", "2026-11-30", "2026-11-30T10:00:00Z",
		"01900000-0000-7000-8000-0000000000a1", "e12", ".nan", "=", "<<", "*x", "&x", "!x", "%x", "@x", "`x", "{", "]", "a,b", "'", `"`, `\`, "|", ">", "?", "a\nb\tc\r\n",
		"\x1b]0;title\a", "\x1b[35m", "a\x7f", "a\u009b31m", "a\u202eb", "a\u2028b", "\ufeffa", "\U000e0041", "grüße 世界 👩\u200d💻", "\ufffe", "\uffff", "\x00",
		1.0, -1.5, 1e21, 1e-7, 0.0, true, false, nil,
		[]any{},
		map[string]any{},
		[]any{[]any{}},
		[]any{[]any{"a", []any{"b"}}},
	}
}

func document(t testing.TB, v any) (asJSON, asYAML []byte) {
	t.Helper()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		t.Fatal(err)
	}
	out, err := YAMLFromJSON(b.Bytes())
	if err != nil {
		t.Fatalf("%s: %v", b.Bytes(), err)
	}
	return b.Bytes(), out
}

// sameValue fails unless YAML says what JSON says and shows every character as itself.
func sameValue(t testing.TB, asJSON, asYAML []byte) {
	t.Helper()
	for _, r := range string(asYAML) {
		if term.Steers(r) && r != '\n' {
			t.Errorf("YAML holds %U:\n%s", r, asYAML)
		}
	}
	var want, got any
	if err := json.Unmarshal(asJSON, &want); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(asYAML, &got); err != nil {
		t.Fatalf("%v:\n%s", err, asYAML)
	}
	again, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	got = nil
	if err := json.Unmarshal(again, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("YAML is read as %#v, %v, want %#v:\n%s", got, err, want, asYAML)
	}
}

func TestYAMLSaysWhatJSONSays(t *testing.T) {
	t.Parallel()
	for _, v := range hostile() {
		for _, around := range []any{v, []any{v, v}, map[string]any{"k": v, "l": []any{v}}, []any{map[string]any{"k": v, "l": v}, map[string]any{"k": []any{map[string]any{"m": v}}}}} {
			asJSON, asYAML := document(t, around)
			sameValue(t, asJSON, asYAML)
		}
		if key, ok := v.(string); ok {
			asJSON, asYAML := document(t, map[string]any{key: key})
			sameValue(t, asJSON, asYAML)
		}
	}
}

func TestYAMLIsReadableWhereTextIsPlain(t *testing.T) {
	t.Parallel()
	_, got := document(t, map[string]any{"a": "plain text", "b": []any{"x", 1}, "c": []any{map[string]any{"d": "e", "f": map[string]any{"g": nil}}}, "h": map[string]any{}})
	want := "a: plain text\nb:\n  - x\n  - 1\nc:\n  - d: e\n    f:\n      g: null\nh: {}\n"
	if string(got) != want {
		t.Errorf("%s\nwant:\n%s", got, want)
	}
}

// FuzzYAML: what JSON says is what YAML says, for any name and value.
func FuzzYAML(f *testing.F) {
	for _, v := range hostile() {
		if s, ok := v.(string); ok {
			f.Add(s, "x\x1b")
		}
	}
	f.Fuzz(func(t *testing.T, name, value string) {
		asJSON, asYAML := document(t, []any{map[string]any{name: value}, strings.Repeat(value, 2)})
		sameValue(t, asJSON, asYAML)
	})
}
