package kernel_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// TestSecondAddress: an address that DHCPv4 has no word for is one that the guest adds,
// as docs/guest-config.md says.
func TestSecondAddress(t *testing.T) {
	second := netip.MustParseAddr("203.0.113.77")
	networkd := dhcpClients["systemd-networkd"]
	networkd.script = strings.Replace(networkd.script, "DHCP=yes\\n", "DHCP=yes\\nAddress="+second.String()+"/32\\n", 1)
	for name, c := range map[string]dhcpClient{
		"systemd-networkd": networkd,
		"ifupdown": {"ifup", `
printf 'iface eth0 inet dhcp\n up ip addr add ` + second.String() + `/32 dev eth0\n' > $1/interfaces
mount -t tmpfs none /run && mkdir -p /run/network
ifup --force -i $1/interfaces eth0; sleep infinity`, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			labtest.Need(t, "root", c.program)
			lab := newMoveLab(t)
			d := openGuarded(t, fabric.Guests{})
			p := movePort("web", fabric.NIC{Kind: fabric.Veth, Addresses: []netip.Addr{guestAddr[true], second, guestAddr[false]}})
			require.NoError(t, d.Put(t.Context(), p))
			g := behindPort(t, "web")
			startClient(t, g, c)
			awaitPing(t, lab.core, guestAddr[true])
			awaitPing(t, lab.core, second)
			require.NoError(t, d.Remove(t.Context(), p.Name))
		})
	}
}
