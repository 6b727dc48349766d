package kernel

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables/expr"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// TestArrivingListed: a round that listed the arriving guests before a port was
// made does not take away what the port was given.
func TestArrivingListed(t *testing.T) {
	f := newFilter(Config{}, requests{})
	var mu sync.Mutex
	ports := map[string][]netip.Prefix{"web_net0": {netip.MustParsePrefix("203.0.113.10/32")}}
	list := func() map[string][]netip.Prefix {
		mu.Lock()
		defer mu.Unlock()
		return maps.Clone(ports)
	}
	require.NoError(t, f.ensure(list))
	listed, resume := make(chan struct{}), make(chan struct{})
	round, put := make(chan error, 1), make(chan error, 1)
	go func() {
		round <- f.ensure(func() map[string][]netip.Prefix {
			defer func() {
				close(listed)
				<-resume
			}()
			return list()
		})
	}()
	<-listed
	mu.Lock()
	ports["db_net0"] = []netip.Prefix{netip.MustParsePrefix("2001:db8:100::10/128")}
	mu.Unlock()
	go func() { put <- f.ensure(list) }()
	done := false
	select {
	case err := <-put:
		require.NoError(t, err)
		done = true
	case <-time.After(100 * time.Millisecond): // it waits for the round, as it should
	}
	close(resume)
	require.NoError(t, <-round)
	if !done {
		require.NoError(t, <-put)
	}
	out, err := exec.Command("nft", "list", "map", "inet", "vmfabric", "arriving").CombinedOutput()
	if err != nil {
		t.Skip("no nft to look with")
	}
	assert.Contains(t, string(out), "web_net0")
	assert.Contains(t, string(out), "db_net0")
	assert.Len(t, f.arriving, 2)
}

// TestNeighbourTable: small and nearly full tables are reported.
func TestNeighbourTable(t *testing.T) {
	for _, family := range []neighbourTable{{family: "IPv4", name: "ipv4"}, {family: "IPv6", name: "ipv6"}} {
		small, full, fine := family, family, family
		small.limit, full.limit, fine.limit = 1024, 1024, 1024
		small.entries, full.entries, fine.entries = 10, 820, 500
		assert.Contains(t, small.fault(33), "the "+family.family+" neighbour table holds 1024 entries, 33 ports may need 1040")
		assert.Contains(t, full.fault(1), "has 820 of at most 1024")
		assert.Contains(t, full.fault(1), "net."+family.name+".neigh.default.gc_thresh")
		assert.Empty(t, fine.fault(32))
	}
	n, err := parseEntries("entries  allocs   destroys\n0000001f 00000028 0000001e\n0000001f 0 0\n")
	require.NoError(t, err)
	assert.Equal(t, 31, n)
	_, err = parseEntries("")
	require.Error(t, err)
}

// TestNeighbourSettings: what the package sets is enough for as many ports as a
// node was measured with.
func TestNeighbourSettings(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "packaging", "90-vmfabric.conf"))
	require.NoError(t, err)
	for _, want := range []string{"ipv4", "ipv6"} {
		assert.Contains(t, strings.Split(string(text), "\n"), "net."+want+".neigh.default.gc_thresh3 = 65536")
	}
	assert.Empty(t, neighbourTable{limit: 65536}.fault(4000))
}

var ruleConfig = Config{
	Private: []netip.Prefix{netip.MustParsePrefix("10.10.0.0/24"), netip.MustParsePrefix("fd00:10:10::/64")},
	Guests:  fabric.Guests{NodePorts: []fabric.Service{{Protocol: "tcp", Port: 53}}},
}

// TestMarkOfRules: the rules of one configuration have one mark, so that a restarted
// agent finds the tables intact, and those of another configuration have another.
func TestMarkOfRules(t *testing.T) {
	mark := func(c Config, q requests) string { return string(portRules(c, q).mark) }
	all := requestsOf(ruleConfig.Guests, 147)
	seen := map[string]string{}
	for name, rules := range map[string]func() string{
		"as it is":      func() string { return mark(ruleConfig, all) },
		"another group": func() string { return mark(ruleConfig, requestsOf(ruleConfig.Guests, 148)) },
		"no requests":   func() string { return mark(ruleConfig, requests{}) },
		"no DHCP":       func() string { return mark(ruleConfig, requestsOf(fabric.Guests{NoDHCP: true}, 147)) },
		"no RA":         func() string { return mark(ruleConfig, requestsOf(fabric.Guests{NoRA: true}, 147)) },
		"metadata":      func() string { return mark(ruleConfig, requests{metadata: 14780}) },
		"another port":  func() string { return mark(ruleConfig, requests{metadata: 14781}) },
		"no networks":   func() string { return mark(Config{Guests: ruleConfig.Guests}, all) },
		"ARP":           func() string { return string(arpRules().mark) },
	} {
		assert.Equal(t, rules(), rules(), name)
		assert.Empty(t, seen[rules()], name)
		seen[rules()] = name
	}
}

