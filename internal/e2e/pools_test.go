package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/daemons"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// withPrefixes adds pools that give each guest a prefix to a cluster.
func withPrefixes(c *fabric.Cluster) {
	c.Pools = append(c.Pools, fabric.Pool{Name: "own4", Prefix: netip.MustParsePrefix("198.51.100.0/24"), PerGuest: 29},
		fabric.Pool{Name: "own6", Prefix: netip.MustParsePrefix("2001:db8:200::/48"), PerGuest: 64},
		fabric.Pool{Name: "bare4", Prefix: netip.MustParsePrefix("192.0.2.0/24"), PerGuest: 29, NoAddress: true},
		fabric.Pool{Name: "bare6", Prefix: netip.MustParsePrefix("2001:db8:300::/48"), PerGuest: 64, NoAddress: true})
}

// hasPrefixes attaches a guest that asks for prefixes, and reaches it from outside at the
// first and the last address of each, also after the agent was killed.
func (s *system) hasPrefixes(a *agent) {
	s.t.Helper()
	attach := []string{"attach", "own", "--pool", "own6,own4", "--kind", "veth"}
	a.does(attach...)
	own := decode[[]fabric.Allocation](s.t, a.does("address", "show", "own", "--json"))
	require.Len(s.t, own, 2)
	vm := fabric.VM{Name: "own", NICs: make([]fabric.NIC, 1)}
	for _, has := range own {
		vm.NICs[0] = vm.NICs[0].WithAllocated(has)
	}
	require.Len(s.t, vm.Prefixes(), 4)
	s.coreHas(a.node, vm.Prefixes()...)
	_, err := s.lab.AddGuest(a.node, vm, s.cluster.Gateway)
	require.NoError(s.t, err)
	for _, has := range own {
		s.reaches(s.top.Client, has.Address().String(), fabric.RangeOf(has.Prefix).Last.String())
	}
	a.restart(a.Kill)
	a.does(attach...)
	for i, has := range decode[[]fabric.Allocation](s.t, a.does("address", "show", "own", "--json")) {
		assert.Equal(s.t, own[i].Prefix, has.Prefix)
	}
	for _, has := range own {
		s.reaches(s.top.Client, has.Address().String(), fabric.RangeOf(has.Prefix).Last.String())
	}
	usage := a.does("pool", "list")
	assert.Contains(s.t, usage, "2001:db8:200::/48 (a /64 each)")
	assert.Contains(s.t, usage, "192.0.2.0/24 (a /29 each, without an address)")
}

// hasBarePrefixes attaches a guest with prefixes in which it has no address, and reaches it
// from outside at the first and the last address of each, through those that it has.
func (s *system) hasBarePrefixes(a *agent) {
	s.t.Helper()
	_, errs, code := a.cli("attach", "bare", "--pool", "public4,bare6", "--kind", "veth")
	assert.Equal(s.t, 1, code)
	assert.Contains(s.t, errs, "pool bare6 gives a prefix without an address in it, and the NIC has no other IPv6 address to route it through")
	a.does("attach", "bare", "--pool", "bare4,bare6,auto", "--kind", "veth")
	vm := fabric.VM{Name: "bare", NICs: make([]fabric.NIC, 1)}
	var bare []netip.Prefix
	for _, has := range decode[[]fabric.Allocation](s.t, a.does("address", "show", "bare", "--json")) {
		vm.NICs[0] = vm.NICs[0].WithAllocated(has)
		if has.NoAddress {
			bare = append(bare, has.Prefix)
		}
	}
	require.Len(s.t, vm.Prefixes(), 4)
	require.Len(s.t, bare, 2)
	s.coreHas(a.node, vm.Prefixes()...)
	_, err := s.lab.AddGuest(a.node, vm, s.cluster.Gateway)
	require.NoError(s.t, err)
	for _, p := range bare {
		s.reaches(s.top.Client, p.Addr().String(), fabric.RangeOf(p).Last.String())
	}
	a.does("detach", "bare")
}

