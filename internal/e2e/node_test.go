package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/labtest"
	"golang.org/x/sys/unix"
)

// TestGuestsReachEachOtherByRoutingOnly has two guests on one node and one on
// another, and listens on every port for frames of the others.
func TestGuestsReachEachOtherByRoutingOnly(t *testing.T) {
	t.Parallel()
	s := start(t, options{nodes: 2})
	guests := map[string]*core.Guest{
		"one":   s.run("node1", veth("one", "203.0.113.10", "2001:db8:100::10")),
		"two":   s.run("node1", veth("two", "203.0.113.11", "2001:db8:100::11")),
		"three": s.run("node2", veth("three", "203.0.113.12", "2001:db8:100::12")),
	}
	addresses := map[string][]string{
		"one": {"203.0.113.10", "2001:db8:100::10"}, "two": {"203.0.113.11", "2001:db8:100::11"}, "three": {"203.0.113.12", "2001:db8:100::12"},
	}
	// The third is told what only the other two say to each other.
	sniffers := map[string]*core.Sniffer{}
	for name, g := range guests {
		sn, err := g.Sniff("eth0", nil)
		require.NoError(t, err)
		sniffers[name] = sn
	}
	for from, g := range guests {
		for to, as := range addresses {
			if from != to {
				s.reaches(g.Host, as...)
			}
		}
	}
	for name, sn := range sniffers {
		mac := guests[name].MAC(0)
		for _, f := range sn.Frames() {
			src, dst := f.MACs()
			assert.True(t, src.String() == mac.String() || src.String() == fabric.DefaultMAC.String(),
				"%s sees a frame of %s", name, src)
			assert.False(t, f.Outgoing && dst.String() != fabric.DefaultMAC.String() && dst[0]&1 == 0,
				"%s speaks to %s past its gateway", name, dst)
			if from, to := f.Addrs(); from.IsGlobalUnicast() && to.IsGlobalUnicast() {
				assert.True(t, slices.Contains(addresses[name], from.String()) || slices.Contains(addresses[name], to.String()),
					"%s sees %s to %s", name, from, to)
			}
		}
		require.NotEmpty(t, sn.Frames())
		require.NoError(t, sn.Close())
	}
}

func TestNICsOfEveryShape(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	for _, vm := range []fabric.VM{
		veth("v4only", "203.0.113.20"),
		veth("v6only", "2001:db8:100::20"),
		veth("several", "203.0.113.21", "203.0.113.22", "2001:db8:100::21", "2001:db8:100::22"),
		veth("router", "203.0.113.23", "2001:db8:100::23", "198.51.100.0/29", "2001:db8:200::/64"),
		{Name: "two_nics", NICs: []fabric.NIC{nic("203.0.113.24", "2001:db8:100::24"), nic("203.0.113.25", "2001:db8:100::25")}},
		veth("имя с пробелом", "203.0.113.26", "2001:db8:100::26"),
		veth(strings.Repeat("long-name-", 6)+"end", "203.0.113.27", "2001:db8:100::27"),
	} {
		s.agents["node1"].ask(hooks.Wire, vm)
		inLab := vm
		if strings.ContainsAny(vm.Name, " ") {
			continue // not the name of a host; its port is looked at below
		}
		g, err := s.lab.AddGuest(s.top.Nodes["node1"], inLab, s.cluster.Gateway)
		require.NoError(t, err, vm.Name)
		s.agents["node1"].ask(hooks.Live, vm)
		for _, p := range vm.Prefixes() {
			a := p.Addr()
			if !p.IsSingleIP() {
				a = a.Next()
			}
			s.reaches(s.top.Client, a.String())
			s.coreHas(s.top.Nodes["node1"], p)
		}
		for n, link := range vm.NICs {
			s.checkPort(s.top.Nodes["node1"], fabric.PortName(vm.Name, n))
			to := core.ClientAddr4
			if link.Addresses[0].Is6() {
				to = core.ClientAddr6
			}
			_, err := g.PingFrom(soon(t), link.Addresses[0], to)
			require.NoError(t, err, vm.Name)
		}
		s.agents["node1"].ask(hooks.Remove, vm)
		s.nobodyHas(vm.Prefixes()...)
	}
	name := "имя с пробелом"
	l, err := s.top.Nodes["node1"].Link(fabric.PortName(name, 0))
	require.NoError(t, err)
	assert.Equal(t, "vmfabric:lab:"+name+":0", l.Attrs().Alias)
	assert.Contains(t, l.Attrs().AltNames, name+"_net0")
	s.agents["node1"].ask(hooks.Remove, fabric.VM{Name: name})
	s.leavesNothing(s.top.Nodes["node1"])
}

