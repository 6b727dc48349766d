// Package router is a small BGP router for labs and demonstrations.
package router

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/peering"
)

// Config is what a [Router] needs.
type Config struct {
	ASN        uint32
	Address    netip.Addr    // of the router; the source of its sessions
	Reflectors []fabric.RR   // whom it connects to
	Timers     fabric.Timers // zero: fabric.DefaultTimers
	// Learned, when set, is told every change of a best route, in order.
	Learned func(Route)
}

// Route is a best route that came, changed or went.
type Route struct {
	Prefix    netip.Prefix
	NextHop   netip.Addr // invalid: the route is gone
	LocalPref uint32
}

// Router is a small BGP router for labs and demonstrations: a core gateway that
// tells what it learned. It has no policy, and listens nowhere.
type Router struct {
	bgp     *server.BgpServer
	unwatch context.CancelFunc
	serving sync.WaitGroup
}

// New starts a router. It runs until Close.
func New(cfg Config, log *slog.Logger) (*Router, error) {
	r := &Router{unwatch: func() {}}
	t := cmp.Or(cfg.Timers, fabric.DefaultTimers)
	id := fabric.RouterID(cfg.Address, cfg.Address).String()
	var err error
	if r.bgp, err = peering.Serve(log, &r.serving, &api.Global{Asn: cfg.ASN, RouterId: id, ListenPort: -1}); err != nil {
		return nil, fmt.Errorf("bgp: %w", err)
	}
	err = errors.Join(r.watch(cfg.Learned), r.connect(cfg, t))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("bgp: %w", err), r.Close())
	}
	return r, nil
}

func (r *Router) connect(cfg Config, t fabric.Timers) error {
	var err error
	for _, rr := range cfg.Reflectors {
		err = errors.Join(err, r.bgp.AddPeer(context.Background(), &api.AddPeerRequest{Peer: &api.Peer{
			Conf:            &api.PeerConf{NeighborAddress: rr.Address.String(), PeerAsn: cmp.Or(rr.ASN, cfg.ASN), AuthPassword: rr.Password},
			Timers:          peering.Timers(t),
			Transport:       &api.Transport{LocalAddress: cfg.Address.String(), RemotePort: uint32(cmp.Or(rr.Port, 179))},
			GracefulRestart: &api.GracefulRestart{Enabled: true, RestartTime: uint32(t.Restart.Seconds())},
			AfiSafis:        peering.BothFamilies(),
		}}))
	}
	return err
}

func (r *Router) watch(learned func(Route)) error {
	if learned == nil {
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.unwatch = cancel
	return r.bgp.WatchEvent(ctx, server.WatchEventMessageCallbacks{
		OnBestPath: func(paths []*apiutil.Path, _ time.Time) {
			for _, p := range paths {
				if l, ok := routeOf(p); ok {
					learned(l)
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

// Close ends all sessions.
func (r *Router) Close() error {
	r.unwatch()
	err := r.bgp.StopBgp(context.Background(), &api.StopBgpRequest{})
	r.serving.Wait()
	return err
}
