package render_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/render"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// world is what is behind the node, for all that the guest knows.
var world = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8:f::1")}

// plugged is a guest of two NICs that has no network yet, and its node.
type plugged struct {
	vm          fabric.VM
	guest, node *core.Host
	gw          fabric.Gateway
	hearsRA     bool // what was applied has no words against router advertisements
}

// plug makes a node with the ports of a guest, as the fabric makes them, the
// source checks too.
func plug(t *testing.T) plugged {
	t.Helper()
	vm := guest(nic(0x10, "203.0.113.10 203.0.113.11 2001:db8:100::10 2001:db8:100::11"),
		nic(0x11, "203.0.113.20 2001:db8:100::20 198.51.100.0/29 2001:db8:200::/64"))
	vm.NICs[0].MTU = 1400
	return plugIn(t, vm, gateway)
}

// plugIn is plug of another guest.
func plugIn(t *testing.T, vm fabric.VM, gw fabric.Gateway) plugged {
	t.Helper()
	labtest.Need(t, "nft")
	lab := labtest.New(t)
	p := plugged{vm: vm, gw: gw, guest: host(t, lab, "guest"), node: host(t, lab, "node")}

	require.NoError(t, p.node.SetSysctls(map[string]string{"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1"}))
	for _, a := range world {
		require.NoError(t, p.node.AddAddr("lo", fabric.HostPrefix(a)))
	}
	// What distributions have; what comes in must be going out there too.
	require.NoError(t, p.guest.SetSysctls(map[string]string{"net.ipv4.conf.all.rp_filter": "1", "net.ipv6.conf.default.accept_ra": "1"}))
	for n, nic := range vm.NICs {
		eth, port := fmt.Sprintf("eth%d", n), fabric.PortName(vm.Name, n)
		require.NoError(t, lab.Cable(p.guest, eth, p.node, port))
		setMAC(t, p.guest, eth, nic.MAC)
		setMAC(t, p.node, port, gw.MAC)
		require.NoError(t, p.guest.SetDown(eth))
		require.NoError(t, p.node.AddAddr(port, fabric.HostPrefix(gw.IPv4), netip.PrefixFrom(gw.IPv6, 64)))
		require.NoError(t, p.node.SetSysctls(map[string]string{"net.ipv4.conf." + port + ".rp_filter": "1"}))
		for _, a := range nic.Addresses {
			require.NoError(t, p.node.AddRoute(fabric.HostPrefix(a), netip.Addr{}, port))
		}
		for _, r := range nic.Routes {
			require.NoError(t, p.node.AddRoute(r, nic.Via(r), port))
		}
	}
	checkSources(t, p.node)
	return p
}

func host(t *testing.T, lab *core.Lab, name string) *core.Host {
	t.Helper()
	h, err := lab.AddHost(name)
	require.NoError(t, err)
	return h
}

func setMAC(t *testing.T, h *core.Host, link string, mac fabric.MAC) {
	t.Helper()
	l, err := h.Link(link)
	require.NoError(t, err)
	require.NoError(t, h.Netlink().LinkSetHardwareAddr(l, mac[:]))
}

// checkSources lets through only what is routed to the port that it comes from.
func checkSources(t *testing.T, node *core.Host) {
	t.Helper()
	file := filepath.Join(node.Dir(), "sources.nft")
	require.NoError(t, os.WriteFile(file, []byte(`
table inet sources {
	chain check {
		type filter hook prerouting priority raw
		iifname "web_net*" meta nfproto ipv4 fib saddr . iif oif 0 counter drop
		iifname "web_net*" meta nfproto ipv6 ip6 saddr != :: ip6 saddr != fe80::/10 fib saddr . iif oif 0 counter drop
	}
}
`), 0o644))
	_, err := node.Run(t.Context(), "nft", "-f", file)
	require.NoError(t, err)
}

// installed skips where a program is missing, or fails where nothing may be.
func installed(t *testing.T, program string) {
	t.Helper()
	_, err := exec.LookPath(program)
	if err != nil && os.Getenv("VMFABRIC_LAB") == "must" {
		require.NoError(t, err)
	}
	if err != nil {
		t.Skip(err)
	}
}

