package kernel_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// BenchmarkPut makes taps of two addresses each, of guests whose MAC is known
// and of such whose is not; the removals are not timed.
func BenchmarkPut(b *testing.B) {
	d, err := kernel.New(b.Context(), kernel.Config{Cluster: "lab"})
	require.NoError(b, err)
	labtest.Running(b, d)
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

// BenchmarkPutGuarded makes and removes a tap whose guest has a firewall, beside others
// that have one.
func BenchmarkPutGuarded(b *testing.B) {
	for _, guests := range []int{1, 100, 1000} {
		b.Run(fmt.Sprintf("%d guests", guests), func(b *testing.B) {
			d, err := kernel.New(b.Context(), kernel.Config{Cluster: "lab", Pools: guestPools})
			require.NoError(b, err)
			labtest.Running(b, d)
			defer d.Close()
			w := firewall(b, "accept tcp 22,80,443; accept udp 53 from 198.51.100.0/24,2001:db8:5::/48; accept icmp; drop", "drop tcp 25", true)
			var names []string
			put := func(i int) string {
				p := benchPort(i)
				p.Firewall = w
				require.NoError(b, d.Put(b.Context(), p))
				return p.Name
			}
			for i := range guests {
				names = append(names, put(i))
			}
			for i := guests; b.Loop(); i++ {
				name := put(i) // a new one: the guard of the one before may be still there
				b.StopTimer()
				require.NoError(b, d.Remove(b.Context(), name))
				b.StartTimer()
			}
			require.NoError(b, d.Remove(b.Context(), names...))
		})
	}
}
