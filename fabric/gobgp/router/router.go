// Package router is a small BGP router for labs and demonstrations.
package router

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/peering"
)

// Config has what a [Router] needs.
type Config struct {
	ASN        uint32
	Address    netip.Addr    // of the router, and the source of its sessions
	Reflectors []fabric.RR   // the reflectors that it connects to
	Timers     fabric.Timers // zero: fabric.DefaultTimers
	// Learned, if not nil, gets every change of a best route, in order.
	Learned func(Route)
}

// Route is a new, changed or gone best route.
type Route struct {
	Prefix    netip.Prefix
	NextHop   netip.Addr // invalid: the route is gone
	LocalPref uint32
}

// Router is a small BGP router for labs and demonstrations: a core gateway that
// passes on the routes that it learns. It has no policy, and listens on no port.
type Router struct {
	cfg Config
	log *slog.Logger
}

// New makes a router, which does nothing before Run.
func New(cfg Config, log *slog.Logger) *Router {
	cfg.Timers = cmp.Or(cfg.Timers, fabric.DefaultTimers)
	return &Router{cfg: cfg, log: log}
}

// Run keeps the sessions with the reflectors until ctx ends.
func (r *Router) Run(ctx context.Context) error {
	if err := r.run(ctx); err != nil {
		return fmt.Errorf("bgp: %w", err)
	}
	return nil
}

func (r *Router) run(ctx context.Context) error {
	var group peering.Group
	id := fabric.RouterID(r.cfg.Address, r.cfg.Address).String()
	b, err := peering.Serve(ctx, r.log, &group, &api.Global{Asn: r.cfg.ASN, RouterId: id, ListenPort: -1})
	if err != nil {
		return peering.Fault(ctx, err)
	}
	if err = errors.Join(r.watch(ctx, b), r.connect(ctx, b)); err == nil {
		<-ctx.Done()
	}
	err = errors.Join(peering.Fault(ctx, err), peering.Stop(ctx, b))
	group.Wait()
	return err
}

func (r *Router) connect(ctx context.Context, b *server.BgpServer) error {
	var err error
	for _, rr := range r.cfg.Reflectors {
		err = errors.Join(err, b.AddPeer(ctx, &api.AddPeerRequest{Peer: &api.Peer{
			Conf:            &api.PeerConf{NeighborAddress: rr.Address.String(), PeerAsn: cmp.Or(rr.ASN, r.cfg.ASN), AuthPassword: rr.Password},
			Timers:          peering.Timers(r.cfg.Timers),
			Transport:       &api.Transport{LocalAddress: r.cfg.Address.String(), RemotePort: uint32(cmp.Or(rr.Port, 179))},
			GracefulRestart: &api.GracefulRestart{Enabled: true, RestartTime: uint32(r.cfg.Timers.Restart.Seconds())},
			AfiSafis:        peering.BothFamilies(),
		}}))
	}
	return err
}

func (r *Router) watch(ctx context.Context, b *server.BgpServer) error {
	if r.cfg.Learned == nil {
		return nil
	}
	return b.WatchEvent(ctx, server.WatchEventMessageCallbacks{
		OnBestPath: func(paths []*apiutil.Path, _ time.Time) {
			for _, p := range paths {
				if l, ok := routeOf(p); ok {
					r.cfg.Learned(l)
				}
			}
		},
	}, server.WatchBestPath(true))
}

func routeOf(p *apiutil.Path) (Route, bool) {
	nlri, ok := p.Nlri.(*bgp.IPAddrPrefix)
	if !ok {
		return Route{}, false
	}
	l := Route{Prefix: nlri.Prefix}
	if p.Withdrawal {
		return l, true
	}
	for _, a := range p.Attrs {
		switch a := a.(type) {
		case *bgp.PathAttributeNextHop:
			l.NextHop = a.Value
		case *bgp.PathAttributeMpReachNLRI:
			l.NextHop = a.Nexthop
		case *bgp.PathAttributeLocalPref:
			l.LocalPref = a.Value
		}
	}
	return l, l.NextHop.IsValid()
}
