package kernel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/rtnl"
	"github.com/vmfabric/vmfabric/internal/backoff"
)

// Config has the required settings of a [Dataplane].
type Config struct {
	Cluster string // the name in the marks of this dataplane's links
	// Underlay lists addresses of the cluster's other machines. The links by which
	// the kernel reaches them are those of the underlay.
	Underlay []netip.Addr
	// Private lists the prefixes of the cluster's own machines, which guests reach
	// only as far as Guests allows ([fabric.Cluster.Private]).
	Private []netip.Prefix
	Guests  fabric.Guests
	// AgentPort is the TCP port of the agents, which no guest reaches on any
	// node; [fabric.DefaultAgentPort] when zero.
	AgentPort uint16
	// Samples has one address that a guest may have, for each family whose packets
	// are to pass the node. The dataplane tries with it whether they do, see
	// [Dataplane.CheckForwarding].
	Samples []netip.Addr
	// Pools lists the prefixes of guests ([fabric.Cluster.GuestPrefixes]), Routers the
	// core gateways. A destination in none of Private and Pools is outside; the dataplane
	// checks that the node has a route there. Isolation needs Pools.
	Pools   []netip.Prefix
	Routers []netip.Addr
	// NextHop and NextHop6 are the next hops of announcements; the second may be
	// missing. Dataplane.NextHop reports whether they are addresses of this node.
	NextHop, NextHop6 netip.Addr
	// Known lists the ports of guests that were on the node before, as far as their
	// guests are isolated or have firewalls. These stand from the start on, also if the
	// filter has to be made anew, until the ports are put or removed.
	Known []fabric.Port
	// Netlink is shared with others that follow the kernel. If it is nil, the
	// dataplane opens its own.
	Netlink *Netlink
	// Accounting says how packets of guests are counted; nil: they are not.
	Accounting *Accounting
}

func (c Config) agentPort() uint16 { return cmp.Or(c.AgentPort, fabric.DefaultAgentPort) }

// Option sets an option of a new [Dataplane].
type Option func(*Dataplane)

// WithLogger sets the dataplane's logger. By default it logs nothing.
func WithLogger(l *slog.Logger) Option { return func(d *Dataplane) { d.log = l } }

// Dataplane is a [fabric.Dataplane] over the kernel of this network namespace.
type Dataplane struct {
	cluster    string
	log        *slog.Logger
	rtnl       *socket
	ports      *ports
	features   *features
	watch      *watcher
	reaper     reaper
	host       host
	moves      *moves
	conditions *conditions
	responder  *responder
	metadata   *metadata
	accounting *accounting // nil: packets are not counted

	forwarding *forwarding
	hops       *nextHops
	waysOut    *waysOut
	life       *lifetime
}

// New finds the dataplane's own objects in the kernel, enables forwarding on the
// node, and sets up the packet filter. [Dataplane.Run] watches from then on. New
// fails without CAP_NET_ADMIN.
func New(ctx context.Context, cfg Config, opts ...Option) (*Dataplane, error) {
	d := &Dataplane{cluster: cfg.Cluster, log: slog.New(slog.DiscardHandler), ports: newPorts(), conditions: &conditions{}, life: newLifetime()}
	d.host.ipv6, d.host.conditions, d.responder = hasIPv6(), d.conditions, newResponder(cfg, d.conditions)
	d.metadata = newMetadata(d.responder.portOf)
	d.watch = newWatcher(d)
	d.hops, d.forwarding = newNextHops(cfg.NextHop, cfg.NextHop6), newForwarding(cfg.Samples, d.host.ipv6)
	d.waysOut = newWaysOut(cfg, &d.forwarding.trials.guests)
	for _, o := range opts {
		o(d)
	}
	if !mayAdministrate() {
		return nil, errors.New("kernel: no right to set up interfaces (CAP_NET_ADMIN); run as root, or give the service AmbientCapabilities=CAP_NET_ADMIN")
	}
	if cfg.Guests.Isolate && len(cfg.Pools) == 0 {
		return nil, errors.New("kernel: guests are to be isolated, and no prefixes of guests are given; name the pools")
	}
	if err := enableForwarding(); err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	var err error
	if d.rtnl, err = dial(); err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	d.reaper.rtnl, d.host.underlay = d.rtnl, newUnderlay(d.rtnl, cfg.Underlay)
	d.findFeatures(cfg)
	if err = d.open(ctx, cfg); err != nil {
		return nil, fmt.Errorf("kernel: %w", errors.Join(err, d.Close()))
	}
	return d, nil
}

// findFeatures tries what the kernel has, and reports what is off without it.
func (d *Dataplane) findFeatures(cfg Config) {
	d.features = d.rtnl.probe(d.host.ipv6, cfg.Accounting != nil)
	d.host.features, d.responder.features = d.features, d.features
	d.features.report(d.conditions, cfg)
	for _, line := range d.features.notes() {
		d.log.Info("kernel", "without", line)
	}
}

