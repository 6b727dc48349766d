package clusterfile

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// decoder reads one document and remembers the place of each key and item.
type decoder struct {
	file   string
	dir    string           // the directory of relative key and password files
	places map[string]place // by path, as in fabric.Problem; "" is the document
	bad    map[string]bool  // the paths without a value because of a reported mistake
	errs   []*Error

	withoutKey bool
}

// place is the place of a key or a list item in the file.
type place struct {
	line, column int
	key          string // its path, as in the file
}

func newDecoder(file string, root ast.Node) *decoder {
	d := &decoder{file: file, dir: filepath.Dir(file), places: map[string]place{}, bad: map[string]bool{}}
	d.mark("", start(root))
	return d
}

func (d *decoder) mark(path string, t *token.Token) {
	d.places[path] = place{t.Position.Line, t.Position.Column, path}
}

// report reports a mistake at path, or at the nearest parent that is there.
func (d *decoder) report(path, text string) {
	at, there := d.places[path]
	key := at.key
	for p := path; !there; {
		key = path
		p = parent(p)
		at, there = d.places[p]
	}
	d.errs = append(d.errs, &Error{File: d.file, Line: at.line, Column: at.column, Key: key, Text: text})
}

// fail reports a mistake that leaves path without its value.
func (d *decoder) fail(path, format string, args ...any) {
	d.bad[path] = true
	d.report(path, fmt.Sprintf(format, args...))
}

// lessAddresses reports whether path is about the addresses of a pool of which some were
// lost to a mistake.
func (d *decoder) lessAddresses(path string) bool {
	pool, key, _ := strings.Cut(path, ".")
	about := func(key string) bool { return strings.HasPrefix(key, "prefix") || strings.HasPrefix(key, "ranges") }
	if !strings.HasPrefix(pool, "pools[") || !about(key) && !strings.HasPrefix(key, "exclude") && !strings.HasPrefix(key, "reserve") {
		return false
	}
	for p := range d.bad {
		if of, lost, _ := strings.Cut(p, "."); of == pool && about(lost) {
			return true
		}
	}
	return false
}

// lessReach reports whether path is about servers that guests may reach by what was lost
// to a mistake, or about a service of the node that another mistake decides on.
func (d *decoder) lessReach(path string) bool {
	for p := range d.bad {
		opens := strings.HasPrefix(p, "guests.reach") || strings.HasPrefix(p, "guests.node_ports")
		server := strings.HasPrefix(path, "guests.dns[") || strings.HasPrefix(path, "guests.ntp[")
		if opens && server || p == "guests.dhcp" && strings.HasPrefix(path, "guests.node_ports[") {
			return true
		}
	}
	return false
}

// follows reports whether a problem at path is, or may be, only the consequence of
// a reported mistake.
func (d *decoder) follows(path string) bool {
	for p := path; p != ""; p = parent(p) {
		if d.bad[p] {
			return true
		}
	}
	// A certificate that could not be read is not missing.
	if strings.HasPrefix(path, etcdPath) && strings.HasSuffix(path, "_file") && (d.bad[etcdPath+"cert_file"] || d.bad[etcdPath+"key_file"]) {
		return true
	}
	if d.lessAddresses(path) || d.lessReach(path) {
		return true
	}
	// A node that lost its address to a mistake has no family in common with
	// the reflectors.
	if strings.HasPrefix(path, "reflectors[") && strings.HasSuffix(path, ".address") {
		for p := range d.bad {
			if strings.HasPrefix(p, "nodes[") && !strings.HasSuffix(p, ".name") {
				return true
			}
		}
	}
	return false
}

const etcdPath = "registry.etcd."

// parent removes the last key or index from a path.
func parent(path string) string { return path[:max(0, strings.LastIndexAny(path, ".["))] }