// givesBack detaches a guest while a reflector that is down may have its routes yet. The
// addresses are given back when it is up again.
func (s *system) givesBack(a *agent, vm string, ps ...netip.Prefix) {
	s.t.Helper()
	require.NoError(s.t, s.rr["rr2"].Kill())
	s.eventually("the session with rr2 is down", func() error {
		for _, session := range a.status().Sessions {
			if session.Peer == "rr2" && session.State == fabric.Established {
				return errors.New(session.State)
			}
		}
		return nil
	})
	a.does("detach", vm)
	shows := func(p netip.Prefix) fabric.Allocation {
		return decode[[]fabric.Allocation](s.t, a.does("address", "show", p.Addr().String(), "--json"))[0]
	}
	for _, p := range ps {
		s.eventually(p.String()+" waits", func() error {
			if is := shows(p); !strings.Contains(is.Waits, "reflector rr2 may keep this node's route until") {
				return fmt.Errorf("%+v", is)
			}
			return nil
		})
		assert.Equal(s.t, fabric.Allocated, shows(p).State)
		assert.Contains(s.t, a.does("address", "show", p.Addr().String()), "or vmfabric address release "+p.Addr().String())
	}
	out, _, code := a.cli("status")
	assert.Equal(s.t, 1, code)
	assert.Contains(s.t, out, "guest "+vm+" is gone for good, and its addresses are not given back yet: reflector rr2")
	s.startReflector("rr2")
	for _, p := range ps {
		s.eventually(p.String()+" is given back", func() error {
			if is := shows(p); is.State != fabric.Quarantined {
				return fmt.Errorf("%+v", is)
			}
			return nil
		})
	}
}

// TestPools: a guest gets its addresses and prefixes from the pools by the command line,
// keeps them over a kill of the agent, and gives them back when it is detached.
func TestPools(t *testing.T) {
	t.Parallel()
	s := start(t, options{change: withPrefixes})
	a := s.agents["node1"]
	a.does("attach", "web", "--pool", "auto")
	given := decode[[]fabric.Allocation](t, a.does("address", "show", "web", "--json"))
	require.Len(t, given, 2)
	v4, v6 := given[0].Prefix, given[1].Prefix
	s.coreHas(a.node, v4, v6)
	assert.Contains(t, a.does("pool", "list"), "public4")
	usage := decode[[]fabric.PoolUsage](t, a.does("pool", "list", "--json"))
	assert.Equal(t, 1, usage[0].Allocated)

	s.hasBarePrefixes(a)
	s.hasPrefixes(a) // kills the agent
	a.does("attach", "web", "--pool", "auto")
	assert.Equal(t, given[0].Prefix, decode[[]fabric.Allocation](t, a.does("address", "show", "web", "--json"))[0].Prefix)

	free := []string{"203.0.113.77", "203.0.113.78", "203.0.113.79"}
	free = slices.DeleteFunc(free, func(a string) bool { return a == v4.Addr().String() })
	a.does("address", "reserve", free[0], "--note", "printer")
	for _, tc := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"attach", "other", "--pool", "none"}, 1, `pool "none" is not in cluster`},
		{[]string{"attach", "other", "--address", v4.Addr().String()}, 1, `held by VM "web"`},
		{[]string{"address", "release", v4.Addr().String()}, 1, "guest web has it on node1"},
		{[]string{"address", "release", "nobody"}, 1, "no guest that has one"},
		{[]string{"address", "show", free[1]}, 1, "no such address"},
		{[]string{"address", "reserve", "198.51.101.1"}, 1, "in no pool"},
		{[]string{"address", "reserve", v4.Addr().String()}, 1, "is allocated to guest web"},
		{[]string{"address", "reserve", "here"}, 2, "no address and no prefix"},
		{[]string{"address", "list", "--pool", "none"}, 1, `pool "none"`},
		{[]string{"address", "allocate", "nobody"}, 1, "guest nobody"},
		{[]string{"attach", "other", "--pool", "a b"}, 1, "a b"},
	} {
		_, errs, code := a.cli(tc.args...)
		assert.Equal(t, tc.code, code, "%v: %s", tc.args, errs)
		assert.Contains(t, errs, tc.says, "%v", tc.args)
	}
	a.does("address", "release", free[0])
	a.does("address", "allocate", "later", "--pool", "public4")
	later := decode[[]fabric.Allocation](t, a.does("address", "show", "later", "--json"))[0].Prefix
	a.does("attach", "later", "--pool", "public4")
	s.coreHas(a.node, later)

	s.givesBack(a, "web", v4, v6)
	a.does("attach", "web", "--pool", "auto")
	s.coreHas(a.node, v4, v6)
	out, _, code := a.cli("status")
	assert.Zero(t, code, out)
}

