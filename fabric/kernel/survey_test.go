package kernel_test

import (
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel"
)

var node1 = map[bool]netip.Addr{true: netip.MustParseAddr("10.10.0.21"), false: netip.MustParseAddr("fd00:10:10::21")}

func openSurvey(t *testing.T) *kernel.Survey {
	t.Helper()
	// Other tests leave the tables of their dataplanes, and the rule of their trials.
	nft(t, "add table inet vmfabric; delete table inet vmfabric; add table arp vmfabric; delete table arp vmfabric")
	for _, family := range []string{"-4", "-6"} {
		_ = exec.Command("ip", family, "rule", "del", "priority", "14600").Run() // those of dataplanes' trials stay
	}
	s, err := kernel.NewSurvey(kernel.Config{Cluster: "lab", Underlay: []netip.Addr{node2[true], node2[false]}, Samples: trialGuests})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

// state is what a survey must leave as it was.
func state(t *testing.T) string {
	t.Helper()
	all := ""
	for _, args := range [][]string{{"nft", "list", "ruleset"}, {"ip", "-br", "link"}, {"ip", "rule"}, {"ip", "-6", "rule"}, {"ip", "route", "show", "table", "all"}, {"sysctl", "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"}} {
		out, err := exec.Command(args[0], args[1:]...).Output()
		require.NoError(t, err, "%v", args)
		all += string(out)
	}
	return all
}

// A survey finds what is in the way of guests without a dataplane, and leaves all as it
// was.
func TestSurveyForwarding(t *testing.T) {
	newMoveLab(t)
	s := openSurvey(t)
	look := func() (lines []string) {
		faults, err := s.CheckForwarding(t.Context())
		require.NoError(t, err)
		for _, f := range faults {
			lines = append(lines, f.Text)
		}
		return lines
	}
	sysctls(t, nil, map[string]string{"ipv4/ip_forward": "0", "ipv6/conf/all/forwarding": "0"})
	before := state(t)
	lines := look()
	require.Len(t, lines, 2)
	assert.Contains(t, lines[0], "IPv4 packets to and from guests do not pass this node: setting net.ipv4.ip_forward = 0 drops them; ")
	assert.Contains(t, lines[1], "IPv6 packets to and from guests do not pass this node: setting net.ipv6.conf.all.forwarding = 0 drops them; ")
	assert.Equal(t, before, state(t))

	sysctls(t, nil, map[string]string{"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"})
	ipIn(t, nil, "route replace default via fd00:10:10::1")
	assert.Empty(t, look())
	nft(t, "table inet filter { chain forward { type filter hook forward priority filter; policy drop; }; }")
	lines = look()
	nft(t, "delete table inet filter")
	require.Len(t, lines, 2)
	for i, family := range []string{"IPv4", "IPv6"} {
		assert.Contains(t, lines[i], family+" packets to and from guests do not pass this node: table inet filter chain forward (policy drop) drops them; nft insert rule inet filter forward iifgroup 147 accept")
	}
}

var closings = map[string]struct{ rules, gone, says string }{
	"policy":   {"table inet f { chain in { type filter hook input priority filter; policy drop; ct state established accept; }; }", "delete table inet f", "table inet f chain in (policy drop) drops them; nft insert rule inet f in ip"},
	"reject":   {"table inet f { chain in { type filter hook input priority filter; tcp dport 7147 reject with tcp reset; }; }", "delete table inet f", "table inet f chain in drops them; nft insert rule inet f in ip"},
	"raw":      {"table inet f { chain pre { type filter hook prerouting priority raw; tcp dport 7147 drop; }; }", "delete table inet f", "table inet f chain pre drops them"},
	"iptables": {"table ip filter { chain INPUT { type filter hook input priority filter; policy drop; }; }; table ip6 filter { chain INPUT { type filter hook input priority filter; policy drop; }; }", "delete table ip filter; delete table ip6 filter", "chain INPUT (policy drop) drops them; ip"},
	"ufw":      {"table ip filter { chain ufw-user-input { tcp dport 7147 drop; }; chain INPUT { type filter hook input priority filter; jump ufw-user-input; }; }; table ip6 filter { chain ufw6-user-input { tcp dport 7147 drop; }; chain INPUT { type filter hook input priority filter; jump ufw6-user-input; }; }", "delete table ip filter; delete table ip6 filter", "ufw allow proto tcp from "},
	"open":     {"table inet f { chain in { type filter hook input priority filter; policy drop; tcp dport 7147 accept; }; }", "delete table inet f", ""},
}

// TestSurveyService: packets to the agents' port are kept out by this node's own filter,
// and a dataplane's table is no obstacle to them.
func TestSurveyService(t *testing.T) {
	newMoveLab(t)
	s := openSurvey(t)
	before := state(t)
	for name, c := range closings {
		t.Run(name, func(t *testing.T) {
			nft(t, c.rules)
			defer nft(t, c.gone)
			for _, four := range []bool{true, false} {
				text, err := s.CheckService(t.Context(), node2[four], node1[four], fabric.DefaultAgentPort)
				require.NoError(t, err)
				if c.says == "" {
					assert.Empty(t, text)
					continue
				}
				assert.Contains(t, text, "packets of "+node2[four].String()+" to TCP port 7147 of this node ("+node1[four].String()+") do not come in: ")
				assert.Contains(t, text, c.says)
			}
		})
	}
	assert.Equal(t, before, state(t))
}

// TestProbeFeatures: this kernel has all that a node needs, and what is taken from it is
// found, in the words of the dataplane.
func TestProbeFeatures(t *testing.T) {
	clean := func() {
		sweep(t)
		for _, l := range []string{"under0", "probe_net0", "probe_net1"} {
			_ = exec.Command("ip", "link", "del", l).Run()
		}
	}
	clean()
	defer clean()
	require.Equal(t, kernel.Probed{}, kernel.ProbeFeatures(t.Context()))
	clean()
	// The tests have a mount namespace of their own.
	require.NoError(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	require.NoError(t, unix.Mount("/dev/null", "/dev/net/tun", "", unix.MS_BIND, ""))
	defer func() { require.NoError(t, unix.Unmount("/dev/net/tun", 0)) }()
	found := kernel.ProbeFeatures(t.Context())
	assert.Empty(t, found.Faults, "a node of containers needs none")
	require.Len(t, found.Notes, 1)
	assert.Contains(t, found.Notes[0], noTaps)
}

// TestTapsThatGuestsNeed: without tap devices a node has a note, and no problem, until a
// guest has a tap.
func TestTapsThatGuestsNeed(t *testing.T) {
	sweep(t)
	defer sweep(t)
	container, machine := port("ins", fabric.NIC{Kind: fabric.Veth, Addresses: addrs("203.0.113.11")}), port("vm", fabric.NIC{Kind: fabric.Tap, Addresses: addrs("203.0.113.12")})
	before := newFor(t, "lab")
	assert.Empty(t, before.Notes())
	require.NoError(t, before.Put(t.Context(), machine))
	require.NoError(t, before.Close())
	require.NoError(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	require.NoError(t, unix.Mount("/dev/null", "/dev/net/tun", "", unix.MS_BIND, ""))
	defer func() { require.NoError(t, unix.Unmount("/dev/net/tun", 0)) }()
	d := open(t)
	says := func(lines []string) bool {
		return slices.ContainsFunc(lines, func(line string) bool {
			return strings.HasPrefix(line, noTaps) && strings.HasSuffix(line, "; load it, or boot a kernel that has it")
		})
	}
	for _, step := range []struct {
		name    string
		do      func() error
		problem bool
	}{
		{"nothing", func() error { return nil }, false},
		{"a container", func() error { return d.Put(t.Context(), container) }, false},
		{"a machine of before", func() error { return d.Put(t.Context(), machine) }, true},
		{"it is gone", func() error { return d.Remove(t.Context(), machine.Name) }, false},
	} {
		require.NoError(t, step.do(), step.name)
		assert.Equal(t, step.problem, says(d.Diagnose(t.Context())), step.name)
		assert.Equal(t, !step.problem, says(d.Notes()), step.name)
	}
	require.ErrorContains(t, d.Put(t.Context(), machine), "make tap: ")
	assert.True(t, says(d.Notes()), "its guest is refused, and has its own problem")
}

// TestProbeChangesNothing: also where any next hop can be reached, as by a point-to-point
// link, what the kernel is asked at the start makes no route, and so takes none of the node's.
func TestProbeChangesNothing(t *testing.T) {
	defer func() { _, _ = runIP("link", "del", "ptp0") }()
	ip(t, "link", "add", "ptp0", "type", "veth", "peer", "name", "ptp1")
	ip(t, "link", "set", "ptp0", "up")
	ip(t, "link", "set", "ptp1", "up")
	ip(t, "-6", "route", "add", "default", "dev", "ptp0", "metric", "1")
	before, err := runIP("-4", "route", "show", "table", "all")
	require.NoError(t, err)
	d, err := kernel.New(t.Context(), kernel.Config{Cluster: "lab"})
	require.NoError(t, err)
	defer d.Close()
	after, err := runIP("-4", "route", "show", "table", "all")
	require.NoError(t, err)
	assert.Equal(t, before, after)
}

func TestSurveyOfPortsAndTables(t *testing.T) {
	newMoveLab(t)
	s := openSurvey(t)
	links, err := s.Underlay()
	require.NoError(t, err)
	require.Len(t, links, 1)
	assert.Equal(t, "up0", links[0].Name)
	assert.Equal(t, 1500, links[0].MTU)
	has, err := s.HasFilter()
	require.NoError(t, err)
	assert.False(t, has)
	require.NoError(t, s.RestoreFilter())
	has, err = s.HasFilter()
	require.NoError(t, err)
	assert.True(t, has)
	nft(t, "delete table arp vmfabric")
	has, err = s.HasFilter()
	require.NoError(t, err)
	assert.False(t, has)
	nft(t, "delete table inet vmfabric")
	ports, err := s.Ports()
	require.NoError(t, err)
	assert.Empty(t, ports)
	ipIn(t, nil, "link add web_net0 type veth peer name web_peer0", "link set web_net0 alias vmfabric:lab:web:0")
	ports, err = s.Ports()
	require.NoError(t, err)
	assert.Equal(t, []string{"web_net0"}, ports)
	ipIn(t, nil, "link del web_net0")
}
