package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/hypervisors"
	"github.com/vmfabric/vmfabric/testenv/lab/routers"
)

const (
	moveLead   = 300 * time.Millisecond // probing before a migration
	moveTail   = 700 * time.Millisecond // probing after everything answers again
	silentFor  = 8 * time.Second        // silence after which the benchmark asks whether the guest hangs
	mostHung   = 5                      // hung guests in one lab before the benchmark fails
	moverNodes = 4
)

// moving is a lab for live migrations: two nodes whose agents follow libvirt, and
// two whose agents follow only hooks.
type moving struct {
	*lab
	core      string
	lvs       map[string]*hypervisors.Libvirt
	agents    map[string]*agent
	ours      *mover
	baselines []*mover
	still     []move // measurements of a guest that does not move
}

// mover is a guest that migrates to and fro between two nodes.
type mover struct {
	name   string
	nodes  [2]string
	at     int // index of its node
	guest  guest
	mac    fabric.MAC
	domain *hypervisors.Domain
	late   bool // announced only when virsh has returned

	moves  []move
	fast   []move // at the higher rate
	hung   int
	stalls int // moves that did not end
}

// move is the measurement of one migration.
type move struct {
	back   bool // to the first node
	probed []probed
	tcp    []core.SessionResult
	parts  []gapParts    // of vmfabric's
	places []lossPlaces  // likewise
	pause  time.Duration // libvirt's "Total downtime"
	took   time.Duration // virsh
}

// measureMoves migrates guests under probes, by turns with vmfabric and with the
// baselines of hooks alone.
func measureMoves(ctx context.Context, b *bench) (s section, err error) {
	if err := hypervisors.Available(ctx, "qemu"); err != nil {
		return section{title: movesTitle, method: fmt.Sprintf("Not measured: %v.", err)}, nil
	}
	cores := []string{"BIRD", "FRR"}
	if b.quick || routers.Available(ctx, "frr") != nil {
		cores = cores[:1]
	}
	idle0, all0 := ticks()
	var labs []*moving
	for _, core := range cores {
		b.say("  core %s", core)
		m, err := b.moveAll(ctx, core)
		if err != nil {
			return s, fmt.Errorf("core %s: %w", core, err)
		}
		labs = append(labs, m)
	}
	idle1, all1 := ticks()
	s = movesSection(labs, b.size)
	s.notes = append(s.notes, fmt.Sprintf("The processors were idle for %.0f %% of the time, the emulation of the guests included.",
		100*float64(idle1-idle0)/max(1, float64(all1-all0))))
	return s, b.instanceMoves(ctx, &s)
}

// moveAll makes all migrations with one kind of core gateway.
func (b *bench) moveAll(ctx context.Context, core string) (m *moving, err error) {
	m, err = b.newMoving(ctx, core)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	for i := range b.size.moves {
		turn := []*mover{m.ours}
		for k, r := range m.baselines { // half as often
			if i%len(m.baselines) == k || b.size.moves == 1 {
				turn = append(turn, r)
			}
		}
		for _, g := range turn {
			got, err := m.move(ctx, b, g, b.size.moveRate, g.guest.a4, g.guest.a6)
			if err != nil {
				return m, fmt.Errorf("%s: %w", g.name, err)
			}
			g.moves = append(g.moves, got)
			b.say("    %-20s %s", g.name, got)
		}
	}
	g := m.ours
	for range b.size.stills {
		got, err := m.stay(ctx, b, g)
		if err != nil {
			return m, err
		}
		m.still = append(m.still, got)
		b.say("    %-20s %s", "nobody moves", got)
	}
	for i := range b.size.fastMoves {
		for _, to := range []netip.Addr{g.guest.a4, g.guest.a6} {
			got, err := m.move(ctx, b, g, b.size.fastRate, to)
			if err != nil {
				return m, fmt.Errorf("%s, %d a second: %w", g.name, b.size.fastRate, err)
			}
			g.fast = append(g.fast, got)
			b.say("    %d a second, %d: %s", b.size.fastRate, i+1, got)
		}
	}
	return m, nil
}