// answered waits until each prober has so many more answers.
func answered(t testing.TB, more int, probes ...*core.Prober) {
	t.Helper()
	for _, p := range probes {
		had := p.Received()
		require.Eventually(t, func() bool { return p.Received() >= had+more }, time.Minute, 5*time.Millisecond)
	}
}

// TestRestartsLoseNothing ends the agent in both ways under a probe of 1,000
// packets a second, and watches the core gateway's routes. The guest asks for its
// addresses all the time.
func TestRestartsLoseNothing(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	vm := veth("web", "203.0.113.10", "2001:db8:100::10")
	asker := s.asks(s.run("node1", vm), vm)
	s.coreHas(s.top.Nodes["node1"], vm.Prefixes()...)
	s.reaches(s.top.Client, "203.0.113.10", "2001:db8:100::10")
	a := s.agents["node1"]
	withdrawn := s.watchWithdrawals()
	var probes []*core.Prober
	for _, address := range vm.NICs[0].Addresses {
		p, err := s.top.Client.Probe(address, time.Millisecond)
		require.NoError(t, err)
		probes = append(probes, p)
	}
	// Of the agent that runs then, not of the first.
	for _, stop := range []func() error{func() error { return a.Stop() }, func() error { return a.Kill() }} {
		answered(t, 300, probes...)
		a.restart(stop)
		a.established()
		answered(t, 300, probes...)
	}
	// Once more, and again as soon as the sessions are up: reflectors that had
	// not heard everything by then would drop it (RFC 4724, 4.2).
	for range 2 {
		a.restart(a.Kill)
		a.established()
	}
	answered(t, 300, probes...)
	for _, p := range probes {
		r := p.Stop()
		assert.Zero(t, r.Lost, "%+v", r)
		assert.Greater(t, r.Sent, 500)
	}
	assert.Empty(t, withdrawn(), "the core gateway lost a route")
	t.Logf("longest time in which the guest had no answer to a request: %v", asker.answeredAlike())
	assert.NotContains(t, a.Log(), "DATA RACE")
	entries := a.ask(hooks.List, fabric.VM{}).Ports
	require.Len(t, entries, 1)
	assert.Equal(t, fabric.Live, entries[0].State)
	// A guest that goes just after a restart is withdrawn, not forgotten.
	brief := veth("brief", "203.0.113.12", "2001:db8:100::12")
	s.run("node1", brief)
	s.coreHas(s.top.Nodes["node1"], brief.Prefixes()...)
	a.restart(a.Kill)
	a.established()
	a.ask(hooks.Remove, brief)
	s.nobodyHas(brief.Prefixes()...)
}

// watchWithdrawals follows the core gateway's routes and gives those to guests
// that were deleted.
func (s *system) watchWithdrawals() func() []string {
	s.t.Helper()
	updates, done := make(chan netlink.RouteUpdate, 1024), make(chan struct{})
	require.NoError(s.t, netlink.RouteSubscribeAt(s.top.Core.NsHandle(), updates, done))
	var mu sync.Mutex
	var gone []string
	go func() {
		for u := range updates {
			if u.Type == unix.RTM_DELROUTE && u.Table == unix.RT_TABLE_MAIN && u.Dst != nil {
				mu.Lock()
				gone = append(gone, u.Dst.String())
				mu.Unlock()
			}
		}
	}()
	s.t.Cleanup(func() { close(done) })
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(gone)
	}
}

