package e2e

import (
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/lab/routers"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// TestCompromisedNode has a node that has the cluster's key and says what is not so. What
// the others do not believe costs the guest not a packet; what they believe is named by
// their status, and over in a bounded time, or when the node is cut off.
func TestCompromisedNode(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "bird")
	s := start(t, options{nodes: 3, noAgent: true, unmanned: []string{"node2"}})
	liar := s.startLiar("node2")
	for _, a := range s.agents {
		a.start()
		a.established()
	}
	vm, hand := veth("web", "203.0.113.10", "2001:db8:100::10"), veth("hand", "203.0.113.11", "2001:db8:100::11")
	vm.Origin, vm.UUID = "libvirt", "6f1d9a4e-3c53-4c5b-9f0e-0c8a3a6f7b21"
	s.run("node1", vm)
	s.run("node1", hand)
	for _, g := range []fabric.VM{vm, hand} {
		s.coreHas(s.top.Nodes["node1"], g.Prefixes()...)
	}
	s.reaches(s.top.Client, testAddresses(vm.NICs[0])...)
	c := &conspiracy{s, liar, vm, hand}
	c.isNotBelieved()
	c.cannotMakeAgentsLoop()
	c.refusesStarts()
	c.announcesInPoolsAlone()
	c.divertsForSeconds()
	c.takesTheGuest()
}

// conspiracy is a node that lies, and the guests of another about which it does.
type conspiracy struct {
	*system
	*liar
	vm, hand fabric.VM
}

// about is a notice about a guest, as the guest's own node would word it.
func about(kind fabric.NoticeKind, vm fabric.VM, epoch uint64) fabric.Notice {
	return fabric.Notice{Kind: kind, VM: vm.Name, UUID: vm.UUID, Identity: vm.Identity(), Prefixes: vm.Prefixes(), Epoch: epoch}
}

// epoch is that of a guest at its node, as that tells any node which asks.
func (c *conspiracy) epoch(vm fabric.VM) uint64 {
	c.t.Helper()
	n := about(fabric.Acquiring, vm, 0)
	n.Identity, n.VM, n.UUID = "libvirt 11111111-2222-3333-4444-555555555555", "another", ""
	answer := c.says("node1", n)
	require.True(c.t, answer.Held)
	require.NotZero(c.t, answer.Epoch)
	return answer.Epoch
}

// unharmed looks that something costs the guests no packet, and changes no state.
func (c *conspiracy) unharmed(what string, do func()) {
	t := c.t
	t.Helper()
	before := c.agents["node1"].ask(hooks.List, fabric.VM{}).Ports
	both := slices.Concat(c.vm.NICs[0].Addresses, c.hand.NICs[0].Addresses)
	for i, r := range c.underProbe(fabric.VM{NICs: []fabric.NIC{{Addresses: both}}}, probeEvery, func() {
		do()
		time.Sleep(300 * time.Millisecond) // for what it would set off
	}) {
		assert.Zero(t, r.Lost, "%s: packets to %s: %+v", what, both[i], r)
		assert.Positive(t, r.Received, what)
	}
	after := c.agents["node1"].ask(hooks.List, fabric.VM{}).Ports
	require.Len(t, after, len(before))
	for i := range after {
		assert.Equal(t, before[i].State, after[i].State, "%s: %s", what, after[i].VM)
	}
}

// isNotBelieved says what no node may say of another's guest.
func (c *conspiracy) isNotBelieved() {
	t := c.t
	t.Helper()
	epoch := c.epoch(c.vm)
	another := func(kind fabric.NoticeKind, acquired time.Time) fabric.Notice {
		n := about(kind, c.vm, epoch+1)
		n.VM, n.UUID, n.Identity, n.Acquired = "another", "", "libvirt 11111111-2222-3333-4444-555555555555", acquired
		return n
	}
	for what, n := range map[string]fabric.Notice{
		"a guest that did not arrive is cancelled":        about(fabric.Cancelled, c.vm, epoch),
		"a guest that was never there is released":        about(fabric.Released, c.vm, epoch+1),
		"a guest that runs elsewhere is gone for good":    about(fabric.Forgotten, c.vm, epoch+1),
		"it runs there, under an earlier epoch":           about(fabric.Arrived, c.vm, epoch-1),
		"it was claimed before":                           about(fabric.Claimed, c.vm, epoch-1),
		"it was claimed in a time that has not come":      about(fabric.Claimed, c.vm, fabric.RegistryEpoch-1),
		"it was claimed under an epoch of no registry":    about(fabric.Claimed, c.vm, math.MaxUint64),
		"another guest has just got its address":          another(fabric.Claimed, time.Now()),
		"another guest is about to start with it":         another(fabric.Acquiring, time.Now()),
		"another guest arrives with it":                   another(fabric.Arriving, time.Now()),
		"another guest runs there with it":                another(fabric.Arrived, time.Now()),
		"a guest that was attached by hand runs there":    about(fabric.Arrived, c.hand, epoch+1<<20),
		"a guest that was attached by hand is claimed":    about(fabric.Claimed, c.hand, epoch+1<<20),
		"the guest is about to arrive, and never does so": about(fabric.Arriving, c.vm, epoch),
	} {
		c.unharmed(what, func() { c.says("node1", n) })
	}
	c.says("node1", about(fabric.Cancelled, c.vm, epoch))
	c.agents["node1"].complains("node node2 says that guest web has epoch ")
	c.says("node1", another(fabric.Claimed, time.Now())) // what a node says is listed for half a minute
	c.agents["node1"].complains("guest another on node2 has an address of it too; web has had it longer and keeps it")
}

