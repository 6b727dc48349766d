package e2e

import (
	"os/exec"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// TestVersions: every program of a release says which it is, also without a place in a
// cluster, and with no word more.
func TestVersions(t *testing.T) {
	labtest.Long(t) // the programs are not built else
	t.Parallel()
	for name, path := range map[string]string{
		"vmfabric":              program,
		"vmfabric-hook-libvirt": hookProgram,
		"vmfabric-hook-lxd":     lxdHookProgram,
		"vmfabric-plugin-bird":  program + "-plugin-bird",
		"vmfabric-plugin-frr":   program + "-plugin-frr",
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), path, "--version")
			cmd.Env = []string{} // Go's own default is this process's
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
			assert.Regexp(t, `^`+name+` `+programVersion+` \(go\S+, linux/\S+\)\n$`, string(out))
		})
	}
}