// TestPoolsOfDomains: a domain of libvirt that asks the pools keeps what it got until
// it is undefined, on a node whose registry is its own and where it moves.
func TestPoolsOfDomains(t *testing.T) {
	t.Parallel()
	s := start(t, options{nodes: 2, change: func(c *fabric.Cluster) {
		withPrefixes(c)
		for i := range c.Pools {
			c.Pools[i].Nodes = []string{"node1"}
		}
	}})
	lv, other := s.hypervisor("node1"), s.hypervisor("node2")
	one, two := s.agents["node1"], s.agents["node2"]
	d := s.domain(lv, "sea_gold", tap("203.0.113.10", "2001:db8:100::10"))
	changeMetadata(t, lv, "--config", "--key", "fabric", "--set", `<vm><nic><address pool="auto"/><address pool="own6"/><address pool="bare6"/></nic></vm>`)
	require.NoError(t, d.Start(soon(t)))
	shown := func(a *agent, what string) []fabric.Allocation {
		t.Helper()
		out, errs, code := a.cli("address", "show", what, "--json")
		require.Zero(t, code, errs)
		return decode[[]fabric.Allocation](t, out)
	}
	given := shown(one, "sea_gold")
	require.Len(t, given, 4)
	var has []netip.Prefix
	for _, g := range given {
		if has = append(has, g.Prefix); !g.NoAddress {
			has = append(has, fabric.HostPrefix(g.Address()))
		}
	}
	s.coreHas(one.node, has...)

	one.restart(one.Kill)
	require.NoError(t, d.Destroy(soon(t)))
	s.leavesNothing(one.node, has...)
	require.NoError(t, d.Start(soon(t)))
	s.coreHas(one.node, has...)

	require.NoError(t, d.Migrate(soon(t), other))
	s.coreHas(two.node, has...)
	s.eventually("the node that gave it knows where it is", func() error {
		if is := shown(one, "sea_gold")[0]; is.Node != "node2" {
			return fmt.Errorf("it is on %s", is.Node)
		}
		return nil
	})
	assert.Equal(t, given[0].Prefix, shown(two, "sea_gold")[0].Prefix)

	require.NoError(t, d.Destroy(soon(t)))
	_, err := other.Virsh(soon(t), "undefine", "sea_gold")
	require.NoError(t, err)
	for _, a := range []*agent{one, two} {
		s.eventually("the addresses are given back", func() error {
			for _, g := range given {
				if is := shown(a, g.Prefix.String())[0]; is.State != fabric.Quarantined {
					return fmt.Errorf("%s is %s on %s", is.Prefix, is.State, a.node.Name())
				}
			}
			return nil
		})
	}
	one.healthy()
	two.healthy()
}

