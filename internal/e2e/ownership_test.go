package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/hypervisors"
	"github.com/vmfabric/vmfabric/testenv/lab/routers"
)

// nic is that of the guest which moves.
func (m *shuttle) nic() fabric.NIC { return m.vm.NICs[0] }

// addresses are what is reached of the guest, one of each of its routes too.
func (m *shuttle) addresses() []string {
	return append(testAddresses(m.nic()), "198.51.100.3", "2001:db8:200::3")
}

func (m *shuttle) nft(args ...string) {
	m.t.Helper()
	for _, n := range []*core.Host{m.top.Nodes["node1"], m.top.Nodes["node2"]} {
		_, err := n.Run(soon(m.t), "nft", args...)
		require.NoError(m.t, err)
	}
}

// cut parts the agents. It does on both nodes: what is said on a connection that is
// there is to arrive nowhere.
func (m *shuttle) cut() {
	m.t.Helper()
	m.nft(fmt.Sprintf("table inet apart { chain in { type filter hook input priority -300; tcp dport %d drop; tcp sport %[1]d drop; }; }", fabric.DefaultAgentPort))
}

func (m *shuttle) heal() {
	m.t.Helper()
	m.nft("delete", "table", "inet", "apart")
}

// cloneIsRefused where the agents talk: it does not start, in whichever way, nor
// with a part of what the guest has.
func (m *shuttle) cloneIsRefused() {
	m.t.Helper()
	for _, one := range []struct {
		copied fabric.NIC
		held   string
	}{
		{m.nic(), "203.0.113.10"},
		{fabric.NIC{Addresses: m.nic().Addresses[:1]}, "203.0.113.10"},
		{fabric.NIC{Addresses: m.nic().Addresses[2:3]}, "2001:db8:100::10"},
	} {
		clone := m.domain(m.lv["node2"], "clone", hypervisors.DomainNIC{NIC: one.copied})
		for _, paused := range []bool{false, true} {
			var err error
			if paused {
				_, err = m.lv["node2"].Virsh(soon(m.t), "start", "clone", "--paused")
			} else {
				err = clone.Start(soon(m.t))
			}
			require.ErrorContains(m.t, err, one.held+" is held by guest sea_gold (libvirt ")
			require.ErrorContains(m.t, err, ") on node1; stop that one, or give clone another address")
		}
	}
	_, stderr, code := m.agents["node2"].cli("attach", "clone", "--address", "2001:db8:100::10", "--kind", "veth")
	assert.Equal(m.t, 1, code)
	assert.Contains(m.t, stderr, "2001:db8:100::10 is held by guest sea_gold")
}

// clonedApart starts a copy where the agents do not talk, and hear of each other by
// the reflectors alone: the first keeps its addresses, and the status of both nodes
// says so.
func (m *shuttle) clonedApart(paused bool) *hypervisors.Domain {
	m.t.Helper()
	m.cut()
	clone := m.domain(m.lv["node2"], "clone", hypervisors.DomainNIC{NIC: m.nic()})
	if paused {
		_, err := m.lv["node2"].Virsh(soon(m.t), "start", "clone", "--paused")
		require.NoError(m.t, err)
	} else {
		require.NoError(m.t, clone.Start(soon(m.t)))
	}
	m.agents["node2"].complains("guest clone: another guest on node1 has an address of it, and has had it longer, as its route at rr")
	m.agents["node1"].complains("guest sea_gold on node1: another guest on node2 has an address of it too, as its route at rr")
	m.coreHas(m.top.Nodes["node1"], m.nic().Prefixes()...)
	m.reaches(m.top.Client, m.addresses()...)
	if !paused { // and it stays so
		m.agents["node2"].complains("node1 does not answer now, so it is announced with LOCAL_PREF 10, in case nobody else has it")
		m.eventually("the first comes first, as usual", func() error { return m.announcedBy(m.top.Nodes["node1"]) })
		m.agents["node1"].complains("guest sea_gold on node1: another guest on node2 has an address of it too")
		m.reaches(m.top.Client, m.addresses()...)
	}
	return clone
}