// TestBrokenPortsAreRepaired breaks what can be broken from outside.
func TestBrokenPortsAreRepaired(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	vm := veth("web", "203.0.113.10", "2001:db8:100::10", "198.51.100.0/29", "2001:db8:200::/64")
	s.run("node1", vm)
	node := s.top.Nodes["node1"]
	nl := node.Netlink()
	foreign := netip.MustParsePrefix("192.0.2.128/25")
	require.NoError(t, node.AddRoute(foreign, core.CoreAddr4, "eth0"))
	l, err := node.Link("web_net0")
	require.NoError(t, err)
	del := func(p string) func() error {
		return func() error { return node.DeleteRoute(netip.MustParsePrefix(p)) }
	}
	for what, damage := range map[string]func() error{
		"down":      func() error { return node.SetDown("web_net0") },
		"MAC":       func() error { return nl.LinkSetHardwareAddr(l, []byte{2, 0, 0, 0, 0, 9}) },
		"mark":      func() error { return nl.LinkSetAlias(l, "") },
		"group":     func() error { return nl.LinkSetGroup(l, 0) },
		"route 4":   del("203.0.113.10/32"),
		"route 6":   del("2001:db8:100::10/128"),
		"prefix 4":  del("198.51.100.0/29"),
		"prefix 6":  del("2001:db8:200::/64"),
		"gateway 4": func() error { return s.delAddress(node, l, "169.254.1.1") },
		"gateway 6": func() error { return s.delAddress(node, l, "fe80::1") },
		"rp_filter": func() error { return node.SetSysctls(map[string]string{"net.ipv4.conf.web_net0.rp_filter": "0"}) },
		"accept_ra": func() error { return node.SetSysctls(map[string]string{"net.ipv6.conf.web_net0.accept_ra": "2"}) },
		"redirects": func() error {
			return node.SetSysctls(map[string]string{"net.ipv4.conf.web_net0.accept_redirects": "1"})
		},
		"forwarding": func() error { return node.SetSysctls(map[string]string{"net.ipv6.conf.all.forwarding": "0"}) },
		"filter":     func() error { _, err := node.Run(soon(t), "nft", "flush", "ruleset"); return err },
	} {
		require.NoError(t, damage(), what)
		began := time.Now()
		s.eventually(what, func() error { return s.whole(node, vm) })
		took := time.Since(began)
		t.Logf("%-10s repaired in %v", what, took.Round(time.Millisecond))
		assert.Less(t, took, 10*time.Second, "a second on a quiet machine")
		s.reaches(s.top.Client, "203.0.113.10", "2001:db8:100::10", "198.51.100.2", "2001:db8:200::2")
	}
	_, ok, err := node.Route(foreign)
	require.NoError(t, err)
	assert.True(t, ok, "a route that is not ours stays")
	assert.True(t, s.agents["node1"].status().Healthy)
}

func (s *system) delAddress(node *core.Host, l netlink.Link, address string) error {
	all, err := node.Netlink().AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, a := range all {
		if a.IP.String() == address {
			return node.Netlink().AddrDel(l, &a)
		}
	}
	return fmt.Errorf("no address %s", address)
}

// whole tells what of a port is missing.
func (s *system) whole(node *core.Host, vm fabric.VM) error {
	l, err := node.Link("web_net0")
	if err != nil {
		return err
	}
	at := l.Attrs()
	if at.RawFlags&unix.IFF_UP == 0 || at.HardwareAddr.String() != fabric.DefaultMAC.String() || at.Group != fabric.LinkGroup || at.Alias != "vmfabric:lab:web:0" {
		return fmt.Errorf("link %+v", at)
	}
	addrs, err := node.Netlink().AddrList(l, netlink.FAMILY_ALL)
	if err != nil || len(addrs) != 2 {
		return fmt.Errorf("addresses %v %w", addrs, err)
	}
	for _, p := range vm.Prefixes() {
		if r, ok, err := node.Route(p); err != nil || !ok || r.Protocol != fabric.Protocol {
			return fmt.Errorf("route %s: %v %w", p, r, err)
		}
	}
	for key, want := range map[string]string{
		"net.ipv4.conf.web_net0.rp_filter": "1", "net.ipv6.conf.web_net0.accept_ra": "0",
		"net.ipv4.conf.web_net0.accept_redirects": "0", "net.ipv6.conf.all.forwarding": "1",
	} {
		if v, err := node.Sysctl(key); err != nil || v != want {
			return fmt.Errorf("%s is %s %w", key, v, err)
		}
	}
	if _, err := node.Run(soon(s.t), "nft", "list", "chain", "inet", "vmfabric", "sources"); err != nil {
		return err
	}
	return nil
}

