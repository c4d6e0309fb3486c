// Package yamlfile reads the YAML files that users write: policies, settings of
// daemons, contexts. It is strict, bounded, and answers every mistake with one
// line that names its place.
package yamlfile

import (
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/droverhq/drover/plugins/ownership"
)

// MaxBytes is the size that a file may have.
const MaxBytes = 256 << 10

// Error is a mistake in a file.
type Error struct {
	File         string
	Line, Column int // from 1; 0 is not known
	Text         string
}

// Error returns FILE:LINE:COLUMN: TEXT, as editors read it.
func (e *Error) Error() string { return e.Place() + ": " + e.Text }

// Place returns FILE:LINE:COLUMN as far as it is known.
func (e *Error) Place() string {
	switch {
	case e.Line == 0:
		return e.File
	case e.Column == 0:
		return fmt.Sprintf("%s:%d", e.File, e.Line)
	default:
		return fmt.Sprintf("%s:%d:%d", e.File, e.Line, e.Column)
	}
}

// Read returns the content of a file of at most MaxBytes that no other user can
// change.
func Read(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err //nolint:wrapcheck // says what was tried on which file
	}
	defer f.Close()
	if err := ownership.CheckFile(f); err != nil {
		return nil, err //nolint:wrapcheck // says what is wrong with which file
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	if len(data) > MaxBytes {
		return nil, &Error{File: file, Text: fmt.Sprintf("the file is larger than %d KiB", MaxBytes>>10)}
	}
	return data, nil
}

// Decode parses data into v, a pointer to a struct with yaml tags. A key that v
// does not have is a mistake. file is the name for errors; every error is an *Error.
func Decode(file string, data []byte, v any) error {
	return guard(file, data, func(data []byte) error {
		err := yaml.UnmarshalWithOptions(data, v, yaml.Strict())
		var (
			unknown *yaml.UnknownFieldError
			at      yaml.Error
		)
		if !errors.As(err, &unknown) || !errors.As(err, &at) {
			return err
		}
		key := firstLine(at.GetToken().Value)
		p := at.GetToken().Position
		return &Error{
			File: file, Line: p.Line, Column: p.Column,
			Text: fmt.Sprintf("unknown key %q, did you mean %q?", key, Nearest(key, keysOf(reflect.TypeOf(v)))),
		}
	})
}

// keysOf returns the keys of a struct and of those below it.
func keysOf(t reflect.Type) []string {
	var keys []string
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		return keysOf(t.Elem())
	case reflect.Struct:
		for i := range t.NumField() {
			name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
			keys = append(append(keys, name), keysOf(t.Field(i).Type)...)
		}
	}
	return keys
}

// Setting is one key of a file of settings.
type Setting struct {
	Key    string
	Values []string // of a list each element, of a mapping each KEY=VALUE
	Line   int
}

// Settings parses a file of "key: value" lines, whose values are scalars, lists or
// mappings of scalars. Every error is an *Error.
func Settings(file string, data []byte) ([]Setting, error) {
	var out []Setting
	err := guard(file, data, func(data []byte) error {
		doc, err := parser.ParseBytes(data, 0)
		if err != nil {
			return err //nolint:wrapcheck // guard makes an *Error of it
		}
		for _, d := range doc.Docs {
			if d.Body == nil || d.Body.Type() == ast.CommentType {
				continue
			}
			pairs, err := mapping(file, d.Body)
			if err != nil {
				return err
			}
			for _, p := range pairs {
				values, err := scalars(file, p.Value)
				if err != nil {
					return err
				}
				key := p.Key.GetToken()
				out = append(out, Setting{Key: key.Value, Values: values, Line: key.Position.Line})
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func mapping(file string, body ast.Node) ([]*ast.MappingValueNode, error) {
	switch n := body.(type) {
	case *ast.MappingNode:
		return n.Values, nil
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}, nil
	default:
		return nil, &Error{File: file, Line: body.GetToken().Position.Line, Text: "the file must be a list of key: value lines"}
	}
}

// scalars flattens a value: a scalar is itself, a list its elements, a mapping its
// KEY=VALUE pairs.
func scalars(file string, node ast.Node) ([]string, error) {
	var out []string
	switch n := node.(type) {
	case *ast.SequenceNode:
		for _, v := range n.Values {
			text, err := scalar(file, v)
			if err != nil {
				return nil, err
			}
			out = append(out, text)
		}
		return out, nil
	case *ast.MappingNode, *ast.MappingValueNode:
		pairs, err := mapping(file, node)
		if err != nil {
			return nil, err
		}
		for _, p := range pairs {
			text, err := scalar(file, p.Value)
			if err != nil {
				return nil, err
			}
			out = append(out, p.Key.GetToken().Value+"="+text)
		}
		return out, nil
	default:
		text, err := scalar(file, node)
		return []string{text}, err
	}
}

func scalar(file string, node ast.Node) (string, error) {
	switch n := node.(type) {
	case *ast.LiteralNode: // its token is the indicator, such as "|"
		return n.Value.Value, nil
	case ast.ScalarNode:
		return n.GetToken().Value, nil
	default:
		p := node.GetToken().Position
		return "", &Error{File: file, Line: p.Line, Column: p.Column, Text: fmt.Sprintf("a %s is not a setting", strings.ToLower(node.Type().String()))}
	}
}

// Nearest returns the word with the fewest edits from s; "" of none.
func Nearest(s string, words []string) string {
	if len(words) == 0 {
		return ""
	}
	return slices.MinFunc(words, func(a, b string) int { return distance(s, a) - distance(s, b) })
}

// distance returns the Levenshtein distance of a and b.
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
