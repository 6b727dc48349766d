package kernel

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/vmfabric/vmfabric/fabric"
)

// TestFailedPut: after a Put that failed, a port is wanted as it was before.
func TestFailedPut(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"203.0.113.10", "2001:db8:100::10"} {
		first := fabric.Port{Name: "web_net0", NIC: fabric.NIC{Addresses: []netip.Addr{netip.MustParseAddr(address)}}}
		second := first
		second.NIC.MTU = 1400
		all := newPorts()

		was, end := all.begin(first)
		assert.Empty(t, was.Name)
		end(errors.New("no such device"))
		_, wanted := all.get(first.Name)
		assert.False(t, wanted)

		_, end = all.begin(first)
		end(nil)
		was, end = all.begin(second)
		assert.Equal(t, first, was)
		end(errors.New("no such device"))
		have, _ := all.get(first.Name)
		assert.Equal(t, first, have)
	}
}

// TestPutUnderWay: nobody compares a port with the kernel during a Put, and a
// reading of before it does not count after it.
func TestPutUnderWay(t *testing.T) {
	t.Parallel()
	all, p := newPorts(), fabric.Port{Name: "web_net0"}
	before, _ := all.lastPut(p.Name)
	_, end := all.begin(p)
	_, settled := all.settled(p.Name)
	assert.False(t, settled)
	_, idle := all.lastPut(p.Name)
	assert.False(t, idle)
	end(nil)
	_, settled = all.settled(p.Name)
	assert.True(t, settled)
	after, idle := all.lastPut(p.Name)
	assert.True(t, idle)
	assert.NotEqual(t, before, after)
}

// TestJustArrived: the sources of a guest that arrives pass until its port is an
// ordinary one.
func TestJustArrived(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"203.0.113.10", "2001:db8:100::10"} {
		p := fabric.Port{Name: "web_net0", Incoming: true, NIC: fabric.NIC{Addresses: []netip.Addr{netip.MustParseAddr(address)}}}
		sources := map[string][]netip.Prefix{p.Name: p.NIC.Prefixes()}
		all := newPorts()
		_, end := all.begin(p)
		end(nil)
		assert.True(t, all.anyIncoming())
		assert.Equal(t, sources, all.arriving())

		p.Incoming = false
		_, end = all.begin(p)
		assert.False(t, all.anyIncoming())
		assert.Equal(t, sources, all.arriving(), "its addresses are not routed to the port yet")
		end(nil)
		assert.Empty(t, all.arriving())
	}
}