// open opens the parts of a dataplane. After an error, Close closes those that are
// open.
func (d *Dataplane) open(ctx context.Context, cfg Config) (err error) {
	d.openMetadata(ctx, cfg.Guests)
	d.listenToRequests(cfg)
	if d.moves, err = newMoves(d.watch.changed.Send, d.introduce); err != nil {
		return err
	}
	if err := errors.Join(d.findDiversions(ctx), d.renameFormer()); err != nil {
		return err
	}
	if err := d.watch.join(ctx, cfg.Netlink); err != nil {
		return err
	}
	if d.features.lack(inetTables, setCounters) == nil {
		d.accounting = newAccounting(d, cfg.Accounting)
	}
	if err := d.accounting.open(); err != nil {
		d.conditions.set("accounting", fmt.Sprintf("accounting: it is off, and its tables may still be there: %v", err))
	}
	return errors.Join(d.openWaysOut(), d.openForwarding())
}

// listenToRequests opens the responder's sockets, and makes the filter, which sends it
// the guests' requests. Without the sockets everything else works as ever.
func (d *Dataplane) listenToRequests(cfg Config) {
	d.responder.log = d.log
	if err := d.responder.listen(); err != nil {
		d.responder.fail(err)
	}
	d.host.filter = newFilter(cfg, d.requestsOf(cfg))
	d.findGuards(cfg.Known)
}

// requestsOf returns the requests that the filter sends to the node's own services.
func (d *Dataplane) requestsOf(cfg Config) (q requests) {
	if l := d.responder.requests; l != nil {
		q = requestsOf(cfg.Guests, l.Group)
	}
	q.metadata = d.metadata.number
	return q
}

// Run works until ctx ends, or Close, and returns nil then: it signals when a port is not
// as it was put, keeps what the node's ports share, answers the guests' requests, counts
// their packets, and tries whether these pass the node. Call it once. Without it the
// dataplane does what it is asked, and learns of changes when it is asked.
func (d *Dataplane) Run(ctx context.Context) error {
	d.life.run(ctx, d.watch.feed.run, d.watch.inspect, d.responder.answer, d.responder.advertise,
		d.accounting.run, d.waysOut.run, d.forwarding.listen, d.forwarding.run)
	return nil
}

// Close ends Run. Everything in the kernel stays.
func (d *Dataplane) Close() error {
	d.life.close()
	errs := []error{d.accounting.close(), d.forwarding.close(), d.waysOut.close(), d.watch.close(), d.responder.close(), d.metadata.close()}
	if d.moves != nil {
		errs = append(errs, d.moves.close())
	}
	return errors.Join(append(errs, d.rtnl.Close())...)
}

// Changed implements [fabric.Dataplane].
func (d *Dataplane) Changed() <-chan struct{} { return d.watch.changed }

// Diagnose implements [fabric.Diagnoser].
func (d *Dataplane) Diagnose(context.Context) []string {
	all := d.conditions.list()
	if text := d.features.noTaps(); text != "" && d.ports.anyTap() {
		all = append(all, text)
	}
	for _, fault := range d.waysOut.list() {
		all = append(all, fault.Text)
	}
	return append(all, d.forwarding.lines()...)
}

// Notes says, in words for people, what does not work on this node, as far as no guest of it
// needs that. What one needs is a problem, see [Dataplane.Diagnose].
func (d *Dataplane) Notes() []string {
	if text := d.features.noTaps(); text != "" && !d.ports.anyTap() {
		return []string{text}
	}
	return nil
}

// Actual implements [fabric.Dataplane]. It asks the kernel for no listing, and its
// result includes every Put before the call.
func (d *Dataplane) Actual(ctx context.Context) ([]fabric.PortState, error) {
	if err := d.watch.feed.CatchUp(ctx); err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	m, done := d.watch.cache.open()
	defer done()
	states := make([]fabric.PortState, 0, len(m.links))
	for _, l := range m.links {
		p, known := d.ports.get(l.name)
		cluster, vm, index, ours := fabric.ParseAlias(l.alias)
		if known && (!ours || cluster != d.cluster) {
			// This dataplane put the port, and somebody took its mark off.
			cluster, vm, index, ours = p.Cluster, p.VM, p.Index, true
		}
		if !ours || cluster != d.cluster {
			continue
		}
		s := fabric.PortState{
			Name: l.name, Cluster: cluster, VM: vm, Index: index,
			NIC: l.nic(), Carrier: l.carrier(), Lost: l.hadCarrier && l.up() && !l.carrier(), Contacts: d.responder.contacts(l.index),
		}
		if known {
			s.NIC.Kind, s.Faults = p.NIC.Kind, d.faults(p, l)
			s.Lost = s.Lost || l.found && p.NIC.Kind == fabric.Adopt && !l.carrier()
			s.Silent = p.Listen && l.carrier() && d.moves.silent(l.name, l.index)
		} else {
			s.Faults = []string{"not verified yet"}
		}
		states = append(states, s)
	}
	return states, nil
}

