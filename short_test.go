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

// TestTestsAreShort: a function of a test fits a screen or two. A table is a variable
// beside it, and a long story is made of steps that have names.
func TestTestsAreShort(t *testing.T) {
	const most = 80
	at, seen := token.NewFileSet(), 0
	require.NoError(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != "." && strings.HasPrefix(d.Name(), "."):
			return filepath.SkipDir // tools and caches
		case d.IsDir() || !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		f, err := parser.ParseFile(at, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range f.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok {
				seen++
				lines := at.Position(fn.End()).Line - at.Position(fn.Pos()).Line + 1
				assert.LessOrEqual(t, lines, most, "lines of %s at %s", fn.Name.Name, at.Position(fn.Pos()))
			}
		}
		return nil
	}))
	assert.Positive(t, seen)
}
