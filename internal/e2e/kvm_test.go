package e2e

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/hypervisors"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

var rootsOf = flag.String("roots", "", "root file systems whose libvirt and QEMU are those of nodes: node1=DIR,node2=DIR")

// rootOf returns the root file system of a node's libvirt; empty: the machine's.
func rootOf(t testing.TB, node string) string {
	for r := range strings.SplitSeq(*rootsOf, ",") {
		if of, dir, _ := strings.Cut(r, "="); of == node {
			require.DirExists(t, dir, "-roots %s", *rootsOf)
			return dir
		}
	}
	return ""
}

// hypervisor starts a libvirtd with the real hook on a node, and an agent that
// follows it.
func (s *system) hypervisor(node string) *hypervisors.Libvirt {
	s.t.Helper()
	labtest.Need(s.t, "qemu")
	lv, err := hypervisors.StartLibvirt(soon(s.t), s.top.Nodes[node], hypervisors.LibvirtOptions{Hook: hookProgram, Root: rootOf(s.t, node)})
	require.NoError(s.t, err)
	s.agents[node].follow("--libvirt", lv.Socket(), lv.RunDir())
	return lv
}

func tap(addresses ...string) hypervisors.DomainNIC {
	n := nic(addresses...)
	n.Kind = ""
	return hypervisors.DomainNIC{NIC: n}
}

func (s *system) domain(lv *hypervisors.Libvirt, name string, nics ...hypervisors.DomainNIC) *hypervisors.Domain {
	s.t.Helper()
	d, err := lv.Define(soon(s.t), hypervisors.DomainOptions{Name: name, NICs: nics, Gateway: s.cluster.Gateway})
	require.NoError(s.t, err)
	return d
}

var seaGold = []netip.Prefix{netip.MustParsePrefix("203.0.113.10/32"), netip.MustParsePrefix("2001:db8:100::10/128")}

// TestGuestReachesTheInternet is the main job: virsh start and nothing else.
func TestGuestReachesTheInternet(t *testing.T) {
	t.Parallel()
	for _, gateway := range []string{"bird", "frr"} {
		t.Run("core "+gateway, func(t *testing.T) {
			t.Parallel()
			s := start(t, options{core: gateway, noAgent: true})
			lv := s.hypervisor("node1")
			node := s.top.Nodes["node1"]
			d := s.domain(lv, "sea_gold", tap("203.0.113.10", "2001:db8:100::10"))
			require.NoError(t, d.Start(soon(t)))

			s.checkPort(node, "sea_gold_net0")
			for name := range s.rr {
				for i, p := range seaGold {
					r := s.reflected(name, p)
					assert.Equal(t, "IGP", r.Origin)
					assert.Equal(t, []netip.Addr{node.Addr4(), node.Addr6()}[i], r.NextHop)
					assert.Equal(t, s.cluster.Communities, r.Communities)
				}
			}
			s.coreHas(node, seaGold...)
			require.NoError(t, d.WaitReady(soon(t)))
			s.reaches(s.top.Client, "203.0.113.10", "2001:db8:100::10")
			for _, from := range []string{"203.0.113.10", "2001:db8:100::10"} {
				to := core.ClientAddr4
				if strings.Contains(from, ":") {
					to = core.ClientAddr6
				}
				out, err := hypervisors.GuestRun(soon(t), s.top.Client, netip.MustParseAddr(from), "ping -c1 -W10 "+to.String())
				require.NoError(t, err)
				assert.Contains(t, out, "1 packets received")
			}
			assert.Equal(t, "live", decode[[]map[string]any](t, first(s.agents["node1"].cli("list", "--json")))[0]["state"])

			require.NoError(t, d.Shutdown(soon(t)))
			s.leavesNothing(node, seaGold...)
			if gateway == "frr" {
				return
			}
			s.endings(lv, d)
		})
	}
}

func first(out, _ string, _ int) string { return out }

