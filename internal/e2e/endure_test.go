package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/endure"
	"github.com/vmfabric/vmfabric/internal/probe"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/hypervisors"
	"github.com/vmfabric/vmfabric/testenv/lab/routers"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// A run by hand takes as long as -endure says; what the tests run is of few episodes.
var (
	endureFor  = flag.Duration("endure", 0, "how long TestEndure runs, with guests and hypervisors on every node")
	endureFrom = flag.Uint64("from", 0, "the seed of TestEndure; 0: a fresh one by hand, else the tests' own")
	endureRate = flag.Duration("rate", time.Millisecond, "the time between two packets to each address in a run of TestEndure by hand; five times as long to an emulated guest")
)

const (
	fewEpisodes = 7
	fewSeed     = 1821
)

const coreName = "core1"

// scale is how much of everything a run has.
type scale struct {
	domains, instances, attached int
	libvirts, lxds               []string
	members, deaths              int
	fast, slow                   time.Duration // between two packets to a guest, and to an emulated one
}

var (
	small = scale{1, 1, 1, []string{"node1", "node2"}, []string{"node2", "node3"}, 1, 5, 5 * time.Millisecond, 10 * time.Millisecond}
	large = scale{2, 2, 2, []string{"node1", "node2", "node3"}, []string{"node1", "node2", "node3"}, 3, 12, 0, 0}
)

// endurance is a cluster, what should be true of it, and what happened to it.
type endurance struct {
	*system
	scale   scale
	seed    uint64
	began   time.Time
	lv      map[string]*hypervisors.Libvirt
	lx      map[string]*hypervisors.LXD
	routers map[string]*speaking // reflectors, the core gateway, and those of nodes
	etcd    *labtest.Etcd
	tenants map[string]tenant
	world   endure.World
	account endure.Account
	changes func() []netlink.RouteUpdate // of the core gateway's routes to guests

	mu     sync.Mutex    // of the account, and of the others here: faults are at one time
	dying  time.Duration // the longest time in this episode from a kill to the end of a process
	failed bool          // this episode did
	stuck  bool          // what was wrong in this episode is not right yet
}

// TestEndure has a cluster of real parts live through a history of starts, stops, moves
// and faults from a seed: three agents, reflectors, libvirt, LXD, etcd. Guests are probed
// meanwhile. After each episode everything must be right again in time: each guest that
// runs is reached and is announced by its node alone, and at the end nothing is left.
func TestEndure(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "bird", "qemu", "lxd", "etcd")
	e := &endurance{seed: *endureFrom, scale: small, began: time.Now()}
	if *endureFor > 0 {
		e.scale = large
		e.scale.fast, e.scale.slow = *endureRate, 5**endureRate
	}
	if e.seed == 0 {
		e.seed = map[bool]uint64{true: fewSeed, false: 1 + rand.Uint64N(1_000_000_000)}[*endureFor == 0]
	}
	t.Logf("seed %d: make endure LENGTH=%v FROM=%[1]d", e.seed, *endureFor)
	e.build(t)
	t.Cleanup(func() { t.Logf("%v", &e.account) })
	bare := e.inventory()
	e.warmUp()
	warm := e.measure()
	planner := endure.NewPlanner(e.seed)
	for n, began := 1, time.Now(); e.goesOn(n, began); n++ {
		e.episode(n, planner.Next(e.world))
		if n%sampled == 0 {
			e.measure()
		}
	}
	e.emptied()
	e.flat(warm, e.measure())
	e.removed(bare)
}

// sampled is after how many episodes it is told what agents take.
const sampled = 10

// goesOn reports whether there is to be another episode. A run by hand goes on after an
// episode that failed, as long as everything came right.
func (e *endurance) goesOn(n int, began time.Time) bool {
	if *endureFor == 0 {
		return n <= fewEpisodes && !e.t.Failed()
	}
	return time.Since(began) < *endureFor && !e.stuck
}

// fails notes that an episode failed, and why.
func (e *endurance) fails(format string, args ...any) {
	e.t.Helper()
	e.t.Errorf(format, args...)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.failed = true
}

