package render_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/render"
	"github.com/vmfabric/vmfabric/testenv"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// cloudInit has the real cloud-init make, in a guest, the files of one of its
// renderers, and gives the folder that they are in.
func cloudInit(t *testing.T, guest *testenv.Host, text, renderer string) string {
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
// address of the guest.
func TestGuestByCloudInit(t *testing.T) {
	if testing.Short() {
		t.Skip("makes laboratories")
	}
	labtest.Need(t, "root")
	one := guest(nic(0x10, "203.0.113.10 203.0.113.11 2001:db8:100::10 2001:db8:100::11 198.51.100.0/29 2001:db8:200::/64"))
	one.NICs[0].MTU = 1400
	for _, way := range []struct {
		renderer string
		hearsRA  bool
		names    []string
		apply    func(t *testing.T, p plugged, root string)
	}{
		{"eni", true, nil, func(t *testing.T, p plugged, root string) {
			ifup(t, p, filepath.Join(root, "etc/network/interfaces.d/50-cloud-init"))
		}},
		{"networkd", true, nil, func(t *testing.T, p plugged, root string) {
			networkd(t, p, filepath.Join(root, "etc/systemd/network"))
		}},
		// By name: netplan does not find veths by their MAC addresses.
		{"netplan", false, []string{"eth0"}, func(t *testing.T, p plugged, root string) {
			out, err := exec.CommandContext(t.Context(), "netplan", "generate", "--root-dir", root).CombinedOutput()
			require.NoError(t, err, string(out))
			networkd(t, p, filepath.Join(root, "run/systemd/network"))
		}},
	} {
		for name, gw := range map[string]fabric.Gateway{"link-local gateway": gateway, "gateway of a far network": {
			IPv4: netip.MustParseAddr("10.0.0.1"), IPv6: netip.MustParseAddr("2001:db8:ffff::1"), MAC: fabric.DefaultMAC,
		}} {
			t.Run(way.renderer+", "+name, func(t *testing.T) {
				t.Parallel()
				p := plugIn(t, one, gw)
				p.hearsRA = way.hearsRA
				text, err := render.Guest(p.vm, gw, render.CloudInit, way.names)
				require.NoError(t, err)
				way.apply(t, p, cloudInit(t, p.guest, text, way.renderer))
				p.holds(t)
			})
		}
	}
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
