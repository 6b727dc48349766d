package vmfabric_test

import (
	"encoding/json"
	"errors"
	"go/ast"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const module = "github.com/vmfabric/vmfabric"

// listed is a package as the go command lists it.
type listed struct {
	ImportPath string
	Imports    []string
	CgoFiles   []string
}

// floor gives the floor of a package of ours: below are those that fit the
// fabric to the world, above it who uses them, on top the programs. Those below
// internal that import nothing of ours are for everybody.
func floor(path string, tools map[string]bool) int {
	if tools[path] {
		return 0
	}
	switch first, _, _ := strings.Cut(strings.TrimPrefix(path, module+"/"), "/"); first {
	case "fabric":
		return 0
	case "hooks", "plugins", "testenv", "internal":
		return 1
	}
	return 2
}

// core reports whether a package has the words of the fabric, or is the agent.
func core(path string) bool {
	return path == module+"/fabric" || path == module+"/fabric/agent" || strings.HasPrefix(path, module+"/fabric/agent/")
}

// decisions are the packages that decide by plain values, beside those of the agent.
var decisions = []string{"fabric/internal/allocator", "fabric/kernel/internal/ledger"}

// decides reports whether a package decides by plain values.
func decides(path string) bool {
	path = strings.TrimPrefix(path, module+"/")
	return strings.HasPrefix(path, "fabric/agent/internal/") || slices.Contains(decisions, path)
}

// TestFewInterfaces: whoever brings a part of his own has at most ten contracts to
// know.
func TestFewInterfaces(t *testing.T) {
	var found []string
	declared := regexp.MustCompile(`(?m)^type ([A-Z]\w*)(\[.*\])? interface`)
	files, err := filepath.Glob("fabric/*.go")
	require.NoError(t, err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, m := range declared.FindAllStringSubmatch(string(text), -1) {
			found = append(found, m[1])
		}
	}
	assert.Contains(t, found, "Dataplane")
	assert.LessOrEqual(t, len(found), 10, "%v", found)
}

// TestNoImportRunsUpward holds the three floors, and that nothing needs cgo.
func TestNoImportRunsUpward(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,CgoFiles", "./...").Output()
	require.NoError(t, err)
	var packages []listed
	tools := map[string]bool{}
	ours := func(path string) bool { return strings.HasPrefix(path, module) }
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		packages = append(packages, p)
		tools[p.ImportPath] = strings.HasPrefix(p.ImportPath, module+"/internal/") && !slices.ContainsFunc(p.Imports, ours)
	}
	for _, p := range packages {
		assert.Empty(t, p.CgoFiles, p.ImportPath)
		for _, i := range p.Imports {
			if ours(i) {
				assert.LessOrEqual(t, floor(i, tools), floor(p.ImportPath, tools), "%s imports %s", p.ImportPath, i)
			}
			if strings.HasPrefix(p.ImportPath, module+"/fabric/") || p.ImportPath == module+"/fabric" {
				assert.False(t, strings.HasPrefix(i, module+"/testenv"), "%s imports %s", p.ImportPath, i)
			}
			if core(p.ImportPath) && !core(i) && !strings.HasPrefix(i, module+"/fabric/internal/") && i != module+"/internal/oneline" && i != module+"/internal/plural" {
				assert.NotContains(t, i, ".", "%s imports the standard library only, and parts of its own", p.ImportPath)
			}
			if p.ImportPath == module+"/fabric" {
				assert.NotEqual(t, module+"/fabric/agent", i)
			}
			if decides(p.ImportPath) {
				assert.NotContains(t, []string{"context", "log", "log/slog", "net", "os", "sync"}, i, "%s decides by plain values", p.ImportPath)
			}
		}
	}
	assert.Greater(t, len(packages), 10)
}

// TestPackagesAreNamed: who looks for a package finds it in docs/architecture.md, by its
// path or by the end of it.
func TestPackagesAreNamed(t *testing.T) {
	page, err := os.ReadFile("docs/architecture.md")
	require.NoError(t, err)
	out, err := exec.Command("go", "list", "./...").Output()
	require.NoError(t, err)
	for _, path := range strings.Fields(string(out)) {
		if path = strings.TrimPrefix(strings.TrimPrefix(path, module), "/"); path == "" || strings.HasPrefix(path, "plugins/internal/testplugin/") {
			continue
		}
		named := strings.Contains(string(page), "`"+path+"`") || strings.Contains(string(page), "`"+path[strings.LastIndexByte(path, '/')+1:]+"`")
		assert.True(t, named, "docs/architecture.md does not name %s", path)
	}
}

