// Package failpoint_test kills the daemons and plugins of real clusters at every
// named point of their code (plugins/failpoint), and settles accounts.
package failpoint_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/droverhq/drover/plugins/failpoint"
	"github.com/droverhq/drover/test/cluster"
)

// bin holds binaries that were built with the failpoints in them.
var bin string

func TestMain(m *testing.M) {
	dir, err := cluster.Build("failpoint")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	bin = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// points reads the names and the values of all points from the code itself, so
// that none is forgotten here.
func points(t *testing.T) map[string]failpoint.Point {
	t.Helper()
	path := filepath.Join("..", "..", "plugins", "failpoint", "points.go")
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]failpoint.Point{}
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST {
			continue
		}
		for _, s := range g.Specs {
			v := s.(*ast.ValueSpec)
			if typ, ok := v.Type.(*ast.Ident); !ok || typ.Name != "Point" {
				continue
			}
			text, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			out[v.Names[0].Name] = failpoint.Point(text)
		}
	}
	if len(out) < 20 {
		t.Fatalf("only %d points found in %s", len(out), path)
	}
	return out
}

// TestEveryPointIsInTheCode: a point that nobody passes would be hit by nobody.
func TestEveryPointIsInTheCode(t *testing.T) {
	t.Parallel()
	var code strings.Builder
	for _, dir := range []string{"certs", "core", "plugins", "runners", "cmd"} {
		err := filepath.WalkDir(filepath.Join("..", "..", dir), func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			data, err := os.ReadFile(path)
			code.Write(data)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for name := range points(t) {
		if n := strings.Count(code.String(), "failpoint.At(failpoint."+name+")"); n != 1 {
			t.Errorf("%s is in the code %d times, want 1", name, n)
		}
	}
}
