package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
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
	"github.com/vmfabric/vmfabric/internal/probe"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/hypervisors"
)

// A move is probed so often here, and may lose so many before it is taken for
// broken: a design without forwarding loses 50 and more. It is little, because
// an emulated guest on a busy machine answers no more. What is lost of more
// packets, in truth, is measured: see docs/performance.md.
const (
	probeEvery = 5 * time.Millisecond
	fewLost    = 20
)

const clock = "15:04:05.000000"

// shuttle is a guest of libvirt, and two nodes between which it moves.
type shuttle struct {
	*system
	lv map[string]*hypervisors.Libvirt
	d  *hypervisors.Domain
	vm fabric.VM
	// gone are the routes to guests that the core gateway's kernel removed.
	gone func() []string
}

func startShuttle(t *testing.T, o options) *shuttle {
	t.Helper()
	o.nodes, o.noAgent = 2, true
	m := &shuttle{system: start(t, o), lv: map[string]*hypervisors.Libvirt{}}
	for node := range m.top.Nodes {
		m.lv[node] = m.hypervisor(node)
	}
	n := tap("203.0.113.10", "203.0.113.11", "2001:db8:100::10", "2001:db8:100::11", "198.51.100.0/29", "2001:db8:200::/64")
	m.vm = fabric.VM{Name: "sea_gold", NICs: []fabric.NIC{n.NIC}}
	var err error
	m.d, err = m.lv["node1"].Define(soon(t), hypervisors.DomainOptions{Name: "sea_gold", NICs: []hypervisors.DomainNIC{n}, Gateway: m.cluster.Gateway, Ingress: o.ingress})
	require.NoError(t, err)
	m.begin("node1")
	m.gone = m.watchWithdrawals()
	return m
}

// begin starts the guest on a node.
func (m *shuttle) begin(node string) {
	m.t.Helper()
	require.NoError(m.t, m.d.Start(soon(m.t)))
	require.NoError(m.t, m.d.WaitReady(soon(m.t)))
	m.rests(node)
}

// where is the node that libvirt has the guest on.
func (m *shuttle) where() string {
	m.t.Helper()
	m.eventually("the guest is on one node", func() error { return m.d.Locate(soon(m.t), m.lv["node1"], m.lv["node2"]) })
	for node, lv := range m.lv {
		if lv == m.d.Libvirt() {
			return node
		}
	}
	m.t.Fatal("the guest is nowhere")
	return ""
}

func other(node string) string { return map[string]string{"node1": "node2", "node2": "node1"}[node] }

// rests waits until a node alone has the guest, as if nothing had ever moved,
// and everybody reaches it there.
func (m *shuttle) rests(node string) {
	m.t.Helper()
	here, there := m.top.Nodes[node], m.top.Nodes[other(node)]
	m.coreHas(here, m.vm.Prefixes()...)
	m.eventually("the guest is on "+node+" alone", func() error {
		if left := m.leftOn(there); len(left) > 0 {
			return fmt.Errorf("left on %s: %v", there.Name(), left)
		}
		for _, h := range []*core.Host{here, there} {
			if strays := m.strays(h); len(strays) > 0 {
				return fmt.Errorf("on %s there still is %v", h.Name(), strays)
			}
		}
		if err := m.announcedBy(here); err != nil {
			return err
		}
		for name, a := range m.agents {
			if st := a.status(); !st.Healthy {
				return fmt.Errorf("%s: %v", name, st.Problems)
			}
		}
		return nil
	})
	m.answers()
}

// announcedBy looks whether every path that the core gateway has of the guest is
// by a node, with the usual preference.
func (m *shuttle) announcedBy(node *core.Host) error {
	routes, err := m.core.Routes(soon(m.t))
	if err != nil {
		return err
	}
	for _, p := range m.vm.Prefixes() {
		n := 0
		for _, r := range routes {
			if r.Prefix != p {
				continue
			}
			n++
			if r.NextHop != node.Addr4() && r.NextHop != node.Addr6() || r.LocalPref != 100 {
				return fmt.Errorf("core has %s by %s with LOCAL_PREF %d", p, r.NextHop, r.LocalPref)
			}
		}
		if n == 0 {
			return fmt.Errorf("core has no path to %s", p)
		}
	}
	return nil
}

