package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/lab/clients"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

var allClients = flag.Bool("clients", false, "try the clients of all releases, and print the table of docs/guests.md")

// Resolvers of the cluster in TestClients, one of each family.
var resolvers = []netip.Addr{core.ClientAddr4, core.ClientAddr6}

// TestClients has guests configure themselves by what their distributions have for it,
// and move to another node. Without -clients it tries some of the machine's own.
func TestClients(t *testing.T) {
	if !*allClients {
		t.Parallel()
	}
	labtest.Need(t, "nsenter", "nft", "dhclient", "udhcpc")
	s := withResolvers(t)
	few := []string{"dhclient", "udhcpc", "systemd-networkd"}
	var table []*trial
	for _, root := range roots(t) {
		t.Run(root.Name, func(t *testing.T) {
			for _, c := range clients.In(root) {
				if !*allClients && !slices.Contains(few, c.Name) {
					continue
				}
				tr := s.trial(root, c, len(table))
				table = append(table, tr)
				t.Run(c.Name, func(t *testing.T) {
					if !*allClients {
						t.Parallel()
					}
					tr.run(t)
				})
			}
		})
	}
	printTrials(t, table)
}

// roots lists the roots of guests: the machine's own, or with -clients those of Debian.
func roots(t *testing.T) (all []clients.Root) {
	if !*allClients {
		return []clients.Root{clients.Host()}
	}
	for _, release := range clients.Releases {
		root, err := clients.Debian(t.Context(), release) // made by make guests
		require.NoError(t, err)
		all = append(all, root)
	}
	return all
}

// withResolvers starts a cluster of two nodes that tell their guests of resolvers.
func withResolvers(t *testing.T) *system {
	s := start(t, options{nodes: 2, change: func(c *fabric.Cluster) {
		c.Guests.DNS, c.Guests.Search, c.Guests.MTU = resolvers, []string{"example.net"}, 1400
	}})
	for _, a := range resolvers {
		s.serve(s.top.Client, a)
	}
	return s
}

// serve accepts connections on TCP port 7 of an address and echoes what comes.
func (s *system) serve(h *core.Host, a netip.Addr) {
	s.t.Helper()
	l, err := h.Listen("tcp", netip.AddrPortFrom(a, 7).String())
	require.NoError(s.t, err)
	s.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(conn, conn); conn.Close() }()
		}
	}()
}

// trial is a client in a guest of its own, and what it was seen to do.
type trial struct {
	s       *system
	t       *testing.T
	root    clients.Root
	client  clients.Client
	vm      fabric.VM
	own     [2]netip.Addr // that the guest is to have, IPv4 and IPv6
	guest   *clients.Guest
	wire    *core.Sniffer
	version string
	saw     [2]sight // IPv4, IPv6
	since   moments
	lease   map[string][]byte // the last answers, by the kind of what was asked
}

// sight is what the client did in a family.
type sight struct {
	address, route, reach, dns, renew, moved string
}

// trial makes the n-th trial.
func (s *system) trial(root clients.Root, c clients.Client, n int) *trial {
	tr := &trial{s: s, root: root, client: c, lease: map[string][]byte{}}
	tr.vm = veth(fmt.Sprintf("guest%d", n), fmt.Sprintf("203.0.113.%d", 10+n), fmt.Sprintf("2001:db8:100::%d", 10+n))
	tr.own = [2]netip.Addr(tr.vm.NICs[0].Addresses)
	return tr
}

func (tr *trial) run(t *testing.T) {
	node1, node2 := tr.s.top.Nodes["node1"], tr.s.top.Nodes["node2"]
	tr.starts(t, node1)
	defer tr.wire.Close()
	defer func() { assert.NoError(t, tr.guest.End()) }()
	defer func() {
		if t.Failed() {
			tr.explain()
		}
	}()
	for family, a := range tr.own {
		tr.online(family, a)
	}
	tr.exchanged()
	tr.renews("renews on node1", func(s *sight) *string { return &s.renew })
	tr.moves(node1, node2)
	tr.renews("renews on node2", func(s *sight) *string { return &s.moved })
	for family, a := range tr.own {
		tr.reaches(family, a)
	}
	tr.s.agents["node2"].ask(hooks.Remove, tr.vm)
	tr.tell()
}

