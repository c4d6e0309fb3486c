package yamlfile

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/token"
)

// maxDepth is how deep lists and mappings may lie in each other. The parser calls
// itself for each level, and a stack that is too deep ends the process: no recover
// helps.
const maxDepth = 32

// guard runs a parser over data that it has looked at first, and makes an *Error of
// whatever goes wrong. A parser of third parties that panics is a mistake in the
// file, too.
func guard(file string, data []byte, parse func(data []byte) error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = &Error{File: file, Text: "the YAML parser cannot read it: " + firstLine(fmt.Sprint(r))}
		}
	}()
	if len(data) > 0 && data[len(data)-1] != '\n' {
		data = append(slices.Clip(data), '\n') // the lexer passes over a tag that ends a file
	}
	if err := check(file, data); err != nil {
		return err
	}
	err = parse(data)
	var (
		own *Error
		at  yaml.Error
	)
	switch {
	case err == nil || errors.As(err, &own):
		return err
	case !errors.As(err, &at) || at.GetToken() == nil:
		return &Error{File: file, Text: firstLine(err.Error())}
	default:
		p := at.GetToken().Position
		return &Error{File: file, Line: p.Line, Column: p.Column, Text: firstLine(at.GetMessage())}
	}
}

// maxQuote is how much of a file an error quotes, in bytes.
const maxQuote = 200

// firstLine returns the first line of a message of the parser, which quotes the file
// as it is.
func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	if len(line) > maxQuote {
		line = strings.ToValidUTF8(line[:maxQuote], "") + "..."
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, line)
}

// check refuses what a file of ours has no use for and what makes parsers fail:
// tags, anchors, aliases, several documents, and deep nesting.
func check(file string, data []byte) error {
	if len(data) > MaxBytes {
		return &Error{File: file, Text: fmt.Sprintf("it is larger than %d KiB", MaxBytes>>10)}
	}
	for i, line := range strings.Split(string(data), "\n") {
		if !utf8.ValidString(line) {
			return &Error{File: file, Line: i + 1, Text: "it is not valid UTF-8"}
		}
		if at := strings.IndexFunc(line, control); at >= 0 {
			return &Error{File: file, Line: i + 1, Column: at + 1, Text: "it holds a control character"}
		}
	}
	n := nesting{}
	for _, t := range lexer.Tokenize(string(data)) {
		if why := n.next(t); why != "" {
			return &Error{File: file, Line: t.Position.Line, Column: t.Position.Column, Text: why}
		}
	}
	return nil
}

// control reports whether YAML has no use for the character.
func control(r rune) bool { return r < ' ' && r != '\t' && r != '\r' || r == 0x7f }

// nesting follows how deep a token lies.
type nesting struct {
	flow    int // open brackets and braces
	line    int
	opened  int  // block lists and mappings that the line has begun
	content bool // a document has begun
	ended   bool // a document has ended, or a second one has begun
}

// next takes a token into account, and says what is wrong with it.
func (n *nesting) next(t *token.Token) string {
	if t.Position.Line != n.line {
		n.line, n.opened = t.Position.Line, 0
	}
	switch t.Type {
	case token.TagType:
		return fmt.Sprintf("tags such as %q are not supported", firstLine(t.Value))
	case token.AnchorType, token.AliasType, token.MergeKeyType:
		return "anchors, aliases and merge keys are not supported"
	case token.DirectiveType:
		return "directives are not supported"
	case token.DocumentHeaderType:
		n.ended = n.ended || n.content
	case token.DocumentEndType:
		n.ended = true
	case token.SequenceStartType, token.MappingStartType:
		n.flow++
	case token.SequenceEndType, token.MappingEndType:
		n.flow--
	case token.SequenceEntryType, token.MappingKeyType, token.MappingValueType:
		if n.flow <= 0 {
			n.opened++
		}
	}
	switch t.Type {
	case token.CommentType, token.DocumentHeaderType, token.DocumentEndType:
	default:
		if n.ended {
			return "a file holds one document"
		}
		n.content = true
	}
	// A block level needs a column more than the one above, or an indicator on the
	// same line.
	if n.flow > maxDepth || n.opened > maxDepth || t.Position.IndentLevel > maxDepth {
		return fmt.Sprintf("lists and mappings lie more than %d deep in each other", maxDepth)
	}
	return ""
}
