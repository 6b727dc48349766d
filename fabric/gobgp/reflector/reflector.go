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

// Config has what a [Reflector] cannot do without.
type Config struct {
	Cluster fabric.Cluster // valid, and with its defaults, see [fabric.Cluster.WithDefaults]
	RR      fabric.RR      // the one of the cluster's reflectors that this is
}

// Option changes a [Reflector] at its making.
type Option func(*Reflector)

// WithLogger sets the reflector's logger; without it the reflector logs nothing.
func WithLogger(l *slog.Logger) Option { return func(r *Reflector) { r.log = l } }

// WithDeferral sets how long a starting reflector waits for the End-of-RIB of the
// nodes before it admits the core gateways (the Selection_Deferral_Timer of RFC
// 4724), in whole seconds; [DefaultDeferral] without this option. Until then the
// core gateways keep the routes of an earlier reflector. The reflector waits no
// longer than until all of the cluster's nodes have sent it. Zero: the reflector
// neither waits nor says in its OPEN that it resumes.
func WithDeferral(d time.Duration) Option {
	return func(r *Reflector) { r.deferral = d }
}

// WithPause sets how long the reflector refuses a node that exceeded
// [fabric.Cluster.MaxPrefixes]; [DefaultPause] without this option.
func WithPause(d time.Duration) Option { return func(r *Reflector) { r.pause = d } }

const (
	// DefaultDeferral is twice what an agent takes to come back: GoBGP waits 5 s
	// before it connects again.
	DefaultDeferral = 15 * time.Second
	// DefaultPause leaves time to see a mistake before the node repeats it.
	DefaultPause = time.Minute
)

// coreDeferral bounds how long GoBGP holds updates to a core gateway back. It can
// be short: the reflector admits a core gateway when the nodes have sent their
// routes.
const coreDeferral = time.Second

// warnAt is the part of [fabric.Cluster.MaxPrefixes], in percent, above which the
// reflector warns.
const warnAt = 80

// The roles of a reflector's peers in [fabric.Session].
const (
	RoleNode = "node"
	RoleCore = "core"
)

// nodeGroup is the peer group of nodes that the cluster does not list.
const nodeGroup = "nodes"

// neighbour is a peer of the reflector.
type neighbour struct {
	name, role string
	address    netip.Addr
	asn        uint32
	bfd        bool
}

// Reflector is a route reflector (RFC 4456) for laboratories and small clusters.
//
// From nodes it accepts the prefixes of [fabric.Cluster.Announceable], less the
// excluded ones, and only with all communities of the cluster, the node as next hop
// ([fabric.Node.NextHop]) and a LOCAL_PREF of [fabric.Preferences]. From core
// gateways it accepts nothing. It sends all accepted routes to core gateways. To
// nodes it sends the [fabric.Fresh] ones, or all if the cluster is
// [fabric.Cluster.EastWest]. It knows nodes by name or by their address
// ([fabric.Cluster.NodeRanges]); the latter have no BFD.
//
// The routes of a node whose connection just ends stay for the graceful restart
// time. A node that falls silent (hold time, BFD) loses its routes at once.
type Reflector struct {
	cluster fabric.Cluster
	rr      fabric.RR
	id      string // BGP identifier and cluster id
	log     *slog.Logger
	policy  *policy
	began   time.Time

	deferral, pause time.Duration

	named   []neighbour       // in the order of the cluster, core gateways first
	bgp     *server.BgpServer // set before ready is closed
	ready   chan struct{}     // closed by Run
	serving peering.Group     // the goroutines that Run waits for
	notes   *notifications.Tracker
	order   *order

	mu       sync.Mutex // also held while neighbours change
	closed   bool       // Run is ending
	up       map[netip.Addr]bool
	since    map[netip.Addr]time.Time
	sent     map[netip.Addr]uint64 // the number of notifications sent, as counted when the last session came up
	been     map[netip.Addr]bool   // had a session since the start
	held     map[netip.Addr]bool   // refused for too many prefixes
	counted  map[netip.Addr]count
	admitted map[netip.Addr]bool // nodes that the cluster does not list and that have statements in the policy
	opening  map[netip.Addr]opening
	removals resend.Removals // empty unless a session is being established
}

