package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
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

// lxd starts an LXD on a node, and has its agent follow it.
func (s *system) lxd(node string) *hypervisors.LXD {
	s.t.Helper()
	return s.lxdWith(node, hypervisors.LXDOptions{})
}

func (s *system) lxdWith(node string, o hypervisors.LXDOptions) *hypervisors.LXD {
	s.t.Helper()
	labtest.Need(s.t, "lxd")
	lx, err := hypervisors.StartLXD(soon(s.t), s.top.Nodes[node], o)
	require.NoError(s.t, err)
	s.agents[node].follow("--"+lx.Name(), lx.Socket(), lx.RunDir())
	s.agents[node].connected(lx.Name())
	return lx
}

// connected waits until an agent hears what a hypervisor does.
func (a *agent) connected(source string) {
	a.s.t.Helper()
	a.eventually("the agent is connected to "+source, func() error {
		for _, st := range a.status().Sources {
			if st.Name == source && st.Connected {
				return nil
			}
		}
		return errors.New("it is not")
	})
}

// healthy waits until an agent has nothing to complain of.
func (a *agent) healthy() {
	a.s.t.Helper()
	a.eventually("all is well", func() error {
		if st := a.status(); !st.Healthy {
			return fmt.Errorf("%q", st.Problems)
		}
		return nil
	})
}

// complains waits until one of an agent's problems has these words, and gives it.
func (a *agent) complains(words string) (problem string) {
	a.s.t.Helper()
	a.eventually("it complains of "+words, func() error {
		problems := a.status().Problems
		i := slices.IndexFunc(problems, func(p string) bool { return strings.Contains(p, words) })
		if i < 0 {
			return fmt.Errorf("%q", problems)
		}
		problem = problems[i]
		assert.NotContains(a.s.t, problem, "\n")
		return nil
	})
	return problem
}

// mends does what a problem says, in the words behind its last semicolon.
func (s *system) mends(lx *hypervisors.LXD, problem string) {
	s.t.Helper()
	way := problem[strings.LastIndex(problem, "; ")+2:]
	for line := range strings.SplitSeq(way, " && ") {
		words := strings.Fields(line)
		if words[0] == lx.Client() {
			s.lxc(lx, words[1:]...)
			continue
		}
		_, err := lx.Host().Run(soon(s.t), words[0], words[1:]...)
		require.NoError(s.t, err)
	}
}

// p2p is a NIC whose link LXD makes.
func p2p(addresses ...string) fabric.NIC {
	n := nic(addresses...)
	n.Kind = ""
	return n
}

func (s *system) container(lx *hypervisors.LXD, o hypervisors.ContainerOptions) *hypervisors.Container {
	s.t.Helper()
	o.Gateway = s.cluster.Gateway
	c, err := lx.Init(soon(s.t), o)
	require.NoError(s.t, err)
	return c
}

func (s *system) lxc(lx *hypervisors.LXD, args ...string) {
	s.t.Helper()
	_, err := lx.Lxc(soon(s.t), args...)
	require.NoError(s.t, err)
}

// starts starts a container that ended by itself: LXD is busy with its end for a
// moment after it says that it is stopped.
func (s *system) starts(c *hypervisors.Container) {
	s.t.Helper()
	s.eventually("it starts", func() error { return c.Start(soon(s.t)) })
}

// serves waits until the client has an answer from a container that starts.
func (s *system) serves(node *core.Host, ps ...netip.Prefix) {
	s.t.Helper()
	s.coreHas(node, ps...)
	for _, p := range ps {
		s.reaches(s.top.Client, p.Addr().String())
	}
}

func prefixes(ps ...string) (all []netip.Prefix) {
	for _, p := range ps {
		all = append(all, netip.MustParsePrefix(p))
	}
	return all
}

// instance is one of LXD that is called web, and no hook is installed.
type instance struct {
	*system
	lx   *hypervisors.LXD
	c    *hypervisors.Container
	a    *agent
	node *core.Host
}