// strays lists what a move needs on a node only while it lasts.
func (m *shuttle) strays(node *core.Host) []string {
	m.t.Helper()
	var strays []string
	for _, table := range []int{fabric.ArrivingTable, fabric.DivertedTable} {
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			routes, err := node.Routes(family, table)
			require.NoError(m.t, err)
			for _, r := range routes {
				strays = append(strays, fmt.Sprintf("table %d: %s", table, r))
			}
		}
	}
	return strays
}

// answers waits until the client has an answer from every address, and from one
// in each routed prefix. A guest that hangs, as an emulated one does now and
// then after a move, is started anew.
func (m *shuttle) answers() {
	m.t.Helper()
	addresses := append(slices.Clone(m.vm.NICs[0].Addresses), netip.MustParseAddr("198.51.100.3"), netip.MustParseAddr("2001:db8:200::3"))
	for _, a := range addresses {
		ctx, cancel := context.WithTimeout(m.t.Context(), 10*time.Second)
		_, err := m.top.Client.Ping(ctx, a)
		cancel()
		if err == nil {
			continue
		}
		node := m.where()
		hung, hungErr := m.d.Hung(soon(m.t))
		require.NoError(m.t, hungErr)
		require.True(m.t, hung, "%s does not answer, and its guest does not hang: %v", a, err)
		m.t.Logf("the guest hangs on %s; started anew", node)
		require.NoError(m.t, m.d.Destroy(soon(m.t)))
		m.begin(node)
		return
	}
}

// probed does something while the client probes the first address of each family.
func (m *shuttle) probed(do func()) []core.ProbeResult {
	m.t.Helper()
	a := m.vm.NICs[0].Addresses
	return m.underProbe(fabric.VM{NICs: []fabric.NIC{{Addresses: []netip.Addr{a[0], a[2]}}}}, probeEvery, do)
}

// byAddress gives the results of probed by the addresses that it probes.
func (m *shuttle) byAddress(results []core.ProbeResult) map[netip.Addr]core.ProbeResult {
	a := m.vm.NICs[0].Addresses
	return map[netip.Addr]core.ProbeResult{a[0]: results[0], a[2]: results[1]}
}

// control probes two paths that no move concerns: for a second that to the guest
// where it is, and from then on one to the core gateway's own address. It tells,
// when it is called, for how long the machine has kept one of them from an answer:
// so long it may keep a guest from taking what is sent to it, wherever that runs.
func (m *shuttle) control() (stalled func() time.Duration) {
	m.t.Helper()
	calm := m.probed(func() {
		ctx, cancel := context.WithTimeout(m.t.Context(), time.Second)
		defer cancel()
		<-ctx.Done()
	})
	var beside []*core.Prober
	for _, a := range []netip.Addr{core.CoreAddr4, core.CoreAddr6} {
		p, err := m.top.Client.Probe(a, probeEvery)
		require.NoError(m.t, err)
		beside = append(beside, p)
	}
	return func() time.Duration {
		for _, p := range beside {
			calm = append(calm, p.Stop())
		}
		return probe.Stall(calm...)
	}
}

// overflow watches what the guest's port on a node drops because its queue is full:
// a guest without a processor loses that, whether it moves or not. It tells, when it
// is called, how much that was until a moment.
func (m *shuttle) overflow(node string) (until func(time.Time) int) {
	m.t.Helper()
	type sample struct {
		at      time.Time
		dropped uint64
	}
	look := func() (s sample, err error) {
		s.at = time.Now()
		l, err := m.top.Nodes[node].Link(fabric.PortName(m.vm.Name, 0))
		if err == nil {
			s.dropped = l.Attrs().Statistics.TxDropped
		}
		return s, err
	}
	first, err := look()
	require.NoError(m.t, err)
	samples, stop := []sample{first}, make(chan struct{})
	var looking sync.WaitGroup
	looking.Go(func() {
		for tick := time.NewTicker(20 * time.Millisecond); ; {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			s, err := look()
			if err != nil {
				return // the guest has left, and its port is gone
			}
			samples = append(samples, s)
		}
	})
	return func(end time.Time) int {
		close(stop)
		looking.Wait()
		last := first
		for _, s := range samples {
			if s.at.Before(end) {
				last = s
			}
		}
		return int(last.dropped - first.dropped)
	}
}

