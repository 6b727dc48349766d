package kernel_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// metadataAt has the addresses of the service as a guest writes them.
var metadataAt = map[bool]netip.Addr{true: fabric.Metadata4, false: fabric.Metadata6.WithZone("eth0")}

// tellPorts serves on the listeners of a dataplane: it says to which port a connection
// belongs, and then keeps the connection until the other end closes it.
func tellPorts(t *testing.T, d *kernel.Dataplane) {
	t.Helper()
	require.NotEmpty(t, d.MetadataListeners(), d.Diagnose(t.Context()))
	for _, l := range d.MetadataListeners() {
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					p, known := kernel.PortOf(c)
					fmt.Fprintf(c, "%s %v.", p.Name, known)
					_, _ = c.Read(make([]byte, 1))
				}()
			}
		}()
	}
}

// told connects and returns what the other end says up to a dot; empty: nothing.
func told(s *space, from netip.Addr, to netip.AddrPort) (said string, keep net.Conn) {
	_ = in(s, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		defer cancel()
		if zone := to.Addr().Zone(); zone != "" {
			link, err := net.InterfaceByName(zone) // Go remembers names of links, also those of other namespaces
			if err != nil {
				return err
			}
			to = netip.AddrPortFrom(to.Addr().WithZone(strconv.Itoa(link.Index)), to.Port())
		}
		d := net.Dialer{}
		if from.IsValid() {
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
		}
		c, err := d.DialContext(ctx, "tcp", to.String())
		if err != nil {
			return err
		}
		keep = c
		_ = c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		text, err := bufio.NewReader(c).ReadString('.')
		if err == nil {
			said = strings.TrimSuffix(text, ".")
		}
		return err
	})
	return said, keep
}

func tells(s *space, from netip.Addr, to netip.AddrPort) string {
	said, c := told(s, from, to)
	if c != nil {
		c.Close()
	}
	return said
}

func awaitTold(t *testing.T, s *space, v4 bool, want string) {
	t.Helper()
	require.Eventually(t, func() bool { return tells(s, netip.Addr{}, netip.AddrPortFrom(metadataAt[v4], 80)) == want }, 20*time.Second, 10*time.Millisecond)
}

// TestMetadata: guests reach the service, each as itself, from each of their addresses,
// beside a web server of the node's, and nobody else does.
func TestMetadata(t *testing.T) {
	labtest.Need(t, "nft")
	bothFamilies(t, func(t *testing.T, v4 bool) {
		lab := newMoveLab(t)
		serve(t, nil, netip.IPv6Unspecified(), 80)
		serve(t, lab.core, netip.IPv6Unspecified(), 80)
		ipIn(t, lab.core, "addr add 169.254.169.254/32 dev lo") // a cloud's service for the node
		ipIn(t, nil, "route add 169.254.169.254 via 10.10.0.1")
		t.Cleanup(func() { _, _ = execIP("route", "del", "169.254.169.254") })
		d := openGuarded(t, fabric.Guests{Metadata: true})
		tellPorts(t, d)
		p := port("web", fabric.NIC{Kind: fabric.Veth, MAC: guestMAC, Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}, Routes: routed})
		g := newGuest(t, d, "web", guestAddr, guestMAC)
		h := newGuest(t, d, "db", second, secondMAC)
		require.NoError(t, d.Put(t.Context(), p))
		awaitTold(t, g, v4, "web_net0 true")
		awaitTold(t, h, v4, "db_net0 true")

		// A prefix behind the guest: an address of its own, and one of a machine to which
		// it forwards.
		inner := routed[0].Addr().Next()
		if !v4 {
			inner = routed[1].Addr().Next()
		}
		for _, from := range []netip.Addr{guestAddr[v4], inner} {
			ipIn(t, g, "addr replace "+fabric.HostPrefix(from).String()+" dev lo")
			require.Eventually(t, func() bool { return tells(g, from, netip.AddrPortFrom(metadataAt[v4], 80)) == "web_net0 true" }, 20*time.Second, 10*time.Millisecond, "from %s", from)
			if from == inner {
				ipIn(t, g, "addr del "+fabric.HostPrefix(from).String()+" dev lo")
			}
		}
		if v4 {
			beyond := behind(t, g, inner)
			awaitPing(t, beyond, client[true]) // the guest forwards
			assert.Empty(t, tells(beyond, netip.Addr{}, netip.AddrPortFrom(fabric.Metadata4, 80)), "answers of the service end at the guest")
		}

		// No guest is another one.
		ipIn(t, g, "addr add "+fabric.HostPrefix(second[v4]).String()+" dev lo")
		assert.Empty(t, tells(g, second[v4], netip.AddrPortFrom(metadataAt[v4], 80)))
		ipIn(t, g, "addr del "+fabric.HostPrefix(second[v4]).String()+" dev lo")

		// Nothing else of the node, or of what is at the address for the node.
		for _, number := range []uint16{14780, 443} {
			assert.Empty(t, tells(g, netip.Addr{}, netip.AddrPortFrom(metadataAt[v4], number)), number)
		}
		own := map[bool]netip.Addr{true: gateway.IPv4, false: gateway.IPv6.WithZone("eth0")}[v4]
		for _, number := range []uint16{80, 14780} {
			for _, a := range []netip.Addr{own, nodeAddr[v4], coreAddr[v4]} {
				assert.False(t, reaches(g, "tcp", a, number), "%s %d", a, number)
			}
		}

		// The node and the underlay: the same address is another's.
		if v4 {
			assert.True(t, reaches(nil, "tcp", fabric.Metadata4, 80), "the cloud's")
			assert.Empty(t, tells(nil, netip.Addr{}, netip.AddrPortFrom(fabric.Metadata4, 80)))
			ipIn(t, lab.other, "route add 169.254.169.254 via "+nodeAddr[true].String())
			assert.Empty(t, tells(lab.other, netip.Addr{}, netip.AddrPortFrom(fabric.Metadata4, 80)))
			assert.Empty(t, tells(lab.other, netip.Addr{}, netip.AddrPortFrom(fabric.Metadata4, 14780)))
		}
		for _, s := range []*space{nil, lab.other} {
			assert.Empty(t, tells(s, netip.Addr{}, netip.AddrPortFrom(nodeAddr[v4], 14780)))
		}
		awaitTold(t, g, v4, "web_net0 true")
	})
}