// TestLifeOfAnInstance has LXD do with an instance what it can; no hook is
// installed.
func TestLifeOfAnInstance(t *testing.T) {
	t.Parallel()
	s := &instance{system: start(t, options{noAgent: true})}
	s.lx = s.lxd("node1")
	s.a, s.node = s.agents["node1"], s.top.Nodes["node1"]
	s.c = s.container(s.lx, hypervisors.ContainerOptions{Name: "web", NICs: []fabric.NIC{p2p("203.0.113.10", "2001:db8:100::10")}})
	require.NoError(t, s.c.Start(soon(t)))
	s.isAnnounced()
	withdrawn := s.watchWithdrawals()
	s.isFrozen()
	assert.Empty(t, withdrawn())
	s.getsAddresses()
	for _, p := range withdrawn() {
		assert.NotContains(t, []string{"203.0.113.10/32", "2001:db8:100::10/128"}, p)
	}
	s.hasAFirewall()
	s.getsAProfile()
	s.getsASecondNIC()
	s.losesItsKeys()
	s.endsAndStarts()
	s.isRestarted()
	s.isCopied()
	s.asksPools()
	s.isRenamed()
}

// asksPools for its addresses, and keeps them over stops and a kill of the agent.
func (s *instance) asksPools() {
	t := s.t
	t.Helper()
	says := func(addresses string) {
		t.Helper()
		require.NoError(t, s.c.Destroy(soon(t)))
		s.leavesNothing(s.node, seaGold...)
		s.lxc(s.lx, "config", "set", "web", "user.vmfabric.net0.addresses="+addresses)
		s.starts(s.c)
	}
	says("pool:public6,auto")
	given := decode[[]fabric.Allocation](t, s.a.does("address", "show", "web", "--json"))
	given = slices.DeleteFunc(given, func(a fabric.Allocation) bool { return a.State != fabric.Allocated }) // those it gave back
	require.Len(t, given, 3)
	has := []netip.Prefix{given[0].Prefix, given[1].Prefix, given[2].Prefix}
	s.coreHas(s.node, has...)
	s.a.restart(s.a.Kill)
	require.NoError(t, s.c.Destroy(soon(t)))
	s.leavesNothing(s.node, has...)
	s.starts(s.c)
	s.coreHas(s.node, has...)
	says("203.0.113.10,2001:db8:100::10")
	s.serves(s.node, seaGold...)
}

// isAnnounced: it is reached, and reaches others, and is listed as what it is.
func (s *instance) isAnnounced() {
	t := s.t
	t.Helper()
	s.checkPort(s.node, "web_net0")
	s.serves(s.node, seaGold...)
	for name := range s.rr {
		for i, p := range seaGold {
			r := s.reflected(name, p)
			assert.Equal(t, []netip.Addr{s.node.Addr4(), s.node.Addr6()}[i], r.NextHop)
			assert.Equal(t, s.cluster.Communities, r.Communities)
		}
	}
	s.coreHears(s.node, fabric.Normal, seaGold)
	out, err := s.c.Exec(soon(t), "ping", "-c1", "-W10", core.ClientAddr4.String())
	require.NoError(t, err)
	assert.Contains(t, out, "1 packets received")
	s.a.healthy()
	entry := decode[[]fabric.PortEntry](t, first(s.a.cli("list", "--json")))[0]
	assert.Equal(t, fabric.Live, entry.State)
	assert.Equal(t, fabric.Adopt, entry.Kind)
	assert.Equal(t, s.lx.Name(), entry.Origin)
}

// isFrozen for a moment, and stays as it is.
func (s *instance) isFrozen() {
	s.t.Helper()
	s.lxc(s.lx, "pause", "web")
	s.lxc(s.lx, "start", "web")
	s.serves(s.node, seaGold...)
}

// getsAddresses and a prefix as it runs, and loses them again.
func (s *instance) getsAddresses() {
	s.t.Helper()
	more := prefixes("203.0.113.11/32", "2001:db8:100::11/128", "198.51.100.0/29")
	s.lxc(s.lx, "config", "set", "web", "user.vmfabric.net0.addresses=203.0.113.10,203.0.113.11,2001:db8:100::10,2001:db8:100::11", "user.vmfabric.net0.routes=198.51.100.0/29")
	s.coreHas(s.node, more...)
	s.lxc(s.lx, "config", "set", "web", "user.vmfabric.net0.addresses=203.0.113.10,2001:db8:100::10", "user.vmfabric.net0.routes=")
	s.nobodyHas(more...)
	s.serves(s.node, seaGold...)
}