// checkPort looks at everything that makes a port.
func (s *system) checkPort(node *core.Host, name string) {
	t := s.t
	t.Helper()
	l, err := node.Link(name)
	require.NoError(t, err)
	assert.Equal(t, fabric.DefaultMAC.String(), l.Attrs().HardwareAddr.String())
	assert.True(t, strings.HasPrefix(l.Attrs().Alias, "vmfabric:lab:"), l.Attrs().Alias)
	assert.EqualValues(t, fabric.LinkGroup, l.Attrs().Group)
	addrs, err := node.Netlink().AddrList(l, 0)
	require.NoError(t, err)
	var got []string
	for _, a := range addrs {
		got = append(got, a.IPNet.String())
		assert.Zero(t, a.Flags&0x40, "%s is tentative", a.IPNet)
	}
	assert.ElementsMatch(t, []string{"169.254.1.1/32", "fe80::1/64"}, got)
	for key, want := range map[string]string{
		"net.ipv4.conf." + name + ".rp_filter": "1", "net.ipv4.conf." + name + ".forwarding": "1",
		"net.ipv4.conf." + name + ".accept_redirects": "0", "net.ipv6.conf." + name + ".accept_ra": "0",
		"net.ipv6.conf." + name + ".forwarding": "1", "net.ipv6.conf." + name + ".accept_redirects": "0",
	} {
		v, err := node.Sysctl(key)
		require.NoError(t, err)
		assert.Equal(t, want, v, key)
	}
}

// endings ends the guest in each way, and looks for what is left.
func (s *system) endings(lv *hypervisors.Libvirt, d *hypervisors.Domain) {
	node := s.top.Nodes["node1"]
	for what, end := range map[string]func() error{
		"destroy": func() error { return d.Destroy(soon(s.t)) },
		"kill -9 of QEMU": func() error {
			pid, err := d.Pid()
			if err != nil {
				return err
			}
			return syscall.Kill(pid, syscall.SIGKILL)
		},
	} {
		require.NoError(s.t, d.Start(soon(s.t)), what)
		s.coreHas(node, seaGold...)
		require.NoError(s.t, end(), what)
		s.leavesNothing(node, seaGold...)
		s.withdrawnFirst(s.agents["node1"].Log())
	}
	_, err := lv.Virsh(soon(s.t), "start", "sea_gold", "--nosuchoption")
	require.Error(s.t, err)
}

// withdrawnFirst checks the order of the last way down in an agent's log.
func (s *system) withdrawnFirst(log string) {
	s.t.Helper()
	withdrawn, unwired := strings.LastIndex(log, "msg=withdrawn"), strings.LastIndex(log, "msg=unwired")
	require.Positive(s.t, withdrawn)
	require.Greater(s.t, unwired, withdrawn)
}

func TestFailedStartLeavesNothing(t *testing.T) {
	t.Parallel()
	s := start(t, options{noAgent: true})
	lv := s.hypervisor("node1")
	node := s.top.Nodes["node1"]
	image, err := hypervisors.GuestImage(soon(t))
	require.NoError(t, err)
	o := hypervisors.DomainOptions{Name: "sea_gold", NICs: []hypervisors.DomainNIC{tap("203.0.113.10", "2001:db8:100::10")}, Gateway: s.cluster.Gateway}

	// QEMU itself cannot start: the kernel is no file of this machine.
	bad := strings.Replace(hypervisors.DomainXML(image, o), image.Kernel, "/nonexistent/vmlinuz", 1)
	file := filepath.Join(s.lab.Dir(), "bad.xml")
	require.NoError(t, os.WriteFile(file, []byte(bad), 0o600))
	_, err = lv.Virsh(soon(t), "define", file)
	require.NoError(t, err)
	_, err = lv.Virsh(soon(t), "start", o.Name)
	require.ErrorContains(t, err, "/nonexistent/vmlinuz")
	s.leavesNothing(node, seaGold...)

	// The fabric refuses: each with its reason in virsh's own error.
	s.agents["node1"].ask(hooks.Live, veth("web", "203.0.113.20"))
	clash := tap("203.0.113.77")
	clash.MAC = fabric.DefaultMAC
	for _, tc := range []struct {
		name     string
		nics     []hypervisors.DomainNIC
		metadata string
		reason   string
	}{
		{name: "clash", nics: []hypervisors.DomainNIC{clash}, reason: "MAC address 02:00:5e:00:01:01: it is the gateway's"},
		{name: "outside", nics: []hypervisors.DomainNIC{tap("192.0.2.77")}, reason: "outside the pools"},
		{name: "held", nics: []hypervisors.DomainNIC{tap("203.0.113.20")}, reason: `held by VM "web"`},
		{name: "gateway", nics: []hypervisors.DomainNIC{tap("169.254.1.1")}, reason: "gateway"},
		{name: "twice", nics: []hypervisors.DomainNIC{tap("203.0.113.10"), tap("203.0.113.10")}, reason: "given twice"},
		{
			name: "typo", nics: []hypervisors.DomainNIC{tap("203.0.113.10")}, reason: "adress",
			metadata: `<fabric:vm xmlns:fabric="urn:vmfabric:domain:1"><fabric:nic><fabric:adress>203.0.113.10</fabric:adress></fabric:nic></fabric:vm>`,
		},
		{
			name: "newer", nics: []hypervisors.DomainNIC{tap("203.0.113.10")}, reason: "urn:vmfabric:domain:1",
			metadata: `<fabric:vm xmlns:fabric="urn:vmfabric:domain:9"><fabric:nic/></fabric:vm>`,
		},
	} {
		d, err := lv.Define(soon(t), hypervisors.DomainOptions{Name: tc.name, NICs: tc.nics, Gateway: s.cluster.Gateway, Metadata: tc.metadata})
		require.NoError(t, err, tc.name)
		err = d.Start(soon(t))
		require.ErrorContains(t, err, tc.reason, tc.name)
	}
	assert.ElementsMatch(t, []string{"web"}, s.guestsOf("node1"), "the other guest is not disturbed")

	// A foreign link stands where the port is to be.
	require.NoError(t, s.lab.Cable(node, "sea_gold_net0", s.top.Client, "foreign0"))
	d, err := lv.Define(soon(t), o)
	require.NoError(t, err)
	require.ErrorContains(t, d.Start(soon(t)), "no mark of vmfabric")
	require.True(t, node.HasLink("sea_gold_net0"))
	require.NoError(t, node.DeleteLink("sea_gold_net0"))
	require.NoError(t, d.Start(soon(t)))
	s.coreHas(node, seaGold...)
}

