package kernel_test

import (
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

func awaitHeard(t *testing.T, m fabric.Dataplane, want string) {
	t.Helper()
	select {
	case name := <-m.Heard():
		assert.Equal(t, want, name)
	case <-time.After(20 * time.Second):
		require.FailNow(t, "not heard", want)
	}
}

// TestIncomingHolds: packets from the underlay wait in the port, whose guest
// does not run, and are all answered once it does.
func TestIncomingHolds(t *testing.T) {
	bothFamilies(t, func(t *testing.T, v4 bool) {
		lab := newMoveLab(t)
		d := open(t)
		p := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}, Routes: routed})
		p.Incoming, p.Queue = true, 2000
		require.NoError(t, d.Put(t.Context(), p))
		g := plug(t, nil, p.Name)
		for _, to := range []netip.Addr{guestAddr[v4], routed[map[bool]int{true: 0, false: 1}[v4]].Addr().Next()} {
			probes := lab.probe(t, to, 200)
			<-probes.Sent()
			assert.Zero(t, probes.Received())
			g.announce(t)
			awaitHeard(t, d, p.Name)
			p.Incoming = false
			require.NoError(t, d.Put(t.Context(), p))
			g.run()
			r := probes.Stop()
			assert.Zero(t, r.Lost, "%+v", r)
			assert.Zero(t, r.Reordered+r.Duplicates+r.Refused)
			g.stop()
			p.Incoming = true
			require.NoError(t, d.Put(t.Context(), p))
		}
		assert.EqualValues(t, 400, g.taken.Load())
	})
}

// TestIncomingLocal: the node's own packets go where they would go without the port.
func TestIncomingLocal(t *testing.T) {
	bothFamilies(t, func(t *testing.T, v4 bool) {
		lab := newMoveLab(t)
		d := open(t)
		p := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
		p.Incoming = true
		require.NoError(t, d.Put(t.Context(), p))
		// The core has the address itself, as a router with another way to it would.
		ipIn(t, lab.core, "addr add "+fabric.HostPrefix(guestAddr[v4]).String()+" dev lo"+map[bool]string{true: "", false: " nodad"}[v4])
		ready := lab.probe(t, guestAddr[v4], 0)
		begun(t, ready)
		ready.Abandon()
		probes := startProbe(t, guestAddr[v4], 50)
		<-probes.Sent()
		r := probes.Stop()
		assert.Zero(t, r.Lost, "%+v", r)
	})
}

// TestIncomingOverflow: what is beyond the queue is lost, and nothing else.
func TestIncomingOverflow(t *testing.T) {
	lab := newMoveLab(t)
	d := open(t)
	p := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
	p.Incoming, p.Queue = true, 50
	require.NoError(t, d.Put(t.Context(), p))
	g := plug(t, nil, p.Name)
	probes := lab.probe(t, guestAddr[true], 200)
	<-probes.Sent()
	p.Incoming = false
	require.NoError(t, d.Put(t.Context(), p))
	g.run()
	r := probes.Stop()
	// A frame or two of the kernel's own may wait too.
	assert.LessOrEqual(t, r.Received, 50, "%+v", r)
	assert.Greater(t, r.Received, 40)
	assert.Equal(t, r.Received, r.LongestLossFrom, "the first are kept")

	p.Queue = 0
	require.NoError(t, d.Put(t.Context(), p))
	assert.Equal(t, 1000, link(t, p.Name).Attrs().TxQLen)
}

// TestQueueHoldsOut: a guest that has arrived may be behind with what is sent to
// it when its port is put with the usual queue, which would be too short for that.
func TestQueueHoldsOut(t *testing.T) {
	bothFamilies(t, func(t *testing.T, v4 bool) {
		lab := newMoveLab(t)
		d := open(t)
		p := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
		p.Incoming, p.Queue = true, 5000
		require.NoError(t, d.Put(t.Context(), p))
		g := plug(t, nil, p.Name)
		probes := lab.probe(t, guestAddr[v4], 1500)
		<-probes.Sent()
		p.Incoming = false
		require.NoError(t, d.Put(t.Context(), p))
		p.Queue = 0
		require.NoError(t, d.Put(t.Context(), p))
		ports, err := d.Actual(t.Context())
		require.NoError(t, err)
		require.Len(t, ports, 1)
		assert.Empty(t, ports[0].Faults, "it is as it is to be")
		g.run()
		r := probes.Stop()
		assert.Zero(t, r.Lost, "%+v", r)

		// A successor of the agent knows nothing of the arrival.
		d = open(t)
		require.NoError(t, d.Put(t.Context(), p))
		assert.Equal(t, 5000, link(t, p.Name).Attrs().TxQLen)
	})
}

