package doctor_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/digitalocean/go-libvirt/libvirttest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/internal/doctor"
	"github.com/vmfabric/vmfabric/packaging"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// TestWell: a node on which everything is right has no line that says otherwise, and
// everything was looked at.
func TestWell(t *testing.T) {
	l := newLab(t, "")
	report, err := doctor.Examine(t.Context(), l.cfg)
	require.NoError(t, err)
	assert.True(t, report.Healthy)
	assert.Equal(t, "lab", report.Cluster)
	assert.Equal(t, "node1", report.Node)
	seen := map[string]bool{}
	for _, f := range report.Findings {
		seen[f.Check] = true
		if f.State != doctor.Good {
			assert.Equal(t, doctor.Note, f.State, "%+v", f)
			assert.Contains(t, []string{"agent", "clock", "cluster"}, f.Check, "%+v", f) // no agent runs; nothing keeps a container's clock right; one reflector
		}
	}
	for _, name := range doctor.Names() {
		assert.True(t, seen[name], "%s says what it looked at", name)
	}
}

// breakage is something that is broken on purpose.
type breakage struct {
	name, check string
	harm        func(l *lab)
	state       doctor.State // Wrong if it is empty
	says        string       // of what is wrong
	wayOut      string
	fixed       bool // --fix mends it
}

// TestEachLine breaks one thing after the other, and sees its line, with its reason and
// way out. What is the fabric's own is mended.
func TestEachLine(t *testing.T) {
	labtest.Long(t)
	broken := map[string]bool{}
	for _, a := range breakages() {
		broken[a.check] = true
		t.Run(a.check+"/"+a.name, func(t *testing.T) {
			l := newLab(t, a.check)
			before := l.examine(a.check)
			require.NotContains(t, lines(before), a.says, "the control")
			a.harm(l)
			report := l.examine(a.check)
			var found *doctor.Finding
			for i, f := range report.Findings {
				if strings.Contains(f.What, a.says) {
					found = &report.Findings[i]
				}
			}
			require.NotNil(t, found, "%q in %s", a.says, lines(report))
			if a.state == "" {
				a.state = doctor.Wrong
				assert.NotEmpty(t, found.Why)
				assert.NotEmpty(t, found.WayOut)
				assert.False(t, report.Healthy)
			}
			assert.Equal(t, a.state, found.State)
			assert.Contains(t, found.WayOut, a.wayOut)
			assert.NotContains(t, found.What, "\n")
			assert.Equal(t, a.fixed, found.Fixable)
			mended, err := report.Fix()
			require.NoError(t, err)
			if !a.fixed {
				assert.Empty(t, mended, "what is another's stays")
				return
			}
			assert.Contains(t, strings.Join(mended, "\n"), a.says)
			assert.NotContains(t, lines(l.examine(a.check)), a.says)
		})
	}
	for _, name := range doctor.Names() {
		assert.True(t, broken[name], "nothing breaks what the check %s looks at", name)
	}
}

func (l *lab) examine(checks ...string) doctor.Report {
	l.t.Helper()
	report, err := doctor.Examine(l.t.Context(), l.cfg, checks...)
	require.NoError(l.t, err)
	return report
}

func lines(r doctor.Report) string {
	var b strings.Builder
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "%s %s: %s; %s\n", f.State, f.Check, f.What, f.WayOut)
	}
	return b.String()
}

func breakages() []breakage {
	var all []breakage
	for _, some := range [][]breakage{fileBreakages, sysctlBreakages, kernelBreakages, managerBreakages, firewallBreakages, hypervisorBreakages, peerBreakages} {
		all = append(all, some...)
	}
	return all
}

