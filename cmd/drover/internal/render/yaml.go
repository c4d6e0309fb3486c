package render

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"sync"

	"github.com/droverhq/drover/cmd/drover/internal/term"
)

// YAMLFromJSON writes a JSON document as YAML with the same names, order and
// values. Text is quoted unless every reader of YAML takes it for text as it
// stands, and what is not shown as itself becomes an escape: no value can steer
// a terminal.
func YAMLFromJSON(document []byte) ([]byte, error) {
	d := json.NewDecoder(bytes.NewReader(document))
	d.UseNumber()
	lines, _, err := yamlLines(d)
	if err != nil {
		return nil, fmt.Errorf("encode as YAML: %w", err)
	}
	return []byte(strings.Join(lines, "\n") + "\n"), nil
}

// yamlLines returns the lines of the next value. A scalar and an empty
// collection are one line that stands behind its key.
func yamlLines(d *json.Decoder) (lines []string, inline bool, err error) {
	token, err := d.Token()
	if err != nil {
		return nil, false, err
	}
	switch {
	case token == json.Delim('{'):
		lines, err = yamlPairs(d)
		if len(lines) == 0 {
			lines, inline = []string{"{}"}, true
		}
	case token == json.Delim('['):
		lines, err = yamlItems(d)
		if len(lines) == 0 {
			lines, inline = []string{"[]"}, true
		}
	default:
		return []string{yamlScalar(token)}, true, nil
	}
	if err == nil {
		_, err = d.Token() // the closing bracket
	}
	return lines, inline, err
}

func yamlPairs(d *json.Decoder) ([]string, error) {
	var all []string
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, err
		}
		lines, inline, err := yamlLines(d)
		if err != nil {
			return nil, err
		}
		key := yamlScalar(name) + ":"
		if inline {
			all = append(all, key+" "+lines[0])
			continue
		}
		all = append(all, key)
		for _, l := range lines {
			all = append(all, "  "+l)
		}
	}
	return all, nil
}

func yamlItems(d *json.Decoder) ([]string, error) {
	var all []string
	for d.More() {
		lines, _, err := yamlLines(d)
		if err != nil {
			return nil, err
		}
		for i, l := range lines {
			if i == 0 {
				all = append(all, "- "+l)
			} else {
				all = append(all, "  "+l)
			}
		}
	}
	return all, nil
}

// plainYAML matches words that no version of YAML reads as anything but text,
// and UUIDs.
var plainYAML = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^([a-zA-Z_/][a-zA-Z0-9_./@+-]*( [a-zA-Z0-9_./@+][a-zA-Z0-9_./@+-]*)*|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})$`)
})

// wordYAML matches words that some version of YAML reads as a boolean or as nothing.
var wordYAML = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(?i:y|n|yes|no|on|off|true|false|null)$`)
})

func yamlScalar(token json.Token) string {
	switch v := token.(type) {
	case string:
		if plainYAML().MatchString(v) && !wordYAML().MatchString(v) {
			return v
		}
		return yamlQuote(v)
	case json.Number:
		if mantissa, exponent, ok := strings.Cut(v.String(), "e"); ok && !strings.Contains(mantissa, ".") {
			return mantissa + ".0e" + exponent // YAML 1.1 wants the point
		}
		return v.String()
	case nil:
		return "null"
	default:
		return fmt.Sprint(v)
	}
}

// yamlQuote returns text in the double-quoted style.
func yamlQuote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteString(`\` + string(r))
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r > 0xffff && term.Steers(r):
			fmt.Fprintf(&b, `\U%08x`, r)
		case term.Steers(r) || r == 0xfffe || r == 0xffff:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
