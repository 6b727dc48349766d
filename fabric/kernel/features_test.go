package kernel

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// kernelTable is the table of docs/versions.md.
func kernelTable() string {
	var b strings.Builder
	b.WriteString("| part of the kernel | since | used for | without it |\n|---|---|---|---|\n")
	for _, f := range featureTable {
		from := f.parts
		if f.since != "" {
			from = f.since
		}
		if f.source != "" {
			from += fmt.Sprintf(" ([%s](https://git.kernel.org/torvalds/c/%[1]s))", f.source)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", f.name, from, f.use, f.without)
	}
	return b.String()
}

// TestVersionsTable holds docs/versions.md to the features that are tried.
func TestVersionsTable(t *testing.T) {
	text, err := os.ReadFile("../../docs/versions.md")
	require.NoError(t, err)
	assert.True(t, strings.Contains(string(text), kernelTable()), "put this into docs/versions.md:\n%s", kernelTable())
}

// TestTablesAreOpenedOneWay: a connection that [openTables] did not open can wait for ever.
func TestTablesAreOpenedOneWay(t *testing.T) {
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	opens := map[string]int{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		if n := strings.Count(string(text), "nftables.New("); n > 0 && !strings.HasSuffix(file, "_test.go") {
			opens[file] = n
		}
	}
	assert.Equal(t, map[string]int{"tables.go": 1}, opens)
}
