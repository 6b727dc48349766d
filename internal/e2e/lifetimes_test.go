package e2e

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	fabricagent "github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/fabric/clusterfile"
	"github.com/vmfabric/vmfabric/fabric/disk"
	"github.com/vmfabric/vmfabric/fabric/gobgp"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/lab/clients"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// A day of which 2,880 are in one. T1, T2 and the time between advertisements
// are longer than that gives: protocols and timers count in seconds.
const briefDay = 30 * time.Second

var brief = fabric.Lifetimes{Lease: 7 * briefDay, Renew: 2 * time.Second, Rebind: 4 * time.Second, Router: 23 * time.Second, Advertise: 8 * time.Second}

// runBrief is an agent like that of examples/embed, whose guests are told times of
// [brief]. It takes the arguments of vmfabric agent.
func runBrief(args []string) {
	flags := flag.NewFlagSet("agent", flag.ExitOnError)
	set := map[string]*string{}
	for _, name := range []string{"config", "node", "state", "socket", "libvirt", "lxd", "incus", "log-level"} {
		set[name] = flags.String(name, "", "")
	}
	_ = flags.Parse(args)
	if err := briefAgent(*set["config"], *set["node"], *set["state"], *set["socket"]); err != nil {
		log.Fatal(err)
	}
}

func briefAgent(config, name, state, socket string) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	cluster, err := clusterfile.Load(config)
	if err != nil {
		return err
	}
	cluster.Guests.Lifetimes = brief
	node, err := cluster.Node(name)
	if err != nil {
		return err
	}
	listener, err := hooks.Listen(ctx, socket)
	if err != nil {
		return err
	}
	ports, err := kernel.New(ctx, kernel.Config{Cluster: cluster.Name, Private: cluster.Private(), Guests: cluster.Guests})
	if err != nil {
		return err
	}
	speaker, err := gobgp.New(gobgp.Config{Cluster: cluster, Node: node})
	if err != nil {
		return err
	}
	store, err := disk.Open(state)
	if err != nil {
		return err
	}
	a, err := fabricagent.New(fabricagent.Config{Cluster: cluster, Node: name, Dataplane: ports, Speaker: speaker, Store: store})
	if err != nil {
		return err
	}
	ended := make(chan error, 4)
	go func() { ended <- ports.Run(ctx) }()
	if err := a.Adopt(ctx); err != nil {
		return err
	}
	go func() { ended <- speaker.Run(ctx) }()
	go func() { ended <- a.Run(ctx) }()
	go func() { ended <- hooks.Serve(ctx, listener, a, slog.New(slog.NewTextHandler(os.Stderr, nil))) }()
	return errors.Join(<-ended, <-ended, <-ended, <-ended, ports.Close(), store.Close())
}

// TestClientsWithoutAnAgent: the clients of guests renew and rebind in vain, by their own
// timers, and keep their addresses; so does everybody who sends to them. When the agent
// is back they get their leases again. Some lose their IPv6 default route when a router's
// lifetime can be no longer, until then. Without -clients it tries one of the machine's own.
func TestClientsWithoutAnAgent(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "nsenter", "nft", "dhclient")
	s := start(t, options{program: os.Args[0], change: func(c *fabric.Cluster) { c.Guests.DNS = resolvers }})
	for _, a := range resolvers {
		s.serve(s.top.Client, a)
	}
	some := []string{"dhclient", "dhcpcd", "udhcpc", "systemd-networkd", "NetworkManager"}
	if !*allClients {
		some = some[:1]
	}
	var days []*day
	for _, root := range roots(t) {
		for _, c := range clients.In(root) {
			if slices.Contains(some, c.Name) {
				days = append(days, &day{trial: s.trial(root, c, len(days))})
			}
		}
	}
	agent := s.agents["node1"]
	for _, d := range days {
		d.starts(t, s.top.Nodes["node1"])
	}
	each := func(f func(*day)) {
		for _, d := range days {
			f(d)
		}
	}
	each((*day).morning)
	require.NoError(t, agent.Kill())
	each((*day).alone)
	time.Sleep(briefDay)
	each((*day).evening)
	agent.start()
	// Some clients ask when half of what is left of a lease is over.
	ctx, cancel := context.WithTimeout(t.Context(), brief.Lease+patience)
	defer cancel()
	each(func(d *day) { d.again(ctx) })
	each(func(d *day) { assert.NoError(t, errors.Join(d.guest.End(), d.wire.Close())) })
	t.Log("\n" + tableOfDays(days))
}