// moves has the guest move to the other node, and looks at what that cost.
func (m *shuttle) moves(o hypervisors.MigrateOptions, during ...func(*hypervisors.Migration)) {
	m.t.Helper()
	from := m.where()
	to := other(from)
	gone := len(m.gone())
	overflow := m.overflow(from)
	control := m.control()
	results := m.probed(func() {
		g := m.d.StartMigration(context.WithoutCancel(soon(m.t)), m.lv[to], o)
		for _, do := range during {
			do(g)
		}
		require.NoError(m.t, g.Wait())
		time.Sleep(time.Second)
	})
	stall := control()
	hung, err := m.d.Hung(soon(m.t))
	require.NoError(m.t, err)
	assert.Empty(m.t, m.gone()[gone:], "the core gateway was without a route")
	m.rests(to)
	source, destination := m.reported(from), m.reported(to)
	dropped := overflow(source.Stopped)
	for i, r := range results {
		m.t.Logf("%s -> %s, IPv%d: %v; the machine stalled for %v, and %d packets did not fit into the queue at %s before the guest stopped",
			from, to, 4+2*i, r, stall, dropped, from)
		if !hung {
			assert.LessOrEqual(m.t, r.Lost, fewLost+int(stall/probeEvery)+dropped, "%s -> %s, IPv%d", from, to, 4+2*i)
		}
		if len(r.Losses) > 0 {
			m.t.Logf("lost from %s to %s", r.Losses[0].At.Format(clock), r.Losses[len(r.Losses)-1].At.Format(clock))
		}
	}
	if slices.ContainsFunc(results, func(r core.ProbeResult) bool { return r.Lost > 0 }) {
		for node, r := range map[string]fabric.Move{from: source, to: destination} {
			m.t.Logf("%s: stopped %s, diverted %s, %d sent again by %s, running %s, announced %s", node, r.Stopped.Format(clock),
				r.Diverted.Format(clock), r.Resent, r.ResentAt.Format(clock), r.Running.Format(clock), r.Announced.Format(clock))
		}
	}
}

// awaits waits until a node's report of the move under way has a moment.
func (m *shuttle) awaits(node, what string, at func(fabric.Move) time.Time) {
	m.t.Helper()
	m.eventually(what, func() error { return m.has(node, at) })
}

// has is an error until a node's report of the move under way has a moment.
func (m *shuttle) has(node string, at func(fabric.Move) time.Time) error {
	moves := m.agents[node].ask(hooks.Moves, fabric.VM{Name: m.d.Name()}).Moves
	if len(moves) == 0 || moves[0].Outcome != "under way" || at(moves[0]).IsZero() {
		return errors.New("not yet")
	}
	return nil
}

// reported gives the newest report of a node once the move is over.
func (m *shuttle) reported(node string) (move fabric.Move) {
	m.t.Helper()
	m.eventually("the report of the move", func() error {
		moves := m.agents[node].ask(hooks.Moves, fabric.VM{Name: m.d.Name()}).Moves
		if len(moves) == 0 || moves[0].Outcome == "under way" {
			return fmt.Errorf("reports of %s: %+v", node, moves)
		}
		move = moves[0]
		return nil
	})
	return move
}

