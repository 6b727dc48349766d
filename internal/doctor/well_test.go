package doctor_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/internal/doctor"
)

func (l *lab) copy(from, to string) {
	l.t.Helper()
	text, err := os.ReadFile(filepath.Join("../../packaging", from))
	require.NoError(l.t, err)
	l.write(to, string(text))
}

const (
	zone = `<zone><source address="203.0.113.0/24"/><source address="2001:db8:100::/48"/></zone>`
	in   = `<policy target="ACCEPT"><ingress-zone name="ANY"/><egress-zone name="guests"/></policy>`
	out  = `<policy target="ACCEPT"><ingress-zone name="guests"/><egress-zone name="ANY"/></policy>`
)

// setUp are the ways in which what else is on a node is as it should be, as
// packaging/README.md has them.
var setUp = []struct {
	name, check string
	up          func(l *lab)
	says        string
}{
	{"our file", "networkmanager", func(l *lab) {
		l.enable("NetworkManager.service")
		l.copy("NetworkManager/90-vmfabric.conf", "etc/NetworkManager/conf.d/90-vmfabric.conf")
	}, "NetworkManager leaves the ports alone"},
	{"all but one", "networkmanager", func(l *lab) {
		l.write("run/NetworkManager/conf", "")
		l.write("etc/NetworkManager/NetworkManager.conf", "[keyfile]\nunmanaged-devices=*,except:interface-name:eth*\n")
	}, "leaves the ports alone"},
	{"a section for devices", "networkmanager", func(l *lab) {
		l.enable("NetworkManager.service")
		l.write("usr/lib/NetworkManager/conf.d/ports.conf", "[device-ports]\nmatch-device=interface-name:*_net*;interface-name:*_peer*\nmanaged=0\n")
	}, "leaves the ports alone"},
	{"our files", "networkd", func(l *lab) {
		l.enable("systemd-networkd.service")
		l.copy("systemd-network/05-vmfabric.network", "etc/systemd/network/05-vmfabric.network")
		l.copy("systemd-network/90-vmfabric.conf", "etc/systemd/networkd.conf.d/90-vmfabric.conf")
		l.write("run/systemd/network/10-all.network", "[Match]\nName=*\n[Network]\nDHCP=yes\n")
	}, "systemd-networkd leaves the ports"},
	{"links of its own", "networkd", func(l *lab) {
		l.write("run/systemd/netif/state", "")
		l.write("etc/systemd/networkd.conf", "[Network]\nManageForeignRoutes=false\nManageForeignRoutingPolicyRules=off\n")
		l.write("usr/lib/systemd/network/80-container-host0.network", "[Match]\nKind=veth\nName=host0\nVirtualization=container\n[Network]\nDHCP=yes\n")
		l.write("etc/systemd/network/10-lan.network", "[Match]\nName=en*\n[Network]\nDHCP=yes\n")
		l.write("etc/systemd/network/11-mac.network", "[Match]\nMACAddress=02:00:00:00:00:01\n[Network]\nDHCP=yes\n")
		l.write("etc/systemd/network/12-not.network", "[Match]\nName=!*_net* *_peer*\n[Network]\nDHCP=yes\n")
	}, "systemd-networkd leaves the ports"},
	{"a network card", "netplan", func(l *lab) {
		l.write("etc/netplan/50.yaml", "network:\n  ethernets:\n    eth0: {dhcp4: true}\n    lan: {match: {macaddress: \"02:00:00:00:00:01\"}}\n    en: {match: {name: [\"en*\", \"eth*\"]}}\n  bridges: {br0: {interfaces: [eth0]}}\n")
	}, "no file of netplan matches the ports"},
	{"a zone and policies", "firewalld", func(l *lab) {
		l.enable("firewalld.service")
		l.write("etc/firewalld/zones/guests.xml", zone)
		l.write("etc/firewalld/policies/to-guests.xml", in)
		l.write("etc/firewalld/policies/from-guests.xml", out)
	}, "firewalld has a zone of the pools"},
	{"a zone for each family", "firewalld", func(l *lab) {
		l.enable("firewalld.service")
		for name, source := range map[string]string{"four": "203.0.113.0/24", "six": "2001:db8::/32"} {
			l.write("etc/firewalld/zones/"+name+".xml", `<zone><source address="`+source+`"/></zone>`)
			l.write("etc/firewalld/policies/to-"+name+".xml", strings.ReplaceAll(in, "guests", name))
			l.write("etc/firewalld/policies/from-"+name+".xml", strings.ReplaceAll(out, "guests", name))
		}
	}, "firewalld has a zone of the pools"},
	{"direct rules", "firewalld", func(l *lab) {
		l.write("run/firewalld/pid", "")
		l.write("etc/firewalld/firewalld.conf", "# FirewallBackend=nftables\nFirewallBackend=iptables\n")
		l.write("etc/firewalld/direct.xml", direct[:len(direct)-len("</direct>")]+
			`<rule ipv="ipv6" table="filter" chain="FORWARD" priority="0">-m devgroup --src-group 147 -j ACCEPT</rule>`+
			`<rule ipv="ipv6" table="filter" chain="FORWARD" priority="0">-m devgroup --dst-group 147 -j ACCEPT</rule></direct>`)
	}, "firewalld has direct rules"},
	{"off", "firewalld", func(l *lab) {
		l.enable("firewalld.service")
		require.NoError(l.t, os.Symlink("/dev/null", filepath.Join(l.root, "etc/systemd/system/firewalld.service")))
	}, "neither runs nor starts"},
	{"removed", "firewalld", func(l *lab) {
		l.enable("firewalld.service")
		require.NoError(l.t, os.Remove(filepath.Join(l.root, "lib/systemd/system/firewalld.service")))
	}, "neither runs nor starts"},
	{"rules of the pools", "ufw", func(l *lab) {
		l.write("etc/ufw/ufw.conf", "ENABLED=yes\n")
		l.write("etc/ufw/user.rules", "-A ufw-user-forward -s 203.0.113.0/24 -j ACCEPT\n-A ufw-user-forward -d 203.0.113.0/24 -j ACCEPT\n")
		l.write("etc/ufw/user6.rules", "-A ufw6-user-forward -s 2001:db8:100::/48 -j ACCEPT\n-A ufw6-user-forward -d 2001:db8:100::/48 -j ACCEPT\n")
	}, "ufw has rules that let the ports, or the pools, pass"},
	{"forwards", "ufw", func(l *lab) {
		l.write("etc/ufw/ufw.conf", "ENABLED=yes\n")
		l.write("etc/default/ufw", "DEFAULT_FORWARD_POLICY=\"ACCEPT\"\n")
	}, "ufw forwards by default"},
	{"off", "ufw", func(l *lab) { l.write("etc/ufw/ufw.conf", "ENABLED=no\n") }, "or off"},
	{"after our settings", "docker", func(l *lab) { l.enable("docker.service") }, "forwarding is on at boot before Docker starts"},
	{"without a policy", "docker", func(l *lab) {
		l.enable("docker.socket")
		require.NoError(l.t, os.Remove(filepath.Join(l.root, "etc/sysctl.d/90-vmfabric.conf")))
		l.write("etc/docker/daemon.json", `{"ip-forward-no-drop": true}`)
	}, "Docker sets no policy"},
	{"in its place", "libvirt", func(l *lab) {
		l.write("usr/sbin/virtqemud", "")
		l.write("etc/libvirt/hooks/qemu.d/vmfabric", "")
		l.chmod("etc/libvirt/hooks/qemu.d/vmfabric", 0o755)
	}, "virtqemud does not run, and the hook is in its place"},
	{"alone", "virtqemud", func(l *lab) {
		l.proc(map[string]string{"12/comm": "virtqemud\n", "13/comm": "another\n"})
		l.write("run/virtqemud.pid", "12\n")
		l.write("run/libvirtd.pid", "13\n")
	}, "virtqemud has the guests alone"},
	{"long ago", "denials", func(l *lab) {
		l.write("var/log/audit/audit.log", `type=AVC msg=audit(1700000000.1:2): avc:  denied  { connectto } for  pid=1 comm="vmfabric"`+"\n")
		l.write("dev/kmsg", `5,12,34,-;audit: apparmor="DENIED" operation="open" profile="other" name="/etc/passwd" comm="other"`+"\n")
	}, "neither AppArmor nor SELinux"},
	{"overridden", "sysctl", func(l *lab) {
		l.write("usr/lib/sysctl.d/50-default.conf", "net.ipv4.ip_forward = 0\nnet.ipv4.conf.*.rp_filter = 2\n-net.ipv4.conf.all.rp_filter\nnet.ipv4.neigh.default.gc_thresh3 = 128\n")
		l.write("etc/sysctl.d/95.conf", "# net.ipv4.ip_forward = 0\nnet/ipv4/ip_forward=1\nnet.ipv4.neigh.default.gc_thresh3 = 131072\nnet.ipv4.conf.eth0/7.forwarding = 0\n")
		l.write("usr/lib/sysctl.d/99-off.conf", "net.ipv4.ip_forward = 0\n")
		l.write("run/sysctl.d/99-off.conf", "")
	}, "no file undoes them"},
	{"in another directory", "sysctl", func(l *lab) {
		require.NoError(l.t, os.MkdirAll(filepath.Join(l.root, "usr/lib/sysctl.d"), 0o755))
		require.NoError(l.t, os.Rename(filepath.Join(l.root, "etc/sysctl.d/90-vmfabric.conf"), filepath.Join(l.root, "usr/lib/sysctl.d/90-vmfabric.conf")))
	}, "our settings are in force"},
}

// TestWellSetUp is the control: what packaging/README.md tells to do is enough.
func TestWellSetUp(t *testing.T) {
	for _, s := range setUp {
		t.Run(s.check+"/"+s.name, func(t *testing.T) {
			l := newLab(t, s.check)
			s.up(l)
			report := l.examine(s.check)
			require.Len(t, report.Findings, 1, lines(report))
			assert.Equal(t, doctor.Good, report.Findings[0].State, lines(report))
			assert.Contains(t, report.Findings[0].What, s.says)
		})
	}
}
