package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/routers"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// patience bounds every wait; a loaded machine with the race detector on is slow.
const patience = 90 * time.Second

func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// system is a cluster in a laboratory: everything around the agents runs from
// what `vmfabric render` gives.
type system struct {
	t       testing.TB
	o       options
	lab     *core.Lab
	top     *core.Topology
	cluster fabric.Cluster
	file    string
	rr      map[string]router
	core    router
	daemons map[string]router // that speak for nodes
	agents  map[string]*agent
}

// agent is the real program on a node.
type agent struct {
	*core.Daemon
	s      *system
	node   *core.Host
	socket string
	args   []string
	inside []string      // the program that runs it in further namespaces, and its arguments
	jumped time.Duration // how far its clock is ahead of ours
}

// options say how a system differs from one node, BIRD everywhere else.
type options struct {
	nodes    int
	rr       string                // "bird", "frr" or "embedded"
	core     string                // "bird" or "frr"
	speakers map[string]string     // of nodes whose agent does not speak itself: "bird" or "frr"
	change   func(*fabric.Cluster) // before anything is built
	noRR     bool                  // reflectors are started by the test
	noAgent  bool
	program  string                         // runs the agents; empty: vmfabric
	resumes  bool                           // BIRD reflectors say that they resume, as docs/reflector.md has it
	unmanned []string                       // nodes on which nothing runs
	edit     func(name, conf string) string // changes what was rendered for a router
	ingress  string                         // rules of sea_gold's firewall; empty: it has none
}

// start builds a cluster with two reflectors, a core gateway and an agent on
// every node, and waits until all sessions are up.
func start(t testing.TB, o options) *system {
	t.Helper()
	o.rr, o.core = cmp.Or(o.rr, "bird"), cmp.Or(o.core, "bird")
	needed := append([]string{o.rr, o.core}, slices.Collect(maps.Values(o.speakers))...)
	labtest.Need(t, slices.DeleteFunc(needed, func(s string) bool { return s == "embedded" })...)
	s := &system{t: t, o: o, cluster: core.SmallCluster(max(o.nodes, 1)), rr: map[string]router{}, daemons: map[string]router{}, agents: map[string]*agent{}}
	s.cluster.Routed = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:200::/40")}
	if o.change != nil {
		o.change(&s.cluster)
	}
	s.lab, s.top = labtest.Build(t, s.cluster)
	s.file = s.writeFile("cluster.yaml", s.cluster)
	if !o.noRR {
		s.startReflectors()
	}
	s.core = s.startRouter(o.core, s.top.Core)
	for name, h := range s.top.Nodes {
		if slices.Contains(o.unmanned, name) {
			continue
		}
		s.agents[name] = s.newAgent(name, h)
		if !o.noAgent {
			s.agents[name].start()
		}
	}
	if !o.noAgent && !o.noRR {
		for _, a := range s.agents {
			a.established()
		}
	}
	return s
}

