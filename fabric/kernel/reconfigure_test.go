package kernel_test

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// configured is the configuration that these tests begin with.
func configured(guests fabric.Guests) kernel.Config {
	return kernel.Config{
		Cluster: "lab", Underlay: []netip.Addr{node2[true], node2[false]}, Guests: guests, Pools: guestPools,
		Private: []netip.Prefix{netip.MustParsePrefix("10.10.0.0/24"), netip.MustParsePrefix("fd00:10:10::/64")},
	}
}

// exchange is a UDP flow of a guest, whose answers pass its firewall as long as the
// filter knows the flow.
type exchange struct {
	out  *net.UDPConn // the guest's end
	back *net.UDPConn
	n    int
}

func newExchange(t *testing.T, guest, beyond *space, from, to netip.Addr) *exchange {
	t.Helper()
	e := &exchange{}
	open := func(s *space, at netip.Addr, c **net.UDPConn) {
		require.NoError(t, in(s, func() (err error) {
			*c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 4711)))
			return err
		}))
		t.Cleanup(func() { (*c).Close() })
	}
	open(guest, from, &e.out)
	open(beyond, to, &e.back)
	_, err := e.out.WriteToUDPAddrPort([]byte("begin"), netip.AddrPortFrom(to, 4711))
	require.NoError(t, err)
	require.NoError(t, e.back.SetReadDeadline(time.Now().Add(20*time.Second)))
	_, _, err = e.back.ReadFromUDPAddrPort(make([]byte, 16))
	require.NoError(t, err)
	return e
}

// answer sends some datagrams back to the guest, none of which may be lost.
func (e *exchange) answer(t *testing.T, to netip.Addr, count int) {
	t.Helper()
	for range count {
		e.n++
		_, err := e.back.WriteToUDPAddrPort(fmt.Append(nil, e.n), netip.AddrPortFrom(to, 4711))
		require.NoError(t, err)
		require.NoError(t, e.out.SetReadDeadline(time.Now().Add(20*time.Second)))
		b := make([]byte, 16)
		n, _, err := e.out.ReadFromUDPAddrPort(b)
		require.NoError(t, err, "datagram %d", e.n)
		require.Equal(t, fmt.Sprint(e.n), string(b[:n]))
	}
}