// TestGuestApplied gives the texts to the programs that they are for, and then
// speaks from every address of the guest.
func TestGuestApplied(t *testing.T) {
	if testing.Short() {
		t.Skip("makes laboratories")
	}
	labtest.Need(t, "root")
	for _, way := range []struct {
		name  string
		apply func(t *testing.T, p plugged)
	}{
		{"ifupdown", debianIfup},
		{"busybox", func(t *testing.T, p plugged) { busyboxIfup(t, p, os.Getenv("PATH")) }},
		{"busybox with its own ip", func(t *testing.T, p plugged) { busyboxIfup(t, p, busyboxes(t)) }},
		{"networkd", func(t *testing.T, p plugged) { networkd(t, p, filesOf(t, p.vm)) }},
		{"netplan and networkd", func(t *testing.T, p plugged) {
			// By name: the links here are veth, which have no permanent MAC address.
			networkd(t, p, netplanned(t, p.vm, "eth0", "eth1"))
		}},
	} {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			p := plug(t)
			way.apply(t, p)
			p.holds(t)
		})
	}
}

// TestGuestAppliedIPv6: a guest without IPv4 has its MTU too.
func TestGuestAppliedIPv6(t *testing.T) {
	if testing.Short() {
		t.Skip("makes laboratories")
	}
	labtest.Need(t, "root")
	for name, apply := range map[string]func(t *testing.T, p plugged){
		"ifupdown":                debianIfup,
		"busybox":                 func(t *testing.T, p plugged) { busyboxIfup(t, p, os.Getenv("PATH")) },
		"busybox with its own ip": func(t *testing.T, p plugged) { busyboxIfup(t, p, busyboxes(t)) },
		"networkd":                func(t *testing.T, p plugged) { networkd(t, p, filesOf(t, p.vm)) },
		"netplan and networkd":    func(t *testing.T, p plugged) { networkd(t, p, netplanned(t, p.vm, "eth0")) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			vm := guest(nic(0x10, "2001:db8:100::10"))
			vm.NICs[0].MTU = 1400
			p := plugIn(t, vm, gateway)
			apply(t, p)
			p.holds(t)
		})
	}
}

// holds checks what the kernel of the guest has, and that it works.
func (p plugged) holds(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	require.NoError(t, core.Until(ctx, func() error { return p.missing() }))

	for n, nic := range p.vm.NICs {
		eth := fmt.Sprintf("eth%d", n)
		v4, v6 := slices.ContainsFunc(nic.Addresses, netip.Addr.Is4), slices.ContainsFunc(nic.Addresses, netip.Addr.Is6)
		if v4 {
			link, err := p.guest.Link(eth)
			require.NoError(t, err)
			assert.Equal(t, cmp.Or(nic.MTU, 1500), link.Attrs().MTU)
		}
		if v6 { // ifupdown changes that of IPv6 alone
			mtu, err := p.guest.Sysctl("net.ipv6.conf." + eth + ".mtu")
			require.NoError(t, err)
			assert.Equal(t, fmt.Sprint(cmp.Or(nic.MTU, 1500)), mtu)
		}
		if v6 && !p.hearsRA {
			accept, err := p.guest.Sysctl("net.ipv6.conf." + eth + ".accept_ra")
			require.NoError(t, err)
			assert.Equal(t, "0", accept)
		}
		gw6 := p.gw.IPv6
		if gw6.IsLinkLocalUnicast() {
			gw6 = gw6.WithZone(eth)
		}
		for _, gw := range []netip.Addr{p.gw.IPv4, gw6} {
			if slices.ContainsFunc(nic.Addresses, func(a netip.Addr) bool { return a.Is6() == gw.Is6() }) {
				_, err := p.guest.Ping(ctx, gw)
				assert.NoError(t, err)
			}
		}
		for _, a := range nic.Addresses {
			p.speaks(t, ctx, a)
		}
	}
	// The prefixes are routed to the guest; it has them on a link of its own.
	for _, nic := range p.vm.NICs {
		for _, r := range nic.Routes {
			a := r.Addr().Next()
			require.NoError(t, p.guest.AddAddr("lo", fabric.HostPrefix(a)))
			p.speaks(t, ctx, a)
		}
	}
}

