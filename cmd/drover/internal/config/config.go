// Package config fills the flags of a daemon from its environment and its
// configuration file and remembers where each value came from.
package config

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/spf13/pflag"

	"github.com/droverhq/drover/core/errs"
)

// Origin says where the value of a flag came from: "flag", "environment NAME",
// "FILE:LINE" or "default".
type Origin map[string]string

// Loader fills flags. A flag --data-dir has the environment variable
// PREFIX_DATA_DIR and the configuration key data_dir.
type Loader struct {
	Prefix  string                              // DROVER_WORKER
	Lookup  func(name string) (string, bool)    // os.LookupEnv
	Read    func(name string) ([]byte, error)   // os.ReadFile
	Exclude []string                            // flags that are not settings, such as config itself
	skip    func(f *pflag.Flag) (excluded bool) // from Exclude
}

// New returns a Loader on the process's environment and files.
func New(prefix string, exclude ...string) *Loader {
	return &Loader{Prefix: prefix, Lookup: os.LookupEnv, Read: os.ReadFile, Exclude: exclude}
}

// Load sets every flag of fs that was not given on the command line from the
// environment, else from file ("" is none). It changes nothing when file has a
// mistake; the error names file, line, key and the nearest known key.
func (l *Loader) Load(fs *pflag.FlagSet, file string) (Origin, error) {
	l.skip = func(f *pflag.Flag) bool { return f.Name == "help" || slices.Contains(l.Exclude, f.Name) }
	values, err := l.parse(fs, file)
	if err != nil {
		return nil, err
	}
	origin := Origin{}
	var failure error
	fs.VisitAll(func(f *pflag.Flag) {
		if failure != nil || l.skip(f) {
			return
		}
		origin[f.Name], failure = l.fill(f, file, values)
	})
	return origin, failure
}

// fill sets one flag and tells its origin.
func (l *Loader) fill(f *pflag.Flag, file string, values map[string]value) (string, error) {
	if f.Changed {
		return "flag", nil
	}
	name := l.Prefix + "_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
	if text, ok := l.Lookup(name); ok {
		if err := f.Value.Set(text); err != nil {
			return "", errs.Field("read environment", name, "CONFIG_VALUE", "%q: %w", text, err)
		}
		return "environment " + name, nil
	}
	v, ok := values[f.Name]
	if !ok {
		return "default", nil
	}
	at := fmt.Sprintf("%s:%d", file, v.line)
	for _, text := range v.texts {
		if err := f.Value.Set(text); err != nil {
			return "", errs.Field("read "+at, key(f.Name), "CONFIG_VALUE", "%q: %w", text, err)
		}
	}
	return at, nil
}

// value is what the file says for one key.
type value struct {
	texts []string // one per element of a list or pair of a mapping
	line  int
}

func (l *Loader) parse(fs *pflag.FlagSet, file string) (map[string]value, error) {
	values := map[string]value{}
	if file == "" {
		return values, nil
	}
	data, err := l.Read(file)
	if err != nil {
		return nil, errs.E("read configuration", errs.Invalid, "CONFIG_UNREADABLE", err)
	}
	doc, err := parser.ParseBytes(data, 0)
	if err != nil {
		return nil, errs.E("read configuration "+file, errs.Invalid, "CONFIG_SYNTAX", err)
	}
	var known []string
	fs.VisitAll(func(f *pflag.Flag) {
		if !l.skip(f) {
			known = append(known, key(f.Name))
		}
	})
	for _, d := range doc.Docs {
		if d.Body == nil {
			continue
		}
		pairs, err := mapping(file, d.Body)
		if err != nil {
			return nil, err
		}
		for _, pair := range pairs {
			name, line := pair.Key.GetToken().Value, pair.Key.GetToken().Position.Line
			if !slices.Contains(known, name) {
				return nil, unknownKey(file, line, name, known)
			}
			texts, err := scalars(file, pair.Value)
			if err != nil {
				return nil, err
			}
			values[strings.ReplaceAll(name, "_", "-")] = value{texts: texts, line: line}
		}
	}
	return values, nil
}

func unknownKey(file string, line int, name string, known []string) error {
	e := errs.Field(fmt.Sprintf("read %s:%d", file, line), name, "CONFIG_KEY", "there is no such key")
	return e.WithHint("did you mean %q? known keys: %s", Nearest(name, known), strings.Join(known, ", "))
}

func mapping(file string, body ast.Node) ([]*ast.MappingValueNode, error) {
	switch n := body.(type) {
	case *ast.MappingNode:
		return n.Values, nil
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}, nil
	default:
		at := fmt.Sprintf("read %s:%d", file, body.GetToken().Position.Line)
		return nil, errs.E(at, errs.Invalid, "CONFIG_SYNTAX", fmt.Errorf("the file must be a list of key: value lines"))
	}
}

// scalars flattens a value: a scalar is itself, a list its elements, a mapping
// its k=v pairs.
func scalars(file string, node ast.Node) ([]string, error) {
	switch n := node.(type) {
	case *ast.SequenceNode:
		var out []string
		for _, v := range n.Values {
			s, err := scalars(file, v)
			if err != nil {
				return nil, err
			}
			out = append(out, s...)
		}
		return out, nil
	case *ast.MappingNode, *ast.MappingValueNode:
		pairs, err := mapping(file, node)
		if err != nil {
			return nil, err
		}
		out := make([]string, 0, len(pairs))
		for _, p := range pairs {
			out = append(out, p.Key.GetToken().Value+"="+p.Value.GetToken().Value)
		}
		return out, nil
	case ast.ScalarNode:
		return []string{n.GetToken().Value}, nil
	default:
		at := fmt.Sprintf("read %s:%d", file, node.GetToken().Position.Line)
		return nil, errs.E(at, errs.Invalid, "CONFIG_SYNTAX", fmt.Errorf("a %s is not a setting", node.Type()))
	}
}

func key(flag string) string { return strings.ReplaceAll(flag, "-", "_") }

// Nearest returns the word of known that is the fewest edits away from name.
func Nearest(name string, known []string) string {
	best, bestDistance := "", -1
	for _, k := range known {
		if d := distance(name, k); bestDistance < 0 || d < bestDistance {
			best, bestDistance = k, d
		}
	}
	return best
}

// distance is the Levenshtein distance of a and b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}

// Print writes every setting of fs with its value and origin, one per line.
func Print(w io.Writer, fs *pflag.FlagSet, origin Origin) error {
	var failure error
	fs.VisitAll(func(f *pflag.Flag) {
		from, ok := origin[f.Name]
		if !ok || failure != nil {
			return
		}
		_, failure = fmt.Fprintf(w, "%s: %s  # %s\n", key(f.Name), f.Value.String(), from)
	})
	return failure
}
