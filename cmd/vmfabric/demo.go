package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/internal/backoff"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

const demoPicture = `
                        client  192.0.2.2  2001:db8:ffff::2
                           |
                    core gateway core1  10.10.0.1
                           |   iBGP: learns the guests' routes
            +--------------+--------------+
            |                             |
       reflector rr1                 reflector rr2
        10.10.0.11                    10.10.0.12
            |   iBGP: /32 and /128, community 64512:100
            +--------------+--------------+
            |                             |
     node1 10.10.0.21              node2 10.10.0.22
      |            |                      |
 sea_gold_net0  web_net0              box_net0        on every port: 169.254.1.1, fe80::1
      |            |                      |           and the same MAC
   sea_gold       web                    box
 203.0.113.10  203.0.113.11          203.0.113.12
 2001:db8:     2001:db8:             2001:db8:
 100::10       100::11               100::12
`

// demo is the whole system in network namespaces of this machine.
type demo struct {
	out     io.Writer
	lab     *core.Lab
	top     *core.Topology
	cluster fabric.Cluster
	file    string // the cluster file
	self    string // this program
	agents  map[string]*core.Daemon
	rr      map[string]*core.Daemon
	guests  map[string]*core.Guest
	core    *routeLog
	told    []event // what the guest that configures itself was told
}

// selfConfigured is the guest that asks its node for its addresses and routes. The lab
// configures the others.
const selfConfigured = "sea_gold"

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }

// play runs the demonstration in a fresh lab.
func (d *demo) play(ctx context.Context) error {
	began := time.Now()
	d.say("vmfabric %s: two nodes, two reflectors, a core gateway, a client and three guests,\neach a network namespace; all BGP by the embedded GoBGP.\n%s", version, demoPicture)
	if err := d.start(ctx); err != nil {
		return err
	}
	d.say("All BGP sessions are up after %s.", ms(time.Since(began)))

	vms := []struct {
		node string
		vm   fabric.VM
	}{{"node1", demoVM("sea_gold", 10)}, {"node1", demoVM("web", 11)}, {"node2", demoVM("box", 12)}}
	d.say("\n1. One guest, from prepare to the first ping; it configures itself by DHCP\n")
	if err := d.trace(ctx, vms[0].node, vms[0].vm); err != nil {
		return err
	}
	for _, g := range vms[1:] {
		if err := d.bring(ctx, g.node, g.vm); err != nil {
			return err
		}
	}
	d.say("\n2. Everybody reaches everybody, by routing only\n")
	if err := d.pings(ctx); err != nil {
		return err
	}
	d.say("\n3. sea_gold moves from node1 to node2 under 1,000 pings a second\n")
	if err := d.move(ctx, vms[0].vm); err != nil {
		return err
	}
	d.say("\n4. Reflector rr1 is killed (SIGKILL) under 1,000 pings a second\n")
	if err := d.killReflector(ctx); err != nil {
		return err
	}
	d.say("\nDone in %s.", ms(time.Since(began)))
	return nil
}

func demoVM(name string, n int) fabric.VM {
	return fabric.VM{Name: name, NICs: []fabric.NIC{{Kind: fabric.Veth, Addresses: []netip.Addr{
		netip.MustParseAddr(fmt.Sprintf("203.0.113.%d", n)), netip.MustParseAddr(fmt.Sprintf("2001:db8:100::%d", n)),
	}}}}
}