func child(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// field reads the node at path into a variable.
type field func(d *decoder, path string, n ast.Node)

// key is a key that a mapping may have.
type key struct {
	name string
	read field
}

// mapping reads a mapping with the given keys, each at most once.
func mapping(keys ...key) field {
	return func(d *decoder, path string, n ast.Node) {
		if isNull(n) {
			return
		}
		m, ok := n.(*ast.MappingNode)
		if !ok {
			d.fail(path, "a %s where a mapping belongs; give it the keys %s", kind(n), names(keys))
			return
		}
		lines := map[string]int{}
		var unknown []*token.Token
		for _, v := range m.Values {
			at := v.Key.GetToken()
			name := at.Value
			if first, twice := lines[name]; twice {
				d.errs = append(d.errs, d.keyError(path, at, "given twice, first in line %d; remove one", first))
				continue
			}
			lines[name] = at.Position.Line
			k, known := find(keys, name)
			if !known {
				unknown = append(unknown, at)
				continue
			}
			d.mark(child(path, name), at)
			k.read(d, child(path, name), v.Value)
		}
		for _, at := range unknown {
			d.unknown(path, at, keys, lines)
		}
	}
}

// unknown reports a key that is none of keys; given has the keys that are there.
func (d *decoder) unknown(path string, at *token.Token, keys []key, given map[string]int) {
	guess := nearest(at.Value, keys)
	if guess == "" {
		d.errs = append(d.errs, d.keyError(path, at, "unknown key; the keys here are %s", names(keys)))
		return
	}
	d.errs = append(d.errs, d.keyError(path, at, "unknown key; did you mean %s?", guess))
	if _, there := given[guess]; !there {
		d.bad[child(path, guess)] = true
	}
}

func (d *decoder) keyError(path string, at *token.Token, format string, args ...any) *Error {
	e := tokenError(at, format, args...)
	e.File, e.Key = d.file, child(path, bare(at.Value))
	return e
}

// list reads a list of at most limit items into dst, each with the field that item
// returns for it. An item with a mistake keeps its place, so that the indexes stay
// true.
func list[T any](dst *[]T, limit int, item func(*T) field) field {
	return func(d *decoder, path string, n ast.Node) {
		if isNull(n) {
			return
		}
		seq, ok := n.(*ast.SequenceNode)
		switch {
		case !ok:
			d.fail(path, "a %s where a list belongs; put each item on a line of its own that begins with '-', or all in [ ]", kind(n))
			return
		case len(seq.Values) > limit:
			d.fail(path, "%d items; at most %d are allowed", len(seq.Values), limit)
			return
		case len(seq.Values) == 0:
			return
		}
		*dst = make([]T, len(seq.Values))
		for i, v := range seq.Values {
			at := fmt.Sprintf("%s[%d]", path, i)
			d.mark(at, start(v))
			if isNull(v) {
				d.fail(at, "empty; give it a value or remove it")
				continue
			}
			item(&(*dst)[i])(d, at, v)
		}
	}
}

// scalar reads a plain or quoted value.
func scalar[T any](dst *T, parse func(literal) (T, error)) field {
	return func(d *decoder, path string, n ast.Node) {
		if isNull(n) {
			d.fail(path, "empty; give it a value or leave the key out")
			return
		}
		l, ok := literalOf(n)
		if !ok {
			d.fail(path, "a %s where a single value belongs; give one value", kind(n))
			return
		}
		v, err := parse(l)
		if err != nil {
			d.fail(path, "%v", err)
			return
		}
		*dst = v
	}
}

// scalars returns the item function of a list of plain values.
func scalars[T any](parse func(literal) (T, error)) func(*T) field {
	return func(dst *T) field { return scalar(dst, parse) }
}

// oneOrList reads a single value, or a list of them.
func oneOrList[T any](dst *[]T, limit int, parse func(literal) (T, error)) field {
	return func(d *decoder, path string, n ast.Node) {
		if _, single := literalOf(n); !single {
			list(dst, limit, scalars(parse))(d, path, n)
			return
		}
		*dst = make([]T, 1)
		scalar(&(*dst)[0], parse)(d, path, n)
	}
}

// literal is a single value as the file has it.
type literal struct {
	text  string
	plain bool // without quotes, so YAML may take it for a number or a boolean
}

func literalOf(n ast.Node) (literal, bool) {
	switch v := n.(type) {
	case *ast.StringNode:
		return literal{v.Value, v.Token.Type == token.StringType}, true
	case *ast.LiteralNode:
		return literal{v.Value.Value, false}, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return literal{n.GetToken().Value, true}, true
	}
	return literal{}, false
}

func isNull(n ast.Node) bool {
	_, null := n.(*ast.NullNode)
	return null || n == nil
}

func kind(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode:
		return "mapping"
	case *ast.SequenceNode:
		return "list"
	}
	return "single value"
}