// nic returns a guest's NIC as far as its port shows it.
func (l *cachedLink) nic() fabric.NIC {
	n := fabric.NIC{Kind: fabric.Adopt}
	switch l.kind {
	case "tun":
		n.Kind = fabric.Tap
		if l.multiQueue {
			n.Queues = 2
		}
	case "veth":
		n.Kind = fabric.Veth
	}
	for at, r := range l.routes {
		if _, also := l.routes[place{prefix: at.prefix}]; also && at.table != 0 {
			continue // the port of a guest that arrives: it has both routes for a moment
		}
		if r.prefix.IsSingleIP() && !r.via.IsValid() {
			n.Addresses = append(n.Addresses, r.prefix.Addr())
		} else {
			n.Routes = append(n.Routes, r.prefix)
		}
	}
	slices.SortFunc(n.Addresses, netip.Addr.Compare)
	slices.SortFunc(n.Routes, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	return n
}

// faults lists how a link differs from the wanted port.
func (d *Dataplane) faults(p fabric.Port, l *cachedLink) []string {
	faults := l.linkFaults(p)
	for _, a := range d.gateways(p) {
		if !l.addrs[a] {
			faults = append(faults, "address "+a.String()+" missing")
		}
	}
	wanted := portRoutes(p, l.index)
	for _, r := range wanted {
		if l.routes[r.place()] != r {
			faults = append(faults, "route "+r.prefix.String()+" missing")
		}
	}
	for at := range l.routes {
		if !slices.ContainsFunc(wanted, func(r route) bool { return r.place() == at }) {
			faults = append(faults, "route "+at.prefix.String()+" too many")
		}
	}
	for _, r := range l.competing {
		faults = append(faults, fmt.Sprintf("route %s: %v", r.prefix, foreign(r)))
	}
	return slices.Concat(faults, l.neighbours, l.settings)
}

// linkFaults lists the faults that the link's own attributes show.
func (l link) linkFaults(p fabric.Port) []string {
	var faults []string
	note := func(bad bool, text string) {
		if bad {
			faults = append(faults, text)
		}
	}
	note(l.alias != p.Alias(), "mark missing")
	note(!l.up(), "down")
	note(l.mac != p.Gateway.MAC, "MAC is "+l.mac.String())
	note(l.group != fabric.LinkGroup, "not in the ports' group")
	note(l.master != 0, "enslaved to another link")
	fault := l.reversePathFault(p)
	note(fault != "", fault)
	note(l.queue < queueOf(p), fmt.Sprintf("queue of %d packets", l.queue))
	note(p.NIC.MTU != 0 && l.mtu != uint32(p.NIC.MTU), fmt.Sprintf("MTU is %d", l.mtu))
	return faults
}

// gateways lists the node's own addresses on a port: the gateway's, and that of the
// metadata service.
func (d *Dataplane) gateways(p fabric.Port) []netip.Addr {
	var as []netip.Addr
	if p.Gateway.IPv4.IsValid() {
		as = append(as, p.Gateway.IPv4)
	}
	if p.Gateway.IPv6.IsValid() && d.host.ipv6 {
		as = append(as, p.Gateway.IPv6)
	}
	if d.metadata.number != 0 && d.host.ipv6 && !p.NoMetadata {
		as = append(as, fabric.Metadata6) // after the gateway's, which the kernel so prefers as a source
	}
	return as
}

// queueOf returns the length of a port's queue, in packets.
func queueOf(p fabric.Port) uint32 {
	if p.Queue > 0 {
		return uint32(p.Queue)
	}
	return txQueueLength
}

// queueFor returns the queue length that the link gets as the port, in packets. The
// queue does not become shorter while a guest has the port open: the kernel would
// drop the packets beyond the new length, and a guest that arrived on a busy node
// may be further behind than that for seconds.
func (l link) queueFor(p fabric.Port) uint32 {
	if l.carrier() {
		return max(l.queue, queueOf(p))
	}
	return queueOf(p)
}

// portRoutes lists the routes to the addresses and prefixes behind a port.
func portRoutes(p fabric.Port, index int32) []route {
	table := uint32(0)
	if p.Incoming {
		table = fabric.ArrivingTable
	}
	routes := make([]route, 0, len(p.NIC.Addresses)+len(p.NIC.Routes))
	for _, a := range p.NIC.Addresses {
		routes = append(routes, route{table: table, prefix: fabric.HostPrefix(a), index: index, proto: routeProtocol, metric: fabric.PortMetric})
	}
	for _, r := range p.NIC.Routes {
		routes = append(routes, route{table: table, prefix: r, index: index, via: p.NIC.Via(r), proto: routeProtocol, metric: fabric.PortMetric})
	}
	return routes
}

// Put implements [fabric.Dataplane].
func (d *Dataplane) Put(ctx context.Context, p fabric.Port) error {
	was, end := d.ports.begin(p)
	err := d.put(ctx, p, was)
	end(err)
	d.watch.suspects.addPorts(p.Name)
	d.accounting.notice()
	return err
}

// put makes a port. was is the port as it was put before; zero if it was not.
func (d *Dataplane) put(ctx context.Context, p, was fabric.Port) error {
	if !d.host.ipv6 && len(p.NIC.Addresses) > 0 {
		for _, a := range p.NIC.Addresses {
			if a.Is6() {
				return fmt.Errorf("address %s: this kernel has no IPv6; boot without ipv6.disable=1, or leave the address out", a)
			}
		}
	}
	if err := d.guard(p, was); err != nil {
		return err
	}
	l, fresh, err := d.ensureLink(p)
	if err != nil {
		return err
	}
	if fresh {
		was = fabric.Port{}
	}
	if err := d.configure(ctx, p, was, l); err != nil {
		if fresh && p.NIC.Kind != fabric.Adopt {
			err = errors.Join(err, d.reaper.remove(l.index))
		}
		return err
	}
	d.attend(p, l.index)
	return nil
}

// ensureLink finds the port's link, or makes it.
func (d *Dataplane) ensureLink(p fabric.Port) (l link, fresh bool, err error) {
	if p.NIC.Kind == fabric.Tap && !d.watch.cache.knows(p.Name) {
		// The link is new, as a rule. If it is not, the kernel says so.
		if l, err = d.makeLink(p); !errors.Is(err, os.ErrExist) {
			return l, true, err
		}
	}
	l, err = d.rtnl.linkByName(p.Name)
	if errors.Is(err, os.ErrNotExist) {
		if p.NIC.Kind == fabric.Adopt {
			d.ports.await(p.Name)
			return link{}, false, fmt.Errorf("link %s: %w; the hypervisor makes it", p.Name, os.ErrNotExist)
		}
		l, err = d.makeLink(p)
		return l, true, err
	}
	if err != nil {
		return link{}, false, fmt.Errorf("link: %w", err)
	}
	if err := d.checkTakeover(p, l); err != nil {
		return link{}, false, err
	}
	if suits(p, l) {
		return l, false, nil
	}
	if l.carrier() {
		return link{}, false, fmt.Errorf("link %s is of another kind (%s, multi-queue %v) and in use; stop what holds it first", p.Name, l.kind, l.multiQueue)
	}
	if err := d.reaper.remove(l.index); err != nil {
		return link{}, false, err
	}
	l, err = d.makeLink(p)
	return l, true, err
}

// checkTakeover returns an error if an existing link may not become the port.
func (d *Dataplane) checkTakeover(p fabric.Port, l link) error {
	cluster, vm, index, marked := fabric.ParseAlias(l.alias)
	switch {
	case marked && cluster == p.Cluster && vm == p.VM && index == p.Index:
		return nil
	case marked:
		return fmt.Errorf("link %s is port %d of VM %q in cluster %s: %w; detach that VM first", l.name, index, vm, cluster, fabric.ErrForeign)
	case p.NIC.Kind == fabric.Adopt:
		return nil // the caller says that the link's owner means it for this port
	case l.alias == "" && l.group == fabric.LinkGroup && l.mac == p.Gateway.MAC:
		return nil // made here and never marked, or somebody took the mark off
	}
	return fmt.Errorf("link %s exists and has no mark of vmfabric: %w; rename or remove it (ip link del %s), or attach with --kind adopt to take it over",
		l.name, fabric.ErrForeign, l.name)
}

// suits reports whether a link is of the type that the port needs.
func suits(p fabric.Port, l link) bool {
	switch p.NIC.Kind {
	case fabric.Tap:
		return l.kind == "tun" && l.multiQueue == (p.NIC.Queues > 1)
	case fabric.Veth:
		return l.kind == "veth"
	}
	return true
}

func (d *Dataplane) makeLink(p fabric.Port) (l link, err error) {
	if p.NIC.Kind == fabric.Veth {
		if err := d.rtnl.addVeth(p.Name, fabric.PeerName(p.VM, p.Index), p.Gateway.MAC, p.NIC.MTU, queueOf(p)); err != nil {
			return link{}, err
		}
		return d.rtnl.linkByName(p.Name)
	}
	err = addTap(p.Name, p.NIC.Queues > 1, func() error {
		// The mark comes first and alone; the rest goes out in one batch.
		_, err := d.rtnl.Do(rtnl.Message(unix.RTM_SETLINK, netlink.Acknowledge, rtnl.IfInfoMsg(0, 0, 0), func(ae *netlink.AttributeEncoder) {
			ae.String(unix.IFLA_IFNAME, p.Name)
			ae.String(unix.IFLA_IFALIAS, p.Alias())
		}))
		return err
	})
	if err != nil {
		return link{}, err
	}
	// Ask only now. Kernels since 6.8 then also process that the tap lost its
	// carrier when it was closed. Once the link is up, that would cost a walk over
	// all IPv6 routes.
	return d.rtnl.linkByName(p.Name)
}

// linkMessage gives a link the mark, the group, the MAC and the settings of a port.
func (d *Dataplane) linkMessage(p fabric.Port, l link) netlink.Message {
	return rtnl.Message(unix.RTM_SETLINK, netlink.Acknowledge, rtnl.IfInfoMsg(l.index, 0, 0), func(ae *netlink.AttributeEncoder) {
		ae.String(unix.IFLA_IFALIAS, p.Alias())
		ae.Uint32(unix.IFLA_GROUP, fabric.LinkGroup)
		if l.mac != p.Gateway.MAC {
			ae.Bytes(unix.IFLA_ADDRESS, p.Gateway.MAC[:])
		}
		if l.master != 0 {
			ae.Uint32(unix.IFLA_MASTER, 0)
		}
		if q := l.queueFor(p); l.queue != q {
			ae.Uint32(unix.IFLA_TXQLEN, q)
		}
		if p.NIC.MTU != 0 && l.mtu != uint32(p.NIC.MTU) {
			ae.Uint32(unix.IFLA_MTU, uint32(p.NIC.MTU))
		}
		encodeSpec(ae, len(l.conf6) > 0, reversePathOf(p))
	})
}

// configure makes a link the port. It sends only the differences.
func (d *Dataplane) configure(ctx context.Context, p, was fabric.Port, l link) error {
	if err := d.removeLinkLocal(p, &l); err != nil {
		return err
	}
	if err := l.writeSettings(&d.host.proxying); err != nil {
		return err
	}
	if p.Incoming {
		if err := d.host.expectArrivals(); err != nil {
			return err
		}
		d.host.keepFilter(d.arriving)
	}
	first, last := d.differences(p, was, l)
	used, err := d.carryOut(l, first, lookups(p, l.index)...)
	if err != nil {
		return err
	}
	if full := p.FullPortName(); len(first) > 0 && full != p.Name && len(full) < 128 && d.features.has(altNames) {
		_ = d.rtnl.addAltName(l.index, full) // there already, as a rule
	}
	if err := d.checkCompeting(ctx, p, l, used); err != nil {
		return err
	}
	// Carry out the last changes only when the kernel uses the new routes: before
	// that, a packet could find no route, or the one that a routing daemon still
	// has to the guest's former node.
	if _, err := d.carryOut(l, last); err != nil {
		return err
	}
	has := p.NIC.Prefixes()
	if slices.ContainsFunc(was.NIC.Prefixes(), func(had netip.Prefix) bool { return !slices.Contains(has, had) }) {
		// After a restart nobody knows how the port was put before. Then the
		// remembered sources expire after learnedFor.
		if err := d.host.filter.forget(); err != nil {
			d.log.Debug("sources not checked anew", "err", err) // they expire after half a minute anyway
		}
	}
	return nil
}

// carryOut sends changes to the kernel in one batch, with questions behind them. It
// returns the answers to the questions, or none if it settled a route afterwards.
func (d *Dataplane) carryOut(l link, changes []change, questions ...netlink.Message) ([]rtnl.Answer, error) {
	if len(changes)+len(questions) == 0 {
		return nil, nil
	}
	msgs := make([]netlink.Message, 0, len(changes)+len(questions))
	for _, c := range changes {
		msgs = append(msgs, c.message)
	}
	all, err := d.rtnl.Exchange(append(msgs, questions...)...)
	if err != nil {
		return nil, err
	}
	answers := all[len(changes):]
	for i, c := range changes {
		err := all[i].Err
		if n := rtnl.Errno(err); (n == unix.ESRCH || n == unix.ENOENT || n == unix.EADDRNOTAVAIL) && c.stale {
			continue
		}
		if rtnl.Errno(err) == unix.EEXIST && c.route.prefix.IsValid() {
			err, answers = d.settleRoute(c.route), nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.text, err)
		}
		if c.addr.IsValid() {
			d.watch.cache.added(l.index, c.addr)
		}
	}
	return answers, nil
}

