package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestDemoDownOfOthers: a note that somebody else could have written ends no
// process, and one that somebody put in the way is not written through.
func TestDemoDownOfOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root")
	}
	victim := exec.Command("sleep", "600")
	require.NoError(t, victim.Start())
	t.Cleanup(func() { _ = victim.Process.Kill(); _ = victim.Wait() })
	pid := victim.Process.Pid
	note, err := json.Marshal(standing{pid, startTime(pid)})
	require.NoError(t, err)
	for name, make := range map[string]func(path string) error{
		"another user's": func(path string) error { return os.Chown(path, 4242, 4242) },
		"everybody's":    func(path string) error { return os.Chmod(path, 0o666) },
		"a link": func(path string) error {
			elsewhere := path + ".elsewhere"
			if err := os.Rename(path, elsewhere); err != nil {
				return err
			}
			return os.Symlink(elsewhere, path)
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "vmfabric-demo-0.json")
			require.NoError(t, os.WriteFile(path, note, 0o600))
			require.NoError(t, make(path))
			for _, flag := range []string{"--down", "--keep"} {
				_, errs, code := try("demo", flag, "--record", path)
				assert.Equal(t, exitBad, code)
				assert.Contains(t, errs, "remove it, or set TMPDIR to a folder of your own")
			}
			assert.Equal(t, note, must(os.ReadFile(path)))
			assert.NotEmpty(t, startTime(pid), "it runs")
			require.ErrorIs(t, recordStanding(path), os.ErrExist)
		})
	}
	t.Run("of another process", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "vmfabric-demo-0.json")
		require.NoError(t, os.WriteFile(path, must(json.Marshal(standing{pid, "1"})), 0o600))
		out, errs, code := try("demo", "--down", "--record", path)
		assert.Zero(t, code, errs)
		assert.Contains(t, out, "no demonstration is standing")
		assert.NotEmpty(t, startTime(pid), "it runs")
		assert.NoFileExists(t, path)
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestCheckPlugins: a plugin that others could change is a mistake of the cluster.
func TestCheckPlugins(t *testing.T) {
	dir := t.TempDir()
	plugin, file := filepath.Join(dir, "plugin"), filepath.Join(dir, "cluster.yaml")
	require.NoError(t, os.WriteFile(plugin, nil, 0o755))
	text := string(must(os.ReadFile("../../fabric/clusterfile/testdata/cluster.yaml")))
	for _, key := range []string{"speaker: " + plugin, "resolver: " + plugin, "observers: [" + plugin + "]"} {
		require.NoError(t, os.WriteFile(file, []byte(text+"\n"+key+"\n"), 0o600))
		require.NoError(t, os.Chmod(plugin, 0o755))
		_, errs, code := try("check", file)
		require.Zero(t, code, errs)
		require.NoError(t, os.Chmod(plugin, 0o777))
		_, errs, code = try("check", file)
		assert.Equal(t, exitBad, code)
		assert.Contains(t, errs, "plugin "+plugin+": it can be written by others (mode 0777); run 'chmod go-w "+plugin+"'")
	}
	require.NoError(t, os.Remove(plugin))
	_, errs, code := try("check", file)
	assert.Zero(t, code, "it may be on the nodes alone: %s", errs)
	assert.Contains(t, errs, "warning: observers[0]: there is no plugin "+plugin+" on this machine; install it on the nodes, or correct the path")
}