// bothAreNamed by the status of both nodes once the agents talk again.
func (m *shuttle) bothAreNamed() {
	m.t.Helper()
	for _, name := range []string{"node1", "node2"} {
		m.eventually(name+" names both", func() error {
			for _, problem := range m.agents[name].status().Problems {
				if strings.Contains(problem, "guest sea_gold on node1") && strings.Contains(problem, "guest clone on node2") ||
					strings.Contains(problem, "guest sea_gold on node1") && strings.Contains(problem, "clone is not announced on node2") {
					return nil
				}
			}
			return fmt.Errorf("problems: %q", m.agents[name].status().Problems)
		})
	}
}

// firstAloneIsAnnounced, and its copy has its port, and ends.
func (m *shuttle) firstAloneIsAnnounced(clone *hypervisors.Domain) {
	m.t.Helper()
	m.coreHas(m.top.Nodes["node1"], m.nic().Prefixes()...)
	m.eventually("the first alone is announced", func() error { return m.announcedBy(m.top.Nodes["node1"]) })
	m.reaches(m.top.Client, m.addresses()...)
	ports := m.agents["node2"].ask(hooks.List, fabric.VM{}).Ports
	require.Len(m.t, ports, 1)
	assert.Equal(m.t, fabric.Wired, ports[0].State)

	require.NoError(m.t, clone.Destroy(soon(m.t)))
	m.rests("node1")
}

// comesLate: the guest starts when its copy has its addresses, which it keeps, even
// where the newcomer's router id is the lower.
func (m *shuttle) comesLate() {
	m.t.Helper()
	m.eventually("the second is announced as usual", func() error { return m.announcedBy(m.top.Nodes["node2"]) })
	m.cut()
	require.NoError(m.t, m.d.Start(soon(m.t)))
	m.agents["node1"].complains("guest sea_gold: another guest on node2 has an address of it, and has had it longer, as its route at rr")
	m.agents["node2"].complains("guest clone on node2: another guest on node1 has an address of it too, as its route at rr")
	m.coreHas(m.top.Nodes["node2"], m.nic().Prefixes()...)
	m.heal()
	m.agents["node1"].complains("guest clone on node2 has an address of it, and has had it longer, so sea_gold is not announced on node1")
	m.coreHas(m.top.Nodes["node2"], m.nic().Prefixes()...)
}

// TestCopyOfAGuest: on another node a guest of another name, UUID and MAC is
// started with the addresses of one that runs.
func TestCopyOfAGuest(t *testing.T) {
	t.Parallel()
	m := startShuttle(t, options{})
	withdrawn := len(m.gone())
	m.cloneIsRefused()
	m.rests("node1")
	assert.Empty(t, m.gone()[withdrawn:], "the core gateway was without a route")

	for _, paused := range []bool{true, false} {
		clone := m.clonedApart(paused)
		m.heal()
		m.bothAreNamed()
		m.firstAloneIsAnnounced(clone)
	}

	// The first ends, and its addresses are free.
	require.NoError(t, m.d.Destroy(soon(t)))
	clone := m.domain(m.lv["node2"], "clone", hypervisors.DomainNIC{NIC: m.nic()})
	require.NoError(t, clone.Start(soon(t)))
	m.coreHas(m.top.Nodes["node2"], m.nic().Prefixes()...)
	require.ErrorContains(t, m.d.Start(soon(t)), "held by guest clone (libvirt ")
	m.comesLate()
}

func testAddresses(nic fabric.NIC) (all []string) {
	for _, a := range nic.Addresses {
		all = append(all, a.String())
	}
	return all
}

