package render_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/render"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// cloudInit has the real cloud-init make, in a guest, the files of one of its
// renderers, and gives the folder that they are in.
func cloudInit(t *testing.T, guest *core.Host, text, renderer string) string {
	t.Helper()
	installed(t, "cloud-init")
	labtest.Need(t, "unshare")
	distro := "debian"
	if renderer == "sysconfig" {
		distro = "rhel"
	}
	dir := t.TempDir()
	file, root := filepath.Join(dir, "network-config"), filepath.Join(dir, "root")
	require.NoError(t, os.WriteFile(file, []byte(text), 0o644))
	// It looks up the links in /sys, which has to be that of the guest.
	out, err := guest.Run(t.Context(), "unshare", "-m", "sh", "-ec", `
		umount -l /sys
		mount -t sysfs -o ro sysfs /sys
		exec cloud-init devel net-convert -p "$1" -k yaml -D "$2" -O "$3" -d "$4"`, "sh", file, distro, renderer, root)
	require.NoError(t, err, out)
	return root
}

// TestGuestByCloudInit gives the text to every renderer of cloud-init, and what
// they make of it to the programs that it is for, and then speaks from every
// address of the guest. What sysconfig is for does not run here: it is read.
func TestGuestByCloudInit(t *testing.T) {
	if testing.Short() {
		t.Skip("makes laboratories")
	}
	labtest.Need(t, "root")
	far := fabric.Gateway{IPv4: netip.MustParseAddr("10.0.0.1"), IPv6: netip.MustParseAddr("2001:db8:ffff::1"), MAC: fabric.DefaultMAC}
	for _, tt := range []struct {
		name  string
		words string
		gw    fabric.Gateway
	}{
		{"both families", "203.0.113.10 203.0.113.11 2001:db8:100::10 2001:db8:100::11 198.51.100.0/29 2001:db8:200::/64", gateway},
		{"IPv4", "203.0.113.10", gateway},
		{"IPv6", "2001:db8:100::10", gateway},
		{"gateways of far networks", "203.0.113.10 2001:db8:100::10", far},
	} {
		for _, way := range []struct {
			renderer string
			hearsRA  bool // it loses accept-ra
			names    []string
			apply    func(t *testing.T, p plugged, root string)
		}{
			{"eni", true, nil, func(t *testing.T, p plugged, root string) {
				ifup(t, p, filepath.Join(root, "etc/network/interfaces.d/50-cloud-init"))
			}},
			{"networkd", true, nil, func(t *testing.T, p plugged, root string) {
				networkd(t, p, filepath.Join(root, "etc/systemd/network"))
			}},
			{"network-manager", false, nil, func(t *testing.T, p plugged, root string) {
				networkManager(t, p, filepath.Join(root, "etc/NetworkManager/system-connections"))
			}},
			// By name: netplan does not find veths by their MAC addresses.
			{"netplan", false, []string{"eth0"}, func(t *testing.T, p plugged, root string) {
				out, err := exec.CommandContext(t.Context(), "netplan", "generate", "--root-dir", root).CombinedOutput()
				require.NoError(t, err, string(out))
				networkd(t, p, filepath.Join(root, "run/systemd/network"))
			}},
			{"sysconfig", false, nil, nil},
		} {
			t.Run(way.renderer+", "+tt.name, func(t *testing.T) {
				t.Parallel()
				vm := guest(nic(0x10, tt.words))
				if vm.NICs[0].Addresses[0].Is4() { // ifupdown ignores it without
					vm.NICs[0].MTU = 1400
				}
				p := plugIn(t, vm, tt.gw)
				p.hearsRA = way.hearsRA
				text, err := render.Guest(p.vm, fabric.Network{Gateway: p.gw}, render.CloudInit, way.names)
				require.NoError(t, err)
				root := cloudInit(t, p.guest, text, way.renderer)
				if way.apply == nil {
					checkSysconfig(t, p, root)
					return
				}
				way.apply(t, p, root)
				p.holds(t)
			})
		}
	}
}

// checkSysconfig reads the files of one link as the network scripts do.
func checkSysconfig(t *testing.T, p plugged, root string) {
	t.Helper()
	dir := filepath.Join(root, "etc/sysconfig/network-scripts")
	v := variables(t, filepath.Join(dir, "ifcfg-eth0"))
	assert.Equal(t, p.vm.NICs[0].MAC.String(), v["HWADDR"])
	assert.Equal(t, "eth0", v["DEVICE"])
	assert.Equal(t, "none", v["BOOTPROTO"])
	assert.Equal(t, "yes", v["ONBOOT"])
	if mtu := p.vm.NICs[0].MTU; mtu != 0 {
		assert.Equal(t, strconv.Itoa(mtu), v["MTU"])
	}
	var want, got []netip.Addr
	want = append(want, p.vm.NICs[0].Addresses...)
	for n := 0; ; n++ {
		suffix := strings.TrimPrefix(strconv.Itoa(n), "0")
		a, found := v["IPADDR"+suffix]
		if !found {
			break
		}
		assert.Equal(t, "255.255.255.255", v["NETMASK"+suffix])
		got = append(got, netip.MustParseAddr(a))
	}
	for _, word := range strings.Fields(v["IPV6ADDR"] + " " + v["IPV6ADDR_SECONDARIES"]) {
		prefix := netip.MustParsePrefix(word)
		assert.Equal(t, 128, prefix.Bits())
		got = append(got, prefix.Addr())
	}
	assert.Equal(t, want, got)
	for _, v6 := range []bool{false, true} {
		has := slices.ContainsFunc(want, func(a netip.Addr) bool { return a.Is6() == v6 })
		gw, key := p.gw.IPv4, "GATEWAY"
		if v6 {
			gw, key = p.gw.IPv6, "IPV6_DEFAULTGW"
		}
		if !has {
			assert.NotContains(t, v, key)
			continue
		}
		assert.Equal(t, "yes", v["DEFROUTE"])
		assert.Equal(t, gw.String(), v[key])
		switch {
		case !v6: // the gateway is on the link
			r := variables(t, filepath.Join(dir, "route-eth0"))
			assert.Equal(t, map[string]string{"ADDRESS0": gw.String(), "NETMASK0": "255.255.255.255", "GATEWAY0": "0.0.0.0"}, r)
		case !gw.IsLinkLocalUnicast():
			text, err := os.ReadFile(filepath.Join(dir, "route6-eth0"))
			require.NoError(t, err)
			assert.Contains(t, string(text), gw.String()+"/128 via ::  dev eth0\n")
		}
	}
	assert.NotEqual(t, "yes", v["IPV6_AUTOCONF"])
}

// variables reads assignments of a shell.
func variables(t *testing.T, file string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	v := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if key, value, found := strings.Cut(strings.TrimSpace(line), "="); found && key[0] != '#' {
			v[key] = strings.Trim(value, `"`)
		}
	}
	return v
}

// ifup does as the networking service of Debian, with a file.
func ifup(t *testing.T, p plugged, file string) {
	t.Helper()
	installed(t, "ifquery") // Debian's; busybox has no such applet
	state := t.TempDir()
	p.twice(t, func(verb string) error {
		out, err := p.guest.Run(t.Context(), verb, "-a", "-i", file, "--state-dir", state, "--no-scripts")
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	})
}