var fileBreakages = []breakage{
	{check: "cluster", name: "an unknown key", harm: func(l *lab) { l.edit("etc/vmfabric/cluster.yaml", "gateway:", "gatewai:") }, says: "unknown key", wayOut: "did you mean gateway"},
	{check: "cluster", name: "not there", harm: func(l *lab) { l.cfg.File += ".none" }, state: doctor.Unknown, says: "no such file", wayOut: "create it"},
	{check: "cluster", name: "another machine", harm: func(l *lab) {
		l.cfg.ThisNode = func(c *fabric.Cluster, _ string) (fabric.Node, error) { return c.Node("node9") }
	}, says: `node "node9" is not in cluster lab`, wayOut: "add it under nodes"},
	{check: "cluster", name: "others can write it", harm: func(l *lab) { l.chmod("etc/vmfabric/cluster.yaml", 0o666) }, says: "can be written by others (mode 0666)", wayOut: "chmod go-w", fixed: true},
	{check: "cluster", name: "others can read the key", harm: func(l *lab) { l.chmod("etc/vmfabric/cluster.key", 0o644) }, says: "cluster.key: open to others (mode 0644)", wayOut: "make a new one", fixed: true},
	{check: "cluster", name: "others can read a password", harm: func(l *lab) { l.chmod("etc/vmfabric/rr.password", 0o640) }, says: "rr.password: open to others (mode 0640)", wayOut: "chmod 600", fixed: true},
	{check: "cluster", name: "the key is another user's", harm: func(l *lab) {
		require.NoError(l.t, os.Chown(filepath.Join(l.root, "etc/vmfabric/cluster.key"), 65534, -1))
	}, says: "belongs to user 65534", wayOut: "chown root", fixed: true},
	{check: "cluster", name: "no key", harm: func(l *lab) { l.edit("etc/vmfabric/cluster.yaml", "key_file: cluster.key", "") }, state: doctor.Note, says: "no key_file"},
	{check: "address", name: "IPv4", harm: func(l *lab) { l.ip("addr del 10.10.0.21/24 dev up0") }, says: "node node1 has the address 10.10.0.21 in the cluster file, and no interface", wayOut: "ip addr"},
	{check: "address", name: "IPv6", harm: func(l *lab) { l.ip("addr del fd00:10:10::21/64 dev up0") }, says: "fd00:10:10::21 in the cluster file", wayOut: "correct it"},
	{check: "files", name: "state directory", harm: func(l *lab) { l.chmod("var/lib/vmfabric", 0o755) }, says: "open to others (mode 0755)", wayOut: "chmod 700 /var/lib/vmfabric", fixed: true},
	{check: "files", name: "socket", harm: func(l *lab) { l.status(hooks.Reply{}); l.chmod("agent.sock", 0o666) }, says: "agent.sock is open to others (mode 0666)", wayOut: "chmod 600", fixed: true},
	{check: "files", name: "hook", harm: func(l *lab) {
		l.write("etc/libvirt/hooks/qemu.d/vmfabric", "")
		l.chmod("etc/libvirt/hooks/qemu.d/vmfabric", 0o777)
	}, says: "qemu.d/vmfabric: it can be written by others", wayOut: "chmod go-w"},
	{check: "files", name: "no resolver", harm: func(l *lab) {
		l.edit("etc/vmfabric/cluster.yaml", "key_file", "resolver: /nonexistent/inventory\nkey_file")
	}, says: "plugin inventory (/nonexistent/inventory): there is no such file", wayOut: "correct the path"},
	{check: "files", name: "observer", harm: func(l *lab) {
		l.write("observer", "")
		l.chmod("observer", 0o777)
		l.edit("etc/vmfabric/cluster.yaml", "asn:", "observers: ["+filepath.Join(l.root, "observer")+"]\nasn:")
	}, says: "observer: it can be written by others", wayOut: "chmod go-w"},
}