// TestDomainsOfEtcd: a domain keeps its addresses where it moves, also while etcd is away and an
// agent has begun anew meanwhile; the registry has its owner afterwards, and gives back
// what it had when it is undefined.
func TestDomainsOfEtcd(t *testing.T) {
	t.Parallel()
	s := start(t, options{nodes: 2, noAgent: true, change: ofEtcd})
	at := s.top.Reflectors[s.cluster.Reflectors[0].Name]
	etcd := s.startEtcd(at)
	lv, other := s.hypervisor("node1"), s.hypervisor("node2")
	one, two := s.agents["node1"], s.agents["node2"]
	d := s.domain(lv, "sea_gold", tap("203.0.113.10", "2001:db8:100::10"))
	changeMetadata(t, lv, "--config", "--key", "fabric", "--set", `<vm/>`)
	require.NoError(t, d.Start(soon(t)))
	given := decode[[]fabric.Allocation](t, two.does("address", "show", "sea_gold", "--json"))
	require.Len(t, given, 2)
	v4, v6 := given[0].Prefix, given[1].Prefix
	s.coreHas(one.node, v4, v6)
	last := given[0].Epoch
	ownedBy := func(node string) {
		t.Helper()
		s.eventually("the registry has the owner", func() error {
			for _, a := range []*agent{one, two} {
				out, errs, code := a.cli("address", "show", "sea_gold", "--json")
				if code != 0 {
					return fmt.Errorf("%s: %s", a.node.Name(), errs)
				}
				is := decode[[]fabric.Allocation](t, out)
				if len(is) != 2 || is[0].Prefix != v4 || is[1].Prefix != v6 || is[0].Node != node || is[0].Epoch <= last {
					return fmt.Errorf("%s knows %+v, after epoch %d", a.node.Name(), is, last)
				}
				given = is
			}
			return nil
		})
		last = given[0].Epoch
	}
	require.NoError(t, d.Migrate(soon(t), other))
	s.coreHas(two.node, v4, v6)
	ownedBy("node2")

	require.NoError(t, etcd.Kill())
	one.complains("nothing listens there; start etcd")
	one.restart(one.Kill)
	require.NoError(t, d.Migrate(soon(t), lv))
	s.coreHas(one.node, v4, v6)
	require.NoError(t, d.Destroy(soon(t)))
	s.leavesNothing(one.node, v4, v6)
	require.NoError(t, d.Start(soon(t)))
	s.coreHas(one.node, v4, v6)
	s.startEtcd(at)
	ownedBy("node1")
	one.healthy()
	two.healthy()

	require.NoError(t, d.Destroy(soon(t)))
	_, err := lv.Virsh(soon(t), "undefine", "sea_gold")
	require.NoError(t, err)
	s.eventually("the addresses are given back", func() error {
		for _, is := range decode[[]fabric.Allocation](t, two.does("address", "list", "--json")) {
			if is.State != fabric.Quarantined {
				return fmt.Errorf("%s is %s", is.Prefix, is.State)
			}
		}
		return nil
	})
}

// startEtcd runs an etcd of one member on a host, with what it had before.
func (s *system) startEtcd(h *core.Host) *core.Daemon {
	s.t.Helper()
	program, err := daemons.Find(soon(s.t), "etcd")
	if err != nil {
		labtest.Missing(s.t, err)
	}
	url := "http://" + netip.AddrPortFrom(h.Addr4(), 2379).String()
	d, err := h.StartDaemon("etcd", exec.Command(program, "--data-dir", filepath.Join(h.Dir(), "etcd"),
		"--listen-client-urls", url, "--advertise-client-urls", url, "--listen-peer-urls", "http://127.0.0.1:2380"))
	require.NoError(s.t, err)
	return d
}

