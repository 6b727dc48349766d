package kernel_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/testenv/labtest"
	"github.com/vmfabric/vmfabric/testenv/oldkernel"
)

// poorer is a kernel that lacks something, and what a node on it does.
type poorer struct {
	name    string
	without []oldkernel.Part
	no      []string // directories and devices that are not there
	// What does not work, by the step of [life], with what is said of it; empty: nothing is.
	off    map[string]string
	status []string // what status says from the start, before any guest is attached
	asides []string // what status notes from then on
	notes  []string // what the doctor notes
	last   string   // the last step; empty: all of them
}

const (
	noFilter = "the filter of the ports by nftables is off, a guest can send with another's IPv6 source, and reach the node and the underlay, and one with a firewall is refused: "
	noTrial  = "whether guests' packets pass this node could not be tried: "
	noReply  = "guests get no answer to DHCP requests and router solicitations: "
	noCount  = "accounting: packets of guests are not counted: "
	noTaps   = "virtual machines with taps cannot be attached: this kernel has no tap devices (module tun, /dev/net/tun): "
	noHops   = "this kernel has no IPv4 routes by IPv6 next hops (Linux 5.2): "
)

// noNFT is what is off on a kernel without nftables, or without a part of it that the
// filter needs.
func noNFT(lack string, also map[string]string) map[string]string {
	off := map[string]string{"forged IPv6": "passes", "attach with firewall": "firewall: " + lack, "firewall": "no port"}
	for step, text := range also {
		off[step] = text
	}
	return off
}

var (
	linux420 = []oldkernel.Part{oldkernel.StrictChecks, oldkernel.IgnoreOutgoing, oldkernel.NeighbourGet, oldkernel.AltNames, oldkernel.IPv6NextHops, oldkernel.SetCounters, oldkernel.LinkModes}
	linux54  = []oldkernel.Part{oldkernel.AltNames, oldkernel.SetCounters, oldkernel.LinkModes}
	hasNoFIB = "this kernel has no look-ups of routes by nftables (modules nft_fib, nft_fib_inet, nft_fib_ipv4, nft_fib_ipv6): "
	hasNoNFT = "this kernel has no nftables for IPv4 and IPv6 together (modules nf_tables and, where it is one, nf_tables_inet): "
	noRules  = "this kernel has no policy routing (CONFIG_IP_MULTIPLE_TABLES, CONFIG_IPV6_MULTIPLE_TABLES): "
)

