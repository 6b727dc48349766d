package vmfabric_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// laboratories are the folders that are not of the product: they try it and measure it.
var laboratories = []string{
	"testenv", "internal/bench", "internal/e2e", "internal/endure", "internal/histories", "internal/simulate",
	"plugins/internal/testplugin", "fabric/gobgp/internal/gobgptest",
}

// ownerless are the calls that wait for nothing that their caller could end.
var ownerless = map[string][]string{
	"context": {"Background", "TODO"},
	"time":    {"Sleep", "Tick"},
}

// timers are the calls that begin to wait for what only their goroutine could end.
var timers = map[string][]string{"time": {"After", "AfterFunc"}}

// TestEveryWaitHasAnOwner holds that what waits ends with the context of its caller:
// only main makes one out of nothing, and nobody sleeps. What shall outlive its
// caller says context.WithoutCancel, and why.
func TestEveryWaitHasAnOwner(t *testing.T) {
	found := map[string][]string{}
	for _, file := range productFiles(t) {
		dir := filepath.Dir(file)
		found[dir] = append(found[dir], callsIn(t, file, ownerless)...)
	}
	assert.Greater(t, len(found), 30, "the folders of the product")
	for dir, calls := range found {
		assert.Empty(t, calls, "%s: give it the context of the caller", dir)
	}
}

// productFiles lists the files of the product, tests aside.
func productFiles(t *testing.T) (all []string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (slices.Contains(laboratories, file) || strings.HasPrefix(d.Name(), ".") && file != "."):
			return filepath.SkipDir
		case !d.IsDir() && strings.HasSuffix(file, ".go") && !strings.HasSuffix(file, "_test.go"):
			all = append(all, file)
		}
		return nil
	}))
	return all
}

// TestTimersBelongToSomebody holds that no source, and nothing of the kernel, has a
// timer that nobody stops.
func TestTimersBelongToSomebody(t *testing.T) {
	for _, dir := range []string{
		"fabric/etcd", "fabric/internal/hypervisor", "fabric/libvirt", "fabric/lxd",
		"fabric/kernel", "fabric/kernel/internal/rtnl", "fabric/kernel/internal/capture", "fabric/kernel/internal/nflog",
	} {
		files, err := filepath.Glob(dir + "/*.go")
		require.NoError(t, err)
		require.NotEmpty(t, files)
		for _, file := range files {
			if !strings.HasSuffix(file, "_test.go") {
				assert.Empty(t, callsIn(t, file, timers))
			}
		}
	}
}

// clocks are the calls whose answer nobody passed in.
var clocks = map[string][]string{"time": {"Now", "Since", "Until", "After", "AfterFunc", "NewTimer", "NewTicker"}}

// TestDecisionsHaveNoClock holds that what decides by plain values gets the time with
// them.
func TestDecisionsHaveNoClock(t *testing.T) {
	files, err := filepath.Glob("fabric/agent/internal/*/*.go")
	require.NoError(t, err)
	for _, dir := range slices.Concat(decisions, []string{"internal/initial", "internal/paging"}) {
		more, err := filepath.Glob(dir + "/*.go")
		require.NoError(t, err)
		require.NotEmpty(t, more)
		files = append(files, more...)
	}
	require.Greater(t, len(files), 10)
	for _, file := range files {
		if !strings.HasSuffix(file, "_test.go") {
			assert.Empty(t, callsIn(t, file, clocks))
		}
	}
}

// callsIn lists the calls of a kind in a file, but for the context that the main of a
// program begins with.
func callsIn(t *testing.T, file string, kind map[string][]string) (calls []string) {
	t.Helper()
	set := token.NewFileSet()
	f, err := parser.ParseFile(set, file, nil, parser.SkipObjectResolution)
	require.NoError(t, err)
	names := map[string]string{} // what the file calls a package, and its path
	for _, i := range f.Imports {
		p, err := strconv.Unquote(i.Path.Value)
		require.NoError(t, err)
		name := path.Base(p)
		if i.Name != nil {
			name = i.Name.Name
		}
		names[name] = p
	}
	for _, decl := range f.Decls {
		fn, ok := decl.(*ast.FuncDecl)
		isMain := ok && fn.Recv == nil && fn.Name.Name == "main" && f.Name.Name == "main"
		ast.Inspect(decl, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			x, ok := s.X.(*ast.Ident)
			if !ok || !slices.Contains(kind[names[x.Name]], s.Sel.Name) {
				return true
			}
			if name := names[x.Name] + "." + s.Sel.Name; !isMain || name != "context.Background" {
				calls = append(calls, set.Position(s.Pos()).String()+" "+name)
			}
			return true
		})
	}
	return calls
}

// TestOwnerlessCallsAreFound tries the search itself.
func TestOwnerlessCallsAreFound(t *testing.T) {
	file := filepath.Join(t.TempDir(), "main.go")
	require.NoError(t, os.WriteFile(file, []byte(`package main
import (
	"context"
	clock "time"
)
func main() { run(context.Background()); clock.Sleep(1) }
func run(ctx context.Context) { _, _ = context.TODO(), context.WithoutCancel(ctx); time.Sleep(1) }
var always = context.Background()
`), 0o600))
	var names []string
	for _, call := range callsIn(t, file, ownerless) {
		names = append(names, call[strings.LastIndexByte(call, ' ')+1:])
	}
	assert.Equal(t, []string{"time.Sleep", "context.TODO", "context.Background"}, names)
}
