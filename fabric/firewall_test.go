package fabric_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/vmfabric/vmfabric/fabric"
)

// anyFilter draws a well-formed filter.
func anyFilter(t *rapid.T) (f fabric.Filter) {
	f.Drop = rapid.Bool().Draw(t, "default")
	for i := range rapid.IntRange(0, 8).Draw(t, "rules") {
		r := fabric.Rule{
			Drop:     rapid.Bool().Draw(t, "drop"),
			Protocol: rapid.SampledFrom([]fabric.Transport{fabric.AnyProtocol, fabric.TCP, fabric.UDP, fabric.ICMP}).Draw(t, fmt.Sprint("protocol ", i)),
		}
		if r.Protocol == fabric.TCP || r.Protocol == fabric.UDP {
			for range rapid.IntRange(0, fabric.MaxRuleParts).Draw(t, "ports") {
				first := rapid.Uint16Range(1, 65535).Draw(t, "first")
				r.Ports = append(r.Ports, fabric.PortRange{First: first, Last: rapid.Uint16Range(first, 65535).Draw(t, "last")})
			}
		}
		for range rapid.IntRange(0, fabric.MaxRuleParts).Draw(t, "peers") {
			r.Peers = append(r.Peers, anyPrefix(t))
		}
		f.Rules = append(f.Rules, r)
	}
	return f
}

func anyPrefix(t *rapid.T) netip.Prefix {
	size := rapid.SampledFrom([]int{4, 16}).Draw(t, "family")
	a, _ := netip.AddrFromSlice(rapid.SliceOfN(rapid.Byte(), size, size).Draw(t, "address"))
	return netip.PrefixFrom(a.Unmap(), rapid.IntRange(0, a.Unmap().BitLen()).Draw(t, "bits")).Masked()
}

// TestFilterText: what a filter is written as is read back as the same, in both
// directions, and so is its JSON.
func TestFilterText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := anyFilter(t)
		d := rapid.SampledFrom([]fabric.Direction{fabric.Ingress, fabric.Egress}).Draw(t, "direction")
		read, err := fabric.ParseFilter(f.Text(d), d)
		require.NoError(t, err)
		assert.Equal(t, f, read)
		assert.Equal(t, f.Text(d), read.Text(d))
		b, err := json.Marshal(f)
		require.NoError(t, err)
		var from fabric.Filter
		require.NoError(t, json.Unmarshal(b, &from))
		assert.Equal(t, f.Text(d), from.Text(d))
	})
}

// TestFilterOfFamily keeps each rule for the families of its prefixes, and in its place.
func TestFilterOfFamily(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := anyFilter(t)
		for _, v4 := range []bool{true, false} {
			part, i := f.Of(v4), 0
			assert.Equal(t, f.Drop, part.Drop)
			for _, r := range f.Rules {
				var peers []netip.Prefix
				for _, p := range r.Peers {
					if p.Addr().Is4() == v4 {
						peers = append(peers, p)
					}
				}
				if len(r.Peers) > 0 && len(peers) == 0 {
					continue
				}
				require.Less(t, i, len(part.Rules))
				assert.ElementsMatch(t, peers, part.Rules[i].Peers)
				assert.Equal(t, r.Protocol, part.Rules[i].Protocol)
				i++
			}
			assert.Len(t, part.Rules, i)
		}
	})
}

