package yamlfile_test

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/droverhq/drover/core/yamlfile"
)

// document has every shape that drover's own files have.
type document struct {
	Names   []string          `yaml:"names"`
	Allow   bool              `yaml:"allow"`
	User    string            `yaml:"user"`
	Limits  map[string]uint64 `yaml:"limits"`
	Targets map[string]target `yaml:"targets,omitempty"`
}

type target struct {
	Address string `yaml:"address,omitempty"`
}

func TestAFileIsDecoded(t *testing.T) {
	t.Parallel()
	var d document
	text := "# comment\n---\nnames: [a, 'b c']\nallow: true\nuser: |\n  nobody\nlimits: {nofile: 64}\ntargets:\n  one:\n    address: h:1\n"
	if err := yamlfile.Decode("f.yaml", []byte(text), &d); err != nil {
		t.Fatal(err)
	}
	want := document{
		Names: []string{"a", "b c"}, Allow: true, User: "nobody\n", Limits: map[string]uint64{"nofile": 64},
		Targets: map[string]target{"one": {"h:1"}},
	}
	if !reflect.DeepEqual(d, want) {
		t.Errorf("%+v, want %+v", d, want)
	}
	for _, empty := range []string{"", "# nothing\n", "---\n", "---\n# nothing\n...\n", "names:\n"} {
		var none document
		if err := yamlfile.Decode("f.yaml", []byte(empty), &none); err != nil || !reflect.DeepEqual(none, document{}) {
			t.Errorf("%q: %+v, %v", empty, none, err)
		}
	}
}

func TestSettingsAreFlat(t *testing.T) {
	t.Parallel()
	got, err := yamlfile.Settings("f.yaml", []byte("slots: 07\nlabel: {a: 'x', b: y}\nscripts:\n- /a\n- \"/b\"\nnote: |\n  two\n"))
	want := []yamlfile.Setting{
		{Key: "slots", Values: []string{"07"}, Line: 1},
		{Key: "label", Values: []string{"a=x", "b=y"}, Line: 2},
		{Key: "scripts", Values: []string{"/a", "/b"}, Line: 3},
		{Key: "note", Values: []string{"two\n"}, Line: 6},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
}

// mistakes are files of typing errors, and of what has ended or stalled parsers.
var mistakes = map[string]struct{ text, want string }{
	"a tag":                        {"names: !x", `f.yaml:1:8: tags such as "!x" are not supported`},
	"a tag on a later line":        {"allow: true\nnames:\n  - !!binary x\n", "f.yaml:3:5: tags"},
	"a tag alone":                  {"!", "f.yaml:1:1: tags"},
	"an anchor":                    {"names: &a [x]\n", "f.yaml:1:8: anchors"},
	"an alias":                     {"user: *a\n", "f.yaml:1:7: anchors"},
	"an alias of its own":          {"a: &a [*a]\n", "f.yaml:1:4: anchors"},
	"a merge key":                  {"targets:\n  <<: {a: b}\n", "f.yaml:2:"},
	"two documents":                {"user: a\n---\nuser: b\n", "f.yaml:3:1: a file holds one document"},
	"a directive":                  {"%YAML 1.2\n---\nuser: a\n", "f.yaml:1:1: "},
	"many brackets":                {"names: " + strings.Repeat("[", 100_000), "deep"},
	"many braces":                  {"names: " + strings.Repeat("{a: ", 50_000), "deep"},
	"many dashes":                  {"names:\n" + strings.Repeat("- ", 100_000) + "x", "deep"},
	"many question marks":          {strings.Repeat("? ", 100_000), "f.yaml"},
	"many levels":                  {staircase(300), "deep"},
	"a NUL byte":                   {"user: a\x00b\n", "f.yaml:1:8: it holds a control character"},
	"not UTF-8":                    {"allow: true\nuser: \xff\n", "f.yaml:2: it is not valid UTF-8"},
	"too large":                    {"user: " + strings.Repeat("a", yamlfile.MaxBytes), "larger than 256 KiB"},
	"an unknown key":               {"allow: true\nusser: a\n", `f.yaml:2:1: unknown key "usser", did you mean "user"?`},
	"a key without end":            {strings.Repeat("k", 50_000) + ": a\n", "unknown key"},
	"an unknown key further below": {"targets:\n  one:\n    addresz: a\n", `f.yaml:3:5: unknown key "addresz", did you mean "address"?`},
	"a key twice":                  {"user: a\nuser: b\n", `f.yaml:2:1: `},
	"another type":                 {"allow: perhaps\n", "f.yaml:1:8: "},
	"a number below its range":     {"limits: {nofile: -1}\n", "f.yaml:1:"},
	"a list instead of keys":       {"- a\n- b\n", "f.yaml:1:"},
	"a word instead of keys":       {"user\n", "f.yaml:1:"},
	"an open bracket":              {"allow: true\nnames: [a\n", "f.yaml:2:8: "},
	"a tab":                        {"targets:\n\tone: a\n", "f.yaml:2:"},
}

func staircase(depth int) string {
	var b strings.Builder
	for i := range depth {
		b.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	return b.String()
}

func TestAMistakeIsOneLineWithItsPlace(t *testing.T) {
	t.Parallel()
	for name, c := range mistakes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var d document
			mustBeOneLine(t, yamlfile.Decode("f.yaml", []byte(c.text), &d), c.want)
		})
	}
}

