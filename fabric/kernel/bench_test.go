package kernel_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel"
)

// BenchmarkPut makes taps of two addresses each, of guests whose MAC is known
// and of such whose is not; the removals are not timed.
func BenchmarkPut(b *testing.B) {
	d, err := kernel.New(b.Context(), kernel.Config{Cluster: "lab"})
	require.NoError(b, err)
	defer d.Close()
	for name, mac := range map[string]fabric.MAC{"MAC known": guestMAC, "MAC not known": {}} {
		b.Run(name, func(b *testing.B) {
			var names []string
			for i := 0; b.Loop(); i++ {
				p := port(fmt.Sprint("b", i), fabric.NIC{MAC: mac, Addresses: []netip.Addr{
					netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}), netip.AddrFrom16([16]byte{0x20, 0x01, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)}),
				}})
				require.NoError(b, d.Put(b.Context(), p))
				names = append(names, p.Name)
			}
			require.NoError(b, d.Remove(b.Context(), names...))
		})
	}
}
