package e2e

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/clusterfile"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/hypervisors"
	"github.com/vmfabric/vmfabric/testenv/lab/machine"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

var (
	machines = flag.String("machines", "", "boot machines with these `releases` of Debian, and follow README.md in them (make vmtest)")
	packages = flag.String("packages", "", "the `directory` with the deb packages, and in next/ those to upgrade to")
)

// realNode is the heading of the section of README.md that is followed.
const realNode = "On a real node"

// elsewhere has the beginnings of the commands that are for other machines, or the other way
// to do a thing, and who runs those.
var elsewhere = map[string]string{
	"make ":                       "packages are installed",
	"(umask 077; head ":           "init has made the key",
	"(umask 077; vmfabric render": "core1 and rr2 have what it prints; no BIRD is on the node",
	"vmfabric render ":            "core1 and rr2 have what it prints",
	"lxc ":                        "TestLifeOfAnInstance",
}

// commandsOfTheReadme gives the commands that README.md has for a node, in order, up to the
// first that begins with a text, and the others.
func commandsOfTheReadme(t testing.TB, last string) (until, after []string) {
	t.Helper()
	unused := map[string]bool{}
	for beginning := range elsewhere {
		unused[beginning] = true
	}
	for _, block := range labtest.Blocks(t, "../../README.md", realNode, "") {
		for line := range strings.Lines(block) {
			line, _, _ = strings.Cut(line, "   #")
			line, _, _ = strings.Cut(line, "  #")
			if line = strings.TrimSpace(line); line == "" {
				continue
			}
			typed := true
			for beginning := range elsewhere {
				if strings.HasPrefix(line, beginning) {
					typed, unused[beginning] = false, false
				}
			}
			switch {
			case typed && (len(until) == 0 || !strings.HasPrefix(until[len(until)-1], last)):
				until = append(until, line)
			case typed:
				after = append(after, line)
			}
		}
	}
	for beginning, is := range unused {
		assert.False(t, is, "README.md has no more %q", beginning)
	}
	require.NotEmpty(t, after, "no %s", last)
	return until, after
}

// TestCommandsOfTheReadme: a node is set up by eight commands at most.
func TestCommandsOfTheReadme(t *testing.T) {
	until, after := commandsOfTheReadme(t, "virsh start")
	assert.LessOrEqual(t, len(until)+1, 8, "with virsh edit: %q", until)
	for _, line := range append(until, after...) {
		assert.Regexp(t, `^(apt|vmfabric|systemctl|virsh) `, line)
	}
}

// TestRealNode boots a node and a reflector, each a Debian with systemd, and does on the node
// what README.md says, word by word: a guest of libvirt is to be announced, over a boot, too.
// Then it has happen what happens to a node that is in service.
func TestRealNode(t *testing.T) {
	if *machines == "" {
		t.Skip("by hand: make vmtest")
	}
	labtest.Need(t, "root", "bird")
	require.NoError(t, machine.Available(t.Context()))
	for release := range strings.FieldsFuncSeq(*machines, func(r rune) bool { return r == ',' }) {
		t.Run(release, func(t *testing.T) {
			n := bootRealNode(t, release)
			n.followTheReadme()
			n.reboots()
			n.reloads()
			n.standsStill()
			n.isUpgraded()
			n.isRemoved()
			n.tell()
		})
	}
}

// bootedNode is a node that is a machine of its own.
type bootedNode struct {
	*system
	node      *machine.Machine
	reflector *machine.Machine
	addresses [2]netip.Addr
	figures   []figure
}

// figure is a line of what was seen.
type figure struct{ what, is string }

func (n *bootedNode) note(what string, is any) {
	n.t.Logf("%s: %v", what, is)
	n.figures = append(n.figures, figure{what, fmt.Sprint(is)})
}

func (n *bootedNode) tell() {
	for _, f := range n.figures {
		fmt.Printf("| %s | %s |\n", f.what, f.is)
	}
}