// TestMoves moves a running guest in every way that libvirt knows, and looks
// for what is lost, who announces it, and what is left.
func TestMoves(t *testing.T) {
	t.Parallel()
	for _, o := range []options{
		{rr: "bird", core: "bird"},
		{rr: "embedded", core: "frr", ingress: "accept tcp 7; accept icmp; drop"},
		{rr: "frr", core: "bird", speakers: map[string]string{"node1": "bird", "node2": "frr"}},
	} {
		name := fmt.Sprintf("reflectors %s, core %s", o.rr, o.core)
		if len(o.speakers) > 0 {
			name += ", nodes bird and frr"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := startShuttle(t, o)
			session, err := m.top.Client.OpenSession(soon(t), netip.MustParseAddrPort("203.0.113.10:7"), 10*time.Millisecond)
			require.NoError(t, err)
			refused := func() {}
			if o.ingress != "" {
				refused = m.refuses(8)
			}
			m.moves(hypervisors.MigrateOptions{})
			m.reportsTell("node1", "node2")
			m.moves(hypervisors.MigrateOptions{}) // back at once
			refused()
			if r := session.Stop(); r.Err != nil {
				hung, err := m.d.Hung(soon(t))
				require.NoError(t, err)
				assert.True(t, hung, "the session ended: %+v", r)
			}
			if o.rr != "bird" {
				return
			}
			m.moves(hypervisors.MigrateOptions{Transport: hypervisors.Direct})
			m.moves(hypervisors.MigrateOptions{Transport: hypervisors.Tunnelled})
			m.moves(hypervisors.MigrateOptions{PostCopy: true, Bandwidth: 8}, func(g *hypervisors.Migration) {
				require.NoError(t, g.Copying(soon(t)))
				require.NoError(t, g.PostCopy(soon(t)))
			})
		})
	}
}

// refuses has the client try to connect to a TCP port of the guest on which that listens,
// and which its firewall closes, all the time, in both families. What is returned ends
// that, and looks whether any connection was made, and whether the nodes counted them.
func (m *shuttle) refuses(number uint16) (end func()) {
	const wait = 50 * time.Millisecond
	stop := make(chan struct{})
	var trying sync.WaitGroup
	attempts, made := make([]int, 2), make([]int, 2)
	for i, a := range []netip.Addr{m.vm.NICs[0].Addresses[0], m.vm.NICs[0].Addresses[2]} {
		trying.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				ctx, cancel := context.WithTimeout(m.t.Context(), wait)
				conn, err := m.top.Client.Dial(ctx, "tcp", netip.AddrPortFrom(a, number).String())
				cancel()
				if attempts[i]++; err == nil {
					made[i]++
					_ = conn.Close()
				}
			}
		})
	}
	return func() {
		m.t.Helper()
		close(stop)
		trying.Wait()
		m.t.Logf("%v attempts to connect to port %d, %v connections", attempts, number, made)
		assert.Equal(m.t, []int{0, 0}, made, "connections to port %d, which the firewall closes", number)
		out, errs, code := m.agents[m.where()].cli("list", "--counters")
		assert.Zero(m.t, code, errs)
		assert.Contains(m.t, out, string(fabric.DropIngress))
	}
}

// reportsTell looks at what both nodes' reports say of the last move.
func (m *shuttle) reportsTell(from, to string) {
	t := m.t
	t.Helper()
	source, destination := m.reported(from), m.reported(to)
	for _, r := range []fabric.Move{source, destination} {
		assert.Equal(t, "moved", r.Outcome)
		assert.Equal(t, from, r.From)
		assert.Equal(t, to, r.To)
		assert.ElementsMatch(t, m.vm.Prefixes(), r.Prefixes)
		for what, at := range map[string]time.Time{
			"learned": r.Learned, "stopped": r.Stopped, "diverted": r.Diverted, "sent again": r.ResentAt, "withdrawn": r.Withdrawn,
		} {
			assert.False(t, at.IsZero(), "%s: %+v", what, r)
		}
		assert.False(t, r.Diverted.Before(r.Stopped), "%+v", r)
	}
	for what, at := range map[string]time.Time{
		"expected": destination.Expected, "port ready": destination.PortReady, "running": destination.Running,
		"announced": destination.Announced, "normal": destination.Normal,
	} {
		assert.False(t, at.IsZero(), "%s: %+v", what, destination)
	}
	assert.True(t, destination.Expected.Before(destination.PortReady))
	assert.True(t, destination.PortReady.Before(destination.Running))
	if m.o.speakers[from] == "" { // a routing daemon does not tell what reflectors say
		assert.Len(t, source.Seen, len(m.cluster.Reflectors), "%+v", source)
	}
	out, errs, code := m.agents[to].cli("moves", m.d.Name())
	assert.Zero(t, code, errs)
	for _, line := range []string{"sea_gold  " + from + " -> " + to, "guest stopped at the source", "announced by the destination", "preference normal"} {
		assert.Contains(t, out, line)
	}
}