// missing tells what of the guest's addresses, routes and rules is not there.
func (p plugged) missing() error {
	for n, nic := range p.vm.NICs {
		eth := fmt.Sprintf("eth%d", n)
		got, err := p.guest.Addrs(eth)
		if err != nil {
			return err
		}
		var want []netip.Prefix
		for _, a := range nic.Addresses {
			want = append(want, fabric.HostPrefix(a))
		}
		if err := same(eth, want, got); err != nil {
			return err
		}
	}
	return errors.Join(p.missingRoutes(), p.missingRules())
}

func (p plugged) missingRoutes() error {
	for _, v6 := range []bool{false, true} {
		family, to, via := netlink.FAMILY_V4, "0.0.0.0/0", p.gw.IPv4
		if v6 {
			family, to, via = netlink.FAMILY_V6, "::/0", p.gw.IPv6
		}
		routes, err := p.guest.Routes(family, 0)
		if err != nil {
			return err
		}
		var got, want []string
		for _, r := range routes {
			if r.Prefix.Bits() == 0 && r.Type == "unicast" {
				got = append(got, fmt.Sprintf("%v table %d", r.Hops, r.Table))
			}
		}
		for n, l := range wanted(p.vm) {
			for _, r := range l.routes {
				if r.to == to {
					want = append(want, fmt.Sprintf("[via %s dev eth%d] table %d", via, n, cmp.Or(r.table, 254)))
				}
			}
		}
		if err := same("default routes", want, got); err != nil {
			return err
		}
	}
	return nil
}

func (p plugged) missingRules() error {
	rules, err := p.guest.Netlink().RuleList(netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	var got []string
	for _, r := range rules {
		switch {
		case r.Src != nil:
			got = append(got, fmt.Sprintf("from %s lookup %d priority %d", r.Src, r.Table, r.Priority))
		case r.Dst != nil:
			got = append(got, fmt.Sprintf("to %s lookup %d priority %d", r.Dst, r.Table, r.Priority))
		}
	}
	var want []string
	for _, l := range wanted(p.vm) {
		want = append(want, l.rules...)
	}
	return same("rules", want, got)
}

// same compares two lists, whatever their order.
func same[T any](what string, want, got []T) error {
	w, g := words(want), words(got)
	if !slices.Equal(w, g) {
		return fmt.Errorf("%s: want %q, got %q", what, w, g)
	}
	return nil
}

func words[T any](list []T) []string {
	var ss []string
	for _, v := range list {
		ss = append(ss, fmt.Sprint(v))
	}
	slices.Sort(ss)
	return ss
}

// speaks checks that what has the source a gets out of the guest, through a
// node that looks at it, and that a is reached.
func (p plugged) speaks(t *testing.T, ctx context.Context, a netip.Addr) {
	t.Helper()
	to := world[0]
	if a.Is6() {
		to = world[1]
	}
	// An IPv6 address that the guest has just got is tentative for a while (RFC 4862, 5.4).
	assert.NoError(t, core.Until(ctx, func() error {
		_, err := p.guest.PingFrom(ctx, a, to)
		return err
	}), "from %s", a)
	_, err := p.node.PingFrom(ctx, to, a)
	assert.NoError(t, err, "to %s", a)
}

// interfaces writes the guest's ifupdown text to a file.
func (p plugged) interfaces(t *testing.T) string {
	t.Helper()
	text, err := render.Guest(p.vm, fabric.Network{Gateway: gateway}, render.Ifupdown, nil)
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "interfaces")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	return path
}

// twice brings the links up, down and up again.
func (p plugged) twice(t *testing.T, run func(verb string) error) {
	t.Helper()
	require.NoError(t, run("ifup"))
	require.NoError(t, p.missing())
	require.NoError(t, run("ifdown"))
	rules, err := p.guest.Netlink().RuleList(netlink.FAMILY_ALL)
	require.NoError(t, err)
	for _, r := range rules {
		assert.True(t, r.Src == nil && r.Dst == nil, "left behind: %v", r)
	}
	require.NoError(t, run("ifup"))
}

// debianIfup does as the networking service of Debian.
func debianIfup(t *testing.T, p plugged) {
	t.Helper()
	ifup(t, p, p.interfaces(t))
}

