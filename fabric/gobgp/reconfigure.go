package gobgp

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"

	"github.com/vmfabric/vmfabric/fabric"
)

// leaveAfter is how long a session with another reflector must have been up before the
// speaker leaves one that the cluster does not name any more: until then the node's routes
// have passed on to the core gateways by the other one.
const leaveAfter = 5 * time.Second

// addPeerRetry is the wait after GoBGP did not take a peer.
const addPeerRetry = time.Second

// Reconfigure has the speaker go by another cluster: it opens sessions with the
// reflectors that are new in it, and leaves those that are missing once a session with
// another one has been up for some seconds. Of the other nodes' routes it learns those
// that may be announced in the cluster now. Everything else is as the cluster of
// [Config] says, also for a reflector whose address stays. It refuses a reflector of a
// family of which the node has no address, and changes nothing then.
func (s *Speaker) Reconfigure(c fabric.Cluster) error {
	cfg := s.cfg
	if err := cfg.reaches(c.Reflectors); err != nil {
		return err
	}
	cfg.Cluster.Pools, cfg.Cluster.Routed = c.Pools, c.Routed
	s.competitors.know(c.Reflectors)
	s.sessions.want(c.Reflectors)
	s.adjRIBIn.reconfigure(newImportFilter(cfg, s.log))
	s.review.Send()
	return nil
}

// reaches returns an error if the node has no address from which it could speak to one of
// the reflectors.
func (c Config) reaches(reflectors []fabric.RR) error {
	for _, rr := range reflectors {
		if !c.Node.Source(rr.Address).IsValid() {
			return fmt.Errorf("reflector %s: %s: node %s has no address of that family", rr.Name, rr.Address, c.Node.Name)
		}
	}
	return nil
}

// addPeer opens the session with a reflector.
func (s *Speaker) addPeer(ctx context.Context, b *server.BgpServer, rr fabric.RR, resumed bool) error {
	if resumed {
		s.sessions.resume(rr.Address)
	}
	if err := b.AddPeer(ctx, &api.AddPeerRequest{Peer: s.cfg.peer(rr, resumed)}); err != nil {
		return fmt.Errorf("reflector %s: %w", rr.Name, err)
	}
	ctx, end := context.WithCancel(ctx)
	s.sessions.opened(rr.Address, end)
	source := s.cfg.Node.Source(rr.Address)
	s.group.Go(func() {
		capture(ctx, s.log, source, rr.Address, cmp.Or(rr.Port, bgpPort), func(n *fabric.Notification) { s.notifications.Captured(rr.Address, n) })
	})
	return nil
}

// keepPeers keeps GoBGP's peers, and what is learned of them, as the cluster says, until
// ctx ends.
func (s *Speaker) keepPeers(ctx context.Context, b *server.BgpServer) {
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.review:
		case <-again.C:
		}
		if s.adjRIBIn.learnAnew(b, s.sessions.reflectors()) {
			s.log.Info("routes of reflectors considered anew")
		}
		if wait := s.reviewPeers(ctx, b); wait > 0 {
			again.Reset(wait)
		}
	}
}

// reviewPeers opens and leaves sessions, and returns when to look again; 0: not before
// something changes.
func (s *Speaker) reviewPeers(ctx context.Context, b *server.BgpServer) (wait time.Duration) {
	for _, rr := range s.sessions.missing() {
		if err := s.addPeer(ctx, b, rr, false); err != nil {
			s.log.Warn("session not opened; trying again", "peer", rr.Name, "err", err)
			wait = addPeerRetry
			continue
		}
		s.log.Info("session with a new reflector", "peer", rr.Name, "address", rr.Address)
	}
	peers, replacedFor, replaced := s.sessions.superfluous(time.Now())
	if len(peers) == 0 || !replaced {
		return wait
	}
	if left := leaveAfter - replacedFor; left > 0 {
		return min(cmp.Or(wait, left), left)
	}
	for _, peer := range peers {
		if err := b.DeletePeer(ctx, &api.DeletePeerRequest{Address: peer.String()}); err != nil && ctx.Err() == nil {
			s.log.Warn("session with a former reflector not ended", "address", peer, "err", err)
		}
		s.sessions.closed(peer)
		s.adjRIBIn.forget(peer)
		s.log.Info("session with a former reflector ended", "address", peer)
	}
	s.changed.Send()
	return wait
}

// reconfigure changes what is accepted; learnAnew applies it to what has come before.
func (r *adjRIBIn) reconfigure(f importFilter) {
	was := r.filter.Swap(&f)
	if !slices.Equal(was.allowed, f.allowed) || !slices.Equal(was.excluded, f.excluded) {
		r.outdated.Store(true)
	}
}

// learnAnew passes what GoBGP has of the reflectors through a filter that has changed. It
// reports whether there was something to do. Updates that came before are handled
// after it, in their order, so that the last one counts.
func (r *adjRIBIn) learnAnew(b *server.BgpServer, reflectors []fabric.RR) bool {
	if !r.outdated.Swap(false) {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for p, routes := range r.routes {
		if r.filter.Load().announceable(p) {
			continue
		}
		for peer := range routes {
			r.drop(competing{p, peer})
		}
	}
	for _, rr := range reflectors {
		for _, family := range []bgp.Family{bgp.RF_IPv4_UC, bgp.RF_IPv6_UC} {
			err := b.ListPath(apiutil.ListPathRequest{TableType: api.TableType_TABLE_TYPE_ADJ_IN, Name: rr.Address.String(), Family: family}, func(_ bgp.NLRI, paths []*apiutil.Path) {
				r.take(paths)
			})
			if err != nil {
				r.filter.Load().log.Debug("routes not considered anew", "peer", rr.Name, "err", err)
			}
		}
	}
	return true
}

// forget drops the routes of a reflector that is none any more, and waits for nothing of
// it.
func (r *adjRIBIn) forget(peer netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for p, routes := range r.routes {
		if _, has := routes[peer]; has {
			r.drop(competing{p, peer})
		}
	}
	delete(r.sessions, peer)
	for _, family := range []bgp.Family{bgp.RF_IPv4_UC, bgp.RF_IPv6_UC} {
		r.best.received(endOfRIB{peer, family})
	}
}

// know adds the names of reflectors.
func (c *competitors) know(reflectors []fabric.RR) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rr := range reflectors {
		c.names[rr.Address] = rr.Name
	}
}
