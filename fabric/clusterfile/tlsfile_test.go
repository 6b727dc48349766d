package clusterfile_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/clusterfile"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// withRegistry is base with registry keys in line 2 and those that follow.
func withRegistry(t *testing.T, lines ...string) string {
	return edit(t, base, "name: msk1", "name: msk1\nregistry:\n  etcd:\n    "+strings.Join(lines, "\n    "))
}

var registryMistakes = []struct {
	name  string
	lines []string
	want  string
}{
	{"no endpoints", []string{"prefix: /x"}, `3: registry.etcd.endpoints: missing; name the members of etcd, for example https://10.10.0.11:2379`},
	{"an endpoint that is an address", []string{"endpoints: [10.10.0.11]"}, `4: registry.etcd.endpoints[0]: "10.10.0.11" is not the URL of a member of etcd; write it as https://10.10.0.11:2379`},
	{"an endpoint without a scheme", []string{`endpoints: ["10.10.0.11:2379"]`}, `4: registry.etcd.endpoints[0]: "10.10.0.11:2379" is not the URL of a member of etcd; write it as https://10.10.0.11:2379`},
	{"an endpoint of another scheme", []string{"endpoints: [ftp://10.10.0.11:2379]"}, `4: registry.etcd.endpoints[0]: "ftp://10.10.0.11:2379" is not the URL of a member of etcd; write it as https://10.10.0.11:2379`},
	{"an endpoint with a path", []string{"endpoints: [https://10.10.0.11:2379/v3]"}, `4: registry.etcd.endpoints[0]: "https://10.10.0.11:2379/v3" is not the URL of a member of etcd; write it as https://10.10.0.11:2379`},
	{"an endpoint without a port", []string{"endpoints: [https://10.10.0.11]"}, `4: registry.etcd.endpoints[0]: https://10.10.0.11 has no port; write https://10.10.0.11:2379, which is etcd's own`},
	{"an endpoint twice", []string{"endpoints: [https://a:2379, https://a:2379/]"}, `4: registry.etcd.endpoints[1]: https://a:2379 is already at registry.etcd.endpoints[0]; remove one`},
	{"endpoints with and without TLS", []string{"endpoints: [https://a:2379, http://b:2379]"}, `4: registry.etcd.endpoints[1]: http://b:2379 is http and registry.etcd.endpoints[0] is https; all members need the same`},
	{"too many endpoints", []string{"endpoints: [" + strings.Repeat("http://a:1, ", 17) + "]"}, `4: registry.etcd.endpoints: 17 items; at most 16 are allowed`},
	{"a prefix without a slash", []string{"endpoints: [http://a:1]", "prefix: vmfabric"}, `5: registry.etcd.prefix: "vmfabric" is not the beginning of the keys; write one such as /vmfabric, or leave the key out for that`},
	{"a prefix that is a way", []string{"endpoints: [http://a:1]", "prefix: /a/../b"}, `5: registry.etcd.prefix: "/a/../b" is not the beginning of the keys; write one such as /vmfabric, or leave the key out for that`},
	{"another key", []string{"endpoints: [http://a:1]", "user: root"}, `5: registry.etcd.user: unknown key; the keys here are endpoints, ca_file, cert_file, key_file, prefix`},
	{"no file", []string{"endpoints: [https://a:1]", `ca_file: ""`}, `5: registry.etcd.ca_file: empty; name the file with certificates, or leave the key out`},
	{"a certificate alone", []string{"endpoints: [https://a:1]", "cert_file: n.crt"}, `5: registry.etcd.cert_file: there is no key to the certificate; name its file under key_file`},
	{"a key alone", []string{"endpoints: [https://a:1]", "key_file: n.key"}, `5: registry.etcd.key_file: there is no certificate to the key; name its file under cert_file`},
	{"an authority without TLS", []string{"endpoints: [http://a:1]", "ca_file: ca.crt"}, `4: registry.etcd.endpoints[0]: http://a:1 is not encrypted, and there are files for TLS; write https, or leave ca_file, cert_file and key_file out`},
	{"a key of another certificate", []string{"endpoints: [https://a:1]", "cert_file: n.crt", "key_file: o.key"}, `5: registry.etcd.cert_file: it does not fit the key of key_file (tls: private key does not match public key); name the two files that were made together`},
	{"a file that is missing", []string{"endpoints: [https://a:1]", "cert_file: none.crt", "key_file: n.key"}, `5: registry.etcd.cert_file: DIR/none.crt does not exist; copy it here from where etcd's certificates are made, or correct the path`},
	{"a key that is missing", []string{"endpoints: [https://a:1]", "cert_file: n.crt", "key_file: none.key"}, `6: registry.etcd.key_file: DIR/none.key does not exist; copy it here from where etcd's certificates are made, or correct the path`},
	{"a key in place of a certificate", []string{"endpoints: [https://a:1]", "ca_file: n.key"}, `5: registry.etcd.ca_file: DIR/n.key has no certificate in PEM form; name the file that begins with -----BEGIN CERTIFICATE-----`},
	{"a key that is none", []string{"endpoints: [https://a:1]", "cert_file: n.crt", "key_file: text"}, `6: registry.etcd.key_file: DIR/text has no key in PEM form; name the file that begins with -----BEGIN`},
	{"a key that others can read", []string{"endpoints: [https://a:1]", "cert_file: n.crt", "key_file: open.key"}, `6: registry.etcd.key_file: DIR/open.key: open to others (mode 0644); run 'chmod 600' on it, and make a new one if they may have read it`},
	{"an authority that others can write", []string{"endpoints: [https://a:1]", "ca_file: open.crt"}, `5: registry.etcd.ca_file: DIR/open.crt: it can be written by others (mode 0666); run 'chmod go-w DIR/open.crt'`},
	{"a folder", []string{"endpoints: [https://a:1]", "ca_file: ."}, `5: registry.etcd.ca_file: DIR: not a regular file; name the file with the certificates`},
}