var sysctlBreakages = []breakage{
	{check: "sysctl", name: "not installed", harm: func(l *lab) {
		require.NoError(l.t, os.Remove(filepath.Join(l.root, "etc/sysctl.d/90-vmfabric.conf")))
		l.sysctl("net/ipv4/conf/all/send_redirects", "1")
	}, says: "there is no /etc/sysctl.d/90-vmfabric.conf", wayOut: "sysctl -p", fixed: true},
	{check: "sysctl", name: "hidden", harm: func(l *lab) {
		file := filepath.Join(l.root, "etc/sysctl.d/90-vmfabric.conf")
		require.NoError(l.t, os.Remove(file))
		require.NoError(l.t, os.Symlink("/dev/null", file))
	}, says: "is a link to /dev/null", wayOut: "install that of the package"},
	{check: "sysctl", name: "a later file", harm: func(l *lab) { l.write("etc/sysctl.d/95-router.conf", "-net.ipv4.ip_forward=0\n") }, says: "/etc/sysctl.d/95-router.conf sets net.ipv4.ip_forward = 0, and is read after /etc/sysctl.d/90-vmfabric.conf", wayOut: "take the line out"},
	{check: "sysctl", name: "a later file of a package", harm: func(l *lab) {
		l.write("usr/lib/sysctl.d/99-small.conf", "; a comment\nnet/ipv6/neigh/default/gc_thresh3 = 1024\n")
	}, says: "/usr/lib/sysctl.d/99-small.conf sets net.ipv6.neigh.default.gc_thresh3 = 1024", wayOut: "write 65536 there"},
	{check: "sysctl", name: "sysctl.conf", harm: func(l *lab) { l.write("etc/sysctl.conf", "net.ipv4.ip_forward = 0\n") }, says: "/etc/sysctl.conf sets net.ipv4.ip_forward = 0", wayOut: "take the line out"},
	{check: "sysctl", name: "what the agent keeps", harm: func(l *lab) { l.write("etc/sysctl.d/50-no6.conf", "net.ipv6.conf.all.disable_ipv6 = 1\n") }, says: "50-no6.conf sets net.ipv6.conf.all.disable_ipv6 = 1, and a node needs 0", wayOut: "take the line out"},
	{check: "sysctl", name: "a pattern", harm: func(l *lab) { l.write("run/sysctl.d/60-closed.conf", "net.ipv4.conf.*.forwarding = 0\n") }, says: "60-closed.conf sets net.ipv4.conf.*.forwarding = 0", wayOut: "write 1 there"},
	{check: "sysctl", name: "not in force", harm: func(l *lab) { l.sysctl("net/ipv4/conf/all/send_redirects", "1") }, says: "90-vmfabric.conf is not in force: net.ipv4.conf.all.send_redirects is 1, not 0", wayOut: "sysctl -p", fixed: true},
}

const (
	counters = "entries  allocs\n00000010  00000000\n"
	tables   = "sys/net/ipv4/neigh/default/gc_thresh3"
)

const noTaps = "virtual machines with taps cannot be attached: this kernel has no tap devices: no such file; modprobe tun"

func probed(p kernel.Probed) func(context.Context) (kernel.Probed, error) {
	return func(context.Context) (kernel.Probed, error) { return p, nil }
}