// busyboxIfup does as the networking service of Alpine, with the ip of path.
func busyboxIfup(t *testing.T, p plugged, path string) {
	labtest.Need(t, "busybox", "unshare")
	unshare, err := exec.LookPath("unshare")
	require.NoError(t, err)
	busybox, err := exec.LookPath("busybox")
	require.NoError(t, err)
	file, state := p.interfaces(t), t.TempDir()
	p.twice(t, func(verb string) error {
		// It keeps its state in a place of its own choice below /run.
		_, err := p.guest.Run(t.Context(), unshare, "-m", busybox, "sh", "-c",
			`busybox=$1 state=$2 PATH=$3; "$busybox" mount -o bind "$state" /run && exec "$busybox" "$4" -a -i "$5"`, "sh", busybox, state, path, verb, file)
		return err
	})
}

// busyboxes gives a folder with busybox's programs and no others.
func busyboxes(t *testing.T) string {
	labtest.Need(t, "busybox")
	dir := t.TempDir()
	out, err := exec.Command("busybox", "--install", "-s", dir).CombinedOutput()
	require.NoError(t, err, string(out))
	return dir
}

// filesOf gives the guest's files for networkd, which find its links by their
// MAC addresses.
func filesOf(t *testing.T, vm fabric.VM) string {
	t.Helper()
	text, err := render.Guest(vm, fabric.Network{Gateway: gateway}, render.Networkd, nil)
	require.NoError(t, err)
	dir := t.TempDir()
	for _, file := range networkFiles(t, text) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, file.name), []byte(file.text), 0o644))
	}
	return dir
}

// networkd runs systemd-networkd in the guest, without systemd. A /sys that
// cannot be written tells it that there is no udev to wait for, as in a
// container.
func networkd(t *testing.T, p plugged, files string) {
	const program = "/lib/systemd/systemd-networkd"
	installed(t, program)
	labtest.Need(t, "unshare")
	_, err := p.guest.StartDaemon("networkd", exec.Command("unshare", "-m", "sh", "-ec", `
		mount -t tmpfs tmpfs /run
		mkdir -p /run/systemd/netif
		chown systemd-network: /run/systemd/netif
		mount -t tmpfs tmpfs /etc/systemd/network
		umount -l /sys
		mount -t sysfs -o ro sysfs /sys
		cp "$1"/*.network /etc/systemd/network
		chmod 644 /etc/systemd/network/*
		exec "$2"`, "sh", files, program))
	require.NoError(t, err)
}

// netplanned gives the files that netplan makes for networkd of a guest's text.
func netplanned(t *testing.T, vm fabric.VM, interfaces ...string) string {
	t.Helper()
	installed(t, "netplan")
	text, err := render.Guest(vm, fabric.Network{Gateway: gateway}, render.Netplan, interfaces)
	require.NoError(t, err)
	root := t.TempDir()
	path := filepath.Join(root, "etc/netplan/50-vmfabric.yaml")
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	out, err := exec.CommandContext(t.Context(), "netplan", "generate", "--root-dir", root).CombinedOutput()
	require.NoError(t, err, string(out))
	assert.Empty(t, string(out), "netplan warns")
	return filepath.Join(root, "run/systemd/network")
}

// TestGuestByNetplan: what netplan makes of the text says the same as the text
// for networkd.
func TestGuestByNetplan(t *testing.T) {
	for _, tt := range guests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			files, err := filepath.Glob(filepath.Join(netplanned(t, tt.vm, tt.interfaces...), "*.network"))
			require.NoError(t, err)
			got, want := map[string]meaning{}, map[string]meaning{}
			for _, file := range files {
				text, err := os.ReadFile(file)
				require.NoError(t, err)
				m := readNetworkFile(t, string(text))
				got[m.match] = m
			}
			for n, m := range wanted(tt.vm) {
				m.match, m.setName = matchOf(tt.vm, n, render.Netplan, tt.interfaces)
				if m.setName != "" { // a .link file renames it, and this one finds it by both
					m.match = m.setName
					m.setName = ""
				}
				want[m.match] = m
			}
			assert.Equal(t, want, got)
		})
	}
}
