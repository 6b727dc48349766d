package kernel_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/mdlayher/ndp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/nflog"
	"github.com/vmfabric/vmfabric/internal/packets"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

var broadcast = netip.MustParseAddr("255.255.255.255")

// dhcp4 is a DHCPv4 message of a guest in a frame; a DHCPDISCOVER without more.
func dhcp4(t testing.TB, mac fabric.MAC, src, dst netip.Addr, more ...dhcpv4.Modifier) []byte {
	t.Helper()
	m, err := dhcpv4.NewDiscovery(mac[:], more...)
	require.NoError(t, err)
	b := m.ToBytes()
	b = append([]byte{0, 68, 0, 67, byte((8 + len(b)) >> 8), byte(8 + len(b)), 0, 0}, b...)
	if dst == broadcast {
		return ipBroadcast(mac, src, dst, unix.IPPROTO_UDP, 64, packets.Seal(src, dst, unix.IPPROTO_UDP, 6, b))
	}
	return ipFrame(mac, src, dst, unix.IPPROTO_UDP, 64, packets.Seal(src, dst, unix.IPPROTO_UDP, 6, b))
}

func discovery(t testing.TB, mac fabric.MAC) []byte {
	t.Helper()
	return dhcp4(t, mac, netip.IPv4Unspecified(), broadcast)
}

// is4 reads a DHCPv4 message of a type.
func is4(want dhcpv4.MessageType) func([]byte) bool {
	return func(f []byte) bool {
		if len(f) < 42 || f[12] != 8 || f[13] != 0 || f[23] != unix.IPPROTO_UDP {
			return false
		}
		m, err := dhcpv4.FromBytes(f[42:])
		return err == nil && m.MessageType() == want
	}
}

// isICMP4 reads an ICMP packet.
func isICMP4(f []byte) bool {
	return len(f) > 34 && f[12] == 8 && f[13] == 0 && f[23] == unix.IPPROTO_ICMP
}

// isAdvertisement reads a router advertisement.
func isAdvertisement(f []byte) bool {
	return len(f) > 54 && f[12] == 0x86 && f[20] == unix.IPPROTO_ICMPV6 && f[54] == 134
}

// asks sends a request into a tap now and then until an answer has come that read takes,
// and returns all frames that came.
func asks(t *testing.T, tap *os.File, request []byte, read func([]byte) bool) (came [][]byte) {
	t.Helper()
	looks := 0
	require.Eventually(t, func() bool {
		if looks%50 == 0 {
			_, err := tap.Write(request)
			require.NoError(t, err)
		}
		looks++
		came = append(came, waiting(t, tap)...)
		return slices.ContainsFunc(came, read)
	}, 20*time.Second, 10*time.Millisecond)
	return came
}

func plugged(t *testing.T, name string) *os.File {
	t.Helper()
	tap := hold(t, name, 0)
	t.Cleanup(func() { tap.Close() })
	return tap
}

// TestRequestsOfAnOldLease: a guest that has its address asks for it again, to the
// gateway and to everybody, also while it arrives, and gets no ICMP error beside the
// answer. The node's own firewall is in nobody's way.
func TestRequestsOfAnOldLease(t *testing.T) {
	labtest.Need(t, "nft")
	newMoveLab(t)
	nft(t, "table inet node { chain input { type filter hook input priority -10; iifgroup 147 drop; }; }")
	t.Cleanup(func() { nft(t, "delete table inet node") })
	d := openGuarded(t, fabric.Guests{})
	p := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
	own := dhcpv4.WithClientIP(guestAddr[true].AsSlice())
	again := dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest)
	for _, p.Incoming = range []bool{true, false} {
		require.NoError(t, d.Put(t.Context(), p))
		tap := plugged(t, p.Name)
		asks(t, tap, discovery(t, guestMAC), is4(dhcpv4.MessageTypeOffer))
		for name, request := range map[string][]byte{
			"renew":  dhcp4(t, guestMAC, guestAddr[true], gateway.IPv4, again, own),
			"rebind": dhcp4(t, guestMAC, guestAddr[true], broadcast, again, own),
			"inform": dhcp4(t, guestMAC, guestAddr[true], gateway.IPv4, dhcpv4.WithMessageType(dhcpv4.MessageTypeInform), own),
		} {
			t.Run(fmt.Sprintf("%s, arriving %v", name, p.Incoming), func(t *testing.T) {
				came := asks(t, tap, request, is4(dhcpv4.MessageTypeAck))
				assert.False(t, slices.ContainsFunc(came, isICMP4))
			})
		}
		asks(t, tap, routerSolicitation(t, guestMAC), isAdvertisement)
		asks(t, tap, solicit6(t, guestMAC), isReply6)
		release := dhcp4(t, guestMAC, guestAddr[true], gateway.IPv4, dhcpv4.WithMessageType(dhcpv4.MessageTypeRelease), own)
		_, err := tap.Write(release)
		require.NoError(t, err)
		came := asks(t, tap, discovery(t, guestMAC), is4(dhcpv4.MessageTypeOffer))
		assert.False(t, slices.ContainsFunc(came, isICMP4), "a release")
		require.NoError(t, tap.Close())
	}
	require.NoError(t, d.Remove(t.Context(), p.Name))
}