// New makes a reflector, which does nothing before Run. The error says what in the
// cluster a reflector cannot work with.
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

// Ready returns a channel that is closed when Run listens. Until then
// [Reflector.Peers] and the like return an error.
func (r *Reflector) Ready() <-chan struct{} { return r.ready }

// errNotReady is the error of requests before the reflector is ready.
var errNotReady = errors.New("the reflector does not run yet")

// server returns the server that Run started, or errNotReady.
func (r *Reflector) server() (*server.BgpServer, error) {
	select {
	case <-r.ready:
		return r.bgp, nil
	default:
		return nil, errNotReady
	}
}

// Run listens at the address and port of the reflector, and reflects until ctx
// ends. Call it once.
//
// It ends the sessions without a Cease notification: after one, the core gateways
// would drop the routes at once. So they keep the routes for the graceful restart
// time, and a successor may take over.
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

// open adds the peers. The policy comes before the first neighbour: until then
// GoBGP closes every connection, as it knows no peer.
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

// resumes reports whether the reflector waits for the nodes before it admits the
// core gateways.
func (r *Reflector) resumes() bool { return r.deferral >= time.Second }

// neighbours lists the cluster's nodes and core gateways that have a session with a
// reflector: those with another address of its family. In small clusters the
// reflector runs on a node or a core gateway.
func neighbours(c *fabric.Cluster, rr fabric.RR) []neighbour {
	var all []neighbour
	add := func(n neighbour) {
		known := slices.ContainsFunc(all, func(o neighbour) bool { return o.address == n.address })
		if n.address.IsValid() && n.address.Is4() == rr.Address.Is4() && n.address != rr.Address && !known {
			all = append(all, n)
		}
	}
	// A machine that is both is a core gateway: the reflector accepts nothing from
	// it.
	for _, g := range c.Core {
		add(neighbour{g.Name, RoleCore, g.Address, g.ASN, g.BFD})
	}
	for _, n := range c.Nodes {
		add(neighbour{n.Name, RoleNode, n.Source(rr.Address), c.ASN, rr.BFD})
	}
	return all
}

// listenProblem says in words for people why the reflector cannot listen on an
// address.
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

// addNeighbours adds the nodes and core gateways. It locks r.mu itself, so the
// events of their sessions wait until all are there.
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

// shut returns a neighbour whose connections GoBGP refuses.
func (r *Reflector) shut(n neighbour) *api.Peer {
	p := r.peer(n, false, false)
	p.Conf.AdminDown, p.Transport.PassiveMode = true, true
	return p
}

// peer returns a neighbour in GoBGP's terms. If it resumes, its OPEN says so.
func (r *Reflector) peer(n neighbour, bfd, resumes bool) *api.Peer {
	t := r.cluster.Timers
	deferral := max(r.deferral, time.Second)
	if n.role == RoleCore {
		deferral = coreDeferral // the reflector admits it when the nodes are there
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

// quiet passes on GoBGP's warnings and errors. GoBGP logs several lines for each
// connection below that, so quiet passes them on only if the reflector logs at
// debug level.
type quiet struct{ slog.Handler }

// Enabled implements [slog.Handler].
func (q quiet) Enabled(ctx context.Context, l slog.Level) bool {
	return q.Handler.Enabled(ctx, l) && (l >= slog.LevelWarn || q.Handler.Enabled(ctx, slog.LevelDebug))
}

// WithAttrs implements [slog.Handler].
func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(attrs)} }

// WithGroup implements [slog.Handler].
func (q quiet) WithGroup(name string) slog.Handler { return quiet{q.Handler.WithGroup(name)} }