// hasAFirewall by its keys, which are changed as it runs; an agent that was killed leaves it as
// it is, and so does one that starts.
func (s *instance) hasAFirewall() {
	s.t.Helper()
	const echo, shell = 7, 8 // where a container listens
	key := func(rules string) { s.lxc(s.lx, "config", "set", "web", "user.vmfabric.firewall.ingress="+rules) }
	s.opens(echo, true)
	s.opens(shell, true)
	key("accept icmp; accept tcp 8; drop")
	s.opens(echo, false)
	s.opens(shell, true)
	require.NoError(s.t, s.a.Kill())
	s.opens(echo, false)
	s.a.start()
	s.a.connected(s.lx.Name())
	s.opens(echo, false)
	key("accept icmp; accept tcp 7; drop")
	s.opens(echo, true)
	s.opens(shell, false)
	s.reaches(s.top.Client, "203.0.113.10", "2001:db8:100::10")
	assert.Contains(s.t, s.a.does("list", "--counters"), string(fabric.DropIngress))
	s.lxc(s.lx, "config", "unset", "web", "user.vmfabric.firewall.ingress")
	s.opens(shell, true)
	s.opens(echo, true)
}

// opens waits until the client connects to a TCP port of the instance, or does not any more,
// by both families.
func (s *instance) opens(port uint16, open bool) {
	s.t.Helper()
	for _, p := range seaGold {
		s.eventually(fmt.Sprintf("port %d of %s is open: %v", port, p.Addr(), open), func() error {
			ctx, cancel := context.WithTimeout(soon(s.t), time.Second)
			defer cancel()
			c, err := s.top.Client.Dial(ctx, "tcp", netip.AddrPortFrom(p.Addr(), port).String())
			if err == nil {
				c.Close()
			}
			if open && err != nil {
				return err
			}
			if dropped, is := errors.AsType[net.Error](err); !open && !(is && dropped.Timeout()) {
				return fmt.Errorf("nothing was dropped: %w", err)
			}
			return nil
		})
	}
}

// getsAProfile, which may say as well what it has.
func (s *instance) getsAProfile() {
	s.t.Helper()
	s.lxc(s.lx, "profile", "create", "more")
	s.lxc(s.lx, "profile", "set", "more", "user.vmfabric.net0.routes=198.51.100.8/29")
	s.lxc(s.lx, "profile", "add", "web", "more")
	s.coreHas(s.node, prefixes("198.51.100.8/29")...)
	s.lxc(s.lx, "profile", "set", "more", "user.vmfabric.net0.routes=198.51.100.16/29")
	s.coreHas(s.node, prefixes("198.51.100.16/29")...)
	s.nobodyHas(prefixes("198.51.100.8/29")...)
	s.lxc(s.lx, "profile", "remove", "web", "more")
	s.nobodyHas(prefixes("198.51.100.16/29")...)
}

// getsASecondNIC plugged in and out.
func (s *instance) getsASecondNIC() {
	t := s.t
	t.Helper()
	second := prefixes("203.0.113.12/32", "2001:db8:100::12/128")
	s.lxc(s.lx, "config", "device", "add", "web", "eth1", "nic", "nictype=p2p", "name=eth1", "host_name=web_net1")
	s.lxc(s.lx, "config", "set", "web", "user.vmfabric.net1.addresses=203.0.113.12,2001:db8:100::12")
	s.coreHas(s.node, second...)
	s.checkPort(s.node, "web_net1")
	s.lxc(s.lx, "config", "device", "remove", "web", "eth1")
	s.nobodyHas(second...)
	assert.Contains(t, s.a.complains("instance web"), "NIC 1 has no device")
	s.lxc(s.lx, "config", "unset", "web", "user.vmfabric.net1.addresses")
	s.a.healthy()
	s.serves(s.node, seaGold...)
}

// losesItsKeys as it runs: that is no wish, and is said.
func (s *instance) losesItsKeys() {
	t := s.t
	t.Helper()
	withdrawn := s.watchWithdrawals()
	s.lxc(s.lx, "config", "unset", "web", "user.vmfabric.net0.addresses")
	keyless := "guest web: " + s.lx.Name() + " does not say any more what it has; it keeps 203.0.113.10, 2001:db8:100::10 while it runs"
	s.a.complains(keyless)
	require.NoError(t, s.a.Kill())
	s.a.start()
	s.a.established()
	s.a.complains(keyless)
	s.serves(s.node, seaGold...)
	assert.Empty(t, withdrawn())
	s.lxc(s.lx, "config", "set", "web", "user.vmfabric.net0.addresses=203.0.113.10,2001:db8:100::10")
	s.a.healthy()
	s.serves(s.node, seaGold...)
}

