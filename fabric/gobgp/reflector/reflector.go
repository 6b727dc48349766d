package reflector

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/server"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/notifications"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/peering"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/resend"
)

// Config is what a [Reflector] cannot do without.
type Config struct {
	Cluster fabric.Cluster // valid, with its defaults filled in, see [fabric.Cluster.WithDefaults]
	RR      fabric.RR      // which of the cluster's reflectors this is
}

// Option changes a [Reflector] at its making.
type Option func(*Reflector)

// WithLogger sets where the reflector logs; it is silent without.
func WithLogger(l *slog.Logger) Option { return func(r *Reflector) { r.log = l } }

// WithDeferral sets how long a reflector that starts waits for the
// End-of-RIB of the nodes before it sends its own to the core gateways, which
// until then keep what an earlier one told them (the Selection_Deferral_Timer of
// RFC 4724), in whole seconds; [DefaultDeferral] without. It waits no longer than
// for the last of the cluster's nodes. Zero: it neither waits nor says that it
// resumes.
func WithDeferral(d time.Duration) Option {
	return func(r *Reflector) { r.deferral = d }
}

// WithPause sets how long a node that exceeded [fabric.Cluster.MaxPrefixes]
// is refused; [DefaultPause] without.
func WithPause(d time.Duration) Option { return func(r *Reflector) { r.pause = d } }

const (
	// DefaultDeferral is twice what an agent takes to come back: GoBGP lets a
	// session rest for 5 s before it connects again.
	DefaultDeferral = 15 * time.Second
	// DefaultPause lets a mistake be seen before it is repeated.
	DefaultPause = time.Minute
)

// coreDeferral bounds how long a core gateway is told nothing for the sake of others'
// End-of-RIB: it is admitted when the nodes are there.
const coreDeferral = time.Second

// warnAt is the part of [fabric.Cluster.MaxPrefixes], in percent, above which the
// reflector warns.
const warnAt = 80

// The roles of a reflector's peers, in [fabric.Session].
const (
	RoleNode = "node"
	RoleCore = "core"
)

// nodeGroup is the peer group of nodes that the cluster does not name.
const nodeGroup = "nodes"

// neighbour is a peer that the cluster names.
type neighbour struct {
	name, role string
	address    netip.Addr
	asn        uint32
	bfd        bool
}

// Reflector is a route reflector (RFC 4456) for laboratories and small clusters.
//
// From nodes it takes what [fabric.Cluster.Announceable] has, less what is
// excluded, and only with all communities of the cluster, the node as next hop
// ([fabric.Node.NextHop]) and a LOCAL_PREF of [fabric.Preferences]; from core
// gateways nothing. It tells core gateways what it took, and nodes what of it is
// [fabric.Fresh], or all where the cluster is [fabric.Cluster.EastWest]. Nodes are known by name, or by their
// address ([fabric.Cluster.NodeRanges]); those have no BFD.
//
// A node that ends without a word keeps its routes for the graceful restart
// time; one that falls silent (hold time, BFD) loses them at once.
type Reflector struct {
	cluster fabric.Cluster
	rr      fabric.RR
	id      string // BGP identifier and cluster id
	log     *slog.Logger
	policy  *policy
	began   time.Time

	deferral, pause time.Duration

	named   []neighbour       // in the order of the cluster, core gateways first
	bgp     *server.BgpServer // once it is ready
	ready   chan struct{}     // closed by Run
	serving sync.WaitGroup    // what Run waits for
	notes   *notifications.Tracker
	order   *order

	mu       sync.Mutex // held over what changes neighbours
	closed   bool       // Run ends
	up       map[netip.Addr]bool
	since    map[netip.Addr]time.Time
	sent     map[netip.Addr]uint64 // notifications sent by the end of the last session
	been     map[netip.Addr]bool   // had a session since the start
	held     map[netip.Addr]bool   // refused for too many prefixes
	counted  map[netip.Addr]count
	admitted map[netip.Addr]bool // has statements in the policy, which names no node that the cluster does not
	opening  map[netip.Addr]opening
	removals resend.Removals // as long as a session is being established
}

// New makes a reflector, which does nothing before Run. An error says what about the
// cluster is not as a reflector needs it.
func New(cfg Config, opts ...Option) (*Reflector, error) {
	r := &Reflector{
		cluster: cfg.Cluster, rr: cfg.RR, id: fabric.RouterID(cfg.RR.Address, cfg.RR.Address).String(), log: slog.New(slog.DiscardHandler),
		began: time.Now(), deferral: DefaultDeferral, pause: DefaultPause, ready: make(chan struct{}), notes: notifications.New(), order: newOrder(),
		up: map[netip.Addr]bool{}, since: map[netip.Addr]time.Time{}, sent: map[netip.Addr]uint64{}, been: map[netip.Addr]bool{},
		held: map[netip.Addr]bool{}, counted: map[netip.Addr]count{},
		admitted: map[netip.Addr]bool{}, opening: map[netip.Addr]opening{},
	}
	for _, o := range opts {
		o(r)
	}
	r.named = neighbours(&r.cluster, r.rr)
	if r.rr.ASN != r.cluster.ASN {
		return nil, fmt.Errorf("reflector %s: it has AS number %d and cluster %s has %d; a reflector reflects within one AS, leave its asn out", r.rr.Name, r.rr.ASN, r.cluster.Name, r.cluster.ASN)
	}
	var err error
	if r.policy, err = newPolicy(&r.cluster, r.rr); err != nil {
		return nil, fmt.Errorf("reflector %s: %w", r.rr.Name, err)
	}
	return r, nil
}