// starts has the guest boot on a node.
func (tr *trial) starts(t *testing.T, node *core.Host) {
	tr.t = t
	var err error
	tr.version, err = tr.root.Version(t.Context(), tr.client.Package)
	require.NoError(t, err)
	tr.guest, err = clients.New(tr.s.lab, tr.vm.Name, tr.root)
	require.NoError(t, err)
	agent := tr.s.agents[node.Name()]
	agent.ask(hooks.Wire, tr.vm)
	require.NoError(t, tr.guest.Take(node, fabric.PeerName(tr.vm.Name, 0)))
	require.NoError(t, tr.guest.Connect(t.Context(), node))
	agent.ask(hooks.Live, tr.vm)
	tr.s.coreHas(node, tr.vm.Prefixes()...)
	tr.wire, err = tr.guest.Sniff()
	require.NoError(t, err)
	tr.boots()
}

// extent is how far the client is to get in a family.
func (tr *trial) extent(family int) clients.Extent {
	return []clients.Extent{tr.client.IPv4, tr.client.IPv6}[family]
}

// eventually is [system.eventually] for the test of the trial.
func (tr *trial) eventually(what string, f func() error) {
	tr.t.Helper()
	require.NoError(tr.t, core.Until(labtest.Soon(tr.t), f), what)
}

// online checks that the guest has its address, a default route, and resolvers.
func (tr *trial) online(family int, a netip.Addr) {
	saw := &tr.saw[family]
	*saw = sight{"-", "-", "-", "-", "-", "-"}
	if tr.extent(family) == clients.Nothing {
		return
	}
	tr.eventually("a default route", func() error { return tr.routed(a) })
	saw.route = "yes"
	if tr.extent(family) == clients.RouteOnly {
		has, err := tr.guest.Addrs(clients.NIC)
		require.NoError(tr.t, err)
		require.False(tr.t, slices.ContainsFunc(has, func(p netip.Prefix) bool { return p.Addr() == a }), "it has an address: it is better than it is said to be")
		return
	}
	tr.eventually("its address", func() error { return tr.has(a) })
	saw.address = fmt.Sprintf("/%d", tr.length(a))
	tr.reaches(family, a)
	tr.eventually("its resolver", func() error {
		out, err := tr.guest.Do(labtest.Soon(tr.t), tr.client.Resolvers)
		if err == nil && !strings.Contains(out, resolvers[family].String()) {
			err = fmt.Errorf("it has %q", out)
		}
		return err
	})
	saw.dns = "yes"
}