func mustBeOneLine(t *testing.T, err error, want string) {
	t.Helper()
	var e *yamlfile.Error
	if !errors.As(err, &e) || !strings.Contains(err.Error(), want) {
		t.Fatalf("%v, want %q", err, want)
	}
	if strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' }) || len(err.Error()) > 1000 {
		t.Errorf("no short line: %q", err)
	}
}

func TestAMistakeInSettingsIsOneLineWithItsPlace(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"slots: !x":                   "f.yaml:1:8: tags",
		"a\n":                         "f.yaml:1: the file must be a list of key: value lines",
		"slots: [1, [2]]\n":           "f.yaml:1:12: a sequence is not a setting",
		"label: {a: {b: c}}\n":        "f.yaml:1:",
		"label: {a: [b]}\n":           "f.yaml:1:",
		"slots: 1\nscripts: [a\n":     "f.yaml:2:10: ",
		"slots: 1\nslots: 2\n":        "f.yaml:2:1: ",
		strings.Repeat("[", 100_000):  "deep",
		"slots: 1\n---\nslots: 2\n":   "f.yaml:3:1: a file holds one document",
		"a: b: c\n":                   "f.yaml:1:",
		"? [a, b]\n: c\n":             "f.yaml",
		strings.Repeat("a: ", 80_000): "f.yaml:1:",
	} {
		_, err := yamlfile.Settings("f.yaml", []byte(text))
		mustBeOneLine(t, err, want)
	}
}

func TestFilesAreReadUpToABound(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "f.yaml")
	if _, err := yamlfile.Read(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	for size, want := range map[int]bool{0: true, yamlfile.MaxBytes: true, yamlfile.MaxBytes + 1: false} {
		if err := os.WriteFile(file, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		data, err := yamlfile.Read(file)
		if (err == nil) != want || want && len(data) != size {
			t.Errorf("%d bytes: %d, %v", size, len(data), err)
		}
	}
	if _, err := yamlfile.Read("/dev/zero"); err == nil || !strings.Contains(err.Error(), "larger") {
		t.Errorf("a device without end: %v", err)
	}
	if _, err := yamlfile.Read(t.TempDir()); err == nil {
		t.Error("a folder was read")
	}
}

func TestNearest(t *testing.T) {
	t.Parallel()
	if got := yamlfile.Nearest("lable", []string{"listen", "label", "slots"}); got != "label" {
		t.Errorf("got %q", got)
	}
	if got := yamlfile.Nearest("x", nil); got != "" {
		t.Errorf("got %q of nothing", got)
	}
}

// FuzzYAML: no file ends the process, and each mistake is one line.
func FuzzYAML(f *testing.F) {
	for _, c := range mistakes {
		if len(c.text) < 1000 {
			f.Add([]byte(c.text))
		}
	}
	f.Add([]byte("names: [a, 'b c']\nallow: true\nuser: |\n  nobody\nlimits: {nofile: 64}\ntargets:\n  one:\n    address: h:1\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var d document
		if err := yamlfile.Decode("f.yaml", data, &d); err != nil {
			mustBeOneLine(t, err, "f.yaml")
		}
		if _, err := yamlfile.Settings("f.yaml", data); err != nil {
			mustBeOneLine(t, err, "f.yaml")
		}
	})
}