// viewsOfTheCluster asks each of two nodes about guests of both: web is on the first, and
// db on the second. It leaves everything as it was.
func (s *system) viewsOfTheCluster(one, two *agent, web []fabric.Allocation) {
	s.t.Helper()
	cli := func(a *agent, code int, args ...string) string {
		s.t.Helper()
		out, errs, got := a.cli(args...)
		require.Equal(s.t, code, got, "%v: %s%s", args, out, errs)
		return out + errs
	}
	for _, a := range []*agent{one, two} {
		a.healthy()
		var where []string
		for _, p := range decode[[]fabric.PortEntry](s.t, cli(a, 0, "list", "--cluster", "--json")) {
			where = append(where, p.VM+" on "+p.Node)
		}
		slices.Sort(where)
		assert.Equal(s.t, []string{"db on node2", "web on node1"}, where)
		for _, has := range web {
			out := cli(a, 0, "why", has.Prefix.Addr().String())
			assert.Contains(s.t, out, "allocation: guest web (attached web) on node1, epoch 17592")
			assert.Contains(s.t, out, "guest: web on node1")
			assert.Regexp(s.t, "ok      reflector rr1: .*was sent", out)
			assert.Contains(s.t, cli(a, 1, "address", "move", has.Prefix.Addr().String(), "--to", "db"), "guest web has it on node1; stop that one first")
		}
		free := a.unallocated().String()
		assert.Contains(s.t, cli(a, 1, "why", free), "MISSING guest: no guest of the cluster has "+free)
		assert.Contains(s.t, cli(a, 0, "import", "--yes"), "2 guests: 4 addresses known, 0 recorded now, 0 in conflict")
	}
	// A guest that does not run gives its addresses to one that does not run either.
	cli(one, 0, "address", "allocate", "old", "--pool", "auto")
	cli(one, 0, "address", "allocate", "new", "--pool", "auto")
	old := decode[[]fabric.Allocation](s.t, cli(one, 0, "address", "show", "old", "--json"))
	require.Len(s.t, old, 2)
	for _, has := range old {
		assert.Contains(s.t, cli(one, 1, "why", has.Prefix.Addr().String()), "guest old, whose it is, runs nowhere")
		cli(one, 0, "address", "move", has.Prefix.Addr().String(), "--to", "new")
		cli(one, 0, "address", "move", has.Prefix.Addr().String(), "--to", "new")
	}
	for _, is := range decode[[]fabric.Allocation](s.t, cli(one, 0, "address", "show", "new", "--json")) {
		if is.State == fabric.Quarantined {
			continue // what it had before
		}
		assert.True(s.t, slices.ContainsFunc(old, func(o fabric.Allocation) bool { return o.Prefix == is.Prefix }), is)
		cli(one, 0, "address", "release", is.Prefix.Addr().String(), "--now")
	}
	for _, a := range decode[[]fabric.Allocation](s.t, cli(one, 0, "address", "list", "--json")) {
		if a.State == fabric.Quarantined {
			cli(one, 0, "address", "release", a.Prefix.Addr().String(), "--now")
		}
	}
	require.NoError(s.t, two.Kill())
	out := cli(one, 1, "list", "--cluster")
	assert.Regexp(s.t, "(?m)^node1 +web +web_net0 +tap +live ", out)
	assert.Regexp(s.t, "(?m)^vmfabric: node node2 .*no agent listens there", out)
	out = cli(one, 1, "why", one.unallocated().String())
	assert.Contains(s.t, out, "; node node2 may have it, and does not say")
	assert.Contains(s.t, cli(one, 0, "why", web[0].Prefix.Addr().String()), "what it has is not known")
	assert.Contains(s.t, cli(one, 1, "import"), "1 guest: 2 addresses known, 0 to record, 0 in conflict")
	two.start()
	registry := decode[fabric.Status](s.t, cli(one, 0, "status", "--json")).Registry
	assert.Equal(s.t, &fabric.RegistryStatus{Kind: "etcd", Shared: true, Healthy: true, Problems: []string{}}, registry)
}

// ofEtcd gives the cluster a registry in an etcd of one member on its first reflector.
func ofEtcd(c *fabric.Cluster) {
	c.Registry.Etcd = &fabric.EtcdConfig{Endpoints: []string{"http://" + netip.AddrPortFrom(c.Reflectors[0].Address, 2379).String()}, Prefix: fabric.DefaultEtcdPrefix}
}