// TestMovesBackAndForth moves a guest ten times as fast as libvirt can, while it asks for
// its address.
func TestMovesBackAndForth(t *testing.T) {
	t.Parallel()
	m := startShuttle(t, options{})
	watch := m.watchDHCP()
	m.orders(m.vm.NICs[0].Addresses[0], askingClients)
	for range 10 {
		require.NoError(t, m.d.Migrate(context.WithoutCancel(soon(t)), m.lv[other(m.where())]))
	}
	hung, err := m.d.Hung(soon(t))
	require.NoError(t, err)
	if !hung {
		m.orders(m.vm.NICs[0].Addresses[0], "kill $(cat /run/clients); kill $(pidof udhcpc); true")
	}
	m.rests("node1")
	heard := watch.answeredOnce()
	t.Logf("requests that the nodes heard: %v", heard)
	for node := range m.top.Nodes {
		assert.True(t, hung || heard[node] > 0, node)
	}
}

// failure is a move that something goes wrong with.
type failure struct {
	name string
	how  hypervisors.MigrateOptions
	do   func(m *shuttle, from, to string, g *hypervisors.Migration)
	ends string // where the guest is then: "from", "to", "nowhere", "" for wherever libvirt left it
}

// copiedSlowly leaves time for what goes wrong.
var copiedSlowly = hypervisors.MigrateOptions{Bandwidth: 16}