// removeLinkLocal removes the link-local address that the kernel gives a link when somebody
// else brings it up: the port may have only the gateway's. The owner may bring the
// link up at any moment, so removeLinkLocal acts even while it is down: it sets the mode in
// which the kernel adds no address, then removes those that came before.
func (d *Dataplane) removeLinkLocal(p fabric.Port, l *link) error {
	theirs := p.NIC.Kind == fabric.Adopt && l.alias != p.Alias()
	if len(l.conf6) == 0 || !theirs && (!l.up() || l.genMode == genModeNone) {
		return nil
	}
	if _, err := d.rtnl.Do(d.linkMessage(p, *l)); err != nil {
		return fmt.Errorf("set up the link: %w", err)
	}
	for _, off := range []int32{1, 0} {
		if err := writeSysctl("ipv6/conf/"+l.name+"/disable_ipv6", off); err != nil {
			return err
		}
	}
	var err error
	*l, err = d.rtnl.linkByIndex(l.index)
	return err
}

// change is a message of a batch, and its text for people.
type change struct {
	message netlink.Message
	text    string
	route   route
	addr    netip.Addr
	stale   bool // the message removes something
}

// differences lists the changes that make a link the port, and those to carry out
// after them.
func (d *Dataplane) differences(p, was fabric.Port, l link) (first, last []change) {
	add := func(m netlink.Message, c change) {
		c.message = m
		first = append(first, c)
	}
	addrs, have, competing := d.watch.cache.seen(l.index)
	if faults := append(l.linkFaults(p), l.settingFaults()...); len(faults) > 0 || l.genMode != genModeNone && len(l.conf6) > 0 {
		set := change{text: "set up the link", message: d.linkMessage(p, l)}
		if have, _ := l.reversePath(); l.up() && !p.Incoming && have == loosePath {
			last = append(last, set) // first the routes to the port, then the check that sources have them
		} else {
			first = append(first, set)
			add(rtnl.Message(unix.RTM_SETLINK, netlink.Acknowledge, rtnl.IfInfoMsg(l.index, unix.IFF_UP, unix.IFF_UP), nil), change{text: "bring the link up"})
		}
	}
	for _, a := range d.gateways(p) {
		if !addrs[a] {
			add(addrMessage(unix.RTM_NEWADDR, netlink.Create|netlink.Replace, l.index, a), change{text: "gateway " + a.String(), addr: a})
		}
	}
	if addrs[fabric.Metadata6] && !slices.Contains(d.gateways(p), fabric.Metadata6) {
		last = append(last, change{text: "remove address " + fabric.Metadata6.String(), stale: true, message: addrMessage(unix.RTM_DELADDR, 0, l.index, fabric.Metadata6)})
	}
	turned := was.Name != "" && was.Incoming != p.Incoming
	wanted := portRoutes(p, l.index)
	if was.Name != "" {
		// Notifications of the Put before may be still to come.
		for _, r := range portRoutes(was, l.index) {
			if turned || !slices.ContainsFunc(wanted, func(w route) bool { return w.place() == r.place() }) {
				have[r.place()] = r
			}
		}
	}
	var routes []change
	for _, r := range wanted {
		had, there := have[r.place()]
		if _, competes := competing[r.prefix]; had != r || turned || competes && r.table == 0 {
			routes = append(routes, change{message: routeMessage(unix.RTM_NEWROUTE, netlink.Create|netlink.Excl, r), text: "route " + r.prefix.String(), route: r})
		}
		if !there || had.metric == r.metric {
			delete(have, r.place())
		} // else the kernel has the old route beside the new one, and last removes it
	}
	// Neighbours come before the routes, so that the kernel asks nobody for them.
	if len(first)+len(routes) > 0 || !sameNeighbours(p, was) || d.watch.cache.lacksNeighbours(l.index) {
		first = append(first, neighbours(p, l.index, unix.NUD_PERMANENT)...)
	}
	first = append(first, routes...)
	for _, r := range have {
		last = append(last, change{message: routeMessage(unix.RTM_DELROUTE, 0, r), text: "remove route " + r.prefix.String(), stale: true})
	}
	return first, append(last, staleNeighbours(p, was, l.index)...)
}