// endsAndStarts: what is stopped is withdrawn, and nothing is left of it, however it ended.
func (s *instance) endsAndStarts() {
	t := s.t
	t.Helper()
	kill := func() error {
		pid, err := s.c.Pid(soon(t))
		if err != nil {
			return err
		}
		return syscall.Kill(pid, syscall.SIGKILL)
	}
	for what, end := range map[string]func() error{
		"stop":            func() error { return s.c.Shutdown(soon(t)) },
		"stop --force":    func() error { return s.c.Destroy(soon(t)) },
		"kill -9 of init": kill,
		"poweroff inside": func() error {
			_, _ = s.c.Exec(soon(t), "busybox", "kill", "-TERM", "1") // ends with the guest
			return nil
		},
	} {
		require.NoError(t, end(), what)
		s.leavesNothing(s.node, seaGold...)
		s.withdrawnFirst(s.a.Log())
		s.eventually("LXD has it stopped after "+what, func() error {
			if state, err := s.c.State(soon(t)); err != nil || state != "Stopped" {
				return fmt.Errorf("%s %w", state, err)
			}
			return nil
		})
		s.starts(s.c)
		s.serves(s.node, seaGold...)
	}
}

// isRestarted in every way, and has its port and routes again.
func (s *instance) isRestarted() {
	t := s.t
	t.Helper()
	for what, again := range map[string]func() error{
		"restart":         func() error { _, err := s.lx.Lxc(soon(t), "restart", "web", "--timeout", "10"); return err },
		"restart --force": func() error { _, err := s.lx.Lxc(soon(t), "restart", "web", "--force"); return err },
		"reboot inside": func() error {
			before, err := s.c.Pid(soon(t))
			_, _ = s.c.Exec(soon(t), "busybox", "reboot", "-f") // ends with the guest
			s.eventually("it boots", func() error {
				if pid, err := s.c.Pid(soon(t)); err != nil || pid == before {
					return fmt.Errorf("pid %d %w", pid, err)
				}
				return nil
			})
			return err
		},
	} {
		require.NoError(t, again(), what)
		require.NoError(t, s.c.WaitReady(soon(t)), what)
		s.serves(s.node, seaGold...)
		s.checkPort(s.node, "web_net0")
	}
	s.a.healthy()
}

// isCopied: a copy is not a second guest of the same port, nor of the same address.
func (s *instance) isCopied() {
	t := s.t
	t.Helper()
	s.lxc(s.lx, "copy", "web", "twin", "--instance-only")
	// As long as it does not run, it is nobody's problem.
	_, why, code := s.a.cli("guest-config", "twin")
	assert.Equal(t, 1, code)
	assert.Contains(t, why, "instance twin: NIC device eth0 has the host_name web_net0")
	s.a.healthy()
	s.mends(s.lx, why)
	s.lxc(s.lx, "start", "twin")
	assert.Contains(t, s.a.complains("guest twin refused"), `held by VM "web"`)
	s.serves(s.node, seaGold...)
	s.lxc(s.lx, "delete", "twin", "--force")
	s.a.healthy()
}

// isRenamed: its port is to be renamed too.
func (s *instance) isRenamed() {
	t := s.t
	t.Helper()
	require.NoError(t, s.c.Shutdown(soon(t)))
	s.lxc(s.lx, "rename", "web", "www")
	_, why, code := s.a.cli("guest-config", "www")
	assert.Equal(t, 1, code)
	assert.Contains(t, why, "instance www: NIC device eth0 has the host_name web_net0")
	s.a.healthy()
	s.mends(s.lx, why)
	s.lxc(s.lx, "start", "www")
	s.serves(s.node, seaGold...)
	s.checkPort(s.node, "www_net0")
	s.lxc(s.lx, "delete", "www", "--force")
	s.leavesNothing(s.node, seaGold...)
	s.a.healthy()
}

// TestPhysicalNIC has the fabric make the port before the instance starts, and
// keep it.
func TestPhysicalNIC(t *testing.T) {
	t.Parallel()
	s := start(t, options{noAgent: true})
	lx := s.lxd("node1")
	a, node := s.agents["node1"], s.top.Nodes["node1"]
	require.NoError(t, a.Stop())
	c := s.container(lx, hypervisors.ContainerOptions{Name: "web", NICs: []fabric.NIC{nic("203.0.113.10", "2001:db8:100::10")}})
	require.ErrorContains(t, c.Start(soon(t)), "web_peer0", "no agent made it")
	a.start()
	a.established()
	s.eventually("the pair is there", func() error {
		if !node.HasLink("web_peer0") {
			return errors.New("no web_peer0")
		}
		return nil
	})
	s.nobodyHas(seaGold...)
	require.NoError(t, c.Start(soon(t)))
	s.serves(node, seaGold...)
	before, err := node.Link("web_net0")
	require.NoError(t, err)
	s.lxc(lx, "restart", "web", "--force")
	s.serves(node, seaGold...)
	require.NoError(t, c.Destroy(soon(t)))
	s.nobodyHas(seaGold...)
	s.checkPort(node, "web_net0")
	require.NoError(t, c.Start(soon(t)))
	s.serves(node, seaGold...)
	after, err := node.Link("web_net0")
	require.NoError(t, err)
	assert.Equal(t, before.Attrs().Index, after.Attrs().Index, "the port stays")
	a.healthy()
	require.NoError(t, c.Delete(soon(t)))
	s.leavesNothing(node, seaGold...)
}

