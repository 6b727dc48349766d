package vmfabric_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const module = "github.com/vmfabric/vmfabric"

// floor gives the floor of a package of ours: below are those that fit the
// fabric to the world, above it who uses them, on top the programs.
func floor(path string) int {
	switch first, _, _ := strings.Cut(strings.TrimPrefix(path, module+"/"), "/"); first {
	case "fabric":
		return 0
	case "hooks", "plugins", "testenv", "internal":
		return 1
	}
	return 2
}

// TestNoImportRunsUpward holds the three floors, and that nothing needs cgo.
func TestNoImportRunsUpward(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,CgoFiles", "./...").Output()
	require.NoError(t, err)
	packages := 0
	for d := json.NewDecoder(strings.NewReader(string(out))); ; packages++ {
		var p struct {
			ImportPath string
			Imports    []string
			CgoFiles   []string
		}
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		assert.Empty(t, p.CgoFiles, p.ImportPath)
		for _, i := range p.Imports {
			if strings.HasPrefix(i, module) {
				assert.LessOrEqual(t, floor(i), floor(p.ImportPath), "%s imports %s", p.ImportPath, i)
			}
			if strings.HasPrefix(p.ImportPath, module+"/fabric/") || p.ImportPath == module+"/fabric" {
				assert.False(t, strings.HasPrefix(i, module+"/testenv"), "%s imports %s", p.ImportPath, i)
			}
			if p.ImportPath == module+"/fabric" && !strings.HasPrefix(i, module+"/fabric/internal/") {
				assert.NotContains(t, i, ".", "package fabric imports the standard library only, and parts of its own")
			}
		}
	}
	assert.Greater(t, packages, 10)
}
