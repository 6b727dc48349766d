package kernel_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// apart has a program run with files of its own where it would write the machine's.
// $1 is a directory.
const apart = `set -e
mount --make-rprivate /
touch $1/resolv.conf && mount --bind $1/resolv.conf /etc/resolv.conf
hostname guest
`

// dhcpClient is a program that configures eth0 by what it is told.
type dhcpClient struct {
	program  string // that must be there
	script   string
	families []bool // true: IPv4
	told     string // a file of the directory that has its host name; empty: none
}

var dhcpClients = map[string]dhcpClient{
	"dhclient": {"dhclient", `
dhclient -4 -1 -d -pf /dev/null -lf $1/leases4 eth0 & first=$!
dhclient -6 -1 -d -pf /dev/null -lf $1/leases6 eth0 & wait $first $!`, []bool{true, false}, "leases4"},
	"udhcpc": {"busybox", `
cat > $1/apply <<'END'
#!/bin/sh
case $1 in bound|renew)
	ip addr replace $ip/$mask dev $interface
	echo "$hostname" > ${0%/*}/hostname
	for r in $router; do ip route replace $r dev $interface; ip route replace default via $r dev $interface; done;;
esac
END
chmod +x $1/apply
exec busybox udhcpc -f -n -i eth0 -s $1/apply`, []bool{true}, "hostname"},
	"systemd-networkd": {"networkctl", `
mount -t sysfs -o ro none /sys
mount -t tmpfs none /run
mkdir -p /run/systemd/network /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp
chown -R systemd-network /run/systemd/netif
printf '[Match]\nName=eth0\n[Network]\nDHCP=yes\n' > /run/systemd/network/eth0.network
SYSTEMD_LOG_LEVEL=debug /lib/systemd/systemd-networkd & # not as the first process: it gives up what ends it with its parent
wait`, []bool{true, false}, ""},
}

// behindPort makes the guest behind a port that is a veth; its link is up, and has no
// address.
func behindPort(t *testing.T, vm string) *space {
	t.Helper()
	g, peer := newSpace(t), fabric.PeerName(vm, 0)
	ipIn(t, nil, fmt.Sprintf("link set %s netns /proc/%d/fd/%d", peer, os.Getpid(), int(g.handle)))
	ipIn(t, g, "link set "+peer+" name eth0 address "+guestMAC.String(), "link set lo up", "link set eth0 up")
	return g
}

// startClient runs a client in the namespace of a guest, until the test ends. It returns
// the directory that is the client's.
func startClient(t *testing.T, g *space, c dhcpClient) (dir string) {
	t.Helper()
	dir = t.TempDir()
	log, err := os.Create(filepath.Join(dir, "log"))
	require.NoError(t, err)
	cmd := exec.Command("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "sh", "-c", apart+c.script, "sh", dir)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	require.NoError(t, within(g, cmd.Start))
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		log.Close()
		if said, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("%s", said)
		}
	})
	return dir
}

// TestClients: what guests run configures them by what the node tells them, so that the
// Internet reaches them.
func TestClients(t *testing.T) {
	for name, c := range dhcpClients {
		t.Run(name, func(t *testing.T) {
			labtest.Need(t, "root", c.program)
			lab := newMoveLab(t)
			d := openGuarded(t, fabric.Guests{DNS: []netip.Addr{client[true], client[false]}, Search: []string{"example.net"}})
			p := movePort("web_1", fabric.NIC{Kind: fabric.Veth, Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
			require.NoError(t, d.Put(t.Context(), p))
			g := behindPort(t, "web_1")
			dir := startClient(t, g, c)
			for _, v4 := range c.families {
				awaitPing(t, lab.core, guestAddr[v4])
				awaitPing(t, g, client[v4])
			}
			if c.told != "" {
				told, err := os.ReadFile(filepath.Join(dir, c.told))
				require.NoError(t, err)
				assert.Regexp(t, `\bweb-1\b`, string(told), "its host name")
			}
			states, err := d.Actual(t.Context())
			require.NoError(t, err)
			require.Len(t, states, 1)
			var asked []string
			for _, contact := range states[0].Contacts {
				asked = append(asked, string(contact.Protocol))
				assert.Empty(t, contact.Refused)
				assert.WithinDuration(t, time.Now(), contact.At, time.Hour)
			}
			slices.Sort(asked)
			want := "dhcpv4"
			if len(c.families) == 2 {
				want = "dhcpv4 dhcpv6"
			}
			assert.Contains(t, strings.Join(asked, " "), want)
			require.NoError(t, d.Remove(t.Context(), p.Name))
		})
	}
}

// TestPrefixOfAGuest: a client that asks for a prefix gets the one that is routed to it,
// beside its address.
func TestPrefixOfAGuest(t *testing.T) {
	labtest.Need(t, "root", "dhclient")
	newMoveLab(t)
	d := openGuarded(t, fabric.Guests{})
	own := netip.MustParsePrefix("2001:db8:300:5::/64")
	p := movePort("web", fabric.NIC{Kind: fabric.Veth, Addresses: []netip.Addr{guestAddr[false]}, Routes: []netip.Prefix{own}})
	require.NoError(t, d.Put(t.Context(), p))
	g := behindPort(t, "web")
	leases := filepath.Join(startClient(t, g, dhcpClient{program: "dhclient", script: "dhclient -6 -N -P -1 -d -pf /dev/null -lf $1/leases eth0"}), "leases")
	require.Eventually(t, func() bool {
		told, err := os.ReadFile(leases)
		return err == nil && strings.Contains(string(told), "iaprefix "+own.String()+" ") && strings.Contains(string(told), "iaaddr "+guestAddr[false].String()+" ")
	}, 20*time.Second, 20*time.Millisecond)
	require.NoError(t, d.Remove(t.Context(), p.Name))
}

// TestGuestWithoutDHCPv6 makes an address of its own in the /64 that is routed to it. The
// node reaches it by the NIC's MAC, though the guest does not have the address through
// which the /64 is routed.
func TestGuestWithoutDHCPv6(t *testing.T) {
	lab := newMoveLab(t)
	d := openGuarded(t, fabric.Guests{})
	own := netip.MustParsePrefix("2001:db8:300:5::/64")
	ipIn(t, lab.core, "route add "+own.String()+" via "+via(own.Addr()))
	p := movePort("web", fabric.NIC{Kind: fabric.Veth, Addresses: []netip.Addr{guestAddr[false]}, Routes: []netip.Prefix{own}})
	require.NoError(t, d.Put(t.Context(), p))
	g := behindPort(t, "web")
	b := own.Addr().As16()
	copy(b[8:], []byte{guestMAC[0] ^ 2, guestMAC[1], guestMAC[2], 0xff, 0xfe, guestMAC[3], guestMAC[4], guestMAC[5]}) // RFC 4291, appendix A
	awaitPing(t, lab.core, netip.AddrFrom16(b))
	awaitPing(t, g, client[false])
	require.NoError(t, d.Remove(t.Context(), p.Name))
}