// Ready is closed when Run listens. Until then nothing is known of peers.
func (r *Reflector) Ready() <-chan struct{} { return r.ready }

// errNotReady is what is told of a reflector before it is ready.
var errNotReady = errors.New("the reflector does not run yet")

// server gives what Run started, or why there is nothing yet.
func (r *Reflector) server() (*server.BgpServer, error) {
	select {
	case <-r.ready:
		return r.bgp, nil
	default:
		return nil, errNotReady
	}
}

// Run listens at the address and port of the reflector, and reflects until ctx
// ends. Call it once. An error says why it cannot.
//
// It ends the sessions without a Cease notification, which would make the core
// gateways drop the routes at once: they keep them for the graceful restart time,
// in which a successor may take over.
func (r *Reflector) Run(ctx context.Context) error {
	if err := r.run(ctx); err != nil {
		return fmt.Errorf("reflector %s: %w", r.rr.Name, err)
	}
	return nil
}

func (r *Reflector) run(ctx context.Context) error {
	port := cmp.Or(r.rr.Port, 179)
	b, err := peering.Serve(ctx, r.notes.Through(slog.New(quiet{r.log.Handler()})), &r.serving, &api.Global{
		Asn: r.cluster.ASN, RouterId: r.id, ListenPort: int32(port), ListenAddresses: []string{r.rr.Address.String()},
	})
	if err != nil {
		if err = peering.Fault(ctx, err); err != nil {
			at := net.JoinHostPort(r.rr.Address.String(), strconv.Itoa(int(port)))
			err = fmt.Errorf("listen on %s: %w", at, listenProblem(err))
		}
		return err
	}
	r.bgp = b
	working, end := context.WithCancel(ctx)
	if err = r.open(working); err == nil {
		close(r.ready)
		<-ctx.Done()
	}
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	end()
	err = errors.Join(peering.Fault(ctx, err), peering.Leave(ctx, b))
	r.serving.Wait()
	return err
}

// open admits the peers. The policy comes before the first neighbour: who connects
// until then is nobody's, and is hung up on.
func (r *Reflector) open(ctx context.Context) error {
	if err := r.policy.install(ctx, r.bgp); err != nil {
		return err
	}
	err := r.bgp.WatchEvent(ctx, server.WatchEventMessageCallbacks{
		OnPeerUpdate: func(e *apiutil.WatchEventMessage_PeerEvent, at time.Time) { r.peerChanged(ctx, e, at) },
		OnBestPath:   r.bestChanged,
	}, server.WatchPeer(), server.WatchBestPath(false))
	if err != nil {
		return err
	}
	if err := r.addNeighbours(ctx); err != nil {
		return err
	}
	if r.resumes() {
		r.serving.Go(func() { r.resume(ctx) })
	}
	r.serving.Go(func() { r.lookAfter(ctx) })
	r.serving.Go(func() { r.keepOrder(ctx) })
	return nil
}

// resumes reports whether it waits for the nodes before it tells the core gateways.
func (r *Reflector) resumes() bool { return r.deferral >= time.Second }

// neighbours lists who of the cluster has a session with a reflector: who has an
// address of its family. Small clusters have it on a node or a core gateway.
func neighbours(c *fabric.Cluster, rr fabric.RR) []neighbour {
	var all []neighbour
	add := func(n neighbour) {
		known := slices.ContainsFunc(all, func(o neighbour) bool { return o.address == n.address })
		if n.address.IsValid() && n.address.Is4() == rr.Address.Is4() && n.address != rr.Address && !known {
			all = append(all, n)
		}
	}
	// What is both is a core gateway: nothing is taken from it.
	for _, g := range c.Core {
		add(neighbour{g.Name, RoleCore, g.Address, g.ASN, g.BFD})
	}
	for _, n := range c.Nodes {
		add(neighbour{n.Name, RoleNode, n.Source(rr.Address), c.ASN, rr.BFD})
	}
	return all
}

// listenProblem puts into words for people why an address cannot be had.
func listenProblem(err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%w; another reflector or routing daemon has it, stop that first", syscall.EADDRINUSE)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%w; this machine does not have it, run the reflector where it is", syscall.EADDRNOTAVAIL)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%w; run the reflector as root, or give it CAP_NET_BIND_SERVICE", syscall.EACCES)
	}
	return err
}

