package kernel_test

import (
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/packets"
)

// ethernet is a frame of a guest's.
func ethernet(from fabric.MAC, typ uint16, body ...[]byte) []byte {
	return packets.Ethernet(fabric.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, from, typ, body...)
}

// packetFrom is a packet to nobody, from an address.
func packetFrom(mac fabric.MAC, from netip.Addr) []byte {
	if from.Is4() {
		return ethernet(mac, unix.ETH_P_IP, []byte{0x45, 0, 0, 20, 0, 0, 0, 0, 1, 253, 0, 0}, from.AsSlice(), []byte{192, 0, 2, 255})
	}
	return ethernet(mac, unix.ETH_P_IPV6, []byte{0x60, 0, 0, 0, 0, 0, 59, 1}, from.AsSlice(), netip.MustParseAddr("ff02::1").AsSlice())
}

// icmp6 is a message of ICMPv6 with a target, as those of neighbour discovery have.
func icmp6(mac fabric.MAC, typ byte, from, target string) []byte {
	return ethernet(mac, unix.ETH_P_IPV6, []byte{0x60, 0, 0, 0, 0, 24, 58, 255}, netip.MustParseAddr(from).AsSlice(),
		netip.MustParseAddr("ff02::1").AsSlice(), []byte{typ, 0, 0, 0, 0, 0, 0, 0}, netip.MustParseAddr(target).AsSlice())
}

func arp(mac fabric.MAC, from, target string) []byte {
	return ethernet(mac, unix.ETH_P_ARP, []byte{0, 1, 8, 0, 6, 4, 0, 1}, mac[:], netip.MustParseAddr(from).AsSlice(),
		make([]byte, 6), netip.MustParseAddr(target).AsSlice())
}

// TestSilence: which frames show that a guest answers at its addresses.
func TestSilence(t *testing.T) {
	for name, frame := range map[string]struct {
		data  []byte
		shows bool
	}{
		"ARP from its address":                  {arp(guestMAC, "203.0.113.10", "169.254.1.1"), true},
		"ARP from its second address":           {arp(guestMAC, "203.0.113.12", "169.254.1.1"), true},
		"ARP from another's":                    {arp(guestMAC, "203.0.113.11", "203.0.113.10"), false},
		"ARP that asks who else has it":         {arp(guestMAC, "0.0.0.0", "203.0.113.10"), true},
		"ARP that asks who else has another":    {arp(guestMAC, "0.0.0.0", "203.0.113.11"), false},
		"ARP cut short":                         {arp(guestMAC, "203.0.113.10", "169.254.1.1")[:30], false},
		"IPv4 from its address":                 {packetFrom(guestMAC, guestAddr[true]), true},
		"IPv4 from behind it":                   {packetFrom(guestMAC, routed[0].Addr().Next()), true},
		"IPv4 without an address":               {packetFrom(guestMAC, netip.IPv4Unspecified()), false},
		"IPv6 from its address":                 {packetFrom(guestMAC, guestAddr[false]), true},
		"IPv6 from behind it":                   {packetFrom(guestMAC, routed[1].Addr().Next()), true},
		"IPv6 from its link's":                  {packetFrom(guestMAC, netip.MustParseAddr("fe80::1234")), false},
		"IPv6 cut short":                        {packetFrom(guestMAC, guestAddr[false])[:30], false},
		"it advertises its address":             {icmp6(guestMAC, 136, "fe80::1234", "2001:db8:100::10"), true},
		"it advertises its link's":              {icmp6(guestMAC, 136, "fe80::1234", "fe80::1234"), false},
		"it asks who else has its address":      {icmp6(guestMAC, 135, "::", "2001:db8:100::10"), true},
		"it asks who else has its link's":       {icmp6(guestMAC, 135, "::", "fe80::1234"), false},
		"it asks for its own, as a router does": {icmp6(guestMAC, 135, "fe80::1234", "2001:db8:100::10"), false},
		"another protocol":                      {ethernet(guestMAC, 0x88cc, make([]byte, 60)), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Cleanup(func() { sweep(t) })
			d := open(t)
			p := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], netip.MustParseAddr("203.0.113.12"), guestAddr[false]}, Routes: routed})
			p.Listen = true
			require.NoError(t, d.Put(t.Context(), p))
			g := plug(t, nil, p.Name)
			_, err := g.tap.Write(frame.data)
			require.NoError(t, err)
			if frame.shows {
				awaitHeard(t, d, p.Name)
			}
			select {
			case <-d.Heard():
				assert.Fail(t, "heard what does not show it, or twice")
			case <-time.After(50 * time.Millisecond):
			}
			require.Eventually(t, func() bool { // it is not silent before the kernel has said that it runs
				ports, err := d.Actual(t.Context())
				return err == nil && len(ports) == 1 && ports[0].Silent == !frame.shows
			}, patience, time.Millisecond)
			require.NoError(t, d.Remove(t.Context(), p.Name))
		})
	}
}