// cannotMakeAgentsLoop: answers without an end, and of names that no guest has, are cut.
func (c *conspiracy) cannotMakeAgentsLoop() {
	t := c.t
	t.Helper()
	bad, same := fabric.GuestEntry{VM: veth("web\x1b[2J\nnode1 is fine")}, fabric.GuestEntry{VM: veth("same")}
	for what, answer := range map[string]fabric.Answer{
		"always more, always the same": {Guests: []fabric.GuestEntry{same}, More: true},
		"always more, and none":        {More: true},
		"a name for the terminal":      {Guests: []fabric.GuestEntry{bad}},
	} {
		c.does(lie{Answers: map[fabric.NoticeKind]fabric.Answer{fabric.Listing: answer, fabric.Acquiring: {Held: true, VM: "\n"}}})
		out, errs, _ := c.agents["node3"].cli("list", "--cluster")
		assert.Contains(t, out, "web_net0", what)
		assert.NotContains(t, out+errs, "\x1b", what)
		assert.NotContains(t, out, "\nnode1 is fine", what)
	}
	c.does(lie{Answers: map[fabric.NoticeKind]fabric.Answer{}})
	c.agents["node3"].does("list", "--cluster") // and an honest answer is taken
}

// refusesStarts: a guest does not start with an address that a node says it has. The node is
// named, and the guest starts once it does not say so.
func (c *conspiracy) refusesStarts() {
	c.t.Helper()
	has := fabric.Answer{Held: true, VM: "nobody", Identity: "libvirt 11111111-2222-3333-4444-555555555555", Acquired: time.Unix(1, 0), Prefix: fabric.HostPrefix(netip.MustParseAddr("203.0.113.12"))}
	c.does(lie{Answers: map[fabric.NoticeKind]fabric.Answer{fabric.Acquiring: has}})
	attach := []string{"attach", "new", "--address", "203.0.113.12,2001:db8:100::12", "--kind", "veth"}
	_, errs, code := c.agents["node3"].cli(attach...)
	assert.Equal(c.t, 1, code)
	assert.Contains(c.t, errs, "203.0.113.12 is held by guest nobody (libvirt 11111111-2222-3333-4444-555555555555) on node2; stop that one, or give new another address")
	c.does(lie{Answers: map[fabric.NoticeKind]fabric.Answer{}})
	c.agents["node3"].does(attach...)
}

// announcesInPoolsAlone: reflectors take nothing from the node but what guests may have,
// with the node itself as next hop.
func (c *conspiracy) announcesInPoolsAlone() {
	t := c.t
	t.Helper()
	two := c.top.Nodes["node2"]
	c.coreHas(c.top.Nodes["node3"], parsed("203.0.113.12/32", "2001:db8:100::12/128")...)
	before := c.coreRoutes()
	ours := parsed("203.0.113.30/32", "2001:db8:100::30/128")
	conf := c.announcement(two, "", c.cluster.Communities, append(parsed("0.0.0.0/0", "203.0.113.0/24", "192.0.2.77/32", "10.10.0.11/32", "::/0", "2001:db8:100::/64", "2001:db8:9::9/128", "fd00:10:10::11/128"), ours...)...)
	bird, err := routers.StartBird(soon(t), two, conf)
	require.NoError(t, err)
	c.coreHas(two, ours...)
	assert.ElementsMatch(t, append(before, ours...), c.coreRoutes())
	require.NoError(t, bird.Stop())
}

// coreRoutes lists the prefixes that the core gateway has by BGP.
func (c *conspiracy) coreRoutes() (all []netip.Prefix) {
	c.t.Helper()
	routes, err := c.core.Routes(soon(c.t))
	require.NoError(c.t, err)
	for _, r := range routes {
		if !slices.Contains(all, r.Prefix) {
			all = append(all, r.Prefix)
		}
	}
	return all
}

// divertsForSeconds: word that the guest runs on the other node is believed, until the
// hypervisor here does not confirm it; then it is not believed again.
func (c *conspiracy) divertsForSeconds() {
	t := c.t
	t.Helper()
	n := about(fabric.Arrived, c.vm, c.epoch(c.vm)+1)
	began := time.Now()
	assert.True(t, c.says("node1", n).Held)
	c.agents["node1"].complains("the hypervisor here did not say that it left; its packets went there for ")
	c.reaches(c.top.Client, testAddresses(c.vm.NICs[0])...)
	t.Logf("the guest is reached again %v after the word of the node", time.Since(began).Round(time.Millisecond))
	c.unharmed("it says so once more", func() { c.says("node1", n) })
}

// takesTheGuest: a later claim to the same guest has it withdrawn, which its node's status
// says. When the other node answers no more, the guest is announced here again.
func (c *conspiracy) takesTheGuest() {
	t := c.t
	t.Helper()
	one := c.agents["node1"]
	c.does(lie{Answers: map[fabric.NoticeKind]fabric.Answer{fabric.Claimed: {Held: true, VM: c.vm.Name, Identity: c.vm.Identity(), Epoch: c.epoch(c.vm) + 1}}})
	c.says("node1", about(fabric.Claimed, c.vm, c.epoch(c.vm)+1))
	one.complains("node2 has it, and began to run it later, so it is not announced here")
	c.nobodyHas(c.vm.Prefixes()...)
	c.coreHas(c.top.Nodes["node1"], c.hand.Prefixes()...)
	require.NoError(t, c.Kill())
	c.coreHas(c.top.Nodes["node1"], c.vm.Prefixes()...)
	c.reaches(c.top.Client, testAddresses(c.vm.NICs[0])...)
	st := one.status()
	assert.True(t, slices.ContainsFunc(st.Problems, func(p string) bool { return strings.Contains(p, "node2") }), "%q", st.Problems)
}