// TestIncomingRival: as long as a route of a daemon's comes before that to the
// port, packets from the underlay stay in the port.
func TestIncomingRival(t *testing.T) {
	bothFamilies(t, func(t *testing.T, v4 bool) {
		lab := newMoveLab(t)
		d := open(t)
		p := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[v4]}})
		p.Incoming, p.Queue = true, 5000
		require.NoError(t, d.Put(t.Context(), p))
		g := plug(t, nil, p.Name)
		g.run()
		competing := fabric.HostPrefix(guestAddr[v4]).String() + " via " + node3[v4].String() + " metric 32 proto bird"
		ipIn(t, nil, "route add "+competing)
		probes := lab.probe(t, guestAddr[v4], 0)
		begun(t, probes)
		p.Incoming = false
		done := make(chan error, 1)
		go func() { done <- d.Put(t.Context(), p) }()
		time.Sleep(100 * time.Millisecond)
		ipIn(t, nil, "route del "+competing)
		require.NoError(t, <-done)
		time.Sleep(50 * time.Millisecond)
		r := probes.Stop()
		// The answers go by the main table, the requests come by the other.
		assert.Zero(t, r.Lost, "%+v", r)
	})
}

// TestIncomingSwitch: an incoming port whose guest runs becomes an ordinary one
// under load, and back, without losing a packet either way.
func TestIncomingSwitch(t *testing.T) {
	bothFamilies(t, func(t *testing.T, v4 bool) {
		lab := newMoveLab(t)
		d := open(t)
		p := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
		p.Incoming, p.Queue = true, 5000
		require.NoError(t, d.Put(t.Context(), p))
		g := plug(t, nil, p.Name)
		g.run()
		probes := lab.probe(t, guestAddr[v4], 0)
		begun(t, probes)
		for i := range 10 {
			time.Sleep(30 * time.Millisecond)
			p.Incoming = i%2 == 1
			require.NoError(t, d.Put(t.Context(), p))
		}
		r := probes.Stop()
		assert.Zero(t, r.Lost, "%+v", r)
		assert.Greater(t, r.Sent, 200)
	})
}

// neigh lists what the kernel knows of a guest's addresses on its port.
func neigh(t *testing.T, name string) map[netip.Addr]netlink.Neigh {
	t.Helper()
	all := map[netip.Addr]netlink.Neigh{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := dump(func() ([]netlink.Neigh, error) { return netlink.NeighList(link(t, name).Attrs().Index, family) })
		require.NoError(t, err)
		for _, n := range list {
			a, _ := netip.AddrFromSlice(n.IP)
			all[a.Unmap()] = n
		}
	}
	return all
}

// TestIncomingNeighbours: nobody has to ask a guest that does not run, nor one
// that has just begun to.
func TestIncomingNeighbours(t *testing.T) {
	underlay(t)
	d := open(t)
	p := movePort("web", fabric.NIC{Addresses: addrs("203.0.113.10", "203.0.113.11", "2001:db8:100::10")})
	p.Incoming = true
	states := func(want int) {
		t.Helper()
		have := neigh(t, p.Name)
		for _, a := range p.NIC.Addresses {
			assert.Equal(t, want, have[a].State, a)
			assert.Equal(t, p.NIC.MAC.String(), have[a].HardwareAddr.String(), a)
		}
	}
	require.NoError(t, d.Put(t.Context(), p))
	states(netlink.NUD_PERMANENT)
	for _, a := range p.NIC.Addresses {
		n := neigh(t, p.Name)[a]
		require.NoError(t, netlink.NeighDel(&n))
		require.Eventually(t, func() bool {
			ports, err := d.Actual(t.Context())
			return err == nil && len(ports) == 1 && slices.Contains(ports[0].Faults, "neighbour "+a.String()+" missing")
		}, 20*time.Second, 10*time.Millisecond)
		require.NoError(t, d.Put(t.Context(), p))
		states(netlink.NUD_PERMANENT)
	}
	p.Incoming = false
	require.NoError(t, d.Put(t.Context(), p))
	states(netlink.NUD_PERMANENT)
	p.NIC.Addresses = p.NIC.Addresses[:1]
	require.NoError(t, d.Put(t.Context(), p))
	states(netlink.NUD_PERMANENT)
	assert.Len(t, neigh(t, p.Name), 1, "what the guest has no more")
}

// arrivingRules lists the links from which packets go to ports that are incoming.
func arrivingRules(t *testing.T, family int) (links []string) {
	t.Helper()
	rules, err := dump(func() ([]netlink.Rule, error) { return netlink.RuleList(family) })
	require.NoError(t, err)
	for _, r := range rules {
		if r.Priority == fabric.ArrivingRule {
			assert.Equal(t, fabric.ArrivingTable, r.Table)
			assert.EqualValues(t, fabric.Protocol, r.Protocol)
			links = append(links, r.IifName)
		}
	}
	slices.Sort(links)
	return links
}