// poorerKernels are those on which [life] is lived. The first lacks nothing.
var poorerKernels = []poorer{
	{name: "nothing"},
	{
		name: "what came after Linux 4.18", without: linux420,
		off:    map[string]string{"altname": "", "IPv4 by an IPv6 next hop": noHops, "count": "unsupported operation"},
		status: []string{noCount + "this kernel has no counters in sets of nftables (Linux 5.7): "},
		notes:  []string{"listings that the kernel filters (Linux 4.20); ", "packet sockets that leave out", "look-up of one neighbour", "alternative names of links (Linux 5.5); ", "IPv4 routes by IPv6 next hops (Linux 5.2); ", "counters in sets of nftables (Linux 5.7); "},
	},
	{
		name: "what came after Linux 5.4", without: linux54,
		off:    map[string]string{"altname": "", "count": "unsupported operation"},
		status: []string{noCount + "this kernel has no counters in sets of nftables (Linux 5.7): "},
		notes:  []string{"alternative names of links (Linux 5.5); ", "counters in sets of nftables (Linux 5.7); "},
	},
	{name: "strict checks", without: []oldkernel.Part{oldkernel.StrictChecks}},
	{name: "the mode of a link without its statistics", without: []oldkernel.Part{oldkernel.LinkModes}},
	{name: "the look-up of one neighbour", without: []oldkernel.Part{oldkernel.NeighbourGet}},
	{
		name: "IPv6", without: []oldkernel.Part{oldkernel.IPv6}, no: []string{"/proc/sys/net/ipv6"},
		// What listings and links have of IPv6 cannot be taken away, so life ends here.
		off: map[string]string{"attach": "this kernel has no IPv6; boot without ipv6.disable=1, or leave the address out"}, last: "attach",
		status: []string{"guests cannot have IPv6 addresses on this node: this kernel has no IPv6 (CONFIG_IPV6; off by ipv6.disable=1): "},
	},
	{
		name: "taps", no: []string{"/dev/net/tun"},
		off: map[string]string{"attach": "make tap: "}, last: "attach",
		asides: []string{noTaps},
	},
	{name: "veth pairs", without: []oldkernel.Part{oldkernel.Veth}, off: map[string]string{"trial": noTrial + "make a veth pair: "}},
	{
		name: "policy routing", without: []oldkernel.Part{oldkernel.PolicyRules},
		off:    map[string]string{"record": noRules, "divert": noRules, "resend": "", "arrive": noRules, "hear": "no port", "trial": noTrial + "rule of priority 14600: " + noRules},
		status: []string{"guests cannot move to this node while they run, those that move away lose packets, and none gets metadata: " + noRules},
	},
	{
		name: "packet sockets", without: []oldkernel.Part{oldkernel.PacketSockets},
		off:    map[string]string{"answer": "", "record": "packet socket: ", "resend": "", "hear": "", "trial": noTrial + "packet socket: "},
		status: []string{noReply + "packet socket: ", "of guests that move, nothing is sent again and no first frame is heard: this kernel has no packet sockets (module af_packet): "},
	},
	{
		name: "nfnetlink", without: []oldkernel.Part{oldkernel.Netfilter},
		off:    noNFT(hasNoNFT, map[string]string{"answer": "", "trial": noTrial, "count": "unsupported operation"}),
		status: []string{noFilter + hasNoNFT, noReply + hasNoNFT, noCount + hasNoNFT},
	},
	{
		name: "nftables", without: []oldkernel.Part{oldkernel.NFTables},
		off:    noNFT(hasNoNFT, map[string]string{"answer": "", "trial": noTrial, "count": "unsupported operation"}),
		status: []string{noFilter + hasNoNFT, noReply + hasNoNFT, noCount + hasNoNFT},
	},
	{name: "look-ups of routes by nftables", without: []oldkernel.Part{oldkernel.FIBLookups}, off: noNFT(hasNoFIB, map[string]string{"answer": ""}), status: []string{noFilter + hasNoFIB}},
	{
		name: "rate limits in nftables", without: []oldkernel.Part{oldkernel.Limits},
		off:    noNFT("this kernel has no rate limits in nftables (module nft_limit): ", map[string]string{"answer": ""}),
		status: []string{noFilter + "this kernel has no rate limits in nftables (module nft_limit): "},
	},
	{
		name: "tables for ARP", without: []oldkernel.Part{oldkernel.ARPTables},
		off:    noNFT("this kernel has no nftables for ARP (CONFIG_NF_TABLES_ARP): ", map[string]string{"answer": ""}),
		status: []string{noFilter + "this kernel has no nftables for ARP (CONFIG_NF_TABLES_ARP): "},
	},
	{
		name: "the log statement", without: []oldkernel.Part{oldkernel.LogRules}, off: map[string]string{"answer": ""},
		status: []string{noReply + "this kernel has no log statement in nftables and its receiver (modules nft_log, nfnetlink_log): "},
	},
	{name: "nfnetlink_log", without: []oldkernel.Part{oldkernel.PacketLog}, off: map[string]string{"answer": ""}, status: []string{noReply + "nfnetlink_log: "}},
	{name: "redirection", without: []oldkernel.Part{oldkernel.Mirred}, off: map[string]string{"trial": noTrial + "tc filter u32 with action mirred to up0: "}},
}

// withoutVariable names the kernel on which a process of [TestWithout] lives.
const withoutVariable = "VMFABRIC_KERNEL_WITHOUT"