// failures are in groups that run side by side, each in its order.
var failures = map[string][]failure{
	"one": {
		{"aborted while it is copied", copiedSlowly, func(m *shuttle, _, _ string, g *hypervisors.Migration) {
			inTime(g.Copying(soon(m.t)))
			inTime(g.Abort(soon(m.t)))
		}, "from"},
		{"aborted once it stopped", copiedSlowly, func(m *shuttle, from, _ string, g *hypervisors.Migration) {
			m.standsStill(from, g)
			m.sentOn(from, g)
			inTime(g.Abort(soon(m.t)))
		}, "from"},
		{"the destination's QEMU is killed", copiedSlowly, func(m *shuttle, _, to string, g *hypervisors.Migration) {
			inTime(g.Copying(soon(m.t)))
			m.killGuest(to)
		}, "from"},
		{"the destination's QEMU is killed once the guest stopped", copiedSlowly, func(m *shuttle, from, to string, g *hypervisors.Migration) {
			m.standsStill(from, g)
			m.sentOn(from, g)
			m.killGuest(to)
		}, "from"},
		{"the source's QEMU is killed", copiedSlowly, func(m *shuttle, from, _ string, g *hypervisors.Migration) {
			inTime(g.Copying(soon(m.t)))
			m.killGuest(from)
		}, "nowhere"},
		{"no agent at the destination", hypervisors.MigrateOptions{}, func(m *shuttle, _, to string, g *hypervisors.Migration) {
			require.ErrorContains(m.t, g.Wait(), "start it: systemctl start vmfabric")
			m.agents[to].start()
			m.agents[to].established()
		}, "from"},
	},
	"two": {
		{"the destination's agent is killed before the cutover", copiedSlowly, func(m *shuttle, _, to string, g *hypervisors.Migration) {
			inTime(g.Copying(soon(m.t)))
			m.agents[to].restart(m.agents[to].Kill)
		}, "to"},
		{"the source's agent is killed before the cutover", copiedSlowly, func(m *shuttle, from, _ string, g *hypervisors.Migration) {
			inTime(g.Copying(soon(m.t)))
			m.agents[from].restart(m.agents[from].Kill)
		}, "to"},
		{"the source's agent is killed at the cutover", copiedSlowly, func(m *shuttle, from, _ string, g *hypervisors.Migration) {
			m.standsStill(from, g)
			m.sentOn(from, g)
			m.agents[from].restart(m.agents[from].Kill)
		}, "to"},
		{"the source's agent is killed once the guest runs elsewhere", hypervisors.MigrateOptions{}, func(m *shuttle, from, to string, _ *hypervisors.Migration) {
			m.awaits(to, "the guest runs", func(r fabric.Move) time.Time { return r.Announced })
			m.agents[from].restart(m.agents[from].Kill)
		}, "to"},
		{"the destination's agent is gone from the copy on", copiedSlowly, func(m *shuttle, _, to string, g *hypervisors.Migration) {
			inTime(g.Copying(soon(m.t)))
			require.NoError(m.t, m.agents[to].Kill())
			require.NoError(m.t, g.Wait())
			m.agents[to].start()
		}, "to"},
		{"the source's agent is gone from the copy on", copiedSlowly, func(m *shuttle, from, _ string, g *hypervisors.Migration) {
			inTime(g.Copying(soon(m.t)))
			require.NoError(m.t, m.agents[from].Kill())
			require.NoError(m.t, g.Wait())
			m.agents[from].start()
		}, "to"},
		{"a reflector is killed", copiedSlowly, func(m *shuttle, _, _ string, g *hypervisors.Migration) {
			inTime(g.Copying(soon(m.t)))
			require.NoError(m.t, m.rr["rr1"].Kill())
			require.NoError(m.t, g.Wait())
			m.startReflector("rr1")
		}, "to"},
		{"the source's libvirtd is restarted", copiedSlowly, func(m *shuttle, from, _ string, g *hypervisors.Migration) {
			inTime(g.Copying(soon(m.t)))
			require.NoError(m.t, m.lv[from].Kill())
			_ = g.Wait()
			require.NoError(m.t, m.lv[from].Start(soon(m.t)))
		}, ""},
		{"the destination's libvirtd is restarted", copiedSlowly, func(m *shuttle, _, to string, g *hypervisors.Migration) {
			inTime(g.Copying(soon(m.t)))
			require.NoError(m.t, m.lv[to].Kill())
			_ = g.Wait()
			require.NoError(m.t, m.lv[to].Start(soon(m.t)))
		}, ""},
	},
}

// killGuest kills the QEMU of the guest on a node.
func (m *shuttle) killGuest(node string) {
	m.t.Helper()
	m.eventually("QEMU is killed", func() error {
		pid, err := m.lv[node].GuestPid(m.d.Name())
		if err != nil {
			return err
		}
		return syscall.Kill(pid, syscall.SIGKILL)
	})
}

// standsStill has the guest stop at the source for seconds, and waits for that.
func (m *shuttle) standsStill(from string, g *hypervisors.Migration) {
	m.t.Helper()
	inTime(g.Copying(soon(m.t)))
	_, err := m.lv[from].Virsh(soon(m.t), "migrate-setmaxdowntime", m.d.Name(), "5000")
	inTime(err)
}

// sentOn waits until the source has sent the guest's packets on.
func (m *shuttle) sentOn(from string, g *hypervisors.Migration) {
	m.t.Helper()
	m.eventually("the guest has stopped", func() error {
		select {
		case <-g.Done():
			return nil // the step after it finds that
		default:
		}
		return m.has(from, func(r fabric.Move) time.Time { return r.Stopped })
	})
}

// fails begins a move, and has go wrong with it what is to. On a busy machine a
// migration may end before it could fail: then it is tried again, from where the
// guest is now.
func (m *shuttle) fails(c failure) (from string, g *hypervisors.Migration) {
	m.t.Helper()
	m.t.Logf("%s", c.name)
	from = m.where()
	to := other(from)
	if strings.HasPrefix(c.name, "no agent") {
		require.NoError(m.t, m.agents[to].Kill())
	}
	for attempt := 1; ; attempt++ {
		g = m.d.StartMigration(context.WithoutCancel(soon(m.t)), m.lv[to], c.how)
		err := late(func() {
			c.do(m, from, to, g)
			if c.ends == "from" || c.ends == "nowhere" {
				inTime(m.failed(to, g))
			}
		})
		if err == nil {
			return from, g
		}
		require.Less(m.t, attempt, 6, "%s: %v (%v)", c.name, err, g.Wait())
		m.t.Logf("%s: too late: %v", c.name, err)
		from = m.goesOn()
		to = other(from)
	}
}

