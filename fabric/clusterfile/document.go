package clusterfile

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Bounds that no real cluster file reaches. The parser needs stack for the nesting.
// It needs time with the square of the nesting, of the keys of a mapping and of the
// values that are left out: a megabyte of brackets would keep it busy for hours.
const (
	maxBytes  = 1 << 20
	maxTokens = 100_000 // 4096 nodes with two addresses have 60,000
	maxDepth  = 16
	maxKeys   = 256
)

// document returns the root of the one YAML mapping in data, or the mistake because
// of which it cannot be read, without its File.
func document(data []byte) (ast.Node, *Error) {
	text, bad := plainText(data)
	if bad != nil {
		return nil, bad
	}
	tokens, err := guard(func() (token.Tokens, error) { return lexer.Tokenize(text), nil })
	if err != nil {
		return nil, syntaxError(err)
	}
	if bad := checkTokens(tokens); bad != nil {
		return nil, bad
	}
	file, err := guard(func() (*ast.File, error) {
		// The decoder reports repeated keys itself, with the line of the first.
		return parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	})
	if err != nil {
		return nil, syntaxError(err)
	}
	var root ast.Node
	for _, doc := range file.Docs {
		switch {
		case doc.Body == nil:
		case root != nil:
			return nil, errorAt(doc.Body, "a second document begins here; a cluster file is one, remove the '---' between them")
		default:
			root = doc.Body
		}
	}
	switch root.(type) {
	case nil, *ast.CommentGroupNode, *ast.NullNode:
		return nil, &Error{Line: 1, Column: 1, Text: "the file is empty; give at least the keys name, asn, community, gateway, pools, reflectors and nodes"}
	case *ast.MappingNode:
		return root, nil
	case *ast.SequenceNode:
		return nil, errorAt(root, "the file is a list; begin with the keys themselves, as in 'name: msk1', without '-'")
	}
	return nil, errorAt(root, "the file is a single value; begin with the keys, as in 'name: msk1'")
}

// plainText returns the data as UTF-8 text with plain line ends, without a byte
// order mark.
func plainText(data []byte) (string, *Error) {
	if len(data) > maxBytes {
		return "", &Error{Text: "larger than 1 MiB, which no cluster file is; give the right file"}
	}
	data = bytes.TrimPrefix(data, []byte("\uFEFF"))
	data = bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n"))
	for i, line := 0, 1; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			return "", &Error{Line: line, Text: "not UTF-8 text; give the right file, or save it as UTF-8"}
		case r == '\n':
			line++
		case r != '\t' && unicode.IsControl(r):
			return "", &Error{Line: line, Text: fmt.Sprintf("has the control character %U; remove it, or give the right file", r)}
		}
		i += size
	}
	return string(data), nil
}

// checkTokens refuses YAML that a cluster file does not need, and text that would
// overload the parser.
func checkTokens(tokens token.Tokens) *Error {
	var block []level // the open block mappings and lists, outermost first
	flow := 0         // the open brackets and braces
	for i, t := range tokens {
		if i == maxTokens {
			return tokenError(t, "more than %d words and signs up to here; give the right file", maxTokens)
		}
		switch t.Type {
		case token.AnchorType, token.AliasType:
			return tokenError(t, "'%s' makes an anchor or an alias, which are not allowed here; write the value out, or quote it if the sign belongs to it", t.Value)
		case token.TagType:
			return tokenError(t, "%s is a YAML tag, which is not allowed here; remove it", quote(t.Value))
		case token.DirectiveType:
			return tokenError(t, "'%%' begins a YAML directive, which is not allowed here; remove the line")
		case token.MappingStartType, token.SequenceStartType:
			flow++
		case token.MappingEndType, token.SequenceEndType:
			// A negative depth would allow more of the text that follows.
			if flow--; flow < 0 {
				return tokenError(t, "'%s' closes no list and no mapping; remove it, or quote it if it belongs to a value", t.Value)
			}
		case token.SequenceEntryType, token.MappingKeyType:
			block = enter(block, t.Position.Column)
		case token.MappingValueType:
			if flow > 0 {
				continue // a brace counted it
			}
			key := t
			if t.Prev != nil {
				key = t.Prev
			}
			block = enter(block, key.Position.Column)
			inner := &block[len(block)-1]
			if inner.keys++; inner.keys > maxKeys {
				return tokenError(t, "more than %d keys in one mapping; give the right file", maxKeys)
			}
		}
		if len(block)+flow > maxDepth {
			return tokenError(t, "nested deeper than %d levels; give the right file", maxDepth)
		}
	}
	return nil
}

// level is a block mapping or list: the lines that begin in the same column.
type level struct {
	column int
	keys   int
}

// enter closes the levels to the right of column and opens the one there.
func enter(block []level, column int) []level {
	for len(block) > 0 && block[len(block)-1].column > column {
		block = block[:len(block)-1]
	}
	if len(block) == 0 || block[len(block)-1].column < column {
		block = append(block, level{column: column})
	}
	return block
}

// guard turns a panic into an error. Some releases of the YAML module panic over
// malformed text, and a file that a running agent reads again must not end it.
func guard[T any](f func() (T, error)) (v T, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return f()
}

func syntaxError(err error) *Error {
	const wayOut = "check the indentation, which is in spaces, and the brackets, and quote values with signs such as ':'"
	var located interface {
		GetToken() *token.Token
		GetMessage() string
	}
	if !errors.As(err, &located) || located.GetToken() == nil {
		return &Error{Text: "not YAML; " + wayOut}
	}
	text := strings.ReplaceAll(located.GetMessage(), "character '\t'", "a tab")
	message := strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text)
	return tokenError(located.GetToken(), "not YAML: %s; %s", message, wayOut)
}

func tokenError(t *token.Token, format string, args ...any) *Error {
	return &Error{Line: t.Position.Line, Column: t.Position.Column, Text: fmt.Sprintf(format, args...)}
}

func errorAt(n ast.Node, text string) *Error { return tokenError(start(n), "%s", text) }

// start returns the first token of a node. For a block mapping GetToken returns the
// first colon, which can be on a later line than the key.
func start(n ast.Node) *token.Token {
	if m, ok := n.(*ast.MappingNode); ok && !m.IsFlowStyle && len(m.Values) > 0 {
		return m.Values[0].Key.GetToken()
	}
	return n.GetToken()
}