// tell logs what happens, and when.
func (e *endurance) tell(format string, args ...any) {
	e.t.Logf("%s %7.2f %s", time.Now().Format(clock), time.Since(e.began).Seconds(), fmt.Sprintf(format, args...))
}

// killed counts a process of a kind that was killed.
func (e *endurance) killed(kind string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.account.Killed(kind)
}

// build starts the cluster, without guests.
func (e *endurance) build(t *testing.T) {
	var members []*core.Host
	var at []string
	for n := range e.scale.members {
		at = append(at, fmt.Sprintf("http://%s:2379", core.Underlay4(byte(31+n))))
	}
	e.system = start(t, options{nodes: 3, noAgent: true, resumes: true, speakers: map[string]string{"node2": "bird"}, change: func(c *fabric.Cluster) {
		c.Registry.Etcd = &fabric.EtcdConfig{Endpoints: at, Prefix: fabric.DefaultEtcdPrefix}
		c.Metrics = netip.MustParseAddrPort("127.0.0.1:9178")
	}})
	for n := range e.scale.members {
		h, err := e.lab.AddReflector(fmt.Sprintf("registry%d", n+1), core.Underlay4(byte(31+n)), core.Underlay6(byte(31+n)))
		require.NoError(t, err)
		members = append(members, h)
	}
	e.etcd = labtest.NewEtcd(t, labtest.EtcdOptions{Hosts: members})
	e.lv, e.lx, e.routers = map[string]*hypervisors.Libvirt{}, map[string]*hypervisors.LXD{}, map[string]*speaking{}
	for _, node := range e.scale.libvirts {
		e.lv[node] = e.hypervisor(node)
	}
	for _, node := range e.scale.lxds {
		e.lx[node] = e.lxd(node)
	}
	for _, one := range e.lx {
		for _, other := range e.lx {
			if one != other {
				require.NoError(t, one.Trust(soon(t), other))
			}
		}
	}
	for _, a := range e.agents {
		if a.Daemon == nil {
			a.start()
		}
	}
	for name, r := range e.rr {
		e.routers[name] = &speaking{r.(*routers.Bird), []string{"-R"}}
	}
	e.routers[coreName], e.routers["node2"] = &speaking{e.core.(*routers.Bird), nil}, &speaking{e.daemons["node2"].(*routers.Bird), nil}
	for _, a := range e.agents {
		a.established()
		a.healthy()
	}
	e.people()
	var all []netip.Prefix
	for _, g := range e.world.Guests {
		all = append(all, g.Prefixes...)
	}
	e.changes = e.watchChanges(all)
}

// people makes the guests, none of which runs.
func (e *endurance) people() {
	e.world = endure.World{
		Nodes: []string{"node1", "node2", "node3"}, Reflectors: []string{"rr1", "rr2"}, Core: coreName, Members: e.scale.members, Witness: "node3", Deaths: e.scale.deaths,
		Daemons: map[string]string{"node2": "bird"}, Sources: map[string][]endure.Kind{},
	}
	var err error
	e.world.Tables, err = tables(e.top.Nodes["node1"])
	require.NoError(e.t, err)
	require.NotEmpty(e.t, e.world.Tables)
	for _, node := range e.scale.libvirts {
		e.world.Sources[node] = append(e.world.Sources[node], endure.Domain)
	}
	for _, node := range e.scale.lxds {
		e.world.Sources[node] = append(e.world.Sources[node], endure.Instance)
	}
	e.tenants = map[string]tenant{}
	e.domains()
	for i, name := range e.guests(endure.Instance, e.scale.instances, e.scale.lxds) {
		n := nic(append(e.addressesOf(name), fmt.Sprintf("198.51.100.%d/29", 8*i), fmt.Sprintf("2001:db8:2%02d::/64", i))...)
		n.Kind = ""
		e.has(name, n)
		e.tenants[name] = &instanceTenant{lx: e.lx, o: hypervisors.ContainerOptions{Name: name, NICs: []fabric.NIC{n}, Gateway: e.cluster.Gateway}}
	}
	for _, name := range e.guests(endure.Attached, e.scale.attached, e.world.Nodes) {
		n := nic(e.addressesOf(name)...)
		e.has(name, n)
		e.tenants[name] = &attachedTenant{s: e.system, vm: fabric.VM{Name: name, NICs: []fabric.NIC{n}}}
	}
}