// withPassword puts a password on all sessions, and secured TTL security too.
func withPassword(c *fabric.Cluster) {
	for i := range c.Reflectors {
		c.Reflectors[i].Password = "s3cret"
	}
}

func secured(c *fabric.Cluster) {
	withPassword(c)
	for i := range c.Reflectors {
		c.Reflectors[i].GTSM = true
	}
}

func TestSecuredSessions(t *testing.T) {
	t.Parallel()
	s := start(t, options{change: secured})
	vm := veth("web", "203.0.113.10", "2001:db8:100::10")
	s.run("node1", vm)
	s.coreHas(s.top.Nodes["node1"], vm.Prefixes()...)
	s.reaches(s.top.Client, "203.0.113.10", "2001:db8:100::10")
}

// TestReflectorsComeLate starts the reflectors after the guests, and takes
// them away one after the other.
func TestReflectorsComeLate(t *testing.T) {
	t.Parallel()
	s := start(t, options{noRR: true})
	a := s.agents["node1"]
	vm := veth("web", "203.0.113.10", "2001:db8:100::10")
	s.run("node1", vm)
	out, _, code := a.cli("status")
	assert.Equal(t, 1, code, "degraded")
	assert.Contains(t, out, "session with rr1 (10.10.0.11)")
	out, _, code = a.cli("why", "203.0.113.10")
	assert.Equal(t, 1, code)
	assert.Contains(t, out, "MISSING reflector rr1")
	s.startReflectors()
	a.established()
	s.coreHas(s.top.Nodes["node1"], vm.Prefixes()...)
	out, _, code = a.cli("status")
	assert.Zero(t, code, out)

	withdrawn := s.watchWithdrawals()
	p, err := s.top.Client.Probe(netip.MustParseAddr("203.0.113.10"), time.Millisecond)
	require.NoError(t, err)
	answered(t, 200, p)
	require.NoError(t, s.rr["rr1"].Kill())
	time.Sleep(time.Second)
	r := p.Stop()
	assert.Zero(t, r.Lost, "%+v", r)
	assert.Empty(t, withdrawn())
}

func TestAgentRefusesToStart(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	a, node := s.agents["node1"], s.top.Nodes["node1"]
	_, errs, code := runIn(t, node, program, a.args...)
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "another agent answers on "+a.socket)
	assert.Equal(t, 1, strings.Count(errs, "\n"), errs)

	args := slices.Clone(a.args)
	args[slices.Index(args, "--socket")+1] += "2"
	_, errs, code = runIn(t, node, program, args...)
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, ": another agent runs with it; stop that one")
	assert.Equal(t, 1, strings.Count(errs, "\n"), errs)
	args[slices.Index(args, "--state")+1] += "2"
	_, errs, code = runIn(t, node, "/usr/bin/setpriv", append([]string{"--bounding-set", "-net_admin", "--inh-caps", "-net_admin", program}, args...)...)
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "CAP_NET_ADMIN")

	args[slices.Index(args, "--node")+1] = "node9"
	_, errs, code = runIn(t, node, program, args...)
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, `node "node9" is not in cluster lab (it has node1)`)
	_, errs, code = runIn(t, node, program, "agent", "--nonsense")
	assert.Equal(t, 2, code)
	assert.Contains(t, errs, "unknown flag")
}

