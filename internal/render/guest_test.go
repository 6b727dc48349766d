package render_test

import (
	"cmp"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/render"
)

var update = flag.Bool("update", false, "write the golden files anew")

var formats = []render.Format{render.Netplan, render.Ifupdown, render.Networkd, render.CloudInit}

var gateway = fabric.Gateway{
	IPv4: netip.MustParseAddr("169.254.1.1"), IPv6: netip.MustParseAddr("fe80::1"), MAC: fabric.DefaultMAC,
}

// nic makes a NIC of addresses and prefixes, and a MAC address that ends in
// the given byte, none for 0.
func nic(mac byte, words string) fabric.NIC {
	var nic fabric.NIC
	if mac != 0 {
		nic.MAC = fabric.MAC{0x02, 0, 0, 0, 0, mac}
	}
	for _, w := range strings.Fields(words) {
		if strings.Contains(w, "/") {
			nic.Routes = append(nic.Routes, netip.MustParsePrefix(w))
		} else {
			nic.Addresses = append(nic.Addresses, netip.MustParseAddr(w))
		}
	}
	return nic
}

func guest(nics ...fabric.NIC) fabric.VM { return fabric.VM{Name: "web", NICs: nics} }

func with(vm fabric.VM, change func(*fabric.VM)) fabric.VM {
	change(&vm)
	return vm
}

// guests are those of the golden files.
var guests = []struct {
	name       string
	vm         fabric.VM
	interfaces []string
}{
	{"dual", guest(nic(0x10, "203.0.113.10 2001:db8:100::10")), nil},
	{"ipv4", guest(nic(0x10, "203.0.113.10")), nil},
	{"ipv6", guest(nic(0x10, "2001:db8:100::10")), nil},
	{"two-addresses", guest(nic(0x10, "203.0.113.10 203.0.113.11 2001:db8:100::10 2001:db8:100::11")), nil},
	{"two-nics", guest(nic(0x10, "203.0.113.10 2001:db8:100::10"), nic(0x11, "203.0.113.20 203.0.113.21 2001:db8:100::20")), nil},
	{"families-apart", guest(nic(0x10, "203.0.113.10"), nic(0x11, "2001:db8:100::20")), nil},
	{"routes", guest(nic(0x10, "203.0.113.10 2001:db8:100::10 198.51.100.0/29 2001:db8:200::/64"),
		nic(0x11, "203.0.113.20 2001:db8:100::20 198.51.100.8/29 2001:db8:201::/64")), nil},
	{"no-mac", guest(nic(0, "203.0.113.10 2001:db8:100::10")), nil},
	{"mtu", with(guest(nic(0x10, "203.0.113.10 2001:db8:100::10")), func(vm *fabric.VM) { vm.NICs[0].MTU = 1400 }), nil},
	{"named", with(guest(nic(0x10, "203.0.113.10 2001:db8:100::10"), nic(0x11, "203.0.113.20")),
		func(vm *fabric.VM) { vm.Name = "почта №1: network: {} # \"\\" }), []string{"enp1s0", ""}},
	{"container", with(guest(nic(0x10, "203.0.113.10 2001:db8:100::10")), func(vm *fabric.VM) { vm.NICs[0].Kind = fabric.Veth }), nil},
	{"lxd", with(guest(nic(0x10, "203.0.113.10 2001:db8:100::10")),
		func(vm *fabric.VM) { vm.Origin, vm.Container, vm.NICs[0].Kind = "lxd", true, fabric.Adopt }), nil},
	{"lxd-named", with(guest(nic(0x10, "203.0.113.10 2001:db8:100::10")),
		func(vm *fabric.VM) { vm.Container, vm.NICs[0].Kind, vm.NICs[0].Link = true, fabric.Adopt, "ens3" }), nil},
	{"lxd-vm", with(guest(nic(0x10, "203.0.113.10 2001:db8:100::10"), nic(0x11, "203.0.113.20")),
		func(vm *fabric.VM) {
			vm.NICs[0].Kind, vm.NICs[0].Link, vm.NICs[1].Kind = fabric.Adopt, "ens3", fabric.Adopt
		}), nil},
}

func TestGuestGolden(t *testing.T) {
	for _, tt := range guests {
		for _, f := range formats {
			t.Run(fmt.Sprintf("%s/%s", tt.name, f), func(t *testing.T) {
				text, err := render.Guest(tt.vm, fabric.Network{Gateway: gateway}, f, tt.interfaces)
				require.NoError(t, err)
				path := filepath.Join("testdata", "guest", tt.name+"."+string(f))
				if *update {
					require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
					require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
				}
				want, err := os.ReadFile(path)
				require.NoError(t, err)
				assert.Equal(t, string(want), text)

				again, err := render.Guest(tt.vm, fabric.Network{Gateway: gateway}, f, tt.interfaces)
				require.NoError(t, err)
				assert.Equal(t, text, again)
			})
		}
	}
}