// domains makes the guests of libvirt. The second one asks the pools for its addresses,
// and its own configuration has them from when it was told for the first time.
func (e *endurance) domains() {
	for i, name := range e.guests(endure.Domain, e.scale.domains, e.scale.libvirts) {
		g := &domainTenant{lv: e.lv, o: hypervisors.DomainOptions{Name: name, Gateway: e.cluster.Gateway}}
		e.tenants[name] = g
		n := tap(e.addressesOf(name)...)
		if i == 1 {
			n = tap()
			g.o.Metadata = `<fabric:vm xmlns:fabric="urn:vmfabric:domain:1"><fabric:nic/></fabric:vm>`
			g.o.NICs = []hypervisors.DomainNIC{n}
			node := e.scale.libvirts[0]
			require.NoError(e.t, g.start(soon(e.t), node))
			for _, is := range decode[[]fabric.Allocation](e.t, e.agents[node].does("address", "show", name, "--json")) {
				n.Addresses = append(n.Addresses, is.Address())
			}
			require.NoError(e.t, g.stop(soon(e.t)))
			g.d = nil // to be defined anew
		}
		g.o.NICs = []hypervisors.DomainNIC{n}
		e.has(name, n.NIC)
	}
}

// guests adds guests of a kind to the world, and names them.
func (e *endurance) guests(kind endure.Kind, of int, hosts []string) (names []string) {
	for i := range of {
		name := fmt.Sprintf("%s%d", kind[:3], i+1)
		e.world.Guests = append(e.world.Guests, endure.Guest{Name: name, Kind: kind, Hosts: hosts})
		names = append(names, name)
	}
	return names
}

// addressesOf gives a guest of the world addresses of its own.
func (e *endurance) addressesOf(name string) []string {
	n := 100 + slices.IndexFunc(e.world.Guests, func(g endure.Guest) bool { return g.Name == name })
	return []string{fmt.Sprintf("203.0.113.%d", n), fmt.Sprintf("2001:db8:100::%d", n)}
}

// has notes what a guest of the world has.
func (e *endurance) has(name string, n fabric.NIC) {
	for i := range e.world.Guests {
		if e.world.Guests[i].Name == name {
			e.world.Guests[i].Prefixes = n.Prefixes()
		}
	}
}

// actBound is how long a hypervisor may take for one thing.
const actBound = 3 * time.Minute

// episode lives through one episode, and adds it to the account.
func (e *endurance) episode(n int, x endure.Episode) {
	e.tell("episode %d: %v", n, x)
	began := time.Now()
	already := e.t.Failed()
	e.failed = false
	defer func() {
		if e.failed || e.t.Failed() && !already {
			e.logs(began)
		}
	}()
	probes, before, changed := e.probes(x), e.world, len(e.changes())
	ctx, cancel := context.WithTimeout(e.t.Context(), actBound)
	defer cancel()
	var failing sync.WaitGroup
	for _, f := range x.Faults {
		failing.Go(func() {
			if err := e.fail(ctx, f); err != nil {
				e.fails("episode %d: %v: %v", n, f, err)
			}
		})
	}
	for _, d := range x.Doings {
		failing.Go(func() {
			err := e.act(ctx, d)
			if e.tell("%v: done (%v)", d, err); err != nil && len(x.Faults) == 0 {
				e.fails("episode %d: %v: %v", n, d, err)
			}
		})
	}
	failing.Wait()
	e.tell("all is done, and the last fault is over")
	for _, d := range x.Doings {
		e.locate(d)
	}
	o := endure.Outcome{Episode: x}
	var wrong []string
	o.Right, wrong = e.rights(x)
	e.stuck = len(wrong) > 0
	o.Losses, o.Stall, o.Waited = probes.end()
	o.Dying, e.dying = e.dying, 0
	o.Changes = e.changed(changed)
	e.account.Add(o)
	e.tell("right after %v of %v; the machine stalled for %v, its kernel for %v, a process took %v to end", o.Right, o.Bound(), o.Stall, o.Waited, o.Dying)
	if o.Late() || len(wrong) > 0 {
		e.fails("episode %d: %v later, and %v after %v are stated, there is wrong:\n%s", n, o.Right, o.Bound(), x, strings.Join(wrong, "\n"))
	}
	e.tellLosses(o.Losses)
	for _, lost := range slices.Concat(o.Lost(fewLost*e.scale.slow), o.Strayed(before)) {
		e.fails("episode %d: %s", n, lost)
	}
}