// TestDamagedState: what cannot be read removes nothing, and running guests
// keep their routes.
func TestDamagedState(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	a, node := s.agents["node1"], s.top.Nodes["node1"]
	vms := []fabric.VM{
		veth("whole", "203.0.113.10", "2001:db8:100::10"), veth("torn", "203.0.113.11", "2001:db8:100::11"),
		veth("newer", "203.0.113.12", "2001:db8:100::12"), veth("lost", "203.0.113.13", "2001:db8:100::13"),
	}
	for _, vm := range vms {
		s.run("node1", vm)
		s.coreHas(node, vm.Prefixes()...)
	}
	file := func(vm string) string { return filepath.Join(node.Dir(), "state", "guests", vm+".json") }
	for _, vm := range vms {
		s.eventually("the state is in its place", func() error {
			if _, err := os.Stat(file(vm.Name) + ".new"); err == nil {
				return errors.New("its last change is not")
			}
			_, err := os.Stat(file(vm.Name))
			return err
		})
	}
	withdrawn := s.watchWithdrawals()
	require.NoError(t, a.Kill())
	require.NoError(t, os.Truncate(file("torn"), 20))
	text, err := os.ReadFile(file("newer"))
	require.NoError(t, err)
	future := strings.Replace(string(text), `"format":1`, `"format":9`, 1)
	if future == string(text) {
		future = strings.Replace(string(text), `"format": 1`, `"format": 9`, 1)
	}
	require.NotEqual(t, string(text), future, "the state file has a format: %s", text)
	require.NoError(t, os.WriteFile(file("newer"), []byte(future), 0o600))
	require.NoError(t, os.Remove(file("lost")))
	a.start()
	a.established()

	for _, vm := range vms {
		s.reaches(s.top.Client, vm.NICs[0].Addresses[0].String(), vm.NICs[0].Addresses[1].String())
		s.coreHas(node, vm.Prefixes()...)
	}
	assert.Empty(t, withdrawn())
	st := a.status()
	assert.False(t, st.Healthy)
	all := strings.Join(st.Problems, "\n")
	for _, words := range []string{"torn", "newer", "lost", "nothing is removed"} {
		assert.Contains(t, all, words)
	}
	for _, p := range st.Problems {
		assert.NotContains(t, p, "\n")
	}
	kept, err := os.ReadFile(file("newer"))
	require.NoError(t, err)
	assert.Equal(t, future, string(kept), "what a newer agent wrote is not overwritten")
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	a := s.agents["node1"]
	out, errs, code := a.cli("attach", "web", "--address", "203.0.113.10,2001:db8:100::10", "--route", "198.51.100.0/29")
	require.Zero(t, code, errs)
	assert.Contains(t, out, "web_net0")
	s.coreHas(a.node, netip.MustParsePrefix("203.0.113.10/32"), netip.MustParsePrefix("2001:db8:100::10/128"), netip.MustParsePrefix("198.51.100.0/29"))

	out, _, _ = a.cli("list", "--json")
	ports := decode[[]map[string]any](t, out)
	require.Len(t, ports, 1)
	for _, key := range []string{"vm", "port", "kind", "state", "addresses", "routes", "since"} {
		assert.Contains(t, ports[0], key)
	}
	assert.Equal(t, "tap", ports[0]["kind"])
	assert.Equal(t, "live", ports[0]["state"])
	out, _, code = a.cli("status", "--json")
	assert.Zero(t, code)
	st := decode[map[string]any](t, out)
	for _, key := range []string{"cluster", "node", "healthy", "sessions", "ports", "live", "problems"} {
		assert.Contains(t, st, key)
	}
	assert.Equal(t, true, st["healthy"])
	out, _, code = a.cli("why", "198.51.100.3")
	assert.Zero(t, code, out)

	for _, tc := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"attach", "other", "--address", "203.0.113.10"}, 1, `held by VM "web"`},
		{[]string{"attach", "other", "--address", "192.0.2.1"}, 1, "outside the pools"},
		{[]string{"attach", "other", "--address", "169.254.1.1"}, 1, "gateway"},
		{[]string{"attach", "other", "--address", "203.0.113.20,203.0.113.20"}, 1, "given twice"},
		{[]string{"attach", "other", "--address", "203.0.113.20", "--mac", "02:00:5e:00:01:01"}, 1, "MAC address 02:00:5e:00:01:01: it is the gateway's"},
		{[]string{"attach", "other", "--address", "203.0.113.20", "--mac", "00:00:00:00:00:00"}, 2, "not a unicast address"},
		{[]string{"attach", "other", "--address", "203.0.113.20", "--mac", "ff:ff:ff:ff:ff:ff"}, 2, "not a unicast address"},
		{[]string{"attach", "a/b", "--address", "203.0.113.20"}, 1, "rename the VM"},
		{[]string{"attach", "other", "--address", "203.0.113.20/32"}, 2, "without a length"},
		{[]string{"attach", "other"}, 2, "address"},
		{[]string{"attach", "other", "--address", "203.0.113.20", "--kind", "bridge"}, 2, "tap, veth, adopt"},
		{[]string{"attach", "other", "--address", "203.0.113.20", "--route", "0.0.0.0/0"}, 1, "whole Internet"},
		{[]string{"attach", "other", "--address", "203.0.113.20", "--kind", "adopt"}, 0, ""},
		{[]string{"guest-config", "web"}, 0, ""},
		{[]string{"guest-config", "nobody"}, 1, "guest nobody: "},
		{[]string{"guest-config", "web", "--format", "ini"}, 2, "--format"},
		{[]string{"guest-config", "web", "--interface", "a,b"}, 1, "web"},
		{[]string{"detach"}, 2, "arg"},
		{[]string{"detach", "nobody"}, 0, ""},
		{[]string{"nonsense"}, 2, "unknown command"},
		{[]string{"port-name", "sea_gold"}, 0, ""},
		{[]string{"port-name", "sea_gold", "x"}, 2, "NIC number"},
		{[]string{"check", s.file}, 0, ""},
		{[]string{"check", "/nonexistent.yaml"}, 1, "nonexistent"},
		{[]string{"completion", "bash"}, 0, ""},
	} {
		_, errs, code := a.cli(tc.args...)
		assert.Equal(t, tc.code, code, "%v: %s", tc.args, errs)
		if tc.code != 0 {
			assert.Contains(t, errs, tc.says, "%v", tc.args)
			assert.Equal(t, 1, strings.Count(errs, "\n"), errs)
		}
	}
	_, errs, code = a.cli("detach", "other")
	require.Zero(t, code, errs)
	_, errs, code = a.cli("detach", "web")
	require.Zero(t, code, errs)
	s.leavesNothing(a.node, seaGold...)
	require.NoError(t, a.Stop())
	_, errs, code = a.cli("list")
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "start it: systemctl start vmfabric")
}