// TestLXDAndAgentComeAndGo ends and starts LXD and the agent around a guest that
// runs, under a probe; then a guest dies when nobody looks.
func TestLXDAndAgentComeAndGo(t *testing.T) {
	t.Parallel()
	s := start(t, options{noAgent: true})
	lx := s.lxd("node1")
	a, node := s.agents["node1"], s.top.Nodes["node1"]
	c := s.container(lx, hypervisors.ContainerOptions{Name: "web", NICs: []fabric.NIC{p2p("203.0.113.10", "2001:db8:100::10")}})
	require.NoError(t, c.Start(soon(t)))
	s.serves(node, seaGold...)
	withdrawn := s.watchWithdrawals()
	var probes []*core.Prober
	for _, p := range seaGold {
		probe, err := s.top.Client.Probe(p.Addr(), 2*time.Millisecond)
		require.NoError(t, err)
		probes = append(probes, probe)
	}
	for _, end := range []func() error{lx.Stop, lx.Kill} {
		require.NoError(t, end())
		assert.Contains(t, a.complains(lx.Name()+": no answer"), "start "+lx.Name())
		require.NoError(t, lx.Start(soon(t)))
		a.healthy()
	}
	a.restart(a.Stop)
	a.established()
	require.NoError(t, lx.Kill())
	a.restart(a.Kill)
	a.established()
	require.NoError(t, lx.Start(soon(t)))
	a.healthy()
	for _, probe := range probes {
		r := probe.Stop()
		assert.Zero(t, r.Lost, "%+v", r)
		assert.NotZero(t, r.Sent)
	}
	assert.Empty(t, withdrawn())

	// It dies while LXD is down: LXD leaves its link, and could not start it.
	pid, err := c.Pid(soon(t))
	require.NoError(t, err)
	require.NoError(t, lx.Kill())
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	s.nobodyHas(seaGold...)
	a.restart(a.Kill)
	a.established()
	time.Sleep(200 * time.Millisecond)
	s.nobodyHas(seaGold...) // a link without carrier is no guest
	require.NoError(t, lx.Start(soon(t)))
	s.eventually("nothing of the fabric is left", func() error {
		if left := s.leftOn(node); len(left) > 0 {
			return fmt.Errorf("%v", left)
		}
		return nil
	})
	require.Error(t, c.Start(soon(t)))
	s.mends(lx, a.complains("cannot start, because its link web_net0 is still there"))
	a.healthy()
	s.starts(c)
	s.serves(node, seaGold...)
}

