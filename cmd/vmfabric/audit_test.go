package main

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/hooks"
)

// TestAuditPassesEveryLevel: the agent's log has the audit log whatever else it leaves
// out, and by its name.
func TestAuditPassesEveryLevel(t *testing.T) {
	for format, want := range map[string]string{"text": "level=AUDIT msg=request", "json": `"level":"AUDIT","msg":"request"`} {
		var out bytes.Buffer
		log, err := newLogger(&out, "error", format)
		require.NoError(t, err)
		log.Log(t.Context(), hooks.LevelAudit, "request")
		log.Warn("left out")
		assert.Contains(t, out.String(), want)
		assert.NotContains(t, out.String(), "left out")
	}
}