// TestGuestResolvers: the first link has those of the guest's families, and the domains.
func TestGuestResolvers(t *testing.T) {
	network := fabric.Network{
		Gateway: gateway, MTU: 1400, Search: []string{"example.net", "lan"},
		DNS: []netip.Addr{netip.MustParseAddr("9.9.9.9"), netip.MustParseAddr("2620:fe::fe")},
	}
	dual := guest(nic(0x10, "203.0.113.10 2001:db8:100::10"), nic(0x11, "203.0.113.20"))
	dual.NICs[1].MTU = 9000
	for f, want := range map[render.Format][]string{
		render.Netplan:   {"      nameservers:\n        addresses:\n          - \"9.9.9.9\"\n          - \"2620:fe::fe\"\n        search:\n          - \"example.net\"\n          - \"lan\"\n", "mtu: 1400", "mtu: 9000"},
		render.CloudInit: {"    nameservers:\n      addresses:\n        - \"9.9.9.9\"\n        - \"2620:fe::fe\"\n      search:\n        - \"example.net\"\n        - \"lan\"\n", "mtu: 1400", "mtu: 9000"},
		render.Networkd:  {"DNS=9.9.9.9\nDNS=2620:fe::fe\nDomains=example.net lan\n", "MTUBytes=1400", "MTUBytes=9000"},
		render.Ifupdown:  {"    dns-nameservers 9.9.9.9 2620:fe::fe\n    dns-search example.net lan\n", "mtu 1400", "mtu 9000", "need the package resolvconf"},
	} {
		text, err := render.Guest(dual, network, f, nil)
		require.NoError(t, err)
		for _, w := range want {
			assert.Equal(t, 1, strings.Count(text, w), "%s\n%s", w, text)
		}
		assert.NotContains(t, text, "Add yours here")
		six, err := render.Guest(guest(nic(0x10, "2001:db8:100::10")), network, f, nil)
		require.NoError(t, err)
		assert.NotContains(t, six, "9.9.9.9", "the guest has no IPv4")
		assert.Contains(t, six, "2620:fe::fe")
		network := network
		network.DNS = network.DNS[:1]
		six, err = render.Guest(guest(nic(0x10, "2001:db8:100::10")), network, f, nil)
		require.NoError(t, err)
		assert.NotContains(t, six, "example.net")
		assert.Contains(t, six, "Add yours here")
	}
}

// TestGuestMeaning reads the texts back, and holds them against what the
// fabric's nodes ask of a guest.
func TestGuestMeaning(t *testing.T) {
	for _, tt := range guests {
		want := wanted(tt.vm)
		for _, f := range []render.Format{render.Netplan, render.CloudInit, render.Networkd} {
			t.Run(fmt.Sprintf("%s/%s", tt.name, f), func(t *testing.T) {
				text, err := render.Guest(tt.vm, fabric.Network{Gateway: gateway}, f, tt.interfaces)
				require.NoError(t, err)
				got := readGuest(t, f, text)
				require.Len(t, got, len(want))
				for n := range want {
					want[n].match, want[n].setName = matchOf(tt.vm, n, f, tt.interfaces)
					assert.Equal(t, want[n], got[n])
				}
			})
		}
	}
}

// matchOf says by what a link is to be found, and how it is to be called then.
func matchOf(vm fabric.VM, n int, f render.Format, interfaces []string) (match, setName string) {
	nic := vm.NICs[n]
	veth := nic.Kind == fabric.Veth || vm.Container
	switch {
	case n < len(interfaces) && interfaces[n] != "":
		return interfaces[n], ""
	case nic.MAC.IsZero(), veth && f != render.Networkd:
		return cmp.Or(nic.Link, fmt.Sprintf("eth%d", n)), ""
	case f == render.Networkd:
		return nic.MAC.String(), ""
	}
	return nic.MAC.String(), nic.Link
}