func foreign(r route) error {
	return fmt.Errorf("there is one already, of protocol %d, %w; remove it: ip route del %s metric %d", r.proto, fabric.ErrForeign, r.prefix, r.metric)
}

// A routing daemon that learned a prefix from elsewhere removes its route once it
// sees the port's. Put waits for that, for all routes of a port together.
const (
	givesWayLook = 20 * time.Millisecond
	givesWayIn   = 3 * time.Second
)

// lookups returns requests that ask which routes the kernel uses to the prefixes
// behind a port. For a guest that is about to arrive there are none: a routing
// daemon may keep its route until the guest runs here.
func lookups(p fabric.Port, index int32) (msgs []netlink.Message) {
	if p.Incoming {
		return nil
	}
	for _, r := range portRoutes(p, index) {
		msgs = append(msgs, routeRequest(r.prefix.Addr(), routeMatch))
	}
	return msgs
}

// checkCompeting returns an error if the kernel uses a route of somebody else's in the
// place of one to the port. used has the answers to [lookups], or none.
func (d *Dataplane) checkCompeting(ctx context.Context, p fabric.Port, l link, used []rtnl.Answer) error {
	if p.Incoming {
		return nil
	}
	bound := time.Now().Add(givesWayIn)
	for i, r := range portRoutes(p, l.index) {
		known := used != nil
		for {
			var have route
			var err error
			if known {
				have, err = entry(r.prefix, used[i])
			} else {
				have, err = d.rtnl.lookup(r.prefix)
			}
			if err != nil || have.proto == routeProtocol {
				break // if the kernel shows no entry for the prefix, no other route is in the way
			}
			if have.proto <= unix.RTPROT_STATIC || time.Now().After(bound) {
				return fmt.Errorf("route %s: %w", r.prefix, foreign(have))
			}
			known = false
			if !backoff.Sleep(ctx, givesWayLook) {
				return fmt.Errorf("route %s: %w (%w)", r.prefix, foreign(have), ctx.Err())
			}
		}
		d.watch.cache.noneCompetes(l.index, r.prefix)
	}
	return nil
}

