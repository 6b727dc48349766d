package kernel_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// benchPort is a tap of two addresses.
func benchPort(i int) fabric.Port {
	return port(fmt.Sprint("b", i), fabric.NIC{Addresses: []netip.Addr{
		netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}), netip.AddrFrom16([16]byte{0x20, 0x01, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)}),
	}})
}

// BenchmarkPutBesideTrials makes and removes taps on a node that has some already; the
// removals are not timed. Whether the node forwards is tried in one of each pair.
func BenchmarkPutBesideTrials(b *testing.B) {
	for _, guests := range []int{10, 1000} {
		for name, cfg := range map[string]kernel.Config{
			"not tried": {Cluster: "lab"},
			"tried": {
				Cluster: "lab", Underlay: []netip.Addr{node2[true]}, Samples: trialGuests,
				NextHop: netip.MustParseAddr("10.10.0.21"), NextHop6: netip.MustParseAddr("fd00:10:10::21"),
			},
		} {
			b.Run(fmt.Sprintf("%d guests, %s", guests, name), func(b *testing.B) {
				onNode(b, cfg, guests, func(d *kernel.Dataplane) {
					for b.Loop() {
						p := benchPort(guests)
						require.NoError(b, d.Put(b.Context(), p))
						b.StopTimer()
						require.NoError(b, d.Remove(b.Context(), p.Name))
						b.StartTimer()
					}
				})
			})
		}
	}
}

// BenchmarkTrial tries whether packets pass the node.
func BenchmarkTrial(b *testing.B) {
	for _, guests := range []int{10, 1000} {
		b.Run(fmt.Sprintf("%d guests", guests), func(b *testing.B) {
			cfg := kernel.Config{Cluster: "lab", Underlay: []netip.Addr{node2[true]}, Samples: trialGuests}
			onNode(b, cfg, guests, func(d *kernel.Dataplane) {
				for b.Loop() {
					faults, err := d.CheckForwarding(b.Context())
					require.NoError(b, err)
					require.Empty(b, faults)
				}
			})
		})
	}
}

// onNode runs f on a node with an uplink and guests.
func onNode(b *testing.B, cfg kernel.Config, guests int, f func(d *kernel.Dataplane)) {
	b.Helper()
	underlay(b)
	d, err := kernel.New(b.Context(), cfg)
	require.NoError(b, err)
	labtest.Running(b, d)
	defer func() { require.NoError(b, d.Close()) }()
	var names []string
	for i := range guests {
		p := benchPort(i)
		require.NoError(b, d.Put(b.Context(), p))
		names = append(names, p.Name)
	}
	f(d)
	require.NoError(b, d.Remove(b.Context(), names...))
}

// BenchmarkTraffic reads what was counted for as many addresses as 5,000 guests have.
func BenchmarkTraffic(b *testing.B) {
	const ports, each = 625, 16
	underlay(b)
	d := counting(b, &kept{})
	defer func() { require.NoError(b, d.Close()) }()
	var names []string
	for i := range ports {
		var addresses []netip.Addr
		for j := range each / 2 {
			n := i*each/2 + j
			addresses = append(addresses, netip.AddrFrom4([4]byte{203, 0, byte(n >> 8), byte(n)}), netip.AddrFrom16([16]byte{0x20, 0x01, 14: byte(n >> 8), 15: byte(n)}))
		}
		p := port(fmt.Sprint("b", i), fabric.NIC{Addresses: addresses})
		require.NoError(b, d.Put(b.Context(), p))
		names = append(names, p.Name)
	}
	require.Eventually(b, func() bool {
		all, err := d.Traffic(b.Context())
		return err == nil && len(all) == ports*each
	}, time.Minute, 100*time.Millisecond)
	for b.Loop() {
		_, err := d.Traffic(b.Context())
		require.NoError(b, err)
	}
	require.NoError(b, d.Remove(b.Context(), names...))
}
