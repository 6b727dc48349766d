package agent_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

func imported(t *testing.T, n *node, write bool) (lines []string, is fabric.Import) {
	t.Helper()
	is, err := n.Import(t.Context(), write)
	require.NoError(t, err)
	for _, e := range is.Entries {
		lines = append(lines, fmt.Sprintf("%s %s %s %s", e.Node, e.VM, e.Prefix.Addr(), e.Outcome))
	}
	return lines, is
}

// TestImport: one node has the registry, and takes the guests of all into it. What is in
// conflict is named, and its guest left alone.
func TestImport(t *testing.T) {
	r := newRegistry(nil)
	web, db := known("web", "uuid-of-web", "203.0.113.10 2001:db8:100:1::10"), known("db", "uuid-of-db", "203.0.113.20 2001:db8:100:1::20")
	vpn := known("vpn", "uuid-of-vpn", "203.0.113.30 2001:db8:100:1::30")
	with := func(node string) []agent.Option {
		if node == "node2" {
			return nil
		}
		return []agent.Option{agent.WithRegistry(r)}
	}
	pairsOf(t, fake.NewSource, web, func(t *testing.T, p *pair) {
		p.runs(p.one, web)
		p.runs(p.two, db)
		p.runs(p.two, vpn)
		_, err := p.one.Reserve(t.Context(), prefix("203.0.113.30/32"), "printer")
		require.NoError(t, err)
		time.Sleep(time.Minute)
		before := allocations(t, r)
		lines, is := imported(t, p.one, false)
		assert.Equal(t, []string{"node2 db 203.0.113.20 to record", "node2 db 2001:db8:100:1::20 to record", "node2 vpn 203.0.113.30 conflict", "node2 vpn 2001:db8:100:1::30 held back"}, lines)
		assert.Equal(t, []int{3, 2}, []int{is.Guests, is.Known})
		assert.Empty(t, is.Silent)
		assert.Equal(t, before, allocations(t, r), "nothing is written")
		p.forget()

		lines, _ = imported(t, p.one, true)
		assert.Equal(t, []string{"node2 db 203.0.113.20 recorded", "node2 db 2001:db8:100:1::20 recorded", "node2 vpn 203.0.113.30 conflict", "node2 vpn 2001:db8:100:1::30 held back"}, lines)
		want := []string{
			"203.0.113.10/32 allocated web node1", "203.0.113.20/32 allocated db node2", "203.0.113.30/32 reserved  node1",
			"2001:db8:100:1::10/128 allocated web node1", "2001:db8:100:1::20/128 allocated db node2",
		}
		assert.Equal(t, want, allocations(t, r))
		p.two.did()
		lines, is = imported(t, p.one, true)
		assert.Equal(t, []string{"node2 vpn 203.0.113.30 conflict", "node2 vpn 2001:db8:100:1::30 held back"}, lines)
		assert.Equal(t, 4, is.Known)
		assert.Equal(t, want, allocations(t, r))

		p.ends[p.one].Cut("node2", true)
		_, is = imported(t, p.one, false)
		assert.Equal(t, []string{"node node2: cut off"}, is.Silent)
		assert.Equal(t, 1, is.Guests)
	}, with)
}

// TestImportOfTwoGuestsWithOneAddress records neither.
func TestImportOfTwoGuestsWithOneAddress(t *testing.T) {
	r := newRegistry(nil)
	first, second := known("web", "uuid-of-web", "203.0.113.10 2001:db8:100:1::10"), known("copy", "uuid-of-copy", "203.0.113.10 2001:db8:100:1::10")
	pairsOf(t, fake.NewSource, first, func(t *testing.T, p *pair) {
		r.Fail("allocate", errBoom) // the agents record nothing by themselves
		p.ends[p.one].Cut("node2", true)
		p.runs(p.one, first)
		p.runs(p.two, second)
		p.ends[p.one].Cut("node2", false)
		moment()
		r.Fail("allocate", nil)
		lines, _ := imported(t, p.one, true)
		assert.Equal(t, []string{"node1 web 203.0.113.10 conflict", "node1 web 2001:db8:100:1::10 conflict", "node2 copy 203.0.113.10 conflict", "node2 copy 2001:db8:100:1::10 conflict"}, lines)
		assert.Empty(t, allocations(t, r))
	}, func(string) []agent.Option { return []agent.Option{agent.WithRegistry(r)} })
}

// TestImportNeedsASharedRegistry: others have what their node has.
func TestImportNeedsASharedRegistry(t *testing.T) {
	_, err := fresh(t).Import(t.Context(), false)
	require.ErrorContains(t, err, "no registry")
	_, err = fresh(t, agent.WithRegistry(newRegistry(nil).OfOneNode())).Import(t.Context(), false)
	require.ErrorContains(t, err, "this node has a registry of its own")
	r := newRegistry(nil)
	n := fresh(t, agent.WithRegistry(r))
	r.Fail("list addresses", errBoom)
	_, err = n.Import(t.Context(), false)
	require.EqualError(t, err, "registry: boom")
}
