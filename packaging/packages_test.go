package packaging

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vmfabric/vmfabric/internal/executable"
)

// packages is the directory with what "make packages" built.
var packages = flag.String("packages", "", "check the packages in this directory, with lintian and rpmlint")

// packaged is what is in a package's file for the packager.
type packaged struct {
	Name        string
	Description string
	Contents    []struct{ Src, Dst, Type, Packager string }
	Scripts     map[string]string
}

func described(t *testing.T) (all []packaged) {
	t.Helper()
	files, err := filepath.Glob("packages/*.yaml")
	require.NoError(t, err)
	require.Len(t, files, 4)
	for _, file := range files {
		var p packaged
		require.NoError(t, yaml.Unmarshal([]byte(read(t, file)), &p))
		assert.Equal(t, p.Name+".yaml", filepath.Base(file))
		for line := range strings.Lines(p.Description) {
			assert.LessOrEqual(t, len(line), 80, "rpmlint takes longer lines for an error: %s", line)
		}
		all = append(all, p)
	}
	return all
}

// TestPackagesHaveEverything: what make install installs is in one package each, and
// what the packages take from here is here.
func TestPackagesHaveEverything(t *testing.T) {
	bin, root := t.TempDir(), t.TempDir()
	for name := range programs {
		require.NoError(t, executable.Write(filepath.Join(bin, name), []byte("#!/bin/sh\necho "+name+"\n")))
	}
	out, err := install(t, bin, root, noGo)
	require.NoError(t, err, out)
	inside := map[string]string{} // package by path
	for _, p := range described(t) {
		for _, c := range p.Contents {
			if before, there := inside[c.Dst]; there && c.Packager == "" {
				assert.Fail(t, "in two packages", "%s: %s and %s", c.Dst, before, p.Name)
			}
			inside[c.Dst] = p.Name
			if !strings.HasPrefix(c.Src, "$") && c.Src != "" && c.Type != "symlink" {
				assert.FileExists(t, c.Src)
			}
		}
		for _, script := range p.Scripts {
			assert.FileExists(t, script)
			assert.NoError(t, exec.Command("sh", "-n", script).Run(), script)
		}
	}
	moved := strings.NewReplacer("/usr/local/", "/usr/", "/etc/systemd/system/", "/usr/lib/systemd/system/")
	require.NoError(t, filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			assert.Contains(t, inside, moved.Replace(strings.TrimPrefix(path, root)))
		}
		return err
	}))
}

// TestPackages: lintian and rpmlint find no error in what was built, its programs are
// where its units and hooks look for them, and a second build has the same bytes.
func TestPackages(t *testing.T) {
	if *packages == "" {
		t.Skip("no -packages; make packages-check builds and checks them")
	}
	debs, err := filepath.Glob(filepath.Join(*packages, "*.deb"))
	require.NoError(t, err)
	require.Len(t, debs, 4)
	rpms, err := filepath.Glob(filepath.Join(*packages, "*.rpm"))
	require.NoError(t, err)
	require.Len(t, rpms, 4)
	out, err := exec.Command("lintian", append([]string{"--allow-root", "--fail-on", "error"}, debs...)...).CombinedOutput()
	assert.NoError(t, err, string(out))
	// It unpacks what it looks at, and the archives in these packages have absolute
	// names: as root it would install them.
	rpmlint := exec.Command("rpmlint", append([]string{"--rpmlintrc", "packages/rpmlintrc"}, rpms...)...)
	const nobody = 65534
	rpmlint.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	rpmlint.Env = append(os.Environ(), "HOME=/nonexistent")
	out, err = rpmlint.CombinedOutput()
	assert.NoError(t, err, string(out))
	assert.Contains(t, string(out), " 0 errors")

	root := t.TempDir()
	for _, deb := range debs {
		require.NoError(t, exec.Command("dpkg-deb", "-x", deb, root).Run(), deb)
	}
	units, err := filepath.Glob(filepath.Join(root, "usr/lib/systemd/system/*.service"))
	require.NoError(t, err)
	require.Len(t, units, 2)
	for _, unit := range units {
		starts := regexp.MustCompile(`(?m)^ExecStart=(\S+)`).FindStringSubmatch(read(t, unit))
		require.NotNil(t, starts, unit)
		assert.FileExists(t, root+starts[1], unit)
	}
	hook, err := os.Readlink(filepath.Join(root, "etc/libvirt/hooks/qemu.d/vmfabric"))
	require.NoError(t, err)
	assert.FileExists(t, root+hook)

	bin, err := filepath.Abs("../bin")
	require.NoError(t, err)
	again := t.TempDir()
	out, err = exec.Command("packages/build", bin, again).CombinedOutput()
	require.NoError(t, err, string(out))
	for _, one := range append(debs, rpms...) {
		a, err := os.ReadFile(one)
		require.NoError(t, err)
		b, err := os.ReadFile(filepath.Join(again, filepath.Base(one)))
		require.NoError(t, err)
		assert.True(t, bytes.Equal(a, b), "%s is not the same the second time", filepath.Base(one))
	}
}
