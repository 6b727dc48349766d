package vmfabric_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// constructors are the names of functions that make something for other packages.
var constructors = regexp.MustCompile(`^(New|Open|Dial|Listen|Record|Subscribe)([A-Z]|$)`)

// startsAtOnce are the constructors that may start a goroutine; docs/architecture.md says
// why.
var startsAtOnce = []string{
	"fabric/disk.Open", "fabric/disk.OpenRegistry", "fabric/disk.OpenValue",
	"plugins.OpenObserver", "plugins.OpenResolver", "plugins.OpenSpeaker",
}

// TestConstructorsStartNothing holds that what is made works once its Run is called: no
// function that makes something has a go statement, or calls one of its package that has.
func TestConstructorsStartNothing(t *testing.T) {
	seen := 0
	for dir, files := range product(t) {
		functions := functionsOf(files)
		for _, f := range functions {
			if f.Recv != nil || !constructors.MatchString(f.Name.Name) {
				continue
			}
			seen++
			if name := dir + "." + f.Name.Name; !slices.Contains(startsAtOnce, name) {
				assert.Empty(t, starts(f, functions, map[*ast.FuncDecl]bool{}), name)
			}
		}
	}
	assert.Greater(t, seen, 30)
}

// product gives the files of the product by their folders.
func product(t *testing.T) map[string][]*ast.File {
	t.Helper()
	all := map[string][]*ast.File{}
	at := token.NewFileSet()
	for _, file := range productFiles(t) {
		f, err := parser.ParseFile(at, file, nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		all[filepath.Dir(file)] = append(all[filepath.Dir(file)], f)
	}
	return all
}

func functionsOf(files []*ast.File) (all []*ast.FuncDecl) {
	for _, f := range files {
		for _, decl := range f.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Body != nil {
				all = append(all, fn)
			}
		}
	}
	return all
}

// starts gives the way from a function to one that starts a goroutine, by the functions of
// its package that it calls; nil if there is none. What a function literal does is done
// later, and does not count.
func starts(f *ast.FuncDecl, functions []*ast.FuncDecl, been map[*ast.FuncDecl]bool) (way []string) {
	been[f] = true
	types := typesIn(f)
	ast.Inspect(f.Body, func(n ast.Node) bool {
		if way != nil {
			return false
		}
		switch n := n.(type) {
		case *ast.FuncLit:
			return false
		case *ast.GoStmt:
			way = []string{f.Name.Name}
		case *ast.CallExpr:
			if s, ok := n.Fun.(*ast.SelectorExpr); ok && s.Sel.Name == "Go" {
				way = []string{f.Name.Name}
			} else if next := callee(n, types, functions); next != nil && !been[next] {
				if further := starts(next, functions, been); further != nil {
					way = append([]string{f.Name.Name}, further...)
				}
			}
		}
		return true
	})
	return way
}

// callee finds which of a package's functions a call is of. A method is found by the type
// of a receiver or of a literal, or else by its name, if only one has that.
func callee(call *ast.CallExpr, types map[string]string, functions []*ast.FuncDecl) *ast.FuncDecl {
	var found, named []*ast.FuncDecl
	switch to := call.Fun.(type) {
	case *ast.Ident:
		for _, f := range functions {
			if f.Recv == nil && f.Name.Name == to.Name {
				found = append(found, f)
			}
		}
	case *ast.SelectorExpr:
		of := ""
		if x, ok := to.X.(*ast.Ident); ok {
			of = types[x.Name]
		}
		for _, f := range functions {
			if f.Recv != nil && f.Name.Name == to.Sel.Name {
				named = append(named, f)
				if of == typeName(f.Recv.List[0].Type) {
					return f
				}
			}
		}
		if _, isName := to.X.(*ast.Ident); !isName || of != "" { // else it may be that of a package
			found = named
		}
	}
	if len(found) != 1 {
		return nil
	}
	return found[0]
}

// typesIn gives the types of a function's receiver, and of the variables that it makes of
// a literal.
func typesIn(f *ast.FuncDecl) map[string]string {
	types := map[string]string{}
	if f.Recv != nil && len(f.Recv.List[0].Names) == 1 {
		types[f.Recv.List[0].Names[0].Name] = typeName(f.Recv.List[0].Type)
	}
	ast.Inspect(f.Body, func(n ast.Node) bool {
		a, ok := n.(*ast.AssignStmt)
		if !ok || len(a.Lhs) != len(a.Rhs) {
			return true
		}
		for i := range a.Lhs {
			made := a.Rhs[i]
			if u, ok := made.(*ast.UnaryExpr); ok {
				made = u.X
			}
			name, isName := a.Lhs[i].(*ast.Ident)
			if lit, ok := made.(*ast.CompositeLit); ok && isName {
				types[name.Name] = typeName(lit.Type)
			}
		}
		return true
	})
	return types
}

// typeName gives the name of a type of the package, or of a pointer to it.
func typeName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return typeName(e.X)
	case *ast.IndexExpr:
		return typeName(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}

// TestStartsAreFound tries the search itself.
func TestStartsAreFound(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "a.go", `package a
func NewA() *A { a := &A{}; a.open(); return a }
func (a *A) open() { a.b.begin() }
func (b *B) open() {}
func (b *B) begin() { b.group.Go(b.run) }
func OpenC() { c := &C{}; c.f = func() { go run() }; errors.Join() }
func (*B) Join() { go run() }
func (*A) Join() { go run() }
func Listen() { go run() }
`, parser.SkipObjectResolution)
	require.NoError(t, err)
	functions := functionsOf([]*ast.File{f})
	var ways []string
	for _, f := range functions {
		if f.Recv == nil {
			ways = append(ways, strings.Join(starts(f, functions, map[*ast.FuncDecl]bool{}), " "))
		}
	}
	assert.Equal(t, []string{"NewA open begin", "", "Listen"}, ways)
}
