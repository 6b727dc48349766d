package kernel_test

import (
	"net"
	"net/netip"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// dropsOf returns what was dropped of a port for a reason.
func dropsOf(t *testing.T, d *kernel.Dataplane, port string, reason fabric.DropReason) (is fabric.Drops) {
	t.Helper()
	all, err := d.Drops(t.Context())
	require.NoError(t, err)
	for _, x := range all[port] {
		if x.Reason == reason {
			return x
		}
	}
	return is
}

// TestDrops: what the filter drops is counted by port and reason, and the counts go on
// when somebody flushes the tables, when the agent is restarted, and begin anew with a
// new link.
func TestDrops(t *testing.T) {
	labtest.Need(t, "nft")
	bothFamilies(t, func(t *testing.T, v4 bool) {
		newMoveLab(t)
		began := time.Now()
		d := guarded(t, fabric.Guests{})
		g := newGuest(t, d, "web", guestAddr, guestMAC)
		newGuest(t, d, "db", second, secondMAC)
		assert.Zero(t, dropsOf(t, d, "web_net0", fabric.DropNodePort))
		// No address with a zone: package net keeps the link's number for a minute, and the
		// next test's eth0 has another.
		own := nodeAddr[v4].String()
		send := func(n int, to string) { sendDatagrams(t, g, "", to, 53, n) }
		send(3, own)
		send(5, coreAddr[v4].String())
		is := dropsOf(t, d, "web_net0", fabric.DropNodePort)
		assert.Equal(t, uint64(3), is.Packets)
		assert.Equal(t, uint64(3*(map[bool]int{true: 20, false: 40}[v4]+8+5)), is.Bytes)
		assert.WithinRange(t, is.Last, began, time.Now().Add(time.Second))
		assert.Equal(t, uint64(5), dropsOf(t, d, "web_net0", fabric.DropDestination).Packets)
		all, err := d.Drops(t.Context())
		require.NoError(t, err)
		assert.Empty(t, all["db_net0"])
		ipIn(t, g, "addr add "+fabric.HostPrefix(second[v4]).String()+" dev lo"+map[bool]string{false: " nodad"}[v4]) // usable at once
		sendDatagrams(t, g, second[v4].String(), client[v4].String(), 53, 4)
		assert.Equal(t, uint64(4), dropsOf(t, d, "web_net0", fabric.DropSource).Packets)

		require.NoError(t, exec.Command("nft", "flush", "ruleset").Run())
		require.Eventually(t, func() bool { return exec.Command("nft", "list", "chain", "inet", "vmfabric", "to_node").Run() == nil }, 20*time.Second, 10*time.Millisecond)
		send(2, own)
		assert.Equal(t, uint64(5), dropsOf(t, d, "web_net0", fabric.DropNodePort).Packets, "what was read before counts on")
		require.NoError(t, d.Close())

		d = openGuarded(t, fabric.Guests{})
		send(1, own)
		assert.Equal(t, uint64(3), dropsOf(t, d, "web_net0", fabric.DropNodePort).Packets, "what the kernel has since the flush")
		require.NoError(t, d.Remove(t.Context(), "web_net0"))
		newGuest(t, d, "web", guestAddr, guestMAC)
		assert.Zero(t, dropsOf(t, d, "web_net0", fabric.DropNodePort), "a new link")
	})
}

// sendDatagrams sends datagrams of five bytes from a namespace, from an address there if
// one is given.
func sendDatagrams(t *testing.T, s *space, from, to string, number uint16, n int) {
	t.Helper()
	require.NoError(t, in(s, func() error {
		var d net.Dialer
		if from != "" {
			d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0))
		}
		c, err := d.DialContext(t.Context(), "udp", netip.AddrPortFrom(netip.MustParseAddr(to), number).String())
		if err != nil {
			return err
		}
		defer c.Close()
		for range n {
			if _, err := c.Write([]byte("hello")); err != nil {
				return err
			}
		}
		return nil
	}))
}