// TestFar: which destinations of a family are far is asked of a set, but where none of the
// private ones is a global address of IPv6.
func TestFar(t *testing.T) {
	t.Parallel()
	asks := func(f family, private ...string) bool {
		var ps []netip.Prefix
		for _, p := range private {
			ps = append(ps, netip.MustParsePrefix(p))
		}
		return slices.ContainsFunc(f.far(ps), func(e expr.Any) bool { _, is := e.(*expr.Lookup); return is })
	}
	assert.True(t, asks(ipv4))
	assert.False(t, asks(ipv6))
	assert.False(t, asks(ipv6, "10.10.0.0/24", "fd00:10:10::/64", "1fff::/16", "4000::/16"))
	for _, p := range []string{"2001:db8::/32", "2000::/128", "3fff:ffff::/32", "::/0", "2000::/3"} {
		assert.True(t, asks(ipv6, "fd00:10:10::/64", p), p)
	}
}

// TestUnderlaySources: most sources are known not to be private by a comparison where the
// private ones begin alike, and by a look-up otherwise.
func TestUnderlaySources(t *testing.T) {
	t.Parallel()
	first := func(f family, private ...string) string {
		var ps []netip.Prefix
		for _, p := range private {
			ps = append(ps, netip.MustParsePrefix(p))
		}
		rule := f.underlay(ps)
		if c, is := rule[2].(*expr.Cmp); is {
			return fmt.Sprintf("%x/%x", c.Data, rule[1].(*expr.Bitwise).Mask)
		}
		return rule[1].(*expr.Lookup).SetName
	}
	assert.Equal(t, "near4", first(ipv4, "fd00:10:10::/64"))
	assert.Equal(t, "0a0a0000/ffffffc0", first(ipv4, "10.10.0.33/32", "fd00:10:10::/64", "10.10.0.1/32"))
	assert.Equal(t, "0a000000/ff000000", first(ipv4, "10.0.0.0/8", "10.10.0.9/32"))
	assert.Equal(t, "near4", first(ipv4, "10.10.0.9/32", "172.16.0.0/12"))
	assert.Equal(t, "near4", first(ipv4, "0.0.0.0/0"))
	assert.Equal(t, "fd000010/ffffffff", first(ipv6, "10.10.0.0/24", "fd00:10:10::1/128", "fd00:10:20::/64"))
	assert.Equal(t, "20010db8/ffffffff", first(ipv6, "2001:db8::/32"))
	assert.Equal(t, "near6", first(ipv6, "2001:db8::/32", "fd00::/64"))
}

// TestRequestsCostNoOthers: the rules for forwarded packets are the same with requests
// and without.
func TestRequestsCostNoOthers(t *testing.T) {
	with, without := portRules(ruleConfig, requestsOf(ruleConfig.Guests, 147)), portRules(ruleConfig, requests{})
	text := func(r *ruleset, chain string) (rules []string) {
		for _, rule := range r.rules[chain] {
			line := ""
			for _, e := range rule.Exprs {
				line += fmt.Sprintf("%T%+v ", e, e)
			}
			rules = append(rules, line)
		}
		return rules
	}
	for _, chain := range []string{"sources", "from4", "from6", "destination4", "destination6", "closed4", "closed6", "answers4", "answers6", "to_guests4", "to_guests6"} {
		assert.NotEmpty(t, text(without, chain), chain)
		assert.Len(t, text(with, chain), len(text(without, chain)), chain)
	}
	for set := range without.elements {
		assert.Len(t, with.elements[set], len(without.elements[set]), set)
	}
	assert.Len(t, text(with, "local4"), len(text(without, "local4"))+1, "to the node itself")
}

// TestMetadataCostsNoOthers: the rules for forwarded packets are the same with metadata and
// without, and only those to 169.254.0.0/16 and to the underlay meet one more.
func TestMetadataCostsNoOthers(t *testing.T) {
	with, without := portRules(ruleConfig, requests{metadata: 14780}), portRules(ruleConfig, requests{})
	for _, chain := range []string{"sources", "from4", "from6", "destination4", "destination6", "closed6", "answers4", "answers6", "to_guests4", "to_guests6"} {
		assert.Len(t, with.rules[chain], len(without.rules[chain]), chain)
	}
	for chain, more := range map[string]int{"closed4": 1, "link_local": 1, "from_link_local": 1, "to_node": 1, "output": 2} {
		assert.Len(t, with.rules[chain], len(without.rules[chain])+more, chain)
	}
	for set, elements := range without.elements {
		assert.Len(t, with.elements[set], len(elements), set)
	}
}

// TestServicesFirst: a DHCP server of the operator's takes the place of the responder.
func TestServicesFirst(t *testing.T) {
	of := func(ports ...uint16) fabric.Guests {
		var g fabric.Guests
		for _, p := range ports {
			g.NodePorts = append(g.NodePorts, fabric.Service{Protocol: "udp", Port: p})
		}
		return g
	}
	for name, c := range map[string]struct {
		guests fabric.Guests
		want   requests
	}{
		"all":       {of(53), requests{dhcp4: true, dhcp6: true, ra: true}},
		"their v4":  {of(67), requests{dhcp6: true, ra: true}},
		"their v6":  {of(547), requests{dhcp4: true, ra: true}},
		"only RA":   {fabric.Guests{NoDHCP: true}, requests{ra: true}},
		"only DHCP": {fabric.Guests{NoRA: true}, requests{dhcp4: true, dhcp6: true}},
		"nothing":   {fabric.Guests{NoRA: true, NoDHCP: true}, requests{}},
	} {
		assert.Equal(t, c.want, requestsOf(c.guests, 0), name)
	}
}
