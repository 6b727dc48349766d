package nodes

import (
	"log/slog"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// TestReconfigure: a node that came is known by the file, and one that went is nobody, as
// if it had never called.
func TestReconfigure(t *testing.T) {
	node := func(name, v4, v6 string) fabric.Node {
		return fabric.Node{Name: name, Address: netip.MustParseAddr(v4), Address6: netip.MustParseAddr(v6)}
	}
	one, two, three := node("node1", "10.10.0.21", "fd00:10:10::21"), node("node2", "10.20.0.22", "fd00:10:20::22"), node("node3", "10.30.0.23", "fd00:10:30::23")
	c := fabric.Cluster{Name: "lab", ASN: 64512, Nodes: []fabric.Node{one, two}}
	n := New(Config{Cluster: c, Node: one, Logger: slog.New(slog.DiscardHandler)})
	for _, a := range []netip.Addr{two.Address, two.Address6} {
		_, _, err := n.directory.identify(a, sender{two.Name, two.Address, two.Address6})
		require.NoError(t, err)
		assert.Equal(t, nobody, n.directory.trustOf(three.Source(a)))
	}
	n.troubles.note("to node2", "node node2: no answer", 0)

	c.Nodes = []fabric.Node{one, three}
	n.Reconfigure(c)
	assert.Equal(t, []string{"node3"}, n.Names())
	assert.Empty(t, n.Diagnose(t.Context()))
	for _, a := range []netip.Addr{two.Address, two.Address6} {
		assert.Equal(t, nobody, n.directory.trustOf(a))
		assert.Equal(t, known, n.directory.trustOf(three.Source(a)))
	}
	_, err := n.directory.node("node2")
	assert.ErrorContains(t, err, `node "node2" is not in cluster lab`)
}