// writeFile writes a cluster file, and its key and the reflectors' password beside it.
func (s *system) writeFile(name string, c fabric.Cluster) (path string) {
	s.t.Helper()
	key := filepath.Join(s.lab.Dir(), "cluster.key")
	require.NoError(s.t, os.WriteFile(key, []byte("the key of "+c.Name+" and its nodes\n"), 0o600))
	text := core.ClusterFile(c) + "key_file: " + key + "\n"
	if password := c.Reflectors[0].Password; password != "" {
		secret := filepath.Join(s.lab.Dir(), "rr.secret")
		require.NoError(s.t, os.WriteFile(secret, []byte(password+"\n"), 0o600))
		text = strings.ReplaceAll(text, "gtsm:", "password_file: "+secret+", gtsm:")
	}
	path = filepath.Join(s.lab.Dir(), name)
	require.NoError(s.t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// newAgent says how the agent of a node is run, with the routing daemon that
// speaks for it, which is started.
func (s *system) newAgent(name string, h *core.Host) *agent {
	s.t.Helper()
	a := &agent{s: s, node: h, socket: filepath.Join(h.Dir(), "agent.sock")}
	a.args = []string{
		"agent", "--config", s.file, "--node", name, "--state", filepath.Join(h.Dir(), "state"),
		"--socket", a.socket, "--libvirt", "off", "--lxd", "off", "--incus", "off", "--log-level", "debug",
	}
	if kind := s.o.speakers[name]; kind != "" {
		a.args = append(a.args, "--speaker", kind)
		s.daemons[name] = s.startRouter(kind, h)
	}
	return a
}

func (s *system) startReflectors() {
	s.t.Helper()
	for name := range s.top.Reflectors {
		s.startReflector(name)
	}
}

func (s *system) startReflector(name string) {
	s.t.Helper()
	s.rr[name] = s.startRouter(s.o.rr, s.top.Reflectors[name])
}

func (a *agent) start() {
	a.s.t.Helper()
	require.NoError(a.s.t, a.launch())
	require.NoError(a.s.t, a.answers(soon(a.s.t)))
}

// launch starts the agent, and does not wait for it.
func (a *agent) launch() (err error) {
	line := slices.Concat(a.inside, []string{cmp.Or(a.s.o.program, program)}, a.args)
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Env = append(os.Environ(), a.env()...)
	a.jumped = 0
	a.Daemon, err = a.node.StartDaemon("agent", cmd)
	return err
}

// answers waits until the agent that was launched answers.
func (a *agent) answers(ctx context.Context) error {
	return a.Until(ctx, func() error {
		_, err := hooks.Call(ctx, a.socket, hooks.Request{Op: hooks.List})
		return err
	})
}

// follow has the agent follow a hypervisor, whose hooks find it in a directory.
func (a *agent) follow(flag, socket, hooksDir string) {
	a.s.t.Helper()
	require.NoError(a.s.t, os.Symlink(a.socket, filepath.Join(hooksDir, "agent.sock")))
	a.args[slices.Index(a.args, flag)+1] = socket
	if a.Daemon != nil {
		require.NoError(a.s.t, a.Stop())
	}
	a.start()
	a.established()
}

// restart ends the agent by a signal's doing and starts it again.
func (a *agent) restart(stop func() error) {
	a.s.t.Helper()
	require.NoError(a.s.t, stop())
	a.start()
}

func (a *agent) try(req hooks.Request) (hooks.Reply, error) {
	return hooks.Client{Socket: a.socket}.Call(soon(a.s.t), req)
}

func (a *agent) ask(op hooks.Op, vm fabric.VM) hooks.Reply {
	a.s.t.Helper()
	reply, err := a.try(hooks.Request{Op: op, VM: vm})
	require.NoError(a.s.t, err)
	return reply
}

// status waits for an answer: on a busy machine the agent may take a speaker in a
// program of its own for hung, and start it anew.
func (a *agent) status() (st fabric.Status) {
	a.s.t.Helper()
	a.eventually("the agent tells its status", func() error {
		reply, err := a.try(hooks.Request{Op: hooks.Status})
		if err == nil {
			st = *reply.Status
		}
		return err
	})
	return st
}

// established waits until all sessions of the agent are up.
func (a *agent) established() {
	a.s.t.Helper()
	a.eventually("all sessions are up", func() error {
		for _, s := range a.status().Sessions {
			if s.State != "established" {
				return fmt.Errorf("%s is %s", s.Peer, s.State)
			}
		}
		return nil
	})
}

func (a *agent) eventually(what string, f func() error) { a.s.eventually(what, f) }

func (s *system) eventually(what string, f func() error) {
	s.t.Helper()
	require.NoError(s.t, core.Until(soon(s.t), f), what)
}

// cli runs the program on a node against its agent.
func (a *agent) cli(args ...string) (stdout, stderr string, code int) {
	a.s.t.Helper()
	return runIn(a.s.t, a.node, program, append([]string{"--socket", a.socket}, args...)...)
}

func runIn(t testing.TB, h *core.Host, path string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs strings.Builder
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	require.NoError(t, h.Start(cmd))
	_ = cmd.Wait()
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// veth is a guest whose NICs are veth ports.
func veth(name string, addresses ...string) fabric.VM {
	return fabric.VM{Name: name, NICs: []fabric.NIC{nic(addresses...)}}
}

// nic takes addresses, and prefixes to be routed.
func nic(addresses ...string) fabric.NIC {
	n := fabric.NIC{Kind: fabric.Veth}
	for _, s := range addresses {
		if strings.Contains(s, "/") {
			n.Routes = append(n.Routes, netip.MustParsePrefix(s))
		} else {
			n.Addresses = append(n.Addresses, netip.MustParseAddr(s))
		}
	}
	return n
}

// run brings a guest without a hypervisor live on a node.
func (s *system) run(node string, vm fabric.VM) *core.Guest {
	s.t.Helper()
	s.agents[node].ask(hooks.Wire, vm)
	g, err := s.lab.AddGuest(s.top.Nodes[node], vm, s.cluster.Gateway)
	require.NoError(s.t, err)
	s.agents[node].ask(hooks.Live, vm)
	return g
}

// reaches waits until one host has an answer from an address of another.
func (s *system) reaches(from *core.Host, to ...string) {
	s.t.Helper()
	for _, a := range to {
		_, err := from.Ping(soon(s.t), netip.MustParseAddr(a))
		require.NoError(s.t, err)
	}
}

// coreHas waits until the core gateway's kernel routes every prefix to a node.
func (s *system) coreHas(node *core.Host, ps ...netip.Prefix) {
	s.t.Helper()
	s.coreHasVia([2]netip.Addr{node.Addr4(), node.Addr6()}, ps...)
}

// coreHasVia is coreHas for the node with these addresses, of each family.
func (s *system) coreHasVia(node [2]netip.Addr, ps ...netip.Prefix) {
	s.t.Helper()
	for _, p := range ps {
		via := node[0]
		if p.Addr().Is6() {
			via = node[1]
		}
		s.eventually(p.String(), func() error {
			r, ok, err := s.top.Core.Route(p)
			if err != nil || !ok || !slices.Contains(r.Vias(), via) {
				return fmt.Errorf("core has %v %v %w", r, ok, err)
			}
			return nil
		})
	}
}

// nobodyHas waits until no reflector and not the core gateway has a prefix.
func (s *system) nobodyHas(ps ...netip.Prefix) {
	s.t.Helper()
	for _, p := range ps {
		s.eventually(p.String()+" is gone", func() error {
			if r, ok, err := s.top.Core.Route(p); err != nil || ok {
				return fmt.Errorf("core has %v %w", r, err)
			}
			for name, b := range s.rr {
				routes, err := b.Routes(soon(s.t))
				if err != nil || slices.ContainsFunc(routes, func(r routers.BGPRoute) bool { return r.Prefix == p }) {
					return fmt.Errorf("%s has %s %w", name, p, err)
				}
			}
			return nil
		})
	}
}

// reflected gives a reflector's route to a prefix, once it has one.
func (s *system) reflected(rr string, p netip.Prefix) (found routers.BGPRoute) {
	s.t.Helper()
	s.eventually(p.String()+" at "+rr, func() error {
		routes, err := s.rr[rr].Routes(soon(s.t))
		if err != nil {
			return err
		}
		i := slices.IndexFunc(routes, func(r routers.BGPRoute) bool { return r.Prefix == p })
		if i < 0 {
			return fmt.Errorf("%s has no route to %s", rr, p)
		}
		found = routes[i]
		return nil
	})
	return found
}

// leftOn lists what of the fabric is on a node: links with our mark, routes of
// our protocol, state files.
func (s *system) leftOn(node *core.Host) []string {
	s.t.Helper()
	var left []string
	links, err := node.Netlink().LinkList()
	require.NoError(s.t, err)
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Alias, "vmfabric:") {
			left = append(left, "link "+l.Attrs().Name)
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := node.Netlink().RouteListFiltered(family, &netlink.Route{Protocol: fabric.Protocol}, netlink.RT_FILTER_PROTOCOL)
		require.NoError(s.t, err)
		for _, r := range routes {
			left = append(left, "route "+r.Dst.String())
		}
	}
	files, err := filepath.Glob(filepath.Join(node.Dir(), "state", "guests", "*.json"))
	require.NoError(s.t, err)
	return append(left, files...)
}

// leavesNothing waits until nothing of the fabric is left of these prefixes.
func (s *system) leavesNothing(node *core.Host, ps ...netip.Prefix) {
	s.t.Helper()
	s.eventually("nothing is left on "+node.Name(), func() error {
		if left := s.leftOn(node); len(left) > 0 {
			return fmt.Errorf("left: %v", left)
		}
		return nil
	})
	s.nobodyHas(ps...)
}

func decode[T any](t testing.TB, text string) (v T) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(text), &v), text)
	return v
}
