package reflector

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"syscall"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/server"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/notifications"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/peering"
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
	settings
	policy *policy
	began  time.Time

	notifications *notifications.Tracker
	openings      *openings
	order         *order
	group         peering.Group

	ready chan struct{}     // closed by Run
	bgp   *server.BgpServer // set before ready is closed, as are the peers
	peers *peerTable
}

// settings has what a reflector is made from. It does not change.
type settings struct {
	cluster fabric.Cluster
	rr      fabric.RR
	id      string // BGP identifier and cluster id
	log     *slog.Logger

	deferral, pause time.Duration

	named []neighbour // in the order of the cluster, core gateways first
}

// New makes a reflector, which does nothing before Run. The error says what in the
// cluster a reflector cannot work with.
func New(cfg Config, opts ...Option) (*Reflector, error) {
	r := &Reflector{
		settings: settings{
			cluster: cfg.Cluster, rr: cfg.RR, id: fabric.RouterID(cfg.RR.Address, cfg.RR.Address).String(), log: slog.New(slog.DiscardHandler),
			deferral: DefaultDeferral, pause: DefaultPause, named: neighbours(&cfg.Cluster, cfg.RR),
		},
		began: time.Now(), notifications: notifications.New(), openings: newOpenings(), order: newOrder(), ready: make(chan struct{}),
	}
	for _, o := range opts {
		o(r)
	}
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

// started returns errNotReady before Run listens.
func (r *Reflector) started() error {
	select {
	case <-r.ready:
		return nil
	default:
		return errNotReady
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
	b, err := peering.Serve(ctx, r.notifications.Through(slog.New(quiet{r.log.Handler()})), &r.group, &api.Global{
		Asn: r.cluster.ASN, RouterId: r.id, ListenPort: int32(port), ListenAddresses: []string{r.rr.Address.String()},
	})
	if err != nil {
		if err = peering.Fault(ctx, err); err != nil {
			at := net.JoinHostPort(r.rr.Address.String(), strconv.Itoa(int(port)))
			err = fmt.Errorf("listen on %s: %w", at, listenProblem(err))
		}
		return err
	}
	r.bgp, r.peers = b, newPeerTable(&r.settings, b, &r.group, r.notifications)
	working, end := context.WithCancel(ctx)
	if err = r.open(working); err == nil {
		close(r.ready)
		<-ctx.Done()
	}
	r.peers.close()
	r.group.Close()
	end()
	err = errors.Join(peering.Fault(ctx, err), peering.Leave(ctx, b))
	r.group.Wait()
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
	if err := r.peers.addAll(ctx); err != nil {
		return err
	}
	if r.resumes() {
		r.group.Go(func() { r.resume(ctx) })
	}
	r.group.Go(func() { r.logRefused(ctx) })
	r.group.Go(func() { r.keepOrder(ctx) })
	return nil
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