// TestBootStorm attaches and removes many guests at once.
func TestBootStorm(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	a := s.agents["node1"]
	const count = 200
	var vms []fabric.VM
	for i := range count {
		vm := veth(fmt.Sprint("g", i), fmt.Sprint("203.0.113.", i+1), fmt.Sprintf("2001:db8:100::%x", i+1))
		vm.NICs[0].Kind = fabric.Tap
		vms = append(vms, vm)
	}
	each := func(op hooks.Op) {
		var wg sync.WaitGroup
		errs := make([]error, count)
		for i, vm := range vms {
			wg.Go(func() { _, errs[i] = a.try(hooks.Request{Op: op, VM: vm}) })
		}
		wg.Wait()
		for _, err := range errs {
			require.NoError(t, err)
		}
	}
	each(hooks.Live)
	for _, vm := range vms {
		s.coreHas(a.node, vm.Prefixes()...)
	}
	assert.Equal(t, count, a.status().Live)
	each(hooks.Remove)
	s.leavesNothing(a.node)
	s.eventually("the core gateway has no guest's route", func() error {
		for _, vm := range vms {
			for _, p := range vm.Prefixes() {
				if _, ok, err := s.top.Core.Route(p); ok || err != nil {
					return fmt.Errorf("core has %s %w", p, err)
				}
			}
		}
		return nil
	})
}