// recovers: once a move from a node has ended, the guest is announced and reached
// where it is to be, and nothing is left elsewhere.
func (m *shuttle) recovers(c failure, from string, err error) {
	m.t.Helper()
	switch c.ends {
	case "nowhere":
		require.Error(m.t, err, c.name)
		for _, h := range m.top.Nodes {
			m.leavesNothing(h, m.vm.Prefixes()...)
			require.Empty(m.t, m.strays(h))
		}
		m.begin(from)
	case "from", "to":
		node := map[string]string{"from": from, "to": other(from)}[c.ends]
		require.Equal(m.t, node, m.where(), "%s: %v", c.name, err)
		m.rests(node)
	default:
		node := m.where()
		m.t.Logf("%s: it is on %s, having been on %s (%v)", c.name, node, from, err)
		if state, err := m.d.State(soon(m.t)); err == nil && state == "paused" {
			require.NoError(m.t, m.d.Resume(soon(m.t)))
		}
		m.rests(node)
	}
}

// TestFailedMoves: after whatever goes wrong one node announces the guest, it
// is reached there, and nothing is left.
func TestFailedMoves(t *testing.T) {
	t.Parallel()
	for group, cases := range failures {
		t.Run(group, func(t *testing.T) {
			t.Parallel()
			m := startShuttle(t, options{})
			for _, c := range cases {
				from, g := m.fails(c)
				m.recovers(c, from, g.Wait())
			}
		})
	}
}

// tooLate is the panic of a step for which a migration has ended too early.
type tooLate struct{ error }

// failed is an error when a migration has brought the guest to the node in spite
// of all, be it that it ended there.
func (m *shuttle) failed(to string, g *hypervisors.Migration) error {
	m.t.Helper()
	err := g.Wait()
	if err == nil {
		return errors.New("it succeeded")
	}
	if m.d.Locate(soon(m.t), m.lv["node1"], m.lv["node2"]) == nil && m.d.Libvirt() == m.lv[to] {
		return fmt.Errorf("it succeeded, in spite of %w", err)
	}
	return nil
}

// goesOn has the guest run wherever it is after a step that came too late, and
// gives the node.
func (m *shuttle) goesOn() string {
	m.t.Helper()
	state, err := m.d.State(soon(m.t))
	if err == nil && state == "running" {
		node := m.where()
		m.rests(node)
		return node
	}
	for node, lv := range m.lv {
		if lv == m.d.Libvirt() {
			m.begin(node)
			return node
		}
	}
	m.t.Fatal("the guest is nowhere")
	return ""
}

// inTime ends a step that could not be made, which [late] tells.
func inTime(err error) {
	if err != nil {
		panic(tooLate{err})
	}
}

// late gives the error of a step that came too late.
func late(step func()) (err error) {
	defer func() {
		switch p := recover().(type) {
		case nil:
		case tooLate:
			err = p.error
		default:
			panic(p)
		}
	}()
	step()
	return nil
}