// emulated bounds what takes minutes where all is emulated, and twice for a guest.
func emulated(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// bootRealNode starts the cluster of README.md: rr1 and node1 are machines, core1 and rr2
// hosts of the lab. rr1 runs; node1 has nothing yet.
func bootRealNode(t *testing.T, release string) *bootedNode {
	n := &bootedNode{system: &system{t: t, rr: map[string]router{}}, addresses: [2]netip.Addr{core.Underlay4(21), core.Underlay6(21)}}
	file := labtest.Blocks(t, "../../README.md", realNode, "yaml")[0]
	n.cluster = parseCluster(t, file)
	hosts := n.cluster
	hosts.Nodes, hosts.Reflectors = nil, hosts.Reflectors[1:]
	n.lab, n.top = labtest.Build(t, hosts)
	n.rr["rr2"] = n.startRouter("bird", n.top.Reflectors["rr2"])
	n.core = n.startRouter("bird", n.top.Core)
	image, err := machine.Debian(t.Context(), release)
	require.NoError(t, err)
	files := t.TempDir()
	n.fill(files, file)
	boot := func(name string, addresses ...netip.Addr) *machine.Machine {
		began := time.Now()
		m, err := machine.Boot(emulated(t), n.lab, machine.Options{Name: name, Image: image, Files: files, Addresses: addresses, Memory: 1024})
		require.NoError(t, err)
		n.note("boot of "+name, time.Since(began).Round(time.Second))
		t.Cleanup(func() {
			if t.Failed() {
				ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
				defer cancel()
				out, _, _, err := m.Do(ctx, "journalctl -b --no-pager -n 400 -t vmfabric -t systemd -t kernel -t libvirtd; ip addr; ip route; free")
				t.Log(name, err, out)
			}
		})
		return m
	}
	n.reflector = boot("rr1", core.Underlay4(11), core.Underlay6(11))
	n.startReflectorMachine()
	n.node = boot("node1", n.addresses[:]...)
	versions, err := n.node.Run(emulated(t), `uname -r; systemctl --version | sed 's/ (.*//;q'; dpkg-query -W -f '${Package} ${Version}\n' libvirt-daemon qemu-system-x86`)
	require.NoError(t, err)
	n.note("versions", strings.ReplaceAll(strings.TrimSpace(versions), "\n", ", "))
	return n
}

func parseCluster(t testing.TB, file string) fabric.Cluster {
	t.Helper()
	key := filepath.Join(t.TempDir(), "cluster.key")
	require.NoError(t, os.WriteFile(key, []byte("the key of no node, since none is here\n"), 0o600))
	c, err := clusterfile.Parse("README.md", []byte(strings.ReplaceAll(file, "/etc/vmfabric/cluster.key", key)))
	require.NoError(t, err)
	return c
}

// fill puts what the machines are to have into a directory: the packages, the cluster file
// of README.md, and its guest.
func (n *bootedNode) fill(dir, file string) {
	n.t.Helper()
	require.NoError(n.t, os.WriteFile(filepath.Join(dir, "cluster.yaml"), []byte(file), 0o600))
	require.NoError(n.t, os.Mkdir(filepath.Join(dir, "next"), 0o755))
	for _, from := range []string{"", "next"} {
		for _, name := range []string{"vmfabric-common", "vmfabric-reflector", "vmfabric"} {
			found, err := filepath.Glob(filepath.Join(*packages, from, name+"_*.deb"))
			require.NoError(n.t, err)
			require.Len(n.t, found, 1, "make vmtest builds %s in %s", name, filepath.Join(*packages, from))
			copyTo(n.t, found[0], filepath.Join(dir, from, filepath.Base(found[0])))
		}
	}
	image, err := hypervisors.GuestImage(n.t.Context())
	require.NoError(n.t, err)
	copyTo(n.t, image.Kernel, filepath.Join(dir, "vmlinuz"))
	copyTo(n.t, image.Initrd, filepath.Join(dir, "initrd"))
	require.NoError(n.t, os.WriteFile(filepath.Join(dir, "sea_gold.xml"), []byte(n.guest()), 0o600))
}

// copyTo copies a file.
func copyTo(t testing.TB, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(to, b, 0o644))
}

// guest describes the guest of README.md, with its metadata and its NIC as they are there,
// but that the guest finds its NIC by the MAC address.
func (n *bootedNode) guest() string {
	metadata, nic := domainOfTheReadme(n.t)
	metadata = strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(metadata), "<metadata>"), "</metadata>")
	const images = "/var/lib/libvirt/images/"
	text := hypervisors.DomainXML(hypervisors.Image{Kernel: images + "vmlinuz", Initrd: images + "initrd"}, hypervisors.DomainOptions{
		Name: "sea_gold", Gateway: n.cluster.Gateway, Metadata: metadata,
		NICs: []hypervisors.DomainNIC{tap(seaGold[0].Addr().String(), seaGold[1].Addr().String())},
	})
	whole := regexp.MustCompile(`(?s)<interface .*</interface>`)
	mac := regexp.MustCompile(`<mac .*/>`).FindString(text)
	require.NotEmpty(n.t, mac)
	return whole.ReplaceAllLiteralString(text, strings.Replace(nic, "<interface type='ethernet'>", "<interface type='ethernet'>"+mac, 1))
}

