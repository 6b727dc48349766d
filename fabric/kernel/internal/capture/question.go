package capture

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
)

// askEvery is how often [Listener.Ask] asks a guest for its addresses. The kernel,
// when it has a packet for the guest, asks once a second.
const askEvery = 50 * time.Millisecond

// Questions returns the frames by which the gateway asks for the first address of
// each family: an ARP request (RFC 826) and a neighbor solicitation (RFC 4861,
// 4.3).
func Questions(p fabric.Port) (frames [][]byte) {
	for _, v4 := range []bool{true, false} {
		i := slices.IndexFunc(p.NIC.Addresses, func(a netip.Addr) bool { return a.Is4() == v4 })
		if i < 0 {
			continue
		}
		to := p.NIC.Addresses[i]
		from := p.Gateway.Addr(to)
		switch {
		case !from.IsValid():
		case v4:
			frames = append(frames, slices.Concat(
				[]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, p.Gateway.MAC[:], []byte{0x08, 0x06},
				[]byte{0, 1, 8, 0, 6, 4, 0, 1}, p.Gateway.MAC[:], from.AsSlice(), make([]byte, 6), to.AsSlice()))
		default:
			frames = append(frames, solicitation(p.Gateway.MAC, from.As16(), to.As16()))
		}
	}
	return frames
}

// solicitation returns a neighbor solicitation to the solicited-node group of an
// address (RFC 4291, 2.7.1).
func solicitation(mac fabric.MAC, from, target [16]byte) []byte {
	group := netip.MustParseAddr("ff02::1:ff00:0").As16()
	copy(group[13:], target[13:])
	body := slices.Concat([]byte{135, 0, 0, 0, 0, 0, 0, 0}, target[:], []byte{1, 1}, mac[:])
	var sum uint32
	for _, part := range [][]byte{from[:], group[:], {0, byte(len(body)), 0, unix.IPPROTO_ICMPV6}, body} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(body[2:], ^uint16(sum&0xffff+sum>>16))
	return slices.Concat(
		[]byte{0x33, 0x33}, group[12:], mac[:], []byte{0x86, 0xdd},
		[]byte{0x60, 0, 0, 0, 0, byte(len(body)), unix.IPPROTO_ICMPV6, 255}, from[:], group[:], body)
}
