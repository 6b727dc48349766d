package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/render"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/routers"
)

// The guests' addresses: guest n has the n-th of each pool.
var (
	pool4 = netip.MustParsePrefix("10.64.0.0/14")
	pool6 = netip.MustParsePrefix("2001:db8:100::/48")
)

// graceful is the graceful restart time (RFC 4724) of the labs' agents.
const graceful = 20 * time.Second

// patience bounds waits that take at most seconds when all is well.
const patience = 2 * time.Minute

// lab is a fabric: nodes, on which nothing runs yet, two reflectors, and a core
// gateway whose routes it watches.
type lab struct {
	*core.Lab
	top     *core.Topology
	cluster fabric.Cluster
	file    string // the cluster file
	core    *routes
	rr      []reflector
	frrCore bool // the core gateway is an FRR
}

// reflector has the processes of a route reflector.
type reflector struct {
	pids []int
}

// newLab makes a lab with BIRD as reflectors. Its caller closes it.
func (b *bench) newLab(ctx context.Context, name string, nodes int) (*lab, error) {
	return b.newLabOf(ctx, name, nodes, "bird")
}

// newLabOf makes a lab with reflectors of a kind: bird, frr or embedded. The
// reflectors and the core gateway have the configuration that vmfabric renders. The
// kind open is BIRD without a filter, for baselines that send no community.
func (b *bench) newLabOf(ctx context.Context, name string, nodes int, kind string) (*lab, error) {
	return b.makeLab(ctx, name, nodes, kind, false, nil)
}

// changedLab makes a lab with BIRD as reflectors of a cluster that is not like the others.
func (b *bench) changedLab(ctx context.Context, name string, nodes int, change func(*fabric.Cluster)) (*lab, error) {
	return b.makeLab(ctx, name, nodes, "bird", false, change)
}

