package scripts

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzIndex: a description of a generation that is torn or strange is another
// generation or none.
func FuzzIndex(f *testing.F) {
	f.Add([]byte(`{"Generation":7,"Folder":"scripts","Source":"/etc/drover/scripts","Boot":"b","Files":{"a.sh":{"Sum":"00","Size":3}}}`))
	f.Add([]byte(`null`))
	f.Add([]byte(`{"Generation":7,"Boot":"b","Files":{"a":null}}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := t.TempDir()
		one := filepath.Join(dir, "7")
		if err := os.Mkdir(one, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(one, indexFile), text, 0o600); err != nil {
			t.Fatal(err)
		}
		l := &Library{boot: "b", cfg: Config{Log: slog.New(slog.DiscardHandler)}}
		found, last, err := l.load(dir, "b")
		if err != nil || last != 7 {
			t.Fatalf("last %d, %v", last, err)
		}
		for _, g := range found {
			if g.Generation != 7 || g.Boot != "b" {
				t.Errorf("%+v is taken for generation 7 of this boot", g)
			}
			g.signatures()
		}
	})
}

// FuzzPath: a path that is taken stays below any folder.
func FuzzPath(f *testing.F) {
	for _, s := range []string{"a.sh", "a/b.py", "../x", "a/../../x", "/etc/passwd", "a//b", "a/", ".", "a\x00b", "\xff", "a/./b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		if Check(path) != nil {
			return
		}
		if below := filepath.Join("/folder", path); !filepath.IsLocal(path) || !strings.HasPrefix(below, "/folder/") || below != "/folder/"+path {
			t.Errorf("%q is %q", path, below)
		}
	})
}