// TestHypervisorCoreKnowsNoHypervisor holds that what all sources share depends
// on none of them, nor on a client of theirs.
func TestHypervisorCoreKnowsNoHypervisor(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{join .Imports "\n"}}`, "./fabric/internal/hypervisor").Output()
	require.NoError(t, err)
	imports := strings.Fields(string(out))
	assert.Contains(t, imports, module+"/fabric")
	for _, i := range imports {
		if strings.Contains(i, ".") {
			assert.Contains(t, []string{
				module + "/fabric", module + "/internal/backoff", module + "/internal/oneline", module + "/internal/signal", "golang.org/x/sync/errgroup",
			}, i)
		}
	}
}

// TestAnswersDependOnTheirInput holds that what a guest is told of its network is
// decided by plain values: nothing there has a socket, a clock, a lock, randomness or a
// log.
func TestAnswersDependOnTheirInput(t *testing.T) {
	const dir = "./fabric/autoconf"
	out, err := exec.Command("go", "list", "-f", `{{join .Imports "\n"}}`, dir).Output()
	require.NoError(t, err)
	imports := strings.Fields(string(out))
	assert.Contains(t, imports, "github.com/insomniacslk/dhcp/dhcpv4")
	for _, i := range imports {
		for _, part := range []string{"context", "io", "log", "math/rand", "os", "sync", "syscall", "golang.org/x/sys"} {
			assert.False(t, i == part || strings.HasPrefix(i, part+"/"), "%s imports %s", dir, i)
		}
	}
	files, _ := parsed(t, "fabric/autoconf")
	for path, f := range files {
		ast.Inspect(f, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, _ := s.X.(*ast.Ident); x != nil {
				name := x.Name + "." + s.Sel.Name
				assert.NotContains(t, []string{"time.Now", "time.Since", "net.Dial", "net.Listen", "net.Interfaces", "dhcpv4.New", "dhcpv6.NewMessage"}, name, path)
			}
			return true
		})
	}
}

// TestSpeakerStandsAlone holds that whoever embeds the speaker gets no reflector
// with it, nor the router of demonstrations, and that the two stand alone likewise.
func TestSpeakerStandsAlone(t *testing.T) {
	apart := []string{module + "/fabric/gobgp", module + "/fabric/gobgp/reflector", module + "/fabric/gobgp/router"}
	for _, one := range apart {
		out, err := exec.Command("go", "list", "-deps", one).Output()
		require.NoError(t, err)
		deps := strings.Fields(string(out))
		assert.Contains(t, deps, module+"/fabric/gobgp/internal/peering")
		for _, other := range apart {
			assert.Equal(t, one == other, slices.Contains(deps, other), "%s needs %s", one, other)
		}
		assert.NotContains(t, deps, module+"/fabric/gobgp/internal/gobgptest", "%s needs a package of tests", one)
	}
}

// TestKernelHasOneNetlink holds that fabric/kernel opens sockets of rtnetlink in one
// package alone, which knows nothing of the fabric, and captures in another, which
// knows nothing of rtnetlink.
func TestKernelHasOneNetlink(t *testing.T) {
	for dir, ours := range map[string][]string{
		"./fabric/kernel/internal/rtnl":    {},
		"./fabric/kernel/internal/capture": {module + "/fabric"},
		"./fabric/kernel/internal/nflog":   {module + "/fabric"},
	} {
		out, err := exec.Command("go", "list", "-f", `{{join .Imports "\n"}}`, dir).Output()
		require.NoError(t, err)
		for _, i := range strings.Fields(string(out)) {
			if strings.HasPrefix(i, module) {
				assert.Contains(t, ours, i, dir)
			}
		}
	}
	files, err := filepath.Glob("fabric/kernel/*.go")
	require.NoError(t, err)
	more, err := filepath.Glob("fabric/kernel/internal/*/*.go")
	require.NoError(t, err)
	for _, path := range append(files, more...) {
		if strings.HasSuffix(path, "_test.go") || strings.HasPrefix(path, "fabric/kernel/internal/rtnl/") {
			continue
		}
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		assert.NotContains(t, string(text), "NETLINK_ROUTE", path)
		assert.NotContains(t, string(text), "AF_NETLINK", path)
	}
}