func TestGuestNames(t *testing.T) {
	vm := guest(nic(0x10, "203.0.113.10 2001:db8:100::10"), nic(0, "203.0.113.20 2001:db8:100::20"))
	for _, tt := range []struct {
		interfaces []string
		want       string // of netplan
		ifupdown   string
		assumed    string // in ifupdown's text
	}{
		{nil, "02:00:00:00:00:10 eth1", "eth0 eth1", "# eth0, eth1: assumed;"},
		{[]string{"ens3"}, "ens3 eth1", "ens3 eth1", "# eth1: assumed;"},
		{[]string{"", "ens4"}, "02:00:00:00:00:10 ens4", "eth0 ens4", "# eth0: assumed;"},
		{[]string{"lan.5", "wan-1"}, "lan.5 wan-1", "lan.5 wan-1", ""},
	} {
		text, err := render.Guest(vm, fabric.Network{Gateway: gateway}, render.Netplan, tt.interfaces)
		require.NoError(t, err)
		var got []string
		for _, l := range readGuest(t, render.Netplan, text) {
			got = append(got, l.match)
		}
		assert.Equal(t, tt.want, strings.Join(got, " "))

		text, err = render.Guest(vm, fabric.Network{Gateway: gateway}, render.Ifupdown, tt.interfaces)
		require.NoError(t, err)
		got = nil
		for line := range strings.Lines(text) {
			if name, ok := strings.CutPrefix(line, "auto "); ok {
				got = append(got, strings.TrimSpace(name))
			}
		}
		assert.Equal(t, tt.ifupdown, strings.Join(got, " "))
		if tt.assumed == "" {
			assert.NotContains(t, text, "assumed")
		} else {
			assert.Contains(t, text, "\n"+tt.assumed)
		}
	}
}

// TestGuestOfOneMAC: a MAC address that two NICs have selects neither.
func TestGuestOfOneMAC(t *testing.T) {
	for _, f := range []render.Format{render.Netplan, render.Networkd} {
		text, err := render.Guest(guest(nic(0x10, "203.0.113.10"), nic(0x10, "203.0.113.20")), fabric.Network{Gateway: gateway}, f, nil)
		require.NoError(t, err)
		var got []string
		for _, l := range readGuest(t, f, text) {
			got = append(got, l.match)
		}
		assert.Equal(t, []string{"eth0", "eth1"}, got, f)
	}
}

// TestGuestForeignGateway: a gateway of any kind of address is on the link.
func TestGuestForeignGateway(t *testing.T) {
	gw := fabric.Gateway{IPv4: netip.MustParseAddr("10.0.0.1"), IPv6: netip.MustParseAddr("2001:db8:ffff::1")}
	vm := guest(nic(0, "203.0.113.10 2001:db8:100::10"), nic(0, "203.0.113.20 2001:db8:100::20"))
	text, err := render.Guest(vm, fabric.Network{Gateway: gw}, render.Ifupdown, nil)
	require.NoError(t, err)
	for _, line := range []string{
		"up ip -4 route replace 10.0.0.1/32 dev eth0\n",
		"up ip -6 route replace 2001:db8:ffff::1/128 dev eth0\n",
		"up ip -6 route replace default via 2001:db8:ffff::1 dev eth0\n",
		"up ip -4 route replace 10.0.0.1/32 dev eth1 table 101\n",
		"up ip -6 route replace 2001:db8:ffff::1/128 dev eth1 table 101\n",
	} {
		assert.Contains(t, text, line)
	}
}

