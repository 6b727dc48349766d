package capture

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/vmfabric/vmfabric/fabric"
)

// FuzzSpeaksFrom: whatever a guest sends, it is heard by no frame that does not have one of
// its addresses in it.
func FuzzSpeaksFrom(f *testing.F) {
	nic := fabric.NIC{Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:100::10")}}
	port := fabric.Port{NIC: nic, Gateway: fabric.Gateway{IPv4: netip.MustParseAddr("169.254.1.1"), IPv6: netip.MustParseAddr("fe80::1"), MAC: fabric.MAC{2, 0, 0x5e, 0, 1, 1}}}
	for _, question := range Questions(port) { // they are like those of a guest
		f.Add(question)
		f.Add(question[:len(question)-20])
	}
	f.Add(slices.Concat(make([]byte, 12), []byte{0x08, 0, 0x45}, make([]byte, 11), nic.Addresses[0].AsSlice(), make([]byte, 4)))
	f.Add(slices.Concat(make([]byte, 12), []byte{0x86, 0xdd, 0x60}, make([]byte, 7), nic.Addresses[1].AsSlice(), make([]byte, 16)))
	f.Fuzz(func(t *testing.T, frame []byte) {
		from, to := addresses(frame)
		assert.Equal(t, from.IsValid(), to.IsValid())
		if SpeaksFrom(frame[:min(len(frame), Headers)], nic) {
			assert.True(t, slices.ContainsFunc(nic.Addresses, func(a netip.Addr) bool { return bytes.Contains(frame, a.AsSlice()) }))
		}
	})
}
