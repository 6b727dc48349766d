package agent_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

// why gives the lines about an address, without times: the names of the good steps, and
// the texts of the others.
func why(t *testing.T, n *node, address string) (good, bad []string) {
	t.Helper()
	lines, err := n.Explain(t.Context(), netip.MustParseAddr(address))
	require.NoError(t, err)
	for _, l := range lines {
		switch name := strings.TrimSpace(l.Step + " " + l.Node); {
		case l.Good:
			good = append(good, name)
		default:
			bad = append(bad, l.Step+": "+l.Text)
		}
	}
	return good, bad
}

// TestWhyOnAnyNode is the same: the node of the guest makes the steps.
func TestWhyOnAnyNode(t *testing.T) {
	r := newRegistry(nil)
	vm := known("web", "uuid-of-web", "203.0.113.10 2001:db8:100:1::10 198.51.100.0/29")
	pairsOf(t, fake.NewSource, vm, func(t *testing.T, p *pair) {
		for _, n := range []*node{p.one, p.two} {
			n.speaker.SetSessions(fabric.Session{Peer: "rr1", State: "established"})
		}
		p.runs(p.two, vm)
		time.Sleep(time.Minute)
		for _, a := range []string{"203.0.113.10", "2001:db8:100:1::10", "198.51.100.3"} {
			for _, n := range []*node{p.one, p.two} {
				good, bad := why(t, n, a)
				assert.Equal(t, []string{"pool", "allocation", "guest node2", "port node2", "announcement node2", "reflector rr1 node2", "forwarding node2", "configuration node2", "owner node2"}, good, a)
				assert.Empty(t, bad, a)
			}
		}
		lines, err := p.one.Explain(t.Context(), netip.MustParseAddr("203.0.113.10"))
		require.NoError(t, err)
		assert.Equal(t, fabric.Identity("libvirt uuid-of-web"), lines[1].Allocation.Guest)
		assert.Contains(t, lines[1].Text, "guest web (libvirt uuid-of-web) on node2, epoch 17592186044417, since ")
		assert.Contains(t, lines[8].Text, "guest web (libvirt uuid-of-web) on node2, epoch 17592186044417, has had it since ")

		_, bad := why(t, p.one, "203.0.113.11")
		assert.Equal(t, []string{"guest: no guest of the cluster has 203.0.113.11"}, bad)
		_, bad = why(t, p.one, "198.18.0.1")
		assert.Len(t, bad, 2)
	}, func(string) []agent.Option { return []agent.Option{agent.WithRegistry(r)} })
}

// TestWhyNamesWhatDisagrees, on whichever node it is asked.
func TestWhyNamesWhatDisagrees(t *testing.T) {
	r := newRegistry(nil)
	vm := known("web", "uuid-of-web", "203.0.113.10 2001:db8:100:1::10")
	pairsOf(t, fake.NewSource, vm, func(t *testing.T, p *pair) {
		p.runs(p.two, vm)
		time.Sleep(time.Minute)
		both := func(want ...string) {
			t.Helper()
			for _, a := range []string{"203.0.113.10", "2001:db8:100:1::10"} {
				for _, n := range []*node{p.one, p.two} {
					_, bad := why(t, n, a)
					for i := range bad {
						bad[i] = strings.ReplaceAll(bad[i], a, "ADDRESS")
					}
					assert.Equal(t, want, bad, "%s on %s", a, n.name)
				}
			}
		}
		both()

		all, err := r.Allocations(t.Context(), fabric.AllocationFilter{})
		require.NoError(t, err)
		_, err = r.Acquire(t.Context(), fabric.AcquireRequest{Guest: vm.Identity(), VM: "web", Node: "node1", Over: all[0].Epoch})
		require.NoError(t, err)
		both(fmt.Sprintf("disagreement: by the registry guest web is on node1, epoch %d, and it runs on node2, epoch %d; the agent there records that within a minute, if nothing is in the way", all[0].Epoch+1, all[0].Epoch))
		time.Sleep(2 * time.Minute)
		both()

		for _, prefix := range vm.Prefixes() { // the operator, behind everybody's back
			_, err := r.Release(t.Context(), fabric.ReleaseRequest{Prefix: prefix, Now: true})
			require.NoError(t, err)
		}
		both("disagreement: guest web (libvirt uuid-of-web) on node2 has it, and the registry has no allocation of it; its agent makes one within a minute, if nothing is in the way")
		other := fabric.AllocationRequest{Guest: "libvirt 9", VM: "old", Node: "node1", Wants: []fabric.Want{{Prefix: vm.Prefixes()[0]}, {N: 1, Prefix: vm.Prefixes()[1]}}}
		_, err = r.Allocate(t.Context(), other)
		require.NoError(t, err)
		both("disagreement: the registry has it for guest old (libvirt 9) on node1, and guest web (libvirt uuid-of-web) on node2 has it; give one of the two another address")
		r.Fail("list addresses", errors.New("no quorum"))
		both("registry: no quorum")
		r.Fail("list addresses", nil)
		_, err = r.Release(t.Context(), fabric.ReleaseRequest{Guest: "libvirt 9", Now: true})
		require.NoError(t, err)
		_, err = r.Allocate(t.Context(), fabric.AllocationRequest{Guest: vm.Identity(), VM: "web", Node: "node2", Wants: other.Wants})
		require.NoError(t, err)
		both()

		for _, prefix := range vm.Prefixes() {
			require.NoError(t, p.one.speaker.Put(t.Context(), fabric.Route{Prefix: prefix}))
		}
		both("disagreement: node1 announces it, and has no guest with it; restart the agent there")
		for _, prefix := range vm.Prefixes() {
			require.NoError(t, p.one.speaker.Remove(t.Context(), prefix))
			p.two.speaker.Compete(fabric.Competitor{Prefix: prefix, Via: netip.MustParseAddr("10.10.0.99"), Reflector: "rr1"})
		}
		moment()
		both("disagreement: rr1 has a route to it via 10.10.0.99, which is no node of the cluster; see what announces it there")
	}, func(string) []agent.Option { return []agent.Option{agent.WithRegistry(r)} })
}