// TestRouteOfNobody has somebody who is no node announce a guest's prefixes,
// before its node does, for a moment.
func TestRouteOfNobody(t *testing.T) {
	t.Parallel()
	s := start(t, options{nodes: 2, noAgent: true, unmanned: []string{"node2"}})
	stranger := s.top.Nodes["node2"] // to the reflectors it may be a node
	few := s.cluster
	few.Nodes, few.Underlay = few.Nodes[:1], s.cluster.NodeRanges()
	a := s.agents["node1"]
	a.args[slices.Index(a.args, "--config")+1] = s.writeFile("few.yaml", few)
	a.start()
	a.established()
	vm := veth("web", "203.0.113.10", "2001:db8:100::10")
	s.run("node1", vm)
	s.coreHas(s.top.Nodes["node1"], vm.Prefixes()...)
	a.healthy()
	first := func(ps ...netip.Prefix) string {
		return strings.ReplaceAll(s.announcement(stranger, "", s.cluster.Communities, ps...), "bgp_local_pref = 100;", "bgp_local_pref = 200;")
	}
	require.Contains(t, first(), "bgp_local_pref = 200;")
	bird, err := routers.StartBird(soon(t), stranger, first(vm.Prefixes()...))
	require.NoError(t, err)
	s.coreHas(stranger, vm.Prefixes()...)
	for i, p := range vm.Prefixes() {
		via := []netip.Addr{stranger.Addr4(), stranger.Addr6()}[i]
		a.complains(fmt.Sprintf("a route for %s via %s, which is no node", p.Addr(), via))
	}
	assert.Equal(t, fabric.Live, a.ask(hooks.List, fabric.VM{}).Ports[0].State)
	require.NoError(t, bird.Configure(soon(t), first()))
	s.coreHas(s.top.Nodes["node1"], vm.Prefixes()...)
	s.reaches(s.top.Client, "203.0.113.10", "2001:db8:100::10")
	a.healthy()
}

// TestCopyOfAnInstance has LXD's user told, where lxc sends him.
func TestCopyOfAnInstance(t *testing.T) {
	t.Parallel()
	s := start(t, options{nodes: 2, noAgent: true})
	s.agents["node1"].start()
	s.agents["node1"].established()
	lx := s.lxd("node2")
	hooked := map[string]string{"raw.lxc": "lxc.hook.start-host=" + lxdHookProgram + "\nlxc.hook.post-stop=" + lxdHookProgram}
	s.run("node1", veth("web", "203.0.113.10", "2001:db8:100::10"))
	s.coreHas(s.top.Nodes["node1"], seaGold...)
	for _, address := range []string{"203.0.113.10", "2001:db8:100::10"} {
		c := s.container(lx, hypervisors.ContainerOptions{Name: "web", NICs: []fabric.NIC{p2p(address)}, Config: hooked})
		require.Error(t, c.Start(soon(t)))
		out, err := lx.Lxc(soon(t), "info", "web", "--show-log")
		require.NoError(t, err)
		assert.Contains(t, out, address+" is held by guest web (attached web) on node1; stop that one, or give web another address")
		s.eventually("LXD is done with it", func() error { _, err := lx.Lxc(soon(t), "delete", "web"); return err })
	}

	// Without the hook it runs, and is not announced.
	c := s.container(lx, hypervisors.ContainerOptions{Name: "copy", NICs: []fabric.NIC{p2p("203.0.113.10", "2001:db8:100::10")}})
	require.NoError(t, c.Start(soon(t)))
	s.agents["node2"].complains("guest web on node1 has an address of it, and has had it longer, so copy is not announced on node2")
	s.agents["node1"].complains("guest copy on node2 has an address of it too")
	s.coreHas(s.top.Nodes["node1"], seaGold...)
	s.reaches(s.top.Client, "203.0.113.10", "2001:db8:100::10")

	// It is as soon as the address is free.
	s.agents["node1"].ask(hooks.Remove, fabric.VM{Name: "web"})
	s.serves(s.top.Nodes["node2"], seaGold...)
	s.agents["node2"].healthy()
}