// tellLosses logs what was lost, whether or not it may be.
func (e *endurance) tellLosses(all []endure.Loss) {
	for _, l := range all {
		if l.Lost > 0 {
			e.tell("%s lost %d of %d, for up to %v", l.Guest, l.Lost, l.Sent, l.Longest)
		}
	}
}

// logs shows what the agents wrote since a time, but for details.
func (e *endurance) logs(since time.Time) {
	for _, name := range e.world.Nodes {
		var lines []string
		for line := range strings.Lines(e.agents[name].Log()) {
			text, _, _ := strings.Cut(strings.TrimPrefix(line, "time="), " ")
			at, err := time.Parse(time.RFC3339Nano, text)
			if err == nil && at.After(since) && !strings.Contains(line, "level=DEBUG") {
				lines = append(lines, line)
			}
		}
		e.t.Logf("%s wrote:\n%s", name, strings.Join(lines, ""))
	}
}

// changed lists the changes of the core gateway's routes but for the first ones.
func (e *endurance) changed(before int) (all []endure.Change) {
	for _, u := range e.changes()[before:] {
		p, err := netip.ParsePrefix(u.Dst.String())
		require.NoError(e.t, err)
		c := endure.Change{Prefix: p}
		if via, ok := netip.AddrFromSlice(u.Gw); ok && u.Type == unix.RTM_NEWROUTE {
			c.By = e.hostAt(via.Unmap())
		}
		all = append(all, c)
	}
	return all
}

// act does something to a guest.
func (e *endurance) act(ctx context.Context, d endure.Doing) error {
	g := e.tenants[d.Guest]
	switch d.Act {
	case endure.Start:
		return g.start(ctx, d.To)
	case endure.Stop:
		return g.stop(ctx)
	case endure.Crash:
		e.killed("guest")
		return g.crash(ctx)
	case endure.Move:
		return g.move(ctx, d.To)
	}
	return nil
}

// locate finds out where a guest is after something was done to it, and waits until it
// serves.
func (e *endurance) locate(d endure.Doing) {
	ctx, cancel := context.WithTimeout(e.t.Context(), actBound)
	defer cancel()
	g := e.tenants[d.Guest]
	on, err := g.where(ctx)
	if d.Act == endure.Crash { // the hypervisor may not have noticed yet; or there was nothing to kill
		noticed, end := context.WithTimeout(ctx, settling)
		_ = core.Until(noticed, func() error {
			if on, err = g.where(ctx); err == nil && on != "" {
				return errors.New("it runs")
			}
			return nil
		})
		end()
	}
	if by, ok := errors.AsType[*mended](err); ok {
		e.tell("%s: %v", d.Guest, by)
		err = nil
	}
	require.NoError(e.t, err, d.Guest)
	if on != "" && d.Act == endure.Start {
		require.NoError(e.t, g.ready(ctx), d.Guest)
	}
	e.tell("%s is on %q", d.Guest, on)
	e.world = e.world.Moved(d.Guest, on)
}