// settleRoute handles a route that the kernel refused because there is one already.
// It replaces one of this dataplane's; any other is an error.
func (d *Dataplane) settleRoute(r route) error {
	have, err := route{}, errOtherTable
	if r.table == 0 {
		have, err = d.rtnl.lookup(r.prefix)
	}
	if err == nil && have == r {
		return nil
	}
	if err != nil || have.announces() { // an announcement hides the route that is in the way
		if have, err = d.rtnl.routeOf(r.place()); err != nil || have == r {
			return err
		}
	}
	if have.proto != routeProtocol {
		return foreign(have)
	}
	errs, err := d.rtnl.Batch(
		routeMessage(unix.RTM_DELROUTE, 0, have),
		routeMessage(unix.RTM_NEWROUTE, netlink.Create|netlink.Excl, r))
	if err != nil {
		return err
	}
	return errs[1]
}

func addrMessage(typ netlink.HeaderType, flags netlink.HeaderFlags, index int32, a netip.Addr) netlink.Message {
	family, bits := uint8(unix.AF_INET), uint8(32)
	if a.Is6() {
		family, bits = unix.AF_INET6, 128
		if a.IsLinkLocalUnicast() {
			bits = 64
		}
	}
	return rtnl.Message(typ, flags|netlink.Acknowledge, rtnl.IfAddrMsg(family, bits, index), func(ae *netlink.AttributeEncoder) {
		ae.Bytes(unix.IFA_LOCAL, a.AsSlice())
		ae.Bytes(unix.IFA_ADDRESS, a.AsSlice())
		if a.Is6() {
			// Every port has the same address: duplicate address detection would
			// only keep the guest from its gateway for a second.
			ae.Uint32(unix.IFA_FLAGS, unix.IFA_F_NODAD|unix.IFA_F_PERMANENT)
		}
	})
}

