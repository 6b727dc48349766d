package faults_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/testenv/faults"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

var update = flag.Bool("update", false, "write the table of docs/reliability.md anew")

// TestDocumentation: docs/reliability.md has the table of this package, with what a run
// measured of each fault; each test that it names exists.
func TestDocumentation(t *testing.T) {
	labtest.Documented(t, "../../docs/reliability.md", "testenv/faults", faults.Table(), *update)
	names := map[string]bool{}
	for _, r := range faults.Rows {
		assert.False(t, names[r.Name], "%q twice", r.Name)
		names[r.Name] = true
		require.NotEmpty(t, r.Shown, r.Name)
		labtest.Declared(t, "../..", r.Shown...)
		assert.NotEmpty(t, r.Measured(), "%q was never measured", r.Name)
	}
	kept, err := os.ReadFile("figures.tsv")
	require.NoError(t, err)
	for line := range strings.Lines(string(kept)) {
		name, _, _ := strings.Cut(line, "\t")
		assert.True(t, names[name], "figures of %q, which is no fault", name)
	}
}

// TestKeep: a figure takes the place of an earlier one, and of no other.
func TestKeep(t *testing.T) {
	file := filepath.Join(t.TempDir(), "figures.tsv")
	require.NoError(t, faults.Keep(file, "one", faults.Count{Lost: 3, Sent: 12345, Right: 1234 * time.Millisecond}))
	require.NoError(t, faults.Keep(file, "another one", faults.Count{Sent: 999, Control: 2, Right: 12345678}))
	require.NoError(t, faults.Keep(file, "one", faults.Count{Lost: 1234567, Sent: 12345678, Right: 90 * time.Second, More: "three starts"}))
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, "another one\t0 of 999 lost (2 of the control probe); right after 10ms\n"+
		"one\t1,234,567 of 12,345,678 lost; right after 1m30s; three starts\n", string(text))
}