// startReflectorMachine has rr1 run, as docs/embedded-reflector.md says.
func (n *bootedNode) startReflectorMachine() {
	n.t.Helper()
	for _, line := range strings.Split(strings.TrimSpace(labtest.Blocks(n.t, "../../docs/embedded-reflector.md", "", "sh")[0]), "\n") {
		if strings.HasPrefix(line, "vmfabric status") {
			continue // not well before there is a node
		}
		_, err := n.reflector.Run(emulated(n.t), line)
		require.NoError(n.t, err)
	}
}

// followTheReadme types what README.md says, and nothing else, but that the guest's
// description is in a file.
func (n *bootedNode) followTheReadme() {
	n.t.Helper()
	until, after := commandsOfTheReadme(n.t, "virsh start")
	began := time.Now()
	var took time.Duration
	for _, line := range until {
		if strings.HasPrefix(line, "virsh start") {
			n.types("install -m 644 vmlinuz initrd /var/lib/libvirt/images; virsh define sea_gold.xml") // virsh edit
		}
		at := time.Now()
		n.types(line)
		took = time.Since(at)
		n.note("`"+line+"`", took.Round(time.Second/10))
	}
	n.coreHasVia(n.addresses, seaGold...)
	n.note("commands", len(until)+1)
	n.note("from the first command to the announcement", time.Since(began).Round(time.Second))
	n.reachesGuest()
	n.note("from the first command to the guest's first answer", time.Since(began).Round(time.Second))
	for _, line := range after {
		n.types(line)
	}
	n.status()
	_, err := n.reflector.Run(emulated(n.t), "vmfabric status --socket /run/vmfabric/reflector.sock")
	assert.NoError(n.t, err)
}

// types runs a command that must succeed, and logs what it prints.
func (n *bootedNode) types(line string) string {
	n.t.Helper()
	out, errs, code, err := n.node.Do(emulated(n.t), line)
	require.NoError(n.t, err)
	n.t.Logf("# %s\n%s%s", line, out, errs)
	assert.Zero(n.t, code, line)
	return strings.TrimSpace(out)
}

// reachesGuest waits for an answer of the guest in each family, from behind the core gateway.
func (n *bootedNode) reachesGuest() {
	n.t.Helper()
	for _, p := range seaGold {
		_, err := n.top.Client.Ping(emulated(n.t), p.Addr())
		require.NoError(n.t, err)
	}
}

// status waits until the node is well.
func (n *bootedNode) status() {
	n.t.Helper()
	require.NoError(n.t, n.node.Until(emulated(n.t), func() error {
		_, err := n.node.Run(emulated(n.t), "vmfabric status")
		return err
	}))
}

// reboots: after a boot all is as before, without anybody's doing.
func (n *bootedNode) reboots() {
	n.t.Helper()
	n.types("virsh autostart sea_gold")
	withdrawn := n.watchWithdrawals()
	began := time.Now()
	require.NoError(n.t, n.node.Reboot(emulated(n.t)))
	n.note("reboot", time.Since(began).Round(time.Second))
	assert.NotEmpty(n.t, withdrawn(), "the guest was announced while its node was down")
	n.coreHasVia(n.addresses, seaGold...)
	n.note("from the reboot to the announcement", time.Since(began).Round(time.Second))
	n.reachesGuest()
	n.note("from the reboot to the guest's first answer", time.Since(began).Round(time.Second))
	n.status()
	n.types("vmfabric list; vmfabric doctor")
}

// probed does something while the guest is probed from behind the core gateway, in each
// family, and notes what was lost. The routes must stay. Emulated twice, a guest answers some
// twenty packets a second when nothing else is done.
func (n *bootedNode) probed(what string, do func()) {
	n.t.Helper()
	withdrawn := n.watchWithdrawals()
	var probes []*core.Prober
	for _, p := range seaGold {
		probe, err := n.top.Client.Probe(p.Addr(), 500*time.Millisecond)
		require.NoError(n.t, err)
		probes = append(probes, probe)
	}
	answered(n.t, 5, probes...)
	began := time.Now()
	do()
	took := time.Since(began)
	answered(n.t, 5, probes...)
	assert.Empty(n.t, withdrawn(), "%s: a route was withdrawn", what)
	for i, p := range probes {
		r := p.Stop()
		n.note(fmt.Sprintf("%s, IPv%d", what, 4+2*i), fmt.Sprintf("%d of %d lost in %s, longest gap %s", r.Lost, r.Sent, took.Round(time.Second), r.LongestGap.Round(time.Second/10)))
		assert.Zero(n.t, r.Lost, what)
	}
}

