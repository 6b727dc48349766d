package trusted

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// tree makes a folder with etc/cluster.yaml and a link to it.
func tree(t *testing.T) (dir string) {
	dir = t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "etc"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "etc", "cluster.yaml"), []byte("name: msk1\n"), 0o644))
	require.NoError(t, os.Symlink("etc/../etc/cluster.yaml", filepath.Join(dir, "link")))
	return dir
}

func TestCheck(t *testing.T) {
	asRoot := os.Geteuid() == 0
	for name, c := range map[string]struct {
		root   bool // what nobody else can set up
		change func(dir string) error
		at     string // what is refused, "" for nothing
		says   string
	}{
		"as it is":                {change: func(string) error { return nil }},
		"writable by all":         {false, func(dir string) error { return os.Chmod(dir+"/etc/cluster.yaml", 0o666) }, "/etc/cluster.yaml", "can be written by others (mode 0666); run 'chmod go-w "},
		"writable by all others":  {false, func(dir string) error { return os.Chmod(dir+"/etc/cluster.yaml", 0o646) }, "/etc/cluster.yaml", "(mode 0646)"},
		"writable by a group":     {true, func(dir string) error { return os.Chmod(dir+"/etc/cluster.yaml", 0o660) }, "/etc/cluster.yaml", "(mode 0660)"},
		"its folder is":           {false, func(dir string) error { return os.Chmod(dir+"/etc", 0o777) }, "/etc", "on its way can be written by others (mode 0777)"},
		"its folder, sticky":      {false, func(dir string) error { return os.Chmod(dir+"/etc", 0o777|fs.ModeSticky) }, "", ""},
		"the folder above":        {true, func(dir string) error { return os.Chmod(dir, 0o775) }, "", "on its way can be written by others"},
		"nobody's":                {true, func(dir string) error { return os.Chown(dir+"/etc/cluster.yaml", 65534, 0) }, "/etc/cluster.yaml", "belongs to user nobody, who could change it; run 'chown 0 "},
		"of a user without name":  {true, func(dir string) error { return os.Chown(dir+"/etc/cluster.yaml", 4242, 0) }, "/etc/cluster.yaml", "belongs to user 4242"},
		"its folder is nobody's":  {true, func(dir string) error { return os.Chown(dir+"/etc", 65534, 0) }, "/etc", "on its way belongs to user nobody"},
		"nobody's folder, sticky": {true, func(dir string) error { return os.Chown(dir+"/etc", 65534, 0) }, "/etc", "belongs to user nobody"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.root && !asRoot {
				t.Skip("not root")
			}
			dir := tree(t)
			require.NoError(t, c.change(dir))
			for _, path := range []string{dir + "/etc/cluster.yaml", dir + "/link", dir + "/etc/../etc/./cluster.yaml"} {
				err := Check(path)
				if c.says == "" {
					assert.NoError(t, err)
					continue
				}
				bad, ok := err.(*Error)
				require.True(t, ok, "%v", err)
				assert.ErrorContains(t, err, c.says)
				assert.Equal(t, path, bad.Path)
				if c.at != "" && path == dir+"/etc/cluster.yaml" {
					assert.Equal(t, dir+c.at, bad.At)
				}
				assert.Contains(t, bad.Text(), bad.WayOut)
			}
		})
	}
}

func TestLinks(t *testing.T) {
	dir := tree(t)
	require.NoError(t, os.Symlink("round", filepath.Join(dir, "round")))
	require.ErrorIs(t, Check(filepath.Join(dir, "round")), syscall.ELOOP)
	require.NoError(t, os.Symlink("nowhere", filepath.Join(dir, "dangling")))
	require.ErrorIs(t, Check(filepath.Join(dir, "dangling")), fs.ErrNotExist)
	require.ErrorIs(t, Check(filepath.Join(dir, "none")), fs.ErrNotExist)
	require.ErrorIs(t, Check(filepath.Join(dir, "etc", "cluster.yaml", "below")), syscall.ENOTDIR)

	// A link leads out of a good folder to a bad one.
	require.NoError(t, os.Mkdir(filepath.Join(dir, "bad"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "bad", "file"), nil, 0o600))
	require.NoError(t, os.Chmod(filepath.Join(dir, "bad"), 0o777))
	require.NoError(t, os.Symlink(filepath.Join(dir, "bad", "file"), filepath.Join(dir, "etc", "away")))
	require.ErrorContains(t, Check(filepath.Join(dir, "etc", "away")), "bad on its way can be written by others")
	if os.Geteuid() == 0 {
		require.NoError(t, os.Lchown(filepath.Join(dir, "link"), 4242, 0))
		require.ErrorContains(t, Check(filepath.Join(dir, "link")), "belongs to user 4242")
	}
}

// TestRelative: the folders above the working directory count.
func TestRelative(t *testing.T) {
	dir := tree(t)
	t.Chdir(filepath.Join(dir, "etc"))
	require.NoError(t, Check("cluster.yaml"))
	require.NoError(t, os.Chmod(dir+"/etc", 0o777))
	require.ErrorContains(t, Check("cluster.yaml"), "cluster.yaml: "+dir+"/etc on its way can be written")
}

func TestUserNamespaces(t *testing.T) {
	for uidMap, has := range map[string]bool{
		"         0          0 4294967295\n": true,
		"         0       1000          1\n": false,
		"         0     100000      65536\n": true,
		"0 1000 1\n1 100000 65533\n":         false,
		"0 1000 1\n1 100000 65534\n":         true,
		"":                                   false,
		"nonsense\n":                         false,
	} {
		assert.Equal(t, has, mapped(uidMap, 65534), uidMap)
	}
	confined := reader{uid: 0, foreign: 65534, confined: true}
	assert.True(t, confined.owns(65534), "root of outside")
	assert.False(t, confined.owns(1))
	assert.False(t, reader{uid: 0, foreign: 65534}.owns(65534))
	own := &syscall.Stat_t{Uid: 1000, Gid: 1000}
	assert.True(t, reader{uid: 1000}.private(own))
	assert.False(t, reader{uid: 0}.private(own))
	assert.False(t, reader{uid: 0}.private(&syscall.Stat_t{}))
	assert.False(t, reader{uid: 1000}.private(&syscall.Stat_t{Uid: 1000, Gid: 100}))
}