var kernelBreakages = []breakage{
	{check: "kernel", name: "a part is missing", harm: func(l *lab) {
		l.cfg.Features = probed(kernel.Probed{Faults: []string{"make a veth pair: operation not supported; load veth"}})
	}, says: "make a veth pair: operation not supported", wayOut: "load veth"},
	{check: "kernel", name: "a part that says no way out", harm: func(l *lab) {
		l.cfg.Features = probed(kernel.Probed{Faults: []string{"make tap: no such device"}})
	}, says: "make tap: no such device", wayOut: "modprobe tun"},
	{check: "kernel", name: "an older kernel", harm: func(l *lab) {
		l.cfg.Features = probed(kernel.Probed{Notes: []string{"this kernel has no alternative names of links (Linux 5.5); the full name is in the alias"}})
	}, state: doctor.Note, says: "this kernel has no alternative names of links (Linux 5.5)", wayOut: "the full name is in the alias"},
	{check: "kernel", name: "taps that no guest needs", harm: func(l *lab) {
		l.cfg.Features = probed(kernel.Probed{Notes: []string{noTaps}})
		l.status(hooks.Reply{Status: &fabric.Status{Notes: []string{noTaps}}})
	}, state: doctor.Note, says: "virtual machines with taps cannot be attached", wayOut: "modprobe tun"},
	{check: "agent", name: "taps that a guest needs", harm: func(l *lab) {
		l.cfg.Features = probed(kernel.Probed{Notes: []string{noTaps}})
		l.status(hooks.Reply{Status: &fabric.Status{Problems: []string{noTaps}}})
	}, says: "virtual machines with taps cannot be attached", wayOut: "modprobe tun"},
	{check: "forwarding", name: "off", harm: func(l *lab) { l.sysctl("net/ipv4/ip_forward", "0") }, says: "IPv4 packets to and from guests do not pass this node: setting net.ipv4.ip_forward = 0", wayOut: "sysctl -w", fixed: true},
	{check: "forwarding", name: "IPv6 off before the agent", harm: func(l *lab) { l.sysctl("net/ipv6/conf/all/forwarding", "0") }, state: doctor.Note, says: "IPv6 packets to and from guests do not pass this node", wayOut: "the agent turns it on"},
	{check: "forwarding", name: "a policy", harm: func(l *lab) {
		l.nft("table inet f { chain c { type filter hook forward priority filter; policy drop; }; }")
	}, says: "IPv6 packets to and from guests do not pass this node: table inet f chain c (policy drop) drops them", wayOut: "nft insert rule inet f c iifgroup 147 accept"},
	{check: "forwarding", name: "no way out", harm: func(l *lab) { l.ip("route del default via fd00:10:10::1") }, says: "IPv6 packets of guests have no way out of this node", wayOut: "ip -6 route add default via"},
	{check: "forwarding", name: "as the agent says", harm: func(l *lab) {
		l.status(hooks.Reply{Status: &fabric.Status{}, Forwarding: []fabric.ForwardingFault{{Family: "IPv4", Text: "IPv4 packets get lost; find them"}}})
	}, says: "IPv4 packets get lost", wayOut: "find them"},
	{check: "forwarding", name: "as the agent could not try", harm: func(l *lab) {
		l.status(hooks.Reply{Status: &fabric.Status{}, Error: "whether guests' packets pass this node was not tried: context deadline exceeded after 10s; try again when the machine is less busy"})
	}, state: doctor.Unknown, says: "whether guests' packets pass this node was not tried: context deadline exceeded after 10s", wayOut: "try again when the machine is less busy"},
	{check: "rp_filter", name: "two links", harm: func(l *lab) {
		l.ip("link add up1 type veth peer name down1", "link set up1 up", "link set down1 up", "addr add 10.20.0.1/24 dev up1", "route add 10.10.0.22/32 dev up1")
		l.t.Cleanup(func() { _ = run("", "ip", "link", "del", "up1") })
		l.sysctl("net/ipv4/conf/up1/rp_filter", "1")
	}, says: "the underlay has 2 links, and up1 drops what comes in by it", wayOut: "sysctl -w net.ipv4.conf.up1.rp_filter=2"},
	{check: "rp_filter", name: "loose for all", harm: func(l *lab) { l.sysctl("net/ipv4/conf/all/rp_filter", "2") }, state: doctor.Note, says: "net.ipv4.conf.all.rp_filter = 2 loosens", wayOut: "nothing is to be done"},
	{check: "neighbours", name: "small", harm: func(l *lab) {
		l.proc(map[string]string{tables: "512\n", "net/stat/arp_cache": counters})
		l.ip("link add web_net0 type veth peer name web_peer0", "link set web_net0 alias vmfabric:lab:web:0")
		l.t.Cleanup(func() { _ = run("", "ip", "link", "del", "web_net0") })
	}, says: "the IPv4 neighbour table holds 512 entries, 1 port may need 528", wayOut: "raise net.ipv4.neigh.default.gc_thresh1", fixed: true},
	{check: "neighbours", name: "nearly full", harm: func(l *lab) {
		l.proc(map[string]string{"sys/net/ipv6/neigh/default/gc_thresh3": "65536", "net/stat/ndisc_cache": strings.Replace(counters, "00000010", "0000f000", 1)})
	}, says: "the IPv6 neighbour table has 61440 of at most 65536 entries", wayOut: "ip -s neigh"},
	{check: "mtu", name: "a narrow link", harm: func(l *lab) { l.ip("link set up0 mtu 1400") }, says: "guests send packets of 1500 bytes, and up0 of the underlay takes 1400", wayOut: "ip link set up0 mtu 1500"},
	{check: "mtu", name: "a black hole", harm: func(l *lab) {
		l.farNft("table ip f { chain c { type filter hook input priority filter; ip daddr 10.10.0.1 meta length > 1400 drop; }; }")
	}, says: "packets of 1500 bytes do not get to core gateway core1 (10.10.0.1), smaller ones do", wayOut: "raise the MTU"},
	{check: "table", name: "a port without it", harm: func(l *lab) {
		l.ip("link add web_net0 type veth peer name web_peer0", "link set web_net0 alias vmfabric:lab:web:0")
		l.t.Cleanup(func() { _ = run("", "ip", "link", "del", "web_net0") })
	}, says: "ports of guests are here, and the nftables tables", wayOut: "systemctl start vmfabric", fixed: true},
}

