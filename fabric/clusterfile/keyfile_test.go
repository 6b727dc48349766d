package clusterfile_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric/clusterfile"
)

func TestKeyFile(t *testing.T) {
	dir := t.TempDir()
	file, key := filepath.Join(dir, "cluster.yaml"), filepath.Join(dir, "cluster.key")
	const good = "n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg="
	const command = "(umask 077; head -c 32 /dev/urandom | base64 > "
	for _, tt := range []struct {
		name, content string
		mode          fs.FileMode
		owner         int
		key           string // or
		want          string // the error
	}{
		{"as the command makes it", good + "\n", 0o600, 0, good, ""},
		{"read only, without a line end", good, 0o400, 0, good, ""},
		{"as short as may be", "0123456789abcdef\n", 0o600, 0, "0123456789abcdef", ""},
		{"too short", "0123456789abcde\n", 0o600, 0, "", key + " holds 15 bytes, which can be guessed; make one of at least 16: " + command + key + ")"},
		{"empty", "", 0o600, 0, "", key + " holds 0 bytes, which can be guessed; make one of at least 16: " + command + key + ")"},
		{"two lines", good + "\n" + good + "\n", 0o600, 0, "", key + " has a control character or a second line; make it with " + command + key + ")"},
		{"too long", strings.Repeat("x", 4097), 0o600, 0, "", key + ": 4097 bytes; a key has at most 4096"},
		{"readable by the group", good, 0o640, 0, "", key + ": open to others (mode 0640); run 'chmod 600' on it, and make a new one if they may have read it"},
		{"writable by all", good, 0o602, 0, "", key + ": open to others (mode 0602); run 'chmod 600' on it, and make a new one if they may have read it"},
		{"of another user", good, 0o600, 65534, "", key + ": belongs to user 65534, who can read and change it; run 'chown root' on it, and make a new one if that user may have read it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			require.NoError(t, os.RemoveAll(key))
			require.NoError(t, os.WriteFile(key, []byte(tt.content), 0o600))
			require.NoError(t, os.Chmod(key, tt.mode))
			if tt.owner != 0 {
				if os.Geteuid() != 0 {
					t.Skip("another owner needs root")
				}
				require.NoError(t, os.Chown(key, tt.owner, 0))
			}
			for _, written := range []string{"cluster.key", key} {
				text := []byte(edit(t, base, "name: msk1", "name: msk1\nkey_file: "+written))
				c, err := clusterfile.Parse(file, text)
				if tt.want != "" {
					require.EqualError(t, err, file+":2: key_file: "+tt.want)
				} else {
					require.NoError(t, err)
					assert.Equal(t, tt.key, c.Key)
				}
				c, err = clusterfile.Parse(file, text, clusterfile.WithoutKey())
				require.NoError(t, err)
				assert.Empty(t, c.Key)
			}
		})
	}
	t.Run("in a folder that others can write", func(t *testing.T) {
		open := filepath.Join(dir, "open")
		require.NoError(t, os.Mkdir(open, 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(open, "cluster.key"), []byte(good), 0o600))
		require.NoError(t, os.Chmod(open, 0o777))
		_, err := clusterfile.Parse(file, []byte(edit(t, base, "name: msk1", "name: msk1\nkey_file: open/cluster.key")))
		require.ErrorContains(t, err, file+":2: key_file: "+filepath.Join(open, "cluster.key")+": ")
		assert.ErrorContains(t, err, open)
		t.Log(err)
	})
	pipe := filepath.Join(dir, "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	for _, tt := range []struct{ name, written, want string }{
		{"missing", "none.key", filepath.Join(dir, "none.key") + " does not exist; make it once, and copy it to all nodes: " + command + filepath.Join(dir, "none.key") + ")"},
		{"a directory", ".", dir + ": not a regular file; name the file with the cluster's key"},
		{"a pipe", "pipe", pipe + ": not a regular file; name the file with the cluster's key"},
		{"a device", "/dev/zero", "/dev/zero: not a regular file; name the file with the cluster's key"},
		{"no name", `""`, "empty; name the file with the cluster's key, or leave the key out"},
		{"unreadable", "cluster.yaml/x", filepath.Join(file, "x") + ": not a directory; run this as the file's owner, or correct the path"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			require.NoError(t, os.WriteFile(file, nil, 0o600))
			_, err := clusterfile.Parse(file, []byte(edit(t, base, "name: msk1", "name: msk1\nkey_file: "+tt.written)))
			require.EqualError(t, err, file+":2: key_file: "+tt.want)
			assert.NotErrorIs(t, err, fs.ErrNotExist)
		})
	}
}
