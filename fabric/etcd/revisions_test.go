package etcd

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// TestRevisionsOfKeys: each key has its own, and comes back as it was.
func TestRevisionsOfKeys(t *testing.T) {
	c := testCache()
	k := c.keys
	all := []string{
		k.address(netip.MustParsePrefix("203.0.113.10/32")), k.address(netip.MustParsePrefix("203.0.113.0/24")), k.address(netip.MustParsePrefix("2001:db8::9/128")),
		k.guest("libvirt aaaaaaaa-0000-4000-8000-000000000001"), k.guest("libvirt AAAAAAAA-0000-4000-8000-000000000001"), k.guest("lxd default/web"), k.guest("attached web"),
		k.prefixes(), k.root + "addr/cb00710a/24", k.root + "addr/CB00710A/32", k.root + "addr/x", k.root + "aaaaaaaa-0000-4000-8000-000000000001", k.root,
	}
	for n, key := range all {
		c.revs.set(key, int64(n+1))
	}
	is := map[string]int64{}
	for packed, rev := range c.revs.each() {
		is[c.revs.unpack(packed)] = rev
	}
	assert.Len(t, is, len(all))
	for n, key := range all {
		assert.Equal(t, int64(n+1), c.revs.of(key), key)
		assert.Equal(t, int64(n+1), is[key], key)
		assert.Less(t, len(c.revs.pack(key)), max(len(strings.TrimPrefix(key, k.root)), 1)+2)
	}
	c.revs.delete(all[0])
	assert.Zero(t, c.revs.of(all[0]))
	assert.Equal(t, int64(2), c.revs.of(all[1]))
}