var managerBreakages = []breakage{
	{check: "networkmanager", name: "without our file", harm: func(l *lab) {
		l.enable("NetworkManager.service")
		l.write("etc/NetworkManager/conf.d/10.conf", "[keyfile]\nunmanaged-devices=interface-name:docker*\n")
	}, says: "NetworkManager manages the ports of guests", wayOut: "put 90-vmfabric.conf of vmfabric's package"},
	{check: "networkmanager", name: "runs", harm: func(l *lab) { l.write("run/NetworkManager/devices/1", "") }, says: "NetworkManager manages the ports", wayOut: "systemctl reload"},
	{check: "networkd", name: "takes away what is not its own", harm: func(l *lab) {
		l.enable("systemd-networkd.service")
		l.write("etc/systemd/network/05-vmfabric.network", "[Match]\nName=*_net* *_peer*\n[Link]\nUnmanaged=yes\n")
	}, says: "systemd-networkd removes routes and rules that it did not make", wayOut: "into /etc/systemd/networkd.conf.d"},
	{check: "networkd", name: "configures the ports", harm: func(l *lab) {
		l.write("run/systemd/netif/state", "")
		l.write("run/systemd/network/10-netplan-all.network", "[Match]\nName=*\n[Network]\nDHCP=yes\n")
	}, says: "/run/systemd/network/10-netplan-all.network is systemd-networkd's file for the ports", wayOut: "put 05-vmfabric.network of vmfabric's package"},
	{check: "netplan", name: "matches the ports", harm: func(l *lab) {
		l.write("etc/netplan/50-all.yaml", "network:\n  version: 2\n  ethernets:\n    everything: {match: {name: \"*\"}, dhcp4: true}\n    eth0: {dhcp4: true}\n")
	}, says: "netplan's /etc/netplan/50-all.yaml configures the ports of guests: everything matches", wayOut: "have its match name"},
}

const direct = "<direct>" +
	`<rule ipv="ipv4" table="filter" chain="FORWARD" priority="0">-m devgroup --src-group 147 -j ACCEPT</rule>` +
	`<rule ipv="ipv4" table="filter" chain="FORWARD" priority="0">-m devgroup --dst-group 147 -j ACCEPT</rule></direct>`

var firewallBreakages = []breakage{
	{check: "firewalld", name: "no zone", harm: func(l *lab) { l.enable("firewalld.service") }, says: "no zone has 203.0.113.0/24, 2001:db8:100::/48 as a source", wayOut: "make a zone of the pools"},
	{check: "firewalld", name: "no policies", harm: func(l *lab) {
		l.enable("firewalld.service")
		l.write("etc/firewalld/zones/guests.xml", `<zone><source address="203.0.113.0/24"/><source address="2001:db8:100::/48"/></zone>`)
		l.write("etc/firewalld/policies/to-guests.xml", `<policy target="ACCEPT"><ingress-zone name="ANY"/><egress-zone name="guests"/></policy>`)
	}, says: "a zone of the pools, guests, and not a policy", wayOut: "make the two policies"},
	{check: "firewalld", name: "direct rules of one family", harm: func(l *lab) {
		l.enable("firewalld.service")
		l.write("etc/firewalld/firewalld.conf", "FirewallBackend=iptables\n")
		l.write("etc/firewalld/direct.xml", direct)
	}, says: "no direct rules that let the ports pass for ipv6", wayOut: "/usr/share/doc/vmfabric/README.md"},
	{check: "ufw", name: "as it comes", harm: func(l *lab) {
		l.write("etc/default/ufw", "IPV6=yes\nDEFAULT_FORWARD_POLICY=\"DROP\"\n")
		l.write("etc/ufw/ufw.conf", "ENABLED=yes\n")
		l.write("etc/ufw/before.rules", "-A ufw-before-forward -m devgroup --src-group 147 -j ACCEPT\n-A ufw-before-forward -m devgroup --dst-group 147 -j ACCEPT\nCOMMIT\n")
	}, says: "ufw is on, and has no rules that let the ports pass for IPv6", wayOut: "ufw reload"},
	{check: "docker", name: "turns forwarding on", harm: func(l *lab) {
		l.enable("docker.service")
		require.NoError(l.t, os.Remove(filepath.Join(l.root, "etc/sysctl.d/90-vmfabric.conf")))
	}, says: "Docker turns forwarding on at the next boot", wayOut: "install our sysctl file"},
}