// TestParseFilter reads what people write, and says what is wrong with the rest: the
// rule, the reason and the way out, on one line.
func TestParseFilter(t *testing.T) {
	f, err := fabric.ParseFilter("\n  accept  tcp 22,8000-8100 from 198.51.100.0/24,2001:db8:5::1 \n;; accept icmp; drop\n", fabric.Ingress)
	require.NoError(t, err)
	assert.Equal(t, "accept tcp 22,8000-8100 from 198.51.100.0/24,2001:db8:5::1/128; accept icmp; drop", f.Text(fabric.Ingress))
	for text, want := range map[string]string{
		"allow tcp 22":                                 `ingress rule 1 "allow tcp 22": it begins with "allow"; write accept or drop first`,
		"drop; accept tcp 22":                          `ingress rule 2 "accept tcp 22": it comes after an action for all packets; put that last`,
		"accept icmp; accept tpc 22":                   `ingress rule 2 "accept tpc 22": protocol "tpc" is not one of any, tcp, udp, icmp; write for example accept tcp 22 from 198.51.100.0/24`,
		"accept tcp 0":                                 `ingress rule 1 "accept tcp 0": "0" is not a port; write 22, or 8000-8100`,
		"accept tcp 65536":                             `"65536" is not a port`,
		"accept tcp 22-21":                             `ports 22-21 end before they begin; write 21-22`,
		"accept tcp 22, 23":                            `"" is not a port`,
		"accept tcp 22 23":                             `"23" is one word too many; write ports with commas and no spaces, then from and prefixes`,
		"accept icmp 8":                                `icmp has no ports; leave them out, or write a rule for tcp and one for udp`,
		"accept any 22":                                `any has no ports`,
		"accept tcp 22 to 198.51.100.0/24":             `"to" is of the other direction; an ingress rule has from`,
		"accept tcp to 198.51.100.0/24":                `"to" is of the other direction; an ingress rule has from`,
		"accept tcp 22 from":                           `from takes one list of prefixes, with commas and no spaces`,
		"accept tcp 22 from 10.0.0.0/8 icmp":           `from takes one list of prefixes, with commas and no spaces`,
		"accept tcp 22 from example.net":               `"example.net" is not a prefix; write one such as 198.51.100.0/24 or 2001:db8:5::/48`,
		"accept tcp 22 from 198.51.100.1/24":           `198.51.100.1/24 has bits beyond its length; write 198.51.100.0/24`,
		"accept tcp from ::ffff:192.0.2.0/120":         `::ffff:192.0.2.0/120 is an IPv4 prefix written as IPv6`,
		"accept tcp from fe80::1%eth0":                 `"fe80::1%eth0" is not a prefix`,
		"accept tcp " + strings.Repeat("1,", 16) + "1": `a rule has at most 16 port ranges and as many prefixes; write a second rule`,
		strings.Repeat("accept tcp 1;", 65):            `a guest has at most 64 rules; put ports and prefixes of several into one`,
	} {
		_, err := fabric.ParseFilter(text, fabric.Ingress)
		require.Error(t, err, text)
		assert.Contains(t, err.Error(), want, text)
		assert.NotContains(t, err.Error(), "\n")
	}
}

// TestFirewallValidate refuses firewalls whose rules cannot mean what they say.
func TestFirewallValidate(t *testing.T) {
	filter := func(text string, d fabric.Direction) fabric.Filter {
		f, err := fabric.ParseFilter(text, d)
		require.NoError(t, err)
		return f
	}
	var none *fabric.Firewall
	require.NoError(t, none.Validate())
	for text, want := range map[string]string{
		"accept tcp 22; drop":              "",
		"drop tcp 25":                      "",
		"drop":                             "",
		"accept tcp 22":                    `firewall: egress: all rules say accept, as for all other packets; end the list with "drop", or leave it out`,
		"drop tcp 22; drop":                `firewall: egress: all rules say drop`,
		"accept any; drop tcp 22":          `firewall: egress rule 1 "accept any": it is for all packets, so that no rule after it counts; put it last`,
		"drop tcp 25; accept any":          "",
		strings.Repeat("drop tcp 25;", 64): `firewall: 65 rules; a guest has at most 64`,
	} {
		w := &fabric.Firewall{Ingress: filter("accept icmp; drop", fabric.Ingress), Egress: filter(text, fabric.Egress)}
		vm := fabric.VM{Name: "web", NICs: []fabric.NIC{{Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.10")}}}, Firewall: w}
		if want == "" {
			require.NoError(t, vm.Validate(), text)
			continue
		}
		require.ErrorContains(t, vm.Validate(), want, text)
	}
	require.ErrorContains(t, (&fabric.Firewall{Stateful: true}).Validate(), "drops nothing")
	bad := &fabric.Firewall{Ingress: fabric.Filter{Drop: true, Rules: []fabric.Rule{{Protocol: "gre"}}}}
	require.ErrorContains(t, bad.Validate(), `ingress rule 1 "accept gre": protocol "gre" is not one of any, tcp, udp, icmp`)
	bad.Ingress.Rules[0] = fabric.Rule{Protocol: fabric.TCP, Ports: []fabric.PortRange{{First: 3, Last: 2}}}
	require.ErrorContains(t, bad.Validate(), "ports 3-2 are no range")
	bad.Ingress.Rules[0] = fabric.Rule{Protocol: fabric.TCP, Peers: []netip.Prefix{{}}}
	require.ErrorContains(t, bad.Validate(), "prefix 1 is empty")
}
