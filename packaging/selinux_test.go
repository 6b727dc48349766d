package packaging

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// TestSELinuxModule: the module is one that can be installed. Whether a policy lets the
// agent and the hook do their work, only a machine with that policy shows.
func TestSELinuxModule(t *testing.T) {
	labtest.Need(t, "checkmodule", "semodule_package")
	dir := t.TempDir()
	module, pkg := filepath.Join(dir, "vmfabric.mod"), filepath.Join(dir, "vmfabric.pp")
	for _, command := range [][]string{
		{"checkmodule", "-M", "-m", "-o", module, "selinux/vmfabric.te"},
		{"semodule_package", "-o", pkg, "-m", module, "-f", "selinux/vmfabric.fc"},
	} {
		out, err := exec.CommandContext(t.Context(), command[0], command[1:]...).CombinedOutput()
		require.NoError(t, err, "%v: %s", command, out)
	}
	assert.FileExists(t, pkg)
}

// TestSELinuxLabels: what the packages and make install install, and what the agent makes,
// has the type that the module means for it.
func TestSELinuxLabels(t *testing.T) {
	text := read(t, "selinux/vmfabric.te")
	label := func(path string) (types []string) {
		for _, line := range strings.Split(strings.TrimSpace(read(t, "selinux/vmfabric.fc")), "\n") {
			fields := strings.Fields(line)
			if regexp.MustCompile("^" + fields[0] + "$").MatchString(path) {
				types = append(types, strings.Split(fields[len(fields)-1], ":")[2])
			}
		}
		return types
	}
	runtime := strings.Replace(hooks.DefaultSocket, "/run/", "/var/run/", 1) // as file contexts of RHEL have it
	for path, want := range map[string]string{
		"/usr/sbin/vmfabric": "vmfabric_exec_t", "/usr/local/sbin/vmfabric": "vmfabric_exec_t",
		"/usr/lib/vmfabric/hook-libvirt": "vmfabric_hook_exec_t", "/etc/libvirt/hooks/qemu.d/vmfabric": "vmfabric_hook_exec_t",
		"/var/lib/vmfabric": "vmfabric_var_lib_t", "/var/lib/vmfabric/guests/web": "vmfabric_var_lib_t",
		runtime: "vmfabric_runtime_t", filepath.Dir(runtime): "vmfabric_runtime_t",
	} {
		assert.Equal(t, []string{want}, label(path), path)
		assert.Regexp(t, `(?m)^type `+want+`,`, text)
	}
	assert.Empty(t, label("/etc/libvirt/hooks/qemu"), "which others may have")
	installed := map[string]bool{}
	for _, p := range described(t) {
		for _, c := range p.Contents {
			installed[c.Dst] = true
		}
	}
	for _, path := range []string{"/usr/lib/vmfabric/hook-libvirt", "/etc/libvirt/hooks/qemu.d/vmfabric"} {
		assert.True(t, installed[path], path)
	}
}