var hypervisorBreakages = []breakage{
	{check: "libvirt", name: "no hook", harm: func(l *lab) { l.write("usr/sbin/libvirtd", "") }, says: "there is no hook /etc/libvirt/hooks/qemu.d/vmfabric", wayOut: "systemctl restart libvirtd"},
	{check: "libvirt", name: "a hook that does not run", harm: func(l *lab) {
		l.write("usr/sbin/virtqemud", "")
		l.write("etc/libvirt/hooks/qemu.d/vmfabric", "")
	}, says: "the hook /etc/libvirt/hooks/qemu.d/vmfabric is not executable", wayOut: "chmod 755"},
	{check: "libvirt", name: "an old one", harm: func(l *lab) { l.libvirt() }, state: doctor.Note, says: "knows no managed= of <target>", wayOut: "leave managed out"},
	{check: "libvirt", name: "one that does not answer", harm: func(l *lab) {
		u, err := net.Listen("unix", l.cfg.Libvirt)
		require.NoError(l.t, err)
		u.(*net.UnixListener).SetUnlinkOnClose(false)
		u.Close()
	}, says: "libvirt: no answer on", wayOut: "start libvirt"},
	{check: "virtqemud", name: "both", harm: func(l *lab) { l.enable("libvirtd.service"); l.enable("virtqemud.socket") }, says: "libvirtd and virtqemud both run, or start at boot", wayOut: "keep one"},
	{check: "denials", name: "AppArmor", harm: func(l *lab) {
		l.write("dev/kmsg", fmt.Sprintf(`5,12,34,-;audit: type=1400 audit(%d.123:45): apparmor="DENIED" operation="exec" profile="libvirtd" name="/etc/libvirt/hooks/qemu.d/vmfabric" pid=1 comm="rpc-worker"`+"\n", time.Now().Unix()))
	}, says: "AppArmor denied rpc-worker (profile libvirtd) exec of /etc/libvirt/hooks/qemu.d/vmfabric", wayOut: "/etc/apparmor.d/local"},
	{check: "denials", name: "SELinux", harm: func(l *lab) {
		l.write("var/log/audit/audit.log", fmt.Sprintf(`type=AVC msg=audit(%d.1:2): avc:  denied  { connectto } for  pid=1 comm="vmfabric" path="/run/vmfabric/agent.sock" scontext=system_u:system_r:virtd_t:s0 tcontext=system_u:system_r:unconfined_service_t:s0 tclass=unix_stream_socket`+"\n", time.Now().Unix()))
	}, says: "SELinux denied vmfabric (system_u:system_r:virtd_t:s0) { connectto } of /run/vmfabric/agent.sock", wayOut: "restorecon"},
}

// libvirt has a libvirt of long ago answer.
func (l *lab) libvirt() {
	l.t.Helper()
	u, err := net.Listen("unix", l.cfg.Libvirt)
	require.NoError(l.t, err)
	l.t.Cleanup(func() { u.Close() })
	go func() {
		for {
			c, err := u.Accept()
			if err != nil {
				return
			}
			old, err := libvirttest.New().Dial()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(old, c); old.Close() }()
			go func() { _, _ = io.Copy(c, old); c.Close() }()
		}
	}()
}

var degraded = fabric.Status{Problems: []string{"node node2 (10.10.0.22, port 7147): no answer within 2s; see there"}}

