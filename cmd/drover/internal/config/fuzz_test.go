package config_test

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzFile: a file of settings is taken, or refused in one line with its name, and
// then changes nothing.
func FuzzFile(f *testing.F) {
	for _, s := range []string{
		"listen: file:1\nslots: 9\nscripts: [/a, /b]\nlabel: {gpu: \"yes\", zone: eu}\n", "slots: !x\n", "slots: [1, 2]\n", "label: {a: {b: c}}\n", "- a\n", "slots: many\n", "listen: |\n  a\n  b\n", "? x\n", "slots: 3\nslots: 4\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, data string) {
		if data == "" {
			return
		}
		flags, s := flags(t)
		if _, err := loader(nil, data).Load(flags, "w.yaml"); err != nil && (strings.ContainsAny(err.Error(), "\n\r\x1b") || !strings.Contains(err.Error(), "w.yaml")) {
			t.Errorf("%q: %q", data, err)
		}
		if !utf8.ValidString(s.listen) {
			t.Errorf("%q sets %q", data, s.listen)
		}
	})
}