func (s *system) guestsOf(node string) []string {
	var names []string
	for _, p := range s.agents[node].ask(hooks.List, fabric.VM{}).Ports {
		names = append(names, p.VM)
	}
	return names
}

func TestDomainsOfEveryShape(t *testing.T) {
	t.Parallel()
	s := start(t, options{noAgent: true})
	lv := s.hypervisor("node1")
	node := s.top.Nodes["node1"]

	managed := tap("203.0.113.30", "2001:db8:100::30")
	managed.Managed = true
	queues := tap("203.0.113.31", "203.0.113.32", "2001:db8:100::31", "2001:db8:100::32", "198.51.100.0/29", "2001:db8:200::/64")
	queues.Queues = 2
	var domains []*hypervisors.Domain
	domains = append(domains,
		s.domain(lv, "managed", managed),
		s.domain(lv, "several", queues, tap("203.0.113.33"), tap("2001:db8:100::34")),
	)
	plain, err := lv.Define(soon(t), hypervisors.DomainOptions{Name: "not_ours", Metadata: " ", NICs: []hypervisors.DomainNIC{managedTarget("plain0")}})
	require.NoError(t, err)
	for _, d := range append(domains, plain) {
		require.NoError(t, d.Start(soon(t)))
	}
	for _, d := range append(domains, plain) {
		require.NoError(t, d.WaitReady(soon(t)))
	}
	for _, p := range []string{"managed_net0", "several_net0", "several_net1", "several_net2"} {
		s.checkPort(node, p)
	}
	s.reaches(s.top.Client, "203.0.113.30", "2001:db8:100::30", "203.0.113.31", "203.0.113.32", "2001:db8:100::31", "2001:db8:100::32",
		"203.0.113.33", "2001:db8:100::34", "198.51.100.3", "2001:db8:200::3")
	l, err := node.Link("plain0")
	require.NoError(t, err)
	assert.Empty(t, l.Attrs().Alias, "a domain without our metadata is not touched")
	assert.ElementsMatch(t, []string{"managed", "several", "several", "several"}, s.guestsOf("node1"))
	st := s.agents["node1"].status()
	assert.True(t, st.Healthy, st.Problems)
	require.Len(t, st.Sources, 1)
	assert.True(t, st.Sources[0].Connected)
	for _, d := range append(domains, plain) {
		require.NoError(t, d.Destroy(soon(t)))
	}
	s.leavesNothing(node)
	out, errs, code := s.agents["node1"].cli("guest-config", "several", "--format", "networkd")
	require.Zero(t, code, "a guest that does not run: %s", errs)
	assert.Contains(t, out, "2001:db8:100::34/128")
	_, errs, code = s.agents["node1"].cli("guest-config", "not_ours")
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "guest not_ours: no hypervisor of this node has one of the fabric")
}

func managedTarget(dev string) hypervisors.DomainNIC {
	n := tap("192.0.2.200")
	n.Managed, n.Target = true, dev
	return n
}