func routeMessage(typ netlink.HeaderType, flags netlink.HeaderFlags, r route) netlink.Message {
	family, scope, rflags := uint8(unix.AF_INET), uint8(unix.RT_SCOPE_LINK), uint32(0)
	if r.prefix.Addr().Is6() {
		family, scope = unix.AF_INET6, unix.RT_SCOPE_UNIVERSE
	}
	if r.via.IsValid() {
		scope, rflags = unix.RT_SCOPE_UNIVERSE, unix.RTNH_F_ONLINK
	}
	if typ == unix.RTM_DELROUTE {
		rflags = 0
	}
	head := rtnl.RtMsg(family, uint8(r.prefix.Bits()), routeProtocol, scope, rflags)
	if r.table != 0 {
		head[4] = uint8(r.table)
	}
	return rtnl.Message(typ, flags|netlink.Acknowledge, head, func(ae *netlink.AttributeEncoder) {
		ae.Bytes(unix.RTA_DST, r.prefix.Addr().AsSlice())
		ae.Uint32(unix.RTA_OIF, uint32(r.index))
		if r.via.IsValid() {
			ae.Bytes(unix.RTA_GATEWAY, r.via.AsSlice())
		}
		if r.metric != 0 {
			ae.Uint32(unix.RTA_PRIORITY, r.metric)
		}
	})
}

// routeMatch is RTM_F_FIB_MATCH: the kernel answers with the entry of the table,
// not with the way that a packet would take.
const routeMatch = 0x2000

