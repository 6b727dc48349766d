package domxml

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestUserData(t *testing.T) {
	const space = ` xmlns:u="urn:vmfabric:user-data:1"`
	for name, c := range map[string]struct {
		metadata, want, err string
	}{
		"none":  {metadata: ``},
		"plain": {metadata: `<u:user-data` + space + `>#cloud-config&#10;a: &lt;b&gt;</u:user-data>`, want: "#cloud-config\na: <b>"},
		"CDATA": {metadata: `<user-data xmlns="urn:vmfabric:user-data:1"><![CDATA[#!/bin/sh
echo "<a>"]]></user-data>`, want: "#!/bin/sh\necho \"<a>\""},
		"base64":        {metadata: `<u:user-data` + space + ` encoding='base64'> I2Nsb3Vk LWNvbmZpZwo= </u:user-data>`, want: "#cloud-config\n"},
		"no base64":     {metadata: `<u:user-data` + space + ` encoding='base64'>#</u:user-data>`, err: "<user-data> is no base64: "},
		"encoding":      {metadata: `<u:user-data` + space + ` encoding='gzip'>a</u:user-data>`, err: `<user-data> has the encoding "gzip"; it takes base64, or none and plain text`},
		"of others":     {metadata: `<u:user-data xmlns:u="urn:other">a</u:user-data>`},
		"another place": {metadata: `<a:b xmlns:a="urn:a"><u:user-data` + space + `>a</u:user-data></a:b>`},
	} {
		t.Run(name, func(t *testing.T) {
			data, uuid, err := UserData([]byte("<domain type='kvm'><name>web</name><uuid>\n aaaaaaaa-0000-4000-8000-000000000001</uuid><metadata>" + c.metadata + "</metadata></domain>"))
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, c.want, string(data))
			assert.Equal(t, "aaaaaaaa-0000-4000-8000-000000000001", uuid)
		})
	}
	_, _, err := UserData([]byte("<domain><uuid>"))
	require.Error(t, err)
}

// TestUserDataIsNoneOfTheHooks: it changes nothing in what the domain is.
func TestUserDataIsNoneOfTheHooks(t *testing.T) {
	d, err := parseString(domain(`<u:user-data xmlns:u="urn:vmfabric:user-data:1">a</u:user-data>`, plug0))
	require.NoError(t, err)
	assert.False(t, d.Ours)
}

func FuzzUserData(f *testing.F) {
	f.Add([]byte(`<domain><metadata><user-data xmlns="urn:vmfabric:user-data:1" encoding="base64">YQ==</user-data></metadata></domain>`))
	f.Fuzz(func(_ *testing.T, text []byte) { _, _, _ = UserData(text) })
}
