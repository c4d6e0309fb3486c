// Package render shows jobs, workers, runners and scripts as tables for people
// and as JSON, YAML and names for programs.
package render

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/droverhq/drover/cmd/drover/internal/term"
	"github.com/droverhq/drover/core/errs"
)

// Format is how a result is written.
type Format string

// The formats.
const (
	Table Format = "table"
	Wide  Format = "wide"
	JSON  Format = "json"  // one document
	Lines Format = "jsonl" // one object per line
	YAML  Format = "yaml"
	Name  Format = "name" // ids or names only
)

// Formats lists the formats in the order of the help text.
func Formats() []string {
	return []string{string(Table), string(Wide), string(JSON), string(Lines), string(YAML), string(Name)}
}

// ParseFormat reads the value of -o.
func ParseFormat(s string) (Format, error) {
	if s == "" {
		return Table, nil
	}
	if !slices.Contains(Formats(), s) {
		return "", errs.Field("choose the output format", "-o", "USAGE", "%q is none of %s", s, strings.Join(Formats(), ", "))
	}
	return Format(s), nil
}

// Row is something that can be shown in every format.
type Row interface {
	// Cells are the columns of a table, or of a wide one.
	Cells(p *Printer) []string
	// Key is the id, or the name of what has none.
	Key() string
	// Label is the name, or the id of what has none.
	Label() string
}

// Printer writes results. Its fields are set once.
type Printer struct {
	Out     io.Writer
	Format  Format
	Quiet   bool // keys only, whatever the format
	Palette term.Palette
	Now     time.Time // for ages
}

// List writes rows under a header; as JSON one array.
func List[R Row](p *Printer, header []string, rows []R) error {
	if p.Quiet {
		return names(p, rows, R.Key)
	}
	switch p.Format {
	case JSON, YAML:
		if rows == nil {
			rows = []R{}
		}
		return p.document(rows)
	case Lines:
		for _, r := range rows {
			if err := p.line(r); err != nil {
				return err
			}
		}
		return nil
	case Name:
		return names(p, rows, R.Label)
	default:
		cells := make([][]string, len(rows))
		for i, r := range rows {
			cells[i] = r.Cells(p)
		}
		return WriteTable(p.Out, header, cells)
	}
}

func names[R Row](p *Printer, rows []R, name func(R) string) error {
	for _, r := range rows {
		if _, err := fmt.Fprintln(p.Out, term.Line(name(r))); err != nil {
			return fmt.Errorf("print: %w", err)
		}
	}
	return nil
}

// One writes a single thing; details makes the lines that people get.
func One[R Row](p *Printer, row R, details func() []Field) error {
	switch {
	case p.Quiet || p.Format == Lines || p.Format == Name:
		return List(p, nil, []R{row})
	case p.Format == JSON || p.Format == YAML:
		return p.document(row)
	default:
		return WriteFields(p.Out, details())
	}
}

// Report writes a result that is one document for programs and a table for
// people.
func Report(p *Printer, v any, header []string, rows [][]string) error {
	return Sheets(p, v, Sheet{Header: header, Rows: rows})
}

// Sheet is one table of a result that has several.
type Sheet struct {
	Title  string // "" for none
	Header []string
	Rows   [][]string
}

// Sheets writes a result that is one document for programs and one table or
// more for people, with a line between them.
func Sheets(p *Printer, v any, sheets ...Sheet) error {
	switch p.Format {
	case JSON, YAML:
		return p.document(v)
	case Lines:
		return p.line(v)
	}
	for i, s := range sheets {
		if err := s.write(p.Out, i > 0); err != nil {
			return err
		}
	}
	return nil
}

func (s *Sheet) write(out io.Writer, apart bool) error {
	var head string
	if apart {
		head = "\n"
	}
	if s.Title != "" {
		head += s.Title + "\n"
	}
	if _, err := io.WriteString(out, head); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return WriteTable(out, s.Header, s.Rows)
}

// document writes one JSON or YAML document. YAML has the names and the order
// of JSON.
func (p *Printer) document(v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	out := b.Bytes()
	if p.Format == YAML {
		var err error
		if out, err = YAMLFromJSON(out); err != nil {
			return err
		}
	}
	if _, err := p.Out.Write(out); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

func (p *Printer) line(v any) error {
	e := json.NewEncoder(p.Out)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}