// routeRequest asks for the route to an address.
func routeRequest(a netip.Addr, flags uint32) netlink.Message {
	return rtnl.Message(unix.RTM_GETROUTE, 0, routeQuery(a, flags), func(ae *netlink.AttributeEncoder) {
		ae.Bytes(unix.RTA_DST, a.AsSlice())
	})
}

func routeQuery(a netip.Addr, flags uint32) []byte {
	head := make([]byte, unix.SizeofRtMsg)
	head[0], head[1] = familyOf(a), uint8(a.BitLen())
	putUint32(head[8:], flags)
	return head
}

// lookup asks for the entry of the main table that a prefix's first address
// matches (RTM_F_FIB_MATCH).
func (r *socket) lookup(p netip.Prefix) (route, error) {
	answers, err := r.Exchange(routeRequest(p.Addr(), routeMatch))
	if err != nil {
		return route{}, err
	}
	return entry(p, answers[0])
}

// entry reads the answer to a lookup.
func entry(p netip.Prefix, a rtnl.Answer) (route, error) {
	if a.Err != nil {
		return route{}, a.Err
	}
	for _, m := range a.Messages {
		if have, err := parseRoute(m.Data); err == nil && have.prefix == p {
			return have, nil
		}
	}
	return route{}, fmt.Errorf("the kernel says that there is a route to %s and does not show it", p)
}

// routeOf lists the routes of [fabric.Protocol], and returns the one at a place
// that is not an announcement.
func (r *socket) routeOf(p place) (route, error) {
	family := uint8(unix.AF_INET)
	if p.prefix.Addr().Is6() {
		family = unix.AF_INET6
	}
	replies, err := r.Do(rtnl.Message(unix.RTM_GETROUTE, netlink.Dump, rtnl.RoutesOf(family, routeProtocol), nil))
	if err != nil {
		return route{}, err
	}
	for _, reply := range replies {
		if have, err := parseTableRoute(reply.Data); err == nil && have.place() == p && have.proto == routeProtocol && !have.announces() {
			return have, nil
		}
	}
	return route{}, fmt.Errorf("there is one already, %w; see ip route show table all %s", fabric.ErrForeign, p.prefix)
}

// Remove implements [fabric.Dataplane]. The reaper makes concurrent removals
// together.
func (d *Dataplane) Remove(_ context.Context, names ...string) error {
	var doomed []int32
	var errs []error
	for _, name := range names {
		p, wanted := d.ports.remove(name)
		d.moves.leave(name)
		d.responder.leave(name)
		d.conditions.set("hear "+name, "")
		l, err := d.rtnl.linkByName(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("link %s: %w", name, err))
			continue
		}
		cluster, _, _, ours := fabric.ParseAlias(l.alias)
		if !ours || cluster != d.cluster {
			continue // the link is somebody else's, so the port is absent
		}
		if wanted && p.NIC.Kind == fabric.Adopt {
			errs = append(errs, d.giveBack(p, l))
			continue
		}
		doomed = append(doomed, l.index)
	}
	if len(doomed) > 0 {
		errs = append(errs, d.reaper.remove(doomed...))
	}
	d.accounting.notice()
	return errors.Join(errs...)
}

// giveBack takes the fabric's routes, neighbours, addresses and mark off an adopted
// link, and leaves the link to its owner.
func (d *Dataplane) giveBack(p fabric.Port, l link) error {
	var msgs []netlink.Message
	_, routes, _ := d.watch.cache.seen(l.index)
	for _, r := range routes {
		msgs = append(msgs, routeMessage(unix.RTM_DELROUTE, 0, r))
	}
	for _, c := range staleNeighbours(fabric.Port{}, p, l.index) {
		msgs = append(msgs, c.message)
	}
	for _, a := range d.gateways(p) {
		msgs = append(msgs, addrMessage(unix.RTM_DELADDR, 0, l.index, a))
	}
	msgs = append(msgs, rtnl.Message(unix.RTM_SETLINK, netlink.Acknowledge, rtnl.IfInfoMsg(l.index, 0, 0), func(ae *netlink.AttributeEncoder) {
		ae.String(unix.IFLA_IFALIAS, "")
		ae.Uint32(unix.IFLA_GROUP, 0)
	}))
	errs, err := d.rtnl.Batch(msgs...)
	for _, e := range errs {
		if n := rtnl.Errno(e); e != nil && n != unix.ESRCH && n != unix.ENOENT && n != unix.EADDRNOTAVAIL && n != unix.ENODEV {
			err = errors.Join(err, e)
		}
	}
	if err != nil {
		return fmt.Errorf("give back %s: %w", l.name, err)
	}
	return nil
}

var _ fabric.Dataplane = (*Dataplane)(nil)