// mainPid is the agent's process.
func (n *bootedNode) mainPid() string {
	return n.types("systemctl show -P MainPID vmfabric")
}

// reloads changes the cluster file: that of README.md with its second node is taken up, a bad one
// is not.
func (n *bootedNode) reloads() {
	n.t.Helper()
	pid := n.mainPid()
	n.probed("reload", func() {
		n.types("install -m 600 cluster.yaml /etc/vmfabric/cluster.yaml; systemctl reload vmfabric")
		require.NoError(n.t, n.node.Until(emulated(n.t), func() error {
			if out, _, _, err := n.node.Do(emulated(n.t), "vmfabric status"); err != nil || !strings.Contains(out, "node2") {
				return cmp.Or(err, errors.New("status does not miss node2: "+out))
			}
			return nil
		}))
		n.types("sed -i 's/^asn:/asm:/' /etc/vmfabric/cluster.yaml; systemctl reload vmfabric")
		require.NoError(n.t, n.node.Until(emulated(n.t), func() error {
			if out, _, _, err := n.node.Do(emulated(n.t), "vmfabric status"); err != nil || !strings.Contains(out, "asm: unknown key") {
				return cmp.Or(err, errors.New("status does not name the mistake: "+out))
			}
			return nil
		}))
		n.types("sed -i -e 's/^asm:/asn:/' -e '/node2/d' /etc/vmfabric/cluster.yaml; systemctl reload vmfabric")
		n.status()
	})
	assert.Equal(n.t, pid, n.mainPid())
}

// standsStill: systemd starts an agent anew that does nothing any more.
func (n *bootedNode) standsStill() {
	n.t.Helper()
	pid := n.mainPid()
	n.probed("agent that stands still", func() {
		began := time.Now()
		n.types("systemctl kill -s STOP vmfabric")
		require.NoError(n.t, n.node.Until(emulated(n.t), func() error {
			now, err := n.node.Run(emulated(n.t), "systemctl is-active vmfabric >/dev/null && systemctl show -P MainPID vmfabric")
			if err == nil && strings.TrimSpace(now) == pid {
				err = errors.New("it is the same")
			}
			return err
		}))
		n.note("from standstill to the new agent", time.Since(began).Round(time.Second/10))
		n.status()
	})
	n.types("systemctl show -p NRestarts vmfabric")
}

// isUpgraded installs the next packages under the running guest.
func (n *bootedNode) isUpgraded() {
	n.t.Helper()
	const version = "dpkg-query -W -f '${Version}' vmfabric"
	before := n.types(version)
	n.probed("upgrade", func() {
		n.types("apt install ./next/vmfabric-common_*.deb ./next/vmfabric_*.deb")
		n.status()
	})
	assert.NotEqual(n.t, before, n.types(version))
}

// isRemoved: the guest runs on without its agent, and what is left after a purge is named.
func (n *bootedNode) isRemoved() {
	n.t.Helper()
	const running = "pidof qemu-system-x86_64"
	qemu := n.types(running)
	n.types("apt remove -y vmfabric")
	assert.Equal(n.t, qemu, n.types(running))
	n.types("ping -c 1 -w 60 203.0.113.10; ping -c 1 -w 60 2001:db8:100::10; test -e /etc/vmfabric/cluster.yaml")
	began := time.Now()
	require.NoError(n.t, core.Until(emulated(n.t), func() error { // the time in which an agent may come again is over
		for _, p := range seaGold {
			if r, ok, err := n.top.Core.Route(p); err != nil || ok {
				return fmt.Errorf("core has %v %w", r, err)
			}
		}
		return nil
	}))
	n.note("from the removal to the withdrawal", time.Since(began).Round(time.Second))
	n.types("apt purge -y vmfabric vmfabric-common")
	assert.Equal(n.t, qemu, n.types(running))
	files := n.types(`find /etc /usr /var /run -path '*vmfabric*'`)
	assert.Empty(n.t, files, "after the purge")
	// A guest that runs keeps its port, and what guards it.
	const left = "ip -br link show group 147; ip route show proto 147; ip -6 route show proto 147; ip rule show | grep 147; nft list tables"
	for _, want := range []string{"sea_gold_net0 ", "203.0.113.10 dev sea_gold_net0", "2001:db8:100::10 dev sea_gold_net0", "table inet vmfabric"} {
		assert.Contains(n.t, n.types(left), want)
	}
	n.types("virsh destroy sea_gold")
	n.types(left)
}
