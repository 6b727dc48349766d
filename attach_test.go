package vmfabric_test

import (
	"go/ast"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// attachRow is a row of the tables of docs/architecture.md about an attach.
type attachRow struct {
	pkg       string // "" in the row with the sum
	functions []string
	count     int
}

// attachTables gives the tables of the section about the functions of an attach.
func attachTables(t *testing.T) (tables [][]attachRow) {
	t.Helper()
	text, err := os.ReadFile("docs/architecture.md")
	require.NoError(t, err)
	_, section, found := strings.Cut(string(text), "\n### The functions of an attach\n")
	require.True(t, found)
	section, _, _ = strings.Cut(section, "\n## ")
	name := regexp.MustCompile("`([^`]+)`")
	inTable := false
	for line := range strings.Lines(section) {
		cells := strings.Split(line, "|")
		if len(cells) < 5 || strings.HasPrefix(line, "| ---") {
			inTable = inTable && len(cells) >= 5
			continue
		}
		if !inTable { // the head
			inTable, tables = true, append(tables, nil)
			continue
		}
		row := attachRow{pkg: strings.Trim(cells[1], " `")}
		if row.pkg == "all" {
			row.pkg = ""
		}
		for _, m := range name.FindAllStringSubmatch(cells[2], -1) {
			row.functions = append(row.functions, m[1])
		}
		row.count, err = strconv.Atoi(strings.TrimSpace(cells[3]))
		require.NoError(t, err, line)
		tables[len(tables)-1] = append(tables[len(tables)-1], row)
	}
	return tables
}

// functionName gives a function as Name, and a method as Type.Name.
func functionName(f *ast.FuncDecl) string {
	if f.Recv == nil {
		return f.Name.Name
	}
	of := f.Recv.List[0].Type
	for {
		switch is := of.(type) {
		case *ast.StarExpr:
			of = is.X
		case *ast.IndexExpr:
			of = is.X
		case *ast.IndexListExpr:
			of = is.X
		case *ast.Ident:
			return is.Name + "." + f.Name.Name
		default:
			return f.Name.Name
		}
	}
}

// names gives the identifiers of a function's body.
func names(f *ast.FuncDecl) map[string]bool {
	all := map[string]bool{}
	ast.Inspect(f.Body, func(n ast.Node) bool {
		if id, ok := n.(*ast.Ident); ok {
			all[id.Name] = true
		}
		return true
	})
	return all
}

// TestTheWayOfAnAttach: the functions that docs/architecture.md lists for an attach
// exist, each is named by another one of them and names one of ours, and the sums are
// right.
func TestTheWayOfAnAttach(t *testing.T) {
	declared, simple := map[string]*ast.FuncDecl{}, map[string]bool{}
	for _, root := range []string{"hooks", "fabric", "internal"} {
		files, _ := parsed(t, root)
		for file, f := range files {
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Body != nil {
					declared[path.Dir(file)+" "+functionName(fn)], simple[fn.Name.Name] = fn, true
				}
			}
		}
	}
	tables := attachTables(t)
	require.Len(t, tables, 3)
	var way []*ast.FuncDecl
	for _, table := range tables {
		sum := 0
		for _, row := range table {
			if row.pkg == "" {
				assert.Equal(t, sum, row.count, "the sum of a table")
				continue
			}
			assert.Len(t, row.functions, row.count, row.pkg)
			sum += row.count
			for _, name := range row.functions {
				fn := declared[row.pkg+" "+name]
				if assert.NotNil(t, fn, "%s has no %s", row.pkg, name) {
					way = append(way, fn)
				}
			}
		}
	}
	byOthers := []string{"converse", "UnmarshalText", "MarshalText"} // a goroutine of its own, and encoding/json
	for _, fn := range way {
		calls := names(fn)
		assert.True(t, slices.ContainsFunc(way, func(by *ast.FuncDecl) bool { return by != fn && names(by)[fn.Name.Name] }) ||
			slices.Contains(byOthers, fn.Name.Name), "%s is called by none that is listed", functionName(fn))
		delete(calls, fn.Name.Name)
		ours := false
		for name := range calls {
			ours = ours || simple[name]
		}
		assert.True(t, ours, "%s calls none of ours", functionName(fn))
	}
}