func TestGuestRefused(t *testing.T) {
	good := guest(nic(0x10, "203.0.113.10 2001:db8:100::10"), nic(0, "203.0.113.20"))
	for _, tt := range []struct {
		name       string
		vm         fabric.VM
		gw         fabric.Gateway
		format     render.Format
		interfaces []string
		want       string
	}{
		{
			"format", good, gateway, "nmcli", nil,
			`format "nmcli" is not one of netplan, ifupdown, networkd, cloud-init`,
		},
		{
			"more names than NICs", good, gateway, render.Netplan,
			[]string{"eth0", "eth1", ""},
			`guest "web": more link names (3) than NICs (2); give at most one for each`,
		},
		{
			"one name twice", good, gateway, render.Netplan,
			[]string{"ens3", "ens3"},
			`guest "web": NIC 1: link ens3 is that of NIC 0 already; name the links of both`,
		},
		{
			"a name that is assumed too", good, gateway, render.Networkd,
			[]string{"eth1"},
			`guest "web": NIC 1: link eth1 is that of NIC 0 already; name the links of both`,
		},
		{
			"a name of more than one word", good, gateway, render.Ifupdown,
			[]string{"eth0\n up reboot"},
			`guest "web": NIC 0: link name "eth0\n up reboot": not at most 15 letters, digits, '.', '_' and '-'; write it as the guest shows it, such as eth0`,
		},
		{
			"a long name", good, gateway, render.Ifupdown,
			[]string{"", "wireguard-public"},
			`guest "web": NIC 1: link name "wireguard-public": not at most 15 letters, digits, '.', '_' and '-'; write it as the guest shows it, such as eth0`,
		},
		{
			"no gateway for IPv6", good,
			fabric.Gateway{IPv4: gateway.IPv4},
			render.Netplan, nil,
			`guest "web": NIC 0: address 2001:db8:100::10: the cluster has no IPv6 gateway; add it to the cluster file, or leave the address out`,
		},
		{
			"no gateway for IPv4", good,
			fabric.Gateway{IPv6: gateway.IPv6},
			render.Netplan, nil,
			`guest "web": NIC 0: address 203.0.113.10: the cluster has no IPv4 gateway; add it to the cluster file, or leave the address out`,
		},
		{
			"zone", guest(nic(0, "2001:db8::1%eth0")), gateway, render.Ifupdown, nil,
			`guest "web": NIC 0: address "2001:db8::1%eth0": zones and IPv4-mapped addresses are not for guests; write the plain address`,
		},
		{
			"IPv4 in IPv6", guest(nic(0, "::ffff:203.0.113.10")), gateway, render.Ifupdown, nil,
			`guest "web": NIC 0: address "::ffff:203.0.113.10": zones and IPv4-mapped addresses are not for guests; write the plain address`,
		},
		{
			"no NIC", guest(), gateway, render.Netplan, nil,
			`guest "web": no NIC, so there is nothing to configure; give it an address`,
		},
		{
			"a NIC without addresses", guest(nic(0x10, "")), gateway, render.Netplan, nil,
			`guest "web": NIC 0: no address; give it at least one from the pools`,
		},
		{
			"a name with a line break", with(good, func(vm *fabric.VM) { vm.Name = "web\nx" }), gateway, render.Netplan, nil,
			`guest "web\nx": VM name "web\nx" has control characters; rename the VM`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text, err := render.Guest(tt.vm, fabric.Network{Gateway: tt.gw}, tt.format, tt.interfaces)
			require.EqualError(t, err, tt.want)
			assert.Empty(t, text)
		})
	}
}

func TestGuestShellName(t *testing.T) {
	for name, want := range map[string]string{
		"web-1": "lxc config set web-1 user.network-config", "$(reboot)": "lxc config set NAME user.network-config", "-v": "lxc config set NAME user.network-config",
	} {
		text, err := render.Guest(with(guest(nic(0, "203.0.113.10 2001:db8:100::10")), func(vm *fabric.VM) { vm.Name = name }), fabric.Network{Gateway: gateway}, render.CloudInit, nil)
		require.NoError(t, err)
		assert.Contains(t, text, want)
	}
}

func TestParseFormat(t *testing.T) {
	for _, f := range formats {
		got, err := render.ParseFormat(string(f))
		require.NoError(t, err)
		assert.Equal(t, f, got)
	}
	for _, s := range []string{"", "Netplan", "cloudinit"} {
		_, err := render.ParseFormat(s)
		require.EqualError(t, err, fmt.Sprintf("format %q is not one of netplan, ifupdown, networkd, cloud-init", s))
	}
}

// FuzzGuest: a VM's name changes nothing but comments, a link's name is one or
// refused.
func FuzzGuest(f *testing.F) {
	for _, tt := range guests {
		f.Add(tt.vm.Name, "eth0")
	}
	f.Add("web\u0085network:", "eth0 up")
	f.Add("a\\", "-x")
	f.Add("'; reboot; '", "..")
	f.Fuzz(func(t *testing.T, name, link string) {
		vm := guest(nic(0x10, "203.0.113.10 2001:db8:100::10"))
		for _, format := range formats {
			plain, err := render.Guest(vm, fabric.Network{Gateway: gateway}, format, []string{"eth0"})
			require.NoError(t, err)
			hostile, err := render.Guest(with(vm, func(vm *fabric.VM) { vm.Name = name }), fabric.Network{Gateway: gateway}, format, []string{link})
			if err != nil {
				require.NotContains(t, err.Error(), "\n")
				continue
			}
			require.True(t, utf8.ValidString(hostile))
			if link != "" {
				require.Equal(t, strings.ReplaceAll(effective(plain), "eth0", link), effective(hostile))
			}
		}
	})
}

// effective gives the text without its comments, for a reader who knows the
// line breaks of all formats.
func effective(text string) string {
	var b strings.Builder
	for line := range strings.SplitSeq(strings.NewReplacer("\r", "\n", "\u0085", "\n", "\u2028", "\n", "\u2029", "\n").Replace(text), "\n") {
		if !strings.HasPrefix(strings.TrimSpace(line), "#") {
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}
