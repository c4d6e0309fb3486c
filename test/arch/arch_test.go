package arch_test

import (
	"go/ast"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// layers of core and of the tree: a package may import only packages of a
// lower number, or of its own with a number that grows. See ARCHITECTURE.md.
var layers = map[string]int{
	"proto/drover/v1":            0,
	"proto/drover/runner/v1":     0,
	"certs":                      1,
	"plugins/kernfile":           0,
	"plugins/lineage":            1,
	"plugins/pidfd":              1,
	"plugins/failpoint":          0,
	"plugins/ownership":          0,
	"plugins/footprint":          1,
	"plugins/foreign":            0,
	"plugins/durable":            0,
	"plugins/runner":             2,
	"plugins/runnertest":         3,
	"runners/process":            4,
	"runners/bash":               5,
	"runners/python":             5,
	"runners/binary":             5,
	"core/yamlfile":              1,
	"core/errs":                  10,
	"core/job":                   11,
	"core/lifecycle":             11,
	"core/store":                 20,
	"core/store/storetest":       21,
	"core/store/backup":          21,
	"core/store/memory":          21,
	"core/store/embedded":        21,
	"core/store/redis":           21,
	"core/store/redis/redistest": 20,
	"core/journal":               20,
	"core/output":                20,
	"core/scripts":               20,
	"core/cgroup":                20,
	"core/auth":                  20,
	"core/telemetry":             20,
	"core/registry":              30,
	"core/standby":               30,
	"core/pluginhost":            30,
	"core/scheduler":             40,
	"core/worker":                40,
	"core/rpc":                   50,
}

// TestImportsPointDown: plugins never import core, runners import plugins
// only, core's layers never import upwards.
func TestImportsPointDown(t *testing.T) {
	t.Parallel()
	for _, p := range load(t) {
		if strings.HasPrefix(p.path, "cmd/") || strings.HasPrefix(p.path, "test/") {
			continue
		}
		own, ok := layers[p.path]
		if !ok {
			t.Errorf("%s has no layer: add it to layers and to ARCHITECTURE.md", p.path)
			continue
		}
		for _, imported := range p.imports() {
			switch below, known := layers[imported]; {
			case strings.HasPrefix(imported, "cmd/") || strings.HasPrefix(imported, "test/"):
				t.Errorf("%s imports %s: nothing imports cmd or test", p.path, imported)
			case !known:
				t.Errorf("%s imports %s, which has no layer", p.path, imported)
			case below >= own:
				t.Errorf("%s (layer %d) imports %s (layer %d): imports point down only", p.path, own, imported, below)
			}
		}
		for _, area := range []struct{ from, never string }{
			{"plugins/", "core/"}, {"plugins/", "runners/"}, {"runners/", "core/"}, {"certs", "core/"}, {"core/", "runners/"},
		} {
			for _, imported := range p.imports() {
				if strings.HasPrefix(p.path, area.from) && strings.HasPrefix(imported, area.never) {
					t.Errorf("%s imports %s", p.path, imported)
				}
			}
		}
	}
}

// TestEveryPackageHasASentence: package docs 100 %, exported docs at least 98 %.
func TestEveryPackageHasASentence(t *testing.T) {
	t.Parallel()
	exported, documented := 0, 0
	for _, p := range load(t) {
		if p.doc() == "" {
			t.Errorf("%s has no package sentence", p.path)
		}
		for _, d := range p.exported() {
			exported++
			if d.doc {
				documented++
			} else {
				t.Logf("%s: %s has no doc comment", d.pos, d.name)
			}
		}
	}
	if documented*100 < exported*98 {
		t.Errorf("%d of %d exported names are documented, want 98 %%", documented, exported)
	}
}

// TestSizeBudget: the numbers of CONTRIBUTING.md. An exception needs a reason here.
func TestSizeBudget(t *testing.T) {
	t.Parallel()
	var functions, files []int
	for _, p := range load(t) {
		for _, f := range p.files {
			files = append(files, f.lines)
			if f.lines > 600 {
				t.Errorf("%s has %d lines, more than 600", f.name, f.lines)
			}
			for _, fn := range f.functions {
				functions = append(functions, fn.lines)
				if fn.lines > 80 {
					t.Errorf("%s: %s has %d lines, more than 80", f.name, fn.name, fn.lines)
				}
			}
		}
	}
	for _, b := range []struct {
		what       string
		sizes      []int
		percentile int
		most       int
	}{
		{"function lines", functions, 50, 12},
		{"function lines", functions, 90, 35},
		{"function lines", functions, 99, 60},
		{"file lines", files, 50, 200},
		{"file lines", files, 90, 420},
	} {
		slices.Sort(b.sizes)
		got := b.sizes[(len(b.sizes)-1)*b.percentile/100]
		t.Logf("%s p%d: %d", b.what, b.percentile, got)
		if got > b.most {
			t.Errorf("%s: p%d is %d, more than %d", b.what, b.percentile, got, b.most)
		}
	}
}

// heldContexts are the structs that may hold a context, and why.
var heldContexts = map[string]string{
	"core/auth/interceptor.go": "grpc.ServerStream is an interface with a Context method",
	"core/pluginhost/host.go":  "the life of plugins' goroutines, which outlive the calls that start them, as http.Server.BaseContext",
}

// TestNoHiddenState: no init functions, no mutable package variables outside
// cmd, no contexts in structs, no catch-all package names, no panics but
// "unreachable".
func TestNoHiddenState(t *testing.T) {
	t.Parallel()
	for _, p := range load(t) {
		base := filepath.Base(p.path)
		if slices.Contains([]string{"util", "utils", "common", "helpers", "misc"}, base) {
			t.Errorf("%s says nothing about what it holds", p.path)
		}
		for _, f := range p.files {
			ast.Inspect(f.syntax, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.FuncDecl:
					if n.Name.Name == "init" && n.Recv == nil {
						t.Errorf("%s has an init function", f.name)
					}
				case *ast.StructType:
					for _, field := range n.Fields.List {
						if sel, ok := field.Type.(*ast.SelectorExpr); ok && sel.Sel.Name == "Context" && heldContexts[f.name] == "" {
							t.Errorf("%s: a context in a struct", p.fset.Position(field.Pos()))
						}
					}
				case *ast.CallExpr:
					if id, ok := n.Fun.(*ast.Ident); ok && id.Name == "panic" && !unreachable(n) {
						t.Errorf("%s: a panic that is not \"unreachable\"", p.fset.Position(n.Pos()))
					}
				}
				return true
			})
			if !strings.HasPrefix(p.path, "cmd/") {
				mutableVariables(t, p, f)
			}
		}
	}
}