// TestWhyWithSilentNodes tells what is known, and who does not answer.
func TestWhyWithSilentNodes(t *testing.T) {
	pairsOf(t, fake.NewSource, gold(), func(t *testing.T, p *pair) {
		p.runs(p.one, p.vm)
		moment()
		p.ends[p.one].Fail("node1 tells node2 explaining", fmt.Errorf("node node2: its agent is older: %w", errors.ErrUnsupported))
		good, bad := why(t, p.one, "203.0.113.10")
		assert.Contains(t, good, "node node2")
		assert.Empty(t, bad)
		for effect, trouble := range map[string]*fake.Trouble{"list ports": &p.one.dataplane.Trouble, "list routes": &p.one.speaker.Trouble} {
			trouble.Fail(effect, errBoom)
			_, bad = why(t, p.one, "203.0.113.10")
			assert.Len(t, bad, 1)
			trouble.Fail(effect, nil)
		}
		p.ends[p.one].Cut("node2", true)
		_, bad = why(t, p.two, "203.0.113.10")
		assert.Equal(t, []string{
			"guest: no guest of the cluster has 203.0.113.10; node node1 may have it, and does not say",
			"node node1: cut off; what it has is not known",
		}, bad)
	})
}

// TestWhyWithRegistriesOfTheirOwn: that of the guest's node counts.
func TestWhyWithRegistriesOfTheirOwn(t *testing.T) {
	registries := map[string]*fake.Registry{"node1": newRegistry(nil).OfOneNode(), "node2": newRegistry(nil).OfOneNode()}
	vm := known("web", "uuid-of-web", "203.0.113.10 2001:db8:100:1::10")
	pairsOf(t, fake.NewSource, vm, func(t *testing.T, p *pair) {
		p.runs(p.two, vm)
		time.Sleep(time.Minute)
		for _, n := range []*node{p.one, p.two} {
			good, bad := why(t, n, "203.0.113.10")
			assert.Contains(t, good, "allocation node2")
			assert.Empty(t, bad)
		}
		registries["node2"].Fail("list addresses", errBoom)
		_, bad := why(t, p.one, "2001:db8:100:1::10")
		assert.Empty(t, bad, "nobody says that it has none")
	}, func(node string) []agent.Option { return []agent.Option{agent.WithRegistry(registries[node])} })
}

// TestFindingThatCannotBeShown counts as none: it is another machine's text.
func TestFindingThatCannotBeShown(t *testing.T) {
	long := strings.Repeat("x", 5000)
	for says, f := range map[string]*fabric.Finding{
		"its answer says nothing": nil,
		`"a\nb" is not plain`:     {Steps: []fabric.Step{{Step: "guest", Good: true, Text: "a\nb"}}},
		"a word of 5000 bytes":    {Sent: []string{long}},
		"guest \"a\" is State(0)": {Guest: &fabric.FoundGuest{VM: "a", Guest: "libvirt 1"}},
		"the VM has no name":      {Guest: &fabric.FoundGuest{State: fabric.Live}},
		"0 steps, 6000 ports":     {Ports: make([]fabric.FoundPort, 6000)},
		"6000 steps":              {Steps: make([]fabric.Step, 6000)},
		`"\x1b" is not plain`:     {Allocations: []fabric.Allocation{{State: fabric.Reserved, Note: "\x1b"}}},
		`"\x00" is not plain`:     {Flaws: []string{"\x00"}},
		`"\r" is not plain`:       {Routes: []fabric.FoundRoute{{Reflector: "\r"}}},
		`"\a" is not plain`:       {Ports: []fabric.FoundPort{{Port: "\a"}}},
	} {
		answers(t, fabric.Answer{Finding: f}, func(t *testing.T, n *node) {
			good, bad := why(t, n, "203.0.113.10")
			assert.Equal(t, []string{"pool"}, good)
			require.Len(t, bad, 2)
			assert.Contains(t, bad[1], "node node2: ")
			assert.Contains(t, bad[1], says)
		})
	}
}

// TestWhyOnASlowNode: what the node looks at itself takes none of the registry's time.
func TestWhyOnASlowNode(t *testing.T) {
	r := newRegistry(nil)
	vm := known("web", "uuid-of-web", "203.0.113.10 2001:db8:100:1::10")
	pairsOf(t, fake.NewSource, vm, func(t *testing.T, p *pair) {
		p.runs(p.two, vm)
		time.Sleep(time.Minute)
		defer p.one.dataplane.Hang("list ports")()
		for _, a := range []string{"203.0.113.10", "2001:db8:100:1::10"} {
			good, bad := why(t, p.one, a)
			assert.Contains(t, good, "allocation", a)
			assert.NotContains(t, strings.Join(bad, "\n"), "registry", a)
		}
	}, func(string) []agent.Option { return []agent.Option{agent.WithRegistry(r)} })
}