// TestHeardOnceTheLinkRuns: a link whose carrier came a moment ago drops what is sent to
// it. A guest is not heard before that has ended, so that nobody sends it anything.
func TestHeardOnceTheLinkRuns(t *testing.T) {
	sweep(t)
	t.Cleanup(func() { sweep(t) })
	d := open(t)
	p := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
	p.Listen = true
	require.NoError(t, d.Put(t.Context(), p))
	ipIn(t, nil, "link set "+p.Name+" mode dormant") // so that the kernel does not take it for running
	tap := plugged(t, p.Name)
	_, err := tap.Write(packetFrom(guestMAC, guestAddr[true]))
	require.NoError(t, err)
	select {
	case <-d.Heard():
		assert.Fail(t, "heard before its link runs")
	case <-time.After(100 * time.Millisecond):
	}
	ipIn(t, nil, "link set "+p.Name+" mode default", "link set "+p.Name+" state up")
	awaitHeard(t, d, p.Name)
	require.NoError(t, d.Remove(t.Context(), p.Name))
}

// TestHeardIsIntroduced: what came for a guest before it had its addresses reaches
// it when it is heard, and not when the kernel asks for them again.
func TestHeardIsIntroduced(t *testing.T) {
	bothFamilies(t, func(t *testing.T, v4 bool) {
		lab := newMoveLab(t)
		d := open(t)
		p := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}, Routes: routed})
		p.NIC.MAC = fabric.MAC{} // it is known by what it says
		p.Listen = true
		require.NoError(t, d.Put(t.Context(), p))
		g := plug(t, nil, p.Name)
		probes := lab.probe(t, guestAddr[v4], 50)
		<-probes.Sent()
		g.drop(t) // the kernel's question, which nobody answers
		assert.Zero(t, probes.Received())
		_, err := g.tap.Write(packetFrom(guestMAC, guestAddr[!v4]))
		require.NoError(t, err)
		awaitHeard(t, d, p.Name)
		g.run()
		assert.Zero(t, probes.Stop().Lost)
		require.NoError(t, d.Remove(t.Context(), p.Name))
	})
}

// TestSilentGuestsAreAsked: one that has its addresses and says nothing of its own
// accord is heard all the same.
func TestSilentGuestsAreAsked(t *testing.T) {
	bothFamilies(t, func(t *testing.T, v4 bool) {
		sweep(t)
		t.Cleanup(func() { sweep(t) })
		d := open(t)
		p := port("web", fabric.NIC{Kind: fabric.Veth, Addresses: []netip.Addr{guestAddr[v4]}})
		p.Listen = true
		require.NoError(t, d.Put(t.Context(), p))
		guest := newSpace(t)
		ipIn(t, nil, "link set web_peer0 netns "+fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(guest.handle)))
		sysctls(t, guest, map[string]string{"ipv6/conf/web_peer0/accept_dad": "0"})
		began := time.Now()
		ipIn(t, guest, "link set web_peer0 up")
		time.Sleep(2 * askEvery)
		add := "addr add " + fabric.HostPrefix(guestAddr[v4]).String() + " dev web_peer0"
		if v4 {
			ipIn(t, guest, add, "route add 169.254.1.1 dev web_peer0")
		} else {
			ipIn(t, guest, add+" nodad")
		}
		awaitHeard(t, d, p.Name)
		assert.Less(t, time.Since(began), fabric.ListenFor)
		ports, err := d.Actual(t.Context())
		require.NoError(t, err)
		assert.False(t, ports[0].Silent)
		require.NoError(t, d.Remove(t.Context(), p.Name))
	})
}

// askEvery is how often the dataplane asks.
const askEvery = 50 * time.Millisecond
