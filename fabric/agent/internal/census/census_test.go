package census

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/vmfabric/vmfabric/fabric"
)

var noon = time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)

func pools() *fabric.Cluster {
	return &fabric.Cluster{Name: "msk1", Gateway: fabric.Gateway{IPv4: netip.MustParseAddr("169.254.1.1"), IPv6: netip.MustParseAddr("fe80::1")}, Pools: []fabric.Pool{
		{Name: "public4", Prefix: netip.MustParsePrefix("203.0.113.0/24"), Exclude: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/32")}, Reserve: []fabric.Reservation{{Prefix: prefix("203.0.113.9"), Note: "vpn"}}},
		{Name: "public6", Prefix: netip.MustParsePrefix("2001:db8:100::/48"), Reserve: []fabric.Reservation{{Prefix: prefix("2001:db8:100::9"), Note: "vpn"}}},
	}}
}

func prefix(s string) netip.Prefix { return fabric.HostPrefix(netip.MustParseAddr(s)) }

// guest is one of libvirt's that is live, and names its addresses.
func guest(node, name string, addresses ...string) Guest {
	g := Guest{Node: node, Entry: fabric.GuestEntry{VM: fabric.VM{Name: name, UUID: "uuid-of-" + name, Origin: "libvirt", NICs: []fabric.NIC{{}}}, States: []fabric.State{fabric.Live}}}
	for n, a := range addresses {
		g.Entry.VM.NICs[0].Addresses = append(g.Entry.VM.NICs[0].Addresses, netip.MustParseAddr(a))
		g.Wants = append(g.Wants, fabric.Want{N: n, Prefix: prefix(a)})
	}
	return g
}

func allocated(vm, node, address string) fabric.Allocation {
	return fabric.Allocation{Prefix: prefix(address), State: fabric.Allocated, Guest: fabric.Identity("libvirt uuid-of-" + vm), VM: vm, Node: node, Since: noon}
}

func lines(p Plan) (all []string) {
	for _, e := range p.Entries {
		all = append(all, fmt.Sprintf("%s on %s: %s %s: %s", e.VM, e.Node, e.Prefix.Addr(), e.Outcome, e.Text))
	}
	return all
}

// families runs a test for an address of each family: the n-th of the first pool.
func families(t *testing.T, f func(t *testing.T, address func(n int) string)) {
	for family, format := range map[string]string{"IPv4": "203.0.113.%d", "IPv6": "2001:db8:100::%d"} {
		t.Run(family, func(t *testing.T) { f(t, func(n int) string { return fmt.Sprintf(format, n) }) })
	}
}

// TestConflicts: each is named, and nothing of its guest is recorded.
func TestConflicts(t *testing.T) {
	families(t, func(t *testing.T, a func(int) string) {
		reserved := fabric.Allocation{Prefix: prefix(a(10)), State: fabric.Reserved, Note: "printer"}
		rests := allocated("old", "node1", a(10))
		rests.State, rests.Until = fabric.Quarantined, noon.Add(time.Hour)
		given := allocated("old", "node2", a(10))
		given.Dynamic, given.Pool = true, "public"
		wide := reserved
		wide.Prefix, _ = prefix(a(10)).Addr().Prefix(prefix(a(10)).Bits() - 4)
		for name, tc := range map[string]struct {
			others   []Guest
			has      []fabric.Allocation
			complete bool
			address  string
			says     string
		}{
			"two guests":        {others: []Guest{guest("node2", "db", a(10))}, says: "guest db (libvirt uuid-of-db) on node2 has it too; stop one of the two, or give it another address"},
			"reserved":          {has: []fabric.Allocation{reserved}, says: "it is reserved (printer); end the reservation if it is meant for this guest, or give the guest another address"},
			"in a reservation":  {has: []fabric.Allocation{wide}, says: fmt.Sprintf("it has addresses in common with %s, which is reserved (printer); give the guest another address", wide.Prefix)},
			"at rest":           {has: []fabric.Allocation{rests}, says: "guest old (libvirt uuid-of-old) gave it back, and it rests until 2026-11-30 13:00:00; wait, or give the guest another address"},
			"a stopped guest's": {has: []fabric.Allocation{given}, complete: true, says: "pool public gave it to guest old (libvirt uuid-of-old) on node2, which keeps it while it is stopped; release it, or give one of the two another address"},
			"perhaps another's": {has: []fabric.Allocation{allocated("old", "node3", a(10))}, says: "guest old (libvirt uuid-of-old) on node3 named it, and may run on a node that does not answer; ask again when all nodes do"},
			"by the file":       {address: a(9), says: "the cluster file reserves it in pool " + map[bool]string{true: "public4", false: "public6"}[prefix(a(9)).Addr().Is4()] + " (vpn); if it is reserved for this guest, leave it: the agent of the guest's node records it"},
			"outside":           {address: map[bool]string{true: "192.0.2.1", false: "2001:db8:200::1"}[prefix(a(9)).Addr().Is4()], says: "outside the pools of cluster msk1; choose one from " + map[bool]string{true: "public4 (203.0.113.0/24)", false: "public6 (2001:db8:100::/48)"}[prefix(a(9)).Addr().Is4()] + ", or add a pool"},
		} {
			t.Run(name, func(t *testing.T) {
				address := a(10)
				if tc.address != "" {
					address = tc.address
				}
				p := Decide(pools(), append(tc.others, guest("node1", "web", address, a(40))), tc.has, tc.complete)
				of := slices.DeleteFunc(lines(p), func(l string) bool { return l[:3] != "web" })
				assert.Equal(t, []string{
					fmt.Sprintf("web on node1: %s conflict: %s", address, tc.says),
					fmt.Sprintf("web on node1: %s held back: not recorded while another address of the guest is in conflict", a(40)),
				}, of)
				assert.Empty(t, p.Requests)
				for _, of := range p.Of {
					assert.Negative(t, of)
				}
			})
		}
	})
	g := guest("node1", "web", "203.0.113.0")
	assert.Contains(t, lines(Decide(pools(), []Guest{g}, nil, true))[0], "excluded")
	g.Entry.Orphan = true
	assert.Contains(t, lines(Decide(pools(), []Guest{g}, nil, true))[0], "its agent lost what it knew of the guest")
}

// TestRecorded: what the registry lacks, or has otherwise.
func TestRecorded(t *testing.T) {
	families(t, func(t *testing.T, a func(int) string) {
		web := guest("node1", "web", a(10), a(11))
		rests := allocated("web", "node1", a(11))
		rests.State = fabric.Quarantined
		renamed := allocated("web", "node1", a(11))
		renamed.VM = "former"
		position := allocated("web", "node1", a(11))
		position.NIC = 1
		for name, tc := range map[string]struct {
			has   []fabric.Allocation
			known int
			want  []string
		}{
			"nothing is known":    {nil, 0, []string{"web on node1: " + a(10) + " to record: ", "web on node1: " + a(11) + " to record: "}},
			"all is known":        {[]fabric.Allocation{allocated("web", "node1", a(10)), allocated("web", "node1", a(11))}, 2, nil},
			"one is known":        {[]fabric.Allocation{allocated("web", "node1", a(10))}, 1, []string{"web on node1: " + a(11) + " to record: "}},
			"of another owner":    {[]fabric.Allocation{allocated("web", "node1", a(10)), allocated("web", "node2", a(11))}, 2, nil},
			"of another name":     {[]fabric.Allocation{allocated("web", "node1", a(10)), renamed}, 1, []string{"web on node1: " + a(11) + " to record: the registry has the guest as former"}},
			"of another NIC":      {[]fabric.Allocation{allocated("web", "node1", a(10)), position}, 1, []string{"web on node1: " + a(11) + " to record: "}},
			"its own, at rest":    {[]fabric.Allocation{allocated("web", "node1", a(10)), rests}, 1, []string{"web on node1: " + a(11) + " to record: taken out of its quarantine, which is this guest's"}},
			"another's, no more":  {[]fabric.Allocation{allocated("web", "node1", a(10)), allocated("old", "node2", a(11))}, 1, []string{"web on node1: " + a(11) + " to record: taken over from guest old (libvirt uuid-of-old), which named it and runs nowhere"}},
			"the file, but it is": {[]fabric.Allocation{allocated("web", "node1", a(10)), allocated("web", "node1", a(11)), allocated("vpn", "node1", a(9))}, 2, nil},
		} {
			t.Run(name, func(t *testing.T) {
				p := Decide(pools(), []Guest{web}, tc.has, true)
				assert.Equal(t, tc.want, lines(p))
				assert.Equal(t, tc.known, p.Known)
				assert.Equal(t, 1, p.Guests)
				if tc.want == nil {
					assert.Empty(t, p.Requests)
					return
				}
				assert.Equal(t, []fabric.AllocationRequest{{Guest: "libvirt uuid-of-web", VM: "web", Node: "node1", Wants: web.Wants}}, p.Requests)
				for _, of := range p.Of {
					assert.Zero(t, of)
				}
			})
		}
		wide := allocated("web", "node1", a(10))
		wide.Prefix, _ = wide.Prefix.Addr().Prefix(wide.Prefix.Bits() - 4)
		assert.Equal(t, 2, Decide(pools(), []Guest{web}, []fabric.Allocation{wide}, true).Known, "its own prefix is around them")
		vpn := Decide(pools(), []Guest{guest("node1", "vpn", a(9))}, []fabric.Allocation{allocated("vpn", "node1", a(9))}, true)
		assert.Equal(t, 1, vpn.Known, "it has what is reserved for it")
	})
}

// TestGuestThatMoves is on two nodes, and counts once, where it is live.
func TestGuestThatMoves(t *testing.T) {
	families(t, func(t *testing.T, a func(int) string) {
		here, there := guest("node1", "web", a(10)), guest("node2", "web", a(10))
		here.Entry.States[0] = fabric.Wired
		other := guest("node3", "db", a(11))
		for _, guests := range [][]Guest{{here, there, other}, {other, there, here}} {
			p := Decide(pools(), guests, nil, true)
			assert.Equal(t, []string{"web on node2: " + a(10) + " to record: ", "db on node3: " + a(11) + " to record: "}, lines(p))
			assert.Equal(t, 2, p.Guests)
			assert.Equal(t, []int{0, 1}, p.Of)
		}
	})
}

// TestPrefixes of guests are compared as addresses are.
func TestPrefixes(t *testing.T) {
	families(t, func(t *testing.T, a func(int) string) {
		around, err := prefix(a(16)).Addr().Prefix(prefix(a(16)).Bits() - 3)
		assert.NoError(t, err)
		routed := func(node, name string, route netip.Prefix, addresses ...string) Guest {
			g := guest(node, name, addresses...)
			g.Entry.VM.NICs[0].Routes = []netip.Prefix{route}
			g.Wants = append(g.Wants, fabric.Want{N: len(addresses), Prefix: route})
			return g
		}
		web, db := routed("node1", "web", around, a(10)), guest("node2", "db", a(17))
		assert.Equal(t, []string{
			"web on node1: " + a(10) + " held back: not recorded while another address of the guest is in conflict",
			"web on node1: " + around.Addr().String() + " conflict: guest db (libvirt uuid-of-db) on node2 has it too; stop one of the two, or give it another address",
			"db on node2: " + a(17) + " conflict: guest web (libvirt uuid-of-web) on node1 has it too; stop one of the two, or give it another address",
		}, lines(Decide(pools(), []Guest{web, db}, nil, true)))
		assert.Len(t, Decide(pools(), []Guest{web}, nil, true).Requests, 1)

		inside := allocated("old", "node2", a(17))
		p := Decide(pools(), []Guest{web}, []fabric.Allocation{inside}, true)
		assert.Contains(t, lines(p)[1], "it has addresses in common with "+a(17)+", which is that of guest old (libvirt uuid-of-old); give the guest another address")

		own := allocated("web", "node1", a(16))
		own.Prefix, own.Dynamic, own.Pool = around, true, "own"
		g := routed("node1", "web", around, a(17))
		g.Wants = []fabric.Want{{Pool: "own", Prefix: around}, {Prefix: prefix(a(17))}}
		p = Decide(pools(), []Guest{g}, []fabric.Allocation{own}, true)
		assert.Empty(t, p.Entries)
		assert.Equal(t, 2, p.Known, "its address is in its prefix")

		elsewhere := netip.MustParsePrefix("198.51.100.0/29")
		if around.Addr().Is6() {
			elsewhere = netip.MustParsePrefix("2001:db8:999::/64")
		}
		assert.Len(t, Decide(pools(), []Guest{routed("node1", "web", elsewhere, a(10))}, nil, true).Requests, 1, "a route need not be in a pool")
		whole := netip.PrefixFrom(around.Addr(), around.Bits()-29+24).Masked()
		if around.Addr().Is6() {
			whole = netip.MustParsePrefix("2001:db8:100::/48")
		}
		assert.Contains(t, lines(Decide(pools(), []Guest{routed("node1", "web", whole, a(10))}, nil, true))[1], "it holds all of pool")
	})
}

// TestIndex finds what a look through all would find.
func TestIndex(t *testing.T) {
	var items []item[string]
	for _, p := range []string{
		"203.0.113.0/24", "203.0.113.0/28", "203.0.113.8/29", "203.0.113.9/32", "203.0.113.9/32", "203.0.114.0/32", "0.0.0.0/0",
		"2001:db8::/32", "2001:db8:1::/48", "2001:db8:1::/64", "2001:db8:1::1/128", "2001:db8:2::/64", "::/0", "2001:db8:1:0:8000::/65",
	} {
		items = append(items, item[string]{netip.MustParsePrefix(p), p})
	}
	x := newIndex(items)
	for _, of := range items {
		for _, p := range []netip.Prefix{of.prefix, fabric.HostPrefix(of.prefix.Addr()), fabric.HostPrefix(of.prefix.Addr().Next())} {
			var want []string
			for _, i := range items {
				if i.prefix.Overlaps(p) {
					want = append(want, i.value)
				}
			}
			assert.ElementsMatch(t, want, x.overlapping(p), "%s", p)
		}
	}
}