// TestAnswersOfALinkThatHasJustComeUp: a link whose carrier came a moment ago drops what
// goes through its queue. A guest whose container has set its link up asks in that moment.
func TestAnswersOfALinkThatHasJustComeUp(t *testing.T) {
	newMoveLab(t)
	d := openGuarded(t, fabric.Guests{})
	p := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
	require.NoError(t, d.Put(t.Context(), p))
	ipIn(t, nil, "link set "+p.Name+" mode dormant") // so that the kernel does not take it for running
	tap := plugged(t, p.Name)
	link, err := netlink.LinkByName(p.Name)
	require.NoError(t, err)
	require.NoError(t, netlink.QdiscReplace(&netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		QdiscType:  "blackhole", // as the one in the place of a queue that is not there yet
	}))
	asks(t, tap, discovery(t, guestMAC), is4(dhcpv4.MessageTypeOffer))
	asks(t, tap, routerSolicitation(t, guestMAC), isAdvertisement)
	asks(t, tap, solicit6(t, guestMAC), isReply6)
	require.NoError(t, tap.Close())
	require.NoError(t, d.Remove(t.Context(), p.Name))
}

// TestRequestsOfALostAddress: a guest that renews an address that it has no more hears
// so, whether it asks the gateway or everybody. Nothing else of that address passes.
func TestRequestsOfALostAddress(t *testing.T) {
	newMoveLab(t)
	d := openGuarded(t, fabric.Guests{NodePorts: []fabric.Service{{Protocol: "udp", Port: 53}}})
	p := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
	server, err := net.ListenUDP("udp4", &net.UDPAddr{Port: 53})
	require.NoError(t, err)
	defer server.Close()
	lost := second[true]
	renew := []dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithClientIP(lost.AsSlice())}
	for _, p.Incoming = range []bool{true, false} {
		require.NoError(t, d.Put(t.Context(), p))
		tap := plugged(t, p.Name)
		asks(t, tap, discovery(t, guestMAC), is4(dhcpv4.MessageTypeOffer))
		for _, to := range []netip.Addr{gateway.IPv4, broadcast} {
			_, err := tap.Write(udpFrame(guestMAC, lost, to, 53, "lost"))
			require.NoError(t, err)
			came := asks(t, tap, dhcp4(t, guestMAC, lost, to, renew...), is4(dhcpv4.MessageTypeNak))
			assert.Equal(t, to == gateway.IPv4, slices.ContainsFunc(came, func(f []byte) bool {
				return is4(dhcpv4.MessageTypeNak)(f) && [4]byte(f[30:34]) == lost.As4()
			}), "to the address itself")
		}
		if !p.Incoming {
			_, err := tap.Write(udpFrame(guestMAC, guestAddr[true], gateway.IPv4, 53, "own"))
			require.NoError(t, err)
		}
		require.NoError(t, tap.Close())
	}
	require.NoError(t, server.SetReadDeadline(time.Now().Add(20*time.Second)))
	b := make([]byte, 1500)
	n, _, err := server.ReadFromUDP(b)
	require.NoError(t, err)
	assert.Equal(t, "own", string(b[:n]), "the first that the node's own service hears")
	require.NoError(t, d.Remove(t.Context(), p.Name))
}