// TestReconfigure: a dataplane that runs takes another configuration up, and no packet of
// a flow that passed before is lost meanwhile.
func TestReconfigure(t *testing.T) {
	labtest.Need(t, "nft")
	lab := newMoveLab(t)
	d, err := kernel.New(t.Context(), configured(fabric.Guests{}))
	require.NoError(t, err)
	labtest.Running(t, d)
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	web, db := newGuest(t, d, "web", guestAddr, guestMAC), newGuest(t, d, "db", second, secondMAC)
	t.Cleanup(func() { require.NoError(t, d.Remove(t.Context(), "web_net0", "db_net0")) })
	p := port("web", fabric.NIC{Kind: fabric.Veth, MAC: guestMAC, Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
	p.Firewall = firewall(t, "drop", "accept", true)
	require.NoError(t, d.Put(t.Context(), p))
	flows := map[bool]*exchange{true: newExchange(t, web, lab.core, guestAddr[true], client[true]), false: newExchange(t, web, lab.core, guestAddr[false], client[false])}
	serve(t, nil, nodeAddr[true], 5353)
	serve(t, lab.core, coreAddr[false], 5354)
	serve(t, web, guestAddr[true], 5355)
	passing := func() {
		t.Helper()
		assert.False(t, reaches(lab.core, "udp", guestAddr[true], 5355), "the firewall is there")
		for v4, e := range flows {
			e.answer(t, guestAddr[v4], 5)
		}
	}
	passing()

	next := configured(fabric.Guests{NodePorts: []fabric.Service{{Protocol: "udp", Port: 5353}}})
	require.False(t, reaches(db, "udp", nodeAddr[true], 5353))
	require.NoError(t, d.Reconfigure(next))
	passing()
	awaitReach(t, db, "udp", nodeAddr[true], 5353)

	require.False(t, reaches(db, "tcp", coreAddr[false], 5354))
	next.Guests = fabric.Guests{Reach: []netip.Prefix{fabric.HostPrefix(coreAddr[false])}}
	require.NoError(t, d.Reconfigure(next))
	passing()
	awaitReach(t, db, "tcp", coreAddr[false], 5354)
	assert.False(t, reaches(db, "udp", nodeAddr[true], 5353), "no more")

	require.True(t, pings(t, web, second[true]))
	next.Guests.Isolate = true
	require.NoError(t, d.Reconfigure(next))
	passing()
	assert.False(t, pings(t, web, second[true]))
	assert.False(t, pings(t, web, second[false]))
	next.Guests.Isolate = false
	require.NoError(t, d.Reconfigure(next))
	passing()
	awaitPing(t, web, second[true])
	awaitPing(t, web, second[false])

	next.Guests.Isolate, next.Pools = true, nil
	require.ErrorContains(t, d.Reconfigure(next), "name the pools")
	assert.True(t, pings(t, web, second[true]), "as it was")
	assert.Empty(t, d.Diagnose(t.Context()))
}

// TestReconfiguredTable: the table that was changed is the one that would be made anew.
func TestReconfiguredTable(t *testing.T) {
	labtest.Need(t, "nft")
	nft(t, "flush ruleset")
	sorted := func() []string {
		out, err := exec.Command("nft", "-s", "list", "table", "inet", "vmfabric").CombinedOutput()
		require.NoError(t, err, string(out))
		return slices.Sorted(strings.Lines(string(out)))
	}
	d, err := kernel.New(t.Context(), configured(fabric.Guests{NoDHCP: true, NoRA: true}))
	require.NoError(t, err)
	labtest.Running(t, d)
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	for _, guests := range []fabric.Guests{
		{NoDHCP: true, Isolate: true},
		{NodePorts: []fabric.Service{{Protocol: "tcp", Port: 53}, {Protocol: "udp", Port: 67}}, Reach: []netip.Prefix{netip.MustParsePrefix("10.10.0.53/32"), netip.MustParsePrefix("169.254.0.0/16")}},
		{NoDHCP: true, NoRA: true},
	} {
		cfg := configured(guests)
		cfg.Pools = append(slices.Clone(guestPools), netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:200::/48"))
		cfg.Private = append(cfg.Private, netip.MustParsePrefix("10.20.0.0/16"))
		require.NoError(t, d.Reconfigure(cfg))
		changed := sorted()
		nft(t, "delete table inet vmfabric")
		require.Eventually(t, func() bool { return exec.Command("nft", "list", "table", "inet", "vmfabric").Run() == nil }, 20*time.Second, 20*time.Millisecond)
		assert.Equal(t, sorted(), changed)
	}
}

// TestReconfiguredAnswers: a guest hears at once what it is told from now on, and gets it
// when it asks; also where nobody was told anything before.
func TestReconfiguredAnswers(t *testing.T) {
	newMoveLab(t)
	d, err := kernel.New(t.Context(), configured(fabric.Guests{NoDHCP: true, NoRA: true}))
	require.NoError(t, err)
	labtest.Running(t, d)
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	p := movePort("web", fabric.NIC{Kind: fabric.Tap, Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
	require.NoError(t, d.Put(t.Context(), p))
	t.Cleanup(func() { require.NoError(t, d.Remove(t.Context(), p.Name)) })
	tap := plugged(t, p.Name)
	for _, mtu := range []int{1400, 1300} {
		require.NoError(t, d.Reconfigure(configured(fabric.Guests{MTU: mtu, DNS: []netip.Addr{netip.MustParseAddr("9.9.9.9")}})))
		if mtu == 1300 { // the link is up, and the guest asked before
			require.Eventually(t, func() bool {
				return slices.ContainsFunc(waiting(t, tap), func(f []byte) bool { return isAdvertisement(f) && advertisedMTU(f) == uint32(mtu) })
			}, 20*time.Second, 10*time.Millisecond)
		}
		came := asks(t, tap, discovery(t, guestMAC), is4(dhcpv4.MessageTypeOffer))
		assert.NotEmpty(t, came)
		asks(t, tap, routerSolicitation(t, guestMAC), isAdvertisement)
	}
}

// TestReconfiguredAccounting: what was counted stays, and a prefix that came is internal.
func TestReconfiguredAccounting(t *testing.T) {
	k := &kept{}
	lab, d, _, _ := countedGuests(t, k)
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	cfg := kernel.Config{Cluster: "lab", Underlay: []netip.Addr{node2[true], node2[false]}, Private: internal[2:4], Accounting: &kernel.Accounting{Keep: k}}
	bothFamilies(t, func(t *testing.T, v4 bool) {
		web := fabric.HostPrefix(guestAddr[v4])
		awaitCounters(t, d, lab.core, client[v4], guestAddr[v4], "web")
		was := traffic(t, d, "web", web)
		cfg.Accounting.Internal = append(slices.Clone(internal), fabric.HostPrefix(client[v4]))
		require.NoError(t, d.Reconfigure(cfg))
		sendUDP(t, lab.core, client[v4], guestAddr[v4], 10, 100)
		settled(t, func() bool {
			return traffic(t, d, "web", web).Received.Internal.Packets-was.Received.Internal.Packets == 10
		})
		assert.Equal(t, was.Received.External, traffic(t, d, "web", web).Received.External)
	})
	require.NoError(t, d.Remove(t.Context(), "web_net0", "db_net0"))
}