func (b *bench) makeLab(ctx context.Context, name string, nodes int, kind string, frrCore bool, change func(*fabric.Cluster)) (*lab, error) {
	made, err := core.New(ctx, core.Options{Name: "bench" + name})
	if err != nil {
		return nil, err
	}
	l := &lab{Lab: made, cluster: core.SmallCluster(nodes), frrCore: frrCore}
	l.cluster.Timers.Restart = graceful
	l.cluster.MaxPrefixes = 1_000_000
	l.cluster.Pools = []fabric.Pool{{Name: "public4", Prefix: pool4}, {Name: "public6", Prefix: pool6}}
	if change != nil {
		change(&l.cluster)
	}
	if err := l.start(ctx, kind, b.bin.vmfabric); err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

func (l *lab) start(ctx context.Context, kind, program string) (err error) {
	if l.top, err = l.Build(l.cluster); err != nil {
		return err
	}
	for _, h := range append(slices.Collect(maps.Values(l.top.Reflectors)), l.top.Core) {
		if err := ackAtOnce(h); err != nil {
			return err
		}
	}
	l.file = filepath.Join(l.Dir(), "cluster.yaml")
	if err := os.WriteFile(l.file, []byte(core.ClusterFile(l.cluster)), 0o600); err != nil {
		return err
	}
	if l.core, err = watchRoutes(l.top.Core); err != nil {
		return err
	}
	for _, rr := range l.cluster.Reflectors {
		pids, err := l.startReflector(ctx, l.top.Reflectors[rr.Name], kind, program)
		if err != nil {
			return err
		}
		l.rr = append(l.rr, reflector{pids})
	}
	core, err := l.startCore(ctx, kind)
	if err != nil {
		return err
	}
	return established(ctx, core)
}

func (l *lab) startCore(ctx context.Context, kind string) (counter, error) {
	switch {
	case l.frrCore:
		return l.startFRR(ctx, l.top.Core)
	case kind == "open":
		return l.startOpen(ctx, l.top.Core)
	}
	return l.startBird(ctx, l.top.Core)
}

// startReflector starts a reflector, and returns its processes.
func (l *lab) startReflector(ctx context.Context, h *core.Host, kind, program string) ([]int, error) {
	switch kind {
	case "bird", "open":
		start := l.startBird
		if kind == "open" {
			start = l.startOpen
		}
		bird, err := start(ctx, h)
		if err != nil {
			return nil, err
		}
		return []int{bird.Pid()}, nil
	case "frr":
		f, err := l.startFRR(ctx, h)
		if err != nil {
			return nil, err
		}
		return []int{f.BGP.Pid(), f.Zebra.Pid()}, nil
	}
	d, err := h.StartDaemon("reflector", exec.Command(program, "reflector", "--config", l.file, "--name", h.Name(),
		"--socket", filepath.Join(h.Dir(), "reflector.sock"), "--log-level", "warn"))
	if err != nil {
		return nil, err
	}
	return []int{d.Pid()}, nil
}

// startBird and startFRR start a router of the cluster with its rendered
// configuration.

func (l *lab) startBird(ctx context.Context, h *core.Host) (*routers.Bird, error) {
	conf, err := render.Router(l.cluster, render.BIRD, h.Name())
	if err != nil {
		return nil, err
	}
	return routers.StartBird(ctx, h, conf)
}

// startOpen starts a reflector or the core gateway without a filter.
func (l *lab) startOpen(ctx context.Context, h *core.Host) (*routers.Bird, error) {
	bgp := routers.BGPOf(l.cluster)
	if h == l.top.Core {
		return routers.StartBird(ctx, h, routers.CoreGateway{BGP: bgp, Reflectors: l.reflectors()}.Bird())
	}
	return routers.StartBird(ctx, h, routers.Reflector{BGP: bgp, RouterID: h.Addr4(), Cores: []netip.Addr{l.top.Core.Addr4()}}.Bird())
}

func (l *lab) startFRR(ctx context.Context, h *core.Host) (*routers.FRR, error) {
	conf, err := render.Router(l.cluster, render.FRR, h.Name())
	if err != nil {
		return nil, err
	}
	return routers.StartFRR(ctx, h, conf)
}

// ackAtOnce makes a host acknowledge TCP segments from the underlay without delay.
// BIRD sends the update of each family on its own and leaves Nagle's algorithm on:
// in a series of guests, the second update would wait up to 40 ms for the delayed
// acknowledgement of the first. Guests that come minutes apart never see that.
func ackAtOnce(h *core.Host) error {
	eth0, err := h.Link("eth0")
	if err != nil {
		return err
	}
	rs, err := h.Netlink().RouteList(eth0, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	for _, r := range rs {
		if r.Dst == nil || r.Dst.String() != core.UnderlayPrefix4.String() {
			continue
		}
		r.QuickACK = 1
		return h.Netlink().RouteReplace(&r)
	}
	return fmt.Errorf("%s has no route to %s", h.Name(), core.UnderlayPrefix4)
}

// close removes the lab and everything in it.
func (l *lab) close() error {
	if l.core != nil {
		l.core.close()
	}
	return l.Close()
}

func (l *lab) reflectors() []netip.Addr {
	var as []netip.Addr
	for _, rr := range l.cluster.Reflectors {
		as = append(as, rr.Address)
	}
	return as
}

// counter is a BGP daemon that counts its sessions.
type counter interface {
	Established(ctx context.Context) (int, error)
}

// established waits until a daemon has a session with both reflectors.
func established(ctx context.Context, c counter) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return core.Until(ctx, func() error {
		n, err := c.Established(ctx)
		if err == nil && n < 2 {
			err = fmt.Errorf("%d of 2 BGP sessions are up", n)
		}
		return err
	})
}

// guest is a guest with an address of each family.
type guest struct {
	name   string
	a4, a6 netip.Addr
}

// guestNumber returns guest n. No two guests of a lab have the same number.
func guestNumber(n int) guest {
	a4, a6 := pool4.Addr().As4(), pool6.Addr().As16()
	for i := range 3 {
		a4[3-i] += byte(n >> (8 * i))
		a6[15-i] += byte(n >> (8 * i))
	}
	return guest{fmt.Sprintf("g%06d", n), netip.AddrFrom4(a4), netip.AddrFrom16(a6)}
}

// guests returns n guests from number first on.
func guests(first, n int) []guest {
	gs := make([]guest, n)
	for i := range gs {
		gs[i] = guestNumber(first + i)
	}
	return gs
}

func (g guest) port() string { return fabric.PortName(g.name, 0) }

func (g guest) prefixes() []netip.Prefix {
	return []netip.Prefix{fabric.HostPrefix(g.a4), fabric.HostPrefix(g.a6)}
}

func (g guest) vm(kind fabric.Kind) fabric.VM {
	return fabric.VM{Name: g.name, NICs: []fabric.NIC{{Kind: kind, Addresses: []netip.Addr{g.a4, g.a6}}}}
}

func prefixesOf(gs []guest) []netip.Prefix {
	var ps []netip.Prefix
	for _, g := range gs {
		ps = append(ps, g.prefixes()...)
	}
	return ps
}

// method is one way to bring a guest up and down.
type method struct {
	name     string
	up, down func(ctx context.Context, g guest) (span, error)

	ups, downs         sample // times until the core gateway has both routes, or neither
	upCalls, downCalls sample // times until up and down returned
}

// span is the start of a call, and how long it took.
type span struct {
	began time.Time
	took  time.Duration
}

func since(began time.Time) span { return span{began, time.Since(began)} }

// race measures the methods n times each, by turns, with guests from number first
// on. It does not count a round before that: daemons take longer over the first
// route of a session.
func (l *lab) race(ctx context.Context, methods []*method, first, n int) error {
	for i := range n + 1 {
		for k := range methods {
			m := methods[(i+k)%len(methods)] // no method always follows the same one
			if err := l.upAndDown(ctx, m, guestNumber(first+i*len(methods)+k)); err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			if i == 0 {
				m.ups, m.downs, m.upCalls, m.downCalls = nil, nil, nil, nil
			}
		}
	}
	return nil
}

func (l *lab) upAndDown(ctx context.Context, m *method, g guest) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	l.core.arm(g.prefixes()...)
	call, err := m.up(ctx, g)
	if err != nil {
		return err
	}
	at, err := l.core.come(ctx, g.prefixes()...)
	if err != nil {
		return err
	}
	m.ups.add(at.Sub(call.began))
	m.upCalls.add(call.took)
	time.Sleep(quietAfter)
	if call, err = m.down(ctx, g); err != nil {
		return err
	}
	if at, err = l.core.gone(ctx, g.prefixes()...); err != nil {
		return err
	}
	m.downs.add(at.Sub(call.began))
	m.downCalls.add(call.took)
	return nil
}