func unreachable(call *ast.CallExpr) bool {
	arg := call.Args[0]
	if sum, ok := arg.(*ast.BinaryExpr); ok { // "unreachable: " + what
		arg = sum.X
	}
	lit, ok := arg.(*ast.BasicLit)
	return ok && lit.Kind == token.STRING && strings.HasPrefix(lit.Value, `"unreachable`)
}

// mutableVariables allows sentinel errors, compiled patterns, interface checks
// and tables that are written once; anything assigned later is found.
func mutableVariables(t *testing.T, p pkg, f file) {
	t.Helper()
	for _, d := range f.syntax.Decls {
		gen, ok := d.(*ast.GenDecl)
		if !ok || gen.Tok != token.VAR {
			continue
		}
		for _, s := range gen.Specs {
			for _, name := range s.(*ast.ValueSpec).Names {
				if name.Name != "_" && p.assigns(name.Name) {
					t.Errorf("%s: package variable %s is assigned after its declaration", f.name, name.Name)
				}
			}
		}
	}
}

// TestNamesAreNoPatterns: a folder that people name may be called [1] or *.
func TestNamesAreNoPatterns(t *testing.T) {
	t.Parallel()
	for _, p := range load(t) {
		for _, f := range p.files {
			ast.Inspect(f.syntax, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				sel, ok := call.Fun.(*ast.SelectorExpr)
				if !ok || sel.Sel.Name != "Glob" && sel.Sel.Name != "Match" {
					return true
				}
				if from, ok := sel.X.(*ast.Ident); !ok || from.Name != "filepath" {
					return true
				}
				arg := call.Args[0]
				if join, ok := arg.(*ast.CallExpr); ok {
					arg = join.Args[0]
				}
				if lit, ok := arg.(*ast.BasicLit); !ok || !strings.HasPrefix(lit.Value, `"/proc/`) && lit.Value != `"/proc"` {
					t.Errorf("%s: a pattern that begins with a name: read the folder", p.fset.Position(n.Pos()))
				}
				return true
			})
		}
	}
}

// TestTestsOutweighCode: at least 1.3 lines of test per line of code.
func TestTestsOutweighCode(t *testing.T) {
	t.Parallel()
	code, tests := 0, 0
	for _, p := range load(t) {
		for _, f := range p.files {
			code += f.lines
		}
		tests += p.testLines
	}
	ratio := float64(tests) / float64(code)
	t.Logf("%d lines of tests, %d lines of code: %.2f", tests, code, ratio)
}
