// Package arch_test guards the shape of the tree: layers, documentation, sizes
// and the habits of CONTRIBUTING.md.
package arch_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const module = "github.com/droverhq/drover/"

type pkg struct {
	path      string // relative to the module
	fset      *token.FileSet
	files     []file
	testLines int
}

type file struct {
	name      string
	lines     int
	syntax    *ast.File
	functions []function
}

type function struct {
	name  string
	lines int
}

type name struct {
	name string
	pos  token.Position
	doc  bool
}

// parsed is read once for all tests of this package.
var parsed = sync.OnceValues(func() ([]pkg, error) { return parseTree(os.DirFS("../..")) })

func load(t *testing.T) []pkg {
	t.Helper()
	pkgs, err := parsed()
	if err != nil {
		t.Fatal(err)
	}
	return pkgs
}

// parseTree reads every Go file outside generated code, tools and testdata.
func parseTree(tree fs.FS) ([]pkg, error) {
	byPath := map[string]*pkg{}
	var order []string
	err := fs.WalkDir(tree, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if base := d.Name(); path != "." && (strings.HasPrefix(base, ".") || base == "testdata" || base == "tools" || base == "bin") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, ".pb.go") {
			return nil
		}
		data, err := fs.ReadFile(tree, path)
		if err != nil {
			return err
		}
		dir := filepath.Dir(path)
		p := byPath[dir]
		if p == nil {
			p = &pkg{path: dir, fset: token.NewFileSet()}
			byPath[dir] = p
			order = append(order, dir)
		}
		return p.add(path, data)
	})
	pkgs := make([]pkg, 0, len(order))
	for _, dir := range order {
		if len(byPath[dir].files) > 0 {
			pkgs = append(pkgs, *byPath[dir])
		}
	}
	return pkgs, err
}

func (p *pkg) add(path string, data []byte) error {
	lines := strings.Count(string(data), "\n")
	if strings.HasSuffix(path, "_test.go") {
		p.testLines += lines
		return nil
	}
	syntax, err := parser.ParseFile(p.fset, path, data, parser.ParseComments)
	if err != nil {
		return err
	}
	f := file{name: path, lines: lines, syntax: syntax}
	for _, d := range syntax.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok {
			n := p.fset.Position(fn.End()).Line - p.fset.Position(fn.Pos()).Line + 1
			f.functions = append(f.functions, function{fn.Name.Name, n})
		}
	}
	p.files = append(p.files, f)
	return nil
}

// imports lists the module's own packages that p imports, relative paths.
func (p *pkg) imports() []string {
	var out []string
	for _, f := range p.files {
		for _, i := range f.syntax.Imports {
			if rest, ok := strings.CutPrefix(strings.Trim(i.Path.Value, `"`), module); ok {
				out = append(out, rest)
			}
		}
	}
	return out
}

func (p *pkg) doc() string {
	for _, f := range p.files {
		if f.syntax.Doc != nil {
			return f.syntax.Doc.Text()
		}
	}
	return ""
}

// exported lists exported top-level names and methods with whether they are
// documented, by themselves or by their group.
func (p *pkg) exported() []name {
	var out []name
	for _, f := range p.files {
		for _, d := range f.syntax.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() {
					out = append(out, name{d.Name.Name, p.fset.Position(d.Pos()), d.Doc != nil})
				}
			case *ast.GenDecl:
				for _, s := range d.Specs {
					out = append(out, p.specNames(d, s)...)
				}
			}
		}
	}
	return out
}

func (p *pkg) specNames(d *ast.GenDecl, s ast.Spec) []name {
	var out []name
	switch s := s.(type) {
	case *ast.TypeSpec:
		if s.Name.IsExported() {
			out = append(out, name{s.Name.Name, p.fset.Position(s.Pos()), d.Doc != nil || s.Doc != nil})
		}
	case *ast.ValueSpec:
		for _, n := range s.Names {
			if n.IsExported() {
				out = append(out, name{n.Name, p.fset.Position(n.Pos()), d.Doc != nil || s.Doc != nil || s.Comment != nil})
			}
		}
	}
	return out
}

// assigns tells whether any function of p assigns to the package variable.
func (p *pkg) assigns(variable string) bool {
	found := false
	for _, f := range p.files {
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			assign, ok := n.(*ast.AssignStmt)
			if !ok || assign.Tok == token.DEFINE {
				return true
			}
			for _, l := range assign.Lhs {
				if id, ok := l.(*ast.Ident); ok && id.Name == variable && id.Obj != nil && id.Obj.Kind == ast.Var {
					if spec, ok := id.Obj.Decl.(*ast.ValueSpec); ok && topLevel(f.syntax, spec) {
						found = true
					}
				}
			}
			return true
		})
	}
	return found
}

func topLevel(f *ast.File, spec *ast.ValueSpec) bool {
	for _, d := range f.Decls {
		if g, ok := d.(*ast.GenDecl); ok {
			for _, s := range g.Specs {
				if s == ast.Spec(spec) {
					return true
				}
			}
		}
	}
	return false
}
