package kernel_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

var trialGuests = addrs("203.0.113.250", "2001:db8:100::fa")

// openForwarding opens a dataplane that tries whether the node forwards.
func openForwarding(t *testing.T) *kernel.Dataplane {
	t.Helper()
	d, err := kernel.New(t.Context(), kernel.Config{Cluster: "lab", Underlay: []netip.Addr{node2[true], node2[false]}, Samples: trialGuests, NextHop: netip.MustParseAddr("10.10.0.21"), NextHop6: netip.MustParseAddr("fd00:10:10::21")})
	require.NoError(t, err)
	labtest.Running(t, d)
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

// tryForwarding tries now, and again where a busy machine had no time for a trial.
func tryForwarding(ctx context.Context, d *kernel.Dataplane) (faults []fabric.ForwardingFault, err error) {
	for range 5 {
		if faults, err = d.CheckForwarding(ctx); !errors.Is(err, context.DeadlineExceeded) {
			break
		}
	}
	return faults, err
}

// faultLines tries now.
func faultLines(t *testing.T, d *kernel.Dataplane) []string {
	t.Helper()
	faults, err := tryForwarding(t.Context(), d)
	require.NoError(t, err)
	lines := []string{}
	for _, f := range faults {
		lines = append(lines, f.Family+": "+f.Text)
	}
	return lines
}

func lines(all ...string) []string { return all }

// filters are rule sets that keep packets of guests from being forwarded, or look as
// if they did.
var filters = map[string]struct {
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
		lines("IPv6: IPv6 packets (TCP) to and from guests do not pass this node: table ip6 raw chain PREROUTING (policy drop) drops them; ip6tables -t raw -I PREROUTING -m devgroup --src-group 147 -j ACCEPT; and with each pool for POOL, ip6tables -t raw -I PREROUTING -d POOL -j ACCEPT"),
		"insert rule ip6 raw PREROUTING iifgroup 147 accept; insert rule ip6 raw PREROUTING ip6 daddr 2001:db8:100::/48 accept",
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
}

// TestForwarding tries rule sets that are in the way, and that none is when they
// are gone, or let the ports pass.
func TestForwarding(t *testing.T) {
	newMoveLab(t)
	d := openForwarding(t)
	require.Empty(t, faultLines(t, d))
	for name, c := range filters {
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
		rs, err := dump(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{Table: fabric.TrialTable}, netlink.RT_FILTER_TABLE)
		})
		require.NoError(t, err)
		assert.Empty(t, rs)
	}
}

// diagnosed waits until the dataplane says by itself what is wanted.
func diagnosed(t *testing.T, d *kernel.Dataplane, want ...string) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		have := d.Diagnose(t.Context())
		if assert.Len(c, have, len(want)) {
			for i := range want {
				assert.Contains(c, have[i], want[i])
			}
		}
	}, 30*time.Second, 50*time.Millisecond)
}

// TestForwardingOfABusyNode: somewhere on the machine many links come up and go
// down. The kernel is then slow to notice that a new link has a carrier, and drops what
// that sends until then. No trial takes that for an obstacle.
func TestForwardingOfABusyNode(t *testing.T) {
	newMoveLab(t)
	d := openForwarding(t)
	elsewhere := newSpace(t)
	var links []string
	for i := range 500 {
		links = append(links, fmt.Sprintf("link add busy%d group 7 type veth peer name busier%d group 7", i, i))
	}
	ipIn(t, elsewhere, links...)
	var stop atomic.Bool
	var flapping sync.WaitGroup
	flapping.Go(func() {
		for !stop.Load() {
			ipIn(t, elsewhere, "link set group 7 up", "link set group 7 down")
		}
	})
	for range 10 {
		began := time.Now()
		assert.Empty(t, faultLines(t, d))
		t.Logf("%v", time.Since(began))
	}
	stop.Store(true)
	flapping.Wait()
}

// TestForwardingIsWatched: what others do to rules is noticed, and so is what
// comes without a notification once something is in the way; nothing that our own trials do is.
func TestForwardingIsWatched(t *testing.T) {
	newMoveLab(t)
	d := openForwarding(t)
	diagnosed(t, d)
	nft(t, "table ip t { chain c { type filter hook forward priority filter; policy drop; }; }")
	diagnosed(t, d, "IPv4 packets to and from guests do not pass this node: table ip t chain c (policy drop)")
	nft(t, "add rule ip t c iifgroup 147 accept")
	diagnosed(t, d, "IPv4 packets to guests do not pass this node: table ip t chain c (policy drop)")
	nft(t, "delete table ip t; table ip6 t { set s { type ipv6_addr; }; chain c { type filter hook forward priority filter; ip6 daddr @s drop; }; }")
	diagnosed(t, d)
	nft(t, "add element ip6 t s { 2001:db8:100::fa }")
	_, err := tryForwarding(t.Context(), d) // elements alone are looked at once a minute
	require.NoError(t, err)
	diagnosed(t, d, "IPv6 packets to guests do not pass this node: table ip6 t chain c (rule with handle")
	nft(t, "delete table ip6 t")
	diagnosed(t, d)
}