// TestHookOfLXD has an instance refused before it starts.
func TestHookOfLXD(t *testing.T) {
	t.Parallel()
	s := start(t, options{noAgent: true})
	lx := s.lxd("node1")
	a, node := s.agents["node1"], s.top.Nodes["node1"]
	hooked := map[string]string{"raw.lxc": "lxc.hook.start-host=" + lxdHookProgram + "\nlxc.hook.post-stop=" + lxdHookProgram}
	c := s.container(lx, hypervisors.ContainerOptions{Name: "web", NICs: []fabric.NIC{p2p("203.0.113.10", "2001:db8:100::10")}, Config: hooked})
	plain := s.container(lx, hypervisors.ContainerOptions{Name: "plain", Config: hooked})

	require.NoError(t, c.Start(soon(t)))
	assert.Contains(t, a.Log(), "op=starting vm=web")
	s.serves(node, seaGold...)
	require.NoError(t, plain.Start(soon(t)), "none of ours")
	require.NoError(t, c.Destroy(soon(t)))
	s.eventually("the hook told of the end", func() error {
		if !strings.Contains(a.Log(), "op=ended vm=web") {
			return errors.New("it did not")
		}
		return nil
	})
	s.leavesNothing(node, seaGold...)

	// Another has its address.
	a.ask(hooks.Live, veth("other", "203.0.113.10"))
	require.Error(t, c.Start(soon(t)))
	out, err := lx.Lxc(soon(t), "info", "web", "--show-log")
	require.NoError(t, err)
	assert.Contains(t, out, `held by VM "other"`, "where lxc sends its user")
	s.eventually("no link is left", func() error {
		if node.HasLink("web_net0") {
			return errors.New("web_net0 is there")
		}
		return nil
	})
	a.ask(hooks.Remove, fabric.VM{Name: "other"})

	// So is one with the gateway's MAC address.
	set := func(verb, what string) { // LXD is busy with the failed start for a moment
		s.eventually("its MAC address is "+verb, func() error {
			_, err := lx.Lxc(soon(t), "config", "device", verb, "web", "eth0", what)
			return err
		})
	}
	set("set", "hwaddr="+fabric.DefaultMAC.String())
	require.Error(t, c.Start(soon(t)))
	out, err = lx.Lxc(soon(t), "info", "web", "--show-log")
	require.NoError(t, err)
	assert.Contains(t, out, "NIC 0: MAC address 02:00:5e:00:01:01: it is the gateway's")
	set("unset", "hwaddr")
	s.starts(c)
	s.serves(node, seaGold...)
	require.NoError(t, c.Destroy(soon(t)))

	// Without an agent, what is ours does not start, and what is not does.
	require.NoError(t, a.Stop())
	require.Error(t, c.Start(soon(t)))
	require.NoError(t, plain.Destroy(soon(t)))
	require.NoError(t, plain.Start(soon(t)))
}

// TestHookForAll sets the hook for all instances, also for those that are none of
// ours.
func TestHookForAll(t *testing.T) {
	t.Parallel()
	s := start(t, options{noAgent: true})
	lx := s.lxdWith("node1", hypervisors.LXDOptions{LXC: "lxc.hook.start-host = " + lxdHookProgram + "\nlxc.hook.post-stop = " + lxdHookProgram + "\n"})
	a, node := s.agents["node1"], s.top.Nodes["node1"]
	c := s.container(lx, hypervisors.ContainerOptions{Name: "web", NICs: []fabric.NIC{p2p("203.0.113.10", "2001:db8:100::10")}})
	plain := s.container(lx, hypervisors.ContainerOptions{Name: "plain"})
	require.NoError(t, c.Start(soon(t)))
	require.NoError(t, plain.Start(soon(t)))
	for _, name := range []string{"web", "plain"} {
		assert.Contains(t, a.Log(), "op=starting vm="+name)
	}
	s.serves(node, seaGold...)
	require.NoError(t, plain.Destroy(soon(t)))
	require.NoError(t, c.Destroy(soon(t)))
	s.leavesNothing(node, seaGold...)

	// One that has the keys and no port does not start either: it would have no
	// network, and nobody would say why.
	s.lxc(lx, "config", "device", "unset", "web", "eth0", "host_name")
	require.Error(t, c.Start(soon(t)))
	out, err := lx.Lxc(soon(t), "info", "web", "--show-log")
	require.NoError(t, err)
	assert.Contains(t, out, lx.Client()+" config device set web eth0 host_name=web_net0")
	a.args[slices.Index(a.args, "--"+lx.Name())+1] = "off"
	a.restart(a.Stop)
	require.NoError(t, plain.Start(soon(t)), "the agent does not know it")
}

// TestProjects: an instance of another project is a guest like any other, but
// not beside one of the same name.
func TestProjects(t *testing.T) {
	t.Parallel()
	s := start(t, options{noAgent: true})
	lx := s.lxd("node1")
	a, node := s.agents["node1"], s.top.Nodes["node1"]
	s.lxc(lx, "project", "create", "shop", "-c", "features.images=false", "-c", "features.profiles=false")
	in := func(project, address4, address6 string) *hypervisors.Container {
		return s.container(lx, hypervisors.ContainerOptions{Name: "web", Project: project, NICs: []fabric.NIC{p2p(address4, address6)}})
	}
	one := in("shop", "203.0.113.10", "2001:db8:100::10")
	two := in("default", "203.0.113.11", "2001:db8:100::11")
	require.NoError(t, one.Start(soon(t)))
	s.serves(node, seaGold...)
	require.Error(t, two.Start(soon(t)), "the link is there")
	a.healthy()
	require.NoError(t, one.Destroy(soon(t)))
	s.leavesNothing(node, seaGold...)
	require.NoError(t, two.Start(soon(t)))
	s.serves(node, prefixes("203.0.113.11/32", "2001:db8:100::11/128")...)
	require.NoError(t, two.Delete(soon(t)))
	s.leavesNothing(node, prefixes("203.0.113.11/32", "2001:db8:100::11/128")...)
}

