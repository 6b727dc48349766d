package agent_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

// neighbour is there before those that are refused.
var neighbour = guest("db", "203.0.113.20 2001:db8:100:1::20 198.51.100.16/28 2001:db8:200:10::/60")

// manyNICs gives n NICs of an address each.
func manyNICs(n int) (nics []string) {
	for i := range n {
		nics = append(nics, fmt.Sprintf("203.0.113.%d", 100+i))
	}
	return nics
}

// ofMAC gives a guest whose NIC has a MAC address.
func ofMAC(m fabric.MAC) fabric.VM {
	vm := guest("web", "203.0.113.10")
	vm.NICs[0].MAC = m
	return vm
}

// refusals are guests that are not admitted beside neighbour, and why.
var refusals = []struct {
	name string
	vm   fabric.VM
	why  string
}{
	{
		"IPv4 outside the pools", guest("web", "192.0.2.1"),
		"NIC 0: address 192.0.2.1: outside the pools of cluster msk1; choose one from public4 (203.0.113.0/24), or add a pool",
	},
	{
		"IPv6 outside the pools", guest("web", "203.0.113.10 2001:db8:999::1"),
		"NIC 0: address 2001:db8:999::1: outside the pools of cluster msk1; choose one from public6 (2001:db8:100::/48), or add a pool",
	},
	{
		"broadcast", guest("web", "255.255.255.255"),
		"NIC 0: address 255.255.255.255: outside the pools of cluster msk1; choose one from public4 (203.0.113.0/24), or add a pool",
	},
	{
		"IPv4 excluded", guest("web", "203.0.113.0"),
		"NIC 0: address 203.0.113.0: excluded from pool public4; choose another from 203.0.113.0/24",
	},
	{
		"IPv6 excluded", guest("web", "203.0.113.10", "2001:db8:100::7"),
		"NIC 1: address 2001:db8:100::7: excluded from pool public6; choose another from 2001:db8:100::/48",
	},
	{
		"IPv4 gateway", guest("web", "169.254.1.1"),
		"NIC 0: address 169.254.1.1: it is the cluster's gateway; choose one from the pools",
	},
	{
		"IPv6 gateway", guest("web", "fe80::1"),
		"NIC 0: address fe80::1: it is the cluster's gateway; choose one from the pools",
	},
	{
		"IPv4-mapped", guest("web", "::ffff:203.0.113.10"),
		"NIC 0: address ::ffff:203.0.113.10: zones and IPv4-mapped addresses are not for guests; write the plain address",
	},
	{
		"zone", guest("web", "fe80::7%eth0"),
		"NIC 0: address fe80::7%eth0: zones and IPv4-mapped addresses are not for guests; write the plain address",
	},
	{
		"no address", guest("web", "203.0.113.10", ""),
		"NIC 1: no address; give it at least one from the pools",
	},
	{
		"the gateway's MAC", ofMAC(fabric.DefaultMAC),
		"NIC 0: MAC address 02:00:5e:00:01:01: it is the gateway's, which the other end of the link has; give the NIC another one",
	},
	{
		"multicast MAC", ofMAC(fabric.MAC{0x01, 0x00, 0x5e, 0, 0, 1}),
		"NIC 0: MAC address 01:00:5e:00:00:01: it is not that of one host; give the NIC a unicast address, such as 52:54:00:12:34:56",
	},
	{
		"broadcast MAC", ofMAC(fabric.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}),
		"NIC 0: MAC address ff:ff:ff:ff:ff:ff: it is not that of one host; give the NIC a unicast address, such as 52:54:00:12:34:56",
	},
	{
		"empty address",
		fabric.VM{Name: "web", NICs: []fabric.NIC{{Addresses: []netip.Addr{{}}}}},
		"NIC 0: an address or a route is empty; write 203.0.113.10 or 198.51.100.0/29",
	},
	{
		"empty route",
		fabric.VM{Name: "web", NICs: []fabric.NIC{{Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.10")}, Routes: []netip.Prefix{{}}}}},
		"NIC 0: an address or a route is empty; write 203.0.113.10 or 198.51.100.0/29",
	},

	{
		"IPv4 held by another", guest("web", "203.0.113.10", "203.0.113.20"),
		`NIC 1: 203.0.113.20: held by VM "db" on this node; detach that first, or choose another`,
	},
	{
		"IPv6 held by another", guest("web", "203.0.113.10 2001:db8:100:1::20"),
		`NIC 0: 2001:db8:100:1::20: held by VM "db" on this node; detach that first, or choose another`,
	},
	{
		"IPv4 route held by another", guest("web", "203.0.113.10 198.51.100.16/28"),
		`NIC 0: 198.51.100.16/28: held by VM "db" on this node; detach that first, or choose another`,
	},
	{
		"IPv4 route inside another's", guest("web", "203.0.113.10 198.51.100.24/29"),
		`NIC 0: 198.51.100.24/29: inside 198.51.100.16/28, which is routed to VM "db" on this node; choose another`,
	},
	{
		"IPv6 route inside another's", guest("web", "2001:db8:100:1::10 2001:db8:200:11::/64"),
		`NIC 0: 2001:db8:200:11::/64: inside 2001:db8:200:10::/60, which is routed to VM "db" on this node; choose another`,
	},
	{
		"one address of another's route", guest("web", "203.0.113.10 198.51.100.17/32"),
		`NIC 0: 198.51.100.17: inside 198.51.100.16/28, which is routed to VM "db" on this node; choose another`,
	},
	{
		"IPv4 route around another's", guest("web", "203.0.113.10 198.51.100.0/24"),
		`NIC 0: 198.51.100.0/24: 198.51.100.16/28 in it is held by VM "db" on this node; choose another`,
	},
	{
		"IPv6 route around another's", guest("web", "2001:db8:100:1::10 2001:db8:200::/48"),
		`NIC 0: 2001:db8:200::/48: 2001:db8:200:10::/60 in it is held by VM "db" on this node; choose another`,
	},
	{
		"IPv4 route around another's address", guest("web", "203.0.113.10 203.0.113.16/28"),
		`NIC 0: 203.0.113.16/28: 203.0.113.20 in it is held by VM "db" on this node; choose another`,
	},
	{
		"IPv6 route around another's address", guest("web", "2001:db8:100:2::10 2001:db8:100:1::/64"),
		`NIC 0: 2001:db8:100:1::/64: 2001:db8:100:1::20 in it is held by VM "db" on this node; choose another`,
	},

	{
		"IPv4 twice on a NIC", guest("web", "203.0.113.10 203.0.113.10"),
		"NIC 0: 203.0.113.10 is given twice (also to NIC 0); remove one",
	},
	{
		"IPv6 twice on two NICs", guest("web", "2001:db8:100:1::10", "2001:db8:100:1::10"),
		"NIC 1: 2001:db8:100:1::10 is given twice (also to NIC 0); remove one",
	},
	{
		"route twice", guest("web", "203.0.113.10 198.51.100.0/29", "203.0.113.11 198.51.100.0/29"),
		"NIC 1: 198.51.100.0/29 is given twice (also to NIC 0); remove one",
	},

	{
		"IPv6 route without IPv6", guest("web", "203.0.113.10 2001:db8:200::/64"),
		"NIC 0: route 2001:db8:200::/64 has no address of its family to be routed through; add one to the NIC",
	},
	{
		"IPv4 route without IPv4", guest("web", "203.0.113.10", "2001:db8:100:1::10 198.51.100.0/29"),
		"NIC 1: route 198.51.100.0/29 has no address of its family to be routed through; add one to the NIC",
	},
	{
		"IPv4 route with host bits", guest("web", "203.0.113.10 198.51.100.1/29"),
		"NIC 0: route 198.51.100.1/29 has bits beyond its length; write 198.51.100.0/29",
	},
	{
		"IPv6 route with host bits", guest("web", "2001:db8:100:1::10 2001:db8:200::1/64"),
		"NIC 0: route 2001:db8:200::1/64 has bits beyond its length; write 2001:db8:200::/64",
	},
	{
		"IPv4 default route", guest("web", "203.0.113.10 0.0.0.0/0"),
		"NIC 0: route 0.0.0.0/0 is the whole Internet; route a prefix that is yours",
	},
	{
		"IPv6 default route", guest("web", "2001:db8:100:1::10 ::/0"),
		"NIC 0: route ::/0 is the whole Internet; route a prefix that is yours",
	},
	{
		"half of the Internet", guest("web", "203.0.113.10 0.0.0.0/1"),
		"NIC 0: route 0.0.0.0/1: not a prefix of unicast addresses; route one that is yours",
	},
	{
		"loopback inside the route", guest("web", "203.0.113.10 126.0.0.0/7"),
		"NIC 0: route 126.0.0.0/7: not a prefix of unicast addresses; route one that is yours",
	},
	{
		"multicast route", guest("web", "2001:db8:100:1::10 ff05::/64"),
		"NIC 0: route ff05::/64: not a prefix of unicast addresses; route one that is yours",
	},
	{
		"link-local route", guest("web", "203.0.113.10 169.254.1.0/24"),
		"NIC 0: route 169.254.1.0/24: not a prefix of unicast addresses; route one that is yours",
	},
	{
		"IPv4-mapped route", guest("web", "2001:db8:100:1::10 ::ffff:198.51.100.0/120"),
		"NIC 0: route ::ffff:198.51.100.0/120: not a prefix; write 198.51.100.0/29",
	},
	{
		"route around a pool", guest("web", "203.0.113.10 203.0.112.0/23"),
		"NIC 0: route 203.0.112.0/23: it holds all of pool public4; route a prefix that is not other guests'",
	},
	{
		"IPv6 route around a pool", guest("web", "2001:db8:100:1::10 2001:db8:100::/40"),
		"NIC 0: route 2001:db8:100::/40: it holds all of pool public6; route a prefix that is not other guests'",
	},
	{
		"route with a node", guest("web", "203.0.113.10 10.10.0.20/30"),
		"NIC 0: route 10.10.0.20/30: it holds the address of node node1 (10.10.0.21); route a prefix that is yours",
	},
	{
		"IPv6 route with a node", guest("web", "2001:db8:100:1::10 fd00::22/128"),
		"NIC 0: route fd00::22/128: it holds the address of node node2 (fd00::22); route a prefix that is yours",
	},
	{
		"route with a reflector and more", guest("web", "203.0.113.10 10.10.0.0/24"),
		"NIC 0: route 10.10.0.0/24: it holds the address of reflector rr1 (10.10.0.11); route a prefix that is yours",
	},
	{
		"IPv6 route with a core gateway", guest("web", "2001:db8:100:1::10 fd00::/126"),
		"NIC 0: route fd00::/126: it holds the address of core gateway core2 (fd00::1); route a prefix that is yours",
	},
	{
		"route in the underlay", guest("web", "203.0.113.10 10.10.0.64/28"),
		"NIC 0: route 10.10.0.64/28: it overlaps 10.10.0.0/24, where the cluster's own machines are, so that the guest could pose as one; route a prefix that is not the underlay's",
	},
	{
		"IPv6 route in the underlay", guest("web", "2001:db8:100:1::10 fd00::1:0/112"),
		"NIC 0: route fd00::1:0/112: it overlaps fd00::/64, where the cluster's own machines are, so that the guest could pose as one; route a prefix that is not the underlay's",
	},
	{
		"route outside what the cluster routes", guest("web", "203.0.113.10 192.0.2.0/24"),
		"NIC 0: route 192.0.2.0/24: outside the prefixes that cluster msk1 routes to guests (198.51.100.0/24); choose one there, or add it under routed",
	},

	{"too many NICs", guest("web", manyNICs(65)...), "65 NICs; a guest has at most 64"},
	{"too many addresses", guest("web", strings.Repeat("203.0.113.10 ", 257)), "NIC 0: more than 256 addresses or routes"},
	{
		"unknown kind",
		fabric.VM{Name: "web", NICs: []fabric.NIC{{Addresses: web().NICs[0].Addresses, Kind: "bridge"}}},
		`NIC 0: kind "bridge" is not one of tap, veth, adopt`,
	},
	{
		"small MTU",
		fabric.VM{Name: "web", NICs: []fabric.NIC{{Addresses: web().NICs[0].Addresses, MTU: 1279}}},
		"NIC 0: MTU 1279 is out of range; IPv6 needs 1280, a tap takes at most 65521",
	},
}

func TestRefusals(t *testing.T) {
	for _, tt := range refusals {
		t.Run(tt.name, func(t *testing.T) {
			n := fresh(t)
			n.apply(neighbour, fabric.Live)
			n.journal.Take()
			for _, before := range []want{{web(), fabric.Absent}, {web(), fabric.Live}} {
				n.apply(before.vm, before.state)
				n.journal.Take()
				for _, bring := range []func() error{
					func() error { return n.Apply(t.Context(), tt.vm, fabric.Live) },
					func() error { return n.Apply(t.Context(), tt.vm, fabric.Wired) },
					func() error { return n.Started(t.Context(), tt.vm) },
				} {
					err := bring()
					require.EqualError(t, err, "guest web refused: "+tt.why)
					require.ErrorIs(t, err, fabric.ErrRefused)
					assert.NotContains(t, err.Error(), "\n")
				}
				n.did()
				n.holds(want{neighbour, fabric.Live}, before)
				assert.Empty(t, n.problems())
			}
		})
	}
}

func TestRefusedNames(t *testing.T) {
	n := fresh(t)
	for _, tt := range []struct{ name, why string }{
		{"", "the VM has no name"},
		{"..", `VM name "..": a name has no '/', and is not '.' or '..'; rename the VM`},
		{"a/b", `VM name "a/b": a name has no '/', and is not '.' or '..'; rename the VM`},
		{"a\nb", `VM name "a\nb" has control characters; rename the VM`},
		{"a\xff", `VM name "a\xff" is not UTF-8`},
		{strings.Repeat("x", 181), "VM name of 181 bytes; at most 180"},
	} {
		err := n.Apply(t.Context(), guest(tt.name, "203.0.113.10"), fabric.Live)
		require.EqualError(t, err, "guest "+tt.name+" refused: "+tt.why)
		require.ErrorIs(t, err, fabric.ErrRefused)
	}
	n.did()
}

// These two names shorten to one. The second guest must not get the first's port.
func TestRefusedWhenNamesShortenToOne(t *testing.T) {
	const one, two, port = "customer-34959", "customer-195432", "cusvcd2qy7_net0"
	require.Equal(t, port, fabric.PortName(one, 0))
	require.Equal(t, port, fabric.PortName(two, 0))
	n := fresh(t)
	n.apply(guest(one, "203.0.113.10"), fabric.Live)
	n.journal.Take()
	err := n.Apply(t.Context(), guest(two, "203.0.113.11"), fabric.Live)
	require.EqualError(t, err, `guest customer-195432 refused: NIC 0: port cusvcd2qy7_net0 is that of VM "customer-34959", whose name shortens to the same; rename one of the two`)
	require.ErrorIs(t, err, fabric.ErrRefused)
	n.did()
	n.apply(fabric.VM{Name: two}, fabric.Absent)
	n.holds(want{guest(one, "203.0.113.10"), fabric.Live})
	n.apply(fabric.VM{Name: one}, fabric.Absent)
	n.apply(guest(two, "203.0.113.11"), fabric.Live)
}

// A guest's own address may lie in its own route, and what one gives up
// another may take, with all that is in it.
func TestClaimsAreGivenBack(t *testing.T) {
	n := fresh(t)
	n.apply(guest("web", "203.0.113.10 203.0.113.8/29 2001:db8:100:1::10 2001:db8:100:1::/64"), fabric.Live)
	n.apply(guest("db", "203.0.113.20 198.51.100.0/29"), fabric.Live)
	inside := guest("in", "203.0.113.9 2001:db8:100:1::9 198.51.100.8/29")
	require.ErrorIs(t, n.Apply(t.Context(), inside, fabric.Live), fabric.ErrRefused)
	n.apply(guest("web", "203.0.113.10 2001:db8:100:1::10"), fabric.Live)
	n.apply(inside, fabric.Live)
	// One guest's route of a length has gone; the other's still counts.
	err := n.Apply(t.Context(), guest("last", "203.0.113.30 198.51.100.4/30"), fabric.Live)
	require.EqualError(t, err, `guest last refused: NIC 0: 198.51.100.4/30: inside 198.51.100.0/29, which is routed to VM "db" on this node; choose another`)
}

func TestRefusedFamilies(t *testing.T) {
	four, six := cluster(), cluster()
	four.Pools, four.Reflectors, four.Core, four.Routed = four.Pools[:1], four.Reflectors[:1], four.Core[:1], nil
	six.Pools, six.Reflectors, six.Core, six.Routed = six.Pools[1:], six.Reflectors[1:], six.Core[1:], nil
	for _, tt := range []struct {
		c    fabric.Cluster
		nic  string
		want string
	}{
		{four, "2001:db8:100:1::10", "guest web refused: NIC 0: address 2001:db8:100:1::10: cluster msk1 has no IPv6 pool; add one, or leave the address out"},
		{six, "203.0.113.10", "guest web refused: NIC 0: address 203.0.113.10: cluster msk1 has no IPv4 pool; add one, or leave the address out"},
		// Without a list of what is routed, whatever is free may be.
		{four, "203.0.113.10 192.0.2.0/24", ""},
		{six, "2001:db8:100:1::10 2001:db8:300::/64", ""},
	} {
		a, err := agent.New(agent.Config{
			Cluster: tt.c, Node: "node1", Dataplane: fake.NewDataplane(nil), Speaker: fake.NewSpeaker(nil), Store: fake.NewStore(nil),
		})
		require.NoError(t, err)
		require.NoError(t, a.Adopt(t.Context()))
		err = a.Apply(t.Context(), guest("web", tt.nic), fabric.Live)
		if tt.want == "" {
			require.NoError(t, err)
			continue
		}
		require.EqualError(t, err, tt.want)
	}
}