func TestDemo(t *testing.T) {
	labtest.Long(t)
	t.Parallel()
	for _, who := range []struct {
		name string
		attr *syscall.SysProcAttr
	}{
		{"as root", nil},
		{"unprivileged", &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}},
	} {
		t.Run(who.name, func(t *testing.T) {
			t.Parallel()
			require.NoError(t, os.Chmod(filepath.Dir(program), 0o755))
			dir := t.TempDir()
			require.NoError(t, os.Chmod(filepath.Dir(dir), 0o755))
			if who.attr != nil {
				require.NoError(t, os.Chown(dir, int(who.attr.Credential.Uid), int(who.attr.Credential.Gid)))
			}
			cmd := exec.CommandContext(soon(t), program, "demo")
			cmd.SysProcAttr, cmd.Dir, cmd.Env = who.attr, "/", append(os.Environ(), "TMPDIR="+dir)
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
			assert.Contains(t, string(out), "203.0.113.10/32 via 10.10.0.21 is in the core gateway's kernel")
			for _, protocol := range []string{"DHCPv4: 203.0.113.10/32", "a router advertisement: default via fe80::1", "DHCPv6: 2001:db8:100::10"} {
				assert.Contains(t, string(out), "sea_gold is told by "+protocol)
			}
			assert.Contains(t, string(out), "Done in")
			for line := range strings.Lines(string(out)[strings.Index(string(out), "Reflector rr1 is killed"):]) {
				if strings.Contains(line, "sent,") {
					assert.Contains(t, line, " 0 lost")
				}
			}
			left, err := os.ReadDir(dir)
			require.NoError(t, err)
			assert.Empty(t, left, "it leaves nothing behind")
		})
	}
}

// TestDemoThatStands: who looks around in a demonstration finds everything well, the
// reflector too that it killed.
func TestDemoThatStands(t *testing.T) {
	labtest.Long(t)
	t.Parallel()
	dir := t.TempDir()
	demo := func(flag string) string {
		cmd := exec.CommandContext(soon(t), program, "demo", flag)
		cmd.Env = append(os.Environ(), "TMPDIR="+dir)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		return string(out)
	}
	out := demo("--keep")
	down := sync.OnceFunc(func() { assert.Contains(t, demo("--down"), "removed") })
	defer down()
	sockets := regexp.MustCompile(`--socket (\S+)`).FindAllStringSubmatch(out, -1)
	require.Len(t, sockets, 2, out)
	for _, s := range sockets {
		text, err := exec.CommandContext(soon(t), program, "status", "--socket", s[1]).CombinedOutput()
		assert.NoError(t, err, "%s", text)
		assert.Contains(t, string(text), "is healthy")
		assert.Equal(t, 2, strings.Count(string(text), "established"), "%s", text)
	}
	down()
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, left)
}

// TestSystemdIsTold listens in the place of systemd (sd_notify(3)). Who is ready
// is well, also when it was restarted and the reflectors let it wait, unless that
// takes too long: status right after systemctl start or restart has nothing to
// complain of. Then its watchdog hears that it lives.
func TestSystemdIsTold(t *testing.T) {
	t.Parallel()
	s := start(t, options{rr: "embedded", noAgent: true})
	a := s.agents["node1"]
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	require.NoError(t, err)
	defer l.Close()
	for range 2 {
		cmd := exec.Command(program, a.args...)
		cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+path, "WATCHDOG_USEC=300000")
		d, err := a.node.StartDaemon("agent", cmd)
		require.NoError(t, err)
		hear := func() string {
			require.NoError(t, l.SetReadDeadline(time.Now().Add(patience)))
			b := make([]byte, 256)
			n, err := l.Read(b)
			require.NoError(t, err, d.Log())
			return string(b[:n])
		}
		began := time.Now()
		assert.Equal(t, "READY=1", hear())
		if took := time.Since(began); took < 10*time.Second { // else it was not waited for any longer
			st := a.status()
			assert.True(t, st.Healthy, "%v", st.Problems)
		}
		assert.Equal(t, "WATCHDOG=1", hear())
		assert.Equal(t, "WATCHDOG=1", hear(), "again and again")
		require.NoError(t, d.Signal(syscall.SIGTERM))
		for heard := hear(); heard != "STOPPING=1"; heard = hear() {
			assert.Equal(t, "WATCHDOG=1", heard)
		}
		require.NoError(t, d.Wait())
	}
}