func (m move) String() string {
	text := fmt.Sprintf("pause %s ms", ms(m.pause))
	for _, p := range m.probed {
		text += fmt.Sprintf(", %s gap %s lost %d", familyName(p.to), ms(p.LongestGap), p.Lost)
		if when := p.LostSince(p.GapFrom); len(when) > 0 {
			text += fmt.Sprintf(" (%s..%s ms after its beginning)", ms(when[0]), ms(when[len(when)-1]))
		}
		text += fmt.Sprintf(" twice %d reordered %d", p.Duplicates, p.Reordered)
	}
	for _, t := range m.tcp {
		text += ", TCP " + ms(t.LongestStall)
	}
	if note := lossNote([]move{m}); note != "" {
		text += ". " + note
	}
	return text
}

func familyName(a netip.Addr) string { return map[bool]string{true: "IPv4", false: "IPv6"}[a.Is4()] }

// newMoving makes the lab, with its guests up.
func (b *bench) newMoving(ctx context.Context, core string) (*moving, error) {
	l, err := b.makeLab(ctx, "moves", moverNodes, "bird", core == "FRR", nil)
	if err != nil {
		return nil, err
	}
	m := &moving{lab: l, core: core, lvs: map[string]*hypervisors.Libvirt{}, agents: map[string]*agent{}}
	ours, theirs := [2]string{"node1", "node2"}, [2]string{"node3", "node4"}
	m.ours = newMover(0, "ours", "vmfabric", ours)
	m.baselines = []*mover{newMover(1, "early", "hook only", theirs), newMover(2, "late", "when virsh returns", theirs)}
	m.baselines[1].late = true
	if err := m.startAll(ctx, b); err != nil {
		return nil, errors.Join(err, m.close())
	}
	return m, nil
}

// startAll starts the nodes at the same time, and then the guests.
func (m *moving) startAll(ctx context.Context, b *bench) error {
	var mu sync.Mutex
	begin, begun := errgroup.WithContext(ctx)
	for i, g := range []*mover{m.ours, m.baselines[0]} {
		for _, name := range g.nodes {
			begin.Go(func() error {
				lv, a, err := m.startNode(begun, b, name, i > 0)
				mu.Lock()
				defer mu.Unlock()
				m.lvs[name], m.agents[name] = lv, a
				return err
			})
		}
	}
	if err := begin.Wait(); err != nil {
		return err
	}
	begin, begun = errgroup.WithContext(ctx)
	for _, g := range append([]*mover{m.ours}, m.baselines...) {
		begin.Go(func() error {
			if err := m.start(begun, g); err != nil {
				return fmt.Errorf("%s: %w", g.name, err)
			}
			return nil
		})
	}
	return begin.Wait()
}

func newMover(n int, vm, name string, nodes [2]string) *mover {
	g := guestNumber(n)
	g.name = vm
	return &mover{name: name, nodes: nodes, guest: g, mac: fabric.MAC{0x52, 0x54, 0, 0, 0, byte(n)}}
}

// startNode starts a libvirtd and an agent. A baseline's agent has a cluster file
// with its own node alone, so that it talks to no other.
func (m *moving) startNode(ctx context.Context, b *bench, name string, baseline bool) (*hypervisors.Libvirt, *agent, error) {
	hook := b.bin.hook
	if baseline {
		hook = b.bin.baseline
	}
	node := m.top.Nodes[name]
	lv, err := hypervisors.StartLibvirt(ctx, node, hypervisors.LibvirtOptions{Hook: hook})
	if err != nil {
		return nil, nil, err
	}
	a := agent{node: node, socket: filepath.Join(lv.RunDir(), filepath.Base(hooks.DefaultSocket)), libvirt: lv.Socket()}
	if baseline {
		a.baseline, a.file = true, filepath.Join(node.Dir(), "cluster.yaml")
		alone := m.cluster
		itself, err := alone.Node(name)
		if err != nil {
			return nil, nil, err
		}
		alone.Nodes = []fabric.Node{itself}
		if err := os.WriteFile(a.file, []byte(core.ClusterFile(alone)), 0o600); err != nil {
			return nil, nil, err
		}
	}
	started, err := b.begin(ctx, m.lab, a)
	return lv, started, err
}

func (g *mover) nic() fabric.NIC {
	return fabric.NIC{Addresses: []netip.Addr{g.guest.a4, g.guest.a6}, MAC: g.mac}
}

// vm is the guest as a hook describes it.
func (g *mover) vm() fabric.VM {
	nic := g.nic()
	nic.Kind = fabric.Tap
	return fabric.VM{Name: g.guest.name, NICs: []fabric.NIC{nic}}
}