// startOfEtcd starts two nodes with a registry in etcd, and on each a guest with addresses
// of the pools: web and db.
func startOfEtcd(t *testing.T) (s *system, at *core.Host, etcd *core.Daemon, one, two *agent) {
	t.Helper()
	s = start(t, options{nodes: 2, noAgent: true, change: ofEtcd})
	at = s.top.Reflectors[s.cluster.Reflectors[0].Name]
	etcd = s.startEtcd(at)
	one, two = s.newAgent("node1", s.top.Nodes["node1"]), s.newAgent("node2", s.top.Nodes["node2"])
	one.start()
	two.start()
	one.does("attach", "web", "--pool", "auto")
	two.does("attach", "db", "--pool", "auto")
	return s, at, etcd, one, two
}

// does runs a command that must succeed, and gives what it prints.
func (a *agent) does(args ...string) string {
	a.s.t.Helper()
	out, errs, code := a.cli(args...)
	require.Zero(a.s.t, code, "%v: %s", args, errs)
	return out
}

// unallocated gives an address of the first pool that nobody has: pools give any.
func (a *agent) unallocated() netip.Addr {
	a.s.t.Helper()
	all := decode[[]fabric.Allocation](a.s.t, a.does("address", "list", "--json"))
	free := a.s.cluster.Pools[0].Prefix.Addr().Next()
	for slices.ContainsFunc(all, func(is fabric.Allocation) bool { return is.Prefix.Addr() == free }) {
		free = free.Next()
	}
	return free
}

// TestAdoptedRegistry: an etcd that lost what it had gives no address until the operator
// adopts it. Guests run on, and then it has what they have.
func TestAdoptedRegistry(t *testing.T) {
	t.Parallel()
	s, h, etcd, one, two := startOfEtcd(t)
	web := decode[[]fabric.Allocation](t, one.does("address", "show", "web", "--json"))
	assert.Contains(t, one.does("registry", "adopt", "--yes"), "nothing is to adopt")

	require.NoError(t, etcd.Kill())
	require.NoError(t, os.RemoveAll(filepath.Join(h.Dir(), "etcd")))
	s.startEtcd(h)
	one.restart(one.Kill)
	for _, a := range []*agent{one, two} {
		a.complains("adopt it once it has what the guests have: vmfabric registry adopt")
		_, errs, code := a.cli("attach", "other", "--pool", "auto")
		assert.Equal(t, 1, code)
		assert.Contains(t, errs, "no addresses are given")
	}
	s.coreHas(one.node, web[0].Prefix, web[1].Prefix)
	said := two.does("registry", "adopt")
	assert.Contains(t, said, "guest db has ")
	assert.Contains(t, said, ", and by the registry nobody has it")
	assert.Contains(t, said, "Nothing was changed")
	two.complains("vmfabric registry adopt")
	assert.Contains(t, two.does("registry", "adopt", "--yes"), "Adopted: incarnation 2 has begun")
	one.healthy()
	two.healthy()
	s.eventually("the registry has what the guests of both nodes have", func() error {
		all := decode[[]fabric.Allocation](t, two.does("address", "list", "--json"))
		if len(all) != 4 || !slices.ContainsFunc(all, func(a fabric.Allocation) bool { return a.VM == "web" && a.Prefix == web[0].Prefix && a.Dynamic }) {
			return fmt.Errorf("it has %v", all)
		}
		return nil
	})
	s.coreHas(one.node, web[0].Prefix, web[1].Prefix)
	s.damagedRecord(h, one, two)
	s.secondRegistry(one, two)
}

// damagedRecord damages the record of an address that a guest named which has ended, and has
// the operator end it.
func (s *system) damagedRecord(h *core.Host, one, two *agent) {
	s.t.Helper()
	free := one.unallocated()
	one.does("attach", "named", "--address", free.String())
	key := fmt.Sprintf("%s/%s/addr/%x/32", fabric.DefaultEtcdPrefix, s.cluster.Name, free.As4())
	ctl := func(args ...string) string {
		said, err := h.Run(soon(s.t), "etcdctl", append([]string{"--endpoints", s.cluster.Registry.Etcd.Endpoints[0]}, args...)...)
		require.NoError(s.t, err)
		return said
	}
	require.Contains(s.t, ctl("get", key), "attached named")
	ctl("put", key, "x")
	for _, a := range []*agent{one, two} {
		a.complains("key " + key + " is damaged; release " + free.String() + " when the guest runs that has it, or if none has")
	}
	_, errs, code := two.cli("attach", "other", "--address", free.String())
	assert.Equal(s.t, 1, code)
	assert.Contains(s.t, errs, free.String()+" may be another guest's: key "+key+" is damaged")
	assert.Contains(s.t, ctl("get", key), "\nx")
	two.does("address", "release", free.String())
	one.healthy()
	two.healthy()
}

