package client_test

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/droverhq/drover/cmd/drover/internal/client"
)

// FuzzContexts: a file is taken and can be written and read again without a change,
// or is refused in one line.
func FuzzContexts(f *testing.F) {
	for _, s := range []string{
		"current: prod\ncontexts:\n  prod: {address: \"h:7420,i:7420\", certs: /c}\n", "", "contexts: !x", "current: [a]", "contexts: {a: {addresz: x}}",
		"contexts: {\"a\\x1b\": {address: \"\\u202e\", certs: ' '}}", "current: &a x\n", "{", "contexts: {~: {}}", "current: 'yes'\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		file := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := client.LoadContexts(file)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\r\x1b") || !strings.Contains(err.Error(), file) {
				t.Errorf("%q: %q", data, err)
			}
			return
		}
		if err := c.Save(file); err != nil {
			t.Fatal(err)
		}
		if again, err := client.LoadContexts(file); err != nil || again.Current != c.Current || len(c.Contexts) > 0 && !reflect.DeepEqual(again, c) {
			text, _ := os.ReadFile(file)
			t.Errorf("%q: %+v is read back as %+v, %v from %q", data, c, again, err, text)
		}
	})
}