// TestOddMoves: paused, offline, saved here and restored there, and by a hook
// that fails.
func TestOddMoves(t *testing.T) {
	t.Parallel()
	m := startShuttle(t, options{})
	one, two := m.lv["node1"], m.lv["node2"]

	// Paused.
	require.NoError(t, m.d.Pause(soon(t)))
	require.NoError(t, m.d.Migrate(context.WithoutCancel(soon(t)), two))
	m.coreHas(m.top.Nodes["node2"], m.vm.Prefixes()...)
	require.NoError(t, m.d.Resume(soon(t)))
	m.rests("node2")

	// Saved and restored.
	file := filepath.Join(m.lab.Dir(), "saved")
	require.NoError(t, m.d.Save(soon(t), file))
	for _, h := range m.top.Nodes {
		m.leavesNothing(h, m.vm.Prefixes()...)
	}
	require.NoError(t, m.d.Restore(soon(t), one, file))
	m.rests("node1")

	// Refused by the destination, which takes no guests.
	m.agents["node2"].ask(hooks.Drain, fabric.VM{})
	err := m.d.Migrate(context.WithoutCancel(soon(t)), two)
	require.ErrorContains(t, err, "node node2 is draining")
	m.agents["node2"].ask(hooks.Undrain, fabric.VM{})
	m.rests("node1")

	// Not running at all.
	require.NoError(t, m.d.Destroy(soon(t)))
	m.d = m.domain(one, "sea_gold", hypervisors.DomainNIC{NIC: m.vm.NICs[0]}) // who was restored is forgotten
	require.NoError(t, m.d.StartMigration(context.WithoutCancel(soon(t)), two, hypervisors.MigrateOptions{Offline: true}).Wait())
	for _, h := range m.top.Nodes {
		m.leavesNothing(h, m.vm.Prefixes()...)
	}
	m.begin("node2")
}

// TestNodeReturns: a node that was cut off comes back with a guest that was
// started elsewhere meanwhile. It gives way, and says so.
func TestNodeReturns(t *testing.T) {
	t.Parallel()
	for _, apart := range []bool{false, true} {
		t.Run(map[bool]string{false: "told by the other agent", true: "told by the reflectors"}[apart], func(t *testing.T) {
			t.Parallel()
			nodeReturns(t, apart)
		})
	}
}

func nodeReturns(t *testing.T, apart bool) {
	m := startShuttle(t, options{change: func(c *fabric.Cluster) { c.Timers.Restart = 5 * time.Second }})
	cut := m.top.Nodes["node1"]
	if apart {
		elsewhere := m.cluster
		elsewhere.AgentPort = fabric.DefaultAgentPort + 1
		m.configure("node1", m.writeFile("apart.yaml", elsewhere))
	}
	require.NoError(t, m.lab.Disconnect(cut))
	stray := m.d
	m.d = m.domain(m.lv["node2"], "sea_gold", hypervisors.DomainNIC{NIC: m.vm.NICs[0]})
	require.NoError(t, m.d.Start(soon(t)))
	require.NoError(t, m.d.WaitReady(soon(t)))
	m.coreHas(m.top.Nodes["node2"], m.vm.Prefixes()...)
	m.answers()

	watch := m.watchGuest(m.top.Nodes["node2"], "sea_gold_net0")
	results := m.probed(func() {
		require.NoError(t, m.lab.Reconnect(cut))
		m.eventually("the node gives way", func() error {
			problems := strings.Join(m.agents["node1"].status().Problems, "\n")
			if words := map[bool]string{false: "node2 has it", true: "has a route to it via node2 with a higher LOCAL_PREF"}[apart]; !strings.Contains(problems, words) {
				return fmt.Errorf("problems: %s", problems)
			}
			return nil
		})
		if !apart {
			m.eventually("all have let go", func() error { return m.announcedBy(m.top.Nodes["node2"]) })
		}
	})
	watch.lostNothing(m.byAddress(results))
	assert.Equal(t, fabric.Wired, m.agents["node1"].ask(hooks.List, fabric.VM{}).Ports[0].State)

	// To migrate the old one to where it runs is refused, and touches nothing.
	watch = m.watchGuest(m.top.Nodes["node2"], "sea_gold_net0")
	results = m.probed(func() {
		require.ErrorContains(t, stray.Migrate(context.WithoutCancel(soon(t)), m.lv["node2"]), "already active")
	})
	watch.lostNothing(m.byAddress(results))
	require.NoError(t, stray.Destroy(soon(t)))
	if apart {
		m.configure("node1", m.file)
	}
	m.rests("node2")
}

// configure restarts an agent with another cluster file.
func (m *shuttle) configure(node, file string) {
	m.t.Helper()
	a := m.agents[node]
	a.args[slices.Index(a.args, "--config")+1] = file
	a.restart(a.Stop)
	a.established()
}
