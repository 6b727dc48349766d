package vmfabric_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// shipped are the programs that are installed, and what each links of testenv.
var shipped = map[string][]string{
	"./cmd/vmfabric":  {module + "/testenv/lab/core"}, // for vmfabric demo
	"./hooks/libvirt": nil,
	"./hooks/lxd":     nil,
	"./plugins/bird":  nil,
	"./plugins/frr":   nil,
}

// linked lists the packages below a path that others link, themselves among them.
func linked(t *testing.T, below string, packages ...string) (found []string) {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list", "-deps"}, packages...)...).Output()
	require.NoError(t, err)
	for _, path := range strings.Fields(string(out)) {
		if strings.HasPrefix(path, below) {
			found = append(found, path)
		}
	}
	return found
}

// TestProductLinksNoLaboratory: what is installed has of the laboratory no more than
// the demonstration needs, and no library of ours has any.
func TestProductLinksNoLaboratory(t *testing.T) {
	t.Parallel()
	for program, want := range shipped {
		assert.Equal(t, want, linked(t, module+"/testenv", program), program)
	}
	assert.Empty(t, linked(t, module+"/testenv", "./fabric/...", "./hooks/...", "./plugins"))
}

// TestListOfTheLaboratory: its documentation has each of its parts.
func TestListOfTheLaboratory(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("testenv/doc.go")
	require.NoError(t, err)
	out, err := exec.Command("go", "list", "./testenv/...").Output()
	require.NoError(t, err)
	for _, path := range strings.Fields(string(out)) {
		if part := strings.TrimPrefix(path, module+"/"); part != "testenv" {
			assert.Regexp(t, `(?m)^//   - `+part+` `, string(doc))
		}
	}
}

// TestPartsOfTheLaboratory: its core knows neither routers nor hypervisors nor clients nor
// machines, which do not know each other, but for clients in machines.
func TestPartsOfTheLaboratory(t *testing.T) {
	t.Parallel()
	const lab = module + "/testenv/lab/"
	for part, needs := range map[string][]string{
		"core": {"core"}, "routers": {"core", "routers"}, "hypervisors": {"cache", "core", "hypervisors"}, "clients": {"cache", "core", "machine", "clients"},
		"machine": {"cache", "core", "machine"},
	} {
		var want []string
		for _, need := range needs {
			want = append(want, lab+need)
		}
		assert.Equal(t, want, linked(t, module+"/testenv", "./testenv/lab/"+part), part)
	}
}

// TestLaboratoryDoesNothingByItself: a program that imports it is none of its
// processes, whatever it is called by.
func TestLaboratoryDoesNothingByItself(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testenv/lab/*/*.go")
	require.NoError(t, err)
	require.Greater(t, len(files), 30)
	for _, path := range files {
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		require.NoError(t, err)
		for _, d := range f.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil {
				assert.NotEqual(t, "init", f.Name.Name, path)
			}
		}
	}
}

// TestEtcdIsOnlyInItsBackend: the hooks, which start for each event of a guest, and
// those who embed the agent with a registry of their own do without etcd's client.
func TestEtcdIsOnlyInItsBackend(t *testing.T) {
	t.Parallel()
	const etcd = "go.etcd.io/"
	assert.NotEmpty(t, linked(t, etcd, "./fabric/etcd"))
	assert.Empty(t, linked(t, etcd, "./fabric", "./fabric/agent", "./fabric/clusterfile", "./fabric/disk", "./hooks/...", "./plugins/..."))
}