// TestWithout lives on kernels that lack something, each in a process of its own, from
// which that is taken.
func TestWithout(t *testing.T) {
	labtest.Need(t, "nft")
	for i, k := range poorerKernels {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel() // each has namespaces of its own
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestLifeWithout$", "-test.v", "-test.timeout=2m")
			cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", withoutVariable, i))
			cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "--- PASS: TestLifeWithout") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// TestLifeWithout is the process of one kernel of [TestWithout].
func TestLifeWithout(t *testing.T) {
	var i int
	if _, err := fmt.Sscan(os.Getenv(withoutVariable), &i); err != nil {
		t.Skip("a part of TestWithout")
	}
	k := poorerKernels[i]
	l := newLife(t, k)
	for _, step := range l.steps() {
		began := time.Now()
		says := step.live()
		t.Logf("%-26s %5d ms  %v", step.name, time.Since(began).Milliseconds(), says)
		want, off := k.off[step.name]
		switch {
		case !off:
			assert.NoError(t, says, step.name)
		case assert.Error(t, says, step.name):
			assert.Contains(t, says.Error(), want, step.name)
		}
		if step.name == k.last {
			return
		}
	}
}

// step is something that a node does, and what it says if it cannot.
type step struct {
	name string
	live func() error
}

// life is a node that has an underlay, and the rest of the world behind another link.
type life struct {
	*testing.T
	poorer
	d     *kernel.Dataplane
	kept  kept
	world wire
	guest map[string]wire // by the name of its port
	one   fabric.Port     // of both families
	two   fabric.Port     // with a firewall
	three fabric.Port     // of a guest that arrives
	sent  int             // frames that were sent again
}

func newLife(t *testing.T, k poorer) *life {
	t.Helper()
	l := &life{T: t, poorer: k, guest: map[string]wire{}}
	underlay(t)
	ipIn(t, nil, "neigh replace 10.10.0.22 lladdr 02:00:00:00:00:22 dev up0", "neigh replace fd00:10:10::22 lladdr 02:00:00:00:00:22 dev up0")
	l.world = beyond(t)
	nic := func(n byte) fabric.NIC {
		v4, v6 := netip.AddrFrom4([4]byte{203, 0, 113, n}), netip.MustParseAddr(fmt.Sprintf("2001:db8:100::%d", n))
		return fabric.NIC{MAC: fabric.MAC{2, 0, 0, 0, 0, n}, Addresses: []netip.Addr{v4, v6}}
	}
	l.one, l.two, l.three = port("web-of-a-long-name", nic(10)), port("db", nic(11)), port("mail", nic(12))
	l.two.Firewall, l.three.Incoming = firewall(t, "accept tcp 22; drop", "accept tcp 22; drop", true), true
	require.NoError(t, oldkernel.Without(k.without...))
	require.NoError(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	for _, path := range k.no {
		empty := "/dev/null"
		if strings.HasPrefix(path, "/proc") {
			empty = t.TempDir()
		}
		require.NoError(t, unix.Mount(empty, path, "", unix.MS_BIND, ""))
	}
	return l
}

func (l *life) steps() []step {
	return []step{
		{"start", l.start},
		{"status", l.told},
		{"attach", l.attach},
		{"attach with firewall", l.attachTwo},
		{"altname", l.altName},
		{"list", l.listed},
		{"again", l.again},
		{"repair", l.repair},
		{"packets IPv4", func() error { return l.passes(true) }},
		{"packets IPv6", func() error { return l.passes(false) }},
		{"forged IPv4", func() error { return l.forged(true) }},
		{"forged IPv6", func() error { return l.forged(false) }},
		{"firewall", l.filtered},
		{"answer", l.answered},
		{"count", l.counted},
		{"record", func() error { return l.d.Record(l.Context(), l.one.Name, true) }},
		{"divert", l.divert},
		{"resend", l.resent},
		{"arrive", func() error { return l.d.Put(l.Context(), l.three) }},
		{"hear", l.heard},
		{"IPv4 by an IPv6 next hop", l.learned},
		{"another's route", l.another},
		{"trial", l.tried},
		{"restart", l.restart},
		{"doctor", l.noted},
	}
}

func (l *life) open() (err error) {
	l.d, err = kernel.New(l.Context(), kernel.Config{
		Cluster: "lab", Underlay: []netip.Addr{node2[true], node2[false]}, Samples: trialGuests, Pools: guestPools, Private: internal[2:4],
		NextHop: nodeAddr[true], NextHop6: nodeAddr[false], Accounting: &kernel.Accounting{Internal: internal, Keep: &l.kept},
	})
	if err == nil {
		labtest.Running(l.T, l.d)
	}
	return err
}

func (l *life) start() error {
	err := l.open()
	require.NoError(l, err)
	return err
}

// told compares what status says with what it should, and returns what else it says.
func (l *life) told() error {
	return errors.Join(said(l.status, l.d.Diagnose(l.Context())), said(l.asides, l.d.Notes()))
}

// said compares lines with what they begin with, one by one.
func said(wanted, lines []string) error {
	var missing []error
	for _, want := range wanted {
		i := slices.IndexFunc(lines, func(line string) bool { return strings.HasPrefix(line, want) && strings.Contains(line, "; ") })
		if i < 0 {
			missing = append(missing, fmt.Errorf("%q is not said", want))
			continue
		}
		lines = slices.Delete(lines, i, i+1)
	}
	if len(lines) > 0 {
		missing = append(missing, fmt.Errorf("said, too: %q", lines))
	}
	return errors.Join(missing...)
}
