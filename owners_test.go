package vmfabric_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// parsed gives the files of the product below a folder, tests aside.
func parsed(t *testing.T, root string) (files map[string]*ast.File, at *token.FileSet) {
	t.Helper()
	files, at = map[string]*ast.File{}, token.NewFileSet()
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		files[path], err = parser.ParseFile(at, path, nil, parser.ParseComments)
		return err
	}))
	require.NotEmpty(t, files)
	return files, at
}

// TestNoCommentStandsForALock: a method that is for those who have a lock belongs to
// what they get with it, such as a state or a task, and not to a comment.
func TestNoCommentStandsForALock(t *testing.T) {
	held := regexp.MustCompile(`(?i)\b(mu|lock|mutex)('s)? (is|must be|are) held|\bmu guards|\block of \w+( \w+)? guards|holds (the |its |a\.|[a-z]\.)?(mu|lock)\b`)
	for _, root := range []string{"fabric", "cmd", "hooks", "plugins"} {
		files, at := parsed(t, root)
		for _, f := range files {
			for _, c := range f.Comments {
				assert.NotRegexp(t, held, c.Text(), at.Position(c.Pos()))
			}
		}
	}
}

// TestLockedStructsAreSmall: what a lock guards fits into a head.
func TestLockedStructsAreSmall(t *testing.T) {
	const most = 12
	locked := 0
	for _, root := range []string{"fabric", "cmd", "hooks", "internal", "plugins", "testenv"} {
		files, at := parsed(t, root)
		for _, f := range files {
			ast.Inspect(f, func(n ast.Node) bool {
				if fields, lock := fieldsOf(n); lock {
					locked++
					assert.LessOrEqual(t, fields, most, at.Position(n.Pos()))
				}
				return true
			})
		}
	}
	assert.Positive(t, locked)
}

// fieldsOf counts the fields of a struct, and says whether one is a lock.
func fieldsOf(n ast.Node) (fields int, lock bool) {
	s, ok := n.(*ast.StructType)
	if !ok {
		return 0, false
	}
	for _, field := range s.Fields.List {
		fields += max(1, len(field.Names))
		sel, _ := field.Type.(*ast.SelectorExpr)
		lock = lock || sel != nil && strings.HasSuffix(sel.Sel.Name, "Mutex")
	}
	return fields, lock
}

// TestNoTypeAssertionDecides: what the agent needs of a backend is in its interface.
func TestNoTypeAssertionDecides(t *testing.T) {
	files, at := parsed(t, "fabric/agent")
	for _, f := range files {
		ast.Inspect(f, func(n ast.Node) bool {
			if _, asserts := n.(*ast.TypeAssertExpr); asserts { // also that of a switch
				assert.Fail(t, "a type assertion; put what is asked for into the interface", "%v", at.Position(n.Pos()))
			}
			return true
		})
	}
}

// TestCoreDoesNotKnowItsCallers: the way out that is in commands and files of a node
// is told by whoever has these, see [fabric.Reason].
func TestCoreDoesNotKnowItsCallers(t *testing.T) {
	callers := regexp.MustCompile(`vmfabric (agent|attach|detach|list|status|why|check|render|drain|undrain|moves)\b|virsh|\blxc\b|<fabric:|systemctl|\bXML\b`)
	for _, root := range []string{"fabric/agent", "fabric"} {
		files, at := parsed(t, root)
		for path, f := range files {
			if filepath.Dir(path) != root && root == "fabric" {
				continue // what fits the fabric to something may know that
			}
			ast.Inspect(f, func(n ast.Node) bool {
				if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
					assert.NotRegexp(t, callers, lit.Value, at.Position(lit.Pos()))
				}
				return true
			})
		}
	}
}

// TestBackendsDoNotKnowTheCommandLine: whoever embeds a backend has neither the
// commands of vmfabric nor its flags. Those who have them tell what is theirs.
func TestBackendsDoNotKnowTheCommandLine(t *testing.T) {
	commands := regexp.MustCompile(`\bvmfabric (agent|attach|detach|list|status|why|check|render|drain|undrain|moves|guest-config)\b|` +
		`--(node|socket|libvirt|lxd|kind|speaker|state|config|resolver|observer)\b|systemctl \w+ vmfabric`)
	most := map[string]int{"fabric/kernel": 1} // these may only become fewer
	found := map[string][]string{}
	files, at := parsed(t, "fabric")
	for path, f := range files {
		ast.Inspect(f, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING && commands.MatchString(lit.Value) {
				found[filepath.Dir(path)] = append(found[filepath.Dir(path)], at.Position(lit.Pos()).String())
			}
			return true
		})
	}
	for dir, places := range found {
		assert.LessOrEqual(t, len(places), most[dir], "%v", places)
	}
}
