package e2e

import (
	"context"
	"encoding/json"
	"fmt"
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
	"github.com/vmfabric/vmfabric/testenv"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// patience bounds every wait; a loaded machine with the race detector on is slow.
const patience = 90 * time.Second

func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// system is a cluster in a laboratory.
type system struct {
	t       testing.TB
	lab     *testenv.Lab
	top     *testenv.Topology
	cluster fabric.Cluster
	file    string
	rr      map[string]*testenv.Bird
	core    interface { // BIRD or FRR
		Routes(ctx context.Context) ([]testenv.BGPRoute, error)
	}
	agents map[string]*agent
}

// agent is the real program on a node.
type agent struct {
	*testenv.Daemon
	s      *system
	node   *testenv.Host
	socket string
	args   []string
}

type options struct {
	nodes    int
	core     string // "bird" or "frr"
	password string
	gtsm     bool
	noRR     bool // reflectors are started by the test
	noAgent  bool
	change   func(*fabric.Cluster) // before anything is built
}

// start builds a cluster with two BIRD reflectors, a core gateway and an agent
// on every node, and waits until all sessions are up.
func start(t testing.TB, o options) *system {
	t.Helper()
	labtest.Need(t, "bird")
	if o.core == "frr" {
		labtest.Need(t, "frr")
	}
	s := &system{t: t, cluster: testenv.SmallCluster(max(o.nodes, 1)), rr: map[string]*testenv.Bird{}, agents: map[string]*agent{}}
	for i := range s.cluster.Reflectors {
		s.cluster.Reflectors[i].GTSM = o.gtsm
	}
	if o.change != nil {
		o.change(&s.cluster)
	}
	s.lab, s.top = labtest.Build(t, s.cluster)
	text := testenv.ClusterFile(s.cluster)
	if o.password != "" {
		secret := filepath.Join(s.lab.Dir(), "rr.secret")
		require.NoError(t, os.WriteFile(secret, []byte(o.password+"\n"), 0o600))
		text = strings.ReplaceAll(text, "gtsm:", "password_file: "+secret+", gtsm:")
	}
	s.file = filepath.Join(s.lab.Dir(), "cluster.yaml")
	require.NoError(t, os.WriteFile(s.file, []byte(text), 0o600))
	if !o.noRR {
		s.startReflectors(o.password, o.gtsm)
	}
	s.startCore(o)
	for name, h := range s.top.Nodes {
		s.agents[name] = &agent{s: s, node: h, socket: filepath.Join(h.Dir(), "agent.sock")}
		s.agents[name].args = []string{
			"agent", "--config", s.file, "--node", name, "--state", filepath.Join(h.Dir(), "state"),
			"--socket", s.agents[name].socket, "--libvirt", "off", "--lxd", "off", "--log-level", "debug",
		}
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

func (s *system) startReflectors(password string, gtsm bool) {
	s.t.Helper()
	bgp := testenv.BGPOf(s.cluster)
	bgp.Password = password
	for name, h := range s.top.Reflectors {
		conf := testenv.Reflector{BGP: bgp, RouterID: h.Addr4(), Cores: []netip.Addr{s.top.Core.Addr4()}}.Bird()
		if gtsm {
			conf = strings.Replace(conf, "\tdirect;", "\tdirect; ttl security on;", 1)
		}
		var err error
		s.rr[name], err = h.StartBird(soon(s.t), conf)
		require.NoError(s.t, err)
	}
}

func (s *system) startCore(o options) {
	s.t.Helper()
	bgp := testenv.BGPOf(s.cluster)
	bgp.Password, bgp.BFD = o.password, s.cluster.Core[0].BFD
	bgp.LongLived = s.cluster.Timers.LongLived
	core := testenv.CoreGateway{BGP: bgp, RouterID: s.top.Core.Addr4()}
	for _, rr := range s.cluster.Reflectors {
		core.Reflectors = append(core.Reflectors, rr.Address)
	}
	var err error
	if o.core == "frr" {
		s.core, err = s.top.Core.StartFRR(soon(s.t), core.FRR())
	} else {
		conf := core.Bird()
		if o.gtsm {
			conf = strings.Replace(conf, "\tdirect;", "\tdirect; ttl security on;", 1)
		}
		s.core, err = s.top.Core.StartBird(soon(s.t), conf)
	}
	require.NoError(s.t, err)
}

func (a *agent) start() {
	a.s.t.Helper()
	d, err := a.node.StartDaemon("agent", exec.Command(program, a.args...))
	require.NoError(a.s.t, err)
	a.Daemon = d
	require.NoError(a.s.t, testenv.Until(soon(a.s.t), func() error {
		_, err := a.try(hooks.Request{Op: hooks.List})
		if !d.Running() {
			a.s.t.Fatalf("agent ended: %s", d.Log())
		}
		return err
	}))
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

func (a *agent) status() fabric.Status {
	a.s.t.Helper()
	reply, err := a.try(hooks.Request{Op: hooks.Status})
	require.NoError(a.s.t, err)
	return *reply.Status
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
	require.NoError(s.t, testenv.Until(soon(s.t), f), what)
}

// cli runs the program on a node against its agent.
func (a *agent) cli(args ...string) (stdout, stderr string, code int) {
	a.s.t.Helper()
	return runIn(a.s.t, a.node, program, append([]string{"--socket", a.socket}, args...)...)
}

func runIn(t testing.TB, h *testenv.Host, path string, args ...string) (stdout, stderr string, code int) {
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
func (s *system) run(node string, vm fabric.VM) *testenv.Guest {
	s.t.Helper()
	s.agents[node].ask(hooks.Wire, vm)
	g, err := s.lab.AddGuest(s.top.Nodes[node], vm, s.cluster.Gateway)
	require.NoError(s.t, err)
	s.agents[node].ask(hooks.Live, vm)
	return g
}

// reaches waits until one host has an answer from an address of another.
func (s *system) reaches(from *testenv.Host, to ...string) {
	s.t.Helper()
	for _, a := range to {
		_, err := from.Ping(soon(s.t), netip.MustParseAddr(a))
		require.NoError(s.t, err)
	}
}

// coreHas waits until the core gateway's kernel routes every prefix to a node.
func (s *system) coreHas(node *testenv.Host, ps ...netip.Prefix) {
	s.t.Helper()
	for _, p := range ps {
		via := node.Addr4()
		if p.Addr().Is6() {
			via = node.Addr6()
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
				if err != nil || slices.ContainsFunc(routes, func(r testenv.BGPRoute) bool { return r.Prefix == p }) {
					return fmt.Errorf("%s has %s %w", name, p, err)
				}
			}
			return nil
		})
	}
}

// reflected gives a reflector's route to a prefix, once it has one.
func (s *system) reflected(rr string, p netip.Prefix) (found testenv.BGPRoute) {
	s.t.Helper()
	s.eventually(p.String()+" at "+rr, func() error {
		routes, err := s.rr[rr].Routes(soon(s.t))
		if err != nil {
			return err
		}
		i := slices.IndexFunc(routes, func(r testenv.BGPRoute) bool { return r.Prefix == p })
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
func (s *system) leftOn(node *testenv.Host) []string {
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
func (s *system) leavesNothing(node *testenv.Host, ps ...netip.Prefix) {
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