// TestForwardingSettings: settings of the kernel that keep packets from being
// forwarded are named.
func TestForwardingSettings(t *testing.T) {
	newMoveLab(t)
	d := openForwarding(t)
	for path, want := range map[string]string{
		"ipv4/conf/up0/forwarding":   "IPv4: IPv4 packets to guests do not pass this node: setting net.ipv4.conf.up0.forwarding = 0 drops them; sysctl -w net.ipv4.conf.up0.forwarding=1",
		"ipv6/conf/up0/disable_ipv6": "IPv6: IPv6 packets to and from guests do not pass this node: setting net.ipv6.conf.up0.disable_ipv6 = 1 drops them; sysctl -w net.ipv6.conf.up0.disable_ipv6=0",
	} {
		before := sysctl(t, path)
		sysctls(t, nil, map[string]string{path: map[string]string{"0": "1", "1": "0"}[before]})
		assert.Equal(t, []string{want}, faultLines(t, d))
		_, text, _ := strings.Cut(want, ": ")
		sysctls(t, nil, map[string]string{path: before})
		assert.Empty(t, faultLines(t, d))
		sysctls(t, nil, map[string]string{path: map[string]string{"0": "1", "1": "0"}[before]})
		diagnosed(t, d, text)
		sysctls(t, nil, map[string]string{path: before})
		diagnosed(t, d)
	}
}

// TestForwardingLegacy: rules of iptables-legacy are found, in both families.
func TestForwardingLegacy(t *testing.T) {
	for _, program := range []string{"iptables-legacy", "ip6tables-legacy"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip("no ", program)
		}
	}
	newMoveLab(t)
	d := openForwarding(t)
	run := func(args ...string) {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		require.NoError(t, err, string(out))
	}
	for family, program := range map[string]string{"IPv4": "iptables-legacy", "IPv6": "ip6tables-legacy"} {
		run(program, "-P", "FORWARD", "DROP")
		want := family + ": " + family + " packets to and from guests do not pass this node: chain FORWARD of iptables-legacy (table filter) drops them; " +
			program + " -I FORWARD -m devgroup --src-group 147 -j ACCEPT; " + program + " -I FORWARD -m devgroup --dst-group 147 -j ACCEPT; what outlives a reload of ufw or firewalld is in packaging/README.md (of the package: /usr/share/doc/vmfabric/README.md)"
		assert.Equal(t, []string{want}, faultLines(t, d))
		run(program, "-I", "FORWARD", "-m", "devgroup", "--src-group", "147", "-j", "ACCEPT")
		run(program, "-I", "FORWARD", "-m", "devgroup", "--dst-group", "147", "-j", "ACCEPT")
		assert.Empty(t, faultLines(t, d))
		run(program, "-F", "FORWARD")
		run(program, "-P", "FORWARD", "ACCEPT")
		assert.Empty(t, faultLines(t, d))
	}
}

// TestForwardingLeftovers: what a process left that was killed in a trial is gone
// when the next one starts; a link of that name that is not ours stays, and is reported.
func TestForwardingLeftovers(t *testing.T) {
	newMoveLab(t)
	ipIn(t, nil, "link add fabric_net147 type veth peer name fabric_peer147", "link set fabric_net147 alias vmfabric-trial", "link set fabric_net147 up",
		"route add 203.0.113.250/32 dev up0 table 149 proto 147", "route add 2001:db8:100::fa/128 dev up0 table 149 proto 147")
	nft(t, "table inet vmfabric-trial { chain leave { type filter hook postrouting priority 0; drop; }; }")
	d, err := kernel.New(t.Context(), kernel.Config{Cluster: "lab", Samples: trialGuests}) // without an underlay nothing is tried
	require.NoError(t, err)
	labtest.Running(t, d)
	assertNoTrial(t)
	require.NoError(t, d.Close())

	ipIn(t, nil, "link add fabric_net147 type veth peer name fabric_peer147")
	_, err = kernel.New(t.Context(), kernel.Config{Cluster: "lab", Samples: trialGuests})
	require.ErrorIs(t, err, fabric.ErrForeign)
	require.ErrorContains(t, err, "link fabric_net147 is there")
	ipIn(t, nil, "link del fabric_net147")
}

// TestForwardingDisturbsNobody: neither the wire nor a guest that has the very
// address which is tried with sees anything of trials, whatever rules answer.
func TestForwardingDisturbsNobody(t *testing.T) {
	lab := newMoveLab(t)
	d := openForwarding(t)
	p := port("web", fabric.NIC{Kind: fabric.Veth, Addresses: trialGuests})
	require.NoError(t, d.Put(t.Context(), p))
	ipIn(t, nil, "link set web_peer0 up")
	count := `table netdev watch { chain c { type filter hook ingress device %s priority 0;
		ip saddr {198.41.0.4, 203.0.113.250} counter name seen; ip daddr {198.41.0.4, 203.0.113.250} counter name seen
		ip6 saddr {2001:503:ba3e::2:30, 2001:db8:100::fa} counter name seen; ip6 daddr {2001:503:ba3e::2:30, 2001:db8:100::fa} counter name seen
		arp daddr ip {198.41.0.4} counter name seen; icmpv6 type nd-neighbor-solicit counter name asked; };
		counter seen {}; counter asked {}; }`
	nft(t, fmt.Sprintf(count, "web_peer0"))
	require.NoError(t, within(lab.core, func() error {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(fmt.Sprintf(count, "to1"))
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}))
	for _, rules := range []string{"", "policy drop;", "reject with tcp reset;", "reject;"} {
		if strings.HasPrefix(rules, "reject with tcp") {
			rules = "meta l4proto tcp " + rules
		}
		nft(t, "table inet f { chain c { type filter hook forward priority filter; "+rules+" }; }")
		assert.Equal(t, rules != "", len(faultLines(t, d)) == 2)
		nft(t, "delete table inet f")
	}
	seen := func() error {
		out, err := exec.Command("nft", "list", "counter", "netdev", "watch", "seen").CombinedOutput()
		if err == nil && !strings.Contains(string(out), "packets 0 ") {
			err = errors.New("frames were seen")
		}
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	assert.NoError(t, seen(), "by the guest")
	assert.NoError(t, within(lab.core, seen), "on the wire")
	nft(t, "delete table netdev watch")
	require.NoError(t, d.Remove(t.Context(), "web_net0"))
}