// behind makes a machine of one IPv4 address to which the guest forwards.
func behind(t *testing.T, g *space, a netip.Addr) *space {
	t.Helper()
	s := newSpace(t)
	sysctls(t, g, map[string]string{"ipv4/ip_forward": "1"})
	ipIn(t, g, fmt.Sprintf("link add in0 type veth peer name eth0 netns /proc/%d/fd/%d", os.Getpid(), int(s.handle)),
		"link set in0 up", "addr add 169.254.9.1/32 dev in0", "route add "+a.String()+" dev in0")
	ipIn(t, s, "link set eth0 up", "addr add "+a.String()+"/32 dev eth0", "route add 169.254.9.1 dev eth0", "route add default via 169.254.9.1")
	return s
}

// TestMetadataOfSome: a guest that is to have no metadata has none, nor does one of a
// cluster that has none any more; and the port of a guest is known only once it is put.
func TestMetadataOfSome(t *testing.T) {
	bothFamilies(t, func(t *testing.T, v4 bool) {
		newMoveLab(t)
		d := guarded(t, fabric.Guests{Metadata: true})
		tellPorts(t, d)
		g := newGuest(t, d, "web", guestAddr, guestMAC)
		awaitTold(t, g, v4, "web_net0 true")
		p := port("web", fabric.NIC{Kind: fabric.Veth, MAC: guestMAC, Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
		p.NoMetadata = true
		require.NoError(t, d.Put(t.Context(), p))
		assert.Empty(t, tells(g, netip.Addr{}, netip.AddrPortFrom(metadataAt[v4], 80)))
		require.NoError(t, d.Close())

		d = guarded(t, fabric.Guests{Metadata: true})
		tellPorts(t, d)
		p.NoMetadata = false
		if v4 {
			awaitTold(t, g, v4, " false") // a restarted agent does not know it yet
		}
		require.NoError(t, d.Put(t.Context(), p))
		awaitTold(t, g, v4, "web_net0 true")
		require.NoError(t, d.Close())

		d = guarded(t, fabric.Guests{})
		assert.Empty(t, d.MetadataListeners())
		require.NoError(t, d.Put(t.Context(), p))
		assert.Empty(t, tells(g, netip.Addr{}, netip.AddrPortFrom(metadataAt[v4], 80)))
		out, err := execIP("address", "show", "dev", p.Name)
		require.NoError(t, err)
		assert.NotContains(t, string(out), "a9fe")
		require.NoError(t, d.Close())
	})
}

// TestMetadataRoom: one guest cannot take the connections of others.
func TestMetadataRoom(t *testing.T) {
	bothFamilies(t, func(t *testing.T, v4 bool) {
		newMoveLab(t)
		d := openGuarded(t, fabric.Guests{Metadata: true})
		tellPorts(t, d)
		g := newGuest(t, d, "web", guestAddr, guestMAC)
		h := newGuest(t, d, "db", second, secondMAC)
		awaitTold(t, g, v4, "web_net0 true")
		open := 0
		for range 12 {
			said, c := told(g, netip.Addr{}, netip.AddrPortFrom(metadataAt[v4], 80))
			if said != "" {
				open++
				defer c.Close()
			} else if c != nil {
				c.Close()
			}
		}
		assert.Equal(t, 8, open)
		awaitTold(t, h, v4, "db_net0 true")
	})
}

// TestMetadataKept: what somebody takes away comes back, and a port of TCP that another
// program has is left to it.
func TestMetadataKept(t *testing.T) {
	newMoveLab(t)
	serve(t, nil, netip.IPv6Unspecified(), 14780)
	d := openGuarded(t, fabric.Guests{Metadata: true})
	tellPorts(t, d)
	g := newGuest(t, d, "web", guestAddr, guestMAC)
	awaitTold(t, g, true, "web_net0 true")
	awaitTold(t, g, false, "web_net0 true")
	for _, command := range []string{
		fmt.Sprintf("rule del priority %d", fabric.MetadataRule), fmt.Sprintf("route flush table %d", fabric.MetadataTable),
		"-6 addr del fe80::a9fe:a9fe/64 dev web_net0",
	} {
		out, err := execIP(strings.Fields(command)...)
		require.NoError(t, err, string(out))
		if strings.HasPrefix(command, "-6") {
			require.Eventually(t, func() bool {
				states, err := d.Actual(t.Context())
				return err == nil && len(states) == 1 && len(states[0].Faults) > 0
			}, 20*time.Second, 10*time.Millisecond)
			require.NoError(t, d.Put(t.Context(), port("web", fabric.NIC{Kind: fabric.Veth, MAC: guestMAC, Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})))
		}
		awaitTold(t, g, true, "web_net0 true")
		awaitTold(t, g, false, "web_net0 true")
	}
}