// TestManyInstances starts twenty at once, and has LXD tell of a thousand
// changes meanwhile.
func TestManyInstances(t *testing.T) {
	t.Parallel()
	s := start(t, options{noAgent: true})
	lx := s.lxd("node1")
	a, node := s.agents["node1"], s.top.Nodes["node1"]
	const count, changes = 20, 1000
	var all []netip.Prefix
	for i := range count {
		n := p2p(fmt.Sprint("203.0.113.", 10+i), fmt.Sprintf("2001:db8:100::%x", 10+i))
		all = append(all, n.Prefixes()...)
		s.container(lx, hypervisors.ContainerOptions{Name: fmt.Sprint("g", i), NICs: []fabric.NIC{n}})
	}
	each := func(do func(ctx context.Context, name string) error) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
		defer cancel()
		var wg sync.WaitGroup
		for i := range count {
			wg.Go(func() { assert.NoError(t, do(ctx, fmt.Sprint("g", i))) })
		}
		wg.Wait()
	}
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", lx.Socket())
	}}}
	defer client.CloseIdleConnections()
	each(func(ctx context.Context, name string) error {
		_, err := lx.Lxc(ctx, "start", name)
		return err
	})
	for _, p := range all {
		s.coreHas(node, p)
	}
	withdrawn := s.watchWithdrawals()
	began := time.Now()
	each(func(ctx context.Context, name string) error {
		for i := range changes / count {
			body := fmt.Sprintf(`{"config":{"user.note":"%d"}}`, i)
			req, err := http.NewRequestWithContext(ctx, http.MethodPatch, "http://lxd/1.0/instances/"+name, bytes.NewBufferString(body))
			if err != nil {
				return err
			}
			resp, err := client.Do(req)
			if err != nil {
				return err
			}
			resp.Body.Close()
			if resp.StatusCode >= 300 {
				return errors.New(resp.Status)
			}
		}
		return nil
	})
	t.Logf("%d changes in %v", changes, time.Since(began).Round(time.Millisecond))
	a.healthy()
	assert.Equal(t, count, a.status().Live)
	assert.Empty(t, withdrawn())
	each(func(ctx context.Context, name string) error {
		_, err := lx.Lxc(ctx, "delete", name, "--force")
		return err
	})
	s.leavesNothing(node, all...)
}

// TestInstancesMove moves an instance between two LXDs: stopped, and running,
// where the destination starts before the source stops.
func TestInstancesMove(t *testing.T) {
	t.Parallel()
	s := start(t, options{nodes: 2, noAgent: true})
	lxs := map[string]*hypervisors.LXD{"node1": s.lxd("node1"), "node2": s.lxd("node2")}
	for here, there := range map[string]string{"node1": "node2", "node2": "node1"} {
		require.NoError(t, lxs[here].Trust(soon(t), lxs[there]))
	}
	c := s.container(lxs["node1"], hypervisors.ContainerOptions{Name: "web", NICs: []fabric.NIC{p2p("203.0.113.10", "2001:db8:100::10")}})
	s.lxc(lxs["node1"], "move", "web", "node2:web")
	s.lxc(lxs["node2"], "move", "web", "node1:web")
	require.NoError(t, c.Start(soon(t)))
	s.serves(s.top.Nodes["node1"], seaGold...)
	withdrawn := s.watchWithdrawals()
	for _, way := range [][2]string{{"node1", "node2"}, {"node2", "node1"}} {
		from, to := way[0], way[1]
		s.lxc(lxs[from], "move", "web", to+":web", "--stateless")
		s.serves(s.top.Nodes[to], seaGold...)
		s.eventually("the source keeps nothing", func() error {
			if left := s.leftOn(s.top.Nodes[from]); len(left) > 0 {
				return fmt.Errorf("%v", left)
			}
			return nil
		})
		s.serves(s.top.Nodes[to], seaGold...)
	}
	assert.Empty(t, withdrawn(), "the route is replaced, and never missing")
	for _, a := range s.agents {
		a.healthy()
	}
	s.lxc(lxs["node1"], "delete", "web", "--force")
	s.leavesNothing(s.top.Nodes["node1"], seaGold...)
}

