package packets_test

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/internal/packets"
)

var families = map[string][2]netip.Addr{
	"IPv4": {netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("198.51.100.7")},
	"IPv6": {netip.MustParseAddr("2001:db8:100::10"), netip.MustParseAddr("2001:db8:ffff::7")},
}

// TestChecksums: whoever gets a segment finds its checksum right, of any length.
func TestChecksums(t *testing.T) {
	for name, of := range families {
		src, dst := of[0], of[1]
		for n := range 200 {
			data := make([]byte, n)
			for i := range data {
				data[i] = byte(rand.IntN(256))
			}
			icmp := packets.ICMPOf(src)
			for protocol, b := range map[byte][]byte{
				unix.IPPROTO_UDP: packets.UDP(src, dst, 4000, 53, data),
				unix.IPPROTO_TCP: packets.TCP(src, dst, 4000, 80, packets.SYN|packets.ACK, data),
				icmp:             packets.ICMP(src, dst, 3, 4, 1400, data),
			} {
				all := b
				if protocol != unix.IPPROTO_ICMP {
					all = slices.Concat(src.AsSlice(), dst.AsSlice(), []byte{0, protocol, 0, byte(len(b))}, b)
				}
				assert.EqualValues(t, 0xffff, packets.Sum(0, all), "%s, protocol %d, %d bytes", name, protocol, n)
			}
		}
	}
}

// TestNoChecksum: a checksum of zero would say that there is none (RFC 768).
func TestNoChecksum(t *testing.T) {
	for _, of := range families {
		with := packets.UDP(of[0], of[1], 1, 2, []byte{0, 0})
		b := packets.UDP(of[0], of[1], 1, 2, with[6:8])
		assert.Equal(t, []byte{0xff, 0xff}, b[6:8])
	}
}

// TestEcho compares requests with those of another implementation.
func TestEcho(t *testing.T) {
	for _, of := range families {
		src, dst := of[0], of[1]
		m, pseudo := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: 0xbeef, Seq: 7, Data: []byte("abc")}}, []byte(nil)
		reply := icmp.Message{Type: ipv4.ICMPTypeEchoReply, Body: m.Body}
		if src.Is6() {
			m.Type, reply.Type, pseudo = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply, icmp.IPv6PseudoHeader(src.AsSlice(), dst.AsSlice())
		}
		want, err := m.Marshal(pseudo)
		require.NoError(t, err)
		assert.Equal(t, want, packets.Echo(src, dst, 0xbeef, 7, []byte("abc")))
		id, number, is := packets.IsEcho(src.Is6(), want)
		assert.True(t, is)
		assert.Equal(t, []uint16{0xbeef, 7}, []uint16{id, number})
		_, _, is = packets.IsReply(src.Is6(), want)
		assert.False(t, is)

		answer, err := reply.Marshal(pseudo)
		require.NoError(t, err)
		id, number, is = packets.IsReply(src.Is6(), answer)
		assert.True(t, is)
		assert.Equal(t, []uint16{0xbeef, 7}, []uint16{id, number})
		_, _, is = packets.IsReply(src.Is6(), answer[:7])
		assert.False(t, is)
	}
}

// TestHeaders compares headers with what another implementation reads.
func TestHeaders(t *testing.T) {
	for _, of := range families {
		p := packets.IP{
			Source: of[0], Destination: of[1], Protocol: unix.IPPROTO_UDP, Hops: 9, Payload: []byte("abc"),
			Options: []byte{7, 3, 4, 0}, Fragment: packets.DontFragment, ID: 147,
		}
		b := p.Bytes()
		if of[0].Is6() {
			h, err := ipv6.ParseHeader(b)
			require.NoError(t, err)
			assert.Equal(t, &ipv6.Header{Version: 6, PayloadLen: 3, NextHeader: unix.IPPROTO_UDP, HopLimit: 9, Src: net.IP(of[0].AsSlice()), Dst: net.IP(of[1].AsSlice())}, h)
			assert.Equal(t, "abc", string(b[40:]))
			continue
		}
		h, err := ipv4.ParseHeader(b)
		require.NoError(t, err)
		assert.EqualValues(t, 0xffff, packets.Sum(0, b[:24]))
		assert.Equal(t, []int{4, 24, 27, 147, 9, unix.IPPROTO_UDP}, []int{h.Version, h.Len, h.TotalLen, h.ID, h.TTL, h.Protocol})
		assert.Equal(t, ipv4.DontFragment, h.Flags)
		assert.Equal(t, "abc", string(b[24:]))
	}
	frame := packets.Ethernet([6]byte{1}, [6]byte{2}, packets.EtherType(families["IPv6"][0]), []byte("a"), []byte("b"))
	assert.Equal(t, slices.Concat([]byte{1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0}, binary.BigEndian.AppendUint16(nil, unix.ETH_P_IPV6), []byte("ab")), frame)
}
