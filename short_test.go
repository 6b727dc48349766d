package vmfabric_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestFunctionsAreShort: a function fits a screen or two, of a test as well. A table is a
// variable beside it, and a long story is made of steps that have names.
func TestFunctionsAreShort(t *testing.T) {
	const most = 80
	at, tests, others := token.NewFileSet(), 0, 0
	require.NoError(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != "." && strings.HasPrefix(d.Name(), "."):
			return filepath.SkipDir // tools and caches
		case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, ".pb.go"): // which is generated
			return nil
		}
		f, err := parser.ParseFile(at, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		seen := &others
		if strings.HasSuffix(path, "_test.go") {
			seen = &tests
		}
		for _, decl := range f.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok {
				*seen++
				lines := at.Position(fn.End()).Line - at.Position(fn.Pos()).Line + 1
				assert.LessOrEqual(t, lines, most, "lines of %s at %s", fn.Name.Name, at.Position(fn.Pos()))
			}
		}
		return nil
	}))
	assert.Positive(t, tests)
	assert.Positive(t, others)
}