// start makes the hosts and starts the programs in them.
func (d *demo) start(ctx context.Context) error {
	d.cluster = core.SmallCluster(2)
	d.cluster.Name = "demo"
	var err error
	if d.top, err = d.lab.Build(d.cluster); err != nil {
		return err
	}
	d.file = filepath.Join(d.lab.Dir(), "cluster.yaml")
	key := filepath.Join(d.lab.Dir(), "cluster.key")
	if err := os.WriteFile(key, []byte(rand.Text()+"\n"), 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(d.file, []byte(core.ClusterFile(d.cluster)+"key_file: "+key+"\n"), 0o600); err != nil {
		return err
	}
	if d.core, err = watchRoutes(d.top.Core); err != nil {
		return err
	}
	d.agents, d.rr, d.guests = map[string]*core.Daemon{}, map[string]*core.Daemon{}, map[string]*core.Guest{}
	for name := range d.top.Reflectors {
		if err := d.startReflector(name); err != nil {
			return err
		}
	}
	if _, err := d.top.Core.StartDaemon("core", exec.Command(d.self, "demo", "core", "--config", d.file)); err != nil {
		return err
	}
	for name, h := range d.top.Nodes {
		if d.agents[name], err = h.StartDaemon("agent", exec.Command(d.self, "agent", "--config", d.file, "--node", name,
			"--state", filepath.Join(h.Dir(), "state"), "--socket", d.socket(name), "--libvirt", "off", "--lxd", "off", "--incus", "off", "--log-format", "json", "--log-level", "debug")); err != nil {
			return err
		}
	}
	return d.allEstablished(ctx)
}

func (d *demo) startReflector(name string) (err error) {
	h := d.top.Reflectors[name]
	d.rr[name], err = h.StartDaemon("reflector", exec.Command(d.self, "reflector", "--config", d.file, "--name", name,
		"--socket", filepath.Join(h.Dir(), "reflector.sock")))
	return err
}

// allEstablished waits until each node has all of its sessions.
func (d *demo) allEstablished(ctx context.Context) error {
	for name := range d.top.Nodes {
		if err := d.until(ctx, func(ctx context.Context) error { return d.established(ctx, name) }); err != nil {
			return fmt.Errorf("%s: %w\n%s", name, err, d.agents[name].Log())
		}
	}
	return nil
}

// restore starts again what the demonstration killed: a user who looks around
// afterwards should find everything well.
func (d *demo) restore(ctx context.Context) error {
	if err := d.startReflector("rr1"); err != nil {
		return err
	}
	if err := d.allEstablished(ctx); err != nil {
		return err
	}
	d.say("\nrr1 is started again, and all BGP sessions are up.")
	return nil
}

// until calls f until it succeeds, as long as the processes of the demonstration
// make progress.
func (d *demo) until(ctx context.Context, f func(ctx context.Context) error) error {
	return whileWorking(ctx, func() effort { return effortOf(d.lab) }, f)
}

func (d *demo) socket(node string) string {
	return filepath.Join(d.top.Nodes[node].Dir(), "agent.sock")
}

func (d *demo) established(ctx context.Context, node string) error {
	reply, err := d.ask(ctx, node, hooks.Request{Op: hooks.Status})
	if reply.Status == nil {
		return err
	}
	for _, s := range reply.Status.Sessions {
		if s.State != "established" {
			return fmt.Errorf("session with %s is %s", s.Peer, s.State)
		}
	}
	return nil
}

func (d *demo) ask(ctx context.Context, node string, req hooks.Request) (hooks.Reply, error) {
	return hooks.Client{Socket: d.socket(node)}.Call(ctx, req)
}

// bring starts a guest on a node: the request of the hypervisor's hook before the
// guest runs, the guest, and the request once it runs.
func (d *demo) bring(ctx context.Context, node string, vm fabric.VM) error {
	if _, err := d.ask(ctx, node, hooks.Request{Op: hooks.Wire, VM: vm}); err != nil {
		return err
	}
	if err := d.plug(ctx, node, vm); err != nil {
		return err
	}
	if _, err := d.ask(ctx, node, hooks.Request{Op: hooks.Started, VM: vm}); err != nil {
		return err
	}
	return d.reachable(ctx, vm)
}

// plug plugs a guest into its node.
func (d *demo) plug(ctx context.Context, node string, vm fabric.VM) (err error) {
	if vm.Name != selfConfigured {
		d.guests[vm.Name], err = d.lab.AddGuest(d.top.Nodes[node], vm, d.cluster.Gateway)
		return err
	}
	g, err := d.lab.AddUnconfigured(d.top.Nodes[node], vm, d.cluster.Gateway)
	if err != nil {
		return err
	}
	d.guests[vm.Name] = g
	out, err := g.Run(ctx, d.self, "demo", "guest", "eth0")
	if err != nil {
		return err
	}
	d.told, err = readTold(vm.Name, out)
	return err
}

func (d *demo) reachable(ctx context.Context, vm fabric.VM) error {
	for _, a := range vm.NICs[0].Addresses {
		err := d.until(ctx, func(ctx context.Context) error { return d.core.wait(ctx, fabric.HostPrefix(a)) })
		if err == nil {
			_, err = d.ping(ctx, d.top.Client, a)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ping waits for an answer, and returns how long it took.
func (d *demo) ping(ctx context.Context, from *core.Host, to netip.Addr) (rtt time.Duration, err error) {
	err = d.until(ctx, func(ctx context.Context) (err error) {
		rtt, err = from.Ping(ctx, to)
		return err
	})
	return rtt, err
}

// trace starts the first guest and prints when each step happened.
func (d *demo) trace(ctx context.Context, node string, vm fabric.VM) error {
	began := time.Now()
	if err := d.bring(ctx, node, vm); err != nil {
		return err
	}
	ended := time.Now()
	events := append(agentEvents(d.agents[node].Log(), vm.Name), d.told...)
	for _, a := range vm.NICs[0].Addresses {
		p := fabric.HostPrefix(a)
		events = append(events, event{d.core.seen(p), fmt.Sprintf("core1    %s via %s is in the core gateway's kernel", p, d.core.via(p))})
	}
	events = append(events, event{ended, "client   has an answer from both addresses of " + vm.Name})
	slices.SortStableFunc(events, func(a, b event) int { return a.at.Compare(b.at) })
	d.say("  %10s  the hook asks node1 to prepare %s", ms(0), vm.Name)
	for _, e := range events {
		d.say("  %10s  %s", ms(e.at.Sub(began)), e.text)
	}
	return nil
}

// event is a line of the trace.
type event struct {
	at   time.Time
	text string
}

// agentEvents finds the steps for a guest in an agent's log.
func agentEvents(log, vm string) []event {
	var events []event
	for line := range strings.Lines(log) {
		var l struct {
			Time   time.Time
			Msg    string
			VM     string
			Port   string
			Prefix string
			N      int `json:"prefixes"`
			Took   time.Duration
			Level  string
		}
		if json.Unmarshal([]byte(line), &l) != nil || l.VM != vm {
			continue
		}
		switch {
		case l.Msg == "wired" && l.Level == "DEBUG":
			events = append(events, event{l.Time, fmt.Sprintf("node1    port %s is made, up, addressed and routed (%s)", l.Port, ms(l.Took))})
		case l.Msg == "wired":
			events = append(events, event{l.Time, "node1    the hook has its answer; the guest is started"})
		case l.Msg == "announced":
			events = append(events, event{l.Time, fmt.Sprintf("node1    the guest runs: %s and %d more announced to both reflectors", l.Prefix, l.N-1)})
		}
	}
	return events
}

// pings makes the client and the guests ping each other.
func (d *demo) pings(ctx context.Context) error {
	type host struct {
		name string
		h    *core.Host
		to   []netip.Addr
	}
	all := []host{{"client", d.top.Client, []netip.Addr{core.ClientAddr4, core.ClientAddr6}}}
	for n, name := range []string{"sea_gold", "web", "box"} {
		all = append(all, host{name, d.guests[name].Host, demoVM(name, 10+n).NICs[0].Addresses})
	}
	d.say("  %-10s %-22s %-22s %-22s %-22s", "IPv4/IPv6", "to client", "to sea_gold", "to web", "to box")
	for _, from := range all {
		row := fmt.Sprintf("  %-10s", from.name)
		for _, to := range all {
			cell := "-"
			if from.name != to.name {
				var rtts []string
				for _, a := range to.to {
					rtt, err := d.ping(ctx, from.h, a)
					if err != nil {
						return err
					}
					rtts = append(rtts, ms(rtt))
				}
				cell = strings.Join(rtts, " / ")
			}
			row += fmt.Sprintf(" %-22s", cell)
		}
		d.say("%s", strings.TrimRight(row, " "))
	}
	return nil
}

// move moves a guest to the other node while the client pings it.
func (d *demo) move(ctx context.Context, vm fabric.VM) error {
	return d.underProbe(ctx, vm, func() error {
		if _, err := d.ask(ctx, "node2", hooks.Request{Op: hooks.Wire, VM: vm}); err != nil {
			return err
		}
		began := time.Now()
		if err := d.guests[vm.Name].Plug(d.top.Nodes["node2"]); err != nil {
			return err
		}
		if _, err := d.ask(ctx, "node2", hooks.Request{Op: hooks.Live, VM: vm}); err != nil {
			return err
		}
		if _, err := d.ask(ctx, "node1", hooks.Request{Op: hooks.Remove, VM: vm}); err != nil {
			return err
		}
		for _, a := range vm.NICs[0].Addresses {
			p := fabric.HostPrefix(a)
			if err := d.until(ctx, func(context.Context) error { return d.core.leadsTo(p, d.cluster.Nodes[1]) }); err != nil {
				return err
			}
		}
		d.say("  unplugged, plugged in, announced by node2 and withdrawn by node1 in %s;\n  it kept its addresses and its gateway", ms(time.Since(began)))
		return nil
	})
}

// killReflector kills one reflector while the client pings a guest.
func (d *demo) killReflector(ctx context.Context) error {
	return d.underProbe(ctx, demoVM("web", 11), func() error {
		if err := d.rr["rr1"].Kill(); err != nil {
			return err
		}
		backoff.Sleep(ctx, 2*time.Second)
		return ctx.Err()
	})
}

// underProbe runs do while the client pings both addresses of a guest.
func (d *demo) underProbe(ctx context.Context, vm fabric.VM, do func() error) error {
	var probes []*core.Prober
	for _, a := range vm.NICs[0].Addresses {
		p, err := d.top.Client.Probe(a, time.Millisecond)
		if err != nil {
			return err
		}
		probes = append(probes, p)
	}
	backoff.Sleep(ctx, 300*time.Millisecond)
	err := do()
	backoff.Sleep(ctx, 300*time.Millisecond)
	for i, p := range probes {
		r := p.Stop()
		d.say("  %-16s %d sent, %d lost, longest gap %s", vm.NICs[0].Addresses[i], r.Sent, r.Lost, ms(r.LongestGap))
	}
	return err
}

func ms(d time.Duration) string {
	switch {
	case d >= time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	default:
		return fmt.Sprintf("%.2f ms", float64(d.Microseconds())/1000)
	}
}