// start starts a guest on its node, and waits until the client reaches it.
func (m *moving) start(ctx context.Context, g *mover) (err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	node := g.nodes[g.at]
	if g.domain == nil {
		g.domain, err = m.lvs[node].Define(ctx, hypervisors.DomainOptions{
			Name: g.guest.name, NICs: []hypervisors.DomainNIC{{NIC: g.nic()}}, Gateway: m.cluster.Gateway,
		})
		if err != nil {
			return err
		}
	}
	if err := g.domain.Start(ctx); err != nil {
		return err
	}
	if g.late {
		if _, err := m.agents[node].ask(ctx, hooks.Live, g.vm()); err != nil {
			return err
		}
	}
	if err := g.domain.WaitReady(ctx); err != nil {
		return err
	}
	return m.reached(ctx, g)
}

func (m *moving) reached(ctx context.Context, g *mover) error {
	for _, a := range []netip.Addr{g.guest.a4, g.guest.a6} {
		if _, err := m.top.Client.Ping(ctx, a); err != nil {
			return err
		}
	}
	return nil
}

// again destroys a guest, and starts it anew.
func (m *moving) again(ctx context.Context, g *mover) error {
	if err := g.domain.Destroy(ctx); err != nil {
		return err
	}
	if g.late {
		for _, node := range g.nodes { // a move that stalled may have left it on both
			if _, err := m.agents[node].ask(ctx, hooks.Remove, g.vm()); err != nil {
				return err
			}
		}
	}
	return m.start(ctx, g)
}

// move migrates a guest to its other node. It repeats a move after which the guest
// hangs, and in a smoke run a few that stall.
func (m *moving) move(ctx context.Context, b *bench, g *mover, rate int, to ...netip.Addr) (got move, err error) {
	err = g.attempt(ctx, b, func(ctx context.Context) (err error) {
		got, err = m.tryMove(ctx, b.size, g, rate, to)
		return err
	}, func(ctx context.Context, stalled bool) error {
		if stalled {
			if err := m.rest(ctx, g); err != nil {
				return err
			}
		}
		return m.again(ctx, g)
	})
	return got, err
}

var errHung = errors.New("the guest hangs")

// attempt tries a move, and has the guest started anew after one that does not count:
// the guest hangs, or patience ended before the move did.
func (g *mover) attempt(ctx context.Context, b *bench, try func(context.Context) error, anew func(_ context.Context, stalled bool) error) error {
	within := func(f func(context.Context) error) (late bool, err error) {
		bounded, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		err = f(bounded)
		return bounded.Err() != nil && ctx.Err() == nil, err
	}
	for {
		late, err := within(try)
		stalled := false
		switch {
		case errors.Is(err, errHung):
			if g.hung++; g.hung > mostHung {
				return fmt.Errorf("the guest hung %d times after a migration", g.hung)
			}
			b.say("    %s: the guest hangs; it is started anew, and the move does not count", g.name)
		case err != nil && late && g.stalls < b.size.stalls:
			g.stalls++
			stalled = true
			b.say("    %s: the move stalls (%v); the guest is started anew, and the move does not count", g.name, err)
		default:
			return err
		}
		if _, err := within(func(ctx context.Context) error { return anew(ctx, stalled) }); err != nil {
			return err
		}
	}
}

// rest ends the migration of a guest, and finds out on which node that left it.
func (m *moving) rest(ctx context.Context, g *mover) error {
	from, dest := m.lvs[g.nodes[g.at]], m.lvs[g.nodes[1-g.at]]
	err := core.Until(ctx, func() error {
		_, _ = from.Virsh(ctx, "domjobabort", g.guest.name) // it fails once the migration is over
		return g.domain.Locate(ctx, from, dest)
	})
	if err == nil && g.domain.Libvirt() == dest {
		g.at = 1 - g.at
	}
	return err
}

