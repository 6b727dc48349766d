package main

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/vmfabric/vmfabric/fabric"
)

func TestRates(t *testing.T) {
	p4, p6 := netip.MustParsePrefix("203.0.113.10/32"), netip.MustParsePrefix("2001:db8:100::10/128")
	of := func(vm string, p netip.Prefix, sent, received uint64) fabric.Traffic {
		return fabric.Traffic{
			VM: vm, Prefix: p, Sent: fabric.ByScope{External: fabric.Count{Packets: sent, Bytes: 100 * sent}},
			Received: fabric.ByScope{Internal: fabric.Count{Packets: received, Bytes: 1000 * received}},
		}
	}
	was := []fabric.Traffic{of("web", p4, 10, 0), of("web", p6, 5, 5), of("idle", p4, 9, 9), of("anew", p4, 100, 100)}
	is := []fabric.Traffic{of("web", p4, 30, 0), of("web", p6, 5, 9), of("idle", p4, 9, 9), of("anew", p4, 1, 1), of("new", p4, 0, 20)}
	at := time.Unix(1000, 0)
	first, next := sample{at, was, map[string]uint64{"idle": 5, "loud": 5}}, sample{at.Add(2 * time.Second), is, map[string]uint64{"idle": 5, "loud": 9}}
	assert.Equal(t, []rate{
		{VM: "new", Received: perScope{Internal: perSecond{10000, 10}}},
		{VM: "web", Sent: perScope{External: perSecond{1000, 10}}, Received: perScope{Internal: perSecond{2000, 2}}},
		{VM: "loud", Dropped: 2},
	}, ratesOf(first, next))
	assert.Equal(t, []rate{}, ratesOf(sample{}, sample{}))
	assert.Equal(t, []rate{}, ratesOf(sample{at, was, nil}, sample{at, is, next.dropped}))
	for n, want := range map[float64]string{0: "0 bit/s", 124: "992 bit/s", 125: "1 kbit/s", 1.25e6: "10 Mbit/s", 1.25e9: "10.00 Gbit/s"} {
		assert.Equal(t, want, bits(n))
	}
}