var peerBreakages = []breakage{
	{check: "reflectors", name: "nothing listens", harm: func(l *lab) {
		l.edit("etc/vmfabric/cluster.yaml", "address: 10.10.0.11, password_file: rr.password", "address: 10.10.0.11, port: 1179")
	}, says: "no session with rr1 (10.10.0.11) can be opened: nothing listens for BGP", wayOut: "start the reflector there"},
	{check: "reflectors", name: "silent", harm: func(l *lab) {
		l.farNft("table ip f { chain c { type filter hook input priority filter; tcp dport 179 drop; }; }")
	}, says: "no session with rr1 (10.10.0.11) can be opened: 10.10.0.11 does not answer", wayOut: "no packet filter drops TCP port 179"},
	{check: "reflectors", name: "another password", harm: func(l *lab) { l.secret("etc/vmfabric/rr.password", "another") }, says: "rr1 (10.10.0.11) can be opened: 10.10.0.11 does not answer", wayOut: "the same password"},
	{check: "reflectors", name: "as the agent says", harm: func(l *lab) {
		l.status(hooks.Reply{Status: &fabric.Status{Sessions: []fabric.Session{{Peer: "rr1", Address: "10.10.0.11", State: "active", Since: time.Now()}}}})
	}, says: "session with rr1 (10.10.0.11) is active since", wayOut: "check that the reflector runs"},
	{check: "nodes", name: "no agent", harm: func(l *lab) { l.edit("etc/vmfabric/cluster.yaml", "key_file", "agent_port: 7148\nkey_file") }, state: doctor.Note, says: "no agent listens there", wayOut: "start it there"},
	{check: "nodes", name: "silent", harm: func(l *lab) {
		l.farNft("table inet f { chain c { type filter hook input priority filter; tcp dport 7147 drop; }; }")
	}, says: "node node2 (10.10.0.22 and fd00:10:10::22, port 7147): no answer within", wayOut: "that no packet filter on either node drops TCP port 7147"},
	{check: "nodes", name: "another key", harm: func(l *lab) { l.secret("etc/vmfabric/cluster.key", "another key of a cluster") }, says: "node node2: the cluster's keys are not the same on both nodes", wayOut: "give all nodes the same"},
	{check: "nodes", name: "another node", harm: func(l *lab) { l.node2.Store(&identity{name: "node3"}) }, says: `what answers there is node "node3"`, wayOut: "correct the addresses"},
	{check: "nodes", name: "as the agent says", harm: func(l *lab) {
		l.farNft("table inet f { chain c { type filter hook input priority filter; tcp dport 7147 drop; }; }")
		l.status(hooks.Reply{Status: &degraded})
	}, says: "node node2 (10.10.0.22, port 7147): no answer within 2s", wayOut: "see there"},
	{check: "port", name: "this node's filter", harm: func(l *lab) {
		l.nft("table inet f { chain in { type filter hook input priority filter; policy drop; ct state established,related accept; }; }")
	}, says: "packets of 10.10.0.22 to TCP port 7147 of this node (10.10.0.21) do not come in: table inet f chain in (policy drop) drops them", wayOut: "nft insert rule inet f in ip saddr 10.10.0.22 tcp dport 7147 accept"},
	{check: "port", name: "one family", harm: func(l *lab) {
		l.nft("table ip6 filter { chain INPUT { type filter hook input priority filter; tcp dport 7147 reject; }; }")
	}, says: "packets of fd00:10:10::22 to TCP port 7147 of this node (fd00:10:10::21) do not come in: table ip6 filter chain INPUT drops them", wayOut: "ip6tables -I INPUT -p tcp -s fd00:10:10::22 --dport 7147 -j ACCEPT"},
	{check: "port", name: "nobody calls the agent", harm: func(l *lab) { l.status(hooks.Reply{Status: &fabric.Status{}}) }, says: "the agent of node2 answers this node, and has no connection to TCP port 7147 here", wayOut: "vmfabric status there"},
	{check: "clock", name: "another time", harm: func(l *lab) { l.node2.Store(&identity{"node2", 5 * time.Minute}) }, says: "the clock of node2 is 5m0s ahead of this node's", wayOut: "timedatectl"},
	{check: "registry", name: "etcd is away", harm: func(l *lab) {
		l.edit("etc/vmfabric/cluster.yaml", "key_file", "registry: {etcd: {endpoints: [\"http://10.10.0.1:2379\"]}}\nkey_file")
	}, says: "registry: etcd does not answer: ", wayOut: ""},
	{check: "registry", name: "as the agent says", harm: func(l *lab) {
		l.status(hooks.Reply{Status: &fabric.Status{Registry: &fabric.RegistryStatus{Problems: []string{"registry: it is full; see"}}}})
	}, says: "registry: it is full", wayOut: "see"},
	{check: "agent", name: "degraded", harm: func(l *lab) { l.status(hooks.Reply{Status: &degraded}) }, says: "no answer within 2s", wayOut: "see there"},
	{check: "agent", name: "gone, and ports are here", harm: func(l *lab) {
		l.ip("link add web_net0 type veth peer name web_peer0", "link set web_net0 alias vmfabric:lab:web:0")
		l.t.Cleanup(func() { _ = run("", "ip", "link", "del", "web_net0") })
	}, says: ", and 1 port of a guest is here", wayOut: "systemctl start vmfabric"},
}

// TestLargePacketsThatWereLostOnce: a busy machine is no black hole.
func TestLargePacketsThatWereLostOnce(t *testing.T) {
	labtest.Long(t)
	l := newLab(t, "mtu")
	l.farNft("table ip f { chain c { type filter hook input priority filter; ip daddr 10.10.0.1 meta length > 1400 quota until 3000 bytes counter drop; }; }")
	assert.True(t, l.examine("mtu").Healthy)
}