// TestTwoGuestsOfOneMAC: each is alone on its link. Each is told its own addresses, and is
// reached by them.
func TestTwoGuestsOfOneMAC(t *testing.T) {
	lab := newMoveLab(t)
	d := openGuarded(t, fabric.Guests{})
	for name, a := range map[string]map[bool]netip.Addr{"web": guestAddr, "twin": second} {
		newGuest(t, d, name, a, guestMAC)
		p := movePort(name+"-tap", fabric.NIC{Addresses: []netip.Addr{a[true].Next().Next().Next()}})
		require.NoError(t, d.Put(t.Context(), p))
		asks(t, plugged(t, p.Name), discovery(t, guestMAC), func(f []byte) bool {
			return is4(dhcpv4.MessageTypeOffer)(f) && [4]byte(f[30:34]) == p.NIC.Addresses[0].As4()
		})
	}
	bothFamilies(t, func(t *testing.T, v4 bool) {
		awaitPing(t, lab.core, guestAddr[v4])
		awaitPing(t, lab.core, second[v4])
	})
}

// TestFarDHCPServer: what a guest sends to a DHCP server elsewhere passes.
func TestFarDHCPServer(t *testing.T) {
	bothFamilies(t, func(t *testing.T, v4 bool) {
		lab := newMoveLab(t)
		d := openGuarded(t, fabric.Guests{})
		g := newGuest(t, d, "web", guestAddr, guestMAC)
		for _, number := range []uint16{67, 547} {
			serve(t, lab.core, client[v4], number)
			awaitReach(t, g, "udp", client[v4], number)
		}
	})
}