// day is a guest whose node has no agent for a day, and by family what it did then.
type day struct {
	*trial
	before int // messages
	probes [2]*core.Prober
	asked  [2]string // while there was no agent
	kept   [2]string // of address and default route
	passed [2]core.ProbeResult
	got    [2]string // what it asked when the agent was there again
}

// everything is what guests keep, but for some in IPv6.
const everything = "address and route"

// families calls f for each family in which the client has an address.
func (d *day) families(f func(family int, a netip.Addr)) {
	for family, a := range d.own {
		if d.extent(family) == clients.Online {
			f(family, a)
		}
	}
}

// protocols are those by which a family's addresses are asked for.
var protocols = [2]fabric.ContactProtocol{fabric.DHCPv4, fabric.DHCPv6}

func (d *day) morning() {
	d.families(func(family int, a netip.Addr) {
		d.eventually("it is online", func() error { return errors.Join(d.has(a), d.routed(a)) })
		d.reaches(family, a)
	})
}

// alone begins to look at a guest whose node has no agent any more.
func (d *day) alone() {
	d.before = len(d.messages())
	d.families(func(family int, a netip.Addr) {
		var err error
		d.probes[family], err = d.s.top.Client.Probe(a, 100*time.Millisecond)
		require.NoError(d.t, err)
	})
}

// evening is when the agent is about to come back.
func (d *day) evening() {
	said := d.messages()[d.before:]
	d.families(func(family int, a netip.Addr) {
		what := d.root.Name + ", " + d.client.Name + ", " + a.String()
		d.passed[family] = d.probes[family].Stop()
		assert.Empty(d.t, exchanges(said, protocols[family]), what)
		d.asked[family] = kindsOf(said, protocols[family])
		d.kept[family] = everything
		if d.routed(a) != nil {
			d.kept[family] = "not the default route"
		}
		if d.has(a) != nil {
			d.kept[family] = "nothing"
		}
		if forgets := []string{"dhcpcd", "NetworkManager", "systemd-networkd"}; a.Is4() || !slices.Contains(forgets, d.client.Name) {
			assert.Equal(d.t, everything, d.kept[family], what)
		}
		if d.kept[family] == everything {
			assert.Zero(d.t, d.passed[family].Lost, what)
		}
	})
	d.before += len(said)
}

// again waits until the guest has its lease again, and all that it had.
func (d *day) again(ctx context.Context) {
	d.families(func(family int, a netip.Addr) {
		require.NoError(d.t, core.Until(ctx, func() error {
			if len(exchanges(d.messages()[d.before:], protocols[family])) == 0 {
				return errors.New("nothing was asked and answered")
			}
			return errors.Join(d.has(a), d.routed(a))
		}), d.root.Name+", "+d.client.Name+", "+a.String())
		d.got[family] = kindsOf(d.messages()[d.before:], protocols[family])
		d.reaches(family, a)
	})
}

// kindsOf lists what a guest asked by a protocol.
func kindsOf(ms []clients.Message, p fabric.ContactProtocol) string {
	var kinds []string
	for _, m := range ms {
		if m.Protocol == p && m.FromGuest && !slices.Contains(kinds, m.Kind) {
			kinds = append(kinds, m.Kind)
		}
	}
	return cmp.Or(strings.Join(kinds, ", "), "nothing")
}

// tableOfDays gives what guests did as a table: a row for a guest and a family.
func tableOfDays(days []*day) string {
	var b strings.Builder
	b.WriteString("| client | version | family | asked in vain | kept | lost | then asked |\n| --- | --- | --- | --- | --- | --- | --- |\n")
	for _, d := range days {
		d.families(func(family int, _ netip.Addr) {
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %d of %d | %s |\n", d.client.Name, upstream(d.version), []string{"IPv4", "IPv6"}[family],
				d.asked[family], d.kept[family], d.passed[family].Lost, d.passed[family].Sent, d.got[family])
		})
	}
	return b.String()
}