// registryFiles makes the files of the tests, and returns their folder.
func registryFiles(t *testing.T) string {
	dir, authority := t.TempDir(), labtest.NewAuthority(t)
	write := func(from, to string, mode os.FileMode) {
		b, err := os.ReadFile(from)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, to), b, 0o600))
		require.NoError(t, os.Chmod(filepath.Join(dir, to), mode))
	}
	cert, key := authority.Sign("n", time.Now().Add(time.Hour))
	write(authority.File, "ca.crt", 0o644)
	write(authority.File, "open.crt", 0o666)
	write(cert, "n.crt", 0o644)
	write(key, "n.key", 0o600)
	write(key, "open.key", 0o644)
	_, key = authority.Sign("o", time.Now().Add(time.Hour))
	write(key, "o.key", 0o600)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "text"), []byte("secret\n"), 0o600))
	return dir
}

func TestRegistryMistakes(t *testing.T) {
	dir := registryFiles(t)
	file := filepath.Join(dir, "cluster.yaml")
	for _, tt := range registryMistakes {
		t.Run(tt.name, func(t *testing.T) {
			_, err := clusterfile.Parse(file, []byte(withRegistry(t, tt.lines...)))
			assert.EqualError(t, err, file+":"+strings.ReplaceAll(tt.want, "DIR", dir))
		})
	}
	for _, text := range []string{"registry:", "registry: {}"} {
		_, err := clusterfile.Parse(file, []byte(edit(t, base, "name: msk1", "name: msk1\n"+text)))
		assert.EqualError(t, err, file+":2: registry: empty; say under etcd where the cluster's registry is, or leave the key out")
	}
}

func TestRegistryFiles(t *testing.T) {
	dir := registryFiles(t)
	file := filepath.Join(dir, "cluster.yaml")
	text := []byte(withRegistry(t, "endpoints: [https://10.10.0.11:2379]", "ca_file: ca.crt", "cert_file: "+filepath.Join(dir, "n.crt"), "key_file: n.key"))
	c, err := clusterfile.Parse(file, text)
	require.NoError(t, err)
	content := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		return string(b)
	}
	assert.Equal(t, &fabric.EtcdConfig{
		Endpoints: []string{"https://10.10.0.11:2379"}, Prefix: fabric.DefaultEtcdPrefix,
		CA: content("ca.crt"), Cert: content("n.crt"), Key: content("n.key"),
	}, c.Registry.Etcd)
	require.NoError(t, os.Remove(filepath.Join(dir, "n.key")))
	c, err = clusterfile.Parse(file, text, clusterfile.WithoutKey())
	require.NoError(t, err)
	assert.Empty(t, c.Registry.Etcd.Key, "a program that is no agent does without")
}