// TestUnaskedAdvertisements: a port is advertised to when it is made, and when what its
// guest is told changes.
func TestUnaskedAdvertisements(t *testing.T) {
	newMoveLab(t)
	d := openGuarded(t, fabric.Guests{})
	p := movePort("web", fabric.NIC{Kind: fabric.Veth, Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
	p.NIC.Kind = fabric.Tap
	require.NoError(t, d.Put(t.Context(), p))
	tap := plugged(t, p.Name)
	asks(t, tap, discovery(t, guestMAC), is4(dhcpv4.MessageTypeOffer)) // the link is up
	for _, mtu := range []int{1400, 1300} {
		p.NIC.MTU = mtu
		require.NoError(t, d.Put(t.Context(), p))
		require.Eventually(t, func() bool {
			return slices.ContainsFunc(waiting(t, tap), func(f []byte) bool { return isAdvertisement(f) && advertisedMTU(f) == uint32(mtu) })
		}, 20*time.Second, 10*time.Millisecond)
	}
	require.NoError(t, d.Remove(t.Context(), p.Name))
}

// advertisedMTU returns the MTU that a router advertisement says; 0: none.
func advertisedMTU(f []byte) uint32 {
	m, err := ndp.ParseMessage(f[min(54, len(f)):])
	ra, is := m.(*ndp.RouterAdvertisement)
	if err != nil || !is {
		return 0
	}
	for _, o := range ra.Options {
		if said, is := o.(*ndp.MTU); is {
			return said.MTU
		}
	}
	return 0
}

// logGroup returns the group to which the rules log; 0: to none.
func logGroup(t *testing.T) (group int) {
	t.Helper()
	out, err := exec.Command("nft", "list", "table", "inet", "vmfabric").CombinedOutput()
	require.NoError(t, err, string(out))
	if _, rest, found := strings.Cut(string(out), "log group "); found {
		_, err := fmt.Sscan(rest, &group)
		require.NoError(t, err)
	}
	return group
}

// TestRequestGroups: a dataplane does without a group that another program has, keeps
// the rules of the one before, and works without a group.
func TestRequestGroups(t *testing.T) {
	labtest.Need(t, "nft")
	newMoveLab(t)
	p := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
	handles := func() string {
		out, err := exec.Command("nft", "-s", "-a", "list", "chain", "inet", "vmfabric", "requests").CombinedOutput()
		require.NoError(t, err, string(out))
		return string(out)
	}
	take := func(group uint16) func() {
		l, err := nflog.Listen(group)
		require.NoError(t, err)
		return func() { require.NoError(t, l.Close()) }
	}
	served := func(group int) {
		t.Helper()
		d := guarded(t, fabric.Guests{})
		assert.Equal(t, group, logGroup(t))
		require.NoError(t, d.Put(t.Context(), p))
		tap := plugged(t, p.Name)
		asks(t, tap, discovery(t, guestMAC), is4(dhcpv4.MessageTypeOffer))
		require.NoError(t, tap.Close())
		require.NoError(t, d.Close())
	}
	served(147)
	had := handles()
	served(147)
	assert.Equal(t, had, handles(), "a restart changes no rule")
	give := take(147)
	served(148)
	for _, group := range []uint16{148, 149, 150} {
		defer take(group)()
	}
	d := unanswering(t, "other programs have the groups 147 to 150; free one of them (cat /proc/net/netfilter/nfnetlink_log), and restart the agent")
	assert.Zero(t, logGroup(t))
	require.NoError(t, d.Put(t.Context(), p))
	states, err := d.Actual(t.Context())
	require.NoError(t, err)
	require.Len(t, states, 1)
	assert.Empty(t, states[0].Faults)
	require.NoError(t, d.Close())
	give()
	served(147)
}

// unanswering opens a dataplane that reports why it answers no guest.
func unanswering(t *testing.T, why string) *kernel.Dataplane {
	t.Helper()
	d := newFor(t, "lab")
	assert.Contains(t, strings.Join(d.Diagnose(t.Context()), "\n"), "guests get no answer to DHCP requests and router solicitations: nfnetlink_log: "+why)
	return d
}

// TestServicesBeforeAnswers: an operator's DHCP server on the node, which guests may
// reach, gets their requests.
func TestServicesBeforeAnswers(t *testing.T) {
	newMoveLab(t)
	d := openGuarded(t, fabric.Guests{NodePorts: []fabric.Service{{Protocol: "udp", Port: 67}}})
	p := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
	require.NoError(t, d.Put(t.Context(), p))
	server, err := net.ListenUDP("udp4", &net.UDPAddr{Port: 67})
	require.NoError(t, err)
	defer server.Close()
	tap := plugged(t, p.Name)
	got := make(chan struct{})
	go func() {
		defer close(got)
		_, _, _ = server.ReadFromUDP(make([]byte, 1500))
	}()
	require.Eventually(t, func() bool {
		_, err := tap.Write(discovery(t, guestMAC))
		require.NoError(t, err)
		select {
		case <-got:
			return true
		default:
			return false
		}
	}, 20*time.Second, 50*time.Millisecond)
	came := asks(t, tap, routerSolicitation(t, guestMAC), isAdvertisement)
	assert.False(t, slices.ContainsFunc(came, is4(dhcpv4.MessageTypeOffer)))
	require.NoError(t, d.Remove(t.Context(), p.Name))
}

func routerSolicitation(t testing.TB, mac fabric.MAC) []byte {
	t.Helper()
	from := netip.MustParseAddr("fe80::5054:ff:fe00:a")
	b, err := ndp.MarshalMessageChecksum(&ndp.RouterSolicitation{}, from, netip.IPv6LinkLocalAllRouters())
	require.NoError(t, err)
	f := ipFrame(mac, from, netip.IPv6LinkLocalAllRouters(), unix.IPPROTO_ICMPV6, 255, b)
	copy(f, []byte{0x33, 0x33, 0, 0, 0, 2})
	return f
}

// solicit6 is a Solicit of DHCPv6.
func solicit6(t testing.TB, mac fabric.MAC) []byte {
	t.Helper()
	from, to := netip.MustParseAddr("fe80::5054:ff:fe00:a"), netip.MustParseAddr("ff02::1:2")
	m, err := dhcpv6.NewSolicit(mac[:])
	require.NoError(t, err)
	b := m.ToBytes()
	b = append([]byte{2, 34, 2, 35, byte((8 + len(b)) >> 8), byte(8 + len(b)), 0, 0}, b...)
	f := ipFrame(mac, from, to, unix.IPPROTO_UDP, 1, packets.Seal(from, to, unix.IPPROTO_UDP, 6, b))
	copy(f, []byte{0x33, 0x33, 0, 1, 0, 2})
	return f
}

// isReply6 reads an answer of DHCPv6.
func isReply6(f []byte) bool {
	return len(f) > 62 && f[12] == 0x86 && f[20] == unix.IPPROTO_UDP && f[54] == 2 && f[55] == 35
}

// TestRequestFlood: a guest that asks without an end gets as many answers as the limit
// allows, and others get theirs.
func TestRequestFlood(t *testing.T) {
	newMoveLab(t)
	d := openGuarded(t, fabric.Guests{})
	p := movePort("evil", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
	q := movePort("web", fabric.NIC{MAC: secondMAC, Addresses: []netip.Addr{second[true], second[false]}})
	require.NoError(t, d.Put(t.Context(), p))
	require.NoError(t, d.Put(t.Context(), q))
	evil, web := plugged(t, p.Name), plugged(t, q.Name)
	asks(t, web, discovery(t, secondMAC), is4(dhcpv4.MessageTypeOffer))
	began, offers := time.Now(), 0
	frame := discovery(t, guestMAC)
	count := func() {
		for _, f := range waiting(t, evil) {
			if is4(dhcpv4.MessageTypeOffer)(f) {
				offers++
			}
		}
	}
	for i := range 10_000 {
		_, err := evil.Write(frame)
		require.NoError(t, err)
		if i%500 == 0 {
			count()
			asks(t, web, dhcp4(t, secondMAC, second[true], gateway.IPv4, dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithClientIP(second[true].AsSlice())), is4(dhcpv4.MessageTypeAck))
		}
	}
	asks(t, web, discovery(t, secondMAC), is4(dhcpv4.MessageTypeOffer))
	count()
	t.Logf("10,000 requests in %v, %d answers", time.Since(began).Round(time.Millisecond), offers)
	assert.Positive(t, offers)
	assert.LessOrEqual(t, offers, 60+20*int(time.Since(began).Seconds()+1))
	require.NoError(t, d.Remove(t.Context(), p.Name, q.Name))
}

// startDnsmasq starts a DHCP server on a bridge, as libvirt does for its default
// network. With everywhere it binds to 0.0.0.0, as without libvirt.
func startDnsmasq(t *testing.T, everywhere bool) (stop func()) {
	t.Helper()
	dir := t.TempDir()
	conf := "strict-order\nuser=root\npid-file=\nexcept-interface=lo\ninterface=virbr0\ndhcp-range=192.168.122.2,192.168.122.254,255.255.255.0\n" +
		"dhcp-no-override\ndhcp-authoritative\ndhcp-lease-max=253\nno-ping\ndhcp-leasefile=" + dir + "/leases\n"
	if !everywhere {
		conf += "bind-dynamic\n"
	}
	require.NoError(t, os.WriteFile(dir+"/conf", []byte(conf), 0o600))
	var said strings.Builder
	cmd := exec.Command("dnsmasq", "--conf-file="+dir+"/conf", "--keep-in-foreground", "--log-facility=-")
	cmd.Stdout, cmd.Stderr = &said, &said
	require.NoError(t, cmd.Start())
	return func() {
		require.NoError(t, cmd.Process.Signal(unix.Signal(0)), "dnsmasq ended: %s", &said)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

// TestBesideAnotherDHCPServer: the node's guests and those of a bridge with its own
// server each get theirs, whichever server starts first.
func TestBesideAnotherDHCPServer(t *testing.T) {
	labtest.Need(t, "dnsmasq", "root")
	p := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
	for name, everywhere := range map[string]bool{"libvirt's": false, "everywhere": true} {
		for _, first := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, first %v", name, first), func(t *testing.T) {
				newMoveLab(t)
				ipIn(t, nil, "link add virbr0 type bridge", "addr add 192.168.122.1/24 dev virbr0", "link set virbr0 up",
					"tuntap add vnet0 mode tap", "link set vnet0 master virbr0 up")
				t.Cleanup(func() { _, _ = execIP("link", "del", "virbr0") })
				stop := func() {}
				if first {
					stop = startDnsmasq(t, everywhere)
				}
				d := openGuarded(t, fabric.Guests{})
				require.NoError(t, d.Put(t.Context(), p))
				ours, theirs := plugged(t, p.Name), plugged(t, "vnet0")
				asks(t, ours, discovery(t, guestMAC), is4(dhcpv4.MessageTypeOffer))
				if !first {
					stop = startDnsmasq(t, everywhere)
				}
				servers := func(came [][]byte) (all []string) {
					for _, f := range came {
						if is4(dhcpv4.MessageTypeOffer)(f) {
							m, _ := dhcpv4.FromBytes(f[42:])
							all = append(all, m.ServerIdentifier().String())
						}
					}
					return slices.Compact(all)
				}
				assert.Equal(t, []string{"192.168.122.1"}, servers(asks(t, theirs, discovery(t, secondMAC), is4(dhcpv4.MessageTypeOffer))))
				assert.Equal(t, []string{"169.254.1.1"}, servers(asks(t, ours, discovery(t, guestMAC), is4(dhcpv4.MessageTypeOffer))))
				stop()
				require.NoError(t, d.Remove(t.Context(), p.Name))
			})
		}
	}
}