// routed reports an error unless the default route of an address's family leads to the
// gateway.
func (tr *trial) routed(a netip.Addr) error {
	everything := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if a.Is6() {
		everything = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	r, ok, err := tr.guest.Route(everything)
	if err != nil || !ok || !slices.Contains(r.Vias(), tr.s.cluster.Gateway.Addr(a)) {
		return fmt.Errorf("it has %v %t %w", r, ok, err)
	}
	return nil
}

// has reports an error unless the NIC has the address, ready to be used.
func (tr *trial) has(a netip.Addr) error {
	if tr.length(a) < 0 {
		return fmt.Errorf("the NIC has no %s", a)
	}
	return nil
}

// length gives the length of the prefix that the address has on the NIC; -1: the NIC
// does not have it, or it is tentative.
func (tr *trial) length(a netip.Addr) int {
	l, err := tr.guest.Link(clients.NIC)
	require.NoError(tr.t, err)
	all, err := tr.guest.Netlink().AddrList(l, netlink.FAMILY_ALL)
	require.NoError(tr.t, err)
	for _, has := range all {
		if ip, _ := netip.AddrFromSlice(has.IP); ip.Unmap() == a && has.Flags&unix.IFA_F_TENTATIVE == 0 {
			ones, _ := has.Mask.Size()
			return ones
		}
	}
	return -1
}

// reaches checks that packets pass in both directions, with the guest's own address.
func (tr *trial) reaches(family int, a netip.Addr) {
	if tr.extent(family) != clients.Online {
		return
	}
	client, peer := tr.s.top.Client, resolvers[family]
	_, err := client.Ping(labtest.Soon(tr.t), a)
	require.NoError(tr.t, err, "in")
	_, err = tr.guest.Ping(labtest.Soon(tr.t), peer)
	require.NoError(tr.t, err, "out")
	conn := tr.dials(tr.guest.Host, peer)
	local, _ := netip.AddrFromSlice(conn.LocalAddr().(*net.TCPAddr).IP)
	assert.Equal(tr.t, a, local.Unmap(), "the source that the guest chooses")
	conn.Close()
	l, err := tr.guest.Listen("tcp", netip.AddrPortFrom(a, 7).String())
	require.NoError(tr.t, err)
	defer l.Close()
	tr.dials(client, a).Close()
	tr.saw[family].reach = "yes"
}

// dials connects to TCP port 7.
func (tr *trial) dials(from *core.Host, to netip.Addr) (conn net.Conn) {
	tr.t.Helper()
	tr.eventually("a connection", func() (err error) {
		ctx, cancel := context.WithTimeout(tr.t.Context(), 5*time.Second)
		defer cancel()
		conn, err = from.Dial(ctx, "tcp", netip.AddrPortFrom(to, 7).String())
		return err
	})
	return conn
}

// messages lists what was said so far.
func (tr *trial) messages() (ms []clients.Message) {
	for _, f := range tr.wire.Frames() {
		if m, ok := clients.Read(f); ok {
			ms = append(ms, m)
		}
	}
	return ms
}

// renews has the client ask again, and checks that it is answered, in each family that
// it has, as it was by the first node.
func (tr *trial) renews(what string, cell func(*sight) *string) {
	before := len(tr.messages())
	out, err := tr.guest.Do(labtest.Soon(tr.t), tr.client.Renew)
	require.NoError(tr.t, err, out)
	for family, protocol := range []fabric.ContactProtocol{fabric.DHCPv4, fabric.DHCPv6} {
		if tr.extent(family) != clients.Online {
			continue
		}
		tr.eventually(what+" by "+string(protocol), func() error {
			answers := exchanges(tr.messages()[before:], protocol)
			if len(answers) == 0 {
				return errors.New("it got no answer")
			}
			*cell(&tr.saw[family]) = tr.compare(answers)
			return nil
		})
		tr.eventually("its address stays", func() error { return tr.has(tr.own[family]) })
	}
}

// compare checks that what was asked before is answered in the same way, and gives in
// words what was asked, and whether any of it was asked before.
func (tr *trial) compare(answers map[string][]byte) string {
	kinds, same := slices.Sorted(maps.Keys(answers)), 0
	for _, kind := range kinds {
		if first := tr.lease[kind]; first != nil {
			assert.Equal(tr.t, first, answers[kind], kind)
			same++
		}
		tr.lease[kind] = answers[kind]
	}
	if same == 0 {
		return strings.Join(kinds, ", ")
	}
	return "the same bytes"
}

// exchanges gives the answers by a protocol, by the kind of what was asked.
func exchanges(ms []clients.Message, p fabric.ContactProtocol) map[string][]byte {
	answers, asked := map[string][]byte{}, ""
	for _, m := range ms {
		switch {
		case m.Protocol != p:
		case m.FromGuest:
			asked = m.Kind
		case m.Answers() && asked != "release":
			answers[asked] = m.Same
		}
	}
	return answers
}

// moves brings the guest to another node as a migration does: its NIC stays.
func (tr *trial) moves(from, to *core.Host) {
	old, next := tr.s.agents[from.Name()], tr.s.agents[to.Name()]
	old.ask(hooks.Withdraw, tr.vm)
	next.ask(hooks.Wire, tr.vm)
	require.NoError(tr.t, tr.guest.Take(to, fabric.PeerName(tr.vm.Name, 0)))
	require.NoError(tr.t, tr.guest.Connect(tr.t.Context(), to))
	next.ask(hooks.Live, tr.vm)
	old.ask(hooks.Remove, tr.vm)
	tr.s.coreHas(to, tr.vm.Prefixes()...)
}

// tell logs what was said.
func (tr *trial) tell() {
	for _, m := range tr.messages() {
		who := "node "
		if m.FromGuest {
			who = "guest"
		}
		tr.t.Logf("%+6d ms: %s %s %s", m.At.Sub(tr.since.up).Milliseconds(), who, m.Protocol, m.Kind)
	}
}

// explain logs what was said, and what the guest printed.
func (tr *trial) explain() {
	tr.tell()
	out, _ := tr.guest.Do(labtest.Soon(tr.t), "ip addr; ip route; ip -6 route; ps ax 2>/dev/null")
	tr.t.Log(out)
	tr.t.Log(core.Tail(tr.guest.Log(), 60))
}
