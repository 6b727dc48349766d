package main

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/vmfabric/vmfabric/fabric"
)

func TestSamplesOf(t *testing.T) {
	pool := func(prefix string, exclude ...string) fabric.Pool {
		p := fabric.Pool{Prefix: netip.MustParsePrefix(prefix)}
		for _, x := range exclude {
			p.Exclude = append(p.Exclude, netip.MustParsePrefix(x))
		}
		return p
	}
	for _, c := range []struct {
		pools []fabric.Pool
		want  string
	}{
		{nil, "[]"},
		{[]fabric.Pool{pool("203.0.113.0/24")}, "[203.0.113.255]"},
		{[]fabric.Pool{pool("203.0.113.0/24", "203.0.113.255/32", "203.0.113.248/29"), pool("198.51.100.0/24")}, "[203.0.113.247]"},
		{[]fabric.Pool{pool("2001:db8:100::/48"), pool("203.0.113.7/32")}, "[2001:db8:100:ffff:ffff:ffff:ffff:ffff 203.0.113.7]"},
		{[]fabric.Pool{pool("203.0.113.0/24", "203.0.113.0/25", "203.0.113.128/25"), pool("198.51.100.0/30")}, "[198.51.100.3]"},
		{[]fabric.Pool{{Prefixes: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/30")}, Ranges: []fabric.AddressRange{
			{First: netip.MustParseAddr("203.0.113.10"), Last: netip.MustParseAddr("203.0.113.12")},
		}, Exclude: []netip.Prefix{netip.MustParsePrefix("203.0.113.12/32")}}}, "[203.0.113.11]"},
	} {
		got := samplesOf(&fabric.Cluster{Pools: c.pools})
		assert.Equal(t, c.want, fmt.Sprint(got))
	}
}
