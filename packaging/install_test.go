package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vmfabric/vmfabric/internal/executable"
)

var programs = map[string]string{ // of bin, and where they go
	"vmfabric":              "/usr/local/sbin/vmfabric",
	"vmfabric-hook-libvirt": "/etc/libvirt/hooks/qemu.d/vmfabric",
	"vmfabric-hook-lxd":     "/usr/local/lib/vmfabric/hook-lxd",
	"vmfabric-plugin-bird":  "/usr/local/lib/vmfabric/plugin-bird",
	"vmfabric-plugin-frr":   "/usr/local/lib/vmfabric/plugin-frr",
}

// noGo is that of a node.
const noGo = "/nonexistent/go"

// install runs make install.
func install(t *testing.T, bin, root, compiler string) (string, error) {
	if _, err := exec.LookPath("make"); err != nil {
		t.Skip(err)
	}
	cmd := exec.CommandContext(t.Context(), "make", "-C", "..", "install", "BIN="+bin, "DESTDIR="+root, "GO="+compiler, "VERSION=x")
	cmd.Env = append(os.Environ(), "MAKEFLAGS=", "MAKELEVEL=")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestInstall: a node has what was built elsewhere, and no Go.
func TestInstall(t *testing.T) {
	bin, root := t.TempDir(), t.TempDir()
	out, err := install(t, bin, root, noGo)
	require.Error(t, err)
	assert.Contains(t, out, "is not built, and there is no Go here; run make build where there is, and copy "+bin+"/")

	for name := range programs {
		require.NoError(t, executable.Write(filepath.Join(bin, name), []byte("#!/bin/sh\necho "+name+"\n")))
	}
	out, err = install(t, bin, root, noGo)
	require.NoError(t, err, out)
	assert.Contains(t, out, "installed below "+root+": vmfabric\n", "what the program says of its version")
	assert.NotContains(t, out, "older")
	for name, path := range programs {
		said, err := exec.Command(root + path).Output()
		require.NoError(t, err)
		assert.Equal(t, name, strings.TrimSpace(string(said)))
	}
	for _, path := range []string{"/etc/systemd/system/vmfabric.service", "/etc/systemd/system/vmfabric-reflector@.service", "/etc/sysctl.d/90-vmfabric.conf"} {
		assert.FileExists(t, root+path)
	}
}

// TestInstallOfWhatIsOld: programs that are older than their sources are built anew
// where there is Go, and are said to be old where there is none.
func TestInstallOfWhatIsOld(t *testing.T) {
	const newer = "version of now"
	compiler := filepath.Join(t.TempDir(), "go")
	require.NoError(t, executable.Write(compiler, []byte(`#!/bin/sh
while [ "$1" != -o ]; do shift; done
printf '#!/bin/sh\necho `+newer+`\n' >"$2" && chmod 755 "$2"
`)))
	for _, tt := range []struct {
		name, compiler string
		old            bool
		want           string
	}{
		{"old, with Go", compiler, true, newer},
		{"new, with Go", compiler, false, "version of before"},
		{"old, without Go", noGo, true, "version of before"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bin, root := t.TempDir(), t.TempDir()
			for name := range programs {
				path := filepath.Join(bin, name)
				require.NoError(t, executable.Write(path, []byte("#!/bin/sh\necho version of before\n")))
				if tt.old && name == "vmfabric-plugin-frr" { // one is enough
					require.NoError(t, os.Chtimes(path, time.Unix(1e9, 0), time.Unix(1e9, 0)))
				}
			}
			out, err := install(t, bin, root, tt.compiler)
			require.NoError(t, err, out)
			assert.Contains(t, out, "installed below "+root+": "+tt.want+"\n")
			assert.Equal(t, tt.old, strings.Contains(out, "vmfabric-plugin-frr is older than its sources"), out)
			assert.Equal(t, tt.old && tt.compiler == noGo, strings.Contains(out, "there is no Go here"), out)
			for _, path := range programs {
				said, err := exec.Command(root + path).Output()
				require.NoError(t, err)
				assert.Equal(t, tt.want, strings.TrimSpace(string(said)))
			}
		})
	}
}

// TestSettingsCount: those of the sysctl file count once it is installed, but for
// what is installed for another machine.
func TestSettingsCount(t *testing.T) {
	dir := t.TempDir()
	called := filepath.Join(dir, "called")
	sysctl := filepath.Join(dir, "sysctl")
	require.NoError(t, executable.Write(sysctl, []byte("#!/bin/sh\necho \"$@\" >> "+called+"\n")))
	for _, root := range []string{"", "/srv/root"} {
		cmd := exec.CommandContext(t.Context(), "make", "-n", "--no-print-directory", "-C", "..", "install", "DESTDIR="+root, "SYSCTL="+sysctl)
		cmd.Env = append(os.Environ(), "MAKEFLAGS=", "MAKELEVEL=")
		out, err := cmd.Output()
		require.NoError(t, err)
		last := string(out)[strings.LastIndex(string(out), "test -n"):]
		require.NoError(t, exec.Command("sh", "-c", last).Run())
	}
	said, err := os.ReadFile(called)
	require.NoError(t, err)
	assert.Equal(t, "-q -p /etc/sysctl.d/90-vmfabric.conf\n", string(said), "once")
}

// TestUnits: systemd knows every directive, and both services are bounded.
func TestUnits(t *testing.T) {
	dir := t.TempDir()
	for name, as := range map[string]string{"vmfabric.service": "vmfabric.service", "vmfabric-reflector@.service": "vmfabric-reflector@rr1.service"} {
		unit := read(t, name)
		for _, line := range []string{
			"SystemCallFilter=@system-service", "SystemCallFilter=~@privileged @resources", "SystemCallErrorNumber=EPERM",
			"NoNewPrivileges=yes", "ProtectSystem=strict", "Type=notify",
		} {
			assert.Contains(t, unit, "\n"+line+"\n", name)
		}
		assert.Regexp(t, `(?m)^MemoryHigh=[0-9]+G$`, unit, name)
		assert.Regexp(t, `(?m)^MemoryMax=[0-9]+G$`, unit, name)
		assert.Regexp(t, `(?m)^Environment=GOMEMLIMIT=[0-9]+MiB$`, unit, name)

		if _, err := exec.LookPath("systemd-analyze"); err != nil {
			continue
		}
		path := filepath.Join(dir, as)
		here := regexp.MustCompile(`(?m)^ExecStart=\S+`).ReplaceAllString(unit, "ExecStart=/bin/true")
		require.NoError(t, os.WriteFile(path, []byte(here), 0o644))
		out, err := exec.CommandContext(t.Context(), "systemd-analyze", "verify", "--man=no", path).CombinedOutput()
		require.NoError(t, err, "%s: %s", name, out)
		assert.NotContains(t, string(out), dir, "what it says of this file")
	}
}