// TestAgentAndLibvirtComeAndGo restarts everything around running guests.
func TestAgentAndLibvirtComeAndGo(t *testing.T) {
	t.Parallel()
	s := start(t, options{noAgent: true})
	lv := s.hypervisor("node1")
	a, node := s.agents["node1"], s.top.Nodes["node1"]
	stays := s.domain(lv, "stays", tap("203.0.113.10", "2001:db8:100::10"))
	goes := s.domain(lv, "goes", tap("203.0.113.11", "2001:db8:100::11"))
	comes := s.domain(lv, "comes", tap("203.0.113.12", "2001:db8:100::12"))
	require.NoError(t, stays.Start(soon(t)))
	require.NoError(t, goes.Start(soon(t)))
	require.NoError(t, stays.WaitReady(soon(t)))
	s.reaches(s.top.Client, "203.0.113.10", "2001:db8:100::10")
	watch := s.watchGuest(node, "stays_net0")
	probe, err := s.top.Client.Probe(netip.MustParseAddr("203.0.113.10"), 10*time.Millisecond)
	require.NoError(t, err)

	// Without an agent, a start is refused soon, and says what to do.
	require.NoError(t, a.Kill())
	began := time.Now()
	err = comes.Start(soon(t))
	require.ErrorContains(t, err, "start it: systemctl start vmfabric")
	assert.Less(t, time.Since(began), patience/3)
	// What ends meanwhile is put right by the agent's return.
	require.NoError(t, goes.Destroy(soon(t)))
	a.start()
	s.coreHas(node, seaGold...)
	s.nobodyHas(netip.MustParsePrefix("203.0.113.11/32"), netip.MustParsePrefix("2001:db8:100::11/128"))
	s.eventually("the port of the guest that ended is removed", func() error {
		if node.HasLink("goes_net0") {
			return fmt.Errorf("goes_net0 is there; %s", a.Log())
		}
		return nil
	})

	// libvirtd restarts: reconnect must not harm, and the agent follows anew.
	require.NoError(t, lv.Restart(soon(t)))
	s.eventually("the agent is connected to libvirt", func() error {
		if st := a.status(); !st.Healthy || !st.Sources[0].Connected || st.Sources[0].Guests != 1 {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	require.NoError(t, comes.Start(soon(t)))
	s.coreHas(node, netip.MustParsePrefix("203.0.113.12/32"))

	// The agent is away while libvirtd is, and a guest dies.
	pid, err := comes.Pid()
	require.NoError(t, err)
	require.NoError(t, lv.Kill())
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	s.nobodyHas(netip.MustParsePrefix("203.0.113.12/32"))
	require.NoError(t, a.Stop())
	require.NoError(t, lv.Start(soon(t)))
	a.start()
	s.eventually("the port of the guest that died is removed", func() error {
		if node.HasLink("comes_net0") {
			return fmt.Errorf("comes_net0 is there; %s", a.Log())
		}
		return nil
	})
	// The state directory is lost, while a guest runs.
	require.NoError(t, a.Kill())
	require.NoError(t, os.RemoveAll(filepath.Join(node.Dir(), "state")))
	a.start()
	s.coreHas(node, seaGold...)

	watch.lostNothing(map[netip.Addr]core.ProbeResult{netip.MustParseAddr("203.0.113.10"): probe.Stop()})
	state, err := stays.State(soon(t))
	require.NoError(t, err)
	assert.Equal(t, "running", state)
}

// TestHangingLibvirt: a libvirtd that is there and says nothing is a problem
// that status shows, and no reason to touch anything.
func TestHangingLibvirt(t *testing.T) {
	t.Parallel()
	s := start(t, options{noAgent: true})
	lv := s.hypervisor("node1")
	a, node := s.agents["node1"], s.top.Nodes["node1"]
	d := s.domain(lv, "sea_gold", tap("203.0.113.10", "2001:db8:100::10"))
	require.NoError(t, d.Start(soon(t)))
	s.coreHas(node, seaGold...)
	require.NoError(t, lv.Daemon().Signal(syscall.SIGSTOP))
	s.eventually("the silence is told", func() error {
		if all := strings.Join(a.status().Problems, "\n"); !strings.Contains(all, "libvirt") {
			return fmt.Errorf("problems: %q", all)
		}
		return nil
	})
	a.ask(hooks.Live, veth("web", "203.0.113.20"))
	s.coreHas(node, append(seaGold, netip.MustParsePrefix("203.0.113.20/32"))...)
	require.NoError(t, lv.Daemon().Signal(syscall.SIGCONT))
	s.eventually("all is well again", func() error {
		if st := a.status(); !st.Healthy {
			return fmt.Errorf("%v", st.Problems)
		}
		return nil
	})
	require.NoError(t, d.Destroy(soon(t)))
	s.nobodyHas(seaGold...)
}