// addNeighbours admits the nodes and core gateways. r.mu need not be held yet:
// the events of their sessions wait for it.
func (r *Reflector) addNeighbours(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	resumes := r.resumes()
	for _, n := range r.named {
		r.since[n.address] = time.Now()
		p := r.peer(n, n.bfd, resumes)
		if resumes && n.role == RoleCore {
			p = r.shut(n)
		}
		if err := r.bgp.AddPeer(ctx, &api.AddPeerRequest{Peer: p}); err != nil {
			return fmt.Errorf("%s %s (%s): %w", n.role, n.name, n.address, err)
		}
	}
	group := r.peer(neighbour{role: RoleNode, asn: r.cluster.ASN}, false, false)
	err := r.bgp.AddPeerGroup(ctx, &api.AddPeerGroupRequest{PeerGroup: &api.PeerGroup{
		Conf:   &api.PeerGroupConf{PeerGroupName: nodeGroup, PeerAsn: group.Conf.PeerAsn, AuthPassword: group.Conf.AuthPassword},
		Timers: group.Timers, Transport: group.Transport, RouteReflector: group.RouteReflector,
		GracefulRestart: group.GracefulRestart, AfiSafis: group.AfiSafis, TtlSecurity: group.TtlSecurity,
	}})
	if err != nil {
		return fmt.Errorf("nodes by address: %w", err)
	}
	for _, p := range r.cluster.NodeRanges() {
		if p.Addr().Is4() != r.rr.Address.Is4() {
			continue
		}
		err := r.bgp.AddDynamicNeighbor(ctx, &api.AddDynamicNeighborRequest{
			DynamicNeighbor: &api.DynamicNeighbor{Prefix: p.String(), PeerGroup: nodeGroup},
		})
		if err != nil {
			return fmt.Errorf("nodes by address: %s: %w", p, err)
		}
	}
	return nil
}

// shut is a neighbour whose connections are refused.
func (r *Reflector) shut(n neighbour) *api.Peer {
	p := r.peer(n, false, false)
	p.Conf.AdminDown, p.Transport.PassiveMode = true, true
	return p
}

// peer is a neighbour in GoBGP's terms. One that resumes says so in its OPEN.
func (r *Reflector) peer(n neighbour, bfd, resumes bool) *api.Peer {
	t := r.cluster.Timers
	deferral := max(r.deferral, time.Second)
	if n.role == RoleCore {
		deferral = coreDeferral // it is admitted when the nodes are there
	}
	p := &api.Peer{
		Conf:      &api.PeerConf{PeerAsn: n.asn, AuthPassword: r.rr.Password, Description: n.name},
		Timers:    peering.Timers(t),
		Transport: &api.Transport{LocalAddress: r.rr.Address.String(), PassiveMode: n.role == RoleNode},
		GracefulRestart: &api.GracefulRestart{
			Enabled: true, RestartTime: uint32(t.Restart.Seconds()),
			LocalRestarting: resumes, DeferralTime: uint32(deferral / time.Second),
		},
		AfiSafis: peering.BothFamilies(),
	}
	if n.address.IsValid() {
		p.Conf.NeighborAddress = n.address.String()
	}
	peering.LongLived(p, t)
	for _, f := range p.AfiSafis {
		if n.role == RoleNode {
			f.PrefixLimits = &api.PrefixLimit{Family: f.Config.Family, MaxPrefixes: uint32(r.cluster.MaxPrefixes), ShutdownThresholdPct: warnAt}
		}
	}
	if n.asn == r.cluster.ASN {
		p.RouteReflector = &api.RouteReflector{RouteReflectorClient: true, RouteReflectorClusterId: r.id}
	}
	switch {
	case r.rr.GTSM:
		p.TtlSecurity = &api.TtlSecurity{Enabled: true, TtlMin: 255}
	case n.asn != r.cluster.ASN:
		p.EbgpMultihop = &api.EbgpMultihop{Enabled: true, MultihopTtl: 255}
	}
	if bfd {
		p.Bfd = peering.BFD()
	}
	return p
}

// quiet passes GoBGP's own log on from warnings up, and all of it where the
// reflector logs at debug level: it has several lines for each connection.
type quiet struct{ slog.Handler }

// Enabled implements [slog.Handler].
func (q quiet) Enabled(ctx context.Context, l slog.Level) bool {
	return q.Handler.Enabled(ctx, l) && (l >= slog.LevelWarn || q.Handler.Enabled(ctx, slog.LevelDebug))
}

// WithAttrs implements [slog.Handler].
func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(attrs)} }

// WithGroup implements [slog.Handler].
func (q quiet) WithGroup(name string) slog.Handler { return quiet{q.Handler.WithGroup(name)} }