func (m *moving) tryMove(ctx context.Context, size size, g *mover, rate int, to []netip.Addr) (got move, err error) {
	if err := m.reached(ctx, g); err != nil {
		return got, err
	}
	w, err := m.watch(ctx, size, rate, to)
	if err != nil {
		return got, err
	}
	stopped := false
	defer func() {
		if !stopped {
			w.stop()
		}
	}()
	time.Sleep(moveLead)
	from, dest := g.nodes[g.at], g.nodes[1-g.at]
	var gap *gapWatch
	if g == m.ours {
		if gap, err = watchGap(m.top.Nodes[from], m.top.Nodes[dest], net.HardwareAddr(g.mac[:])); err != nil {
			return got, err
		}
		defer func() {
			if !stopped {
				_, _, _ = gap.stop(nil, 0)
			}
		}()
	}
	began := time.Now()
	if err := g.domain.Migrate(ctx, m.lvs[dest]); err != nil {
		return got, err
	}
	got.took, got.back = time.Since(began), g.at == 1
	g.at = 1 - g.at
	if g.late {
		if _, err := m.agents[dest].ask(ctx, hooks.Live, g.vm()); err != nil {
			return got, err
		}
		if _, err := m.agents[from].ask(ctx, hooks.Remove, g.vm()); err != nil {
			return got, err
		}
	}
	if err := m.answers(ctx, g, w); err != nil {
		return got, err
	}
	time.Sleep(moveTail)
	got.probed, got.tcp = w.stop()
	stopped = true
	if got.pause, err = g.domain.Downtime(ctx); err != nil {
		return got, err
	}
	if gap != nil {
		// On a busy machine the sniffers may miss frames. Such a gap has no parts.
		got.parts, got.places, _ = gap.stop(got.probed, got.pause)
	}
	// Wait until the first node has removed the port, so that the next move begins
	// alike.
	return got, core.Until(ctx, func() error {
		if port := g.guest.port(); m.top.Nodes[from].HasLink(port) {
			return fmt.Errorf("%s is still on %s", port, from)
		}
		return nil
	})
}

// stay watches a guest that does not move: packets that are lost then, the machine
// loses by itself.
func (m *moving) stay(ctx context.Context, b *bench, g *mover) (got move, err error) {
	w, err := m.watch(ctx, b.size, b.size.moveRate, []netip.Addr{g.guest.a4, g.guest.a6})
	if err != nil {
		return got, err
	}
	select {
	case <-ctx.Done():
		err = ctx.Err()
	case <-time.After(b.size.still):
	}
	got.probed, got.tcp = w.stop()
	return got, err
}

// answers waits until all watchers of a guest that has moved get answers again. The
// error is errHung if the guest itself hangs.
func (m *moving) answers(ctx context.Context, g *mover, w *watchers) error {
	silent, cancel := context.WithTimeout(ctx, silentFor)
	defer cancel()
	err := core.Until(silent, w.next())
	if err == nil || ctx.Err() != nil {
		return err
	}
	hung, err := g.domain.Hung(ctx)
	if err != nil {
		return err
	}
	if hung {
		return errHung
	}
	return core.Until(ctx, w.next())
}

// watchers watch a guest from the client, by probes and TCP sessions.
type watchers struct {
	probers  *probers
	sessions []*core.Session
}

// watch begins to probe addresses of a guest, and opens a session to each.
func (m *moving) watch(ctx context.Context, size size, rate int, to []netip.Addr) (*watchers, error) {
	w := &watchers{}
	for _, a := range to {
		s, err := m.top.Client.OpenSession(ctx, netip.AddrPortFrom(a, 7), size.lineEvery)
		if err != nil {
			w.abandon()
			return nil, err
		}
		w.sessions = append(w.sessions, s)
	}
	var err error
	if w.probers, err = probeEvery(m.top.Client, time.Second/time.Duration(rate), to...); err != nil {
		w.abandon()
		return nil, err
	}
	return w, nil
}

func (w *watchers) abandon() {
	for _, s := range w.sessions {
		s.Abandon()
	}
}

func (w *watchers) stop() ([]probed, []core.SessionResult) {
	results := w.probers.stop()
	var sessions []core.SessionResult
	for _, s := range w.sessions {
		sessions = append(sessions, s.Stop())
	}
	return results, sessions
}

// next returns a function that returns an error until every prober has a further
// answer, and every session that has not ended a further line.
func (w *watchers) next() func() error {
	var probes, lines []int
	for _, p := range w.probers.all {
		probes = append(probes, p.Received())
	}
	for _, s := range w.sessions {
		lines = append(lines, s.Echoed())
	}
	return func() error {
		for i, p := range w.probers.all {
			if p.Received() == probes[i] {
				return fmt.Errorf("%s does not answer", w.probers.to[i])
			}
		}
		for i, s := range w.sessions {
			if s.Echoed() == lines[i] && !s.Ended() {
				return fmt.Errorf("the TCP session to %s stands still", w.probers.to[i])
			}
		}
		return nil
	}
}