// TestIncomingUnderlay: packets are taken from all links that lead to another
// machine, and from no other.
func TestIncomingUnderlay(t *testing.T) {
	underlay(t)
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} { // of earlier tests
		rules, err := dump(func() ([]netlink.Rule, error) { return netlink.RuleList(family) })
		require.NoError(t, err)
		for _, r := range rules {
			if r.Priority == fabric.ArrivingRule {
				require.NoError(t, netlink.RuleDel(&r))
			}
		}
	}
	ipIn(t, nil, "link set lo up", "link add up2 type veth peer name up3", "link set up2 up", "link set up3 up",
		"addr add 10.11.0.21/24 dev up2", "addr add fd00:10:11::21/64 dev up2 nodad",
		"route add 10.40.0.0/24 nexthop via 10.10.0.1 nexthop via 10.11.0.1")
	d, err := kernel.New(t.Context(), kernel.Config{Cluster: "lab", Underlay: []netip.Addr{
		netip.MustParseAddr("10.40.0.9"), netip.MustParseAddr("203.0.113.20"), netip.MustParseAddr("10.10.0.21"),
	}})
	require.NoError(t, err)
	labtest.Running(t, d)
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	mine := port("db", fabric.NIC{Addresses: addrs("203.0.113.20")})
	require.NoError(t, d.Put(t.Context(), mine))
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		assert.Empty(t, arrivingRules(t, family))
	}
	p := movePort("web", fabric.NIC{Addresses: addrs("203.0.113.10", "2001:db8:100::10")})
	p.Incoming = true
	require.NoError(t, d.Put(t.Context(), p))
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		require.Equal(t, []string{"up0", "up2"}, arrivingRules(t, family))
	}
	// As a network manager does when it starts.
	ipIn(t, nil, "rule del priority "+fmt.Sprint(fabric.ArrivingRule)+" iif up0")
	require.Eventually(t, func() bool { return len(arrivingRules(t, netlink.FAMILY_V4)) == 2 }, 20*time.Second, 5*time.Millisecond)
	assert.Empty(t, d.Diagnose(t.Context()))

	alone, err := kernel.New(t.Context(), kernel.Config{Cluster: "lab"})
	require.NoError(t, err)
	labtest.Running(t, alone)
	t.Cleanup(func() { require.NoError(t, alone.Close()) })
	require.NoError(t, alone.Put(t.Context(), p))
	require.Len(t, alone.Diagnose(t.Context()), 1)
	assert.Contains(t, alone.Diagnose(t.Context())[0], "no link leads to another machine")
	require.NoError(t, alone.Remove(t.Context(), p.Name, mine.Name))
	require.Eventually(t, func() bool { return len(alone.Diagnose(t.Context())) == 0 }, 20*time.Second, 10*time.Millisecond)
}

// TestIncomingSources: a guest that has begun to run before anybody here knows
// speaks from its own addresses, and from no other.
func TestIncomingSources(t *testing.T) {
	labtest.Need(t, "nft")
	bothFamilies(t, func(t *testing.T, v4 bool) {
		lab := newMoveLab(t)
		d := open(t)
		p := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[v4]}, Routes: []netip.Prefix{routed[map[bool]int{true: 0, false: 1}[v4]]}})
		p.Incoming = true
		require.NoError(t, d.Put(t.Context(), p))
		g := plug(t, nil, p.Name)
		g.run()
		// The node takes packets to an address that is not the guest's, which answers from it.
		ipIn(t, nil, "route replace "+fabric.HostPrefix(guestAddr[v4].Next()).String()+" via "+guestAddr[v4].String()+" dev "+p.Name+" onlink table "+fmt.Sprint(fabric.ArrivingTable))
		for from, lost := range map[netip.Addr]int{guestAddr[v4]: 0, p.NIC.Routes[0].Addr().Next(): 0, guestAddr[v4].Next(): 20} {
			before := g.taken.Load()
			probes := lab.probe(t, from, 20)
			<-probes.Sent()
			assert.Equal(t, lost, probes.Stop().Lost, from)
			assert.EqualValues(t, before+20, g.taken.Load(), from)
		}
		require.NoError(t, d.Remove(t.Context(), p.Name))
		require.Eventually(t, func() bool {
			out, err := exec.Command("nft", "list", "table", "inet", "vmfabric").CombinedOutput()
			return err == nil && !strings.Contains(string(out), p.Name)
		}, 20*time.Second, 50*time.Millisecond, "nothing is let through any more")
	})
}
