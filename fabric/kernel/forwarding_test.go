package kernel_test

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel"
)

var trialGuests = addrs("203.0.113.250", "2001:db8:100::fa")

// openForwarding opens a dataplane that tries whether the node forwards.
func openForwarding(t *testing.T) *kernel.Dataplane {
	t.Helper()
	d, err := kernel.New(kernel.Config{Cluster: "lab", Underlay: []netip.Addr{node2[true], node2[false]}, Samples: trialGuests})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	return d
}

// nft runs a script of nft(8).
func nft(t *testing.T, script string) {
	t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
}

// faultLines tries now.
func faultLines(t *testing.T, d *kernel.Dataplane) []string {
	t.Helper()
	faults, err := d.CheckForwarding(t.Context())
	require.NoError(t, err)
	lines := []string{}
	for _, f := range faults {
		lines = append(lines, f.Family+": "+f.Text)
	}
	return lines
}

// TestForwarding tries rule sets that are in the way, and that none is when they
// are gone, or let the ports pass.
func TestForwarding(t *testing.T) {
	newMoveLab(t)
	d := openForwarding(t)
	require.Empty(t, faultLines(t, d))
	lines := func(all ...string) []string { return all }
	for name, c := range map[string]struct {
		rules, gone string
		want        []string // what the lines begin with
		wayOut      string   // rules that let the ports pass
	}{
		"policy drop, both families": {
			"table inet filter { chain forward { type filter hook forward priority filter; policy drop; }; }", "delete table inet filter",
			lines(
				"IPv4: IPv4 packets to and from guests do not pass this node: table inet filter chain forward (policy drop) drops them; nft insert rule inet filter forward iifgroup 147 accept; nft insert rule inet filter forward oifgroup 147 accept",
				"IPv6: IPv6 packets to and from guests do not pass this node: table inet filter chain forward (policy drop) drops them; nft insert rule inet filter forward iifgroup 147 accept; nft insert rule inet filter forward oifgroup 147 accept"),
			"insert rule inet filter forward iifgroup 147 accept; insert rule inet filter forward oifgroup 147 accept",
		},
		"policy drop, IPv4": {
			"table ip t { chain c { type filter hook forward priority filter; policy drop; }; }", "delete table ip t",
			lines("IPv4: IPv4 packets to and from guests do not pass this node: table ip t chain c (policy drop) drops them; nft insert rule ip t c iifgroup 147"),
			"insert rule ip t c iifgroup 147 accept; insert rule ip t c oifgroup 147 accept",
		},
		"policy drop, IPv6": {
			"table ip6 t { chain c { type filter hook forward priority filter; policy drop; }; }", "delete table ip6 t",
			lines("IPv6: IPv6 packets to and from guests do not pass this node: table ip6 t chain c (policy drop) drops them; nft insert rule ip6 t c iifgroup 147"),
			"insert rule ip6 t c iifgroup 147 accept; insert rule ip6 t c oifgroup 147 accept",
		},
		"accepted in a chain before another that drops": {
			"table inet a { chain c { type filter hook forward priority -10; policy drop; accept; }; }; table inet b { chain c { type filter hook forward priority 10; policy drop; }; }",
			"delete table inet a; delete table inet b",
			lines("IPv4: IPv4 packets to and from guests do not pass this node: table inet b chain c (policy drop)", "IPv6: IPv6 packets to and from guests do not pass this node: table inet b chain c (policy drop)"),
			"insert rule inet b c iifgroup 147 accept; insert rule inet b c oifgroup 147 accept",
		},
		"a rule that drops what comes in from the uplink, by a chain that is jumped to": {
			"table inet f { chain inner { iifname up0 drop; }; chain c { type filter hook forward priority filter; jump inner; }; }", "delete table inet f",
			lines("IPv4: IPv4 packets to guests do not pass this node: table inet f chain inner (rule with handle", "IPv6: IPv6 packets to guests do not pass this node: table inet f chain inner"),
			"insert rule inet f c oifgroup 147 accept",
		},
		"what is from guests is refused": {
			"table inet f { chain c { type filter hook forward priority filter; oifname up0 reject; }; }", "delete table inet f",
			lines("IPv4: IPv4 packets from guests do not pass this node: table inet f chain c (rule", "IPv6: IPv6 packets from guests do not pass this node: table inet f chain c (rule"),
			"insert rule inet f c iifgroup 147 accept",
		},
		"new TCP connections to guests are reset": {
			"table inet f { chain c { type filter hook forward priority filter; iifname up0 tcp flags syn reject with tcp reset; }; }", "delete table inet f",
			lines("IPv4: IPv4 packets (TCP) to guests do not pass", "IPv6: IPv6 packets (TCP) to guests do not pass"),
			"insert rule inet f c oifgroup 147 accept",
		},
		"ICMP and UDP alone pass, in a prerouting chain": {
			"table ip6 raw { chain PREROUTING { type filter hook prerouting priority raw; policy drop; meta l4proto {icmpv6, udp} accept; }; }", "delete table ip6 raw",
			lines("IPv6: IPv6 packets (TCP) to and from guests do not pass this node: table ip6 raw chain PREROUTING (policy drop) drops them; ip6tables -t raw -I PREROUTING -m devgroup --src-group 147"),
			"insert rule ip6 raw PREROUTING accept",
		},
		"like Docker": {
			"table ip filter { chain DOCKER-USER { return; }; chain FORWARD { type filter hook forward priority filter; policy drop; jump DOCKER-USER; oifname docker0 accept; }; }", "delete table ip filter",
			lines("IPv4: IPv4 packets to and from guests do not pass this node: table ip filter chain FORWARD (policy drop) drops them; iptables -I DOCKER-USER -m devgroup --src-group 147 -j ACCEPT; iptables -I DOCKER-USER -m devgroup --dst-group 147 -j ACCEPT"),
			"insert rule ip filter DOCKER-USER iifgroup 147 accept; insert rule ip filter DOCKER-USER oifgroup 147 accept",
		},
		"like ufw": {
			`table ip filter { chain ufw-before-forward { ct state related,established accept; meta l4proto icmp accept; }; chain ufw-reject-forward { reject; }; chain FORWARD { type filter hook forward priority filter; policy drop; jump ufw-before-forward; jump ufw-reject-forward; }; }
			 table ip6 filter { chain ufw6-before-forward { ct state related,established accept; meta l4proto icmpv6 accept; }; chain FORWARD { type filter hook forward priority filter; policy drop; jump ufw6-before-forward; }; }`,
			"delete table ip filter; delete table ip6 filter",
			lines("IPv4: IPv4 packets to and from guests do not pass this node: table ip filter chain ufw-reject-forward (rule with handle", "IPv6: IPv6 packets to and from guests do not pass this node: table ip6 filter chain FORWARD (policy drop) drops them; put '-A ufw6-before-forward -m devgroup --src-group 147 -j ACCEPT' and '-A ufw6-before-forward -m devgroup --dst-group 147 -j ACCEPT' before COMMIT of /etc/ufw/before6.rules, then ufw reload"),
			"insert rule ip filter ufw-before-forward iifgroup 147 accept; insert rule ip filter ufw-before-forward oifgroup 147 accept; insert rule ip6 filter ufw6-before-forward iifgroup 147 accept; insert rule ip6 filter ufw6-before-forward oifgroup 147 accept",
		},
		"the pool alone passes": {
			"table inet f { chain c { type filter hook forward priority filter; policy drop; ip saddr 203.0.113.0/24 accept; ip daddr 203.0.113.0/24 accept; ip6 daddr 2001:db8:100::/48 accept; ip6 saddr 2001:db8:100::/48 accept; }; }", "delete table inet f",
			nil, "",
		},
		"other interfaces are closed": {
			"table inet f { chain c { type filter hook forward priority filter; iifname docker0 drop; oifname virbr0 reject; }; }", "delete table inet f",
			nil, "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			nft(t, c.rules)
			have := faultLines(t, d)
			if assert.Len(t, have, len(c.want), "%q", have) {
				for i, want := range c.want {
					assert.True(t, strings.HasPrefix(have[i], want), "%q begins with %q", have[i], want)
				}
			}
			if c.wayOut != "" {
				nft(t, c.wayOut)
				assert.Empty(t, faultLines(t, d), "let pass")
			}
			nft(t, c.gone)
			assert.Empty(t, faultLines(t, d), "gone")
		})
	}
	assertNoTrial(t)
}

// assertNoTrial: a trial leaves nothing but its rules.
func assertNoTrial(t *testing.T) {
	t.Helper()
	_, err := netlink.LinkByName("fabric_net147")
	assert.ErrorAs(t, err, &netlink.LinkNotFoundError{})
	out, err := exec.Command("nft", "list", "tables").CombinedOutput()
	require.NoError(t, err)
	assert.NotContains(t, string(out), "vmfabric-trial")
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rs, err := netlink.RouteListFiltered(family, &netlink.Route{Table: fabric.TrialTable}, netlink.RT_FILTER_TABLE)
		require.NoError(t, err)
		assert.Empty(t, rs)
	}
}