// TestMembersOfACluster: each agent hears of all members, and minds its own.
func TestMembersOfACluster(t *testing.T) {
	t.Parallel()
	s := start(t, options{nodes: 2, noAgent: true})
	one, two := s.top.Nodes["node1"], s.top.Nodes["node2"]
	lx := s.lxd("node1")
	s.lxc(lx, "config", "set", "core.https_address", netip.AddrPortFrom(one.Addr4(), 8443).String())
	s.lxc(lx, "cluster", "enable", "node1")
	join, err := lx.Invite(soon(t), two)
	require.NoError(t, err)
	s.lxdWith("node2", join)

	c := s.container(lx, hypervisors.ContainerOptions{Name: "web", Target: "node1", NICs: []fabric.NIC{p2p("203.0.113.10", "2001:db8:100::10")}})
	for _, way := range []struct {
		from, to *core.Host
		target   string
	}{{one, two, "node2"}, {two, one, "node1"}} {
		s.lxc(lx, "start", "web")
		s.serves(way.from, seaGold...)
		assert.Empty(t, s.leftOn(way.to), "it does not run there")
		require.NoError(t, c.Destroy(soon(t)))
		s.nobodyHas(seaGold...)
		s.lxc(lx, "move", "web", "--target", way.target)
		s.lxc(lx, "start", "web")
		s.serves(way.to, seaGold...)
		s.eventually("nothing is left behind", func() error {
			if left := s.leftOn(way.from); len(left) > 0 {
				return fmt.Errorf("%v", left)
			}
			return nil
		})
		require.NoError(t, c.Destroy(soon(t)))
	}
	for _, a := range s.agents {
		a.healthy()
	}
	s.lxc(lx, "delete", "web")
	s.leavesNothing(one, seaGold...)
	s.leavesNothing(two, seaGold...)
}

// TestKVMAndLXDOnTheSameFabric has guests of both kinds on both nodes, who reach
// each other and the client.
func TestKVMAndLXDOnTheSameFabric(t *testing.T) {
	t.Parallel()
	s := start(t, options{nodes: 2, noAgent: true})
	type guest struct {
		node, name, v4, v6 string
		say                func(command string) (string, error)
	}
	var guests []guest
	product := ""
	for n, node := range []string{"node1", "node2"} {
		lv, lx := s.hypervisor(node), s.lxd(node)
		product = lx.Name()
		kvm := guest{node: node, name: fmt.Sprint("kvm", n), v4: fmt.Sprint("203.0.113.", 10+n), v6: fmt.Sprintf("2001:db8:100::%x", 10+n)}
		d := s.domain(lv, kvm.name, tap(kvm.v4, kvm.v6))
		require.NoError(t, d.Start(soon(t)))
		kvm.say = func(command string) (string, error) {
			return hypervisors.GuestRun(soon(t), s.top.Client, netip.MustParseAddr(kvm.v4), command)
		}
		box := guest{node: node, name: fmt.Sprint("lxd", n), v4: fmt.Sprint("203.0.113.", 20+n), v6: fmt.Sprintf("2001:db8:100::%x", 20+n)}
		c := s.container(lx, hypervisors.ContainerOptions{Name: box.name, NICs: []fabric.NIC{p2p(box.v4, box.v6)}})
		require.NoError(t, c.Start(soon(t)))
		box.say = func(command string) (string, error) { return c.Exec(soon(t), "sh", "-c", command) }
		guests = append(guests, kvm, box)
		require.NoError(t, d.WaitReady(soon(t)))
		require.NoError(t, c.WaitReady(soon(t)))
	}
	for _, from := range guests {
		s.reaches(s.top.Client, from.v4, from.v6)
		var to []string
		for _, g := range guests {
			to = append(to, g.v4, g.v6)
		}
		out, errs, code := s.agents[from.node].cli("guest-config", from.name)
		require.Zero(t, code, errs)
		assert.Contains(t, out, from.v4+"/32")
		assert.Contains(t, out, from.v6+"/128")
		to = append(to, core.ClientAddr4.String(), core.ClientAddr6.String())
		var commands []string
		for _, a := range to {
			commands = append(commands, "ping -c1 -W10 "+a+" >/dev/null")
		}
		out, err := from.say(strings.Join(commands, " && ") + " && echo all")
		require.NoError(t, err, from.name)
		assert.Contains(t, out, "all")
	}
	for _, node := range []string{"node1", "node2"} {
		a := s.agents[node]
		a.healthy()
		assert.Equal(t, 2, a.status().Live)
		names := map[string]int{}
		for _, src := range a.status().Sources {
			names[src.Name] = src.Guests
		}
		assert.Equal(t, map[string]int{"libvirt": 1, product: 1}, names)
	}
}
