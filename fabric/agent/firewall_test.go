package agent_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

// TestFirewallFollowsTheDescription: a guest's firewall and isolation reach its port, and
// so does a change of them while the guest runs, and they outlast a restart of the agent.
// A description that is gone changes nothing. Other nodes are not told of them: an agent
// of an earlier version could not read its guests' list.
func TestFirewallFollowsTheDescription(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := fake.NewSource("lxd")
		n := fresh(t, agent.WithSources(src))
		vm := guest("web", "203.0.113.10 2001:db8:100:1::10 adopt")
		say := func(change func(*fabric.VM)) {
			change(&vm)
			src.Say(fabric.Desired{VM: vm, State: fabric.Live})
			time.Sleep(time.Second)
			synctest.Wait()
		}
		is := func(n *node, isolated bool, w *fabric.Firewall) {
			t.Helper()
			p := n.dataplane.Port("web_net0")
			assert.Equal(t, isolated, p.Isolated)
			assert.True(t, w.Equal(p.Firewall), p.Firewall)
			own, err := n.List(t.Context())
			require.NoError(t, err)
			require.Len(t, own, 1)
			assert.Equal(t, isolated, own[0].Isolated)
			assert.True(t, w.Equal(own[0].Firewall))
			told, err := n.ListNode(t.Context(), "node1", "")
			require.NoError(t, err)
			require.Len(t, told.Ports, 1)
			assert.False(t, told.Ports[0].Isolated)
			assert.Nil(t, told.Ports[0].Firewall)
		}
		one := &fabric.Firewall{Ingress: fabric.Filter{Drop: true, Rules: []fabric.Rule{{Protocol: fabric.ICMP}}}}
		two := &fabric.Firewall{Ingress: one.Ingress, Stateful: true}
		n.run(func() {
			n.dataplane.AddLink("web_net0")
			vm.Origin = "lxd"
			say(func(v *fabric.VM) { v.Firewall = one })
			is(n, false, one)
			say(func(v *fabric.VM) { v.Isolated = true })
			is(n, true, one)
			say(func(v *fabric.VM) { v.Firewall = two })
			is(n, true, two)
			src.Say(fabric.Desired{VM: fabric.VM{Name: "web", Origin: "lxd"}, State: fabric.Live})
			time.Sleep(time.Second)
			is(n, true, two)
			say(func(v *fabric.VM) { v.Firewall, v.Isolated = nil, false })
			is(n, false, nil)
			say(func(v *fabric.VM) { v.Firewall = two })
		})
		again := n.again(agent.WithSources(src))
		again.run(func() {
			time.Sleep(time.Second)
			is(again, false, two)
		})
	})
}

// TestFirewallRefused: a guest whose rules are wrong is refused, with the rule.
func TestFirewallRefused(t *testing.T) {
	n := fresh(t)
	vm := web()
	vm.Firewall = &fabric.Firewall{Ingress: fabric.Filter{Drop: true, Rules: []fabric.Rule{{Protocol: "gre"}}}}
	err := n.Apply(t.Context(), vm, fabric.Live)
	require.ErrorIs(t, err, fabric.ErrRefused)
	assert.ErrorContains(t, err, `firewall: ingress rule 1 "accept gre": protocol "gre" is not one of any, tcp, udp, icmp`)
}