// TestOrdinaryUser: what only root can look at is said, and nothing is mended.
func TestOrdinaryUser(t *testing.T) {
	if os.Getenv("USER") == "" && os.Geteuid() != 0 {
		t.Skip("not root")
	}
	l := newLab(t, "")
	require.NoError(t, syscall.Seteuid(65534))
	defer func() { require.NoError(t, syscall.Seteuid(0)) }()
	report := l.examine()
	unknown := map[string]string{}
	for _, f := range report.Findings {
		if f.State == doctor.Unknown {
			unknown[f.Check] = f.What + "; " + f.WayOut
		}
		assert.False(t, f.Fixable && f.Check == "cluster", "%+v", f)
	}
	for _, check := range []string{"kernel", "forwarding"} {
		assert.Contains(t, unknown[check], "run it as root")
	}
}

// TestBareMachine: before there is a cluster file or anything else of the fabric, each
// check says something, and what it could not look at.
func TestBareMachine(t *testing.T) {
	l := newLab(t, "")
	require.NoError(t, os.RemoveAll(filepath.Join(l.root, "etc/vmfabric")))
	require.NoError(t, os.RemoveAll(filepath.Join(l.root, "var/lib/vmfabric")))
	report := l.examine()
	states := map[string]doctor.State{}
	for _, f := range report.Findings {
		states[f.Check] = f.State
		assert.NotEqual(t, doctor.Wrong, f.State, "%+v", f)
	}
	for _, name := range doctor.Names() {
		assert.NotEmpty(t, states[name], name)
	}
	for _, f := range report.Findings {
		assert.True(t, f.Check != "cluster" || strings.Contains(f.WayOut, "vmfabric init"), "%+v", f)
	}
	for _, name := range []string{"cluster", "address", "reflectors", "nodes", "port", "registry"} {
		assert.Equal(t, doctor.Unknown, states[name], name)
	}
	assert.Equal(t, doctor.Good, states["forwarding"], "tried by the links to the Internet")
	assert.True(t, report.Healthy)
}

// TestNodeOfTheAgent: an agent that was given the node's name is that node's.
func TestNodeOfTheAgent(t *testing.T) {
	l := newLab(t, "")
	l.status(hooks.Reply{Status: &fabric.Status{Node: "node2"}})
	report := l.examine("address")
	assert.Equal(t, "node2", report.Node)
	require.NotEmpty(t, report.Findings)
	assert.Contains(t, report.Findings[0].What, "node node2 has the address 10.10.0.22 in the cluster file")
}

// TestEnds: it ends with its context, and says so.
func TestEnds(t *testing.T) {
	l := newLab(t, "")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := doctor.Examine(ctx, l.cfg)
	assert.ErrorIs(t, err, context.Canceled)
}

// TestReportIsJSON: programs find a line's parts.
func TestReportIsJSON(t *testing.T) {
	l := newLab(t, "")
	l.write("etc/sysctl.d/95-router.conf", "net.ipv4.ip_forward = 0\n")
	b, err := json.Marshal(l.examine("sysctl"))
	require.NoError(t, err)
	assert.Contains(t, string(b), `"healthy":false`)
	assert.Contains(t, string(b), `{"check":"sysctl","state":"wrong","what":"/etc/sysctl.d/95-router.conf sets`)
	assert.Contains(t, string(b), `"why":"a boot`)
	assert.Contains(t, string(b), `"way_out":"take the line out`)
}

// TestInstalledFile: what --fix installs is the package's file.
func TestInstalledFile(t *testing.T) {
	l := newLab(t, "")
	file := filepath.Join(l.root, "etc/sysctl.d/90-vmfabric.conf")
	require.NoError(t, os.RemoveAll(filepath.Dir(file)))
	l.sysctl("net/ipv4/ip_forward", "0")
	mended, err := l.examine("sysctl").Fix()
	require.NoError(t, err)
	assert.Len(t, mended, 1)
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, packaging.Settings, string(text))
	forward, err := exec.Command("sysctl", "-n", "net.ipv4.ip_forward").Output()
	require.NoError(t, err)
	assert.Equal(t, "1\n", string(forward), "it counts at once")
}