// secondRegistry gives a node a cluster file with another prefix.
func (s *system) secondRegistry(one, two *agent) {
	s.t.Helper()
	content, err := os.ReadFile(s.file)
	require.NoError(s.t, err)
	wrong := strings.Replace(string(content), `:2379"]`, `:2379"], prefix: /other`, 1)
	require.NotEqual(s.t, wrong, string(content))
	file := filepath.Join(two.node.Dir(), "cluster.yaml")
	require.NoError(s.t, os.WriteFile(file, []byte(wrong), 0o600))
	two.args[slices.Index(two.args, s.file)] = file
	two.restart(two.Kill)
	one.complains("node node2 has another one than node1")
	assert.Contains(s.t, two.complains("node node1 has another one than node2"), "etcd, keys below /other/"+s.cluster.Name+"/")
	two.args[slices.Index(two.args, file)] = s.file
	two.restart(two.Kill)
	one.healthy()
	two.healthy()
}

// TestPoolsOfEtcd: two nodes share a registry. What runs does not depend on it.
func TestPoolsOfEtcd(t *testing.T) {
	t.Parallel()
	s, h, etcd, one, two := startOfEtcd(t)
	var all []fabric.Allocation
	s.eventually("a node knows what the other one gave", func() error {
		if all = decode[[]fabric.Allocation](t, one.does("address", "list", "--json")); len(all) != 4 {
			return fmt.Errorf("it has %v", all)
		}
		return nil
	})
	s.eventually("both nodes know the same", func() error {
		if there := decode[[]fabric.Allocation](t, two.does("address", "list", "--json")); !slices.Equal(all, there) {
			return fmt.Errorf("one has %v, the other %v", all, there)
		}
		return nil
	})
	web := decode[[]fabric.Allocation](t, two.does("address", "show", "web", "--json"))
	s.coreHas(one.node, web[0].Prefix, web[1].Prefix)
	_, errs, code := two.cli("attach", "other", "--address", web[0].Prefix.Addr().String())
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "is allocated to guest web (attached web), which got it on node1")

	s.viewsOfTheCluster(one, two, web)
	named := one.unallocated()
	require.NoError(t, etcd.Kill())
	one.complains("nothing listens there; start etcd")
	one.does("attach", "web", "--pool", "auto")
	_, errs, code = two.cli("attach", "other", "--address", web[0].Prefix.Addr().String())
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "is that of guest web (attached web), which got it on node1, by what this node knows of the registry, which does not answer now")
	one.restart(one.Kill)
	s.coreHas(one.node, web[0].Prefix, web[1].Prefix)
	one.does("attach", "named", "--address", named.String())
	_, errs, code = two.cli("attach", "other", "--pool", "auto")
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "nothing listens there; start etcd")
	assert.Contains(t, errs, "vmfabric status says more")

	s.startEtcd(h)
	one.healthy()
	two.healthy()
	s.eventually("addresses are given again", func() error { // an etcd that begins may be slow to answer
		if _, errs, code := two.cli("attach", "other", "--pool", "auto"); code != 0 {
			return errors.New(errs)
		}
		return nil
	})
	s.eventually("what was missed is there, and what came since", func() error {
		all := decode[[]fabric.Allocation](t, one.does("address", "list", "--json"))
		if len(all) != 7 || !slices.ContainsFunc(all, func(a fabric.Allocation) bool { return a.VM == "named" }) {
			return fmt.Errorf("it has %v", all)
		}
		return nil
	})
}
