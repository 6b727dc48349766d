package kernel

import (
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestArrivingListed: a round that listed the arriving guests before a port was
// made does not take away what the port was given.
func TestArrivingListed(t *testing.T) {
	f := newFilter(Config{}, requests{})
	var mu sync.Mutex
	ports := map[string][]netip.Prefix{"web_net0": {netip.MustParsePrefix("203.0.113.10/32")}}
	list := func() map[string][]netip.Prefix {
		mu.Lock()
		defer mu.Unlock()
		return maps.Clone(ports)
	}
	require.NoError(t, f.ensure(list))
	listed, resume := make(chan struct{}), make(chan struct{})
	round, put := make(chan error, 1), make(chan error, 1)
	go func() {
		round <- f.ensure(func() map[string][]netip.Prefix {
			defer func() {
				close(listed)
				<-resume
			}()
			return list()
		})
	}()
	<-listed
	mu.Lock()
	ports["db_net0"] = []netip.Prefix{netip.MustParsePrefix("2001:db8:100::10/128")}
	mu.Unlock()
	go func() { put <- f.ensure(list) }()
	done := false
	select {
	case err := <-put:
		require.NoError(t, err)
		done = true
	case <-time.After(100 * time.Millisecond): // it waits for the round, as it should
	}
	close(resume)
	require.NoError(t, <-round)
	if !done {
		require.NoError(t, <-put)
	}
	out, err := exec.Command("nft", "list", "map", "inet", "vmfabric", "arriving").CombinedOutput()
	if err != nil {
		t.Skip("no nft to look with")
	}
	assert.Contains(t, string(out), "web_net0")
	assert.Contains(t, string(out), "db_net0")
	assert.Len(t, f.arriving, 2)
}

// TestNeighbourTable: small and nearly full tables are reported.
func TestNeighbourTable(t *testing.T) {
	for _, family := range []neighbourTable{{family: "IPv4", name: "ipv4"}, {family: "IPv6", name: "ipv6"}} {
		small, full, fine := family, family, family
		small.limit, full.limit, fine.limit = 1024, 1024, 1024
		small.entries, full.entries, fine.entries = 10, 820, 500
		assert.Contains(t, small.fault(33), "the "+family.family+" neighbour table holds 1024 entries, 33 ports may need 1040")
		assert.Contains(t, full.fault(1), "has 820 of at most 1024")
		assert.Contains(t, full.fault(1), "net."+family.name+".neigh.default.gc_thresh")
		assert.Empty(t, fine.fault(32))
	}
	n, err := parseEntries("entries  allocs   destroys\n0000001f 00000028 0000001e\n0000001f 0 0\n")
	require.NoError(t, err)
	assert.Equal(t, 31, n)
	_, err = parseEntries("")
	require.Error(t, err)
}

// TestNeighbourSettings: what the package sets is enough for as many ports as a
// node was measured with.
func TestNeighbourSettings(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "packaging", "90-vmfabric.conf"))
	require.NoError(t, err)
	for _, want := range []string{"ipv4", "ipv6"} {
		assert.Contains(t, strings.Split(string(text), "\n"), "net."+want+".neigh.default.gc_thresh3 = 65536")
	}
	assert.Empty(t, neighbourTable{limit: 65536}.fault(4000))
}