// rights waits until everything is right, and tells how long that took. What is wrong is
// empty then.
func (e *endurance) rights(x endure.Episode) (took time.Duration, wrong []string) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(e.t.Context(), 3*x.Right()+patience)
	defer cancel()
	said := ""
	for ctx.Err() == nil {
		at := time.Since(began)
		if wrong = e.wrong(ctx); len(wrong) == 0 {
			return at, nil
		}
		if now := strings.Join(wrong, "; "); now != said {
			said = now
			e.tell("wrong: %s", said)
		}
		if len(e.hung(ctx, wrong)) > 0 {
			began = time.Now()
		}
		wait(ctx, 200*time.Millisecond)
	}
	return time.Since(began), wrong
}

// hung starts guests anew that hang, as an emulated one does now and then after a move,
// if nothing is wrong but that they do not answer.
func (e *endurance) hung(ctx context.Context, wrong []string) (names []string) {
	if slices.ContainsFunc(wrong, func(what string) bool { return !strings.HasSuffix(what, "does not answer") }) {
		return nil
	}
	for _, g := range e.world.Running() {
		d, ok := e.tenants[g.Name].(*domainTenant)
		if !ok || !strings.Contains(strings.Join(wrong, " "), " of "+g.Name+" ") {
			continue
		}
		hangs, err := d.d.Hung(ctx)
		if err != nil || !hangs {
			continue
		}
		e.tell("%s hangs on %s, and is started anew", g.Name, g.On)
		require.NoError(e.t, d.d.Destroy(ctx))
		require.NoError(e.t, d.d.Start(ctx))
		require.NoError(e.t, d.d.WaitReady(ctx))
		names = append(names, g.Name)
	}
	return names
}

// probing are the probes of an episode.
type probing struct {
	guests  map[*core.Prober]string
	every   map[*core.Prober]time.Duration
	control []*core.Prober
	waiting func() time.Duration
}

// probes begins to probe every guest that runs and is not to end, and, as a control, the
// core gateway itself, which no fault is about.
func (e *endurance) probes(x endure.Episode) *probing {
	p := &probing{map[*core.Prober]string{}, map[*core.Prober]time.Duration{}, nil, e.watchKernel()}
	begin := func(a netip.Addr, every time.Duration) *core.Prober {
		one, err := e.top.Client.Probe(a, every)
		require.NoError(e.t, err)
		p.every[one] = every
		return one
	}
	for _, a := range []netip.Addr{core.CoreAddr4, core.CoreAddr6} {
		p.control = append(p.control, begin(a, e.scale.slow))
	}
	for _, g := range e.world.Running() {
		if d := x.Of(g.Name); d.Act != "" && d.Act != endure.Move {
			continue
		}
		every := e.scale.fast
		if g.Kind == endure.Domain {
			every = e.scale.slow
		}
		for _, prefix := range g.Prefixes {
			if prefix.IsSingleIP() {
				p.guests[begin(prefix.Addr(), every)] = g.Name
			}
		}
	}
	return p
}

// watchKernel asks the kernel for a link of the client all the time. It tells, when it is
// called, for how long that had to wait at most.
func (e *endurance) watchKernel() (longest func() time.Duration) {
	stop, most := make(chan struct{}), time.Duration(0)
	var asking sync.WaitGroup
	asking.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			began := time.Now()
			_, _ = e.top.Client.Link("lo")
			most = max(most, time.Since(began))
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	})
	return func() time.Duration {
		close(stop)
		asking.Wait()
		return most
	}
}

// end ends the probes, and tells what was lost, for how long the machine stalled, and for
// how long its kernel had somebody wait.
func (p *probing) end() (losses []endure.Loss, stall, waited time.Duration) {
	waited = p.waiting()
	var ending sync.WaitGroup
	var mu sync.Mutex
	for one, guest := range p.guests {
		ending.Go(func() {
			r := one.Stop()
			mu.Lock()
			defer mu.Unlock()
			losses = append(losses, endure.Loss{Guest: guest, Sent: r.Sent, Lost: r.Lost, Longest: time.Duration(r.LongestLoss) * p.every[one]})
		})
	}
	ending.Wait()
	var calm []core.ProbeResult
	for _, one := range p.control {
		calm = append(calm, one.Stop())
	}
	return losses, probe.Stall(calm...), waited
}
